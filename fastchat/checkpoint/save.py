"""Saves a result: gathered from all processes, written and read back by global rank 0, complete or absent."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from fastchat.checkpoint import adapter as adapter_files
from fastchat.checkpoint.card import try_write_card
from fastchat.checkpoint.digests import describe_result
from fastchat.checkpoint.folders import staged
from fastchat.checkpoint.full import saved_configs, write_model
from fastchat.checkpoint.gather import WeightAccess, gather_all, gather_trained
from fastchat.checkpoint.record import TrainingRecord
from fastchat.model.tokenizer_files import write_tokenizer
from fastchat.processes import on_main_process


def save_result(
    model: Any,
    folder: str | Path,
    *,
    weights: WeightAccess,
    adapter: bool,
    tokenizer: Any,
    stop_ids: Collection[int],
    record: TrainingRecord,
    digests: bool = True,
) -> None:
    """Saves the adapter (`adapter`: only that) or the whole model into `folder`. Every process must call it.

    `weights`: the engine that trains `model`, or `IN_PLACE`. Next to the tensors it saves `tokenizer` with its chat
    template, and `record`. `stop_ids` are the ids that end an answer. `digests`: add the digests of the files to
    `record`, and write the model card; not needed in a checkpoint, whose manifest has them.
    CheckpointError if the files, read back, differ from the gathered weights; NumericError if those are not finite.
    In both cases the folder is unchanged and every process raises (PeerFailed if only rank 0 knows the error).
    """
    with weights.at_rest():
        tensors = gather_trained(model, weights) if adapter else gather_all(model, weights)

    def write() -> None:
        """The files of the result, by global rank 0."""
        with staged(folder, last=[adapter_files.CONFIG if adapter else "config.json"]) as stage:
            if adapter:
                adapter_files.write_adapter(stage, model, tensors)
            else:
                write_model(stage, model, tensors, tokenizer, stop_ids)
            write_tokenizer(tokenizer, stage)
            if digests:
                record.files = describe_result(stage)
                try_write_card(Path(folder), record, into=stage)
            record.write(stage)

    on_main_process(write)


def write_company(folder: Path, model: Any, *, adapter: bool, tokenizer: Any, stop_ids: Collection[int]) -> None:
    """Writes the files of `save_result` except weights and record. For global rank 0."""
    if adapter:
        adapter_files.write_config(folder, model)
    else:
        for config in saved_configs(model, tokenizer, stop_ids):
            config.save_pretrained(str(folder))
    write_tokenizer(tokenizer, folder)
