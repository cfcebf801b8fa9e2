"""Paths with everything that a careless script would split: they arrive unchanged, and nothing in them is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# Printed by the stub of a program: each argument, followed by a NUL.
STUB = '#!/bin/sh\nprintf "%s\\0" "$(basename "$0")" "$@" >>"$ARGUMENTS"\n'
ODD = "a 'b' \"c\" $(touch executed) `touch executed` ; touch executed & | > x * ? {a,b} ~ \\ %s !"
NAMES = [ODD, "-rf", "--output_dir", "new\nline", " outer spaces ", "-n $IFS"]
Tree = Callable[[str], tuple[Path, dict[str, str]]]


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Tree:
    """`tree(name)`: a checkout in a folder of that name whose .venv has stubs, and the environment to run it in."""

    def make(name: str) -> tuple[Path, dict[str, str]]:
        root = tmp_path / "trees" / name
        for part in ("scripts", "playground"):
            shutil.copytree(repository / part, root / part)
        shutil.copy(repository / "pyproject.toml", root)
        (root / ".venv" / "bin").mkdir(parents=True)
        for program in ("deepspeed", "python"):
            (root / ".venv" / "bin" / program).write_text(STUB)
            (root / ".venv" / "bin" / program).chmod(0o755)
        environment = os.environ | {"ARGUMENTS": str(tmp_path / "arguments"), "DEVICE": "cpu"}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        ready = '. "$1/scripts/lib.sh"; environment_key >"$VENV/.ready"'
        subprocess.run(["bash", "-c", ready, "bash", str(root)], env=environment, check=True, cwd=tmp_path)
        return root, environment

    return make


def _calls(tmp_path: Path, program: str = "deepspeed") -> list[str]:
    """The arguments of all stubs, one after the other, from the first call of `program` on."""
    called = (tmp_path / "arguments").read_bytes().decode().split("\0")[:-1]
    return called[called.index(program) :]


@pytest.mark.parametrize("name", NAMES, ids=["all", "dash", "flag", "newline", "spaces", "variable"])
def test_paths_reach_the_command_as_they_are(tree: Tree, tmp_path: Path, name: str) -> None:
    root, environment = tree(name)
    user = tmp_path / "user"
    (user / name).mkdir(parents=True)
    (user / name / "config.json").write_text("{}")
    (user / f"{name}.json").write_text("[]")
    environment |= {"MODEL": name, "DATA": f"{name}.json", "EVAL_DATA": f"{name}.json", "OUTPUT_DIR": f"{name}/out"}
    more = ["--run_name", name]
    script = root / "scripts" / "train_lora_7b_base.sh"
    done = subprocess.run(
        ["bash", str(script), *more], env=environment, cwd=user, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    called = _calls(tmp_path)
    assert called[0] == "deepspeed" and called[-2:] == more
    flags = {"model_name_or_path": name, "data_path": f"{name}.json", "eval_data_path": f"{name}.json"}
    for flag, value in (flags | {"output_dir": f"{name}/out"}).items():
        assert f"--{flag}={value}" in called
    assert str(root / "fastchat" / "train" / "train_lora.py") in called
    assert called[called.index("--deepspeed") + 1] == str(root / "playground" / "deepspeed_config_lora_s2.json")
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("data", ["parts/*.jsonl", "OWNER/NAME", "folder"])
def test_every_kind_of_data_reaches_the_command(tree: Tree, tmp_path: Path, data: str) -> None:
    root, environment = tree("tree")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    environment |= {"MODEL": "model", "DATA": data, "VAL_SET_SIZE": "0.1"}
    environment.pop("EVAL_DATA", None)
    script = root / "scripts" / "train_lora_7b_base.sh"
    done = subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = _calls(tmp_path)
    assert f"--data_path={data}" in called and called[called.index("--val_set_size") + 1] == "0.1"
    assert called[called.index("--eval_strategy") + 1] == "epoch" and "--eval_data_path" not in " ".join(called)


def test_the_last_value_among_the_flags_counts_and_stays_whole(tree: Tree, tmp_path: Path) -> None:
    root, environment = tree("tree")
    (tmp_path / "-m").mkdir()
    (tmp_path / "-m" / "config.json").write_text("{}")
    (tmp_path / ODD.replace("/", "")).write_text("[]")
    flags = ["--model_name_or_path=-m", "--data_path", ODD]
    script = root / "scripts" / "train_lora_7b_base.sh"
    done = subprocess.run(["bash", str(script), *flags], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = _calls(tmp_path)
    assert called[-3:] == flags and "--model_name_or_path=-m" in called and f"--data_path={ODD}" in called
    assert not list(tmp_path.rglob("executed"))


def test_a_missing_path_is_named_as_it_is(tree: Tree, tmp_path: Path) -> None:
    root, environment = tree("tree")
    environment |= {"MODEL": f"./{ODD}", "DATA": "-e"}
    script = root / "scripts" / "train_lora_7b_base.sh"
    done = subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"MODEL=./{ODD} does not exist" in done.stderr and "DATA=-e does not" in done.stderr
    assert not (tmp_path / "arguments").exists() and not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("name", [ODD, "new\nline"], ids=["all", "newline"])
def test_the_quickstart_runs_from_any_folder(tree: Tree, tmp_path: Path, name: str) -> None:
    root, environment = tree(name)
    script = root / "scripts" / "quickstart.sh"
    done = subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called, work = _calls(tmp_path, "python"), root / ".cache" / "quickstart"
    starts = [i for i, word in enumerate(called) if word in ("python", "deepspeed") and i + 1 < len(called)]
    assert [called[i] for i in starts] == ["python", "python", "deepspeed", "python"], called
    assert called[:3] == ["python", str(root / "playground" / "quickstart" / "make_data.py"), str(work)]
    for flag, value in (("--data_path", work / "base.jsonl"), ("--output_dir", work / "base")):
        assert called[called.index(flag) + 1] == str(value)
    compare = [str(root / "playground" / "quickstart" / "compare.py"), str(work / "base"), str(work / "adapter")]
    assert called[-4:] == [*compare, str(work / "chat_eval.json")]
    assert not list(tmp_path.rglob("executed"))
