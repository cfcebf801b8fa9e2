"""Running the shell scripts as a user does: through bash, from some other folder, without a terminal."""

from __future__ import annotations

import os
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
