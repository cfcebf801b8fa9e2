"""Starts real runs with the three launchers, as people do, and collects what they left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from tests.machine import free_port
from tests.train.conftest import Outcome, quiet

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800
# For runs whose weights are compared. Adam divides a gradient by its own size, so that where it is nothing but rounding
# (which another machine, or another order of adding, does otherwise) its step is as long as any other. With this
# epsilon rounding stays small beside the way a tensor goes, which `same_weights` measures.
STEADY_ADAM = ["--adam_epsilon", "1e-4"]
SHARE = 3e-3


def launch(launcher: str, script: str, flags: list[str], folder: Path, processes: int = 2) -> Outcome:
    """Runs `fastchat/train/{script}.py` with "deepspeed", "torchrun" or "python"; stdout and stderr are one text."""
    shared = _shared_memory()
    done = subprocess.run(
        **_command(launcher, script, flags, folder, processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert _shared_memory() <= shared, "memory that outlives the run"
    return Outcome(done.returncode, folder, done.stdout)


def start(
    launcher: str, script: str, flags: list[str], folder: Path, log: IO[str], **more: Any
) -> subprocess.Popen[str]:
    """The same, going on in the background; its output goes into `log`. `more` is for Popen."""
    command = _command(launcher, script, flags, folder, 2)
    return subprocess.Popen(**command, stdout=log, stderr=subprocess.STDOUT, **more)


def _command(launcher: str, script: str, flags: list[str], folder: Path, processes: int) -> dict[str, Any]:
    port = free_port()
    file = str(REPOSITORY / "fastchat" / "train" / f"{script}.py")
    module = script if "." in script else f"fastchat.train.{script}"  # a program of the tests by its full name
    commands = {
        "deepspeed": [
            str(Path(sys.executable).with_name("deepspeed")),
            f"--num_gpus={processes}",
            f"--master_port={port}",
            file,
        ],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--nproc_per_node={processes}", f"--master_port={port}", "-m", module),
        ],
        "python": [sys.executable, "-m", module],
    }
    words = flags if "." in script else quiet(flags)
    command = [*commands[launcher], *words, "--output_dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": _path()}
    return {"args": command, "cwd": folder.parent, "env": environment}


def same_weights(found: dict[str, Any], wanted: dict[str, Any], start: dict[str, Any]) -> None:
    """Every tensor went somewhere from its `start`, and `found` and `wanted` differ by a small share of that way, or by
    one rounding of a weight: an adapter's first matrix hardly goes further than that in a short run."""
    import torch

    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        way = float((tensor - start[name]).abs().max())
        off = float((found[name] - tensor).abs().max())
        rounding = torch.finfo(tensor.dtype).eps * float(tensor.abs().max())
        assert way > 0 and off <= SHARE * way + rounding, f"{name}: {off:.1e} apart, after a way of {way:.1e}"


def _shared_memory() -> set[Path]:
    """What DeepSpeed's processes on a CPU leave on this machine."""
    return set(Path("/dev/shm").glob("deepspeed_*"))


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
