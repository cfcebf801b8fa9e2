"""Upstream's separator styles, as data: the text around the messages and around the system message.

The texts are those of fschat 0.2.36 plus those that upstream added later (LLAMA3, GEMMA, CLLM, DEFAULT). Two styles
render an exchange differently once it is history: YUAN2 (upstream strips letters of the last message, we do not) and
CLLM, which renders only the last exchange. With these only the last answer of a dialogue can be supervised.

A style is used in two ways: `shape_of` makes the table of a template, for alternating turns; `message_texts` returns
the text that `Conversation.get_prompt` writes around a message, for any role name and any order of roles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, auto

from fastchat.conversation.template import ROUND_SLOT, SYSTEM_SLOT, RoleFormat
from fastchat.errors import SettingsError


class SeparatorStyle(IntEnum):
    """Upstream's names for how a prompt is put together."""

    ADD_COLON_SINGLE = auto()
    ADD_COLON_TWO = auto()
    ADD_COLON_SPACE_SINGLE = auto()
    NO_COLON_SINGLE = auto()
    NO_COLON_TWO = auto()
    ADD_NEW_LINE_SINGLE = auto()
    LLAMA2 = auto()
    LLAMA3 = auto()
    CHATGLM = auto()
    CHATML = auto()
    CHATINTERN = auto()
    DOLLY = auto()
    RWKV = auto()
    PHOENIX = auto()
    ROBIN = auto()
    FALCON_CHAT = auto()
    CHATGLM3 = auto()
    DEEPSEEK_CHAT = auto()
    METAMATH = auto()
    YUAN2 = auto()
    GEMMA = auto()
    CLLM = auto()
    DEFAULT = auto()


Texts = tuple[str, str, str]  # before a message, after it, and instead of it if the model is to write it
_SLOT = re.compile(r"\{(role|tag|sep2|sep|round)\}")
# Whether there is a header without a system message.
ALWAYS, UNLESS_EMPTY, NEVER = "always", "unless the system template is nothing but the message", "never"


@dataclass(frozen=True, slots=True)
class _Style:
    """The texts of a style. `{role}` is the name of the message's role, `{tag}` the name of the role at its position,
    `{round}` the number of the exchange; `{sep}` and `{sep2}` are the template's separators.

    assistant: None means the same as `user`. first: for the very first message. last_user, last_assistant: for the
    last exchange. lead, tail: before and after the system template. header: whether it is also written without a
    system message; otherwise `instead` is written.
    """

    user: Texts
    assistant: Texts | None = None
    first: Texts | None = None
    last_user: Texts | None = None
    last_assistant: Texts | None = None
    lead: str = ""
    tail: str = ""
    header: str = ALWAYS
    instead: str = ""
    content: str = "as_is"
    window: int = 0

    def texts(self, i: int) -> Texts:
        """The texts of message `i`, counted from 0."""
        return self.assistant if i % 2 and self.assistant else self.user

    @property
    def needs_sep2(self) -> bool:
        texts = (*self.user, *(self.assistant or ()), self.tail)
        return any("{sep2}" in text for text in texts)


