"""Values of a row: strict types, with messages that name the place. Nothing is coerced."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.keys import TEXT_PARTS, THOUGHT_PARTS
from fastchat.data.rows.strict_json import BadValue, json_kind, parse_strictly

THE_ROW = "the row"
# Ways out of problems that a mapping of names cannot solve.
_AS_CALLS = 'Calls are "tool_calls" of an answer, and their results turns with role "tool": see docs/data.md.'
_AS_TEXT = {
    dict: "An object can be written as JSON text.",
    type(None): 'An answer without a text needs "tool_calls"; any other message without one, the text "".',
}
_MOST_LEVELS = 100  # of lists and objects in each other


def is_given(value: object) -> bool:
    """Whether a key has a value: null, false, and empty texts and lists count as none."""
    if isinstance(value, list):
        return any(item is not None for item in value)
    return value is not None and value is not False and value not in ("", "[]", "{}", {})


def text_of(holder: dict[str, Any], key: str, where: str) -> str:
    """The text under `key`. Raises BadRow if there is none."""
    value = holder.get(key)
    if isinstance(value, str):
        return value
    if key not in holder:
        raise missing(holder, (key,), where)
    way_out = _AS_TEXT.get(type(value), "")
    raise BadRow("wrong type", f"{key!r} of {where} is {a_kind(value)}, not a string", way_out)


def optional_text(holder: dict[str, Any], key: str, where: str = THE_ROW) -> str | None:
    """A text that may be missing or null."""
    return None if holder.get(key) is None else text_of(holder, key, where)


def content_of(holder: dict[str, Any], key: str, where: str) -> str:
    """The text of a message: a text, or the concatenation of a list of text parts. Raises BadRow for other parts."""
    value = holder.get(key)
    if not isinstance(value, list):
        return text_of(holder, key, where)
    return "".join(_part(part, key, where) for part in value if part is not None)


def split_parts(value: Any, key: str, where: str) -> tuple[Any, str | None]:
    """A content without its parts that are reasoning, and their text; None if there are none."""
    if not isinstance(value, list):
        return value, None
    thoughts = [part for part in value if isinstance(part, dict) and part.get("type") in THOUGHT_PARTS]
    if not thoughts:
        return value, None
    texts = []
    for part in thoughts:
        own = next((name for name in (part["type"], "text") if part.get(name) is not None), part["type"])
        texts.append(content_of(part, own, f"a part of {key!r} of {where}"))
    return [part for part in value if not any(part is thought for thought in thoughts)], "".join(texts)


def json_list(value: Any, key: str, where: str) -> Any:
    """The list that a text beginning with [ is the JSON of; any other value as it is. Raises BadRow."""
    return parsed(value, key, where) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _part(part: Any, key: str, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow("wrong type", f"a part of {key!r} of {where} is {a_kind(part)}, not an object")
    kind = part.get("type", TEXT_PARTS[0])
    if kind not in TEXT_PARTS:
        way_out = _AS_CALLS if str(kind).startswith("tool_") else ""
        said = f"{key!r} of {where} has a part of type {shown(kind)}; only text is read"
        raise BadRow("part that is not text", said, way_out)
    return text_of(part, "text", f"a part of {key!r} of {where}")


def missing(holder: dict[str, Any], keys: Iterable[str], where: str, way_out: str = "") -> BadRow:
    """The problem that none of `keys` is there."""
    keys = list(keys)
    named = " or ".join(map(repr, keys))
    other_name = f"""A key with another name is given with --data_columns '{{"{keys[0]}": "NAME IN THE FILE"}}'."""
    return BadRow("missing key", f"{where} has no {named}; keys there: {keys_of(holder)}", way_out or other_name)


def keys_of(holder: dict[str, Any]) -> str:
    """The first keys of a row or turn, for messages."""
    return ", ".join(shown(key) for key in list(holder)[:6]) or "none"


def parsed(value: Any, key: str, where: str) -> Any:
    """A value that may be given as JSON text. Raises BadRow if the text is not JSON."""
    if not isinstance(value, str) or not value.strip():
        return None if value == "" or isinstance(value, str) else value
    try:
        return parse_strictly(value)
    except BadValue as bad:
        raise BadRow(f"{bad.reason} in {key}", f"{where}: {bad.detail}") from None
    except BadRow as bad:
        raise BadRow(f"invalid JSON in {key}", f"{where}: {bad.detail or bad.reason}: {shown(value)}") from None


def check_json(value: Any, what: str) -> None:
    """Raise BadRow for a value that cannot be written as JSON by every template: a number that is not finite, a type of
    a table that JSON does not have, or more than 100 levels."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MOST_LEVELS:
            raise BadRow("nested too deeply", f"{what} has more than {_MOST_LEVELS} levels")
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise BadRow("not a JSON number", f"{what} has {item}")
            elif item is not None and not isinstance(item, str | bool | int | float):
                raise BadRow("wrong type", f"{what} has {shown(item)}, {a_kind(item)}, which JSON cannot represent")
        level = following


def without_nulls(value: Any) -> tuple[Any, int]:
    """The value without the null values of its objects, at any depth, and how many there were."""
    if isinstance(value, dict):
        kept = {key: without_nulls(item) for key, item in value.items() if item is not None}
        num = len(value) - len(kept) + sum(n for _, n in kept.values())
        return ({key: item for key, (item, _) in kept.items()}, num) if num else (value, 0)
    if isinstance(value, list):
        items = [without_nulls(item) for item in value]
        num = sum(n for _, n in items)
        return ([item for item, _ in items], num) if num else (value, 0)
    return value, 0


def as_json(names: dict[str, str]) -> str:
    """Names from a file, as JSON for a message; escaped if they are not printable."""
    return json.dumps(names, ensure_ascii=not all(map(str.isprintable, (*names, *names.values()))))


def a_kind(value: object) -> str:
    """`an object`, `a string`, `null`: for messages."""
    kind = json_kind(value)
    return kind if kind == "null" else f"an {kind}" if kind[0] in "ao" else f"a {kind}"
