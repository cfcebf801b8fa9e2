"""Saves a result: gathered from all processes, written and read back by global rank 0, complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastchat.checkpoint import adapter as adapter_files
from fastchat.checkpoint.files import staged
from fastchat.checkpoint.full import write_model
from fastchat.checkpoint.gather import gather_all, gather_trained
from fastchat.checkpoint.record import TrainingRecord
from fastchat.errors import UserError


@dataclass
class Companions:
    """What lies beside the weights: tokenizer with its chat template, the ids that end an answer, and training.json."""

    tokenizer: Any
    stop_ids: Collection[int] = ()
    record: TrainingRecord | None = None


def save_result(model: Any, folder: str | Path, companions: Companions, *, adapter: bool) -> None:
    """Saves the adapter (`adapter`: only what is trained) or the whole model into `folder`. Every process calls it.

    CheckpointError where the files, read back, are not the gathered weights; NumericError where those are not finite.
    Then the folder is as it was, and every process raises.
    """
    tensors = gather_trained(model) if adapter else gather_all(model)

    def write() -> None:
        last = [adapter_files.CONFIG] if adapter else ["config.json"]
        with staged(folder, last=last) as stage:
            if adapter:
                adapter_files.write_adapter(stage, model, tensors)
            else:
                write_model(stage, model, tensors, companions.stop_ids)
            companions.tokenizer.save_pretrained(str(stage))
            if companions.record is not None:
                companions.record.write(stage)

    _first_process(write)


def _first_process(work: Callable[[], None]) -> None:
    """Runs `work` in global rank 0; its user error is raised everywhere, so that no process waits for ever."""
    if not dist.is_initialized():
        work()
        return
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            work()
        except UserError as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        outcome[0].shared = True  # pyright: ignore[reportAttributeAccessIssue]  # all ranks have it: rank 0 speaks
        raise outcome[0]
