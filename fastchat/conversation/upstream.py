"""Upstream's `Conversation`: the interface that people's own templates and serving code are written against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastchat.conversation.dialogue import Dialogue, Turn
from fastchat.conversation.schema import (
    Form,
    Kind,
    Place,
    one_of,
    or_null,
    pairs,
    several,
    some_text,
    text,
    token_ids,
    whole,
)
from fastchat.conversation.styles import SeparatorStyle, shape_of
from fastchat.conversation.template import SYSTEM_SLOT, Template
from fastchat.errors import SettingsError
from fastchat.upstream_names import refuse


@dataclass
class Conversation:
    """A prompt template together with the messages so far; the fields are upstream's.

    `messages` holds `[role, text]` pairs; a text of None is the turn that the model is to write. `template` is set for
    templates that are defined as a table and have no separator style.
    """

    name: str
    system_template: str = SYSTEM_SLOT
    system_message: str = ""
    roles: tuple[str, ...] = ("USER", "ASSISTANT")
    messages: list[list[Any]] = field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle | None = SeparatorStyle.ADD_COLON_SINGLE
    sep: str | None = "\n"
    sep2: str | None = None
    stop_str: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    template: Template | None = None

    def __post_init__(self) -> None:
        self.messages = [list(m) for m in self.messages]
        self.roles = tuple(self.roles)
        if SYSTEM_SLOT not in self.system_template:
            # Upstream's deepseek-coder has its default text where the slot belongs: a record's own would be lost.
            self.system_message = self.system_message or self.system_template
            self.system_template = SYSTEM_SLOT

    @classmethod
    def from_template(cls, template: Template) -> Conversation:
        """The same template behind upstream's interface."""
        stops = list(template.stop_strings)
        return cls(
            name=template.name,
            system_template=template.system,
            system_message=template.system_message,
            roles=("user", "assistant"),
            sep_style=None,
            sep=template.user.after,
            sep2=template.assistant.after,
            stop_str=stops or None,
            stop_token_ids=list(template.stop_token_ids) or None,
            template=template,
        )

    @classmethod
    def from_dict(cls, table: Any, source: str = "") -> Conversation:
        """The template that a table with the fields of this class describes, as in a YAML file.

        `source` is where the table stands, for messages. Raises SettingsError for an unknown key, or a value of another
        kind than its key needs.
        """
        place = Place.of(table, source)
        values = FIELDS.read(table, place)
        values["sep_style"] = SeparatorStyle[values.get("sep_style", "ADD_COLON_SINGLE")]
        stops = {key: list(values[key]) for key in ("stop_str", "stop_token_ids") if values.get(key)}
        made = cls(**{**values, **stops})
        for number, (role, _) in enumerate(made.messages, start=1):
            one_of(made.roles)(role, place.under("messages").under(number))
        if made.offset != len(made.messages):
            raise place.under("offset").wrong(
                made.offset,
                f"{len(made.messages)}: so many messages precede every dialogue, and others are never shown",
            )
        return made

    def to_template(self) -> Template:
        """The table that says the same. Raises SettingsError for a style that is no table."""
        if self.template is not None:
            return self.template
        if self.sep_style is None or self.sep is None:
            raise SettingsError(f"template {self.name!r} has no separator style: it belongs to a remote API.")
        shape = shape_of(self.name, self.sep_style, self.system_template, self.roles, self.sep, self.sep2)
        stops = [self.stop_str] if isinstance(self.stop_str, str) else self.stop_str or []
        return Template(
            name=self.name,
            user=shape.user,
            assistant=shape.assistant,
            system=shape.system,
            no_system=shape.no_system,
            system_message=self.system_message,
            first_user=shape.first_user,
            last_user=shape.last_user,
            last_assistant=shape.last_assistant,
            window=shape.window,
            round_start=shape.round_start,
            content=shape.content,
            examples=tuple(Turn(self._kind(i), self._text(m), train=False) for i, m in enumerate(self._examples())),
            stop_strings=tuple(filter(None, stops)),  # upstream takes an empty one for none
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )

    def get_prompt(self) -> str:
        """The prompt so far. A last message of None leaves the assistant's turn open.

        Unlike upstream, an empty string is a message: it does not turn a finished turn into an open one.
        """
        template = self.to_template()
        turns = [(self._kind(i), m[1]) for i, m in enumerate(self.messages)][len(template.examples) :]
        open_role = turns[-1][0] if turns and turns[-1][1] is None else None
        spoken = tuple(Turn(kind, self._text([kind, text])) for kind, text in turns if text is not None)
        system = None if self.system_message == template.system_message else self.system_message
        prompt = template.render(Dialogue(spoken, system), add_generation_prompt=open_role == "assistant").text
        return prompt + template.open_user(len(spoken) // 2) if open_role == "user" else prompt

    def set_system_message(self, system_message: str) -> None:
        """Replace the system message."""
        self.system_message = system_message

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; None as message opens the turn that the model is to write."""
        self.messages.append([role, message])

    def update_last_message(self, message: str) -> None:
        """Put the model's answer in the place of the open turn."""
        self.messages[-1][1] = message

    def to_openai_api_messages(self) -> list[dict[str, str]]:
        """The conversation as OpenAI messages; few-shot examples are left out."""
        system = [{"role": "system", "content": self.system_message}] if self.system_message else []
        turns = list(enumerate(self.messages))[self.offset :]
        return system + [{"role": self._kind(i), "content": self._text(m)} for i, m in turns if m[1] is not None]

    def to_gradio_chatbot(self) -> list[list[Any]]:
        """[question, answer] pairs of texts, None for the open answer."""
        texts = [text for _, text in self.extract_text_from_messages()[self.offset :]]
        return [[*texts[i : i + 2], None][:2] for i in range(0, len(texts), 2)]

    def extract_text_from_messages(self) -> list[tuple[str, Any]]:
        """(role, text) pairs, without images."""
        return [(role, text[0] if isinstance(text, tuple) else text) for role, text in self.messages]

    def copy(self) -> Conversation:
        """A conversation of its own: appending to it leaves this one alone."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Conversation(**values)

    def dict(self) -> Mapping[str, Any]:
        """What upstream logs of a conversation."""
        return {
            "template_name": self.name,
            "system_message": self.system_message,
            "roles": self.roles,
            "messages": self.extract_text_from_messages(),
            "offset": self.offset,
        }

    def __getattr__(self, name: str) -> Any:
        """What is missing says what to use instead."""
        return refuse("fastchat.conversation", "Conversation")(name)

    def _examples(self) -> Sequence[list[Any]]:
        return self.messages[: self.offset]

    def _kind(self, i: int) -> str:
        """Whose turn message `i` is; by position where a template gives both roles the same name."""
        role = self.messages[i][0]
        if self.roles[0] != self.roles[1] and role in self.roles[:2]:
            return "user" if role == self.roles[0] else "assistant"
        return "user" if i % 2 == 0 else "assistant"

    @staticmethod
    def _text(message: Sequence[Any]) -> str:
        return message[1][0] if isinstance(message[1], tuple) else message[1]


# --- the form of a table with these fields


def _roles(value: Any, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise place.wrong(value, "a list of two texts, such as [USER, ASSISTANT]")
    return tuple(text(entry, place.under(number)) for number, entry in enumerate(value, start=1))


_KINDS: dict[str, Kind] = {
    "name": some_text,
    "system_template": text,
    "system_message": text,
    "roles": _roles,
    "messages": pairs(None, "[[USER, Hi], [ASSISTANT, Hello]]"),
    "offset": whole,
    "sep_style": one_of(SeparatorStyle.__members__),
    "sep": text,
    "sep2": or_null(text),
    "stop_str": or_null(several(text, "a text or a list of texts")),
    "stop_token_ids": or_null(token_ids),
}
FIELDS = Form(
    "a template with `roles` and `sep_style`",
    _KINDS,
    needed=("name",),
    example='{name: mine, roles: [Q, A], sep_style: ADD_COLON_TWO, sep: "\\n", sep2: "</s>"}',
)
