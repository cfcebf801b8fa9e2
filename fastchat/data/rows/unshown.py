"""Rows that say something that the template of the run cannot show."""

from __future__ import annotations

from fastchat.conversation import OWN_TEMPLATE, Dialogue, templates_with_calls
from fastchat.data.rows.bad_rows import BadRow, shown
from fastchat.data.rows.keys import REASONING_KEYS


def refuse_unshown(dialogue: Dialogue, *, reasoning: bool, calls: bool) -> None:
    """Raise BadRow for reasoning, calls or tools that the template would drop.

    `reasoning`, `calls`: whether the template shows them (`Template.shows_reasoning`, `Template.shows_calls`).
    """
    if not reasoning:
        _refuse_reasoning(dialogue)
    if not calls:
        _refuse_calls(dialogue)


def _refuse_reasoning(dialogue: Dialogue) -> None:
    reasoning = next((turn.reasoning for turn in dialogue.turns if turn.reasoning is not None), None)
    if reasoning is not None:
        raise BadRow(
            "reasoning that the template does not show",
            shown(reasoning),
            f"Reasoning needs --conv_template {OWN_TEMPLATE} and a chat template that shows it. Or write it into the "
            f"answers' texts, or remove the key ({', '.join(REASONING_KEYS)}).",
        )


def _refuse_calls(dialogue: Dialogue) -> None:
    call = next((call for turn in dialogue.turns for call in turn.calls), None)
    if call is None and not dialogue.tools:
        return
    what = f"a call of {shown(call.name)}" if call else f"the tool {shown(_name(dialogue.tools[0]))}"
    names = ", ".join([f"{OWN_TEMPLATE} (if the model's chat template does)", *templates_with_calls()])
    raise BadRow(
        "tools that the template does not show",
        what,
        f"Tools and their calls need a --conv_template that shows them: {names}. Or remove the tools, and write the "
        "calls into the texts.",
    )


def _name(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else tool
