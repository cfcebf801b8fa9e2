"""Marks around the texts that a chat template is given, so that each can be found in what the template makes of them.

A mark is a pair of characters that the dialogue does not contain, the first with the number of the text:

    given      [0:Hi]   [1:Yo]
    rendered   <|im_start|>user\\n[0:Hi]<|im_end|>\\n<|im_start|>assistant\\n[1:Yo]<|im_end|>\\n

Without its marks the marked rendering must equal the real one; then the marks say, for each character, whether it is
the template's or which text it comes from, whatever the template did with the texts: trimmed, JSON-encoded, moved.
White space around a text is outside its marks, so that templates can trim it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastchat.conversation import Dialogue

# Private-use characters, which templates do not use and texts hardly ever; others are used if a dialogue has these.
_CANDIDATES = tuple(map(chr, range(0xE000, 0xE100)))
_SURE = re.compile(r"[\w\s.,;:()'-]*")


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a dialogue: `turn` is -1 for the system message and for tools; `kind` is "text", "reasoning",
    "name" or "call" (the name and the arguments of a call) or "setting"; `part` is the number of the call in its turn.
    """

    turn: int
    role: str
    kind: str = "text"
    part: int = 0
    core: str = ""  # without the white space around it
    lead: str = ""
    trail: str = ""

    def is_in(self, rendered: str) -> bool:
        """Whether the text is unchanged in what was rendered of it, or as in a JSON text."""
        return rendered.strip() in (self.core, json.dumps(self.core, ensure_ascii=False)[1:-1])


@dataclass(frozen=True, slots=True)
class Found:
    """Where a text is in what was rendered, in characters."""

    start: int
    end: int
    text: Text


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendering without its marks, and the texts that were marked, in order."""

    text: str
    found: tuple[Found, ...]

    def moved(self, start: int, end: int, to: int) -> list[Found]:
        """The texts within [start, end), for a copy of that part which begins at `to`."""
        cut = ((max(f.start, start), min(f.end, end), f.text) for f in self.found)
        return [Found(left - start + to, right - start + to, text) for left, right, text in cut if left < right]


class Marks:
    """Marks for the texts of one dialogue.

    `controls`: a pattern for strings that must not become tokens. `calls`: mark all texts of calls, and all texts of
    tools that are not plain words; if not, only those with such strings (a template may compare the others).
    """

    def __init__(self, dialogue: Dialogue, controls: re.Pattern[str] | None, calls: bool = True):
        said = _everything(dialogue)
        unused = (c for c in _CANDIDATES if c not in said and _escaped(c) not in said)
        self._open, self._sep, self._close = itertools.islice(unused, 3)
        self._controls, self._calls = controls, calls
        self._texts: list[Text] = []
        self._keys: dict[Text, int] = {}

    def text(self, text: str, of: Text) -> str:
        """A text with its mark; white space alone is not marked."""
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        lead, trail = text[:at], text[at + len(core) :]
        number = len(self._texts)
        self._texts.append(Text(of.turn, of.role, of.kind, of.part, core, lead, trail))
        return f"{lead}{self._open}{number}{self._sep}{core}{self._close}{trail}"

    def answer(self, text: str, of: Text, tags: Sequence[str]) -> str:
        """An answer with a separate mark for each part between `tags`: templates treat what is in <think> otherwise."""
        if not any(tag in text for tag in tags):
            return self.text(text, of)
        parts = re.split("(" + "|".join(map(re.escape, tags)) + ")", text)
        return "".join(part if part in tags else self.text(part, of) for part in parts)

    def value(self, value: Any, of: Text) -> Any:
        """A JSON value with marks in its texts and, where that is needed, in its keys."""
        if isinstance(value, str):
            needed = (self._calls and of.kind in ("call", "name")) or self._needed(value)
            return self.text(value, of) if needed else value
        if isinstance(value, dict):
            return {self._key(key, of): self.value(item, of) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item, of) for item in value]
        return value

    def settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Template arguments with marks in the texts that contain control strings."""
        of = Text(-1, "system", "setting")
        calls, self._calls = self._calls, False
        marked = {key: self.value(value, of) for key, value in values.items()}
        self._calls = calls
        return marked

    def word(self, text: str, of: Text) -> str:
        """A name or an id, marked where that is needed."""
        return self.text(text, of) if self._needed(text) else text

    def _key(self, key: str, of: Text) -> str:
        """A key with a mark around the last character of each control string in it: templates may sort keys."""
        if self._controls is None or not self._controls.search(key):
            return key
        if of not in self._keys:
            self._keys[of] = len(self._texts)
            self._texts.append(of)
        number = self._keys[of]
        return self._controls.sub(lambda m: f"{m[0][:-1]}{self._open}{number}{self._sep}{m[0][-1]}{self._close}", key)

    def _needed(self, text: str) -> bool:
        if self._calls and not _SURE.fullmatch(text):
            return True
        return self._controls is not None and self._controls.search(text) is not None

    def read(self, rendered: str) -> Marked | None:
        """A marked rendering, read; None if marks are torn."""
        for mark in (self._open, self._sep, self._close):
            rendered = rendered.replace(_escaped(mark), mark)
        first, *rest = rendered.split(self._open)
        parts, found, size = [first], [], len(first)
        for part in rest:
            number, sep, text = part.partition(self._sep)
            core, close, after = text.partition(self._close)
            if not (sep and close and number.isdecimal() and int(number) < len(self._texts)):
                return None
            if core:
                found.append(Found(size, size + len(core), self._texts[int(number)]))
            parts += [core, after]
            size += len(core) + len(after)
        text = "".join(parts)
        if self._sep in text or self._close in text:
            return None
        return Marked(text, _with_space(text, found))


def _escaped(mark: str) -> str:
    """A character as in a JSON text that is ASCII only."""
    return f"\\u{ord(mark):04x}"


def _with_space(text: str, found: list[Found]) -> tuple[Found, ...]:
    """The texts together with the white space around them, where the template kept it."""
    wide: list[Found] = []
    for k, one in enumerate(found):
        start, end = one.start, one.end
        floor = wide[-1].end if wide else 0
        ceiling = found[k + 1].start if k + 1 < len(found) else len(text)
        lead, trail = one.text.lead, one.text.trail
        if lead and start - len(lead) >= floor and text.startswith(lead, start - len(lead)):
            start -= len(lead)
        if trail and end + len(trail) <= ceiling and text.startswith(trail, end):
            end += len(trail)
        wide.append(Found(start, end, one.text))
    return tuple(wide)


def _everything(dialogue: Dialogue) -> str:
    """All texts of a dialogue in one."""
    texts = [dialogue.system or ""]
    objects: list[Any] = [dialogue.tools, dialogue.template_arguments]
    for turn in dialogue.turns:
        texts += [turn.text, turn.reasoning or "", turn.name or "", turn.call_id or ""]
        objects += [(call.name, call.arguments, call.id) for call in turn.calls]
    return "".join([*texts, json.dumps(objects, ensure_ascii=False)])
