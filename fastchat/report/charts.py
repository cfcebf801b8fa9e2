"""The curves of a run: which there are, and their points, exactly as they were logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastchat.plan.units import GIB, MIB
from fastchat.report.reading import RunFiles

X_TITLE = "Optimizer step"
_NO_CURVE = {"step", "epoch", "num_tokens", "num_supervised_tokens", "eval_num_supervised_tokens"}
Point = tuple[int, float]


@dataclass(frozen=True)
class Series:
    """One curve. `name`: for the legend; `points`: (step, value), in the order of the rows; `colour`: its number, the
    same for a run in all charts that compare runs, where further curves of a run are `dashed`."""

    name: str
    points: list[Point]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves with common axes.

    Attributes:
        key: name of its file. title: heading. y_title: what the values are, with their unit.
        omitted: logged values that are not finite numbers, which no curve can show.
    """

    key: str
    title: str
    y_title: str
    series: list[Series]
    omitted: int = 0


@dataclass(frozen=True)
class _Curves:
    """The keys of `metrics.jsonl` that share a chart: key -> name of the curve. `bytes`: the values are sizes."""

    key: str
    title: str
    y_title: str
    curves: dict[str, str]
    bytes: bool = False


_LOSS = "Loss per learned token"
_ONE_RUN = (
    _Curves("loss", "Loss", _LOSS, {"loss": "training", "eval_loss": "evaluation", "aux_loss": "added by the model"}),
)
_SEVERAL_RUNS = (
    _Curves("loss", "Training loss", _LOSS, {"loss": ""}),
    _Curves("eval_loss", "Evaluation loss", _LOSS, {"eval_loss": ""}),
    _Curves("aux_loss", "Training loss added by the model", _LOSS, {"aux_loss": ""}),
)
_ALWAYS = (
    _Curves("learning_rate", "Learning rate", "Learning rate", {"learning_rate": ""}),
    _Curves("grad_norm", "Gradient norm", "Norm of the gradient", {"grad_norm": ""}),
    _Curves("tokens_per_second", "Speed", "Tokens per second, all processes", {"tokens_per_second": ""}),
    _Curves(
        "memory", "Memory", "per process", {"memory_measured": "measured", "memory_predicted": "planned"}, bytes=True
    ),
)


def charts_of(runs: Sequence[RunFiles]) -> list[Chart]:
    """The charts of one run, or of several with a curve for each of them. One without a point is left out."""
    kinds = [*(_ONE_RUN if len(runs) == 1 else _SEVERAL_RUNS), *_ALWAYS]
    known = {key for kind in kinds for key in kind.curves} | _NO_CURVE
    more = {key: None for run in runs for row in run.rows for key, value in row.items() if finite(value) is not None}
    kinds += [_Curves(key, _words(key), _words(key), {key: ""}) for key in more if key not in known]
    found = [_chart(kind, runs) for kind in kinds]
    return [chart for chart in found if chart.series]


def points_of(run: RunFiles, key: str) -> list[Point]:
    """(step, value) of every row with a finite number under `key`."""
    return [(row["step"], value) for row in run.rows if (value := finite(row.get(key))) is not None]


def finite(value: Any) -> float | None:
    """`value` as a number; None for anything else, such as a NaN, which `metrics.jsonl` has as null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _chart(kind: _Curves, runs: Sequence[RunFiles]) -> Chart:
    found, omitted, several = [], 0, len(runs) > 1
    largest = max((value for run in runs for key in kind.curves for _, value in points_of(run, key)), default=0)
    size, unit = (GIB, "GiB") if largest >= GIB else (MIB, "MiB")
    for place, run in enumerate(runs):
        for number, (key, name) in enumerate(kind.curves.items()):
            points = points_of(run, key)
            omitted += sum(key in row for row in run.rows) - len(points)
            words = ", ".join([run.name] * several + [name] * bool(name))
            points = [(step, value / size) for step, value in points] if kind.bytes else points
            if points:
                found.append(Series(words, points, place if several else number, several and number > 0))
    return Chart(kind.key, kind.title, f"{unit} {kind.y_title}" if kind.bytes else kind.y_title, found, omitted)


def _words(key: str) -> str:
    """A heading for a key that is not known here.

    >>> _words("eval_token_accuracy")
    'Evaluation: token accuracy'
    """
    words = key.replace("_", " ").replace("/", " ").strip()
    words = f"evaluation: {words.removeprefix('eval ')}" if words.startswith("eval ") else words
    return words[:1].upper() + words[1:80]
