"""rate.html: each rule's λ and each layer's geometry with intervals, in the style of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from sga.rates.estimates import UNINFORMED, GeometryEstimates, IntervalEstimate, RuleEstimates
from sga.rates.policies import MinNormRate
from sga.rates.smoothing import equivalent_normal_weight
from sga.report.charts import ReferenceLine, Span, Style, interval_chart, swatch
from sga.report.rate_advice import SYMBOLS, with_interval
from sga.report.style import document, numbers_table

Rows = Sequence[Sequence[str]]

_SAMPLE, _NOISE_FREE = Style("c2", "", "circle"), Style("c0", "", "diamond")
_LEVEL = Style("retain", "2 3", "")


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
    """The whole page as text; it quotes nothing of the data.

    Args:
        title: What was looked at.
        answer: What to set, and how far that is certain.
        about: How the numbers were made.
        advice: Sentences.
        rules: What each rule asks for.
        layers: Geometry by layer.
        tables: Of the rules and of the layers, as on the terminal, heads first.
        group_size: K.
    """
    legend = (
        f'<ul class="legend"><li>{swatch(_SAMPLE)} mean gradients of the sample</li>'
        f"<li>{swatch(_NOISE_FREE)} without noise</li></ul>"
    )
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in advice)
    symbols = "".join(f"<dt>{escape(symbol)}</dt><dd>{escape(meaning)}</dd>" for symbol, meaning in SYMBOLS)
    ratios = [
        end
        for geometry in layers.values()
        for estimate in (geometry.interference, geometry.interference_noise_free)
        for end in (estimate.low, estimate.high)
    ]
    cosines = [end for g in layers.values() for e in (g.cosine, g.cosine_noise_free) for end in (e.low, e.high)]
    return document(
        title,
        [
            f'<header><h1>{escape(title)}</h1><p class="small">{"<br>".join(map(escape, about))}</p></header>',
            f"<p><strong>{escape(answer)}</strong></p>",
            f'<ul class="conclusions">{sentences}</ul>',
            f"<section><h2>Symbols</h2><dl>{symbols}</dl></section>",
            f"<section><h2>Rules</h2><figure>{legend}{_rules_chart(rules, group_size)}<figcaption>Every rule as λ, the "
            "weight of the normal samples beside an ascent of weight 1, with 95 % bootstrap intervals over groups. "
            "r = −1 is what the paper's rate gives without information, λ = 1 the limit r → −∞ and gradient "
            "difference; only margin_lambda goes beyond it. min_norm is not drawn: it ascends the normal samples."
            f"</figcaption></figure>{numbers_table(tables[0])}</section>",
            f"<section><h2>Layers</h2><figure>{legend}"
            + _layers_chart(
                layers,
                lambda g: (g.cosine, g.cosine_noise_free),
                _bounds([*cosines, 0.0, 1.0], -1.0, 1.0),
                "cosine of g_f and ḡ_n",
                "cosines",
            )
            + _layers_chart(
                layers,
                lambda g: (g.interference, g.interference_noise_free),
                _bounds([*ratios, 0.0, 1.0], -4.0, 4.0),
                "c/n, the λ below which the normal loss rises",
                "ratios",
            )
            + "<figcaption>What a rule would read if a layer were all there is. One rate is set for all of them: "
            f"the sums of inner products count, not the mean of these numbers.</figcaption></figure>"
            f"{numbers_table(tables[1])}</section>",
        ],
    )


def _rules_chart(rules: Sequence[RuleEstimates], group_size: int) -> str:
    shown = [found for found in rules if not isinstance(found.rule.policy, MinNormRate)]
    rows = [
        (found.rule.name, [_span(found.weight, _SAMPLE), _span(found.weight_noise_free, _NOISE_FREE)])
        for found in shown
    ]
    ends = [end for _, spans in rows for span in spans for end in (span.low, span.value, span.high)]
    levels = [
        ReferenceLine("GA", 0.0, _LEVEL),
        ReferenceLine("r = −1", equivalent_normal_weight(group_size, UNINFORMED), _LEVEL),
        ReferenceLine("GD", 1.0, _LEVEL),
    ]
    return interval_chart(rows, levels, _bounds([*ends, 0.0, 1.0], -1.0, 4.0), "λ", "rule", "rules")


def _layers_chart(
    layers: Mapping[str, GeometryEstimates],
    numbers: Callable[[GeometryEstimates], tuple[IntervalEstimate, IntervalEstimate]],
    bounds: tuple[float, float],
    x_label: str,
    identifier: str,
) -> str:
    rows = []
    for name, geometry in layers.items():
        sample, noise_free = numbers(geometry)
        rows.append((name, [_span(sample, _SAMPLE), _span(noise_free, _NOISE_FREE)]))
    return interval_chart(rows, [ReferenceLine("0", 0.0, _LEVEL)], bounds, x_label, "layer", identifier)


def _span(estimate: IntervalEstimate, style: Style) -> Span:
    return Span(estimate.value, estimate.low, estimate.high, style, with_interval(estimate))


def _bounds(values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """An axis for the values, but no further out than asked for."""
    finite = [min(max(value, lowest), highest) for value in values if not math.isinf(value)]
    room = 0.04 * (max(finite) - min(finite))
    return min(finite) - room, max(finite) + room
