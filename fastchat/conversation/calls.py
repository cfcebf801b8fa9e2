"""Tools, calls and their results in a table: how they are written, and the segments that they become.

Texts of a table are literals with slots. Qwen2.5's call, with its literals (in which `<tool_call>` is a token) and the
texts of the dialogue (which never become tokens):

    call       <tool_call>\\n{"name": "{name}", "arguments": {arguments}}\\n</tool_call>
    rendered   <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>
    messages                           ^^^                 ^^^^^^^^
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastchat.conversation.dialogue import ToolCall, Turn
from fastchat.conversation.python_stubs import python_stub
from fastchat.conversation.schema import Form, Kind, Place, flag, one_of, or_null, text, whole
from fastchat.conversation.segments import RoleFormat, Segment, read_format, role_format
from fastchat.errors import DataError, SettingsError

SYSTEM_SLOT = "{system_message}"
TOOLS_SLOT = "{tools}"
WHERE = ("system", "first_user", "last_user")
SCHEMAS = ("tool", "function", "python")
RESULTS = ("as_is", "json", "json_value")
GENERATED_ID, LEAST_ID = "call", 9
_CALL_SLOTS = ("name", "arguments", "id")


class RefusedByTemplate(DataError):
    """A dialogue that the template rejects, or that it cannot render so that its answers have exact spans."""


@dataclass(frozen=True, slots=True)
class ToolsFormat:
    """Where and how the schemas of the tools are shown.

    Attributes:
        where: "system" (the header), "first_user" or "last_user" (that user message; with "last_user" only the answers
            after it are supervised, because earlier ones were generated when an earlier message showed the tools).
        system, no_system: the header of a dialogue with tools, with and without a system message. One with the slot
            `{tools}` is only written where it shows them: always for "system", otherwise if the header opens the turn
            of the user message in question (`first_user` of the template).
        system_message: the default message of a dialogue with tools; None means the template's.
        user: the format of the user message that shows them, `{tools}` in its `before`.
        last_assistant: the format of the answer that is due, if it differs from that of earlier answers (command-r).
        schema: "tool" (the whole object), "function" (what is under its key `function`), or "python" (a stub).
        indent, separator: spaces per level of the JSON (None: one line), and the text between two schemas.
    """

    system: str
    no_system: str
    where: str = "system"
    system_message: str | None = None
    user: RoleFormat | None = None
    last_assistant: RoleFormat | None = None
    schema: str = "tool"
    indent: int | None = None
    separator: str = "\n"

    def position(self, roles: Sequence[str], whose: str) -> int | None:
        """The position of the user message that shows the tools, None for the header.

        Raises RefusedByTemplate, beginning with `whose`, if the first message is not the user's: answers before the
        message that shows the tools would have been generated without them.
        """
        if self.where == "system" or not any(roles):
            return None
        if next(filter(None, roles)) != "user":
            raise RefusedByTemplate(
                f"{whose} shows the tools in a user message, and the first turn is not one. Choose another template, "
                "such as chatml, or change the row."
            )
        users = [position for position, role in enumerate(roles) if role == "user"]
        return users[0 if self.where == "first_user" else -1]

    def shown(self, tools: Sequence[Any]) -> str:
        """The text of all schemas."""
        return self.separator.join(self._schema(tool) for tool in tools)

    def _schema(self, tool: Any) -> str:
        inner = tool.get("function", tool) if isinstance(tool, dict) else tool
        if self.schema == "python":
            return python_stub(inner)
        return to_json(tool if self.schema == "tool" else inner, self.indent)

    @property
    def literals(self) -> tuple[str, ...]:
        formats = [f for f in (self.user, self.last_assistant) if f]
        texts = [self.system, self.no_system, self.system_message or "", self.separator]
        texts += [s for f in formats for s in (f.before, f.after)]
        return tuple(t.replace(SYSTEM_SLOT, "\n").replace(TOOLS_SLOT, "\n") for t in texts)


@dataclass(frozen=True, slots=True)
class CallsFormat:
    """How the calls of an answer are written, between its text and its stop.

    Attributes:
        call: one call, with the slots `{name}`, `{arguments}` (JSON) and, if the calls have ids, `{id}`.
        before, separator, after: the text before the first call, between two, and after the last.
        after_text: the text between an answer's text and `before`. Without text, the calls follow the open prompt.
        indent: spaces per level of the arguments' JSON, None for one line.
        margin: spaces before each further line of the arguments.
        parallel, with_text: whether an answer may have several calls, and text before them.
        id_length: the number of letters and digits that an id must have, 0 for any. An id that is missing or different
            is replaced: `call00000` for the first call of the dialogue, and so on.
    """

    call: str
    before: str = ""
    separator: str = ""
    after: str = ""
    after_text: str = ""
    indent: int | None = None
    margin: int = 0
    parallel: bool = True
    with_text: bool = True
    id_length: int = 0

    def check(self, turn: Turn, said: str, where: str, name: str) -> None:
        """Raise RefusedByTemplate for an answer that the syntax cannot express; `said` is its text as it is shown."""
        problem = ""
        if len(turn.calls) > 1 and not self.parallel:
            problem = f"one tool call per answer, and an answer has {len(turn.calls)}"
        elif said and not self.with_text:
            names = ", ".join(call.name for call in turn.calls)
            problem = f"either text or tool calls in an answer, and the one that calls {names} has both"
        if problem:
            way_out = "Choose another template, such as chatml, or change the row."
            raise RefusedByTemplate(f"{where}: template {name!r} allows {problem}. {way_out}")

    def segments(self, calls: Sequence[ToolCall], ids: Sequence[str], said: str, **flags: Any) -> Iterator[Segment]:
        """The calls as segments. `flags` are those of the answer's segments."""
        yield Segment((self.after_text if said else "") + self.before, **flags)
        for k, (call, shown) in enumerate(zip(calls, ids, strict=True)):
            arguments = to_json(call.arguments, self.indent).replace("\n", "\n" + " " * self.margin)
            values = {"name": call.name, "arguments": arguments, "id": shown}
            if k:
                yield Segment(self.separator, **flags)
            yield from filled(self.call, values, "assistant", plain=True, **flags)
        yield Segment(self.after, **flags)

    def shown_ids(self, turns: Sequence[Turn]) -> list[tuple[str, ...]]:
        """For each turn, the ids of its calls; for a result, the id of its call and the name of its tool.

        A result belongs to the call with its `call_id`; without such a call, to the first of the latest answer that
        has no result yet, of the tool with its name if there is one.
        """
        made: list[tuple[str, ...]] = []
        known: list[tuple[str | None, str, str]] = []  # of each call: the id in the data, the shown id, the tool
        waiting: list[int] = []
        for turn in turns:
            found: tuple[str, ...] = ()
            if turn.calls:
                waiting = list(range(len(known), len(known) + len(turn.calls)))
                known += [(c.id, self._fitting(c.id, k), c.name) for k, c in zip(waiting, turn.calls, strict=True)]
                found = tuple(known[k][1] for k in waiting)
            elif turn.role == "tool":
                by_id = [k for k, call in enumerate(known) if call[0] is not None and call[0] == turn.call_id]
                by_name = [k for k in waiting if known[k][2] == turn.name]
                at = by_id[-1] if by_id else (by_name or waiting or [-1])[0]
                own = known[at][1:] if at >= 0 else (self._fitting(turn.call_id, len(known)), "")
                found = (own[0], turn.name or own[1])
                waiting = [k for k in waiting if k != at]
            made.append(found)
        return made

    def _fitting(self, given: str | None, number: int) -> str:
        if given and (not self.id_length or (len(given) == self.id_length and given.isascii() and given.isalnum())):
            return given
        return GENERATED_ID + str(number).zfill(max(self.id_length, LEAST_ID) - len(GENERATED_ID))

    @property
    def literals(self) -> tuple[str, ...]:
        """The literals of a call, with its slots emptied."""
        call = re.sub(rf"\{{({'|'.join(_CALL_SLOTS)})\}}", "\n", self.call)
        return (self.after_text + self.before, call, self.separator, self.after)


