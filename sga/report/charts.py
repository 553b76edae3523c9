"""Charts as inline SVG: colours come from the page's style sheet, so that they follow its light or dark scheme.

Every series differs from the others in colour, dash and marker, so none of the three is needed to tell them apart.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

FLOOR = -12.0
"""log10 of forget quality below which differences do not count; the left edge of the frontier chart."""

_DASHES = ("", "9 4", "2 3", "10 3 2 3", "5 5", "14 4")
_MARKERS = ("circle", "diamond", "triangle", "down", "square", "plus")


@dataclass(frozen=True)
class Style:
    """How a series is drawn: ``--<colour>`` of the style sheet, a dash pattern, a marker's name."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Curve:
    """One series.

    Attributes:
        label: Its name.
        style: How it is drawn.
        points: In order.
        notes: What hovering over each point says; as many as points, or none.
        chosen: Index of the chosen evaluation's point.
    """

    label: str
    style: Style
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    chosen: int | None = None


@dataclass(frozen=True)
class ReferenceLine:
    """A labelled level that curves are held against."""

    label: str
    value: float
    style: Style


@dataclass(frozen=True)
class Span:
    """A number with an interval; ends and number may be infinite or lie outside the axis."""

    value: float
    low: float
    high: float
    style: Style
    note: str = ""


