"""The answers before and after training, next to what the data says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastchat.pages import escaped
from fastchat.report.reading import RunFiles

_ENDS = {"length": "cut at the limit of tokens", "time": "cut at the time limit", "stopped": "cut, the run was stopped"}


@dataclass
class Prompt:
    """One prompt, what the data answers, and the answers of a run: at step 0 and after its last step."""

    prompt: str
    reference: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    others: list[dict[str, Any]] = field(default_factory=list)


def prompts_of(run: RunFiles) -> dict[tuple[str, str], Prompt]:
    """The prompts of a run by their texts, in the order of the file."""
    found: dict[tuple[str, str], Prompt] = {}
    for row in run.answers:
        texts = (str(row.get("prompt", "")), str(row.get("reference", "")))
        one = found.setdefault(texts, Prompt(*texts))
        if row["step"] == 0:
            one.before = row
        else:
            one.after = row
    return found


def answers_section(runs: Sequence[RunFiles]) -> str:
    """Every prompt with its answers; of several runs those before the first, and those after each of them."""
    found = [prompts_of(run) for run in runs]
    texts = dict.fromkeys(text for prompts in found for text in prompts)
    if not texts:
        return ""
    blocks = []
    for text in texts:
        known = [(run, prompts[text]) for run, prompts in zip(runs, found, strict=True) if text in prompts]
        before = next((one.before for _, one in known if one.before), None)
        cells = [_answer("before training", before)]
        for run, one in known:
            step = f", step {one.after['step']:,}" if one.after else ""
            name = f"{run.name}, after training{step}" if len(runs) > 1 else f"after training{step}"
            cells.append(_answer(name, one.after))
        cells.append(_cell("in the data", escaped(text[1]), ""))
        blocks.append(
            f'<article class="sample"><div class="text prompt">{escaped(text[0])}</div>'
            f'<div class="answers">{"".join(cells)}</div></article>'
        )
    return (
        '<section class="card" id="answers"><h2>Answers before and after training</h2><p class="about">To prompts of '
        "the evaluation data, exactly as the model gets them, always with the most likely token.</p>"
        f"{''.join(blocks)}</section>"
    )


def _answer(name: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return _cell(name, '<i class="none">not recorded</i>', "")
    text = str(row.get("answer", ""))
    shown = escaped(text) if text else '<i class="none">an empty answer</i>'
    return _cell(name, shown, _ENDS.get(str(row.get("end")), ""))


def _cell(name: str, content: str, note: str) -> str:
    cut = f' <span class="cut">{escaped(note)}</span>' if note else ""
    return f'<div class="answer"><h3>{escaped(name)}{cut}</h3><div class="text">{content}</div></div>'