@dataclass(frozen=True, slots=True)
class ResultFormat(RoleFormat):
    """The text around the result of a tool, with the slots `{id}` (of its call) and `{name}` (of the tool).

    Attributes:
        separator: the text between two results in a row, which then share one turn; None: each has its own.
        content: "as_is"; "json": as a JSON string; "json_value": as it is if it looks like a JSON value (see
            `looks_like_json`), otherwise as a JSON string.
    """

    separator: str | None = None
    content: str = "as_is"

    def segments(
        self, result: Turn, said: str, shown: tuple[str, ...], around: tuple[str, str], **flags: Any
    ) -> Iterator[Segment]:
        """A result as segments.

        Args:
            said: its text, normalised as the template does it.
            shown: the id of its call, and the name of its tool.
            around: the roles of the messages before and after it.
        """
        joined = self.separator is not None
        values: dict[str, str] = {"id": shown[0], "name": shown[1]}
        before = self.separator if self.separator is not None and around[0] == "tool" else self.before
        yield from filled(before, values, "tool", **flags)
        yield Segment(said if self.content == "as_is" else self.written(result.text), "tool", **flags)
        if not (joined and around[1] == "tool"):
            yield from filled(self.after, values, "tool", **flags)

    def written(self, said: str) -> str:
        """The result as it is shown."""
        if self.content == "json" or (self.content == "json_value" and not looks_like_json(said)):
            return to_json(said)
        return said


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as the `tojson` of chat templates writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def looks_like_json(said: str) -> bool:
    """Whether a text is a JSON value, as far as a Jinja template can tell: it cannot parse one.

    >>> [looks_like_json(said) for said in ('{"a": 1}', "22.5", "null", "sunny", "")]
    [True, True, True, False, False]
    """
    if said in ("true", "false", "null") or said[:1] + said[-1:] in ("{}", "[]"):
        return True
    if len(said) > 1 and said[0] == said[-1] == '"':
        return True
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(said)) == said:
                return said not in ("nan", "inf", "-inf")
    return False


