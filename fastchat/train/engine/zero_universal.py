"""DeepSpeed's state of one number of processes for another: its universal checkpoint, one file per weight.

DeepSpeed converts its shards into it, and divides it anew when it loads it. The converted files are as large as the
shards; they are next to the checkpoint while they are needed.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from fastchat.checkpoint.resume_state import LATEST
from fastchat.checkpoint.staging import SAVING
from fastchat.errors import CheckpointError, brief
from fastchat.processes import on_main_process

TAG = "state"  # DeepSpeed's name for the folder inside


@contextmanager
def converted(folder: Path, classes: list[Any]) -> Iterator[Path]:
    """A folder to load the checkpoint `folder` from, whatever the number of processes. Every process calls it.

    `classes`: what DeepSpeed's files may hold in addition to tensors. CheckpointError where it cannot be converted.
    """
    target = folder.parent / f"{SAVING}{folder.name}.universal"
    on_main_process(lambda: _convert(folder, target, classes))
    try:
        with only_tensors(classes):
            yield target
    finally:
        on_main_process(lambda: shutil.rmtree(target, ignore_errors=True))


def _convert(folder: Path, target: Path, classes: list[Any]) -> None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target, ignore_errors=True)
    step = (folder / LATEST).read_text(encoding="utf-8").strip()
    asked = argparse.Namespace(
        input_folder=str(folder / step),
        output_folder=str(target / TAG),
        num_extract_workers=1,  # in this process, which only reads tensors
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # what Megatron's checkpoints say of themselves
    )
    try:
        target.mkdir()
        with only_tensors(classes), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(asked)
    except Exception as error:  # noqa: BLE001 - whatever DeepSpeed's converter does not know
        shutil.rmtree(target, ignore_errors=True)
        raise CheckpointError(
            f"{folder} was saved by another number of processes, and DeepSpeed cannot convert it "
            f"({type(error).__name__}: {brief(error)}): start as many, or use --resume_weights_only"
        ) from error


def check_optimizer(optimizer: Any) -> None:
    """CheckpointError for an optimizer whose state DeepSpeed leaves out, or mixes up, when it divides it anew."""
    if not isinstance(optimizer.param_groups[0].get("betas"), tuple | list):
        raise CheckpointError(
            f"the state of {type(optimizer).__name__} only fits as many processes as saved it: DeepSpeed can divide "
            "that of Adam anew; start as many, or use --resume_weights_only"
        )


def mend(optimizer: Any, converted_folder: Path) -> None:
    """ZeRO-3 gives all groups the options of the first, and one tensor that counts the steps of all of them."""
    state = torch.load(converted_folder / TAG / "zero" / "optimizer_state.pt", map_location="cpu")
    saved = state.get("optimizer_state_dict", state)["param_groups"]
    for group, options in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in options.items() if name != "params"})
    for values in optimizer.state.values():
        if isinstance(values.get("step"), torch.Tensor):
            values["step"] = values["step"].clone()


@contextmanager
def only_tensors(classes: list[Any]) -> Iterator[None]:
    """Within it `torch.load` reads tensors, plain values and `classes`, whatever DeepSpeed asks for."""
    real: Callable[..., Any] = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        with torch.serialization.safe_globals(classes):
            return real(*args, **{**kwargs, "weights_only": True})

    torch.load = load
    try:
        yield
    finally:
        torch.load = real
