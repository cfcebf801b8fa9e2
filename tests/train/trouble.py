"""Trouble inside a training process, told by the environment: a signal, a death or a NaN at a certain step of a rank.

TROUBLE="term:1:3" sends SIGTERM to rank 1 before step 3 begins (-1: before the data is read); "int" sends SIGINT,
"kill" is SIGKILL, "exit" an unnoticed end, "nan" and "inf" a poisoned loss, "hang" a rank that stops answering.
Several are separated by commas.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def install() -> None:
    """Makes the trouble of this process happen. To be called before the run begins."""
    for word in filter(None, os.environ.get("TROUBLE", "").split(",")):
        kind, rank, step = word.split(":")
        if int(os.environ.get("RANK", "0")) == int(rank):
            _at(int(step), kind)


def _at(step: int, kind: str) -> None:
    from fastchat.train.callbacks import MetricsFile

    if step < 0:
        _before_the_data(kind)
        return
    before = getattr(MetricsFile, "on_step_begin", None)

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if before is not None:
            before(self, args, state, control, **kwargs)
        if state.global_step == step:
            _happen(kind)

    MetricsFile.on_step_begin = on_step_begin  # pyright: ignore


def _before_the_data(kind: str) -> None:
    from fastchat.train import recipe

    real = recipe.read_data

    def read_data(*args: Any, **kwargs: Any) -> Any:
        _happen(kind)
        return real(*args, **kwargs)

    recipe.read_data = read_data


def _happen(kind: str) -> None:
    numbers = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}
    if kind in numbers:
        os.kill(os.getpid(), numbers[kind])
    elif kind == "exit":
        os._exit(9)
    elif kind == "hang":
        time.sleep(600)
    elif kind in ("nan", "inf"):
        _poison(float(kind))
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
