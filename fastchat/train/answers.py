"""Answers of the model before and after its training, to prompts of the evaluation data: `--sample_prompts`.

A prompt is the beginning of an evaluation example, up to its first answer: exactly the ids that inference would send.
They are always answered with the most likely token, and nothing of it is left in the run: not in its random numbers,
its modes, or the state of its modules.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastchat.checkpoint.resume_state import random_state, set_random_state
from fastchat.data.batches.packing import IGNORED
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.tokens.dataset import ChatDataset
from fastchat.eval.answers import read_answer
from fastchat.eval.generation import LENGTH, STOP, Sampling, generate
from fastchat.train.stopping import STOPPING

NEW_TOKENS = 256  # at most
ROOM, SHARE = 64, 4  # a prompt leaves so many tokens of the maximum length, or this part of it, whichever is less
SECONDS = 60.0  # for all prompts together, before training and again after it
_LOOKED_AT = 64  # examples, for each prompt that is wanted
TIME, STOPPED = "time", "stopped"  # why an answer was cut


@dataclass(frozen=True)
class Prompt:
    """A prompt: the row of the data that it comes from, its ids, and the ids of the answer there."""

    row: int
    ids: list[int]
    answer: list[int]


def choose_prompts(dataset: ChatDataset, number: int, *, max_length: int) -> list[Prompt]:
    """Up to `number` different prompts, spread over `dataset`, that leave room for an answer within `max_length`.

    Plain texts, and examples whose prompts are trained as well (`--train_on all`), do not say where an answer begins:
    they have no prompt.
    """
    longest = max_length - min(ROOM, max_length // SHARE)
    found: dict[tuple[int, ...], Prompt] = {}
    for start in range(number):
        first, last = (len(dataset) * at // number for at in (start, start + 1))
        for place in range(first, min(last, first + _LOOKED_AT)):
            prompt = _prompt_of(dataset[place])
            if prompt and len(prompt.ids) <= longest and tuple(prompt.ids) not in found:
                found[tuple(prompt.ids)] = prompt
                break
    return list(found.values())


def _prompt_of(example: dict[str, Any]) -> Prompt | None:
    learned = np.asarray(example["labels"]) != IGNORED
    if not learned.any():
        return None
    start = int(learned.argmax())
    rest = ~learned[start:]
    end = start + (int(rest.argmax()) if rest.any() else len(rest))
    if start <= 1:  # nothing but a BOS
        return None
    ids = example["input_ids"]
    return Prompt(example["index"], ids[:start].tolist(), ids[start:end].tolist())


def answer_all(
    model: Any,
    prompts: Sequence[Prompt],
    chat_encoder: ChatEncoder,
    *,
    pad_id: int,
    batch_size: int,
    together: bool,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row of answers.jsonl for each prompt, without its step.

    `together`: every process calls it with the same prompts, as `generate` wants it. Where the time is over, or the run
    is asked to stop, answers end where they are.
    """
    until, cut = time.monotonic() + SECONDS, ""

    def ended(number: int, ids: list[int]) -> bool:
        nonlocal cut
        cut = cut or (STOPPED if STOPPING.reason else TIME if time.monotonic() > until else "")
        return bool(cut) or bool(chat_encoder.stop_strings) and read_answer(chat_encoder, prompts[number].ids, ids)[1]

    made = generate(
        model,
        [prompt.ids for prompt in prompts],
        stop_ids=chat_encoder.stop_ids,
        pad_id=pad_id,
        sampling=Sampling(max_new_tokens=NEW_TOKENS),
        batch_size=batch_size,
        ended=ended,
        together=together,
        device=device,
    )
    rows = []
    for prompt, one in zip(prompts, made, strict=True):
        ids = one.ids if one.stop_id is None else [*one.ids, one.stop_id]
        text, stopped = read_answer(chat_encoder, prompt.ids, ids)
        rows.append(
            {
                "row": prompt.row,
                "prompt": chat_encoder.encoder.decode(prompt.ids),
                "reference": read_answer(chat_encoder, prompt.ids, prompt.answer)[0],
                "answer": text,
                "num_tokens": len(one.ids),
                "end": STOP if stopped else cut if cut and one.finish_reason == STOP else LENGTH,
            }
        )
    return rows


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within it `model` may generate; afterwards it and the random numbers are as they were."""
    numbers = random_state()
    modes = {module: module.training for module in model.modules()}
    rotary = [(module, _rope_state(module)) for module in modes if hasattr(module, "max_seq_len_cached")]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, (buffers, values) in rotary:
            module._buffers.update(buffers)
            vars(module).update(values)
        set_random_state(numbers)


def _rope_state(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The frequencies of a rotary embedding, which dynamic RoPE replaces when a text is longer than any before."""
    values = {name: value for name, value in vars(module).items() if name.endswith("max_seq_len_cached")}
    values |= {name: value for name, value in vars(module).items() if name.endswith("original_inv_freq")}
    return dict(module._buffers), values
