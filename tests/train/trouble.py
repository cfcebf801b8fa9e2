"""Trouble inside a training process, told by the environment: a signal, a death or a NaN at a certain step of a rank.

TROUBLE="term:1:3" sends SIGTERM to rank 1 before step 3 begins; "int" sends SIGINT, "kill" is SIGKILL, "exit" an
unnoticed end, "bug" an error that nobody expects, "nan" and "inf" a poisoned loss, "hang" a rank that stops answering,
"full" a disk without room for the checkpoints that follow. Several are separated by commas. In the place of a step:
"data", "mapping" (of the tokens), "model", "saving" (each time a checkpoint is flushed), "result", "evaluation" (the
last one), each just before it begins.
"""

from __future__ import annotations

import functools
import importlib
import os
import resource
import signal
import time
from typing import Any

PLACES = {
    "data": ("fastchat.train.recipe", "read_corpora"),
    "mapping": ("fastchat.data.tokens.cache", "Entry.store"),
    "model": ("fastchat.train.recipe", "prepare_model"),
    "saving": ("fastchat.checkpoint.manager", "settle_files"),
    "result": ("fastchat.train.result", "used_line"),
    "evaluation": ("fastchat.train.result", "final_evaluation"),
}


def install() -> None:
    """Makes the trouble of this process happen. To be called before the run begins."""
    for word in filter(None, os.environ.get("TROUBLE", "").split(",")):
        kind, rank, place = word.split(":")
        if int(os.environ.get("RANK", "0")) == int(rank):
            _before(*PLACES[place], kind) if place in PLACES else _at(int(place), kind)


def _at(step: int, kind: str) -> None:
    from fastchat.train.callbacks import MetricsFile

    before = getattr(MetricsFile, "on_step_begin", None)

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if before is not None:
            before(self, args, state, control, **kwargs)
        if state.global_step == step:
            _happen(kind)

    MetricsFile.on_step_begin = on_step_begin  # pyright: ignore


def _before(module: str, name: str, kind: str) -> None:
    """It happens whenever that function is called."""
    *owner, name = name.split(".")
    home = functools.reduce(getattr, owner, importlib.import_module(module))
    real = getattr(home, name)

    def instead(*args: Any, **kwargs: Any) -> Any:
        _happen(kind)
        return real(*args, **kwargs)

    setattr(home, name, instead)


def _happen(kind: str) -> None:
    numbers = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}
    if kind in numbers:
        os.kill(os.getpid(), numbers[kind])
    elif kind == "exit":
        os._exit(9)
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "bug":
        raise RuntimeError("planted")
    elif kind in ("nan", "inf"):
        _poison(float(kind))
    elif kind == "full":
        _fill_the_disk()
    else:
        raise AssertionError(kind)


def _poison(value: float) -> None:
    """The loss of the next micro-batch of this process is `value`."""
    from fastchat.train import trainer

    real = trainer.loss_sum

    def once(*args: Any, **kwargs: Any) -> Any:
        trainer.loss_sum = real
        return real(*args, **kwargs) * value

    trainer.loss_sum = once


def _fill_the_disk() -> None:
    """No file of a checkpoint of this process can grow beyond a few bytes: a limit that needs no disk of its own."""
    from fastchat.train.trainer import ChatTrainer

    real = ChatTrainer._write_checkpoint

    @functools.wraps(real)
    def _write_checkpoint(*args: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
        try:
            real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    ChatTrainer._write_checkpoint = _write_checkpoint
