"""Streams with the official client: what is shown of characters, stop strings, several answers, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from tests.serve.serving import ASKED, NAME, SAID  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openai_client")]
USAGE = {"stream_options": {"include_usage": True}}
RANDOM = {"content": "Something never learned, please.", "temperature": 5, "seed": 11, "max_tokens": 24}


def ask(client: Any, *, content: str = ASKED, **more: Any) -> Any:
    asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 60, **more}
    return client.chat.completions.create(model=NAME, **asked)


def choices(parts: Iterable[Any], index: int = 0) -> list[Any]:
    return [choice for part in parts for choice in part.choices if choice.index == index]


def texts(found: Iterable[Any]) -> list[str]:
    return [choice.delta.content or "" for choice in found]


def rows(found: Iterable[Any]) -> list[Any]:
    return [row for choice in found if choice.logprobs for row in choice.logprobs.content]


def is_text(raw: bytes) -> bool:
    try:
        return bool(raw.decode())
    except UnicodeDecodeError:
        return False


def test_a_character_of_several_tokens_arrives_whole(client: Any) -> None:
    found = choices(ask(client, stream=True, logprobs=True))
    said = texts(found)
    assert "".join(said) == SAID and not any("\N{REPLACEMENT CHARACTER}" in text for text in said)
    [emoji] = [choice for choice in found if "🙂" in (choice.delta.content or "")]
    parts = [bytes(row.bytes) for row in emoji.logprobs.content]
    assert len([raw for raw in parts if not is_text(raw)]) > 1, "its character is one token, which proves nothing"
    assert b"".join(bytes(row.bytes) for row in rows(found)).decode() == SAID
    # An end within the character: what can never be completed is not shown half.
    first = [row.token for row in rows(found)].index(
        next(row.token for row in rows(found) if not is_text(bytes(row.bytes)))
    )
    cut = ask(client, max_tokens=first + 1).choices[0]
    streamed = choices(ask(client, stream=True, max_tokens=first + 1))
    assert cut.finish_reason == streamed[-1].finish_reason == "length"
    assert cut.message.content == "".join(texts(streamed)) and SAID.startswith(cut.message.content.rstrip("\ufffd"))


@pytest.mark.parametrize(
    "stop", ["swer is 4", "e answer", "🙂", "it 🙂.", "The", [" 4, an", "more"], "more is not to be fed"]
)
def test_no_part_of_a_stop_string_is_shown(client: Any, stop: Any) -> None:
    expected = min((SAID.partition(one)[0] for one in ([stop] if isinstance(stop, str) else stop)), key=len)
    found = choices(ask(client, stream=True, stop=stop))
    shown = ""
    for text in texts(found):
        shown += text
        assert expected.startswith(shown)
    assert shown == expected and [c.finish_reason for c in found if c.finish_reason] == ["stop"]
    assert ask(client, stop=stop).choices[0].message.content == expected


def test_two_answers_are_streamed_with_their_numbers_and_one_usage(client: Any) -> None:
    whole = ask(client, **RANDOM, n=2, logprobs=True, top_logprobs=3)
    parts = list(ask(client, **RANDOM, n=2, logprobs=True, top_logprobs=3, stream=True, **USAGE))
    for index in (0, 1):
        found, wanted = choices(parts, index), whole.choices[index]
        assert found[0].delta.role == "assistant" and all(choice.delta.role is None for choice in found[1:])
        assert "".join(texts(found)) == wanted.message.content != whole.choices[1 - index].message.content
        assert [choice.finish_reason for choice in found if choice.finish_reason] == [wanted.finish_reason]
        assert found[-1].finish_reason
        assert [r.token for r in rows(found)] == [r.token for r in wanted.logprobs.content]
        for ours, theirs in zip(rows(found), wanted.logprobs.content, strict=True):
            assert ours.bytes == theirs.bytes and ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            pairs = zip(ours.top_logprobs, theirs.top_logprobs, strict=True)
            assert all(a.logprob == pytest.approx(b.logprob, abs=1e-4) for a, b in pairs)
    assert [part.usage for part in parts[:-1]] == [None] * (len(parts) - 1) and parts[-1].choices == []
    assert parts[-1].usage == whole.usage and len({part.id for part in parts}) == 1
    assert all(part.usage is None and part.choices for part in ask(client, stream=True, max_tokens=3))


def test_one_token(client: Any) -> None:
    for more in ({}, RANDOM):
        asked = {**more, "logprobs": True, "max_tokens": 1}
        whole = ask(client, **asked)
        *parts, last = ask(client, **asked, stream=True, **USAGE)
        assert last.usage == whole.usage and last.usage.completion_tokens == 1
        found = choices(parts)
        assert [choice.finish_reason for choice in found if choice.finish_reason] == ["length"]
        assert "".join(texts(found)) == whole.choices[0].message.content
        assert [row.token for row in rows(found)] == [row.token for row in whole.choices[0].logprobs.content]
        assert len(rows(found)) == 1


def test_streamed_completions_say_the_same(client: Any) -> None:
    asked = {"prompt": ["one two", "three"], "temperature": 3, "seed": 4, "max_tokens": 8, "logprobs": 2, "n": 2}
    whole = client.completions.create(model=NAME, **asked)
    *parts, last = client.completions.create(model=NAME, **asked, stream=True, **USAGE)
    assert last.usage == whole.usage and last.choices == []
    for index in range(4):
        found, wanted = choices(parts, index), whole.choices[index]
        assert "".join(choice.text for choice in found) == wanted.text
        assert found[-1].finish_reason == wanted.finish_reason
        for name in ("tokens", "text_offset"):
            streamed = [one for choice in found if choice.logprobs for one in getattr(choice.logprobs, name)]
            assert streamed == getattr(wanted.logprobs, name)
