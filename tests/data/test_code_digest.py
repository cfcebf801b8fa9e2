"""The token cache's key changes with the code that makes ids, wherever it lies, and with nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastchat
from fastchat.data.tokens import cache as token_cache
from fastchat.data.tokens import code_digest as code_digest_module
from fastchat.data.tokens.code_digest import code_digest, import_closure

PACKAGE = Path(fastchat.__file__).parent
ROOTS = token_cache._MODULES
MODULES = import_closure(PACKAGE, ROOTS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("copy") / "fastchat"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_every_module_that_makes_ids_changes_the_key(copy: Path) -> None:
    before = code_digest(copy, ROOTS)
    assert before == code_digest(PACKAGE, ROOTS)
    for name, file in import_closure(copy, ROOTS).items():
        text = file.read_bytes()
        file.write_bytes(text + b"\nx_added = 1\n")
        assert code_digest(copy, ROOTS) != before, name
        file.write_bytes(text)
    assert code_digest(copy, ROOTS) == before


def test_the_imports_are_those_of_the_syntax_tree() -> None:
    """They are found in the text of a module: its tree says the same, for each module of this package."""
    names = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    assert len(names) > 200
    for name, file in names.items():
        wanted = set(_imported(ast.parse(file.read_bytes())))
        module = name.removesuffix(".__init__")
        found = set(code_digest_module._imported(file.read_text(encoding="utf-8"), module, module != name))
        assert {n for n in found if n.startswith("fastchat")} == {n for n in wanted if n.startswith("fastchat")}, name


def _imported(tree: ast.AST) -> Iterator[str]:
    """The absolute imports of a module, other than those for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def test_what_makes_no_ids_does_not(copy: Path) -> None:
    before = code_digest(copy, ROOTS)
    others = set(copy.rglob("*.py")) - set(import_closure(copy, ROOTS).values())
    assert {"html_report.py", "preview.py", "reasons.py", "planner.py"} & {file.name for file in others}
    assert len(others) > 50
    for file in others:
        file.write_bytes(file.read_bytes() + b"\nx_added = 1\n")
    assert code_digest(copy, ROOTS) == before


def test_the_closure_holds_all_that_is_loaded_to_make_ids(tokenizer_dir: object, tmp_path: Path) -> None:
    """Against the interpreter: rows of every format, a template of either sort, tokens; and which modules that took."""
    folder = tokenizer_dir("byte_nobos")  # type: ignore[operator]
    code = """
import json, sys
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.rows.records import Records
from fastchat.data.tokens.workers import make_shard
encoder, _ = TextEncoder.from_directory(sys.argv[1])
chat_encoder = encoder.bind(encoder.choose("chatml"))
import pyarrow, pyarrow.parquet
row = {"instruction": "q", "output": "a"}
table = pyarrow.Table.from_pylist([row])
pyarrow.parquet.write_table(table, sys.argv[2] + "/a.parquet")
with pyarrow.OSFile(sys.argv[2] + "/a.arrow", "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
    out.write_table(table)
open(sys.argv[2] + "/a.json", "w").write(json.dumps([row]))
records = list(Records([sys.argv[2] + "/a." + ending for ending in ("json", "parquet", "arrow")]))
shard = make_shard([(r.index, r.dialogue) for r in records], chat_encoder, max_length=99, overlong="drop")
assert shard.counts["dialogues"]
print(*(name for name in sys.modules if name.partition(".")[0] == "fastchat"))
"""
    words = [sys.executable, "-c", code, str(folder), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert {"fastchat.data.rows.formats", "fastchat.conversation.template"} < set(done.stdout.split()) <= set(MODULES)


def test_a_moved_module_is_followed(tmp_path: Path) -> None:
    package = tmp_path / "made"
    (package / "rows").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "rows/__init__.py": "from .parts import split",
        "rows/parts.py": "def split(): return 1",
        "unused.py": "",
        "typed.py": "",
        "late.py": "",
        "several.py": "",
        "_more.py": "",
        "second.py": "",
        "start.py": (
            "from typing import TYPE_CHECKING\nfrom made import rows\nif TYPE_CHECKING:\n    import made.typed\n"
            "def run():\n    from made.late import (  # in brackets\n        x,\n        y as z,\n    )\n"
            "    import json\nfrom \\\n    made import several, _more as more\nimport json, made.second as m\n"
        ),
    }
    for name, text in files.items():
        (package / name).write_text(text, encoding="utf-8")
    assert list(import_closure(package, ["made.start"])) == [
        "made",
        "made._more",
        "made.late",
        "made.rows",
        "made.rows.parts",
        "made.second",
        "made.several",
        "made.start",
    ]
    before = code_digest(package, ["made.start"])
    (package / "rows" / "parts.py").write_text("def split(): return 2", encoding="utf-8")
    assert code_digest(package, ["made.start"]) != before


def test_every_library_that_decides_ids_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = {"numpy", "tqdm", "yaml", "transformers"}  # arrays, a bar, template files, what is in `described`
    imports = {
        name
        for file in MODULES.values()
        for name in re.findall(r"^\s*(?:from|import) ([a-z0-9_]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    third_party = imports - set(sys.stdlib_module_names) - {"fastchat"}
    installed = {name for name in third_party if name in importlib.metadata.packages_distributions()}
    assert installed - harmless == set(token_cache._LIBRARIES)
    real = importlib.metadata.version
    for name in token_cache._LIBRARIES:
        token_cache.code_version.cache_clear()
        before = token_cache.code_version()
        token_cache.code_version.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda n, name=name: "0" if n == name else real(n))
            assert token_cache.code_version() != before
    token_cache.code_version.cache_clear()
    assert json.dumps(token_cache.code_version())
