"""Decodes JSON, strictly by the standard.

What Python's own parser accepts (NaN, duplicate keys, half a surrogate pair) raises `BadRow` here.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastchat.data.rows.bad_rows import AS_TURNS, BadRow, shown

# Only a row whose raw text contains one of these can contain a NUL or a lone surrogate once it is parsed.
_SUSPECT_ESCAPE = re.compile(r"\\u0000|\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadValue(BadRow):
    """A value that parses but is not allowed. `end` is where it ends, so that reading can continue after it."""

    def __init__(self, reason: str, detail: str, end: int, way_out: str = ""):
        super().__init__(reason, detail, way_out)
        self.end = end


class StrictDecoder:
    """Decodes one object at a time from a longer text. Keeps state meanwhile: use one decoder per reader."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, str]] = []  # (reason, detail) of what the hooks found in the current value
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str, start: int) -> tuple[dict[str, Any], int]:
        """The object that starts at character `start` of `text`, and where it ends.

        Raises:
            BadValue: it is complete, but is not an object, or has a duplicate key, a NaN, a NUL or a lone surrogate.
            BadRow: it is not JSON; "truncated JSON" where the text ends before the object does.
        """
        value, end = self.value(text, start)
        if not isinstance(value, dict):
            raise BadValue("not an object", f"a JSON {json_kind(value)}", end, AS_TURNS)
        self._check(text, start, value, end)
        return value, end

    def value(self, text: str, start: int) -> tuple[Any, int]:
        """Like `decode`, for a value of any kind, which is not checked yet."""
        self._seen.clear()
        try:
            return self._json.raw_decode(text, start)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text) or error.msg.startswith("Unterminated string")
            near = text[max(start, error.pos - 15) : error.pos + 15]
            detail = f"{error.msg}, near {shown(near)}" if near else error.msg
            raise BadRow("truncated JSON" if cut else "broken JSON", detail) from None
        except RecursionError:
            raise BadRow("broken JSON", "nested too deeply") from None
        except ValueError as error:  # an integer of more than 4,300 digits
            raise BadRow("broken JSON", str(error)[:60]) from None

    def whole(self, text: str) -> Any:
        """The one value that `text` consists of. Raises BadRow, and BadValue, as `decode` does."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = self.value(text, start)
        if text[end:].strip(" \t\r\n"):
            raise BadRow("broken JSON", f"text after the value, at character {end + 1}")
        self._check(text, start, value, end)
        return value

    def _check(self, text: str, start: int, value: Any, end: int) -> None:
        if self._seen:
            raise BadValue(*self._seen[0], end)
        if _SUSPECT_ESCAPE.search(text, start, end):
            check_strings(value, end)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            keys = [key for key, _ in pairs]
            self._seen.append(("duplicate key", shown(next(key for key in keys if keys.count(key) > 1))))
        return made

    def _constant(self, name: str) -> None:
        self._seen.append(("not a JSON number", name))


def parse_strictly(text: str) -> Any:
    """The JSON value of a whole text, by the same rules. Raises BadRow."""
    return StrictDecoder().whole(text)


def json_kind(value: object) -> str:
    """What JSON calls a value: "object", "array", "string", "number", "boolean", "null"; else the name of its type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


def check_strings(value: Any, end: int = 0) -> None:
    """Raise BadValue if a key or text contains a NUL or half of a surrogate pair.

    Neither survives tokenising and saving. `end` is where the value ends, for the error.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str):
            if "\0" in item:
                raise BadValue("NUL character", shown(item), end)
            if lone := _SURROGATE.search(item):
                raise BadValue("lone surrogate", f"\\u{ord(lone.group()):04x}", end)
