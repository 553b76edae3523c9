"""Each rule's rate from Gram matrices: of the sample, without noise, and as a run's steps would see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sga.evaluation.bootstrap import Bootstrap
from sga.rates.geometry import Geometry
from sga.rates.policies import DynamicRate, MarginRate, MarginWeight, MinNormRate, NormRatio, PaperRate, RateState
from sga.rates.smoothing import equivalent_normal_weight, equivalent_smoothing_rate

if TYPE_CHECKING:
    from sga.rates.gram import Gram

UNINFORMED = -1.0
"""The paper's rate where all gradients of a group have equal norms and equal cosines, whatever these are."""

BEST_MARGIN = 1.0
"""m of the margin_lambda that had the highest mean frontier area in this project's sweep (docs/results/rules.csv)."""


@dataclass(frozen=True)
class RateRule:
    """A rule under its name, with the policy that applies it in training."""

    name: str
    policy: DynamicRate

    def proposal(self, geometry: Geometry) -> float:
        """Number that the rule asks for before any clamp; its limit, ±∞, where it has no answer."""
        found = self.policy.propose(geometry)
        if found is not None:
            return found
        if isinstance(self.policy, PaperRate):  # ‖u‖ → 0
            return math.copysign(math.inf, geometry.forget_dot_u)
        if isinstance(self.policy, MinNormRate):
            return math.copysign(math.inf, -geometry.forget_dot_u)
        if isinstance(self.policy, MarginWeight):  # ‖ḡ_n‖ → 0
            return math.copysign(math.inf, geometry.inner)
        if isinstance(self.policy, NormRatio):  # ‖ḡ_n‖ → 0, or else ‖g_f‖ → 0
            return 0.0 if geometry.normal_squared > 0 else math.inf
        return -math.inf  # c → n

    def rate(self, number: float, group_size: int) -> float:
        """The rule's number as r; −∞ where no r reaches it."""
        if self.policy.parameter != "normal_weight":
            return number
        rate = equivalent_smoothing_rate(group_size, number)
        return -math.inf if rate is None else rate

    def weight(self, number: float, group_size: int) -> float:
        """The rule's number as λ; −∞ where the forget sample would be descended on."""
        if self.policy.parameter == "normal_weight":
            return number
        if number == -math.inf:
            return 1.0
        return equivalent_normal_weight(group_size, number) if number * (group_size - 1) < group_size else -math.inf


def rules(margins: Sequence[float], own: DynamicRate | None = None) -> list[RateRule]:
    """All rules: the margin ones for each m, that of `BEST_MARGIN`, and the configuration's own if it is another."""
    found = [RateRule("paper", PaperRate()), RateRule("min_norm", MinNormRate())]
    found += [RateRule(f"margin({m:g})", MarginRate(margin=m)) for m in margins]
    found.append(RateRule("norm_ratio", NormRatio()))
    found += [RateRule(f"margin_lambda({m:g})", MarginWeight(margin=m)) for m in dict.fromkeys((*margins, BEST_MARGIN))]
    if own is not None and own not in [rule.policy for rule in found]:
        found.append(RateRule(str(own), own))
    return found


@dataclass(frozen=True)
class IntervalEstimate:
    """A number with its bootstrap interval over groups.

    Attributes:
        value: Estimate of the number; infinite where it has no finite value.
        low: Lower end of the interval; infinite where the interval is open.
        high: Upper end of the interval; infinite under the same condition.
    """

    value: float
    low: float
    high: float

    def holds(self, number: float) -> bool:
        """True if the interval contains a number."""
        return self.low <= number <= self.high

    def __add__(self, shift: float) -> IntervalEstimate:
        return IntervalEstimate(self.value + shift, self.low + shift, self.high + shift)


@dataclass(frozen=True)
class RuleEstimates:
    """Numbers that a rule asks for.

    Attributes:
        rule: Rule with its policy.
        rate: Smoothing rate r from the mean gradients over the sample.
        weight: Normal weight λ that `rate` is equivalent to.
        rate_noise_free: Smoothing rate r from unbiased estimates of the inner products.
        weight_noise_free: Normal weight λ that `rate_noise_free` is equivalent to.
        batch_rate: Smoothing rate r at the inner products that a step of the configured batch size has on average.
        batch_weight: Normal weight λ that `batch_rate` is equivalent to.
        applied: Number that the rule's policy would apply to the sample's gradients, r or λ as the policy has it.
        clamped: True if a bound of the policy changed that number.
        answered: True if the rule has an answer for the sample's gradients.
        answered_share: Share of resamples for which the rule has an answer, in [0, 1].
    """

    rule: RateRule
    rate: IntervalEstimate
    weight: IntervalEstimate
    rate_noise_free: IntervalEstimate
    weight_noise_free: IntervalEstimate
    batch_rate: float
    batch_weight: float
    applied: float
    clamped: bool
    answered: bool
    answered_share: float


