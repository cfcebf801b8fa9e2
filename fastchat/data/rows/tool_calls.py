"""Tools and calls: OpenAI's form, its older `functions`, and ShareGPT's call texts become the same objects.

    tools        [{"type": "function", "function": {"name": ..., "parameters": {...}}}], or the inner objects alone
    calls        [{"id": ..., "function": {"name": ..., "arguments": {...}}}], or {"name": ..., "arguments": {...}}

Every part may be JSON text. A null value in an object is the same as a missing key, because a table has every key in
every row; in JSON text it is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastchat.conversation import ToolCall, Turn
from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.keys import ASSISTANT, CALLS, TOOL, TOOLS
from fastchat.data.rows.values import THE_ROW, a_kind, check_json, is_given, keys_of, parsed, text_of, without_nulls

_FUNCTION = "function"
_AS_FUNCTION = 'A tool is {"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}.'
_PARAMETERS = "parameters"
_ARGUMENTS = ("arguments", _PARAMETERS)
_CALL_KEYS = frozenset(("id", "type", "index", "name", _FUNCTION, *_ARGUMENTS))


def tools_of(row: dict[str, Any], treatments: Counter[str]) -> tuple[Any, ...]:
    """The schemas of the row's tools, in OpenAI's form. Raises BadRow."""
    found = {key: _tools(row[key], key, treatments) for key in TOOLS if is_given(row.get(key))}
    found = {key: tools for key, tools in found.items() if tools}
    if len({repr(tools) for tools in found.values()}) > 1:
        raise BadRow("contradictory keys", f"{THE_ROW} has different {' and '.join(found)}")
    return next(iter(found.values()), ())


def tools_with(tools: tuple[Any, ...], of_turn: dict[str, Any], treatments: Counter[str]) -> tuple[Any, ...]:
    """The tools of the row or, if it has none, those that its system turn has under the same keys. Raises BadRow."""
    found = tools_of(of_turn, treatments)
    if tools and found and repr(tools) != repr(found):
        raise BadRow("contradictory keys", f"{THE_ROW} has different tools, and others in its system turn")
    return tools or found


def _tools(given: Any, key: str, treatments: Counter[str]) -> tuple[Any, ...]:
    value = parsed(given, key, THE_ROW)
    items = [value] if isinstance(value, dict) else [] if value is None else value
    if not isinstance(items, list):
        raise BadRow("wrong type", f"{key!r} of {THE_ROW} is {a_kind(items)}, not an array")
    numbered = [(f"tool {number}", item) for number, item in enumerate(items, start=1) if is_given(item)]
    return tuple(_tool(item, key, where, treatments, exact=isinstance(given, str)) for where, item in numbered)


def _tool(given: Any, key: str, where: str, treatments: Counter[str], *, exact: bool) -> dict[str, Any]:
    exact = exact or isinstance(given, str)
    tool = parsed(given, key, where)
    check_json(tool, where)
    if not isinstance(tool, dict):
        raise BadRow("wrong type", f"{where} of {key!r} is {a_kind(tool)}, not an object")
    kind = tool.get("type") or _FUNCTION
    if kind != _FUNCTION:
        raise BadRow("tool that is not a function", f"{where} of {key!r} has type {shown(kind)}", _AS_FUNCTION)
    outer = {name: value for name, value in tool.items() if name != "type" and value is not None}
    wrapped = outer.pop(_FUNCTION, None)
    function = outer if wrapped is None else parsed(wrapped, _FUNCTION, where)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise BadRow("tool without a name", f"{where} of {key!r}: {shown(tool)}", _AS_FUNCTION)
    made = {name: value for name, value in function.items() if value is not None}
    if _PARAMETERS in made:
        made[_PARAMETERS] = _exactly(made[_PARAMETERS], _PARAMETERS, where, treatments, exact=exact)
    return {"type": _FUNCTION, **({} if wrapped is None else outer), _FUNCTION: made}


def _exactly(given: Any, key: str, where: str, treatments: Counter[str], *, exact: bool) -> Any:
    """The value of JSON text; any other value without its nulls, which are counted, unless it is `exact`."""
    if exact or isinstance(given, str):
        value = parsed(given, key, where)
        check_json(value, f"{key!r} of {where}")
        return {} if value is None else value
    check_json(given, f"{key!r} of {where}")
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
    made = {}
    for key in found:
        items = _items(entry[key], key, where)
        made[key] = tuple(_call(item, where, treatments, exact) for item, exact in items)
        unread.update(("turn", f"{key}.{name}") for item, _ in items for name in item if name not in _CALL_KEYS)
    if len({repr([(call.name, call.arguments) for call in calls]) for calls in made.values()}) > 1:
        raise BadRow("contradictory keys", f"{where} has different {' and '.join(found)}")
    return made[found[0]]


def _items(given: Any, key: str, where: str) -> list[tuple[Any, bool]]:
    """The calls of a list, of a single object, or of JSON text; each with whether it was JSON text."""
    value = parsed(given, key, where)
    items = value if isinstance(value, list) else [value]
    return [
        (parsed(item, key, where), isinstance(given, str) or isinstance(item, str)) for item in items if is_given(item)
    ]


def _call(call: Any, where: str, treatments: Counter[str], exact: bool) -> ToolCall:
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
    exact = exact or isinstance(call.get(_FUNCTION), str)
    key = next((key for key in _ARGUMENTS if function.get(key) is not None), _ARGUMENTS[0])
    arguments = _exactly(function.get(key), key, f"a call of {where}", treatments, exact=exact)
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise BadRow("wrong type", f"{key!r} of a call of {where} is {a_kind(arguments)}, not an object")
    call_id = None if call.get("id") is None else text_of(call, "id", f"a call of {where}")
    return ToolCall(name, arguments, call_id or None)


def calls_in(content: Any, where: str, treatments: Counter[str]) -> tuple[ToolCall, ...]:
    """The calls that the content of a function_call turn describes, as JSON or JSON text; () if it does not, or says
    anything else as well."""
    try:
        items = _items(content, "value", where)
        if all(isinstance(item, dict) and item.keys() <= _CALL_KEYS and _has_arguments(item) for item, _ in items):
            return tuple(_call(item, where, treatments, exact) for item, exact in items)
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
