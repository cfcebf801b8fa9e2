"""The structure of the code: which package may import which, what imports torch, how long files may be."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "fastchat"
# Each package may import itself, the packages named here, and nothing else of fastchat.
LEAVES = {
    "bars",
    "errors",
    "files",
    "machines",
    "pages",
    "paths",
    "one_thread",
    "security",
    "streams",
}  # small modules that every package may use
ARROWS = {
    **{leaf: {"errors", "files"} for leaf in LEAVES},
    "upstream_names": {"files"},
    "settings": LEAVES,
    "processes": LEAVES,
    "constants": {"upstream_names"},
    "utils": {"constants", "model", "upstream_names"},
    "modules": {"upstream_names"},
    "llm_judge": {"files", "upstream_names"},
    "conversation": LEAVES | {"upstream_names"},
    "data": LEAVES | {"conversation", "settings"},
    "model": LEAVES | {"conversation", "settings", "modules", "upstream_names"},
    "plan": LEAVES | {"conversation", "settings"},
    "checkpoint": LEAVES | {"model", "data", "plan", "conversation", "processes"},
    "train": LEAVES
    | {
        "eval",
        "report",
        "checkpoint",
        "model",
        "data",
        "plan",
        "conversation",
        "processes",
        "settings",
        "upstream_names",
    },
    "export": LEAVES | {"checkpoint", "model", "data", "conversation"},
    "eval": LEAVES | {"serve", "checkpoint", "model", "data", "conversation", "processes", "settings"},
    "report": LEAVES | {"checkpoint", "data", "plan", "settings"},
    "launch": {"errors", "plan", "settings"},
    "doctor": {"errors", "host_checks", "plan", "settings"},
    "host_checks": LEAVES | {"data", "doctor", "plan", "settings"},
    "completion": {"errors", "cli", "settings"},
    "cli": {"errors", "one_thread"},  # a table of names: it imports the module of a command only when that runs
    "serve": LEAVES | {"checkpoint", "model", "data", "plan", "conversation", "modules", "upstream_names", "utils"},
}
# The documents fix the names of these commands; `checkpoint` does their saving, `data` has the command line.
REACHES_UP = {
    ("model/apply_lora.py", "checkpoint"),
    ("model/apply_lora.py", "data"),
    ("model/prepare_model.py", "checkpoint"),
    ("model/prepare_model.py", "data"),
    ("data/encoding/open_tokenizer.py", "model"),  # the preview loads a tokenizer if the raw file is not enough
    # Upstream's interface is here: its load_model also opens adapters, and it exports `generate_stream`.
    ("model/model_adapter.py", "checkpoint"),
    ("model/model_adapter.py", "serve"),
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
SOURCES = sorted(PACKAGE.rglob("*.py"))
OURS = [*SOURCES, *sorted((REPOSITORY / "tests").rglob("*.py")), *sorted((REPOSITORY / "playground").rglob("*.py"))]


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module a file imports, anywhere in it, by full name and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports inside the package are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when the file is imported."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        statement = todo.pop()
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        yield statement
        todo += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def test_arrows_point_one_way() -> None:
    for path in SOURCES:
        room = _room(path)
        if room == "__init__":
            continue
        allowed = ARROWS[room] | {room}
        for module, line in _imported(_tree(path)):
            parts = module.split(".")
            assert parts[0] not in ("tests", "scripts", "playground"), f"{path}:{line} imports {module}"
            if parts[0] == "fastchat" and len(parts) > 1 and parts[1] != "__version__":
                named = (path.relative_to(PACKAGE).as_posix(), parts[1]) in REACHES_UP
                assert parts[1] in allowed or named, f"{path}:{line}: {room} must not import {module}"


def test_conversation_needs_only_the_standard_library() -> None:
    for path in (path for path in SOURCES if _room(path) == "conversation"):
        for module, line in _imported(_tree(path)):
            top = module.split(".")[0]
            # yaml is read inside the one function that loads a template file.
            assert top in sys.stdlib_module_names or top in ("fastchat", "yaml"), f"{path}:{line} imports {module}"


@pytest.mark.parametrize("room", ["errors.py", "conversation", "data", "plan", "settings"])
def test_light_rooms_import_nothing_heavy_at_the_top(room: str) -> None:
    paths = [p for p in SOURCES if _room(p) == room.removesuffix(".py")]
    for path in paths:
        for statement in _outside_functions(_tree(path)):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for module, line in _imported(statement):
                    heavy = {"torch", "transformers", "peft", "deepspeed", "datasets", "bitsandbytes", "accelerate"}
                    assert module.split(".")[0] not in heavy, f"{path}:{line} imports {module} at the top"


@pytest.mark.parametrize("module", ["fastchat.errors", "fastchat.conversation", "fastchat.data.preview"])
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'yaml') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert run.stdout.strip() in ("[]", "['yaml']"), run.stdout
    if module != "fastchat.data.preview":
        assert run.stdout.strip() == "[]"


def test_no_module_that_is_run_by_path_has_a_neighbour_shadowing_the_standard_library() -> None:
    # `deepspeed fastchat/train/train_lora.py` puts fastchat/train first on sys.path.
    shadows = [p.name for p in (PACKAGE / "train").glob("*.py") if p.stem in sys.stdlib_module_names]
    assert shadows == []


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in OURS:
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MAX_FILE_LINES:
            long.append(f"{path} has {lines} lines")
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


def test_only_the_recipe_takes_the_settings_of_a_run_apart() -> None:
    found = {
        path.name
        for path in SOURCES
        for name, _ in _imported(_tree(path))
        if name == "fastchat.train.settings.Settings"
    }
    assert found == {"recipe.py"}


def test_every_file_says_what_it_is() -> None:
    silent = [_name(path) for path in OURS if path.stat().st_size and not ast.get_docstring(_tree(path))]
    assert not silent, "no module docstring"


# DeepSpeed's attributes and calls, and checks whether it is used: allowed in the engine package only.
OF_THE_ENGINE = r"is_deepspeed_(zero3_)?enabled|GatheredParameters|\bds_(id|numel|status|tensor)\b|set_z3_leaf_module"
OF_THE_ENGINE += r"|zero_optimization_stage|\bnn\.parallel\b|FullyShardedDataParallel|\bfully_shard\b"


def test_only_the_engine_package_knows_where_weights_are() -> None:
    engine = PACKAGE / "train" / "engine"
    found = [
        f"{_name(path)}:{i}: {line.strip()}"
        for path in SOURCES
        if not path.is_relative_to(engine)
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(OF_THE_ENGINE, line)
    ]
    assert found == [], "ask the run's engine (train/engine) instead"
    inside = "".join(path.read_text(encoding="utf-8") for path in engine.glob("*.py"))
    assert set(re.findall(OF_THE_ENGINE.replace("(", "(?:"), inside)) >= {"GatheredParameters", "ds_id", "ds_numel"}


def test_only_the_model_room_loads_pretrained_weights_or_tokenizers() -> None:
    found = [
        f"{_name(path)}:{i}"
        for path in SOURCES
        if _room(path) != "model" and path.name != "card.py"  # whose text shows readers how to load the result
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if ".from_pretrained(" in line
    ]
    assert found == []


# What fastchat/files.py does for all, as (what a file uses, where else it may be used, and why).
_LEAF = {
    "fcntl": {"host_checks/member.py": "the address of a network interface; no lock"},
    "hashlib.sha256": {},
    "os.fsync": {},
    "json.load": {},
    "json.loads": {},
    "os.rename": {"checkpoint/staging.py": "whole folders, in the order that the run folder's promise rests on"},
    "os.replace": {
        "checkpoint/folders.py": "a new folder, and the files of a staged one",
        "data/tokens/cache.py": "an entry of the cache is a folder",
    },
    ".rename": {},
    ".replace": {},
    ".write_text": {"train/memory.py": "a file of the kernel, which cannot be replaced"},
    ".write_bytes": {},
}


def _uses_of_the_leaf(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Uses of functions that `fastchat.files` should replace: names as in _LEAF, and lines."""
    yield from ((name, line) for name, line in _imported(tree) if name in _LEAF)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, method = ast.unparse(node.func.value), node.func.attr
        first = ast.unparse(node.args[0]) if node.args else ""
        # str.replace has two arguments and dataclasses.replace has keywords; a path's has one argument alone.
        of_path = method not in ("rename", "replace") or len(node.args) == 1 and not node.keywords
        if f"{owner}.{method}" in _LEAF:
            if not first.startswith("json.dumps("):  # a copy in memory, not a file
                yield f"{owner}.{method}", node.lineno
        elif owner != "files" and f".{method}" in _LEAF and of_path:
            yield f".{method}", node.lineno


def test_files_are_read_written_and_locked_through_one_module() -> None:
    needed = set()
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        for use, line in _uses_of_the_leaf(_tree(path)) if name != "files.py" else ():
            assert name in _LEAF[use], f"{path}:{line}: {use}; fastchat/files.py does that"
            needed.add((use, name))
    assert needed == {(use, name) for use, where in _LEAF.items() for name in where}, "an exception that nobody needs"


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("import fcntl", "fcntl"),
        ("from os import replace, fsync", "os.replace"),
        ("x = json.loads(path.read_text())", "json.loads"),
        ("stage.replace(path)", ".replace"),
        ("Path(x).write_text('')", ".write_text"),
        ("h = hashlib.sha256()", "hashlib.sha256"),
        ("x = json.loads(json.dumps(x, default=str))", None),
        ("x = 'a'.replace('a', 'b'), dataclasses.replace(x, y=1)", None),
        ("files.write_text(path, '')", None),
    ],
)
def test_a_use_of_files_without_the_module_is_seen(code: str, use: str | None) -> None:
    found = [name for name, _ in _uses_of_the_leaf(ast.parse(code))]
    assert found[:1] == ([use] if use else [])
