"""Prints tokens, supervised ones in green or in [[brackets]]; the data cannot send control codes to the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from fastchat.data.encoding.text_encoder import TextEncoder


# Two alternating shades each, so that token boundaries are visible.
_SUPERVISED = ("\x1b[32m", "\x1b[92m")
_OTHERS = ("\x1b[90m", "\x1b[37m")
_RESET = "\x1b[0m"


def wants_colour(stream: IO[str]) -> bool:
    """Whether to use colours: only on a terminal, and not if the user has set NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def safe(text: str) -> str:
    r"""`text` with every unprintable character except the line end as an escape: `\x1b`, `\u202e`, `\t`."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def token_texts(encoder: TextEncoder, ids: Sequence[int]) -> list[str]:
    """What each token contributes to the decoded text.

    A character whose bytes are spread over several tokens is in the text of the last of them; the others are "".
    """
    texts: list[str] = []
    start = done = 0
    for i in range(len(ids)):
        before, now = encoder.decode(ids[start:done]), encoder.decode(ids[start : i + 1])
        if now.endswith("\ufffd") and i + 1 < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, done = done, i + 1
    return texts


def paint(texts: Sequence[str], supervised: Sequence[bool], colour: bool) -> str:
    """The tokens as one text; supervised ones are green or, without colour, each run of them is in [[ ]]."""
    return _coloured(texts, supervised) if colour else _bracketed(texts, supervised)


def legend(colour: bool) -> str:
    """How to read the output of `paint`."""
    if not colour:
        return "[[ ]] encloses the learned tokens"
    green, grey = (f"{shades[0]}{name}{_RESET}" for shades, name in ((_SUPERVISED, "green"), (_OTHERS, "grey")))
    return f"{green}: learned, {grey}: not learned; the shades alternate from token to token"


def _coloured(texts: Sequence[str], supervised: Sequence[bool]) -> str:
    out = []
    for number, (text, learned) in enumerate(zip(texts, supervised, strict=True)):
        out.append((_SUPERVISED if learned else _OTHERS)[number % 2] + safe(text) + _RESET if text else "")
    return "".join(out)


def _bracketed(texts: Sequence[str], supervised: Sequence[bool]) -> str:
    out, inside = [], False
    for text, learned in zip(texts, supervised, strict=True):
        if learned != inside:
            out.append("[[" if learned else "]]")
            inside = learned
        out.append(safe(text))
    return "".join(out) + ("]]" if inside else "")
