"""Where an answer ends: learned from what a template writes after one, at the end of a dialogue and in the middle.

    last        ...Hello.<|im_end|>\\n                     as the last turn of a dialogue
    followed    ...Hello.<|im_end|>\\n<|im_start|>user\\n   before the next one

What both begin with is the answer's own end, so the last control token in it is the stop. Some templates end history in
another token than generation (gpt-oss: `<|end|>` instead of `<|return|>`): then the stop is the first token of the
former. With some nothing ends an answer but the token that opens the next turn (GLM): then that one is the stop.
If the tokenizer has no token for what ends an answer, the stop is a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# What opens and closes something within an answer: <x> </x>, [X] [/X], <|x> <x|>, <|x_start|> <|x_end|> ...
_PAIRS = (
    (r"<([^/|].*)>", r"</\1>"),
    (r"\[([^/].*)\]", r"[/\1]"),
    (r"<\|(.*[^|])>", r"<\1|>"),
    (r"(\W+)([^/\W].*)", r"\1/\2"),
    (r"(.*)START(.*)", r"\1END\2"),
    (r"(.*)start(.*)", r"\1end\2"),
    (r"(.*)BEGIN(.*)", r"\1END\2"),
    (r"(.*)begin(.*)", r"\1end\2"),
)


@dataclass(frozen=True)
class Ending:
    """How a rendering ends whose last turn is an answer.

    Attributes:
        stop: the string that the model generates last.
        cut: what the template writes after it, which is not generated.
        added: what is generated though the template does not write it here, up to and including the stop.
    """

    stop: str
    cut: str = ""
    added: str = ""

    def end_of(self, text: str) -> int | None:
        """The length of the generated part of a rendering, before `added`; None if it does not end like this."""
        written = ("" if self.added else self.stop) + self.cut
        return len(text) - len(self.cut) if text.endswith(written) else None


@dataclass(frozen=True)
class Tail:
    """What follows the last text of an answer: as the last turn, and (if that is accepted) before the next one.

    `said` is the answer's own text as rendered, where things are opened that the tail closes. `opens_answer`: control
    tokens of the generation prompt; `opens_turn`: those that begin any turn.
    """

    last: str
    followed: str | None
    said: str
    opens_answer: frozenset[str] = frozenset()
    opens_turn: frozenset[str] = frozenset()
    within: frozenset[str] = frozenset()


def closings(tag: str) -> list[str]:
    """The strings that may close what `tag` opens."""
    made = (re.sub(f"^{pattern}$", closing, tag) for pattern, closing in _PAIRS)
    return [closing for closing in dict.fromkeys(made) if closing != tag]


def ending_of(tail: Tail, controls: re.Pattern[str]) -> Ending | None:
    """The ending that a tail shows; None if no control token ends the answer."""
    last, followed = tail.last, tail.followed if tail.followed is not None else tail.last
    shared, inner = os.path.commonprefix([last, followed]), _inner(tail, controls)
    own = _tokens(last, controls, inner, tail.opens_turn | tail.opens_answer)
    common = [token for token in own if token[1] <= len(shared)]
    if common or own:
        stop = common[-1][2] if common else own[0][2]
        end = next(end for _, end, token in own if token == stop)  # generation ends at the first, if it is doubled
        return Ending(stop, last[end:])
    for start, end, token in _tokens(followed, controls, inner, tail.opens_answer)[:1]:
        before, shared = followed[:start].rstrip(), os.path.commonprefix([last, followed[:start]])
        ends_alike = before[-1:] and last.rstrip().endswith(before[-1:])
        if shared != last and ends_alike:  # the history has more in it, such as the id of a call
            return Ending(token, last[len(last.rstrip()) :], followed[len(before) : end])
        return Ending(token, last[len(shared) :], followed[len(shared) : end])
    return None


def text_ending(tail: Tail) -> Ending | None:
    """The ending of a template without control tokens: the text that an answer ends with in any case."""
    stop = os.path.commonprefix([tail.last, tail.followed or ""]).rstrip()
    return Ending(stop, tail.last[len(stop) :]) if stop.strip() else None


def _tokens(
    text: str, controls: re.Pattern[str], inner: Collection[str], openers: Collection[str]
) -> list[tuple[int, int, str]]:
    """(start, end, token) of the control tokens that may be a stop: those before the first that opens a turn."""
    found = []
    for match in controls.finditer(text):
        if match.group() in openers:
            break
        if match.group() not in inner:
            found.append((match.start(), match.end(), match.group()))
    return found


def _inner(tail: Tail, controls: re.Pattern[str]) -> set[str]:
    """The tokens that close what the answer itself opened, and those after every one of several calls."""
    opened: Sequence[str] = controls.findall(tail.said)
    return {closing for tag in opened for closing in closings(tag)} | tail.within
