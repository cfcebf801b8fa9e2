"""Tools and calls: OpenAI's form, its older `functions`, and ShareGPT's call texts become the same objects.

    tools        [{"type": "function", "function": {"name": ..., "parameters": {...}}}], or the inner objects alone
    calls        [{"id": ..., "function": {"name": ..., "arguments": {...}}}], or {"name": ..., "arguments": {...}}

Every part may be JSON text. A null value in an object is the same as a missing key, because a table has every key in
every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastchat.conversation import ToolCall, Turn
from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.keys import ASSISTANT, CALLS, TOOL, TOOLS
from fastchat.data.rows.values import THE_ROW, a_kind, is_given, keys_of, parsed, text_of, without_nulls

_FUNCTION = "function"
_ARGUMENTS = ("arguments", "parameters")
_CALL_KEYS = frozenset(("id", "type", "index", "name", _FUNCTION, *_ARGUMENTS))


def tools_of(row: dict[str, Any], treatments: Counter[str]) -> tuple[Any, ...]:
    """The schemas of the row's tools, in OpenAI's form. Raises BadRow."""
    found = {key: _tools(row[key], key, treatments) for key in TOOLS if is_given(row.get(key))}
    if len(found) == 2 and len({repr(tools) for tools in found.values()}) == 2:
        raise BadRow("contradictory keys", f"{THE_ROW} has different {' and '.join(found)}")
    return next(iter(found.values()), ())


def _tools(given: Any, key: str, treatments: Counter[str]) -> tuple[Any, ...]:
    value = parsed(given, key, THE_ROW)
    items = [value] if isinstance(value, dict) else [] if value is None else value
    if not isinstance(items, list):
        raise BadRow("wrong type", f"{key!r} of {THE_ROW} is {a_kind(items)}, not an array")
    return tuple(
        _tool(item, key, f"tool {number}", treatments) for number, item in enumerate(items, start=1) if is_given(item)
    )


def _tool(given: Any, key: str, where: str, treatments: Counter[str]) -> dict[str, Any]:
    tool = _parsed(given, key, where, treatments)
    if not isinstance(tool, dict):
        raise BadRow("wrong type", f"{where} of {key!r} is {a_kind(tool)}, not an object")
    kind = tool.get("type") or _FUNCTION
    if kind != _FUNCTION:
        raise BadRow("tool that is not a function", f"{where} of {key!r} has type {shown(kind)}")
    bare = {name: value for name, value in tool.items() if name != "type"}
    wrapped = bare.pop(_FUNCTION, None)
    function = bare if wrapped is None else parsed(wrapped, _FUNCTION, where)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise BadRow("tool without a name", f"{where} of {key!r}: {shown(tool)}")
    if isinstance(function.get("parameters"), str):
        function = {**function, "parameters": parsed(function["parameters"], "parameters", where) or {}}
    return {"type": _FUNCTION, **({} if wrapped is None else bare), _FUNCTION: function}


def _parsed(given: Any, key: str, where: str, treatments: Counter[str]) -> Any:
    """The value of JSON text, or the given value without nulls, which are counted."""
    if isinstance(given, str):
        return parsed(given, key, where)
    value, num_nulls = without_nulls(given)
    treatments["null_arguments"] += num_nulls
    return value


def calls_of(
    entry: dict[str, Any], role: str, where: str, treatments: Counter[str], unread: Counter[tuple[str, str]]
) -> tuple[ToolCall, ...]:
    """The calls under one of CALLS of a turn. Raises BadRow."""
    found = [key for key in CALLS if is_given(entry.get(key))]
    if not found:
        return ()
    if role != ASSISTANT:
        raise BadRow("tool calls outside an answer", f"{where} has role {role} and key {shown(found[0])}")
    made = {key: _calls(entry[key], key, where, treatments, unread) for key in found}
    if len(made) == 2 and len({repr([(c.name, c.arguments) for c in calls]) for calls in made.values()}) == 2:
        raise BadRow("contradictory keys", f"{where} has different {' and '.join(found)}")
    return made[found[0]]


def _calls(
    given: Any, key: str, where: str, treatments: Counter[str], unread: Counter[tuple[str, str]]
) -> tuple[ToolCall, ...]:
    value = _parsed(given, key, where, treatments)
    items = value if isinstance(value, list) else [value]
    made = []
    for item in items:
        if not is_given(item):
            continue
        call = parsed(item, key, where)
        made.append(_call(call, where))
        unread.update(("turn", f"{key}.{name}") for name in call if name not in _CALL_KEYS)
    return tuple(made)


def _call(call: Any, where: str) -> ToolCall:
    if not isinstance(call, dict):
        raise BadRow("wrong type", f"a call of {where} is {a_kind(call)}, not an object")
    kind = call.get("type") or _FUNCTION
    if kind != _FUNCTION:
        raise BadRow("tool call that is not a function", f"{where} has a call of type {shown(kind)}")
    function = call if call.get(_FUNCTION) is None else parsed(call[_FUNCTION], _FUNCTION, where)
    if not isinstance(function, dict):
        raise BadRow("wrong type", f"'function' of a call of {where} is {a_kind(function)}, not an object")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRow("tool call without a name", f"{where}; keys there: {keys_of(function)}")
    key = next((key for key in _ARGUMENTS if function.get(key) is not None), _ARGUMENTS[0])
    arguments = parsed(function.get(key), key, f"a call of {where}")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise BadRow("wrong type", f"{key!r} of a call of {where} is {a_kind(arguments)}, not an object")
    call_id = None if call.get("id") is None else text_of(call, "id", f"a call of {where}")
    return ToolCall(name, arguments, call_id or None)


def calls_in(content: Any, where: str, treatments: Counter[str]) -> tuple[ToolCall, ...]:
    """The calls that the content of a function_call turn describes, as JSON or JSON text; () if it does not, or says
    anything else as well."""
    try:
        value = _parsed(content, "value", where, treatments)
        items = value if isinstance(value, list) else [value]
        items = [parsed(item, "value", where) for item in items]
        if all(isinstance(item, dict) and item.keys() <= _CALL_KEYS and _has_arguments(item) for item in items):
            return tuple(_call(item, where) for item in items)
    except BadRow:
        pass
    return ()


def _has_arguments(call: dict[str, Any]) -> bool:
    return _FUNCTION in call or any(key in call for key in _ARGUMENTS)


def count_references(turns: Sequence[Turn], treatments: Counter[str]) -> None:
    """Count calls and results whose ids or order do not fit; templates render them all the same."""
    known: set[str] = set()
    open_call = False
    for turn in turns:
        for call in turn.calls:
            treatments["duplicate_call_ids"] += call.id in known
            known.update([call.id] if call.id else [])
        if turn.role == TOOL:
            treatments["unknown_call_ids"] += turn.call_id is not None and turn.call_id not in known
            treatments["results_without_call"] += not open_call
        else:
            open_call = bool(turn.calls)


def with_names(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, each result with the name of its call if it has only the call's id."""
    names: dict[str, str] = {}
    made = []
    for turn in turns:
        names.update({call.id: call.name for call in turn.calls if call.id})
        if turn.role == TOOL and turn.name is None and turn.call_id in names:
            turn = replace(turn, name=names[turn.call_id])
        made.append(turn)
    return made
