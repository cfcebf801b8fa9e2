"""`--packing` in a run: which dialogues share a row, what the Trainer reads then, and whether this model can do it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fastchat.data.batches.collate import collate
from fastchat.data.batches.packing import PackedDataset, Packs, check_packable, pack_collate, plan_packs
from fastchat.data.batches.packing_check import check_no_leak, check_tree, compare_packing
from fastchat.data.batches.shared_packs import packs_of, plan_shared_packs
from fastchat.data.tokens.dataset import ChatDataset, WithoutTails
from fastchat.errors import SettingsError, say
from fastchat.model.attention import used_attention, wants_one_row
from fastchat.model.rope import RopeChoice
from fastchat.processes import on_all_processes, on_main_process
from fastchat.train.datasets import Corpus
from fastchat.train.engine import Engine
from fastchat.train.loss import loss_sum
from fastchat.train.tree_support import why_no_tree

_VERIFIED = 16  # dialogues that --verify_packing compares, at most


def check_config(config: Any, capacity: int, rope: RopeChoice | None) -> None:
    """SettingsError for a model that cannot be packed exactly, before anything of it is loaded.

    `capacity`: tokens of a pack.
    """
    check_packable(config, capacity, rope.rope_parameters if rope else None)


def plan(
    corpora: dict[str, Corpus], capacity: int, seed: int, trees: tuple[Any, str] | None = None
) -> dict[str, Packs]:
    """The packs of the training and the evaluation data, planned once and told to all.

    `trees`: the configuration of the model and its attention kernel, where rows may be prefix trees.
    """

    def work() -> dict[str, tuple[Packs, str]]:
        why_not = why_no_tree(*trees) if trees else None
        return {name: _packs(corpus.dataset, capacity, seed, bool(trees), why_not) for name, corpus in corpora.items()}

    packs = on_main_process(work)
    assert packs is not None
    for name, (found, note) in packs.items():
        say(f"{name} {found.line}")
        if note:
            say(f"{name} packing: {note}")
    return {name: found for name, (found, _) in packs.items()}


def _packs(dataset: ChatDataset, capacity: int, seed: int, trees: bool, why_not: str | None) -> tuple[Packs, str]:
    """The packs of a dataset, and what is to be said about the trees that they are not."""
    shared = plan_shared_packs(WithoutTails(dataset), capacity, seed) if trees else None
    if shared is None:
        return plan_packs(dataset.lengths, capacity, seed), ""
    if why_not is None:
        return shared, ""
    packs = plan_packs(dataset.lengths, capacity, seed)
    fewer = f"{shared.num_tokens.sum():,} tokens would do instead of {shared.separate:,}"
    return packs, f"common prefixes are computed in every row, because {why_not} ({fewer})"


def count_every_token(rows: Any) -> None:
    """Of the rows of a model that adds a loss over all their tokens, nothing may be left out: examples are read whole.

    SettingsError where rows are prefix trees.
    """
    if isinstance(rows, PackedDataset):
        if rows.packs.separate is not None:
            raise SettingsError(
                "--packing: the model adds a loss over all tokens of a row, in which what examples begin with has to "
                "count for each of them. Use --packing_prefix_tree False."
            )
        rows = rows.dataset
    if isinstance(rows, WithoutTails):
        rows.whole = True


def collator(
    model: Any, *, packed: bool, pad_token_id: int, padding_side: Literal["right", "left"]
) -> Callable[[Any], dict[str, torch.Tensor]]:
    """What makes a batch of the items, in the form that the model's attention kernel wants."""
    if packed:
        flat = wants_one_row(used_attention(model))
        return functools.partial(pack_collate, pad_token_id=pad_token_id, flat=flat)
    return functools.partial(collate, pad_token_id=pad_token_id, padding_side=padding_side)


@dataclass(frozen=True)
class Computing:
    """Where and how training will compute.

    half: the 16-bit dtype of forward and backward, None where it is that of the weights; weights_dtype: as loaded.
    """

    device: torch.device
    half: torch.dtype | None
    weights_dtype: torch.dtype
    tf32: bool


def check_model(
    model: Any,
    rows: PackedDataset,
    computing: Computing,
    engine: Engine,
    *,
    verify: bool,
    chunked: bool,
    pad_token_id: int,
    capacity: int,
    batch_size: int,
    checkpointing: bool,
) -> None:
    """Looks whether dialogues really are kept apart by this model, its kernel and its dtype, under every engine.

    Always that none sees the one packed before it; with `verify` also that loss and gradients are those of unpacked
    training. SettingsError where they are not. Every process calls it, and it leaves the model as it was.

    It takes no more memory than training: the same batch, head (`chunked` or not) and checkpoints. (Not those under
    ZeRO-3, where the weights that a layer needs again would be gone: there the rows are compared one at a time.)
    """
    flat = wants_one_row(used_attention(model))
    vocabulary = model.config.get_text_config().vocab_size
    with as_in_training(model, computing, engine) as dtype, engine.weights_in_reach(model):
        on_all_processes(lambda: check_no_leak(model, vocab_size=vocabulary, flat=flat))
        if rows.packs.separate is not None:
            on_all_processes(lambda: check_tree(model, vocab_size=vocabulary, dtype=dtype))
        if not verify:
            return
        if not (rows.packs.sizes > 1).any():
            say("--verify_packing: no row holds more than one dialogue, so there is nothing to compare")
            return
        compared = on_main_process(lambda: _to_compare(rows))
        assert compared is not None
        examples, packs = compared
        report = compare_packing(
            model,
            examples,
            functools.partial(loss_sum, chunked=chunked),
            pad_token_id=pad_token_id,
            capacity=capacity,
            packs=packs,
            flat=flat,
            batch_size=1 if engine.partitions else batch_size,
            dtype=dtype,
            checkpointing=checkpointing and not engine.partitions,
            gradients_of=engine.gradients,
        )

    def verdict() -> None:
        if not report.exact:
            raise SettingsError(
                f"--verify_packing: {report.numbers}. Packed training of this model would not be unpacked training: "
                "leave --packing out, or look for the cause with --dtype float32 and without --bf16 and --fp16"
            )

    on_all_processes(verdict)
    say(report.line)


def _to_compare(packed: PackedDataset) -> tuple[list[Any], Packs | None]:
    """The dialogues of the first packs that hold more than one, at most `_VERIFIED`; and how they are packed, where
    the packs are prefix trees."""
    packs = packed.packs
    shared = [packs[p] for p in np.flatnonzero(packs.sizes > 1)[:_VERIFIED].tolist()]
    members = np.concatenate(shared)[:_VERIFIED]
    examples = [packed.dataset[i] for i in members.tolist()]
    if packs.separate is None:
        return examples, None
    places = np.split(np.arange(len(members)), np.cumsum([len(pack) for pack in shared]))
    groups = [part for part in places if len(part)]
    return examples, packs_of(lambda i: examples[i]["input_ids"], groups, packs.capacity)


@contextmanager
def as_in_training(model: Any, computing: Computing, engine: Engine) -> Iterator[torch.dtype]:
    """The device and the precision that training will compute in; gives the dtype that rounds as much."""
    device, half = computing.device, computing.half
    if not engine.partitions and model.device.type != device.type:
        model.to(device)  # the Trainer or the engine would do it a moment later
    mixed = half is not None and not engine.casts_by_itself(computing.weights_dtype, half)
    with torch.autocast(device.type, dtype=half, enabled=mixed):
        dtype = half or computing.weights_dtype
        yield torch.float16 if computing.tf32 and dtype == torch.float32 else dtype  # both keep 10 bits
