"""`--packing` in a run: which dialogues share a row, what the Trainer reads then, and whether this model can do it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastchat.data.batches.collate import collate
from fastchat.data.batches.packing import PackedDataset, Packs, check_packable, pack_collate, plan_packs
from fastchat.data.batches.packing_check import check_no_leak, compare_packing
from fastchat.errors import SettingsError, say
from fastchat.model.attention import used_attention, wants_one_row
from fastchat.model.rope import RopeChoice
from fastchat.processes import on_all_processes, on_main_process
from fastchat.train.datasets import Corpus
from fastchat.train.engine import Engine
from fastchat.train.head import ChunkedCrossEntropy
from fastchat.train.loss import loss_sum
from fastchat.train.record import Run
from fastchat.train.settings import Settings

_VERIFIED = 16  # dialogues that --verify_packing compares, at most


def check_config(settings: Settings, config: Any, rope: RopeChoice | None) -> None:
    """SettingsError for a model that cannot be packed exactly, before anything of it is loaded."""
    if settings.data.packing:
        check_packable(config, settings.training.model_max_length, rope.rope_parameters if rope else None)


def plan(settings: Settings, corpora: dict[str, Corpus]) -> dict[str, Packs]:
    """The packs of the training and the evaluation data, planned once and told to all; {} without --packing."""
    if not settings.data.packing:
        return {}
    training = settings.training
    seed = training.seed if training.data_seed is None else training.data_seed

    def work() -> dict[str, Packs]:
        return {
            name: plan_packs(corpus.dataset.lengths, training.model_max_length, seed)
            for name, corpus in corpora.items()
        }

    packs = on_main_process(work)
    assert packs is not None
    for name, found in packs.items():
        say(f"{name} {found.line}")
    return packs


def dataset_of(run: Run, name: str) -> Any:
    """What the Trainer indexes: dialogues, or packs of them."""
    dataset = run.corpora[name].dataset
    return PackedDataset(dataset, run.packs[name]) if name in run.packs else dataset


def collator(run: Run, model: Any) -> Callable[[Any], dict[str, torch.Tensor]]:
    """What makes a batch of the items, in the form that the model's attention kernel wants."""
    if run.packs:
        flat = wants_one_row(used_attention(model))
        return functools.partial(pack_collate, pad_token_id=run.pad_token_id, flat=flat)
    return functools.partial(collate, pad_token_id=run.pad_token_id, padding_side=run.settings.model.padding_side)


def check_model(run: Run, model: Any, head: ChunkedCrossEntropy | None, engine: Engine) -> None:
    """Looks whether dialogues really are kept apart by this model, its kernel and its dtype, under every engine.

    Always that none sees the one packed before it; with `--verify_packing` also that loss and gradients are those of
    unpacked training. SettingsError where they are not. Every process calls it, and it leaves the model as it was.

    It takes no more memory than training: the same batch, `head` and checkpoints. (Not those under ZeRO-3, where the
    weights that a layer needs again would be gone: there the rows are compared one at a time.)
    """
    settings = run.settings
    if not run.packs:
        return
    flat = wants_one_row(used_attention(model))
    vocabulary = model.config.get_text_config().vocab_size
    with _as_in_training(run, model, engine) as dtype, engine.weights_in_reach(model):
        on_all_processes(lambda: check_no_leak(model, vocab_size=vocabulary, flat=flat))
        if not settings.data.verify_packing:
            return
        if not (run.packs["train"].sizes > 1).any():
            say("--verify_packing: no row holds more than one dialogue, so there is nothing to compare")
            return
        examples = on_main_process(lambda: _to_compare(dataset_of(run, "train")))
        assert examples is not None
        report = compare_packing(
            model,
            examples,
            functools.partial(loss_sum, chunked=head is not None),
            pad_token_id=run.pad_token_id,
            capacity=settings.training.model_max_length,
            flat=flat,
            batch_size=1 if engine.partitions else settings.training.per_device_train_batch_size,
            dtype=dtype,
            checkpointing=bool(settings.training.gradient_checkpointing) and not engine.partitions,
        )

    def verdict() -> None:
        if not report.exact:
            raise SettingsError(
                f"--verify_packing: {report.numbers}. Packed training of this model would not be unpacked training: "
                "leave --packing out, or look for the cause with --dtype float32 and without --bf16 and --fp16"
            )

    on_all_processes(verdict)
    say(report.line)


def _to_compare(packed: PackedDataset) -> list[Any]:
    """The dialogues of the first packs that hold more than one, at most `_VERIFIED`."""
    packs = packed.packs
    shared = [packs[p] for p in np.flatnonzero(packs.sizes > 1)[:_VERIFIED].tolist()]
    members = np.concatenate(shared)[:_VERIFIED]
    return [packed.dataset[i] for i in members.tolist()]


@contextmanager
def _as_in_training(run: Run, model: Any, engine: Engine) -> Iterator[torch.dtype]:
    """The device and the precision that training will compute in; gives the dtype that rounds as much."""
    training = run.settings.training
    if not engine.partitions and model.device.type != training.device.type:
        model.to(training.device)  # the Trainer or the engine would do it a moment later
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    mixed = half is not None and not (engine.casts_weights and run.weights_dtype == half)
    with torch.autocast(training.device.type, dtype=half, enabled=mixed):
        computing = half or run.weights_dtype
        yield torch.float16 if training.tf32 and computing == torch.float32 else computing  # both keep 10 bits
