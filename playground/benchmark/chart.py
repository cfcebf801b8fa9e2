"""The table and the picture of what `bench.py` measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

_SECONDS = {"step": "step", "peer_start": "start to the end of a run of one step"}


def draw(found: dict[str, Any], folder: Path) -> None:
    """Writes table.md and bench.png into `folder`."""
    (folder / "table.md").write_text(table(found), encoding="utf-8")
    bars = {row: values for row, values in _groups(found).items() if values}
    if not bars:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(bars), 1, figsize=(8, 1.0 + sum(0.6 + 0.35 * len(v) for v in bars.values())))
    for axis, (row, values) in zip(axes if len(bars) > 1 else [axes], bars.items(), strict=True):
        middle = {name: median(one) for name, one in values.items()}
        reach = [[middle[n] - min(v) for n, v in values.items()], [max(v) - middle[n] for n, v in values.items()]]
        colors = ["tab:blue" if name.startswith("here") else "tab:gray" for name in values]
        axis.barh(list(values), list(middle.values()), xerr=reach, color=colors)
        axis.invert_yaxis()
        axis.set_title(row, loc="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(folder / "bench.png", dpi=120)
    plt.close(figure)


def table(found: dict[str, Any]) -> str:
    """Markdown: a line for everything that was measured, then what was left out and why."""
    lines = ["| measured | who | figure |", "|---|---|---|"]
    for row, figures in found.items():
        if isinstance(figures, dict) and "lines" in figures:
            lines += [f"| {row} | {name} | {' '.join(text.split())} |" for name, text in figures["lines"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in found.get("versions", {}).items())
    lines += ["", f"{found.get('machine', '')}. {versions}".strip()]
    left = [f"- {what}: {why}" for what, why in found.get("left out", {}).items()]
    return "\n".join([*lines, *(["", "Left out:", "", *left] if left else [])]) + "\n"


def _groups(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The repetitions behind each bar, by title."""
    groups = {}
    for row, figures in found.items():
        if row.startswith("tokenise "):
            groups[f"{row}: thousand tokens per CPU second (more is better)"] = figures["rates"]
        elif row in _SECONDS:
            groups[f"{_SECONDS[row]}: CPU seconds (less is better)"] = figures["seconds"]
    return groups
