"""The charts of a page as PNGs, for slides and for READMEs. Needs matplotlib, which is imported here alone.

The figures are drawn by its Agg canvas directly: no window system, no style of the user and no global state.
"""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from fastchat.files import atomic
from fastchat.report.charts import X_TITLE, Chart

PIP_LINE = "pip install matplotlib"
_COLOURS = ("#1f57c3", "#c2410c", "#1c7c38", "#7a3fa8", "#00696f", "#a61b5d", "#6b5b00", "#4a4f57")
_MARKED = 40  # points; a longer curve has no dots


def installed() -> bool:
    """Whether matplotlib can be imported."""
    return importlib.util.find_spec("matplotlib") is not None


def write_pngs(charts: Sequence[Chart], folder: Path) -> int:
    """Writes `folder`/KEY.png for each chart and returns how many. Raises OSError, and whatever matplotlib raises."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces that it builds a list of fonts
    drawn = [(chart.key, _drawn(chart)) for chart in charts]
    if drawn:
        folder.mkdir(exist_ok=True)
    for key, data in drawn:
        with atomic(folder / f"{_file_name(key)}.png", "wb", durable=False) as file:
            file.write(data)
    return len(drawn)


def _file_name(key: str) -> str:
    """A key of the metrics as the name of a file."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "_" for letter in key)[:80]


def _drawn(chart: Chart) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=140, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series in chart.series:
        steps, values = zip(*series.points, strict=True)
        marker = "o" if len(series.points) <= _MARKED else ""
        axes.plot(
            steps,
            values,
            color=_COLOURS[series.colour % len(_COLOURS)],
            linestyle="--" if series.dashed else "-",
            marker=marker,
            markersize=3.5,
            label=_plain(series.name),
        )
    axes.set_title(_plain(chart.title), loc="left")
    axes.set_xlabel(X_TITLE)
    axes.set_ylabel(_plain(chart.y_title))
    axes.grid(True, color="#dcdcd6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if any(series.name for series in chart.series):
        axes.legend(frameon=False)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _plain(text: str) -> str:
    """A label without mathematical notation; a label that begins with _ would be left out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
