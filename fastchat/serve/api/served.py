"""A model that the API serves: the ids of its prompts, and what its answers say."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.learn import Thinking
from fastchat.data.encoding.plain_text import encode_text, lead_of
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.data.rows.bad_rows import BadRow
from fastchat.data.rows.columns import AS_THEY_ARE
from fastchat.data.rows.turns import Reading
from fastchat.data.rows.unshown import refuse_unshown
from fastchat.errors import UserError
from fastchat.serve.api.errors import ApiError
from fastchat.serve.api.parameters import ChatRequest, Common
from fastchat.serve.call_syntax import CallSyntax, learn_syntax
from fastchat.serve.chat import read_dialogue
from fastchat.serve.engines.base import Engine, Job

DEFAULT_LIMIT = 4096  # tokens of an answer of a model without a limit


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt.

    Attributes:
        reasons: whether its end opens the reasoning, so that the answer begins within it.
        tools: the tools that the answer may call.
        plain: it is a text to continue, not a conversation.
    """

    ids: list[int]
    reasons: bool = False
    tools: tuple[Any, ...] = ()
    plain: bool = False


@dataclass
class ServedModel:
    """A model with its template and engine.

    Attributes:
        system: the system message of conversations that have none; None for the template's own.
        vocabulary_size: ids from there on do not exist.
        about: lines about the model for the greeting: (what, value).
    """

    name: str
    chat_encoder: ChatEncoder
    engine: Engine
    vocabulary_size: int
    system: str | None = None
    about: tuple[tuple[str, str], ...] = ()
    created: int = 0

    @cached_property
    def thinking(self) -> Thinking:
        """How the template writes reasoning; without tags if it shows none."""
        template = self.chat_encoder.template
        return template.thinking if isinstance(template, TokenizerTemplate) else Thinking()

    @cached_property
    def calls(self) -> CallSyntax | None:
        """How the template writes calls; None if it does not, or not so that they can be read back."""
        return learn_syntax(self.chat_encoder)

    def learn(self) -> None:
        """Learn what is learned from the template now, so that no request has to wait for it."""
        _ = self.thinking, self.calls

    def chat_prompt(self, asked: ChatRequest) -> Prompt:
        """The prompt of a conversation, as in training. Raises ApiError."""
        reading = Reading(AS_THEY_ARE, thinks=False)
        template = self.chat_encoder.template
        for name in asked.template_arguments:
            if not template.reads_argument(name):
                param = "reasoning_effort" if name == "reasoning_effort" else "chat_template_kwargs"
                raise ApiError(400, f"The chat template of {self.name} does not read {name!r}.", param, "unsupported")
        try:
            dialogue = read_dialogue([_sent(m) for m in asked.messages], self.system, asked.tools, reading)
            dialogue = replace(dialogue, template_arguments=asked.template_arguments)
            refuse_unshown(dialogue, reasoning=True, calls=template.shows_calls)
            self._check_read(reading)
            rendered = template.render(dialogue, add_generation_prompt=True)
            ids = self.chat_encoder.encode(rendered).input_ids
        except BadRow as bad:
            what = "tools" if bad.reason.startswith("tool") and "turn" not in bad.detail else "messages"
            raise ApiError(400, f"{what}: {bad}", what) from None
        except UserError as error:
            raise ApiError(400, str(error), "messages") from None
        if dialogue.tools and self.calls is None:
            message = f"The calls of {self.name}'s template cannot be read back, so it cannot be given tools."
            raise ApiError(400, message, "tools", "unsupported")
        return Prompt(ids, self.thinking.opened_at(rendered.text) is not None, dialogue.tools)

    def text_prompt(self, prompt: str | list[int]) -> Prompt:
        """The prompt of a completion: a text, in which nothing becomes a control token, after the tokenizer's BOS; or
        the ids themselves. Raises ApiError."""
        if isinstance(prompt, str):
            try:
                ids = [*lead_of(self.chat_encoder), *encode_text(prompt, self.chat_encoder)[0]]
                ids = ids if self.chat_encoder.encoder.eos is None else ids[:-1]
            except UserError as error:
                raise ApiError(400, str(error), "prompt") from None
        else:
            ids = prompt
            if not all(0 <= token_id < self.vocabulary_size for token_id in ids):
                raise ApiError(400, f"'prompt' has ids outside 0 ... {self.vocabulary_size - 1}.", "prompt")
        if not ids:
            raise ApiError(400, "'prompt' has no tokens.", "prompt")
        return Prompt(ids, plain=True)

    def jobs(self, prompt: Prompt, asked: Common) -> list[Job]:
        """The answers to generate. Raises ApiError if there is no room for them in the model's context."""
        limit, num_prompt = self.engine.limit, len(prompt.ids)
        wanted = asked.max_tokens
        if limit is not None and num_prompt + (wanted or 1) > limit:
            rest = f" and {wanted} in the completion" if wanted else ""
            raise ApiError(
                400,
                f"This model's maximum context length is {limit} tokens. However, your request has {num_prompt} in the "
                f"{'prompt' if prompt.plain else 'messages'}{rest}. Please reduce one of them.",
                "prompt" if prompt.plain else "messages",
                "context_length_exceeded",
            )
        room = wanted or (DEFAULT_LIMIT if limit is None else limit - num_prompt)
        stop_ids = tuple(dict.fromkeys((*self.chat_encoder.stop_ids, *asked.stop_ids)))
        seeds = [_seed(asked.sampling.seed, number) for number in range(asked.num_answers)]
        return [Job(prompt.ids, room, stop_ids, replace(asked.sampling, seed=seed)) for seed in seeds]

    def _check_read(self, reading: Reading) -> None:
        """Raise ApiError for keys that were not read, and calls that are only text."""
        for _, key in reading.unread:
            raise ApiError(400, f"messages: the key {key!r} is not supported; leave it out.", "messages", "unsupported")


def _seed(seed: int | None, number: int) -> int | None:
    """The seed of one of several answers: other than those of all answers of a request with a nearby seed."""
    return seed if seed is None or number == 0 else random.Random(f"{seed}/{number}").getrandbits(63)


def _sent(message: Any) -> Any:
    """A message without the keys that clients send back empty from an earlier answer."""
    if not isinstance(message, dict):
        return message
    kept = {key: value for key, value in message.items() if value is not None and value != []}
    return kept if "content" in kept or kept.get("tool_calls") or "content" not in message else {**kept, "content": ""}
