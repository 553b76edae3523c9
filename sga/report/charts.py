"""Charts as Altair objects: notebooks show them, pages embed them, and files of SVG, PNG or PDF are made of them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt

from sga.report.styles import LIGHT, RETAIN, Style
from sga.report.summary import FLOOR

TrainingAxis = Literal["unit", "linear", "either"]

_LEFT = FLOOR - 0.35
"""Left end of the axis of forget quality."""

_PICKED = alt.selection_point(name="picked", fields=["setting"], bind="legend")
"""Settings that the legend has selected; a page sets them by the buttons of its own legend."""


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation in a chart.

    Attributes:
        x: Place on the horizontal axis.
        y: Place on the vertical axis.
        hover: Texts of the tooltip, by their names.
        chosen: True if it has a ring: the evaluation that a run is judged by.
    """

    x: float
    y: float
    hover: Mapping[str, str] = field(default_factory=dict)
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in order.

    Attributes:
        setting: Label of its setting, by which the legend selects; several seeds share it.
        run: Name of the run, unique in the chart.
        points: Its evaluations; at least one.
    """

    setting: str
    run: str
    points: Sequence[CurvePoint]


@dataclass(frozen=True)
class Span:
    """A number with an interval; ends and number may be infinite or lie outside the axis.

    Attributes:
        row: Name of the row that it is drawn in.
        kind: Name of the estimate among those of the row; a key of the chart's styles.
        value: Estimate itself, in the unit of the axis.
        low: Lower end of its interval.
        high: Upper end of its interval.
        note: Number and interval in words.
    """

    row: str
    kind: str
    value: float
    low: float
    high: float
    note: str


def frontier_chart(
    curves: Sequence[Curve], styles: Mapping[str, Style], retain: float | None, level: float
) -> alt.LayerChart:
    """Trajectories of (log10 forget quality, utility) with the region in which the KS test sees no difference.

    Args:
        curves: One for each run, from its start to its end.
        styles: Look of each setting, by its label.
        retain: The retain model's utility; None without one.
        level: Forget quality at which the region begins.
    """
    x, y, layers = _trade_off(retain, level)
    rows = _rows(curves, FLOOR)
    starts = _chart([row for row in rows if row["order"] == 0])
    layers.append(starts.mark_point(shape="circle", size=420, color=LIGHT["ink"], strokeWidth=1.6).encode(x, y))
    layers += _trajectories(rows, _present(curves, styles), x, y)
    told = "; ".join(
        f"{one.run}: from ({_signed(one.points[0].x)}, {one.points[0].y:.2f}) to ({_signed(one.points[-1].x)}, "
        f"{one.points[-1].y:.2f}) in {len(one.points)} evaluations"
        for one in curves
    )
    return _finished(layers, "utility", f"Model utility against forget quality. {told}.")


def pareto_chart(
    clouds: Sequence[Curve],
    front: Sequence[tuple[float, float]],
    styles: Mapping[str, Style],
    retain: float | None,
    level: float,
) -> alt.LayerChart:
    """Points of (log10 forget quality, utility) of many configurations, and the line of the best trade-offs.

    Args:
        clouds: One for each configuration; its points are not joined.
        front: Points that no other beats in both, by ascending forget quality; at least one.
        styles: Look of each configuration, by its label.
        retain: The retain model's utility; None without one.
        level: Forget quality at which the KS test sees no difference.
    """
    x, y, layers = _trade_off(retain, level)
    # Down to the right: what is reached at a quality is reached at every lower one.
    places = [(_LEFT, front[0][1]), *((max(a, FLOOR), b) for a, b in front), (max(front[-1][0], FLOOR), 0.0)]
    corners = [{"x": a, "y": b, "order": i} for i, (a, b) in enumerate(places)]
    stairs = _chart(corners).mark_line(color=LIGHT["ink"], strokeWidth=1.5, interpolate="step-before")
    layers.append(stairs.encode(x, y, order="order:Q"))
    rows = [row | {"last": (row["x"], row["y"]) in places} for row in _rows(clouds, FLOOR)]
    layers += _trajectories(rows, _present(clouds, styles), x, y, joined=False)
    told = "; ".join(f"({_signed(round(a, 2))}, {b:.2f})" for a, b in front)
    return _finished(layers, "utility", f"Best trade-offs of all configurations. On the front: {told}.")


def distribution_chart(
    samples: Mapping[str, Sequence[float]], styles: Mapping[str, Style]
) -> tuple[alt.LayerChart, dict[str, float]]:
    """Empirical distribution functions of log truth ratios, with markers at the quartiles.

    The axis covers what target and retain model span (all samples where neither is there) and half as much on each
    side; a model that has collapsed may lie outside.

    Args:
        samples: Values by setting; the styles of target and retain model set the axis.
        styles: Look of each setting, by its label.

    Returns:
        The chart, and for each setting with values outside the axis the share of them.
    """
    framing = [v for name, values in samples.items() if styles[name].colour in ("target", "retain") for v in values]
    everything = sorted(v for values in samples.values() for v in values)
    core = sorted(framing) or everything
    low, high = core[len(core) // 50], core[-1 - len(core) // 50]
    room = max((high - low) / 2, 0.5)
    low, high = max(low - room, everything[0] - 0.1), min(high + room, everything[-1] + 0.1)
    steps: list[dict[str, Any]] = []
    quartiles: list[dict[str, Any]] = []
    for name, values in samples.items():
        ordered = sorted(values)
        shares = [(value, count / len(ordered)) for count, value in enumerate(ordered, start=1)]
        below, upto = (bisect.bisect(ordered, end) / len(ordered) for end in (low, high))
        places = [(low, below), *((value, share) for value, share in shares if low <= value <= high), (high, upto)]
        steps += [{"setting": name, "x": x, "y": y, "order": i} for i, (x, y) in enumerate(places)]
        for share in (0.25, 0.5, 0.75):
            middle = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
            if low <= middle <= high:
                hover = {"run": name, "log R": _signed(round(middle, 2)), "share at or below": f"{share:g}"}
                quartiles.append({"setting": name, "x": middle, "y": share, "last": False, "hover": hover})
    ends = alt.Scale(domain=[low, high], nice=False)
    few = alt.Axis(tickCount=7, format="~f")
    x = alt.X("x:Q", title="log R: right = wrong answers likelier", scale=ends, axis=few)
    y = alt.Y(
        "y:Q", title=None, scale=alt.Scale(domain=[0, 1.02], nice=False), axis=alt.Axis(values=_QUARTERS, format=".2~f")
    )
    here = {name: styles[name] for name in samples}
    line = _series(steps, here).mark_line(strokeWidth=2, interpolate="step-after")
    layers = [
        line.encode(x, y, strokeDash=_by_setting(alt.StrokeDash, here, "dash"), order="order:Q"),
        _marked(quartiles, here, 80).encode(x, y),
    ]
    medians = "; ".join(f"{name}: median {_signed(round(sorted(v)[len(v) // 2], 2))}" for name, v in samples.items())
    told = f"Distribution of the log truth ratio on the forget set. {medians}."
    outside = {name: sum(not low <= v <= high for v in values) / len(values) for name, values in samples.items()}
    chart = _finished(layers, "share of forget set at or below", told)
    return chart, {name: share for name, share in outside.items() if share > 0}


def training_chart(
    title: str,
    curves: Sequence[Curve],
    styles: Mapping[str, Style],
    x_title: str,
    level: float | None = None,
    axis: TrainingAxis = "either",
) -> alt.LayerChart:
    """One small chart of a metric over training.

    Args:
        title: Name of the metric.
        curves: One for each run.
        styles: Look of each setting, by its label.
        x_title: Name of the x axis.
        level: The retain model's value; None without one.
        axis: Kind of the y axis: ``unit`` covers [0, 1]; ``either`` is logarithmic where positive values span more
            than a factor of 50, and linear otherwise.
    """
    ys = [point.y for curve in curves for point in curve.points] + ([] if level is None else [level])
    logarithmic = axis == "either" and min(ys) > 0 and max(ys) / min(ys) > 50
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(zero=False)
    few = alt.Axis(tickCount=5, format="~f")
    decades = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1) if logarithmic else ()
    marks = alt.Axis(values=[10.0**decade for decade in decades], format="~f") if logarithmic else few
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, nice=False, padding=12), axis=few)
    y = alt.Y("y:Q", title=None, scale=alt.Scale(domain=[0, 1]) if axis == "unit" else scale, axis=marks)
    told = "; ".join(f"{one.run}: {one.points[0].y:.4g} to {one.points[-1].y:.4g}" for one in curves)
    layers = [] if level is None else [_level(level).encode(y)]
    layers += _trajectories(_rows(curves), _present(curves, styles), x, y, size=50)
    return _finished(layers, title, f"{title} over {x_title}. {told}.", width=420, height=190)


def interval_chart(
    spans: Sequence[Span],
    styles: Mapping[str, Style],
    levels: Mapping[str, float],
    bounds: tuple[float, float],
    x_title: str,
    y_title: str,
) -> alt.LayerChart:
    """Numbers with their intervals, a row for each name, on one axis; numbers outside it are written at its edge.

    Args:
        spans: Numbers to draw, row by row.
        styles: Look of each kind; a row's numbers are drawn below each other in this order.
        levels: Positions of vertical lines to compare with, by the words above them.
        bounds: Ends of the axis.
        x_title: Name of the numbers.
        y_title: Name of the rows.
    """
    first, last = bounds
    rows: list[dict[str, Any]] = []
    for span in spans:
        number = _signed(round(span.value, 2))
        text = f"{number} →" if span.value > last else f"← {number}" if span.value < first else ""
        low, middle, high = (min(max(value, first), last) for value in (span.low, span.value, span.high))
        hover = {y_title: span.row, "of": span.kind, x_title: span.note}
        row = {"setting": span.kind, "row": span.row, "low": low, "x": middle, "high": high, "text": text}
        rows.append(row | {"last": False, "hover": hover})
    order = list(dict.fromkeys(span.row for span in spans))
    scale = alt.Scale(domain=list(bounds), nice=False)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=7, format="~f"))
    y = alt.Y("row:N", title=None, sort=order, axis=alt.Axis(grid=True))
    offset = alt.YOffset("setting:N", sort=list(styles), scale=alt.Scale(paddingOuter=0.6))
    ink = LIGHT["ink"]
    vertical = _chart([{"x": value, "text": text} for text, value in levels.items()])
    layers = [
        vertical.mark_rule(color=ink, strokeDash=[2, 3], strokeWidth=1.5).encode(x),
        vertical.mark_text(color=ink, baseline="bottom", dy=-4).encode(x, y=alt.value(0), text="text:N"),
        _series(rows, styles).mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=x_title), y, offset, x2="high:Q"),
        _marked([row for row in rows if not row["text"]], styles, 80).encode(x, y, offset),
    ]
    edges: tuple[tuple[Literal["left", "right"], float], ...] = (("left", first), ("right", last))
    for align, place in edges:
        beyond = [row for row in rows if row["text"] and row["x"] == place]
        if beyond:
            text = _chart(beyond).mark_text(align=align, dx=5 if align == "left" else -5, color=ink)
            layers.append(text.encode(x, y, offset, text="text:N"))
    told = "; ".join(f"{name}: {', '.join(span.note for span in spans if span.row == name)}" for name in order)
    return _finished(layers, y_title, f"{x_title}. {told}.", height=22 * len(styles) * len(order))


# ---- parts ----------------------------------------------------------------------------------------------------------

_QUARTERS = [0, 0.25, 0.5, 0.75, 1]


def _trade_off(retain: float | None, level: float) -> tuple[alt.X, alt.Y, list[alt.Chart]]:
    """Axes of (log10 forget quality, utility), and the region in which the KS test sees no difference."""
    axis = alt.Axis(
        values=list(range(-12, 1, 2)), format="~f", labelExpr="(datum.value == -12 ? '≤ ' : '') + datum.label"
    )
    scale = alt.Scale(domain=[_LEFT, 0.25], nice=False)
    title = "forget quality, log10 p"
    x = alt.X("x:Q", title=title, scale=scale, axis=axis)
    y = alt.Y(
        "y:Q", title=None, scale=alt.Scale(domain=[-0.03, 1.04], nice=False), axis=alt.Axis(tickCount=6, format="~f")
    )
    edge = {"x": math.log10(level), "end": 0.25, "y": 0.0, "text": f"p > {level:g}"}
    region = _chart([edge])
    layers = [
        region.mark_rect(color=LIGHT["region"]).encode(x, x2="end:Q"),
        region.mark_text(align="right", dx=-4, color=LIGHT["ink"]).encode(
            alt.X("end:Q", title=title), y, text="text:N"
        ),
    ]
    if retain is not None:
        line = _level(retain).encode(y)
        words = _chart([{"x": FLOOR / 2, "y": retain, "text": f"retain model {retain:.2f}"}])
        layers += [line, words.mark_text(dy=-9, color=LIGHT["ink"]).encode(x, y, text="text:N")]
    return x, y, layers


def _trajectories(
    rows: Sequence[dict[str, Any]], styles: Mapping[str, Style], x: alt.X, y: alt.Y, size: int = 80, joined: bool = True
) -> list[alt.Chart]:
    """Lines with a marker at each evaluation; the last is larger, the chosen one has a ring."""
    rows = _with_hover(rows)  # in all layers, so that the data is in the chart once
    line = _series(rows, styles).mark_line(strokeWidth=2)
    dash = _by_setting(alt.StrokeDash, styles, "dash")
    ring = _series(rows, styles).transform_filter("datum.chosen")
    ring = ring.mark_point(shape="circle", size=4 * size, strokeWidth=1.1)
    return [
        *([line.encode(x, y, strokeDash=dash, detail="run:N", order="order:Q")] if joined else []),
        *([ring.encode(x, y, color=alt.value(LIGHT["ink"]))] if any(row["chosen"] for row in rows) else []),
        _marked(rows, styles, size).encode(x, y),
    ]


def _series(rows: Sequence[dict[str, Any]], styles: Mapping[str, Style]) -> alt.Chart:
    """Marks in the colour of their setting, pale where the legend has selected others."""
    bright = alt.condition(_PICKED, alt.value(1.0), alt.value(0.12))
    series: alt.Chart = _chart(rows).encode(color=_by_setting(alt.Color, styles, "colour"), opacity=bright)
    return series


def _marked(rows: Sequence[dict[str, Any]], styles: Mapping[str, Style], size: int) -> alt.Chart:
    """Markers of the settings, with tooltips."""
    marked: alt.Chart = (
        _series(_with_hover(rows), styles)
        .mark_point(filled=True, stroke=LIGHT["page"], strokeWidth=0.6)
        .encode(
            shape=_by_setting(alt.Shape, styles, "marker"),
            size=alt.condition("datum.last", alt.value(2.2 * size), alt.value(size)),
            tooltip=[alt.Tooltip(field=f"hover{i}", type="nominal", title=name) for i, name in enumerate(_hover(rows))],
        )
        .add_params(_PICKED)
    )
    return marked


def _hover(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names in the tooltips of any of the rows."""
    return list(dict.fromkeys(name for row in rows for name in row["hover"]))


