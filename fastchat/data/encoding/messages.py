"""A dialogue as the messages that a Jinja chat template reads, in the form that this template accepts.

Templates differ in where they read the reasoning, whether the arguments of a call are an object or JSON text, what an
answer without text is, and more; `MessageForm` has one field for each, and learn.py finds their values by trying.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastchat.conversation import Dialogue, Turn
from fastchat.conversation.dialogue import ToolCall
from fastchat.data.encoding.marks import Marks, Text

ABSENT, EMPTY_PART = "absent", "<empty part>"
# Where the reasoning is, if it has no key of its own: in the text, between tags; or as a part of the content.
IN_TEXT, AS_PART, AS_PARTS = "<text>", "<part>", "<parts>"
_TAGS = ("<think>", "</think>")


@dataclass(frozen=True)
class MessageForm:
    """How one template wants its messages.

    Attributes:
        parts: content is a list of parts, `[{"type": "text", "text": ...}]`.
        reasoning, call_reasoning: the key of the reasoning before an answer, and before calls; "" if there is none.
        opening, closing: what IN_TEXT writes around it.
        tags: the strings that separate reasoning from text.
        no_text: the content of an answer that only calls tools: "", ABSENT or EMPTY_PART, a list with an empty text
            (never null, which transformers removes).
        text_arguments: the arguments of a call are JSON text.
        own_ids: the ids of calls are replaced by others of nine letters and digits (Mistral's templates demand that).
        named_ids: the ids of calls are replaced by `functions.NAME:NUMBER` if they lack the name: Kimi-K2's templates
            show the id of a call and no other name, or write that id themselves.
        names: a tool's result has the name of the tool even if the data does not name it (otherwise only if it does, as
            in what inference sends).
        result_parts: the content of a tool's result is a list of parts, even if that of other messages is not.
        tool_role, system_roles: the role of a tool's result; the roles of the system message that are shown.
    """

    parts: bool = False
    reasoning: str = ""
    call_reasoning: str = ""
    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"
    tags: tuple[str, ...] = _TAGS
    no_text: str = ""
    text_arguments: bool = False
    own_ids: bool = False
    named_ids: bool = False
    names: bool = False
    result_parts: bool = False
    tool_role: str = "tool"
    system_roles: tuple[str, ...] = ("system", "developer")


PLAIN = MessageForm()


def to_messages(dialogue: Dialogue, form: MessageForm = PLAIN, marks: Marks | None = None) -> list[dict[str, Any]]:
    """The messages of a dialogue, with `marks` in their texts if they are given."""
    writer = _Writer(form, marks, _call_ids(dialogue, form))
    messages = [] if dialogue.system is None else [writer.system(dialogue)]
    for number, turn in enumerate(dialogue.turns):
        if turn.role == "assistant":
            messages.append(writer.answer(number, turn))
        elif turn.role == "tool":
            messages.append(writer.result(number, turn))
        else:
            said = writer.text(turn.text, number, turn.role)
            messages.append({"role": turn.role, "content": writer.content(said)})
    return messages


def to_openai(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The messages of a dialogue as its data has them: calls have ids, and results names, only if the data has them."""
    messages: list[dict[str, Any]] = []
    if dialogue.system is not None:
        messages.append({"role": dialogue.system_role, "content": dialogue.system})
    for turn in dialogue.turns:
        messages.append({"role": turn.role, "content": turn.text})
        if turn.calls:
            messages[-1]["tool_calls"] = [
                {
                    **({} if call.id is None else {"id": call.id}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in turn.calls
            ]
        given = (("name", turn.name), ("tool_call_id", turn.call_id))
        messages[-1].update({key: value for key, value in given if value is not None})
    return messages


def to_tools(dialogue: Dialogue, marks: Marks | None = None) -> list[Any] | None:
    """The tools of a dialogue as the chat template reads them; None if it has none."""
    if not dialogue.tools:
        return None
    return list(dialogue.tools if marks is None else marks.value(list(dialogue.tools), Text(-1, "system", "setting")))


@dataclass(frozen=True)
class _Ids:
    """Ids of the calls by (turn, number of the call), and of the results by turn; names of the called tools by id."""

    calls: Mapping[tuple[int, int], str] = field(default_factory=dict)
    results: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Writer:
    form: MessageForm
    marks: Marks | None
    ids: _Ids

    def text(self, text: str, number: int, role: str) -> str:
        if self.marks is None:
            return text
        of = Text(number, role)
        return self.marks.answer(text, of, self.form.tags) if role == "assistant" else self.marks.text(text, of)

    def content(self, text: str, parts: bool = False) -> Any:
        return [{"type": "text", "text": text}] if parts or self.form.parts else text

    def system(self, dialogue: Dialogue) -> dict[str, Any]:
        shown = self.form.system_roles
        role = dialogue.system_role if dialogue.system_role in shown or not shown else shown[0]
        return {"role": role, "content": self.content(self.text(dialogue.system or "", -1, "system"))}

    def answer(self, number: int, turn: Turn) -> dict[str, Any]:
        """The message of an answer: its text, reasoning and calls."""
        message: dict[str, Any] = {"role": "assistant"}
        key = self.form.call_reasoning if turn.calls else self.form.reasoning
        said = self.text(turn.text, number, "assistant")
        content = self.content(said)
        if turn.reasoning is not None and key:
            thought = turn.reasoning
            if self.marks is not None:
                thought = self.marks.text(thought, Text(number, "assistant", "reasoning"))
            if key == IN_TEXT:
                content = self.content(f"{self.form.opening}{thought.strip()}{self.form.closing}{said}")
            elif key in (AS_PART, AS_PARTS):
                inner = thought if key == AS_PART else [{"type": "text", "text": thought}]
                content = [{"type": "thinking", "thinking": inner}, {"type": "text", "text": said}]
            else:
                message[key] = thought
        if turn.text or not turn.calls or not isinstance(content, str) or content:
            message["content"] = content
        elif self.form.no_text != ABSENT:
            message["content"] = self.content("", True) if self.form.no_text == EMPTY_PART else self.form.no_text
        if turn.calls:
            message["tool_calls"] = [self.call(number, k, call) for k, call in enumerate(turn.calls)]
        return message

    def call(self, number: int, k: int, call: ToolCall) -> dict[str, Any]:
        """The call number `k` of the turn `number`, in OpenAI's form."""
        of = Text(number, "assistant", "call", k)
        marks = self.marks
        name = call.name if marks is None else marks.value(call.name, Text(number, "assistant", "name", k))
        arguments = call.arguments if marks is None else marks.value(call.arguments, of)
        if self.form.text_arguments and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        id_ = self.ids.calls.get((number, k))
        return made if id_ is None else {"id": id_ if marks is None else marks.word(id_, of), **made}

    def result(self, number: int, turn: Turn) -> dict[str, Any]:
        """The message of a tool's result, with the name and the id of its call."""
        of = Text(number, "tool")
        content = self.content(self.text(turn.text, number, "tool"), self.form.result_parts)
        message = {"role": self.form.tool_role, "content": content}
        name = turn.name or (self.ids.names.get(number) if self.form.names else None)
        id_ = self.ids.results.get(number)
        for key, value in (("name", name), ("tool_call_id", id_)):
            if value is not None:
                message[key] = value if self.marks is None else self.marks.word(value, of)
        return message


def _call_ids(dialogue: Dialogue, form: MessageForm) -> _Ids:
    """Ids of all calls and results. A result without an id belongs to the first call before it that has no result."""
    if not any(turn.calls for turn in dialogue.turns):
        return _Ids(results={k: t.call_id for k, t in enumerate(dialogue.turns) if t.call_id is not None})
    calls: dict[tuple[int, int], str] = {}
    results: dict[int, str] = {}
    names: dict[int, str] = {}
    given: dict[str, tuple[str, str]] = {}  # id in the data -> our id, name
    waiting: list[tuple[str, str]] = []
    for number, turn in enumerate(dialogue.turns):
        if turn.calls:
            waiting = []
        for k, call in enumerate(turn.calls):
            made = f"call{len(calls):05d}"
            own = made if form.own_ids or call.id is None else call.id
            own = f"functions.{call.name}:{len(calls)}" if form.named_ids and call.name not in own else own
            calls[number, k] = own
            waiting.append((own, call.name))
            if call.id is not None:
                given[call.id] = (own, call.name)
        if turn.role == "tool":
            pair = given.get(turn.call_id) if turn.call_id is not None else None
            if pair is None and turn.call_id is None and waiting:
                pair = next((p for p in waiting if p[1] == turn.name), waiting[0])
            if pair in waiting:
                waiting.remove(pair)
            if pair is not None:
                results[number], names[number] = pair
            elif turn.call_id is not None:
                results[number] = turn.call_id
    return _Ids(calls, results, names)
