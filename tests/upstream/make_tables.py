"""Writes api.json and templates.json: names, signatures and template choices of FastChat 0.2.36, as facts.

    pip download --no-deps fschat==0.2.36 && unzip fschat-0.2.36-py3-none-any.whl -d WHEEL
    python tests/upstream/make_tables.py WHEEL

A signature is a list of [parameter, default], where null means required and "?" a default that is no plain value.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Modules that exist here, whose names other people's programs import; of all others only the module's name counts.
COMPARED = (
    *("constants", "conversation", "utils", "model", "model.model_adapter", "serve.inference", "serve.cli"),
    *("modules.gptq", "modules.awq", "modules.exllama", "modules.xfastertransformer", "model.apply_lora"),
    *("llm_judge.common", "llm_judge.gen_model_answer", "train.train", "train.train_lora", "train.train_with_template"),
    *("train.train_baichuan", "train.train_yuan2", "train.train_flant5", "train.train_lora_t5", "train.train_mem"),
    *("train.llama2_flash_attn_monkey_patch", "train.llama_flash_attn_monkey_patch", "train.train_xformers"),
    "train.llama_xformers_attn_monkey_patch",
)


def main(wheel: Path) -> None:
    package = wheel / "fastchat"
    modules = sorted({_module(path, package) for path in package.rglob("*.py")} - {"fastchat"})
    names = {name: _names(_source(package, name)) for name in COMPARED}
    table = {"modules": modules, "names": {f"fastchat.{name}": found for name, found in names.items()}}
    (HERE / "api.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths = json.loads((HERE / "templates.json").read_text(encoding="utf-8"))
    chosen = {path: _choice(_source(package, "model.model_adapter"), path) for path in paths}
    lines = [f"  {json.dumps(path)}: {json.dumps(choice)}" for path, choice in chosen.items()]
    (HERE / "templates.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _module(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def _source(package: Path, name: str) -> ast.Module:
    path = package / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _names(tree: ast.Module) -> dict[str, Any]:
    """Public name -> signature of a function, {"fields" or "methods"} of a class, null for anything else."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name != "main":
            found[node.name] = _signature(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = _class(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: None for target in targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.ImportFrom) and len(tree.body) == 1:  # a package that only lends names
            found.update({alias.name: None for alias in node.names})
    return {name: spec for name, spec in found.items() if not name.startswith("_")}


def _class(node: ast.ClassDef) -> dict[str, Any]:
    methods = {f.name: _signature(f) for f in node.body if isinstance(f, ast.FunctionDef)}
    public = {name: spec for name, spec in methods.items() if name == "__init__" or not name.startswith("_")}
    fields = [[f.target.id, _field(f.value)] for f in node.body if isinstance(f, ast.AnnAssign)]  # type: ignore
    return {"fields": fields} | {"methods": public} if fields else {"methods": public}


def _signature(node: ast.FunctionDef) -> list[Any]:
    names = [arg.arg for arg in node.args.args]
    defaults = [None] * (len(names) - len(node.args.defaults)) + [[_value(d)] for d in node.args.defaults]
    return [list(pair) for pair in zip(names, defaults, strict=True) if pair[0] != "self"]


def _field(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        value = next((key.value for key in value.keywords if key.arg == "default"), ast.Name("?"))
    return None if value is None else [_value(value)]


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return "?"


def _choice(tree: ast.Module, path: str) -> list[str]:
    """[adapter, template] by upstream's own rules, run without its imports."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            rules = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in _RULES]
            node.body = [*rules] or [ast.Pass()]
            kept.append(node)
        elif isinstance(node, ast.FunctionDef) and node.name in _RULES:
            node.decorator_list = []
            kept.append(node)
        elif isinstance(node, ast.AnnAssign) or "MODEL_LIST" in ast.unparse(node)[:30] or _registers(node):
            kept.append(node)
    scope: dict[str, Any] = {"os": os, "re": re, "get_conv_template": str, "Conversation": str, "List": list}
    exec(compile(ast.Module(kept, []), "rules", "exec"), scope)
    adapter = scope["get_model_adapter"](path)
    return [type(adapter).__name__, adapter.get_default_conv_template(path)]


_RULES = (
    *("match", "get_default_conv_template", "get_model_adapter", "register_model_adapter"),
    "remove_parent_directory_name",
)


def _registers(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("register_model_adapter(")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
