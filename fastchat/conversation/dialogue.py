"""Dialogues: made from rows by `fastchat.data`, rendered by a template."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. A function call is an assistant turn; the output of a tool or an interpreter has the role "tool".

    `reasoning` is the assistant's thinking before this answer, if the data has it in a field of its own; only a
    tokenizer's own chat template can render it.
    """

    role: str
    text: str
    train: bool = True  # for user and tool turns it only matters if prompts are supervised too
    reasoning: str | None = None

    def __post_init__(self) -> None:
        assert self.role in ROLES, self.role


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A validated dialogue and where it came from.

    `system` is None if the row has no system message (the template's default is used) and "" if the row asks for none.
    `system_train` is like `Turn.train`.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    source: str = ""
    line: int = 0
    system_train: bool = True

    @property
    def num_characters(self) -> int:
        """The length of all texts of the dialogue together, in characters."""
        return sum(len(turn.text) + len(turn.reasoning or "") for turn in self.turns) + len(self.system or "")

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source or '<memory>'}:{self.line}"
