"""The error for a dialogue that the tokenizer's chat template cannot render exactly."""

from __future__ import annotations

from fastchat.conversation import Dialogue, RefusedByTemplate


def no_span(dialogue: Dialogue, turn: int, why: str, way_out: str = "") -> RefusedByTemplate:
    """The error for a turn of a dialogue, counted from 0."""
    way_out = way_out or "Choose a built-in template with --conv_template, or remove the row."
    return RefusedByTemplate(
        f"{dialogue.where}: the tokenizer's chat template gives no exact span for turn {turn + 1}: {why}. {way_out}"
    )
