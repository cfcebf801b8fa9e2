"""Painting tokens for the terminal: their texts add up, and nothing in them can steer it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastchat.conversation import Dialogue, Turn, get_template
from fastchat.data.encoding.open_tokenizer import open_tokenizer
from fastchat.data.view.terminal import paint, safe, token_texts, wants_colour
from tests.builders import TOKENIZER_KINDS

TokenizerDir = Callable[[str], Path]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_where_it_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(Terminal()) and not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colour(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())


def test_paint() -> None:
    texts, mask = ["a", "", " b\x1b", "c", "d"], [False, True, True, True, False]
    assert paint(texts, mask, colour=False) == "a[[ b\\x1bc]]d"
    assert paint(["x"], [True], colour=False) == "[[x]]" and paint([], [], colour=False) == ""
    coloured = paint(texts, mask, colour=True)
    green = re.findall(r"\x1b\[(?:32|92)m(.*?)\x1b\[0m", coloured)
    grey = re.findall(r"\x1b\[(?:90|37)m(.*?)\x1b\[0m", coloured)
    assert (green, grey) == ([" b\\x1b", "c"], ["a", "d"])
    assert re.sub(r"\x1b\[\d+m", "", coloured) == "a b\\x1bcd"


def test_safe() -> None:
    assert safe("plain é 你好 \U0001f642\n") == "plain é 你好 \U0001f642\n"
    assert safe("a\x00\x1b\x9b\r\ud800\u200d") == "a\\x00\\x1b\\x9b\\r\\ud800\\u200d"


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_token_texts_add_up_to_the_text(tokenizer_dir: TokenizerDir, kind: str) -> None:
    encoder, _ = open_tokenizer(str(tokenizer_dir(kind)))
    chat_encoder = encoder.bind(get_template("vicuna_v1.1"))
    for text in ("Hi", "  two  spaces\n\n", "你好 🙂👩‍👩‍👧 ünïcödé", "\ufffd\ufffd x", "a" * 50, "</s><s>", ""):
        dialogue = Dialogue((Turn("user", text), Turn("assistant", text), Turn("user", "q"), Turn("assistant", text)))
        ids = chat_encoder.encode(chat_encoder.template.render(dialogue)).input_ids
        texts = token_texts(encoder, ids)
        assert len(texts) == len(ids) and "".join(texts) == encoder.decode(ids)
