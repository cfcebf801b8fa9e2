"""A conversation with one or two models. The browser keeps it: the server has no sessions.

Both models are asked the same questions, and each reads its own earlier answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_BREAK = "\N{WORD JOINER}"
# What Markdown shows as it is, or else a tag, a comment or an entity, which Markdown would not show.
_FENCES = r"(?:^|\n)[ >]*(?P<fence>`{3,}|~{3,})[^\n]*(?:\n.*?\n[ >]*(?P=fence)|.*\Z)"
_CODE = _FENCES + r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
_FORMULA = r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]"
_HTML = r"(?P<html>[<&]" + _BREAK + r"*)(?=/?[a-zA-Z][^<>]*>|!|\?|\#?\w+;)"
_PLACES = re.compile(f"{_CODE}|{_FORMULA}|{_HTML}", re.S)


@dataclass
class Answer:
    """What a model said."""

    text: str = ""
    reasoning: str = ""


@dataclass
class Round:
    """A question and its answers by the name of the model. A model that failed, or was stopped before it said
    something, has no answer, and does not see the question later."""

    question: str
    answers: dict[str, Answer] = field(default_factory=dict)


def to_json(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The form in which the browser keeps a conversation."""
    return [asdict(one) for one in rounds]


def from_json(value: Any) -> list[Round]:
    """The conversation that a browser sent. Raises ValueError if it is not one."""
    try:
        return [
            Round(_text(one["question"]), {_text(k): Answer(**_texts(v)) for k, v in one["answers"].items()})
            for one in value or ()
        ]
    except (TypeError, KeyError, AttributeError) as problem:
        raise ValueError(f"not a conversation: {problem!r}") from None


def messages(rounds: Sequence[Round], model: str, system: str) -> list[dict[str, str]]:
    """The messages of a request to a model that has to answer the last question."""
    made = [{"role": "system", "content": system}] if system else []
    for number, one in enumerate(rounds):
        answer = one.answers.get(model)
        if number == len(rounds) - 1:
            made.append({"role": "user", "content": one.question})
        elif answer is not None:
            reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
            made.append({"role": "user", "content": one.question})
            made.append({"role": "assistant", "content": answer.text, **reasoning})
    return made


def shown(rounds: Sequence[Round], model: str) -> list[dict[str, Any]]:
    """The messages that a chatbot shows."""
    return [message for one in rounds for message in _shown_round(one, model)]


def round_at(rounds: Sequence[Round], model: str, index: int) -> int:
    """The number of the round of which a chatbot shows a message at `index`. Raises ValueError if there is none."""
    for number, one in enumerate(rounds):
        index -= len(_shown_round(one, model))
        if index < 0:
            return number
    raise ValueError("there is no such message")


def literal(text: str) -> str:
    """Markdown that shows also the tags in a text: it would leave them out, wherever they are not code."""
    return _replaced(text, lambda sign: sign + _BREAK)


def without_literal(text: str) -> str:
    """The text of which `literal` was edited."""
    return _replaced(text, lambda sign: sign[:-1] if sign.endswith(_BREAK) else sign)


def _replaced(text: str, change: Callable[[str], str]) -> str:
    return _PLACES.sub(lambda found: change(found["html"]) if found["html"] else found[0], text)


def _shown_round(one: Round, model: str) -> list[dict[str, Any]]:
    made = [_message("user", one.question)]
    answer = one.answers.get(model)
    if answer is None:
        return made
    if answer.reasoning:
        # Closed as soon as the answer begins.
        status = "done" if answer.text else "pending"
        made.append(_message("assistant", answer.reasoning) | {"metadata": {"title": "Reasoning", "status": status}})
    if answer.text or not answer.reasoning:
        made.append(_message("assistant", answer.text))
    return made


def _message(role: str, text: str) -> dict[str, Any]:
    # gradio removes indentation from a plain string.
    return {"role": role, "content": [{"type": "text", "text": literal(text)}]}


def _texts(value: dict[str, Any]) -> dict[str, str]:
    return {key: _text(item) for key, item in value.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
