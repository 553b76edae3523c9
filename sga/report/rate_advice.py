"""Sentences on the estimates of `sga rate`: the rate to set, and which findings are more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sga.rates.estimates import BEST_MARGIN, UNINFORMED, GeometryEstimates, IntervalEstimate, RuleEstimates
from sga.rates.policies import MarginRate, MarginWeight, PaperRate
from sga.rates.smoothing import equivalent_normal_weight, equivalent_smoothing_rate

if TYPE_CHECKING:
    from sga.losses.base import Loss

FEW_CHUNKS = 16
"""With fewer chunks than this an interval is coarse."""

MUCH_NOISE = 0.5
"""Share of a squared gradient norm from which on a step reads more noise than signal."""

SYMBOLS = (
    (
        "r",
        "smoothing rate: 0 is gradient ascent on the forget samples; below it the normal ones are descended on",
    ),
    ("λ", "weight of the normal samples beside a forget sample of weight 1; r from 0 to −∞ is λ from 0 to 1"),
    ("K", "size of a group: one forget sample and K − 1 normal samples"),
    ("g_f, ḡ_n", "gradients of the mean loss of the forget samples, and of the normal samples"),
    ("‖ ‖, ⟨ , ⟩", "length of a gradient, and inner product of two"),
    ("c, n", "c = ⟨ḡ_n, g_f⟩ and n = ‖ḡ_n‖²; c/n is the λ below which the normal loss rises, to first order"),
    ("u", "(K − 1)/K · (ḡ_n − g_f), the way r moves the update; paper is ⟨g_f, u⟩/‖u‖², min_norm its opposite"),
    ("m", "margin, in brackets after a rule: the normal loss is to fall as in plain descent on it with weight m"),
    ("margin", "the r that keeps the margin; margin_lambda is the λ that does, which may be 1 and more"),
    ("norm_ratio", "the λ at which g_f and λ·ḡ_n are of one length: normalised gradient difference"),
    ("without noise", "noise-free: estimated from pairs of different chunks, which share no noise of single groups"),
    ("at batch B", "what a training step of B groups reads on average, its noise included"),
    ("applied", "what the rule's policy would set on the sample's gradients, clamps included"),
    ("answered", "share of the resamples in which the rule has an answer"),
    ("x (a to b)", "a number with its bootstrap interval"),
)
"""Symbols and words in the tables and sentences of `sga rate`, with their meanings."""


@dataclass(frozen=True)
class Sample:
    """The sample behind the estimates.

    Attributes:
        taken: Number of groups in the sample.
        available: Number of groups in the data.
        chunks: Number of chunks that the groups are split into (C).
        group_size: Number of sequences in a group (K).
        batch_size: Number of groups in a training step.
        seed: Seed of the drawing of groups.
    """

    taken: int
    available: int
    chunks: int
    group_size: int
    batch_size: int
    seed: int


def recommended(rules: Iterable[RuleEstimates]) -> RuleEstimates | None:
    """The rule that did best in this project's sweep, unless the λ that it asks for is or may be beyond its clamps."""
    found = next(one for one in rules if one.rule.policy == MarginWeight(margin=BEST_MARGIN))
    lowest, highest = found.rule.policy.bounds
    weight = found.weight_noise_free
    return found if lowest < min(weight.low, weight.value) and max(weight.value, weight.high) < highest else None


