"""The results of an evaluation: as numbers for files, and as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastchat.errors import percent
from fastchat.eval.statistics import proportion, ratio


@dataclass(frozen=True)
class Tokens:
    """The supervised tokens of one answer in one example: their number, summed loss in nats, and how many the model
    would have chosen itself. `row`: of the dialogue."""

    row: int
    source: str
    answer: int
    number: int
    loss: float
    right: int


@dataclass(frozen=True)
class Scored:
    """One generated answer. `right` is None where the data has nothing to compare it with."""

    row: int
    source: str
    answer: int
    right: bool | None
    finish_reason: str


def summarize(tokens: Sequence[Tokens], answers: Sequence[Scored], metric: str) -> dict[str, Any]:
    """All numbers, JSON-able: over everything, "by_turn" (the number of the answer in its dialogue), "by_source"."""
    found: dict[str, Any] = {**_token_numbers(tokens), **_answer_numbers(answers, metric)}
    for name, key in (("by_turn", _turn), ("by_source", _source)):
        groups = dict.fromkeys(key(one) for one in [*tokens, *answers])
        found[name] = {
            group: {
                **_token_numbers([one for one in tokens if key(one) == group]),
                **_answer_numbers([one for one in answers if key(one) == group], metric),
            }
            for group in sorted(groups, key=lambda group: (len(group), group) if name == "by_turn" else group)
        }
    return found


def _turn(one: Tokens | Scored) -> str:
    return str(one.answer)


def _source(one: Tokens | Scored) -> str:
    return one.source


def _token_numbers(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """`loss` and `perplexity` per supervised token, and `token_accuracy`; each with its 95 % interval."""
    loss = ratio(_by_row(tokens, lambda one: one.loss))
    right = ratio(_by_row(tokens, lambda one: one.right))
    if loss is None or right is None:
        return {}
    (mean, half), (share, half_share) = loss, right
    bounds = [max(0.0, mean - half), mean + half]
    shares = [max(0.0, share - half_share), min(1.0, share + half_share)]
    return {
        "num_supervised_tokens": sum(one.number for one in tokens),
        "loss": mean,
        "loss_interval": _finite(bounds),
        "perplexity": _exp(mean),
        "perplexity_interval": _finite([_exp(bound) for bound in bounds]),
        "token_accuracy": share,
        "token_accuracy_interval": _finite(shares) if math.isfinite(half_share) else None,
    }


def _by_row(tokens: Sequence[Tokens], value: Callable[[Tokens], float]) -> list[tuple[float, int]]:
    sums: dict[int, tuple[float, int]] = {}
    for one in tokens:
        total, number = sums.get(one.row, (0.0, 0))
        sums[one.row] = total + value(one), number + one.number
    return list(sums.values())


def _answer_numbers(answers: Sequence[Scored], metric: str) -> dict[str, Any]:
    """The share of right answers under the name `metric`, with its 95 % interval, and how the answers ended."""
    if not answers:
        return {}
    compared = [one.right for one in answers if one.right is not None]
    right = sum(compared)
    return {
        "num_answers": len(answers),
        "num_compared": len(compared),
        "num_right": right,
        metric: right / len(compared) if compared else None,
        f"{metric}_interval": list(proportion(right, len(compared))),
        "num_stopped": sum(one.finish_reason == "stop" for one in answers),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _finite(bounds: list[float]) -> list[float] | None:
    return bounds if all(map(math.isfinite, bounds)) else None


def table(found: dict[str, Any], metric: str) -> str:
    """The numbers in columns; [low to high] is the 95 % interval."""
    rows = [("all", found)]
    rows += [(f"answer {name}", numbers) for name, numbers in found["by_turn"].items()]
    rows += [(f"source {name}", numbers) for name, numbers in found["by_source"].items()]
    if len(found["by_turn"]) == 1:
        rows = [row for row in rows if not row[0].startswith("answer ")]
    lines = [("", "tokens", "loss", "perplexity", "token accuracy")]
    lines += [
        (
            name,
            f"{numbers['num_supervised_tokens']:,}",
            _with_bounds(numbers, "loss", "{:.4f}".format),
            _with_bounds(numbers, "perplexity", "{:.2f}".format),
            _with_bounds(numbers, "token_accuracy", percent),
        )
        for name, numbers in rows
        if "loss" in numbers
    ]
    text = _aligned(lines)
    if "num_answers" not in found:
        return text
    lines = [("", "answers", metric.replace("_", " "), "right", "ended by themselves")]
    lines += [
        (
            name,
            f"{numbers['num_answers']:,}",
            _with_bounds(numbers, metric, percent),
            f"{numbers['num_right']:,} of {numbers['num_compared']:,}",
            f"{numbers['num_stopped']:,}",
        )
        for name, numbers in rows
        if "num_answers" in numbers
    ]
    return f"{text}\n\n{_aligned(lines)}"


def _with_bounds(numbers: dict[str, Any], name: str, form: Callable[[float], str]) -> str:
    value, bounds = numbers[name], numbers.get(f"{name}_interval")
    if value is None:
        return "-"
    return form(value) + (f" [{form(bounds[0])} to {form(bounds[1])}]" if bounds else "")


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