def filled(literal: str, values: Mapping[str, str], role: str, plain: bool = False, **flags: Any) -> list[Segment]:
    """A literal with the slots `{key}` of `values` replaced: the literal's parts as template text, values as `role`."""
    if not values:
        return [Segment(literal, **flags)]
    made = []
    for k, part in enumerate(re.split(rf"\{{({'|'.join(values)})\}}", literal)):
        kind = "tools" if part == "tools" else "call" if plain else ""
        made.append(Segment(values[part], role, plain=plain, kind=kind, **flags) if k % 2 else Segment(part, **flags))
    return made


def check_formats(name: str, tools: ToolsFormat | None, calls: CallsFormat | None, only_last: bool) -> None:
    """Raise SettingsError if a template cannot have these; `only_last`: it renders history differently."""
    if (tools is None) != (calls is None):
        raise SettingsError(f"template {name!r}: `tools` and `calls` belong together; define both or neither.")
    if tools and only_last:
        raise SettingsError(
            f"template {name!r}: `tools` cannot be combined with window, last_user or last_assistant; "
            "tools.last_assistant is the format of the answer that is due in a dialogue with tools."
        )


def check_stops(name: str, tools: ToolsFormat | None, after_tool: RoleFormat | None, stop: str) -> None:
    """Raise SettingsError if an answer with tools would not end with the stop of other answers."""
    for key, form in (("after_tool", after_tool), ("tools.last_assistant", tools.last_assistant if tools else None)):
        if form and not form.after.startswith(stop):
            raise SettingsError(
                f"template {name!r}: {key}.after is {form.after!r}; expected a text that begins with the stop of an "
                f"answer, {stop!r}."
            )


# --- the forms in a table


def header(value: Any, place: Place) -> str:
    """Read a header with a system message."""
    if text(value, place).count(SYSTEM_SLOT) != 1:
        raise place.wrong(value, f"a string with {SYSTEM_SLOT} exactly once, or a system message would be lost")
    return value


def tools_format(value: Any, place: Place) -> ToolsFormat:
    """Read `tools`. The schemas must have exactly one place to be shown in."""
    made = ToolsFormat(**_TOOLS.read(value, place))
    user = made.where != "system"
    if user and made.user is None:
        raise place.under("user").wrong(
            None, f"the format of the {made.where.replace('_', ' ')} message, with {{tools}}"
        )
    if not user and made.user is not None:
        raise place.under("user").wrong(asdict(made.user), f"no such key with where: {made.where}")
    shown = {"user.before": made.user.before} if made.user else {"system": made.system, "no_system": made.no_system}
    for key, literal in shown.items():
        if literal.count(TOOLS_SLOT) != 1:
            raise place.under(key).wrong(
                literal, f"a string with {TOOLS_SLOT} exactly once, or the tools would be lost"
            )
    if made.system.count(TOOLS_SLOT) != made.no_system.count(TOOLS_SLOT):
        raise place.under("no_system").wrong(made.no_system, f"{TOOLS_SLOT} in both headers or in none")
    return made


def calls_format(value: Any, place: Place) -> CallsFormat:
    """Read `calls`."""
    made = CallsFormat(**_CALLS.read(value, place))
    for slot in ("{name}", "{arguments}"):
        if made.call.count(slot) != 1:
            raise place.under("call").wrong(made.call, f"a string with {slot} exactly once")
    if 0 < made.id_length < LEAST_ID:
        raise place.under("id_length").wrong(made.id_length, f"0 for any length, or at least {LEAST_ID}")
    return made


def result_format(value: Any, place: Place) -> ResultFormat:
    """Read `tool`."""
    return read_format(value, place, ResultFormat, {"separator": or_null(text), "content": one_of(RESULTS)})


_TOOLS_KINDS: dict[str, Kind] = {
    "where": one_of(WHERE),
    "system": header,
    "no_system": text,
    "system_message": or_null(text),
    "user": or_null(role_format),
    "last_assistant": or_null(role_format),
    "schema": one_of(SCHEMAS),
    "indent": or_null(whole),
    "separator": text,
}
_TOOLS = Form(
    "the format of the tools",
    _TOOLS_KINDS,
    needed=("system", "no_system"),
    example='{system: "{system_message}\\nTools: {tools}\\n", no_system: "Tools: {tools}\\n"}',
)
_CALLS_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("call", "before", "separator", "after", "after_text"), text),
    "indent": or_null(whole),
    **dict.fromkeys(("margin", "id_length"), whole),
    **dict.fromkeys(("parallel", "with_text"), flag),
}
_CALLS = Form(
    "the format of the calls",
    _CALLS_KINDS,
    needed=("call",),
    example='{call: \'<call>{"name": "{name}", "arguments": {arguments}}</call>\'}',
)
