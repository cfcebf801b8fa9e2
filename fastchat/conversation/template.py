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
from dataclasses import dataclass, fields
from typing import Any

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
from fastchat.errors import SettingsError

# Matches control strings in a template's own text: <|im_end|>, <s>, </s>, <end_of_turn>, <｜User｜>.
# The look-behind excludes llama-2's <<SYS>>, which is plain text in every tokenizer.
CONTROL_PATTERN = re.compile(r"(?<!<)<(?:\|[^<>|\s]+\|?|/?[A-Za-z_][A-Za-z0-9_]*|｜[^<>\s]+｜)>(?!>)")
SYSTEM_SLOT = "{system_message}"
ROUND_SLOT = "{round}"
CONTENT = ("as_is", "strip", "strip_all", "rwkv")
_FORMATS = ("user", "assistant", "first_user", "tool", "last_user", "last_assistant")


@dataclass(frozen=True, slots=True)
class RoleFormat:
    """The text around a message of one role.

    `open` is the text that inference sends to have the message written; it is a prefix of `before`, and the model
    generates the rest of `before` (vicuna's space after `ASSISTANT:`).
    """

    before: str
    after: str
    open: str = ""

    def __post_init__(self) -> None:
        if not self.before.startswith(self.open):
            raise SettingsError(f"template: the open prompt {self.open!r} is not a prefix of {self.before!r}.")


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered dialogue.

    `role` is "template" for the template's own text, otherwise the role of the message. `virtual` marks an
    end-of-sequence token that the template's text does not contain: it becomes an id and is not in `Rendered.text`.
    `excluded` marks the text of a turn with "train": false: it is not supervised even if prompts are.
    """

    text: str
    role: str = "template"
    supervised: bool = False
    turn: int = -1
    virtual: bool = False
    excluded: bool = False


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
        tool: the format of a tool's output; None means that of a user message.
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
    tool: RoleFormat | None = None
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
        return False

    def reads_argument(self, name: str) -> bool:
        """Whether `Dialogue.template_arguments` of this name change what is rendered; a table reads none."""
        return False

    @property
    def stop(self) -> str:
        """The part of `assistant.after` that the model generates to end its turn; "" if EOS ends it."""
        after = (self.last_assistant or self.assistant).after
        ends = [m.end() for m in [CONTROL_PATTERN.search(after)] if m]
        ends += [after.index(s) + len(s) for s in self.stop_strings if s and s in after]
        return after[: min(ends)] if ends else after[: len(after.rstrip())]

    def literals(self, tools: bool = True) -> tuple[str, ...]:
        """All strings of the template's own text, to find the control strings in it.

        `tools`: include those around a tool's output. They contain markup such as `<tool_response>` that is not a token
        in some tokenizers of the family.
        """
        formats = [f for f in (getattr(self, key) for key in _FORMATS if tools or key != "tool") if f]
        header = (self.system.replace(SYSTEM_SLOT, "\n"), self.no_system, self.system_message)
        return header + tuple(s for f in formats for s in (f.before, f.after))

    def render(self, dialogue: Dialogue, add_generation_prompt: bool = False) -> Rendered:
        """Apply the template.

        Args:
            add_generation_prompt: end with the open assistant prompt, as inference sends it.

        Example:
            >>> get_template("vicuna_v1.1").render(Dialogue((Turn("user", "Hi"), Turn("assistant", "Yo")), "S.")).text
            'S. USER: Hi ASSISTANT: Yo</s>'
        """
        segments = list(self._header(dialogue.system, dialogue.system_train))
        turns = [(i, turn) for i, turn in enumerate(self.examples + dialogue.turns, start=-len(self.examples))]
        if self.window:
            turns = turns[-(self.window - add_generation_prompt) :]
        answered = -1 if add_generation_prompt else len(dialogue.turns) - 1
        num_user = 0
        for position, (index, turn) in enumerate(turns):
            if turn.role == "assistant":
                segments += self._assistant(turn, index, last=index == answered)
                continue
            wrap = self._wrap(turn.role, position == 0, last=index == len(dialogue.turns) - (1 if answered < 0 else 2))
            before = self._numbered(wrap.before, num_user)
            out = index >= 0 and not turn.train
            said = Segment(self.normalise(turn.text), turn.role, turn=index, excluded=out)
            segments += [Segment(before, turn=index), said]
            segments.append(Segment(wrap.after, turn=index))
            num_user += turn.role == "user"
        if add_generation_prompt:
            segments.append(Segment(self.assistant.open, turn=len(dialogue.turns)))
        return Rendered(tuple(s for s in segments if s.text))

    def renderings(self, dialogue: Dialogue) -> list[Rendered]:
        """The dialogue as the examples to train on: each trained answer is supervised in exactly one of them, after
        the prompt that inference would send.

        One rendering holds all answers, unless the template shows an answer differently once it is history.
        """
        trained = [k for k, turn in enumerate(dialogue.turns) if turn.role == "assistant" and turn.train]
        if not self.only_last or not trained:
            return [self.render(dialogue)]
        return [self.render(dialogue.before(k + 1)) for k in trained]

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
        wrap = self.assistant if role == "assistant" else self._wrap(role, first, last=False)
        return RoleFormat(self._numbered(wrap.before, num_user), wrap.after, self._numbered(wrap.open, num_user))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable table; `Template.from_dict` makes the same template from it."""
        table: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for key in _FORMATS:
            if table[key] is not None:
                table[key] = {"before": table[key].before, "after": table[key].after, "open": table[key].open}
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
        return cls(**values)

    def _wrap(self, role: str, first: bool, last: bool) -> RoleFormat:
        if last and self.last_user:
            return self.last_user
        if first and self.first_user:
            return self.first_user
        return self.tool if role == "tool" and self.tool else self.user

    def _numbered(self, text: str, num_user: int) -> str:
        return text if self.round_start is None else text.replace(ROUND_SLOT, str(self.round_start + num_user))

    def _header(self, system: str | None, train: bool) -> Iterator[Segment]:
        own = system is None
        message = self.system_message if system is None else system
        if not own and self.content == "strip_all":
            message = message.strip()
        if not message:
            yield Segment(self.no_system)
            return
        before, after = self.system.split(SYSTEM_SLOT)
        yield Segment(before)
        # The default message is template text (deepseek-chat has its BOS there); a row's own message is plain text.
        yield Segment(message, "template" if own else "system", excluded=not (own or train))
        yield Segment(after)

    def _assistant(self, turn: Turn, index: int, last: bool) -> Iterator[Segment]:
        trained = turn.train and (last or not self.only_last)
        out = bool(index >= 0 and not turn.train and turn.text.strip())
        wrap = self.last_assistant if last and self.last_assistant else self.assistant
        stop = self.stop if last or not self.last_assistant else ""
        yield Segment(wrap.open, turn=index)
        yield Segment(wrap.before[len(wrap.open) :], supervised=trained, turn=index, excluded=out)
        yield Segment(self.normalise(turn.text), "assistant", trained, index, excluded=out)
        if stop:
            yield Segment(stop, supervised=trained, turn=index, excluded=out)
        elif not self.stop:
            yield Segment("</s>", supervised=trained, turn=index, virtual=True, excluded=out)
        yield Segment(wrap.after[len(stop) :], turn=index)


# --- the form of a table


def _role_format(value: Any, place: Place) -> RoleFormat:
    keys = _ROLE_FORMAT.read(value, place)
    if not keys["before"].startswith(keys.get("open", "")):
        raise place.under("open").wrong(keys["open"], f"the prompt of inference, a prefix of {keys['before']!r}")
    return RoleFormat(**keys)


def _header(value: Any, place: Place) -> str:
    if text(value, place).count(SYSTEM_SLOT) != 1:
        raise place.wrong(value, f"a string with {SYSTEM_SLOT} exactly once, or a system message would be lost")
    return value


_ROLE_FORMAT = Form(
    "a role's format",
    {"before": text, "after": text, "open": text},
    needed=("before", "after"),
    example='{before: "Q: ", after: "\\n"}',
)
_KINDS: dict[str, Kind] = {
    "name": some_text,
    "user": _role_format,
    "assistant": _role_format,
    "system": _header,
    "no_system": text,
    "system_message": text,
    **dict.fromkeys(("first_user", "tool", "last_user", "last_assistant"), or_null(_role_format)),
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
