"""One chart as inline SVG: it fits every width, and needs no script to be read.

The curves are drawn in a square of SIZE units that the page stretches to the room there is, with strokes that keep
their width. The labels are SVG of their own next to it, in per cent of its width or height, so that texts are not
stretched.

    +--------+------------------+
    | y-axis | plot             |
    +--------+------------------+
             | x-axis           |
             +------------------+
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastchat.pages import escaped
from fastchat.report.charts import X_TITLE, Chart, Point, Series

SIZE = 1000
_MARKED = 40  # points; a longer curve has no dots
_COLOURS = 8


@dataclass(frozen=True)
class Axis:
    """What an axis shows: from `low` to `high`, with `ticks` in between."""

    low: float
    high: float
    ticks: list[float]

    def share(self, value: float) -> float:
        """Where a value is, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def drawn(chart: Chart) -> str:
    """The chart as a <figure>."""
    points = [point for series in chart.series for point in series.points]
    x = axis([step for step, _ in points], whole=True)
    y = axis([value for _, value in points])
    curves = "".join(_curve(series, x, y) for series in chart.series)
    omitted = f" {chart.omitted:,} values that are not finite numbers are left out." if chart.omitted else ""
    key = escaped(chart.key)
    return (
        f'<figure class="chart" id="chart-{key}" data-key="{key}">'
        f"<figcaption>{escaped(chart.title)}{escaped(_facts(chart))}</figcaption>{_legend(chart)}"
        f'<p class="y-title">{escaped(chart.y_title)}</p><div class="plot">'
        f'<svg class="y" aria-hidden="true">{_y_labels(y)}</svg>'
        f'<svg class="curves" viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escaped(_described(chart))}">{_grid(x, y)}{curves}<line class="at" y1="0" y2="{SIZE}"/></svg>'
        f'<svg class="x" aria-hidden="true">{_x_labels(x)}</svg></div>'
        f'<div class="below"><p class="reading" aria-live="polite">{escaped(omitted)}</p>'
        f'<p class="x-title">{X_TITLE}</p></div></figure>'
    )


def axis(values: Sequence[float], *, whole: bool = False) -> Axis:
    """An axis for `values` with three to six round ticks. `whole`: ticks are whole numbers.

    >>> axis([0.0, 4.1]).ticks
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 1.0 if whole or not high else abs(high) / 2
        low, high = low - pad, high + pad
    step = _round_step((high - low) / 5)
    step = max(step, 1.0) if whole else step
    room = 0 if whole else (high - low) * 0.04
    low, high = low - room, high + room
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, [number * step for number in range(first, last + 1)])


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick with the digits that tell it from the next one.

    >>> tick_text(0.0002, [0.0, 0.0001, 0.0002]), tick_text(1500, [500, 1000, 1500]), tick_text(0.25, [0, 0.25])
    ('2e-4', '1,500', '0.25')
    """
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=abs(value) or 1)
    if abs(value) < step / 2:
        return "0"
    largest = max(map(abs, ticks))
    if largest < 1e-2 or largest >= 1e6:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{round(value / 10.0**power, 2):g}e{power}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += not math.isclose(round(step, digits), step, rel_tol=1e-6)
    return f"{value:,.{digits}f}"


def place(point: Point, x: Axis, y: Axis) -> str:
    """ "x,y" of a point in the square of the curves."""
    return f"{round(x.share(point[0]) * SIZE, 2):g},{round((1 - y.share(point[1])) * SIZE, 2):g}"


def _round_step(wanted: float) -> float:
    """The number 1, 2 or 5 times a power of ten that is nearest above `wanted`."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def _curve(series: Series, x: Axis, y: Axis) -> str:
    places = [place(point, x, y) for point in series.points]
    line = f'<polyline class="{_look(series)}" points="{" ".join(places)}"/>'
    if len(places) > _MARKED:
        return line
    return line + f'<path class="dots c{series.colour % _COLOURS}" d="{"".join(f"M{at}h0" for at in places)}"/>'


def _look(series: Series) -> str:
    return f"c{series.colour % _COLOURS}{' dashed' if series.dashed else ''}"


def _grid(x: Axis, y: Axis) -> str:
    across = (f'<line class="grid" x1="0" x2="{SIZE}" y1="{at:g}" y2="{at:g}"/>' for at in _at(y, up=True))
    return "".join(across) + f'<line class="axis" x1="0" x2="{SIZE}" y1="{SIZE}" y2="{SIZE}"/>'


def _at(one: Axis, *, up: bool = False) -> list[float]:
    return [round((1 - one.share(tick) if up else one.share(tick)) * SIZE, 2) for tick in one.ticks]


def _y_labels(y: Axis) -> str:
    return "".join(
        f'<text x="100%" y="{at / SIZE:.2%}" dy=".35em" text-anchor="end">{tick_text(tick, y.ticks)}</text>'
        for tick, at in zip(y.ticks, _at(y, up=True), strict=True)
    )


def _x_labels(x: Axis) -> str:
    def anchor(at: float) -> str:
        return "start" if at < SIZE * 0.03 else "end" if at > SIZE * 0.97 else "middle"

    return "".join(
        f'<text x="{at / SIZE:.2%}" y="1em" text-anchor="{anchor(at)}">{tick_text(tick, x.ticks)}</text>'
        for tick, at in zip(x.ticks, _at(x), strict=True)
    )


def _legend(chart: Chart) -> str:
    if not any(series.name for series in chart.series):
        return ""
    items = (
        f'<span><svg class="swatch" aria-hidden="true"><line class="{_look(series)}" x1="0" x2="100%" y1="50%" '
        f'y2="50%"/></svg>{escaped(series.name)}</span>'
        for series in chart.series
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _facts(chart: Chart) -> str:
    """First and last value of a chart's only curve."""
    if len(chart.series) > 1:
        return ""
    points = chart.series[0].points
    first, last = points[0][1], points[-1][1]
    return f": {short(last)}" if len(points) == 1 else f": {short(first)} → {short(last)}"


def _described(chart: Chart) -> str:
    """The chart for those who do not see it."""
    parts = [
        f"{series.name or chart.title}: {short(series.points[0][1])} at step {series.points[0][0]}, "
        f"{short(series.points[-1][1])} at step {series.points[-1][0]}"
        for series in chart.series
    ]
    return f"{chart.title}, {chart.y_title}, by {X_TITLE.lower()}. {'; '.join(parts)}"


def short(value: float) -> str:
    """A value with four digits.

    >>> short(1.44947), short(2886), short(0.00021997), short(18399.4)
    ('1.449', '2,886', '2.2e-4', '18,399')
    """
    if value and abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