def answer(rules: Sequence[RuleEstimates], group_size: int) -> str:
    """The rate to set, in plain words, and how certain that is.

    Args:
        rules: Estimates of each rule, that of `BEST_MARGIN` among them.
        group_size: Number of sequences in a group (K).
    """
    name = f"margin_lambda with m = {BEST_MARGIN:g}"
    fixed = "As a fixed rate, r = −8 (λ = 0.86) did best of those that were swept at K = 4, and was the lowest."
    found = recommended(rules)
    if found is None:
        asked = next(one for one in rules if one.rule.policy == MarginWeight(margin=BEST_MARGIN)).weight_noise_free
        return (
            f"Which r? This sample does not say: {name}, the rule that did best in the project's own sweep, asks for "
            f"λ = {with_interval(asked)}, which reaches beyond what it may set (0 to 8). Take more groups if there are "
            f"any (--groups), or compare rates by runs (sga sweep). {fixed}"
        )
    weight, rate = found.weight_noise_free, equivalent_smoothing_rate(group_size, found.weight_noise_free.value)
    here = (
        f"λ = {with_interval(weight)}, beyond what any r reaches"
        if rate is None
        else f"r = {number(rate)} (λ = {number(weight.value)}, {number(weight.low)} to {number(weight.high)})"
    )
    return (
        f"Which r? Better not a fixed one: let the rule {name} set the weight λ of the normal samples (the forget "
        f"sample's is 1) anew at every step; here it asks for {here}. That is --model.loss=sga.GradientDifference "
        f"--model.loss.normal_weight=sga.MarginWeight --model.loss.normal_weight.margin={BEST_MARGIN:g} as options. "
        "That it is best here is not certain: it had the highest mean in the project's own sweep, over 3 seeds of one "
        "small world, ahead of a fixed λ of 1 to 2 by no "
        f"more than noise. {fixed}"
    )


def advice(
    whole: GeometryEstimates, rules: Sequence[RuleEstimates], sample: Sample, loss: Loss | None = None
) -> list[str]:
    """Sentences for a reader who has to choose a rate.

    Args:
        whole: Geometry over all trainable parameters.
        rules: Estimates of each rule.
        sample: Sample behind all of the estimates.
        loss: Loss of the configuration, if it has one.
    """
    found = [_sign(whole), *(_paper(rule.rate_noise_free) for rule in rules if isinstance(rule.rule.policy, PaperRate))]
    found.append(_interference(whole, sample.group_size))
    own = _fixed_weight(loss, sample.group_size)
    if own is not None:
        found.append(_configured(own, whole.interference_noise_free))
    found += [_noise(whole, sample), *_what_to_set(rules)]
    if sample.taken == sample.available:
        found.append(
            f"All {sample.taken} groups were taken: the values of r and λ are those of this forget set. The intervals "
            "and what is called noise say how far another set of such groups, or a step's batch, would be off."
        )
    if sample.chunks < FEW_CHUNKS:
        found.append(f"{sample.chunks} chunks make coarse intervals; take more groups or chunks where there are any.")
    found.append(
        "All of this is first order, in plain gradient descent and at these weights. It moves as training goes, says "
        "nothing about momentum or Adam, and does not say which rate forgets best: sga sweep does."
    )
    return found


