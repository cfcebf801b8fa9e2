"""Upstream's separator styles, each translated into the table.

The shapes are those of fschat 0.2.36 plus those that upstream added later (LLAMA3, GEMMA, CLLM, DEFAULT). Two of them
show an exchange otherwise once it is history: YUAN2 (upstream eats letters of the last message there, we do not) and
CLLM, which shows only the last exchange. With these only the last answer of a dialogue can be learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto

from fastchat.conversation.template import SYSTEM_SLOT, RoleFormat
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


@dataclass(frozen=True, slots=True)
class Shape:
    """What a style makes of a system template, two role names and two separators."""

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


S = SeparatorStyle
# style: (between role and message, between role and an open prompt, separator after the system header,
#         header kept when there is no system message)
_PLAIN = {
    S.ADD_COLON_SINGLE: (": ", ":", "{sep}", True),
    S.ADD_COLON_TWO: (": ", ":", "{sep}", True),
    S.ADD_COLON_SPACE_SINGLE: (": ", ": ", "{sep}", True),
    S.NO_COLON_SINGLE: ("", "", "", True),
    S.NO_COLON_TWO: ("", "", "", True),
    S.ADD_NEW_LINE_SINGLE: ("\n", "\n", "{sep}", False),
    S.CHATML: ("\n", "\n", "{sep}\n", False),
    S.RWKV: (": ", ":", "", True),
    S.PHOENIX: (": <s>", ": <s>", "", True),
    S.ROBIN: (":\n", ":\n", "{sep}", True),
    S.FALCON_CHAT: (": ", ":", "{sep}", None),
    S.CHATGLM3: ("\n", "", "", None),
    S.DEEPSEEK_CHAT: (": ", ":", "", True),
    S.DOLLY: (":\n", ":\n", "", True),
    S.DEFAULT: (": ", ":", "\n", True),
    S.CLLM: (": ", ":", "{sep}", True),
}
_TWO_SEPARATORS = (
    S.ADD_COLON_TWO,
    S.NO_COLON_TWO,
    S.LLAMA2,
    S.CHATINTERN,
    S.DOLLY,
    S.DEEPSEEK_CHAT,
    S.METAMATH,
    S.CLLM,
    S.YUAN2,
)


def shape_of(
    name: str, style: SeparatorStyle, system_template: str, roles: tuple[str, ...], sep: str, sep2: str | None
) -> Shape:
    """Translate one of upstream's templates.

    Raises:
        SettingsError: for a second separator that the style needs and nobody gave.
    """
    if style in _TWO_SEPARATORS and sep2 is None:
        raise SettingsError(f"template {name!r}: sep_style {style.name} needs sep2, the text after an assistant turn.")
    second = sep2 or ""
    if style in _PLAIN:
        return _plain(style, system_template, roles, sep, second)
    return _SPECIAL[style](name, system_template, roles, sep, second)


def _plain(style: SeparatorStyle, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    joint, open_joint, after_header, keep = _PLAIN[style]
    user_after, assistant_after = sep, sep2 if style in _TWO_SEPARATORS else sep
    if style == S.CHATML:
        user_after = assistant_after = sep + "\n"
    elif style == S.RWKV:
        user_after = assistant_after = "\n\n"
    elif style == S.PHOENIX:
        user_after = assistant_after = "</s>"
    elif style == S.CHATGLM3:
        user_after = assistant_after = ""
    elif style == S.DEFAULT:
        user_after = assistant_after = "\n"
    elif style == S.DOLLY:
        assistant_after += "\n\n"
    tail = after_header.replace("{sep}", sep)
    empty = system.replace(SYSTEM_SLOT, "")
    no_system = "" if keep is None or (not keep and not empty) else empty + tail
    return Shape(
        system + tail,
        no_system,
        RoleFormat(roles[0] + joint, user_after, roles[0] + open_joint),
        RoleFormat(roles[1] + joint, assistant_after, roles[1] + open_joint),
        content="rwkv" if style == S.RWKV else "as_is",
        window=2 if style == S.CLLM else 0,
    )


def _llama2(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    user = RoleFormat(roles[0] + " ", sep, roles[0])
    return Shape(system, "[INST] ", user, RoleFormat(roles[1] + " ", sep2, roles[1]), first_user=RoleFormat("", " "))


def _llama3(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    header = [f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in roles]
    user, assistant = (RoleFormat(h, "<|eot_id|>", h) for h in header[:2])
    return Shape("<|begin_of_text|>" + system, "<|begin_of_text|>", user, assistant, content="strip")


def _gemma(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    # Gemma has no system role: its makers put the message in front of the first user turn. Upstream drops it.
    user_open, model_open = (f"<start_of_turn>{role}\n" for role in roles[:2])
    return Shape(
        f"<bos>{user_open}{SYSTEM_SLOT}\n\n",
        f"<bos>{user_open}",
        RoleFormat(user_open, sep, user_open),
        RoleFormat(model_open, sep, model_open),
        first_user=RoleFormat("", sep),
    )


def _chatglm(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    empty = system.replace(SYSTEM_SLOT, "")
    ask, answer = (f"{role}：" for role in roles[:2])
    return Shape(
        system + sep,
        empty + sep if empty else "",
        RoleFormat(f"[Round {{round}}]{sep}{ask}", sep, f"[Round {{round}}]{sep}{ask}"),
        RoleFormat(answer, sep, answer),
        round_start=1 if name == "chatglm2" else 0,
    )


def _chatintern(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    user, assistant = f"<s>{roles[0]}:", f"{roles[1]}:"
    no_system = system.replace(SYSTEM_SLOT, "")
    return Shape(system, no_system, RoleFormat(user, sep + "\n", user), RoleFormat(assistant, sep2 + "\n", assistant))


def _metamath(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    user, assistant = f"{roles[0]}:\n", f"{roles[1]}: {sep2}"
    empty = system.replace(SYSTEM_SLOT, "")
    return Shape(
        system + sep, empty + sep if empty else "", RoleFormat(user, sep, user), RoleFormat(assistant, "", assistant)
    )


def _yuan2(name: str, system: str, roles: tuple[str, ...], sep: str, sep2: str) -> Shape:
    said = RoleFormat("", "<n>")
    return Shape(system + sep2, "", said, said, last_user=RoleFormat("", sep), last_assistant=RoleFormat("", "<eod>"))


_SPECIAL = {
    S.YUAN2: _yuan2,
    S.LLAMA2: _llama2,
    S.LLAMA3: _llama3,
    S.GEMMA: _gemma,
    S.CHATGLM: _chatglm,
    S.CHATINTERN: _chatintern,
    S.METAMATH: _metamath,
}
