"""Every name and signature of FastChat 0.2.36 that other programs import: it is here, or says what to use instead."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastchat import upstream_names

API: dict[str, Any] = json.loads((Path(__file__).parent / "api.json").read_text(encoding="utf-8"))
NAMES: dict[str, dict[str, Any]] = API["names"]


@pytest.mark.parametrize("module", API["modules"])
def test_a_module_is_here_or_says_what_to_use(module: str) -> None:
    """What is in `modules` of the table of missing names is not here, and the other way round."""
    gone = module in upstream_names.table()["modules"]
    spec = importlib.util.find_spec(module)
    assert spec is not None, "an ImportError that says nothing"
    assert isinstance(spec.loader, upstream_names._Missing) is gone
    if gone and spec.submodule_search_locations is None:
        with pytest.raises(ImportError, match=f"{module} of FastChat 0.2.36 does not exist here: "):
            importlib.import_module(module)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in NAMES for name in NAMES[module]])
def test_a_name_is_here_with_its_signature_or_says_what_to_use(module: str, name: str) -> None:
    loaded, spec = importlib.import_module(module), NAMES[module][name]
    gone = upstream_names.table()["names"].get(module, {})
    if name in gone:
        with pytest.raises(ImportError, match=f"{module}.{name} of FastChat 0.2.36 does not exist here: "):
            getattr(loaded, name)
        return
    found = getattr(loaded, name)
    if isinstance(spec, list):
        assert same(spec, found)
    elif isinstance(spec, dict):
        if spec.get("fields"):
            values = inspect.signature(found).parameters
            assert {field for field, _ in spec["fields"]} <= set(values)
            assert all(agrees(default, values[field].default) for field, default in spec["fields"])
        for method, signature in spec["methods"].items():
            if f"{name}.{method}" not in gone:
                assert same(signature, getattr(found, method), bound=method != "__init__"), method


def same(signature: list[Any], function: Any, bound: bool = False) -> bool:
    """The same parameters in the same order with the same defaults; more of ours may follow."""
    ours = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    wanted = [(name, default) for name, default in signature]
    return len(ours) >= len(wanted) and all(
        p.name == name and agrees(default, p.default) for p, (name, default) in zip(ours, wanted, strict=False)
    )


def agrees(wanted: Any, found: Any) -> bool:
    """A parameter that upstream requires may have a default here; "?" is any default."""
    made = wanted == [[]] and repr(found) == "<factory>"  # a fresh list instead of an empty tuple
    return (
        wanted is None or wanted == ["?"] or made or (list(found) if isinstance(found, tuple) else found) == wanted[0]
    )


def test_what_is_named_instead_of_missing_names_exists() -> None:
    """Nothing in the table is a name that is here, and every `python -m` that it names can be found."""
    table = upstream_names.table()
    for module, names in table["names"].items():
        have = vars(importlib.import_module(module))
        assert not set(names) & set(have), module
    assert {key for names in (table["modules"], *table["names"].values()) for key in names.values()} == set(
        table["ways"]
    )
    for line in table["ways"].values():
        for word in re.findall(r"fastchat(?:\.\w+)+", line):
            head, _, last = word.rpartition(".")
            assert importlib.util.find_spec(head), word
            assert hasattr(importlib.import_module(head), last) or importlib.util.find_spec(word), word


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "fastchat.serve.model_worker"],
        ["-m", "fastchat.serve.monitor.monitor"],
        ["fastchat/train/train_flant5.py"],
    ],
)
def test_a_command_that_is_missing_says_what_to_use_and_exits_with_2(words: list[str], repository: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(repository)}
    run = subprocess.run([sys.executable, *words, "--x"], cwd=repository, env=env, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "does not exist here: " in run.stderr, run.stderr


def test_an_unknown_name_is_an_ordinary_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fastchat.serve.nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module("fastchat.utils").nothing  # noqa: B018


def test_importing_them_loads_no_torch(repository: Path) -> None:
    light = (
        "fastchat, fastchat.model, fastchat.utils, fastchat.constants, fastchat.llm_judge.common, fastchat.serve.cli"
    )
    code = f"import sys, {light}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert run.stdout.split() == ["False", "False"]
