"""Running the shell scripts as a user does: through bash, from some other folder, without a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine import free_port

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script(repository: Path, tmp_path: Path) -> Run:
    """`run_script("train_lora_7b_base.sh", "--flag", ..., MODEL=...)`: exit code and output of a script."""

    def run(name: str, *arguments: str, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        names = ("MODEL", "DATA", "EVAL_DATA", "OUTPUT_DIR", "DEVICE", "NUM_GPUS", "CUDA_VISIBLE_DEVICES", "CXX")
        environment = {key: value for key, value in os.environ.items() if key not in names}
        # The Python of these tests comes first, so that a checkout without .venv is tested too.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment |= {"MASTER_PORT": str(free_port()), **variables}
        return subprocess.run(
            ["bash", str(repository / "scripts" / name), *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def launched_words(repository: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`launched_words("train_lora_7b_base.sh", "--flag", ..., MODEL=...)`: what a script has the launcher run.

    The script is a copy in a checkout without .venv, and the `deepspeed` on PATH prints its words and starts nothing.
    """

    def run(name: str, *arguments: str, **variables: str) -> list[str]:
        root, tools = tmp_path / "a checkout", tmp_path / "tools of the test"
        shutil.copytree(repository / "scripts", root / "scripts")
        for folder in ("fastchat", "playground"):
            (root / folder).symlink_to(repository / folder)
        tools.mkdir()
        (tools / "deepspeed").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (tools / "deepspeed").chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment["PATH"] = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", str(root / "scripts" / name), *arguments],
            cwd=tmp_path,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\0")[:-1]

    return run
