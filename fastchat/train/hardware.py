"""What the machine lacks: each thing falls back with one line, or stops the run where nothing can replace it."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import torch

from fastchat.errors import ResourceError, SettingsError, say
from fastchat.settings.values import Values
from fastchat.train.deepspeed_config import offloads

# bitsandbytes has no CPU kernels for these. They compute AdamW, only with less memory, so AdamW can replace them.
_ADAMW_ON_CPU = ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw")
_GPU_ONLY_WORDS = ("paged_", "8bit", "bnb", "apex", "_4bit")

_OPERATION = "cpu_adam"  # what DeepSpeed compiles for the engines used here
_BUILD_S = 1800  # seconds; it takes half a minute, or several on a slow machine


def has_accelerator() -> bool:
    """Whether torch sees a GPU (or another accelerator)."""
    return torch.accelerator.is_available()


def fit_to_machine(values: Values) -> None:
    """Applies the fallbacks, in place. Everything changed is marked as derived and said."""
    if not values["use_cpu"] and not has_accelerator():
        values.derive("use_cpu", True, "no GPU here: training on the CPU")
    if values["use_cpu"]:
        _fit_to_cpu(values)
    else:
        _fit_to_gpu(values)


def _fit_to_cpu(values: Values) -> None:
    if values["tf32"]:
        values.derive("tf32", None, "--tf32 needs a GPU: left off")
    if values["fp16"]:
        values.derive("fp16", False, "--fp16 needs a GPU: computing in the weights' own dtype instead")
    if values["dataloader_pin_memory"] and not values.given("dataloader_pin_memory"):
        values.derive("dataloader_pin_memory", False)
    optim = str(values["optim"])
    if optim in _ADAMW_ON_CPU:
        values.derive("optim", "adamw_torch", f"--optim {optim} needs a GPU: using adamw_torch, the same update")
    elif any(word in optim for word in _GPU_ONLY_WORDS):
        raise SettingsError(f"--optim {optim} needs a GPU; use adamw_torch here")


def _fit_to_gpu(values: Values) -> None:
    if values["tf32"] and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8:
        values.derive("tf32", None, "--tf32 needs an Ampere GPU or newer: left off")
    if values["bf16"] and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingsError("--bf16 needs an Ampere GPU or newer; use --fp16 True here")
    if "WORLD_SIZE" not in os.environ and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        say(
            f"one process, {count} GPUs: only the first trains; deepspeed or torchrun --nproc_per_node {count} uses all"
        )


def check_compiler(config: dict | None) -> None:
    """Offloading makes DeepSpeed compile its Adam for CPUs. ResourceError names a missing compiler before that."""
    if config is None or not offloads(config):
        return
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        raise ResourceError(
            f"with offload, DeepSpeed compiles its Adam for CPUs and needs a C++ compiler, but {compiler!r} is not "
            "installed: `apt install g++` (or set CXX), or run without offload"
        )
    if shutil.which("ninja") is None:
        try:
            import ninja  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ResourceError(
                "with offload, DeepSpeed compiles its Adam for CPUs and needs ninja: `pip install ninja`"
            ) from None
    free_builds()


def free_builds() -> None:
    """Removes locks of builds that were killed: torch would wait for each silently and forever.

    While a build runs, a process holds its lock file open, though maybe on another host that shares the folder. So
    only an old one is removed; of a young one the run says what it waits for.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    found = (lock for depth in ("", "*/") for lock in root.glob(f"{depth}{_OPERATION}/lock"))
    for lock in [lock for lock in found if not _is_open(lock)]:
        with suppress(FileNotFoundError):  # the build has ended, or another process of this run was faster
            age = time.time() - lock.stat().st_mtime
            try:
                if age > _BUILD_S:
                    lock.unlink()
                    say(f"{lock} was left by a build of DeepSpeed's operations that was killed: removed")
                    continue
            except PermissionError:
                pass
            say(
                f"WARNING: {lock} is {age:.0f} s old, and no process here is building. If none elsewhere is, this run "
                f"waits for ever: stop it and remove that file (after {_BUILD_S // 60} minutes a run does so if it may)"
            )


def _is_open(path: Path) -> bool:
    """Whether a process on this machine, of this user, has the file open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is another user's
            for link in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.path.samefile(link.path, path):
                        return True
    return False