def _with_hover(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the tooltip in fields of names of our own: dots and brackets mean something in a name."""
    names = _hover(rows)
    return [row | {f"hover{i}": row["hover"].get(name, "") for i, name in enumerate(names)} for row in rows]


def _by_setting(channel: Any, styles: Mapping[str, Style], part: str) -> Any:
    """The encoding of settings by one part of their styles; all parts together make one legend."""
    values = [getattr(style, part) for style in styles.values()]
    values = [LIGHT[value] for value in values] if part == "colour" else values
    return channel("setting:N", title=None, scale=alt.Scale(domain=list(styles), range=values))


def _rows(curves: Sequence[Curve], floor: float = -math.inf) -> list[dict[str, Any]]:
    """The points of curves as rows of data."""
    return [
        {"setting": curve.setting, "run": curve.run, "x": max(point.x, floor), "y": point.y, "order": order}
        | {"chosen": point.chosen, "last": order == len(curve.points) - 1, "hover": point.hover}
        for curve in curves
        for order, point in enumerate(curve.points)
    ]


def _chart(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    values = [{name: value for name, value in row.items() if name != "hover"} for row in rows]
    return alt.Chart(alt.InlineData(values=values))


def _level(value: float) -> alt.Chart:
    """The retain model's level over the whole width; its y axis is that of the chart it is laid into."""
    colour, dash = LIGHT[RETAIN.colour], list(RETAIN.dash)
    line: alt.Chart = _chart([{"y": value}]).mark_rule(color=colour, strokeWidth=2, strokeDash=dash)
    return line


def _present(curves: Sequence[Curve], styles: Mapping[str, Style]) -> dict[str, Style]:
    """Styles of the settings that are drawn."""
    return {curve.setting: styles[curve.setting] for curve in curves}


def _finished(
    layers: Sequence[alt.Chart], title: str, description: str, width: int = 640, height: int = 380
) -> alt.LayerChart:
    """The layers on each other; the y axis is named above its upper end, so that no text is turned."""
    dim, ink = LIGHT["dim"], LIGHT["ink"]
    axis = {"gridColor": LIGHT["rule"], "domainColor": dim, "tickColor": dim, "labelColor": dim, "titleColor": ink}
    small = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    chart: alt.LayerChart = (
        alt.layer(*layers)
        .properties(width=width, height=height, description=description)
        .properties(title=alt.Title(title, anchor="start", frame="bounds", fontSize=12, fontWeight="normal", color=ink))
        .configure(background=LIGHT["page"], padding=4)
        .configure_axis(**axis, **small)
        .configure_axisX(titleAnchor="end")
        .configure_view(stroke=dim)
        .configure_text(fontSize=12)
        .configure_legend(labelColor=ink, labelFontSize=12, labelLimit=0, symbolSize=80, symbolStrokeWidth=0.5)
    )
    return chart


def _signed(value: float) -> str:
    return f"{value:.6g}".replace("-", "−").replace("inf", "∞")
