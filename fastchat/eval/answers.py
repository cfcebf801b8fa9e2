"""Dialogues that end with a question -> the answers that a model generates, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastchat.conversation import Dialogue
from fastchat.data.encoding.chat_encoder import ChatEncoder, encode_prompt
from fastchat.eval.generation import Generated, Sampling, generate
from fastchat.serve.chat import Answer


@dataclass(frozen=True)
class Answered:
    """A generated answer.

    Attributes:
        text: without the stop, as a chat shows it.
        finish_reason: "stop", "length" or "context", see `generation.Generated`.
        num_prompt: tokens of the prompt.
        num_tokens: tokens that were generated, without the stop.
    """

    text: str
    finish_reason: str
    num_prompt: int
    num_tokens: int


def answer_dialogues(
    model: Any,
    chat_encoder: ChatEncoder,
    dialogues: Sequence[Dialogue],
    *,
    sampling: Sampling,
    pad_id: int,
    **options: Any,
) -> list[Answered]:
    """The model's answer to each dialogue, whose next turn is the assistant's, in their order.

    `on_done` is called with a dialogue's number and its answer as soon as its batch is done. `generate_ids`: `generate`
    or `generate_in_all`; other `options` are its own. Raises what `encode_prompt` raises.

    >>> sampling = Sampling(max_new_tokens=64)                                                  # doctest: +SKIP
    >>> answer_dialogues(model, chat_encoder, dialogues, sampling=sampling, pad_id=0)[0].text     # doctest: +SKIP
    'The answer is 4.'
    """
    prompts = [encode_prompt(dialogue, chat_encoder) for dialogue in dialogues]
    return answer_prompts(model, chat_encoder, prompts, sampling=sampling, pad_id=pad_id, **options)


def answer_prompts(
    model: Any,
    chat_encoder: ChatEncoder,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    pad_id: int,
    generate_ids: Callable[..., list[Generated]] = generate,
    on_done: Callable[[int, Answered], None] | None = None,
    **options: Any,
) -> list[Answered]:
    """The same for the ids of prompts."""

    def read(number: int, made: Generated) -> Answered:
        ids = made.ids if made.stop_id is None else [*made.ids, made.stop_id]
        text, _ = read_answer(chat_encoder, prompts[number], ids)
        return Answered(text, made.finish_reason, len(prompts[number]), len(made.ids))

    def ended(number: int, ids: list[int]) -> bool:
        return read_answer(chat_encoder, prompts[number], ids)[1]

    found = generate_ids(
        model,
        prompts,
        stop_ids=chat_encoder.stop_ids,
        pad_id=pad_id,
        sampling=sampling,
        ended=ended if chat_encoder.stop_strings else None,
        on_done=on_done and (lambda number, made: on_done(number, read(number, made))),
        **options,
    )
    return [read(number, made) for number, made in enumerate(found)]


def read_answer(chat_encoder: ChatEncoder, prompt: Sequence[int], ids: Sequence[int]) -> tuple[str, bool]:
    """(the text of generated ids, whether they contain a stop), read as a chat reads them."""
    answer = Answer(chat_encoder, prompt)
    answer.put(torch.tensor(prompt))  # the first call passes the prompt
    answer.put(torch.tensor(ids))
    return answer.finish(), answer.stopped
