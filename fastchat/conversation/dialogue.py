"""Who said what: the value that the data room makes and a template renders."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. A function call is the assistant's; what a tool or an interpreter returned has the role "tool".

    `reasoning` is what the assistant thought before this answer, where the data keeps it apart; only a tokenizer's own
    chat template can show it.
    """

    role: str
    text: str
    train: bool = True  # of the user's and tools' turns it only matters where prompts are learned too
    reasoning: str | None = None

    def __post_init__(self) -> None:
        assert self.role in ROLES, self.role


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A validated dialogue and where it came from.

    `system` is None where the record says nothing (the template's default message is used) and "" where the record
    asks for no system message. `system_train` is as `Turn.train`.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    source: str = ""
    line: int = 0
    system_train: bool = True

    @property
    def num_characters(self) -> int:
        """Of all its texts together."""
        return sum(len(turn.text) + len(turn.reasoning or "") for turn in self.turns) + len(self.system or "")

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.source or '<memory>'}:{self.line}"
