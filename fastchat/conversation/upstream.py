"""Upstream's `Conversation`: the interface that users' template files and serving code depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastchat.conversation.dialogue import ROLES, Dialogue, Turn
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
from fastchat.conversation.styles import SeparatorStyle, Texts, message_texts, shape_of
from fastchat.conversation.template import SYSTEM_SLOT, Template
from fastchat.errors import SettingsError
from fastchat.upstream_names import refuse

IMAGE_PLACEHOLDER = "$$<image>$$"


@dataclass
class Conversation:
    """A prompt template together with the messages so far; the fields are upstream's.

    `messages` is a list of `[role, message]`. A message is a string, or a string with images: `(text, [image, ...])`;
    None is the turn that the model is to write. The first `offset` messages are the template's examples. `template`
    is set for templates that are defined as a table and have no separator style.
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

    @classmethod
    def from_template(cls, template: Template) -> Conversation:
        """Wrap a template in upstream's interface."""
        stops = list(template.stop_strings)
        return cls(
            name=template.name,
            system_template=template.system,
            system_message=template.system_message,
            roles=("user", "assistant"),
            messages=[[turn.role, turn.text] for turn in template.examples],
            offset=len(template.examples),
            sep_style=None,
            sep=template.user.after,
            sep2=template.assistant.after,
            stop_str=stops or None,
            stop_token_ids=list(template.stop_token_ids) or None,
            template=template,
        )

    @classmethod
    def from_dict(cls, table: Any, source: str = "") -> Conversation:
        """Make a conversation from a table with the fields of this class, as in a YAML file.

        `source` is the location of the table, for messages. Raises SettingsError for an unknown key, or a value of the
        wrong type.
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
                f"{len(made.messages)}, the number of messages: they precede every dialogue, others are never shown",
            )
        return made

    def to_template(self) -> Template:
        """The equivalent table, with the examples. Raises SettingsError for a style that cannot be a table."""
        if self.template is not None:
            return self.template
        examples = enumerate(self.messages[: self.offset])
        said = (Turn(self._kind(i), _text(message), train=False) for i, (_, message) in examples)
        return replace(self._table(), examples=tuple(said))

    def get_prompt(self) -> str:
        """The prompt so far, as upstream writes it: a message that is None or empty leaves its turn open.

        An image is written as `$$<image>$$` before the text of its message. Raises SettingsError for a template of a
        remote API.
        """
        table = self._table()
        # The table of a separator style already has this conversation's own message.
        own = self.template is None or self.system_message == table.system_message
        system = None if own else self.system_message
        prompt = table.render(Dialogue((), system)).text
        shown = list(enumerate(self.messages))[-table.window :]
        for i, (_, message) in shown:
            before, after, opened = self._texts(table, i, i == shown[0][0])
            if not message:
                prompt += opened
                continue
            images = message[1] if isinstance(message, tuple) else ()
            prompt += before + table.normalise(IMAGE_PLACEHOLDER * len(images) + _text(message)) + after
        return prompt

    def set_system_message(self, system_message: str) -> None:
        """Replace the system message."""
        self.system_message = system_message

    def append_message(self, role: str, message: str | None) -> None:
        """Add a turn; None as message opens the turn that the model is to write."""
        self.messages.append([role, message])

    def update_last_message(self, message: str) -> None:
        """Fill the open turn with the model's answer."""
        self.messages[-1][1] = message

    def get_images(self) -> list[Any]:
        """The images of the user messages, in order."""
        users = (message for _, message in self.messages[self.offset :: 2])
        return [image for message in users if isinstance(message, tuple) for image in message[1]]

    def to_gradio_chatbot(self) -> list[list[Any]]:
        """[question, answer] pairs, without the examples; the first image of a question (base64) as an HTML tag."""
        pairs: list[list[Any]] = []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if i % 2:
                pairs[-1][1] = message
                continue
            if isinstance(message, tuple):
                said, images = message
                tag = f'<img src="data:image/jpeg;base64,{images[0]}" alt="user upload image" />'
                message = tag + said.replace("<image>\n", "").strip()
            pairs.append([message, None])
        return pairs

    def to_openai_api_messages(self) -> list[dict[str, Any]]:
        """The conversation as OpenAI messages, without the examples; an open answer is left out."""
        system = [{"role": "system", "content": self.system_message}] if self.system_message else []
        turns = [(ROLES[i % 2], message) for i, (_, message) in enumerate(self.messages[self.offset :])]
        return system + [{"role": who, "content": said} for who, said in turns if who == "user" or said is not None]

    def extract_text_from_messages(self) -> list[tuple[str, Any]]:
        """(role, text) pairs, without images."""
        return [(role, _text(message)) for role, message in self.messages]

    def copy(self) -> Conversation:
        """An independent copy: appending to it does not change this conversation."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Conversation(**values)

    def dict(self) -> Mapping[str, Any]:
        """The fields that upstream logs."""
        return {
            "template_name": self.name,
            "system_message": self.system_message,
            "roles": self.roles,
            "messages": self.extract_text_from_messages(),
            "offset": self.offset,
        }

    def _table(self) -> Template:
        """The table without examples."""
        if self.template is not None:
            return replace(self.template, examples=())
        if self.sep_style is None or self.sep is None:
            raise SettingsError(f"template {self.name!r} has no separator style: it belongs to a remote API.")
        header, message = self.system_template, self.system_message
        if SYSTEM_SLOT not in header:
            # Upstream's deepseek-coder has its default text instead of the placeholder: a row's own would be lost.
            header, message = SYSTEM_SLOT, message or header
        shape = shape_of(self.name, self.sep_style, header, self.roles, self.sep, self.sep2)
        stops = [self.stop_str] if isinstance(self.stop_str, str) else self.stop_str or []
        return Template(
            name=self.name,
            user=shape.user,
            assistant=shape.assistant,
            system=shape.system,
            no_system=shape.no_system,
            system_message=message,
            first_user=shape.first_user,
            last_user=shape.last_user,
            last_assistant=shape.last_assistant,
            window=shape.window,
            round_start=shape.round_start,
            content=shape.content,
            stop_strings=tuple(filter(None, stops)),  # upstream ignores empty ones
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )

    def _texts(self, table: Template, i: int, first: bool) -> Texts:
        """The text around message `i`, and the text instead of it if it is open."""
        role, kind = self.messages[i][0], self._kind(i)
        last = self._last_exchange() if table.last_user or table.last_assistant else ()
        own = table.last_user if kind == "user" else table.last_assistant
        if own is None or i not in last:
            if self.sep_style is not None:
                return message_texts(self.name, self.sep_style, self.roles, self.sep or "", self.sep2, i, role)
            own = table.format_of(kind, first, sum(self._kind(k) == "user" for k in range(i)))
        return own.before, own.after, own.open

    def _last_exchange(self) -> tuple[int, ...]:
        """The indices of the last question and, if there is one, its answer."""
        said = [i for i, (_, message) in enumerate(self.messages) if message]
        last = max((i for i in said if self._kind(i) == "user"), default=len(said))
        return tuple(i for i in said if i >= last)

    def __getattr__(self, name: str) -> Any:
        """The error for a missing attribute says what to use instead."""
        return refuse("fastchat.conversation", "Conversation")(name)

    def _kind(self, i: int) -> str:
        """The role of message `i`; by position if a template gives both roles the same name."""
        role = self.messages[i][0]
        if self.template is not None and role in ROLES:
            return role
        if self.roles[0] != self.roles[1] and role in self.roles[:2]:
            return "user" if role == self.roles[0] else "assistant"
        return "user" if i % 2 == 0 else "assistant"


def _text(message: Any) -> Any:
    """A message without its images."""
    return message[0] if isinstance(message, tuple) else message


# --- the form of a table with these fields


def _roles(value: Any, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise place.wrong(value, "a list of two strings, such as [USER, ASSISTANT]")
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
    "stop_str": or_null(several(text, "a string or a list of strings")),
    "stop_token_ids": or_null(token_ids),
}
FIELDS = Form(
    "a template with `roles` and `sep_style`",
    _KINDS,
    needed=("name",),
    example='{name: mine, roles: [Q, A], sep_style: ADD_COLON_TWO, sep: "\\n", sep2: "</s>"}',
)
