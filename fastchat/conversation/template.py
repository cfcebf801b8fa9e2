"""A chat template is a table, and one loop renders it.

Rendering returns separate segments instead of one string: each `Segment` knows whether it is the template's own text
(where control strings such as `<|im_end|>` are tokens) or a message (where they are plain text), and whether the model
has to generate it. This is the only source of the label mask.

What is supervised, for every template: the answer as it appears in the rendered dialogue, minus the prompt that
inference would send at that point, up to and including the stop. With the vicuna table:

    USER: Hi ASSISTANT: Hello.</s>
                      ^^^^^^^^^^^^   inference sends "... ASSISTANT:", so the space is generated too
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from fastchat.conversation.calls import (
    SYSTEM_SLOT,
    TOOLS_SLOT,
    CallsFormat,
    RefusedByTemplate,
    ResultFormat,
    ToolsFormat,
    calls_format,
    check_formats,
    check_stops,
    filled,
    header,
    result_format,
    tools_format,
)
from fastchat.conversation.dialogue import ROLES, Dialogue, Turn
from fastchat.conversation.schema import (
    Form,
    Kind,
    Place,
    one_of,
    or_null,
    pairs,
    some_text,
    stop_texts,
    text,
    token_ids,
    whole,
)
from fastchat.conversation.segments import RoleFormat, Segment, role_format
from fastchat.errors import SettingsError

# Matches control strings in a template's own text: <|im_end|>, <s>, </s>, <end_of_turn>, <｜User｜>.
# The look-behind excludes llama-2's <<SYS>>, which is plain text in every tokenizer.
CONTROL_PATTERN = re.compile(r"(?<!<)<(?:\|[^<>|\s]+\|?|/?[A-Za-z_][A-Za-z0-9_]*|｜[^<>\s]+｜)>(?!>)")
ROUND_SLOT = "{round}"
CONTENT = ("as_is", "strip", "strip_all", "rwkv")
_FORMATS = ("user", "assistant", "first_user", "tool", "after_tool", "last_user", "last_assistant")
_CALL_TEXTS = ("tool", "after_tool")  # formats that only dialogues with tools need


@dataclass(frozen=True, slots=True)
class Rendered:
    """The template applied to one dialogue: segments in order, none of them empty.

    Attributes:
        dialogue: what it shows, where that is not the dialogue that was given: only its first turns, or with further
            template arguments. The prompt of a supervised answer is that of `dialogue.before(turn)`.
        notes: what was done to render it that the user should know, in a few words each; they are counted.
    """

    segments: tuple[Segment, ...]
    dialogue: Dialogue | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.segments if not s.virtual)


@dataclass(frozen=True)
class Template:
    """An immutable chat template.

    Attributes:
        system: the header with a system message; contains `{system_message}` exactly once.
        no_system: the header without one.
        system_message: the default message, which is part of the template's own text.
        first_user: the format of the first user message if the header already opened that turn (llama-2, gemma).
        tool: the format of a tool's result; None means that of a user message.
        after_tool: the format of an answer right after a result, if it differs (deepseek-v3).
        tools, calls: how the schemas of tools, and calls of them, are written; None means that they cannot be.
        last_user, last_assistant: the format of the last exchange if it differs from history (yuan2). Then, and with
            `window`, only the last answer is supervised: earlier ones were generated after another prompt.
        window: how many of the last turns are rendered, 0 for all (cllm renders the last exchange).
        round_start: the number of the first round if `user.before` contains `{round}` (the chatglm family).
        content: "as_is", or how every message of a turn is normalised: "strip", "strip_all" (the system message too),
            "rwkv".
        examples: few-shot turns that precede every dialogue; never supervised.
        stop_strings, stop_token_ids: what ends a generation, besides the stop at the start of `assistant.after`.
        origin: the source of the strings.
    """

    name: str
    user: RoleFormat
    assistant: RoleFormat
    system: str = SYSTEM_SLOT
    no_system: str = ""
    system_message: str = ""
    first_user: RoleFormat | None = None
    tool: ResultFormat | None = None
    after_tool: RoleFormat | None = None
    tools: ToolsFormat | None = None
    calls: CallsFormat | None = None
    last_user: RoleFormat | None = None
    last_assistant: RoleFormat | None = None
    window: int = 0
    round_start: int | None = None
    content: str = "as_is"
    examples: tuple[Turn, ...] = ()
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if self.system.count(SYSTEM_SLOT) != 1:
            raise SettingsError(
                f"template {self.name!r}: the system header {self.system!r} must contain {SYSTEM_SLOT} exactly once, "
                "otherwise a system message would be lost."
            )
        if self.content not in CONTENT:
            raise SettingsError(f"template {self.name!r}: content={self.content!r} is not {', '.join(CONTENT)}.")
        check_formats(self.name, self.tools, self.calls, self.only_last)
        check_stops(self.name, self.tools, self.after_tool, self.stop)

    @property
    def reasoning_key(self) -> str:
        """The name under which the template reads an assistant's reasoning; "" because tables render texts only."""
        return ""

    @property
    def shows_reasoning(self) -> bool:
        """Whether reasoning in a field of its own is part of a rendered answer."""
        return bool(self.reasoning_key)

    @property
    def shows_calls(self) -> bool:
        """Whether tools, and tool calls that are objects and not text, can be rendered."""
        return self.calls is not None

    def reads_argument(self, name: str) -> bool:
        """Whether `Dialogue.template_arguments` of this name change what is rendered; a table reads none."""
        return False

    @cached_property
    def stop(self) -> str:
        """The part of `assistant.after` that the model generates to end its turn; "" if EOS ends it."""
        after = (self.last_assistant or self.assistant).after
        ends = [m.end() for m in [CONTROL_PATTERN.search(after)] if m]
        ends += [after.index(s) + len(s) for s in self.stop_strings if s and s in after]
        return after[: min(ends)] if ends else after[: len(after.rstrip())]

    def literals(self, tools: bool = True) -> tuple[str, ...]:
        """All strings of the template's own text, to find the control strings in it.

        `tools`: include those around tools, calls and results. They contain markup such as `<tool_response>` that is
        not a token in some tokenizers of the family.
        """
        formats = [f for f in (getattr(self, key) for key in _FORMATS if tools or key not in _CALL_TEXTS) if f]
        found = [self.system.replace(SYSTEM_SLOT, "\n"), self.no_system, self.system_message]
        found += [s for f in formats for s in (f.before, f.after)]
        if tools:
            found += [self.tool.separator] if self.tool and self.tool.separator else []
            found += [s for f in (self.tools, self.calls) if f for s in f.literals]
        return tuple(found)

    def render(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> Rendered:
        """Apply the template.

        Args:
            add_generation_prompt: end with the open assistant prompt, as inference sends it.

        Raises:
            RefusedByTemplate: the dialogue has tools or calls that the template has no form for.

        Example:
            >>> get_template("vicuna_v1.1").render(Dialogue((Turn("user", "Hi"), Turn("assistant", "Yo")), "S.")).text
            'S. USER: Hi ASSISTANT: Yo</s>'
        """
        if self.calls is None and (dialogue.tools or any(turn.calls for turn in dialogue.turns)):
            raise RefusedByTemplate(f"{dialogue.where}: template {self.name!r} has no form for tools and their calls.")
        turns = [(i, turn) for i, turn in enumerate(self.examples + dialogue.turns, start=-len(self.examples))]
        if self.window:
            turns = turns[-(self.window - add_generation_prompt) :]
        roles = [turn.role if index >= 0 else "" for index, turn in turns]
        whose = f"{dialogue.where}: template {self.name!r}"
        tools_at = self.tools.position(roles, whose) if self.tools and dialogue.tools else None
        segments = list(self._header(dialogue, tools_at))
        ids = self.calls.shown_ids([turn for _, turn in turns]) if self.calls else [()] * len(turns)
        answered = -1 if add_generation_prompt else len(dialogue.turns) - 1
        learned_from = self.learned_from(dialogue)
        num_user, previous = 0, ""
        for at, (index, turn) in enumerate(turns):
            out, said = index >= 0 and not turn.train, self.normalise(turn.text)
            if turn.role == "assistant":
                wrap = self._answer_format(bool(dialogue.tools), index == answered, previous)
                trained = turn.train and index >= learned_from
                segments += self._assistant(turn, index, wrap, trained, dialogue.where, ids[at])
            elif turn.role == "tool" and self.tool:
                shown = ids[at] or (turn.call_id or "", turn.name or "")
                around = (previous, turns[at + 1][1].role if at + 1 < len(turns) else "")
                segments += self.tool.segments(turn, said, shown, around, turn=index, excluded=out)
            else:
                last = index == len(dialogue.turns) - (1 if answered < 0 else 2)
                wrap = self._wrap(at == 0, last, shows_tools=at == tools_at)
                tools = self.tools.shown(dialogue.tools) if self.tools and at == tools_at else ""
                before = self._numbered(wrap.before, num_user)
                segments += filled(before, {"tools": tools} if tools else {}, turn.role, turn=index, excluded=out)
                segments.append(Segment(said, turn.role, turn=index, excluded=out))
                segments.append(Segment(wrap.after, turn=index))
            num_user, previous = num_user + (turn.role == "user"), turn.role
        if add_generation_prompt:
            due = self.tools.last_assistant if self.tools and dialogue.tools else None
            wrap = due or (self.after_tool if previous == "tool" and self.after_tool else self.assistant)
            segments.append(Segment(wrap.open, turn=len(dialogue.turns)))
        return Rendered(tuple(s for s in segments if s.text))

    def renderings(self, dialogue: Dialogue) -> list[Rendered]:
        """The dialogue as the examples to train on: each trained answer is supervised in exactly one of them, after
        the prompt that inference would send. One holds all answers, unless the template shows an answer or its prompt
        differently once it is history: then each holds those that share their prompt's beginning (`learned_from`)."""
        trained = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant" and turn.train]
        if not trained or not self.learned_from(dialogue):
            return [self.render(dialogue)]
        parts = []
        while trained:
            parts.append(dialogue.before(trained[-1] + 1))
            begin = self.learned_from(parts[-1])
            trained = [k for k in trained if k < begin]
        return [replace(self.render(part), dialogue=part) for part in reversed(parts)]

    def learned_from(self, dialogue: Dialogue) -> int:
        """The first turn of which `render(dialogue)` supervises the answer: those before it had another prompt."""
        turns = dialogue.turns
        if self.only_last or (dialogue.tools and self.tools and self.tools.last_assistant):
            return len(turns) - 1
        if dialogue.tools and self.tools and self.tools.where == "last_user":
            return max((k for k, turn in enumerate(turns) if turn.role == "user"), default=0)
        return 0

    @property
    def only_last(self) -> bool:
        """Whether only the last answer can be supervised."""
        return bool(self.window or self.last_user or self.last_assistant)

    def normalise(self, text: str) -> str:
        """A message as the template writes it (most templates leave it unchanged)."""
        if self.content in ("strip", "strip_all"):
            return text.strip()
        if self.content == "rwkv":
            return text.replace("\r\n", "\n").replace("\n\n", "\n")
        return text

    def format_of(self, role: str, first: bool, num_user: int) -> RoleFormat:
        """The format of a message of `role` after `num_user` user messages; `first`: it is the first message."""
        if role == "assistant":
            wrap = self.assistant
        else:
            wrap = self.tool if role == "tool" and self.tool else self._wrap(first, last=False)
        return RoleFormat(self._numbered(wrap.before, num_user), wrap.after, self._numbered(wrap.open, num_user))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable table; `Template.from_dict` makes the same template from it."""
        table: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        table |= {key: asdict(table[key]) for key in (*_FORMATS, "tools", "calls") if table[key]}
        table["examples"] = [[t.role, t.text] for t in self.examples]
        table["stop_strings"] = list(self.stop_strings)
        table["stop_token_ids"] = list(self.stop_token_ids)
        return table

    @classmethod
    def from_dict(cls, table: Any, source: str = "") -> Template:
        """Make a template from a table with the fields of this class, as in a YAML file.

        Args:
            source: the location of the table, for messages.

        Raises:
            SettingsError: an unknown or missing key, or a value of the wrong type.

        Example:
            >>> Template.from_dict({"name": "k", "user": {"before": "Q: ", "after": "\\n"},
            ...     "assistant": {"before": "A: ", "after": "</s>", "open": "A:"}, "stop_strings": "Q:"}).stop_strings
            ('Q:',)
        """
        values = TABLE.read(table, Place.of(table, source))
        values["examples"] = tuple(Turn(role, said, train=False) for role, said in values.get("examples", ()))
        try:
            return cls(**values)
        except SettingsError as problem:  # keys that do not fit together
            raise SettingsError(f"{source}{problem}") from None

    def _wrap(self, first: bool, last: bool, shows_tools: bool = False) -> RoleFormat:
        if last and self.last_user:
            return self.last_user
        if first and self.first_user:
            return self.first_user
        return self.tools.user if shows_tools and self.tools and self.tools.user else self.user

    def _answer_format(self, tools: bool, last: bool, previous: str) -> RoleFormat:
        """The format of an answer after a message of the role `previous`."""
        if last and tools and self.tools and self.tools.last_assistant:
            return self.tools.last_assistant
        if last and self.last_assistant:
            return self.last_assistant
        return self.after_tool if previous == "tool" and self.after_tool else self.assistant

    def _numbered(self, text: str, num_user: int) -> str:
        return text if self.round_start is None else text.replace(ROUND_SLOT, str(self.round_start + num_user))

    def headers(self, tools: bool, in_header: bool) -> tuple[str, str, str]:
        """The header with and without a system message, and the default message.

        `tools`: of a dialogue with tools; `in_header`: the header shows them, or opens the turn that does.
        """
        if not tools or not self.tools:
            return self.system, self.no_system, self.system_message
        default = self.system_message if self.tools.system_message is None else self.tools.system_message
        if in_header or TOOLS_SLOT not in self.tools.system:
            return self.tools.system, self.tools.no_system, default
        return self.system, self.no_system, default

    def _header(self, dialogue: Dialogue, tools_at: int | None) -> Iterator[Segment]:
        opened = tools_at == 0 and self.first_user is not None
        with_message, without, default = self.headers(bool(dialogue.tools), tools_at is None or opened)
        own = dialogue.system is None
        message = default if dialogue.system is None else dialogue.system
        if not own and self.content == "strip_all":
            message = message.strip()
        tools = self.tools.shown(dialogue.tools) if self.tools and dialogue.tools else ""
        # The default message is template text (deepseek-chat has its BOS there); a row's own message is plain text.
        said = Segment(message, "template" if own else "system", excluded=not (own or dialogue.system_train))
        slots = {SYSTEM_SLOT: said, TOOLS_SLOT: Segment(tools, "system", kind="tools")}
        for part in _HEADER_SLOTS.split(with_message if message else without):
            yield slots[part] if part in slots else Segment(part)

    def _assistant(
        self, turn: Turn, index: int, wrap: RoleFormat, trained: bool, where: str, ids: tuple[str, ...]
    ) -> Iterator[Segment]:
        out = bool(index >= 0 and not turn.train and not turn.is_empty)
        stop = "" if self.last_assistant and wrap is not self.last_assistant else self.stop
        said = self.normalise(turn.text)
        yield Segment(wrap.open, turn=index)
        if said or not turn.calls:
            yield Segment(wrap.before[len(wrap.open) :], supervised=trained, turn=index, excluded=out)
            yield Segment(said, "assistant", trained, index, excluded=out)
        if turn.calls and self.calls:
            self.calls.check(turn, said, where, self.name)
            yield from self.calls.segments(turn.calls, ids, said, supervised=trained, turn=index, excluded=out)
        if stop:
            yield Segment(stop, supervised=trained, turn=index, excluded=out)
        elif not self.stop:
            yield Segment("</s>", supervised=trained, turn=index, virtual=True, excluded=out)
        yield Segment(wrap.after[len(stop) :], turn=index)


# --- the form of a table

_HEADER_SLOTS = re.compile(f"({re.escape(SYSTEM_SLOT)}|{re.escape(TOOLS_SLOT)})")


_KINDS: dict[str, Kind] = {
    "name": some_text,
    "user": role_format,
    "assistant": role_format,
    "system": header,
    "no_system": text,
    "system_message": text,
    **dict.fromkeys(("first_user", "after_tool", "last_user", "last_assistant"), or_null(role_format)),
    "tool": or_null(result_format),
    "tools": or_null(tools_format),
    "calls": or_null(calls_format),
    "window": whole,
    "round_start": or_null(whole),
    "content": one_of(CONTENT),
    "examples": pairs(ROLES, "[[user, Hi], [assistant, Hello]]"),
    "stop_strings": stop_texts,
    "stop_token_ids": token_ids,
    "origin": text,
}
TABLE = Form(
    "a template with `user` and `assistant`",
    _KINDS,
    needed=("name", "user", "assistant"),
    example='{name: mine, user: {before: "Q: ", after: "\\n"}, assistant: {before: "A: ", after: "</s>", open: "A:"}}',
)