def style_of(method: str, index: int) -> Style:
    """The style of a setting: fixed for target, retain, GA and the first GD, by turns for the others.

    Args:
        method: As `Run.method` gives it.
        index: Place among the settings of the same method.
    """
    if method == "target":
        return Style("target", "2 3", "plus")
    if method == "retain":
        return Style("retain", "9 4", "square")
    if method == "GA":
        return Style("c0", _DASHES[index % 6], "cross")
    if method == "GD":
        return Style(("c1", "c6")[index % 2], _DASHES[(index + 1) % 6], _MARKERS[(index + 4) % 6])
    if method == "SGA":
        # A colour comes back after four settings, with another marker and another dash.
        return Style(f"c{2 + index % 4}", _DASHES[index % 6], _MARKERS[(index + index // 4) % 6])
    return Style(f"c{(6, 4, 5, 3, 2, 1)[index % 6]}", _DASHES[(index + 1) % 6], "cross")


def swatch(style: Style) -> str:
    """A piece of the line with its marker, for a legend."""
    return (
        '<svg class="swatch" viewBox="0 0 36 14" width="36" height="14" aria-hidden="true">'
        f"{_path([(1.0, 7.0), (35.0, 7.0)], style)}{_marker(18, 7, 4.5, style)}</svg>"
    )


def ring_swatch(kind: str) -> str:
    """The ring around a start (``start``) or around a chosen evaluation (``ring``), for a legend."""
    radius = 6.2 if kind == "start" else 5
    return (
        '<svg class="swatch" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">'
        f'<circle class="{kind}" cx="7" cy="7" r="{radius}"/></svg>'
    )


def frontier_chart(curves: Sequence[Curve], retain: ReferenceLine | None, level: float, identifier: str) -> str:
    """Trajectories of (log10 forget quality, utility) with the region in which the KS test sees no difference.

    Args:
        curves: One for each run; the first point is the start, the last the end.
        retain: The retain model's utility.
        level: Forget quality at which the region begins.
        identifier: Prefix of the element ids, unique on the page.
    """
    frame, parts = _trade_off(retain, level)
    for curve in curves:
        places = [(frame.x(max(x, FLOOR)), frame.y(y)) for x, y in curve.points]
        parts.append(_curve(curve, places))
    starts = {(round(frame.x(max(x, FLOOR)), 1), round(frame.y(y), 1)) for x, y in (c.points[0] for c in curves)}
    parts += [f'<circle class="start" cx="{x}" cy="{y}" r="10"/>' for x, y in sorted(starts)]
    described = "; ".join(
        f"{c.label}: from ({_signed(c.points[0][0])}, {c.points[0][1]:.2f}) "
        f"to ({_signed(c.points[-1][0])}, {c.points[-1][1]:.2f}) in {len(c.points)} evaluations"
        for c in curves
    )
    return _svg(frame, identifier, "Model utility against forget quality", f"{described}.", parts)


def pareto_chart(
    clouds: Sequence[Curve],
    front: Sequence[tuple[float, float]],
    retain: ReferenceLine | None,
    level: float,
    identifier: str,
) -> str:
    """Points of (log10 forget quality, utility) of many configurations, and the line of the best trade-offs.

    Args:
        clouds: One for each configuration; its points are not joined.
        front: Points that no other beats in both, by ascending forget quality.
        retain: The retain model's utility.
        level: Forget quality at which the KS test sees no difference.
        identifier: Prefix of the element ids, unique on the page.
    """
    frame, parts = _trade_off(retain, level)
    stairs: list[tuple[float, float]] = []
    for x, y in front:  # down to the right: what is reached at a quality is reached at every lower one
        place = (frame.x(max(x, FLOOR)), frame.y(y))
        stairs += [(stairs[-1][0] if stairs else frame.left, place[1]), place]
    if stairs:
        parts.append(_path([*stairs, (stairs[-1][0], frame.bottom)], Style("retain", "", "")))
    for cloud in clouds:
        marks = []
        for i, (x, y) in enumerate(cloud.points):
            note = f"<title>{escape(cloud.notes[i])}</title>" if cloud.notes else ""
            mark = _marker(frame.x(max(x, FLOOR)), frame.y(y), 6 if (x, y) in front else 3.2, cloud.style)
            marks.append(f"<g>{note}{mark}</g>")
        parts.append(f"<g><title>{escape(cloud.label)}</title>{''.join(marks)}</g>")
    described = "; ".join(f"({_signed(round(x, 2))}, {y:.2f})" for x, y in front)
    return _svg(frame, identifier, "Best trade-offs of all configurations", f"On the front: {described}.", parts)


def _trade_off(retain: ReferenceLine | None, level: float) -> tuple[_Frame, list[str]]:
    """Axes of (log10 forget quality, utility) with the region in which the KS test sees no difference."""
    frame = _Frame(700, 440, (FLOOR - 0.35, 0.25), (-0.03, 1.04))
    edge = frame.x(math.log10(level))
    parts = [
        f'<rect class="region" x="{edge:.1f}" y="{frame.top:.1f}" width="{frame.right - edge:.1f}" '
        f'height="{frame.bottom - frame.top:.1f}"/>',
        frame.axes(
            [(float(t), f"≤ {_signed(t)}" if t == FLOOR else _signed(t)) for t in range(-12, 1, 2)],
            [(t / 5, f"{t / 5:g}") for t in range(6)],
            "forget quality, log₁₀ p",
            "utility",
        ),
        f'<text class="note" x="{frame.right - 4:.1f}" y="{frame.bottom - 8:.1f}" text-anchor="end">'
        f"p &gt; {level:g}</text>",
    ]
    if retain is not None:
        parts.append(frame.level(retain, 0.45))
    return frame, parts


def distribution_chart(
    samples: Sequence[tuple[str, Style, Sequence[float]]], identifier: str
) -> tuple[str, dict[str, float]]:
    """Empirical distribution functions of log truth ratios.

    The axis covers what target and retain model span (all samples where neither is there) and half as much on each
    side; a model that has collapsed may lie outside.

    Args:
        samples: Label, style and values; the styles of target and retain model set the axis.
        identifier: Prefix of the element ids, unique on the page.

    Returns:
        The SVG, and for each label with values outside the axis the share of them.
    """
    framing = [v for _, style, values in samples if style.colour in ("target", "retain") for v in values]
    everything = sorted(v for _, _, values in samples for v in values)
    core = sorted(framing) or everything
    low, high = core[len(core) // 50], core[-1 - len(core) // 50]
    room = max((high - low) / 2, 0.5)
    low, high = max(low - room, everything[0] - 0.1), min(high + room, everything[-1] + 0.1)
    frame = _Frame(700, 400, (low, high), (0.0, 1.02))
    parts = [
        frame.axes(
            [(t, _signed(t)) for t in ticks(low, high)],
            [(t / 4, f"{t / 4:g}") for t in range(5)],
            "log R: right = wrong answers likelier",
            "share of forget set at or below",
        )
    ]
    for label, style, values in samples:
        ordered = sorted(values)
        share = bisect.bisect_left(ordered, low) / len(ordered)
        places = [(frame.x(low), frame.y(share))]
        for count, value in enumerate(ordered, start=1):
            if low <= value <= high:
                places += [(frame.x(value), places[-1][1]), (frame.x(value), frame.y(count / len(ordered)))]
        places.append((frame.x(high), places[-1][1]))
        parts.append(f"<g><title>{escape(label)}</title>{_path(places, style)}")
        for quantile in (0.25, 0.5, 0.75):
            middle = ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]
            if low <= middle <= high:
                parts.append(_marker(frame.x(middle), frame.y(quantile), 4.5, style))
        parts.append("</g>")
    medians = "; ".join(f"{label}: median {_signed(round(sorted(v)[len(v) // 2], 2))}" for label, _, v in samples)
    svg = _svg(frame, identifier, "Distribution of the log truth ratio on the forget set", f"{medians}.", parts)
    outside = {label: sum(not low <= v <= high for v in values) / len(values) for label, _, values in samples}
    return svg, {label: share for label, share in outside.items() if share > 0}


def panel(
    title: str,
    curves: Sequence[Curve],
    levels: Sequence[ReferenceLine],
    x_label: str,
    identifier: str,
    unit: bool = False,
) -> str:
    """One small chart of a metric over training.

    The y axis is logarithmic where positive values span more than a factor of 50.

    Args:
        title: The metric.
        curves: One for each run, at least one point each.
        levels: Values to compare with, such as the retain model's.
        x_label: What the x axis is.
        identifier: Prefix of the element ids, unique on the page.
        unit: Whether the metric lies in [0, 1], which the axis then covers.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [level.value for level in levels]
    low, high = (0.0, 1.0) if unit else (min(ys), max(ys))
    logarithmic = not unit and low > 0 and high / low > 50
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    pad = 0.05 * (top - bottom) or 0.5
    if logarithmic:
        marks = [(float(t), _power(t)) for t in _decades(bottom - pad, top + pad)]
    else:
        marks = [(t, _signed(t)) for t in ticks(bottom, top, 5)]
    spread = max(xs) - min(xs) or 1.0
    frame = _Frame(460, 250, (min(xs) - 0.03 * spread, max(xs) + 0.03 * spread), (bottom - pad, top + pad), small=True)
    parts = [frame.axes([(t, _signed(t)) for t in ticks(min(xs), max(xs), 5)], marks, x_label, title)]
    for level in levels:
        parts.append(frame.level(ReferenceLine("", scale(level.value), level.style), 0.5))
    for curve in curves:
        parts.append(_curve(curve, [(frame.x(x), frame.y(scale(y))) for x, y in curve.points], 3.2))
    described = "; ".join(f"{c.label}: {c.points[0][1]:.4g} to {c.points[-1][1]:.4g}" for c in curves)
    return _svg(frame, identifier, f"{title} over training", f"{described}.", parts)


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Span]]],
    levels: Sequence[ReferenceLine],
    bounds: tuple[float, float],
    x_label: str,
    y_label: str,
    identifier: str,
) -> str:
    """Numbers with their intervals, a row for each name, on one axis; what lies outside it is written at its edge.

    Args:
        rows: A name and its numbers, drawn one below the other; the first row is at the top.
        levels: Vertical lines to hold them against.
        bounds: What the axis covers.
        x_label: What the numbers are.
        y_label: What the names are.
        identifier: Prefix of the element ids, unique on the page.
    """
    widest = max(len(name) for name, _ in rows)
    frame = _Frame(700, 100 + 34 * len(rows), bounds, (0.0, float(len(rows))), left=24 + 7.2 * widest)
    marks = [(len(rows) - 0.5 - i, name) for i, (name, _) in enumerate(rows)]
    parts = [frame.axes([(t, _signed(t)) for t in ticks(*bounds)], marks, x_label, y_label)]
    for level in levels:
        x = frame.x(level.value)
        parts.append(_path([(x, frame.top), (x, frame.bottom)], level.style))
        parts.append(f'<text class="note" x="{x:.1f}" y="{frame.top - 5:.1f}" text-anchor="middle">'
                     f"{escape(level.label)}</text>")  # fmt: skip
    for (middle, name), (_, spans) in zip(marks, rows, strict=True):
        for i, span in enumerate(spans):
            y = frame.y(middle) + 11 * (i - (len(spans) - 1) / 2)
            low, high = (min(max(end, bounds[0]), bounds[1]) for end in (span.low, span.high))
            drawn = _path([(frame.x(low), y), (frame.x(high), y)], Style(span.style.colour, "", ""))
            if bounds[0] <= span.value <= bounds[1]:
                drawn += _marker(frame.x(span.value), y, 4.5, span.style)
            else:
                right = span.value > bounds[1]
                text = f"{_signed(round(span.value, 2))} →" if right else f"← {_signed(round(span.value, 2))}"
                drawn += (
                    f'<text class="note" x="{(frame.right - 4) if right else (frame.left + 4):.1f}" y="{y:.1f}" '
                    f'dy=".35em" text-anchor="{"end" if right else "start"}">{escape(text)}</text>'
                )
            parts.append(f"<g><title>{escape(f'{name}: {span.note}')}</title>{drawn}</g>")
    described = "; ".join(f"{name}: {', '.join(span.note for span in spans)}" for name, spans in rows)
    return _svg(frame, identifier, x_label, f"{described}.", parts)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers within an interval, at most so many.

    >>> ticks(0, 10, 6)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10, 20, 50) if (high - low) / (power * m) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


class _Frame:
    """The rectangle that data are drawn in: from data to drawing coordinates, and the axes around it."""

    def __init__(
        self,
        width: int,
        height: int,
        xs: tuple[float, float],
        ys: tuple[float, float],
        small: bool = False,
        left: float | None = None,
    ) -> None:
        self.width, self.height, self.small = width, height, small
        self.left, self.right = (54.0, width - 12.0) if small else (58.0, width - 14.0)
        self.left = self.left if left is None else left
        self.top, self.bottom = (34.0, height - 46.0) if small else (38.0, height - 60.0)
        self._xs, self._ys = xs, ys

    def x(self, value: float) -> float:
        low, high = self._xs
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._ys
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], x_label: str, y_label: str) -> str:
        """Grid lines with their numbers; the y axis is named above its upper end, so that no text is turned."""
        down = 18 if self.small else 24
        parts = []
        for value, text in xs:
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + down:.1f}" text-anchor="middle">{escape(text)}</text>')
        for value, text in ys:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text x="{self.left - 7:.1f}" y="{y:.1f}" dy=".35em" text-anchor="end">{escape(text)}</text>'
            )
        parts.append(f'<rect class="axis" x="{self.left}" y="{self.top}" width="{self.right - self.left}" '
                     f'height="{self.bottom - self.top}"/>')  # fmt: skip
        parts.append(f'<text class="name" x="4" y="{self.top - 14:.1f}">{escape(y_label)}</text>')
        parts.append(
            f'<text class="name" x="{self.right:.1f}" y="{self.height - 7}" text-anchor="end">{escape(x_label)}</text>'
        )
        return "".join(parts)

    def level(self, line: ReferenceLine, place: float) -> str:
        """A horizontal line over the whole width, its label at a share of it."""
        y = self.y(line.value)
        drawn = _path([(self.left, y), (self.right, y)], line.style)
        if not line.label:
            return drawn
        x = self.left + place * (self.right - self.left)
        return f'{drawn}<text class="note" x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle">{escape(line.label)}</text>'


def _curve(curve: Curve, places: Sequence[tuple[float, float]], size: float = 4.5) -> str:
    """The line with a marker at each evaluation; the last is larger, the chosen one has a ring."""
    parts = [f"<g><title>{escape(curve.label)}</title>{_path(places, curve.style)}"]
    for i, (x, y) in enumerate(places):
        note = f"<title>{escape(curve.notes[i])}</title>" if curve.notes else ""
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{size + 4:.1f}"/>' if i == curve.chosen else ""
        last = i == len(places) - 1
        parts.append(f"<g>{note}{ring}{_marker(x, y, size * 1.5 if last else size, curve.style)}</g>")
    return "".join([*parts, "</g>"])


def _path(places: Sequence[tuple[float, float]], style: Style) -> str:
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
    return f'<polyline class="curve" points="{steps}" stroke="var(--{style.colour})"{dash}/>'


def _marker(x: float, y: float, size: float, style: Style) -> str:
    """A small shape around a point, filled with the series' colour; crosses are drawn as strokes."""
    colour = f"var(--{style.colour})"
    s, d = size, size * 1.25
    outlines = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -d), (d, 0), (0, d), (-d, 0)],
        "triangle": [(0, -d), (d, s), (-d, s)],
        "down": [(0, d), (d, -s), (-d, -s)],
    }
    if style.marker in outlines:
        corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[style.marker])
        return f'<polygon class="mark" points="{corners}" fill="{colour}"/>'
    if style.marker == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}" fill="{colour}"/>'
    a, b = (s, s) if style.marker == "cross" else (d, 0.0)
    strokes = f"M{x - a:.1f} {y - b:.1f}L{x + a:.1f} {y + b:.1f}M{x - b:.1f} {y + a:.1f}L{x + b:.1f} {y - a:.1f}"
    return f'<path class="cross" d="{strokes}" stroke="{colour}"/>'


def _svg(frame: _Frame, identifier: str, title: str, description: str, parts: Sequence[str]) -> str:
    name, size = escape(identifier, quote=True), "small" if frame.small else "large"
    return (
        f'<svg class="chart {size}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _decades(low: float, high: float) -> list[int]:
    """Whole powers of ten within an interval of logarithms, at most six."""
    every = max(1, math.ceil((high - low) / 6))
    return [t for t in range(math.ceil(low), math.floor(high) + 1) if t % every == 0]


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{_signed(exponent)}"


def _signed(value: float) -> str:
    return f"{value:.6g}".replace("-", "−").replace("inf", "∞")