S = SeparatorStyle
_OPEN_COLON, _OPEN_TURN, _OPEN_LINE = "{role}:", "<start_of_turn>{role}\n", "{role}:\n"
_OPEN_3 = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_COLON = ("{role}: ", "{sep}", _OPEN_COLON)
_COLON_2 = ("{role}: ", "{sep2}", _OPEN_COLON)
_ROUND = "[Round {round}]{sep}{role}："
_STYLES = {
    S.ADD_COLON_SINGLE: _Style(_COLON, tail="{sep}"),
    S.ADD_COLON_TWO: _Style(_COLON, _COLON_2, tail="{sep}"),
    S.ADD_COLON_SPACE_SINGLE: _Style(("{role}: ", "{sep}", "{role}: "), tail="{sep}"),
    S.NO_COLON_SINGLE: _Style(("{role}", "{sep}", "{role}")),
    S.NO_COLON_TWO: _Style(("{role}", "{sep}", "{role}"), ("{role}", "{sep2}", "{role}")),
    S.ADD_NEW_LINE_SINGLE: _Style(("{role}\n", "{sep}", "{role}\n"), tail="{sep}", header=UNLESS_EMPTY),
    S.LLAMA2: _Style(
        ("{tag} ", "{sep}", "{tag}"),
        ("{tag} ", "{sep2}", "{tag}"),
        first=("", " ", "{tag}"),
        header=NEVER,
        instead="[INST] ",
    ),
    S.LLAMA3: _Style((_OPEN_3, "<|eot_id|>", _OPEN_3), lead="<|begin_of_text|>", header=NEVER, content="strip"),
    S.CHATGLM: _Style((_ROUND, "{sep}", _ROUND), ("{role}：", "{sep}", "{role}："), tail="{sep}", header=UNLESS_EMPTY),
    S.CHATML: _Style(("{role}\n", "{sep}\n", "{role}\n"), tail="{sep}\n", header=UNLESS_EMPTY),
    S.CHATINTERN: _Style(("<s>{role}:", "{sep}\n", "<s>{role}:"), (_OPEN_COLON, "{sep2}\n", _OPEN_COLON)),
    S.DOLLY: _Style((_OPEN_LINE, "{sep}", _OPEN_LINE), (_OPEN_LINE, "{sep2}\n\n", _OPEN_LINE)),
    S.RWKV: _Style(("{role}: ", "\n\n", _OPEN_COLON), content="rwkv"),
    S.PHOENIX: _Style(("{role}: <s>", "</s>", "{role}: <s>")),
    S.ROBIN: _Style((_OPEN_LINE, "{sep}", _OPEN_LINE), tail="{sep}"),
    S.FALCON_CHAT: _Style(_COLON, tail="{sep}", header=NEVER),
    S.CHATGLM3: _Style(("{role}\n", "", "{role}"), header=NEVER),
    S.DEEPSEEK_CHAT: _Style(_COLON, _COLON_2),
    S.METAMATH: _Style(
        (_OPEN_LINE, "{sep}", _OPEN_LINE), ("{role}: {sep2}", "", "{role}: {sep2}"), tail="{sep}", header=UNLESS_EMPTY
    ),
    S.YUAN2: _Style(
        ("", "<n>", ""), last_user=("", "{sep}", ""), last_assistant=("", "<eod>", ""), tail="{sep2}", header=NEVER
    ),
    # Gemma has no system role: Google's template puts the message before the first user message. Upstream drops it.
    S.GEMMA: _Style(
        (_OPEN_TURN, "{sep}", _OPEN_TURN), first=("", "{sep}", ""), lead=f"<bos>{_OPEN_TURN}", tail="\n\n", header=NEVER
    ),
    S.CLLM: _Style(_COLON, _COLON_2, tail="{sep}", window=2),
    S.DEFAULT: _Style(("{role}: ", "\n", _OPEN_COLON), tail="\n"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The result of applying a style to a system template, two role names and two separators."""

    system: str
    no_system: str
    user: RoleFormat
    assistant: RoleFormat
    first_user: RoleFormat | None = None
    round_start: int | None = None
    content: str = "as_is"
    last_user: RoleFormat | None = None
    last_assistant: RoleFormat | None = None
    window: int = 0


def shape_of(
    name: str, style: SeparatorStyle, system_template: str, roles: tuple[str, ...], sep: str, sep2: str | None
) -> Shape:
    """Translate one of upstream's templates; `system_template` contains `{system_message}`.

    Raises:
        SettingsError: the style needs a second separator, and there is none.
    """
    how = _STYLES[style]
    if how.needs_sep2 and sep2 is None:
        raise SettingsError(f"template {name!r}: sep_style {style.name} needs sep2, the text after an assistant turn.")

    def filled(text: str, i: int = 0) -> str:
        return _filled(text, role=roles[i], tag=roles[i], sep=sep, sep2=sep2 or "", round=ROUND_SLOT)

    def around(texts: Texts | None, i: int) -> RoleFormat | None:
        return RoleFormat(*(filled(text, i) for text in texts)) if texts else None

    lead, tail = filled(how.lead), filled(how.tail)
    empty = system_template.replace(SYSTEM_SLOT, "")
    has_header = how.header == ALWAYS or (how.header == UNLESS_EMPTY and empty)
    first = (how.first[0], how.first[1], "") if how.first else None  # a dialogue's first turn is never open
    user, assistant = around(how.user, 0), around(how.texts(1), 1)
    assert user and assistant
    return Shape(
        lead + system_template + tail,
        lead + (empty + tail if has_header else how.instead),
        user,
        assistant,
        around(first, 0),
        first_round(name) if any(ROUND_SLOT in text for text in how.user) else None,
        how.content,
        around(how.last_user, 0),
        around(how.last_assistant, 1),
        how.window,
    )


def message_texts(
    name: str, style: SeparatorStyle, roles: tuple[str, ...], sep: str, sep2: str | None, i: int, role: str
) -> Texts:
    """The text that upstream writes around message `i` (counted from 0) of the role `role`.

    As in upstream, separators depend on the position of a message, names on its role.
    """
    how = _STYLES[style]
    texts = how.first if i == 0 and how.first else how.texts(i)
    values = {"role": role, "tag": roles[i % 2], "sep": sep, "sep2": sep2 or ""}
    before, after, opened = (_filled(text, **values, round=str(first_round(name) + i // 2)) for text in texts)
    return before, after, opened


def first_round(name: str) -> int:
    """The number of the first exchange in the styles that count them."""
    return 1 if name == "chatglm2" else 0


def _filled(text: str, **values: str) -> str:
    return _SLOT.sub(lambda slot: values[slot[1]], text)
