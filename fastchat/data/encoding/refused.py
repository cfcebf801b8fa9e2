"""The errors for a dialogue that the tokenizer's chat template cannot render exactly."""

from __future__ import annotations

from fastchat.conversation import Dialogue, RefusedByTemplate

_WAY_OUT = "Choose a built-in template with --conv_template, or change or remove the row."

SEPARATE = (
    "Write each call as a turn of its own, followed by its result, or choose a built-in template with --conv_template."
)


class Rejected(RefusedByTemplate):
    """A dialogue for which the chat template raises an error, or fails."""

    def __init__(self, dialogue: Dialogue, why: str, what: str = "the row", hint: str = ""):
        super().__init__(
            f"{dialogue.where}: the tokenizer's chat template rejects {what}: {why.rstrip('.!')}. {hint or _WAY_OUT}"
        )
        self.dialogue, self.why = dialogue, why

    def at(self, turn: int | None, needs_tools: bool) -> Rejected:
        """The same with the turn, counted from 0, if it is one turn that is rejected."""
        what = "the row" if turn is None else f"turn {turn + 1}"
        hint = f"It needs tools, and the row has none. {_WAY_OUT}" if needs_tools else ""
        if turn is not None and len(self.dialogue.turns[turn].calls) > 1:
            hint = SEPARATE
        return Rejected(self.dialogue, self.why, what, hint)


def no_span(dialogue: Dialogue, turn: int, why: str, way_out: str = "") -> RefusedByTemplate:
    """The error for a turn of a dialogue, counted from 0."""
    return RefusedByTemplate(
        f"{dialogue.where}: the tokenizer's chat template gives no exact span for turn {turn + 1}: {why}. "
        f"{way_out or _WAY_OUT}"
    )
