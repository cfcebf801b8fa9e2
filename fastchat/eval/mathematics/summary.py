"""Records of attempts -> results: accuracy with its interval, reasons and runs of code, and accuracy by group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fastchat.data.view.terminal import safe
from fastchat.errors import counted, percent
from fastchat.eval.mathematics.comparing import compare
from fastchat.eval.mathematics.transcripts import RIGHT
from fastchat.eval.statistics import proportion

_MAX_GROUPS = 40  # values of one key that are shown
_RUNS = {"ok": "ran", "error": "failed", "timeout": "timed out", "output": "printed too much"}


def results_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json says: `accuracy` is the mean over problems of the share of right attempts.

    The interval is Wilson's at 95 %, for as many independent trials as there are problems.
    """
    made = _accuracy(records)
    made["attempts"] = len(records)
    made["reasons"] = dict(Counter(record["reason"] for record in records).most_common())
    runs = Counter(run["status"] for record in records for run in record["code_runs"])
    made["code_runs"] = {name: runs[status] for status, name in _RUNS.items() if runs[status]}
    if len(records) > made["problems"]:
        made["majority_vote"] = _majority(records)
    made["groups"] = _groups(records)
    return made


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """The results for the terminal."""
    lines = [f"accuracy: {_shown(results)}"]
    if "majority_vote" in results:
        lines.append(f"majority vote: {percent(results['majority_vote'])}")
    others = {reason: number for reason, number in results["reasons"].items() if reason != RIGHT}
    if others:
        lines.append("not right: " + ", ".join(f"{reason} × {number:,}" for reason, number in others.items()))
    runs = results["code_runs"]
    total = sum(runs.values())
    each = ", ".join(f"{name} × {number:,}" for name, number in runs.items())
    lines.append(f"code: {counted(total, 'run')}" + (f" ({each})" if total else ""))
    for key, groups in results["groups"].items():
        lines.append(f"by {key}:")
        width = max(len(safe(name)) for name in groups)
        lines += [f"  {safe(name):<{width}}  {_shown(group)}" for name, group in groups.items()]
    return lines


def _shown(made: Mapping[str, Any]) -> str:
    low, high = made["interval"]
    bounds = f"95 % interval {percent(low)} to {percent(high)}"
    return f"{percent(made['accuracy'])} of {counted(made['problems'], 'problem')} ({bounds})"


def _accuracy(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_problem: dict[int, list[bool]] = {}
    for record in records:
        by_problem.setdefault(record["number"], []).append(record["right"])
    share = math.fsum(sum(right) / len(right) for right in by_problem.values()) / len(by_problem)
    return {
        "accuracy": share,
        "interval": list(proportion(share * len(by_problem), len(by_problem))),
        "problems": len(by_problem),
    }


def _groups(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """key -> value -> accuracy, of the keys that tell problems apart and have not a value for each of them."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for record in records:
        for key, name in record["groups"].items():
            found.setdefault(key, {}).setdefault(name, []).append(record)
    return {
        key: {name: _accuracy(members) for name, members in sorted(groups.items())}
        for key, groups in found.items()
        if 1 < len(groups) <= _MAX_GROUPS
    }


def _majority(records: Sequence[Mapping[str, Any]]) -> float:
    """The share of problems whose most frequent answer is right; of several, the one that came first."""
    by_problem: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        by_problem.setdefault(record["number"], []).append(record)
    return sum(_most_frequent_is_right(members) for members in by_problem.values()) / len(by_problem)


def _most_frequent_is_right(members: Sequence[Mapping[str, Any]]) -> bool:
    clusters: list[list[Mapping[str, Any]]] = []
    for record in members:
        if record["answer"] is None:
            continue
        same = next((c for c in clusters if compare(record["answer"], c[0]["answer"]).right), None)
        if same is None:
            clusters.append([record])
        else:
            same.append(record)
    return bool(clusters) and max(clusters, key=len)[0]["right"]
