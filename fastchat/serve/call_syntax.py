"""Reading tool calls back out of an answer, in whatever syntax the model's template writes them.

The syntax is learned by rendering small dialogues with calls, as training renders them, and looking where the names and
the arguments are:

    rendered    <tool_call>\\n{"name": "zq_alpha", "arguments": {"zq_key": "Zqone"}}\\n</tool_call>
    learned     before  `<tool_call>`, a JSON object with the keys `name` and `arguments`, after  `</tool_call>`

It is used only if every dialogue that was rendered is read back as it was. White space and numbers (of a call) between
the parts are not compared.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastchat.conversation import Dialogue, ToolCall, Turn
from fastchat.data.encoding.chat_encoder import ChatEncoder
from fastchat.data.encoding.learn import Thinking
from fastchat.data.encoding.tokenizer_template import TokenizerTemplate
from fastchat.errors import UserError

_NAMES, _KEYS, _TEXTS = ("zq_alpha", "zq_beta"), ("zq_key", "zq_other"), ("Zqone", "Zqtwo")
_SAID = "Zqsay this."
_NAME = r"(?P<name>[^\s\"'<>{}()\[\]|:,]+)"
_KEY = r"(?P<key>[^\s\"'<>{}()\[\]|:,]+)"
_IDS = ("zqid00000", "zqid00001")


@dataclass(frozen=True)
class JsonCall:
    """A call (or, if `listed`, all of them) is one JSON value. Keys may be nested: ("function", "name")."""

    name: tuple[str, ...]
    arguments: tuple[str, ...]
    listed: bool = False

    def read(self, text: str, start: int) -> tuple[list[ToolCall], int] | None:
        """The calls whose JSON begins at `start`, and where it ends."""
        found = _json_at(text, start)
        if found is None or isinstance(found[0], list) != self.listed:
            return None
        calls = [self._call(item) for item in (found[0] if self.listed else [found[0]])]
        return ([call for call in calls if call], found[1]) if all(calls) else None

    def _call(self, item: Any) -> ToolCall | None:
        name, arguments = _under(item, self.name), _under(item, self.arguments)
        if isinstance(arguments, str):
            found = _json_at(arguments, 0)
            arguments = found[0] if found else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        given = item.get("id")
        return ToolCall(name, arguments, given if isinstance(given, str) else None)


@dataclass(frozen=True)
class NamedCall:
    """A name, then arguments that are a JSON object, or pairs of key and value in the template's own form.

    Attributes:
        middle: the pattern between the name and JSON arguments; None if the arguments are no JSON.
        opening, between, joining: the patterns before the first key, between key and value, and from a value to the
            next key.
        endings: patterns, one of which follows the last value.
        empty: the pattern after the name of a call without arguments.
    """

    middle: str | None
    opening: str = ""
    between: str = ""
    joining: str = ""
    endings: tuple[str, ...] = ()
    empty: str = ""

    def read(self, text: str, start: int) -> tuple[list[ToolCall], int] | None:
        """The call whose name begins at `start`, and where its arguments end."""
        name = re.compile(_NAME).match(text, start)
        if name is None:
            return None
        if self.middle is None:
            made = self._pairs(text, name.end())
        else:
            middle = re.compile(self.middle).match(text, name.end())
            made = _json_at(text, middle.end()) if middle else None
        return ([ToolCall(name["name"], made[0])], made[1]) if made and isinstance(made[0], dict) else None

    def _pairs(self, text: str, start: int) -> tuple[dict[str, Any], int] | None:
        first = re.compile(self.opening + _KEY + self.between).match(text, start)
        if first is None:
            empty = re.compile(self.empty).match(text, start)
            return ({}, start) if empty else None
        arguments: dict[str, Any] = {}
        following = re.compile(f"{self.joining}{_KEY}{self.between}|(?P<end>{'|'.join(self.endings)})")
        key, at = first["key"], first.end()
        while (found := following.search(text, at)) is not None:
            arguments[key] = text[at : found.start()]
            if found["end"] is not None:
                return arguments, found.start()
            key, at = found["key"], found.end()
        return None


@dataclass(frozen=True)
class CallSyntax:
    """How a template writes calls.

    Attributes:
        marker: the text with which the calls begin; "" if they can only be a whole answer.
        before, between, after: patterns before the first call, between two, and after the last.
    """

    call: JsonCall | NamedCall
    marker: str
    before: str
    between: str
    after: str

    def may_begin(self, text: str) -> int:
        """Where in an answer (perhaps its beginning only) the calls begin or may begin, for whoever shows the text
        before them already."""
        if not self.marker:
            start = text.lstrip()[:1]
            return 0 if start in ("", "{", "[") else len(text)
        at = text.find(self.marker)
        if at >= 0:
            return at
        size = next((n for n in range(len(self.marker) - 1, 0, -1) if text.endswith(self.marker[:n])), 0)
        return len(text) - size

    def read(self, text: str, tools: Sequence[Any] = ()) -> tuple[str, tuple[ToolCall, ...]]:
        """The text of an answer before its calls, and the calls; all of the text and none if they are not well-formed.

        `tools`: the schemas, which tell a text from a number where the syntax does not.
        """
        pattern = re.compile(self.before)
        found = pattern.search(text) if self.marker else pattern.match(text, len(text) - len(text.lstrip()))
        made = self._calls(text, found.end()) if found else None
        if not found or not made:
            return text, ()
        return text[: found.start()].rstrip(), tuple(_typed(call, tools, self.call) for call in made)

    def _calls(self, text: str, at: int) -> list[ToolCall] | None:
        calls: list[ToolCall] = []
        between, after = re.compile(self.between), re.compile(self.after)
        while True:
            found = self.call.read(text, at)
            if found is None:
                return None
            calls += found[0]
            following = between.match(text, found[1])
            if following is not None and self.call.read(text, following.end()) is not None:
                at = following.end()
                continue
            end = after.match(text, found[1])
            return calls if end and not text[end.end() :].strip() else None


def learn_syntax(chat_encoder: ChatEncoder) -> CallSyntax | None:
    """The syntax of calls; None if the template has none, or none that can be read back."""
    if not chat_encoder.template.shows_calls:
        return None
    write = _Writer(chat_encoder)
    one = write([_call(0)])
    if one is None:
        return None
    two = write([_call(0), _call(1)])
    syntax = _json_syntax(one, two) or _named_syntax(one, two, write)
    return syntax if syntax and all(_is_read_back(syntax, *case) for case in _cases(write)) else None


class _Writer:
    """Renders answers with calls, as training does."""

    def __init__(self, chat_encoder: ChatEncoder):
        self._template = chat_encoder.template
        self._thinking, self._stops = Thinking(), (self._template.stop,)
        if isinstance(self._template, TokenizerTemplate):
            self._thinking, self._stops = self._template.thinking, self._template.stops

    def __call__(self, calls: Sequence[ToolCall], said: str = "") -> str | None:
        """The text of the answer without its stop and an empty reasoning; None if the template refuses it."""
        dialogue = Dialogue((Turn("user", "Hi"), Turn("assistant", said, calls=tuple(calls))), tools=TOOLS)
        try:
            rendered = self._template.renderings(dialogue)[-1]
        except UserError:
            return None
        own = [s for s in rendered.segments if s.supervised and s.turn == 1 and not s.virtual]
        written = "".join(s.text for s in own)
        ends = [stop for stop in self._stops if stop and written.endswith(stop)]
        return self._thinking.after_empty(written.removesuffix(max(ends, key=len, default="")))


def _schema(name: str) -> dict[str, Any]:
    kinds = {_KEYS[0]: "string", _KEYS[1]: "string", "zq_number": "integer", "zq_flag": "boolean", "zq_list": "array"}
    properties = {key: {"type": kind, "description": "x"} for key, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


TOOLS = tuple(_schema(name) for name in _NAMES)


def _call(number: int, **arguments: Any) -> ToolCall:
    return ToolCall(_NAMES[number], arguments or {_KEYS[number]: _TEXTS[number]}, _IDS[number])


def _cases(write: _Writer) -> Iterator[tuple[str, tuple[ToolCall, ...], str]]:
    """(answer, calls, text before them) of what the template renders."""
    rich = _call(0, **{_KEYS[0]: 'Zq "quoted", {a}\nline', "zq_number": 7, "zq_flag": True, "zq_list": [1, "b"]})
    empty = ToolCall(_NAMES[1], {}, _IDS[1])
    cases = [((_call(0),), ""), ((_call(0), _call(1)), ""), ((rich,), ""), ((empty,), ""), ((_call(0),), _SAID)]
    for calls, said in cases:
        written = write(calls, said)
        if written is not None and (not said or said in written):
            yield written, calls, said


def _is_read_back(syntax: CallSyntax, written: str, calls: tuple[ToolCall, ...], said: str) -> bool:
    text, found = syntax.read(written, TOOLS)
    return said in text and [(c.name, c.arguments) for c in found] == [(c.name, c.arguments) for c in calls]


def _json_syntax(one: str, two: str | None) -> CallSyntax | None:
    """The syntax if name and arguments are in one JSON value: the first that holds both."""
    for start in (k for k, c in enumerate(one[: one.find(_NAMES[0])]) if c in "{["):
        value, end = _json_at(one, start) or (None, 0)
        listed = isinstance(value, list)
        item = value[0] if listed and value else value
        name = _path(item, lambda v: v == _NAMES[0])
        arguments = _path(item, _are_arguments)
        if name is None or arguments is None:
            continue
        call = JsonCall(name, arguments, listed)
        between = ""
        if two is not None and not listed:
            (_, first), second = _json_at(two, start) or (None, len(two)), two.find(_NAMES[1])
            opened = two.rfind("{", first, second) if len(name) == 1 else two.find("{", first)
            between = two[first:opened] if opened >= 0 else ""
        return _syntax(call, one[:start], between, one[end:])
    return None


def _named_syntax(one: str, two: str | None, write: _Writer) -> CallSyntax | None:
    """The syntax if the name is not in the JSON of the arguments, or there is no JSON."""
    begin = one.find(_NAMES[0])
    if begin < 0:
        return None
    name_end = begin + len(_NAMES[0])
    starts = (k for k, c in enumerate(one) if c == "{" and k >= name_end)
    json_start = next((k for k in starts if _are_arguments((_json_at(one, k) or (None,))[0])), None)
    second = two.find(_NAMES[1]) if two is not None else -1
    if json_start is not None:
        end = (_json_at(one, json_start) or (None, 0))[1]
        first = (_json_at(two, two.find("{", name_end)) or (None, -1))[1] if two is not None else -1
        between = two[first:second] if two is not None and 0 < first <= second else ""
        return _syntax(NamedCall(_pattern(one[name_end:json_start])), one[:begin], between, one[end:])
    pairs, empty = write([_call(0, **dict(zip(_KEYS, _TEXTS, strict=True)))]), write([ToolCall(_NAMES[0], {}, _IDS[0])])
    at = [pairs.find(text) for text in (_KEYS[0], _TEXTS[0], _KEYS[1])] if pairs else [-1]
    if pairs is None or min(at) < 0 or _TEXTS[0] not in one:
        return None
    key, value, other = at
    end = one.rfind(_TEXTS[0]) + len(_TEXTS[0])
    between = two[two.find(_TEXTS[0]) + len(_TEXTS[0]) : second] if two is not None and second > 0 else ""
    endings = tuple(_pattern(part) for part in (between, one[end:]) if part.strip())
    nothing = _pattern(empty[empty.find(_NAMES[0]) + len(_NAMES[0]) :]) if empty else ""
    call = NamedCall(
        None,
        opening=_pattern(pairs[name_end:key]),
        between=_pattern(pairs[key + len(_KEYS[0]) : value], exact=True),
        joining=_pattern(pairs[value + len(_TEXTS[0]) : other]),
        endings=endings,
        empty=nothing or r"\Z",
    )
    made = _syntax(call, one[:begin], between, one[end:])
    if not nothing:
        return made
    # After a call without arguments, what opens and closes them is missing.
    after, following = f"(?:{made.after}|{nothing})", f"(?:{made.between}|{nothing}\\s*{made.before})"
    return replace(made, after=after, between=following if between else "")


def _syntax(call: JsonCall | NamedCall, before: str, between: str, after: str) -> CallSyntax:
    words = before.split()
    marker = re.split(r"\d", words[0])[0] if words else ""
    return CallSyntax(call, marker, _pattern(before.lstrip()), _pattern(between), _pattern(after))


def _pattern(literal: str, exact: bool = False) -> str:
    """A pattern for a text of the template: white space, the number of a call and its id may differ. `exact`: the white
    space around it belongs to it."""
    parts = re.split(rf"(\s+|{'|'.join(_IDS)}|\d+)", literal)
    made = [re.escape(part) if k % 2 == 0 else _loose(part) for k, part in enumerate(parts)]
    if exact:
        made = [re.escape(part) if part.isspace() else one for part, one in zip(parts, made, strict=True)]
    return "".join(made)


def _loose(part: str) -> str:
    return r"\s*" if part.isspace() else r"[\w.:-]+" if part in _IDS else r"\d+"


def _typed(call: ToolCall, tools: Sequence[Any], form: JsonCall | NamedCall) -> ToolCall:
    """A call whose arguments were texts, with the values of the types that the schema says, or else looks like."""
    if not isinstance(form, NamedCall) or form.middle is not None:
        return call
    functions = (tool.get("function", tool) for tool in tools if isinstance(tool, dict))
    schema = next((f.get("parameters") for f in functions if f.get("name") == call.name), None)
    properties = schema.get("properties") if isinstance(schema, dict) else None
    kinds = {key: one.get("type") for key, one in (properties or {}).items() if isinstance(one, dict)}
    values = {key: text if kinds.get(key) == "string" else _value(text) for key, text in call.arguments.items()}
    return ToolCall(call.name, values, call.id)


def _value(text: str) -> Any:
    found = _json_at(text, len(text) - len(text.lstrip()))
    if found is not None and not text[found[1] :].strip():
        return found[0]
    return {"True": True, "False": False, "None": None}.get(text, text)


def _json_at(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at `start`, and where it ends; None if there is none, or one that JSON by its standard does not
    have: NaN, an infinity, half a surrogate pair."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        if _SURROGATE.search(text, start, end):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value, end


def _no_number(name: str) -> float:
    raise ValueError(name)


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_number)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _are_arguments(value: Any) -> bool:
    if isinstance(value, str) and value.startswith("{"):
        value = (_json_at(value, 0) or (None,))[0]
    return value == {_KEYS[0]: _TEXTS[0]}


def _path(item: Any, wanted: Any) -> tuple[str, ...] | None:
    """The keys to the value in nested objects that is `wanted`."""
    if not isinstance(item, dict):
        return None
    for key, value in item.items():
        if wanted(value):
            return (key,)
        inner = _path(value, wanted)
        if inner is not None:
            return (key, *inner)
    return None


def _under(item: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        item = item.get(key) if isinstance(item, dict) else None
    return item
