"""Dialogues: made from rows by `fastchat.data`, rendered by a template."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant.

    `arguments` is the parsed JSON value, an object unless the data says otherwise. `id` is what the result of the call
    refers to (`Turn.call_id`), None if the data has no ids.
    """

    name: str
    arguments: Any
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn.

    Attributes:
        role: "user", "assistant", or "tool" for the result of a tool call.
        text: what is said; "" for an assistant turn that only calls tools.
        train: whether an answer is trained on (for user and tool turns it only matters if prompts are supervised too).
        reasoning: the assistant's thinking before this answer, if the data has it in a field of its own.
        calls: the tool calls of an assistant turn, after its text.
        name: the name of the tool whose result this is, if it is known.
        call_id: the id of the call whose result this is.
    """

    role: str
    text: str
    train: bool = True
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None

    def __post_init__(self) -> None:
        assert self.role in ROLES, self.role
        assert not self.calls or self.role == "assistant", self.role

    def __reduce__(self) -> Any:
        return Turn, _values_of_turn(self)  # a fraction of the time that a frozen dataclass takes by itself

    @property
    def is_empty(self) -> bool:
        """Whether the turn has neither text (other than white space) nor calls."""
        return not self.text.strip() and not self.calls


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A validated dialogue and where it came from.

    Attributes:
        system: None if the row has no system message (the template's default is used), "" if the row asks for none.
        system_train: like `Turn.train`, of the system message.
        system_role: "system" or "developer": the role under which a Jinja template receives the system message.
        tools: JSON schemas of the tools that the assistant can call, in OpenAI's form:
            {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.
        template_arguments: further arguments of the chat template, such as {"enable_thinking": False}.
        plain: a text without turns, for continued pre-training: the text of the only turn (role "assistant") is encoded
            without a template, and every token of it and the EOS after it are trained on.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    source: str = ""
    line: int = 0
    system_train: bool = True
    system_role: str = "system"
    tools: tuple[Any, ...] = ()
    template_arguments: dict[str, Any] = field(default_factory=dict)
    plain: bool = False

    def __reduce__(self) -> Any:
        return Dialogue, _values_of_dialogue(self)

    @property
    def num_characters(self) -> int:
        """The length of all texts of the dialogue together, in characters; calls and tools as JSON, approximately."""
        texts = sum(len(turn.text) + len(turn.reasoning or "") + _length(turn.calls) for turn in self.turns)
        return texts + len(self.system or "") + _length(self.tools)

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source or '<memory>'}:{self.line}"

    def before(self, turn: int) -> Dialogue:
        """The dialogue up to, but without, the turn of this number: what inference has when that turn is due."""
        return replace(self, turns=self.turns[:turn])

    def to_dict(self) -> dict[str, Any]:
        """What the dialogue says, JSON-able, without its location; `from_dict` makes an equal dialogue of it."""
        made = asdict(self)
        return {key: value for key, value in made.items() if key not in ("source", "line")}

    @classmethod
    def from_dict(cls, made: dict[str, Any], source: str = "", line: int = 0) -> Dialogue:
        """The dialogue that `to_dict` described."""
        turns = tuple(
            Turn(**{**turn, "calls": tuple(ToolCall(**call) for call in turn["calls"])}) for turn in made["turns"]
        )
        return cls(**{**made, "turns": turns, "tools": tuple(made["tools"])}, source=source, line=line)


_values_of_turn, _values_of_dialogue = (attrgetter(*(field.name for field in fields(c))) for c in (Turn, Dialogue))


def _length(values: tuple[Any, ...]) -> int:
    return len(repr(values)) if values else 0