def number(value: float, digits: int = 2) -> str:
    """A number with `digits` decimals, a real minus sign, and ∞.

    >>> number(-0.804), number(float("-inf")), number(-0.001)
    ('−0.80', '−∞', '0.00')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def with_interval(estimate: IntervalEstimate, digits: int = 2) -> str:
    """The estimate, followed by its interval in brackets."""
    ends = f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"
    return f"{number(estimate.value, digits)} ({ends})"


def _sign(whole: GeometryEstimates) -> str:
    shown = f"⟨g_f, u⟩/‖g_f‖² is {with_interval(whole.sign)}"
    if whole.sign.high < 0:
        return f"{shown}: negative, so by the paper's sign rule r should be, with descent on the normal samples."
    if whole.sign.low > 0:
        return (
            f"{shown}: positive, so the paper's sign rule asks for r > 0, which ascends normal samples and destroys "
            "utility; no rule here applies that. Look at whether the groups belong together (sga data show)."
        )
    return f"{shown}: the interval holds 0, so the sample does not say which sign the paper's rule asks for."


def _paper(rate: IntervalEstimate) -> str:
    distance = rate + -UNINFORMED
    shown = f"The paper's rate without noise is {with_interval(rate)}, {with_interval(distance)} away from −1"
    if rate.holds(UNINFORMED):
        return (
            f"{shown}. It cannot be told from −1, which it is for any data whose gradients have equal norms and "
            "cosines: it carries no information here, and being close to −0.8 is no evidence for −0.8."
        )
    return (
        f"{shown}, so norms or cosines of the gradients are unequal. That is a fact about the two gradients; that the "
        "rate is the best one does not follow."
    )


def _interference(whole: GeometryEstimates, group_size: int) -> str:
    ratio = whole.interference_noise_free
    shown = f"c/n = ⟨ḡ_n, g_f⟩/‖ḡ_n‖² without noise is {with_interval(ratio)}"
    if ratio.low > 0:
        rate = equivalent_smoothing_rate(group_size, ratio.value)
        reach = f"r at most {number(rate)}" if rate is not None else "beyond what any r reaches"
        return (
            f"{shown}: forgetting hurts the normal samples. To first order their loss rises unless λ is at least "
            f"{number(ratio.value)} ({reach})."
        )
    if ratio.high < 0:
        return f"{shown}: forgetting helps the normal samples, to first order; any r ≤ 0 lowers their loss."
    return f"{shown}: whether forgetting hurts or helps the normal samples cannot be told from this sample."


def _fixed_weight(loss: Loss | None, group_size: int) -> tuple[str, float] | None:
    """The configuration's fixed number in words, and as λ; None where it has none or it has no λ."""
    from sga.losses.ascent import WeighingLoss  # not at the top: losses import PyTorch

    if not isinstance(loss, WeighingLoss) or loss.policy is not None:
        return None
    value = float(getattr(loss, loss.parameter))
    if loss.parameter == "normal_weight":
        return f"λ = {number(value)}", value
    if value >= 1:
        return None
    weight = equivalent_normal_weight(group_size, value)
    return f"r = {number(value)} (λ = {number(weight)})", weight


def _configured(own: tuple[str, float], ratio: IntervalEstimate) -> str:
    words, weight = own
    margin = IntervalEstimate(weight - ratio.value, weight - ratio.high, weight - ratio.low)
    shown = f"The configuration's {words} is a margin_lambda with m = {with_interval(margin)}"
    if margin.low > 0:
        return f"{shown}: to first order the normal loss falls at these weights."
    if margin.high < 0:
        return f"{shown}: below 0, so to first order the normal loss rises at these weights."
    return f"{shown}: whether the normal loss falls or rises at these weights cannot be told."


def _noise(whole: GeometryEstimates, sample: Sample) -> str:
    shown = (
        f"In a step of {sample.batch_size} groups {whole.forget_noise:.0%} of ‖g_f‖² and {whole.normal_noise:.0%} of "
        "‖ḡ_n‖² are noise"
    )
    if max(whole.forget_noise, whole.normal_noise) >= MUCH_NOISE:
        return (
            f"{shown}: rules that look at single steps follow noise more than signal. A larger --data.batch_size, or "
            "averaging in the rule's settings, steadies them; the bias of the norms goes with the batch size only."
        )
    return f"{shown}."


def _what_to_set(rules: Sequence[RuleEstimates]) -> list[str]:
    """Configuration lines for the margin rule of r, where one can be followed."""
    reachable = [
        (policy.margin == 0, policy.margin)
        for found in rules
        if isinstance(policy := found.rule.policy, MarginRate)
        and policy.lowest < found.rate_noise_free.low
        and found.rate_noise_free.value < 0
    ]
    if not reachable:
        return ["No margin rule asks for an r that lies within its clamps with some certainty; λ is free of that."]
    _, margin = min(reachable)
    return [
        "To stay with an r and keep a margin as gradients change: --model.loss=sga.SmoothedGradientAscent "
        f"--model.loss.smoothing_rate=sga.MarginRate --model.loss.smoothing_rate.margin={margin:g}"
    ]
