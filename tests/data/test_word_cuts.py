"""Texts that are not all ASCII are cut only where a tokenizer cuts them too, so that the parts have the same tokens."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import regex

from fastchat.data.encoding.ascii_ids import AsciiIds
from fastchat.data.encoding.fast_path import FastPath
from fastchat.data.encoding.text_encoder import TextEncoder
from fastchat.data.encoding.word_cuts import may_cut, parts_of
from tests.builders import TOKENIZER_KINDS

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUT = {
    "GPT-2": [GPT_2],
    "Llama 3": [LLAMA_3],
    "o200k": [O200K],
    "DeepSeek-V3": [r"\p{N}{1,3}", "[一-龥]+", rf"{DEEPSEEK}|\p{{N}}+|[\s\S]"],
    "digits": [r"\p{N}", GPT_2],
    "words": [" ?[^ ]+| "],
    "runs of spaces": [" *[^ ]+| +"],
}
NOT_CUT = {
    "one word": [r"[\s\S]+"],
    "lines": [r"[^\n]+|\n"],
    "two words": [rf"\w+ \w+|{GPT_2}"],
    "first of two": [r"\w+ \w+", GPT_2],
    "a group before": [rf"(?:a|\s) b|{GPT_2}"],
    "a group repeated": [rf"(?: \w)+|{GPT_2}"],
    "space at the end": [r"\w+ ?|[^\w]"],
    "optional, then both": [r"[^\w]?[\s\S]|\w+"],
    "looks behind": [rf"(?<=a) b|{GPT_2}"],
    "looks ahead": [rf"a(?! b)|{GPT_2}"],
    "a phrase": [regex.escape("New York"), GPT_2],
    "gaps": [r"\p{L}+"],
    "no control characters": [r"[ -~]|\s+"],
}


def words(patterns: list[str], text: str) -> list[str]:
    """A text split by expressions, one after the other; what is between matches is a word too."""
    pieces = [text]
    for pattern in patterns:
        found = []
        for piece in pieces:
            edges = [0, *(edge for match in regex.finditer(pattern, piece) for edge in match.span()), len(piece)]
            found += [piece[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]
        pieces = found
    return pieces


def random_texts(num: int = 300) -> list[str]:
    chosen = random.Random(0)
    parts = [
        "it’s",
        "New York",
        "a",
        " b",
        "a b c d",
        " ",
        "  ",
        "\n",
        " \n ",
        "123",
        "x.",
        "—",
        "é",
        "汉字",
        "\0",
        "\t",
    ]
    parts += ["plain words that are long enough to be cut out of a text with other letters, and more"] * 4
    return ["".join(chosen.choices(parts, k=chosen.randint(1, 12))) for _ in range(num)]


@pytest.mark.parametrize("patterns", CUT.values(), ids=CUT.keys())
def test_published_expressions_split_the_parts_like_the_whole(patterns: list[str]) -> None:
    assert may_cut(patterns)
    for text in random_texts():
        assert [word for part in parts_of(text) for word in words(patterns, part)] == words(patterns, text)


@pytest.mark.parametrize("patterns", NOT_CUT.values(), ids=NOT_CUT.keys())
def test_others_are_not_cut(patterns: list[str]) -> None:
    assert not may_cut(patterns)


def test_some_of_them_would_split_the_parts_otherwise() -> None:
    differ = [
        name
        for name, patterns in NOT_CUT.items()
        if any(
            [w for p in parts_of(text) for w in words(patterns, p)] != words(patterns, text) for text in random_texts()
        )
    ]
    assert {"one word", "lines", "two words", "first of two", "looks behind"} <= set(differ)


def test_parts_are_the_text_and_alternate() -> None:
    cut = 0
    for text in random_texts():
        parts = parts_of(text)
        assert "".join(parts) == text
        quick = [part.isascii() and len(part) >= 64 for part in parts]
        assert len(parts) == 1 or all(a != b for a, b in zip(quick, quick[1:], strict=False))
        cut += len(parts) > 1 and any(quick)
    assert cut > 50
    assert parts_of("") == [""] and parts_of("汉字 test") == ["汉字 test"]


@pytest.mark.parametrize("tokenizer", TOKENIZER_KINDS)
def test_ids_are_those_of_the_whole_text(
    encoder_of: Callable[[str], TextEncoder], monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    encoder, seen = encoder_of(tokenizer), []
    fast = FastPath(encoder)
    fast.prepare(["some data"])
    assert fast._ascii is not None and fast._ascii.cuts
    ids = fast._ascii.ids
    monkeypatch.setattr(fast, "_ascii", AsciiIds(lambda text: seen.append(text) or ids(text), cuts=True))
    texts = [text for text in random_texts() if not text.isascii()]
    for position in encoder.positions:
        assert fast._ids(texts, position) == encoder.plain_ids(texts, position)
    assert sum(map(len, seen)) > 0.3 * sum(map(len, texts)) and all(map(str.isascii, seen))
