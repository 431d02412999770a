# SPDX-License-Identifier: Apache-2.0
"""Small charts as inline SVG. Colours come from the page's style sheet by class, so that they follow light
and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from earnest.report.text import escape

WIDTH, HEIGHT = 330, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 24
MOST_POINTS = 240
SMOOTHED_OVER = 20  # the running mean is taken over this share of the points: 1/20

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve. `stage` gives its colour; a second curve of the same stage is dashed."""

    name: str
    stage: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The data range of a chart and where it lies in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT

    def at(self, point: Point) -> Point:
        (x0, x1), (y0, y1) = self.x, self.y
        right, down = (point[0] - x0) / (x1 - x0), (y1 - point[1]) / (y1 - y0)
        return LEFT + right * (self.width - LEFT - RIGHT), TOP + down * (self.height - TOP - BOTTOM)


def line_chart(title: str, lines: Sequence[Line], *, percent: bool = False, log: bool = False) -> str:
    """A <figure> of curves over steps, each faint as it was and strong as a running mean; "" without a
    point. With `log` the axis is logarithmic and points that are not positive are left out."""
    lines = [Line(c.name, c.stage, _finite(c.points, log), c.dashed) for c in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    frame = Frame(
        _range(x for c in lines for x, _ in c.points), _padded(y for c in lines for _, y in c.points)
    )
    drawn = [_axes(frame, percent, log)]
    for line in lines:
        look = f"line {line.stage}" + (" dashed" if line.dashed else "")
        if len(line.points) >= SMOOTHED_OVER:
            drawn.append(_stroke(f"{look} raw", _path(frame, _thinned(line.points))))
        drawn.append(_stroke(look, _path(frame, _thinned(_smooth(line.points)))))
        if len(line.points) == 1:
            x, y = frame.at(line.points[0])
            drawn.append(f'<circle class="dot {line.stage}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    legend = "".join(_legend(line, percent, log) for line in lines)
    picture = f"<figcaption>{escape(title)}</figcaption>{_svg(title, drawn)}"
    return f"<figure>{picture}<p class='legend'>{legend}</p></figure>"


def calibration_chart(curve: Sequence[Mapping[str, float]]) -> str:
    """A <figure> of how often the first reply won where the judge said it would with this probability; dots
    grow with the number of comparisons."""
    points = [(float(p["said"]), float(p["happened"]), float(p.get("count", 1))) for p in curve]
    if not points:
        return ""
    title = "Said and happened"
    frame = Frame((0.0, 1.0), (0.0, 1.0), height=260)
    drawn = [
        _axes(frame, percent=True, log=False, percent_x=True),
        _stroke("even", _path(frame, [(0.0, 0.0), (1.0, 1.0)])),
        _stroke("line judge", _path(frame, [(x, y) for x, y, _ in points])),
    ]
    most = max(count for *_, count in points)
    for said, happened, count in points:
        x, y = frame.at((said, happened))
        radius = 2.5 + 6 * math.sqrt(count / most)
        drawn.append(
            f'<circle class="dot judge" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>said {said:.0%}, happened {happened:.0%}, {count:.0f} comparisons</title></circle>"
        )
    legend = "across: the judge's probability that the first reply wins; up: how often it did"
    return (
        f"<figure class='square'><figcaption>{title}</figcaption>{_svg(title, drawn, frame)}"
        f"<p class='legend'>{legend}</p></figure>"
    )


# ---- inside ----


def _svg(title: str, drawn: Sequence[str], frame: Frame | None = None) -> str:
    height = HEIGHT if frame is None else frame.height
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return head + "".join(drawn) + "</svg>"


def _stroke(kind: str, path: str) -> str:
    """A path of class `kind`. The attributes serve viewers that do not apply the page's style to pictures."""
    return f'<path fill="none" stroke="currentColor" class="{kind}" d="{path}"/>'


def _legend(line: Line, percent: bool, log: bool) -> str:
    last = _smooth(line.points)[-1][1]
    key = _stroke(f"line {line.stage}" + (" dashed" if line.dashed else ""), "M0 3 H18")
    value = _label(10**last if log else last, percent)
    return f'<span><svg class="key" viewBox="0 0 18 6">{key}</svg> {escape(line.name)} <b>{value}</b></span>'


def _axes(frame: Frame, percent: bool, log: bool, percent_x: bool = False) -> str:
    parts = []
    for value in ticks(*frame.y, most=5, whole=log):
        x, y = frame.at((frame.x[0], value))
        text = _label(10**value if log else value, percent)
        parts.append(_stroke("grid", f"M{LEFT} {y:.1f} H{frame.width - RIGHT}"))
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for value in ticks(*frame.x, most=5):
        x, y = frame.at((value, frame.y[0]))
        parts.append(
            f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_label(value, percent_x)}</text>'
        )
    return "".join(parts)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most `most` round numbers within [low, high], evenly spaced."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50, 100):
        size = max(step * factor, 1.0) if whole else step * factor
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
        if last - first + 1 <= most:
            return [i * size for i in range(first, last + 1)]
    return []


def _label(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.3g}%"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _finite(points: Iterable[Point], log: bool) -> list[Point]:
    kept = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [(x, math.log10(y)) for x, y in kept if y > 0] if log else kept


def _range(values: Iterable[float]) -> tuple[float, float]:
    seen = list(values)
    low, high = min(seen), max(seen)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(values: Iterable[float]) -> tuple[float, float]:
    """The range with a little air, and zero in it where zero is near."""
    low, high = _range(values)
    air = 0.06 * (high - low)
    if 0 <= low < 0.5 * (high - low):
        return 0.0, high + air
    return low - air, high + air


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over the points on both sides; towards the ends over as many as there are."""
    reach = len(points) // SMOOTHED_OVER // 2
    smoothed = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        smoothed.append((x, sum(near) / len(near)))
    return smoothed


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else [*points[::stride], points[-1]]


def _path(frame: Frame, points: Sequence[Point]) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in map(frame.at, points))
