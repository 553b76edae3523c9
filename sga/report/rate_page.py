"""rate.html: each rule's λ and each layer's geometry with intervals, in the style of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sga.rates.estimates import UNINFORMED, GeometryEstimates, IntervalEstimate, RuleEstimates
from sga.rates.policies import MinNormRate
from sga.rates.smoothing import equivalent_normal_weight
from sga.report.pages import render
from sga.report.rate_advice import SYMBOLS, with_interval
from sga.report.styles import RETAIN, Style

if TYPE_CHECKING:
    import altair as alt

Rows = Sequence[Sequence[str]]

_STYLES = {
    "mean gradients of the sample": Style("c2"),
    "without noise": Style("c0", marker=RETAIN.marker),
}


def rate_page(
    title: str,
    answer: str,
    about: Sequence[str],
    advice: Sequence[str],
    rules: Sequence[RuleEstimates],
    layers: Mapping[str, GeometryEstimates],
    tables: Sequence[Rows],
    group_size: int,
) -> str:
    """HTML of the whole page; it quotes nothing of the data.

    Args:
        title: Heading of the page.
        answer: Sentences with the rate to set, and how certain that is.
        about: Lines on the model, the data and the estimation.
        advice: Sentences that follow from the numbers.
        rules: Estimates of each rule.
        layers: Gradient geometry of each layer, by its name.
        tables: Tables of the rules and of the layers, as on the terminal, heads first.
        group_size: Number of sequences in a group (K).
    """
    ratios = [one for g in layers.values() for one in (g.interference, g.interference_noise_free)]
    cosines = [one for g in layers.values() for one in (g.cosine, g.cosine_noise_free)]
    charts = {
        "rules": _rules_chart(rules, group_size),
        "cosines": _layers_chart(
            layers,
            lambda g: (g.cosine, g.cosine_noise_free),
            _bounds([*(end for one in cosines for end in (one.low, one.high)), 0.0, 1.0], -1.0, 1.0),
            "cosine of g_f and ḡ_n",
        ),
        "ratios": _layers_chart(
            layers,
            lambda g: (g.interference, g.interference_noise_free),
            _bounds([*(end for one in ratios for end in (one.low, one.high)), 0.0, 1.0], -4.0, 4.0),
            "c/n, the λ below which the normal loss rises",
        ),
    }
    return render(
        "rate.html.j2",
        title,
        charts,
        answer=answer,
        about=about,
        advice=advice,
        symbols=SYMBOLS,
        tables=tables,
        styles=_STYLES,
    )


def _rules_chart(rules: Sequence[RuleEstimates], group_size: int) -> alt.LayerChart:
    shown = [found for found in rules if not isinstance(found.rule.policy, MinNormRate)]
    rows = {found.rule.name: (found.weight, found.weight_noise_free) for found in shown}
    ends = [end for estimates in rows.values() for one in estimates for end in (one.low, one.value, one.high)]
    levels = {"GA": 0.0, "r = −1": equivalent_normal_weight(group_size, UNINFORMED), "GD": 1.0}
    return _chart(rows, levels, _bounds([*ends, 0.0, 1.0], -1.0, 4.0), "λ", "rule")


def _layers_chart(
    layers: Mapping[str, GeometryEstimates],
    numbers: Callable[[GeometryEstimates], tuple[IntervalEstimate, IntervalEstimate]],
    bounds: tuple[float, float],
    x_title: str,
) -> alt.LayerChart:
    rows = {name: numbers(geometry) for name, geometry in layers.items()}
    return _chart(rows, {"0": 0.0}, bounds, x_title, "layer")


def _chart(
    rows: Mapping[str, tuple[IntervalEstimate, IntervalEstimate]],
    levels: Mapping[str, float],
    bounds: tuple[float, float],
    x_title: str,
    y_title: str,
) -> alt.LayerChart:
    from sga.report.charts import Span, interval_chart  # not at the top: imports Altair

    spans = [
        Span(name, kind, one.value, one.low, one.high, with_interval(one))
        for name, estimates in rows.items()
        for kind, one in zip(_STYLES, estimates, strict=True)
    ]
    return interval_chart(spans, _STYLES, levels, bounds, x_title, y_title)


def _bounds(values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """An axis for the values, but no further out than asked for."""
    finite = [min(max(value, lowest), highest) for value in values if not math.isinf(value)]
    room = 0.04 * (max(finite) - min(finite))
    return min(finite) - room, max(finite) + room