@dataclass(frozen=True)
class GeometryEstimates:
    """Geometry of the gradients in some parameters.

    Attributes:
        sample: Inner products of the mean gradients over the sample.
        noise_free: Unbiased estimates of the inner products of the expected gradients.
        batch: Inner products that a step of the configured batch size has on average.
        cosine: Cosine of the sample's gradients.
        cosine_noise_free: Cosine from the unbiased estimates.
        interference: Ratio c/n of the sample, the λ below which the normal loss rises; infinite unless n is positive.
        interference_noise_free: Ratio c/n from the unbiased estimates.
        sign: Ratio ⟨g_f, u⟩/‖g_f‖² from the unbiased estimates; its sign is the paper's advice on the sign of r.
    """

    sample: Geometry
    noise_free: Geometry
    batch: Geometry
    cosine: IntervalEstimate
    cosine_noise_free: IntervalEstimate
    interference: IntervalEstimate
    interference_noise_free: IntervalEstimate
    sign: IntervalEstimate

    @property
    def forget_noise(self) -> float:
        """Share of ‖g_f‖² that is noise at the configured batch size, in [0, 1]."""
        return _noise(self.batch.forget_squared, self.noise_free.forget_squared)

    @property
    def normal_noise(self) -> float:
        """Share of ‖ḡ_n‖² that is noise at the configured batch size, in [0, 1]."""
        return _noise(self.batch.normal_squared, self.noise_free.normal_squared)


class Estimator:
    """Estimates from Gram matrices with one set of resamples, so that rules and layers belong together.

    Args:
        chunks: Number of chunks C.
        batch_size: Number of groups of a training step.
        bootstrap: Source of the resamples.
    """

    def __init__(self, chunks: int, batch_size: int, bootstrap: Bootstrap) -> None:
        counts = bootstrap.counts("chunks", chunks)
        self.counts = counts[(counts > 0).sum(axis=1) > 1]  # one chunk alone has no pairs
        self.batch_size, self.level = batch_size, bootstrap.level

    def geometry(self, gram: Gram) -> GeometryEstimates:
        """Geometry with intervals."""
        sample, noise_free = self._draws(gram, gram.groups), self._draws(gram, math.inf)
        return GeometryEstimates(
            sample=sample[0],
            noise_free=noise_free[0],
            batch=gram.geometry(self.batch_size),
            cosine=self._estimate(_cosine, sample),
            cosine_noise_free=self._estimate(_cosine, noise_free),
            interference=self._estimate(_interference, sample),
            interference_noise_free=self._estimate(_interference, noise_free),
            sign=self._estimate(_sign, noise_free),
        )

    def rules(self, gram: Gram, chosen: Iterable[RateRule]) -> list[RuleEstimates]:
        """Numbers that each rule asks for, with intervals."""
        sample, noise_free = self._draws(gram, gram.groups), self._draws(gram, math.inf)
        batch, size = gram.geometry(self.batch_size), gram.group_size
        found = []
        for rule in chosen:
            state = rule.policy.decide(RateState(), 0, 1, sample[0])
            assert state.value is not None, "geometry was given"

            def rate(geometry: Geometry, rule: RateRule = rule) -> float:
                return rule.rate(rule.proposal(geometry), size)

            def weight(geometry: Geometry, rule: RateRule = rule) -> float:
                return rule.weight(rule.proposal(geometry), size)

            answered = [rule.policy.propose(geometry) is not None for geometry in sample]
            found.append(
                RuleEstimates(
                    rule=rule,
                    rate=self._estimate(rate, sample),
                    weight=self._estimate(weight, sample),
                    rate_noise_free=self._estimate(rate, noise_free),
                    weight_noise_free=self._estimate(weight, noise_free),
                    batch_rate=rate(batch),
                    batch_weight=weight(batch),
                    applied=state.value,
                    clamped=bool(state.clamped_low or state.clamped_high),
                    answered=answered[0],
                    answered_share=sum(answered[1:]) / len(answered[1:]),
                )
            )
        return found

    def _draws(self, gram: Gram, groups: float) -> list[Geometry]:
        """Estimate, followed by its resamples."""
        return [gram.geometry(groups), *gram.resampled(self.counts, groups)]

    def _estimate(self, number: Callable[[Geometry], float], draws: Sequence[Geometry]) -> IntervalEstimate:
        """A function of geometries at the estimate, and the percentile interval of its resamples.

        The ends are order statistics, so that infinite draws need no arithmetic.
        """
        value, *others = (number(geometry) for geometry in draws)
        ordered = sorted(others)
        outside = int((1 - self.level) / 2 * len(ordered))
        return IntervalEstimate(value, ordered[outside], ordered[-1 - outside])


def total_gram(grams: Mapping[str, Gram]) -> Gram:
    """Gram matrices over all parameters from those of the layers."""
    first, *others = grams.values()
    for other in others:
        first = first + other
    return first


def _cosine(geometry: Geometry) -> float:
    return geometry.cosine


def _interference(geometry: Geometry) -> float:
    if geometry.normal_squared > 0:
        return geometry.inner / geometry.normal_squared
    return math.copysign(math.inf, geometry.inner) if geometry.inner else 0.0


def _sign(geometry: Geometry) -> float:
    return geometry.forget_dot_u / geometry.forget_squared if geometry.forget_squared > 0 else 0.0


def _noise(batch: float, noise_free: float) -> float:
    return min(1.0, max(0.0, 1 - noise_free / batch)) if batch > 0 else 0.0
