"""Rate policies: what sets the smoothing rate r, or the normal weight λ, as training goes.

A policy is a frozen dataclass, chosen by class path in a config, and has no state of its own: what it must remember is
a `RateState` that goes in and comes out, so that a run resumes where it stopped. One of your own is a few lines: a
`ScheduledRate` with `at`, or a `DynamicRate` with `propose`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

from sga.errors import UserError, check_finite, check_numbers
from sga.rates.geometry import Geometry, margin_rate, margin_weight, min_norm_rate, norm_ratio, paper_rate


@dataclass(frozen=True)
class RateState:
    """State of a policy between two optimiser steps; stored in checkpoints.

    Attributes:
        value: Number in force, r or λ; None before the first step.
        feasible: Number in force when the rule last had an answer; None before it had one.
        averages: Running averages of ‖g_f‖², ‖ḡ_n‖² and ⟨ḡ_n, g_f⟩; None before the first decision.
        decisions: Number of decisions from gradients so far.
        clamped_low: Number of decisions in which the rule asked for less than the lowest value.
        clamped_high: Number of decisions in which the rule asked for more than the highest value.
        infeasible: Number of decisions in which the rule had no answer.
    """

    value: float | None = None
    feasible: float | None = None
    averages: tuple[float, float, float] | None = None
    decisions: int = 0
    clamped_low: int = 0
    clamped_high: int = 0
    infeasible: int = 0


class RatePolicy(ABC):
    """Sets the number that a loss weighs with: r of SmoothedGradientAscent or λ of GradientDifference."""

    parameter: ClassVar[str | None] = None
    """Argument of a loss that the number is for, ``smoothing_rate`` or ``normal_weight``; None fits both."""
    dynamic: ClassVar[bool] = False
    """True if the policy reads gradients; the backward pass is then split in two."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest number that the policy may give; the loss checks them before training."""

    def check_steps(self, total_steps: int) -> None:  # noqa: B027  (most can set any)
        """Raises a UserError where this policy cannot set the number of a run of so many optimiser steps."""

    def needs_gradients(self, state: RateState, step: int) -> bool:
        """True if this step's gradients are wanted apart."""
        return self.dynamic

    @abstractmethod
    def decide(self, state: RateState, step: int, total_steps: int, geometry: Geometry | None) -> RateState:
        """State at this step, with the number in force as its `value`.

        Args:
            state: State of the step before.
            step: Number of optimiser steps taken so far.
            total_steps: Number of optimiser steps of the whole run.
            geometry: Inner products of the mean gradients over the step's global batch; None if they were not wanted.
        """

    def __str__(self) -> str:
        """The class with its own settings and those shared ones that are not as usual: ``MarginRate(margin=0.6)``."""
        settings: Sequence[Any] = fields(self)  # type: ignore[arg-type]
        shared = {field.name for base in type(self).__mro__[1:] if is_dataclass(base) for field in fields(base)}
        shown = [f.name for f in settings if f.name not in shared or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in shown)})"


# ---- schedules ------------------------------------------------------------------------------------------------------


class ScheduledRate(RatePolicy):
    """A number that follows from how far the run has come."""

    @abstractmethod
    def at(self, progress: float) -> float:
        """Number after a share of the run, 0 at the first optimiser step and 1 at the last."""

    @property
    def bounds(self) -> tuple[float, float]:
        values = [self.at(step / 1000) for step in range(1001)]
        return min(values), max(values)

    def decide(self, state: RateState, step: int, total_steps: int, geometry: Geometry | None) -> RateState:
        return replace(state, value=float(self.at(min(1.0, step / max(1, total_steps - 1)))))


@dataclass(frozen=True)
class FixedRate(ScheduledRate):
    """The same number at every step; a plain number in its place does the same.

    Args:
        value: Number to weigh with, r or λ.
    """

    value: float

    def __post_init__(self) -> None:
        check_finite(value=self.value)

    def at(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Ramp(ScheduledRate):
    """Moves over the run from one number to another.

    Args:
        start: Number at the first step.
        end: Number at the last step.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_finite(start=self.start, end=self.end)


@dataclass(frozen=True)
class LinearRate(Ramp):
    """Moves in a straight line over the run."""

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class CosineRate(Ramp):
    """Moves over the run along half a cosine: slowly at both ends."""

    def at(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class PiecewiseRate(ScheduledRate):
    """Constant over each part of the run.

    Args:
        values: Numbers of the parts, in order.
        boundaries: Shares of the run at which a new part begins, rising, between 0 and 1; one fewer than `values`.
    """

    values: tuple[float, ...]
    boundaries: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise UserError(
                f"values must be one more than boundaries, got {len(self.values)} values and "
                f"{len(self.boundaries)} boundaries"
            )
        rising = [0.0, *self.boundaries, 1.0]
        if any(not low < high for low, high in pairwise(rising)):
            raise UserError(f"boundaries must rise from above 0 to below 1, got {list(self.boundaries)}")
        for value in self.values:
            check_finite(values=value)

    @property
    def bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def at(self, progress: float) -> float:
        return self.values[sum(progress >= boundary for boundary in self.boundaries)]


# ---- dynamic rates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DynamicRate(RatePolicy):
    """Follows from the gradients of the forget and of the normal samples, by a rule that a subclass gives.

    Args:
        every: Number of optimiser steps from one decision to the next. Steps between keep the number, at the cost of
            a fixed rate.
        averaging: Weight of the past, in [0, 1), in running averages of the three inner products that the rule reads;
            0 takes each step's own.
        lowest: Lower bound, to which smaller answers of the rule are raised.
        highest: Upper bound, to which larger answers of the rule are lowered.
        infeasible: Number where the rule has no answer: ``hold`` keeps that of its last answer (before there was one,
            `lowest`), ``zero`` takes 0, ``lowest`` takes `lowest`.
        metric: Inner product that the rule reads: ``euclidean``, which is that of plain descent; or ``adam``,
            ⟨a, P·b⟩ with P = 1/(√v̂ + ε) of the optimiser's second moments before the step, which is that of Adam's
            update without momentum. The first step has no moments yet and takes the former.
        noise_corrected: True if the rule reads products of different micro-batches alone, which are free of the noise
            that makes squared norms too large; takes two micro-batches a step and one more copy of the gradients.
    """

    every: int = 1
    averaging: float = 0.0
    lowest: float = -8.0
    highest: float = 0.0
    infeasible: Literal["hold", "zero", "lowest"] = "hold"
    metric: Literal["euclidean", "adam"] = "euclidean"
    noise_corrected: bool = False

    parameter = "smoothing_rate"
    dynamic = True

    def __post_init__(self) -> None:
        check_numbers(1, every=self.every)
        check_numbers(0, below=1, averaging=self.averaging)
        check_finite(lowest=self.lowest, highest=self.highest)
        if self.lowest > self.highest:
            raise UserError(f"lowest must be at most highest, got {self.lowest} and {self.highest}")
        if self.infeasible not in ("hold", "zero", "lowest"):
            raise UserError(f"infeasible must be hold, zero or lowest, got {self.infeasible!r}")
        if self.metric not in ("euclidean", "adam"):
            raise UserError(f"metric must be euclidean or adam, got {self.metric!r}")

    @abstractmethod
    def propose(self, geometry: Geometry) -> float | None:
        """Number that the rule asks for, not yet clamped; None where it has no answer."""

    @property
    def bounds(self) -> tuple[float, float]:
        return self.lowest, self.highest

    def needs_gradients(self, state: RateState, step: int) -> bool:
        return step % self.every == 0 or state.value is None

    def decide(self, state: RateState, step: int, total_steps: int, geometry: Geometry | None) -> RateState:
        if geometry is None:
            return state
        now = (geometry.forget_squared, geometry.normal_squared, geometry.inner)
        past = state.averages or now
        f, n, c = (self.averaging * old + (1 - self.averaging) * new for old, new in zip(past, now, strict=True))
        proposal = self.propose(Geometry(f, n, c, geometry.group_size))
        state = replace(state, averages=(f, n, c), decisions=state.decisions + 1)
        if proposal is None:
            held = self.lowest if state.feasible is None else state.feasible
            value = {"hold": held, "zero": self._clamped(0.0), "lowest": self.lowest}[self.infeasible]
            return replace(state, value=value, infeasible=state.infeasible + 1)
        value = self._clamped(proposal)
        return replace(
            state,
            value=value,
            feasible=value,
            clamped_low=state.clamped_low + (proposal < self.lowest),
            clamped_high=state.clamped_high + (proposal > self.highest),
        )

    def _clamped(self, value: float) -> float:
        return float(min(max(value, self.lowest), self.highest))


@dataclass(frozen=True)
class PaperRate(DynamicRate):
    """The paper's optimal rate r* = ⟨g_f, u⟩/‖u‖², applied as min(r*, 0). Source: arXiv 2510.22376, Eq. 9."""

    def propose(self, geometry: Geometry) -> float | None:
        return paper_rate(geometry)


@dataclass(frozen=True)
class ObservedRate(DynamicRate):
    """A fixed rate that logs the gradients' cosine and norms all the same; they change nothing.

    Args:
        rate: Smoothing rate r, at most 1.
    """

    rate: float = -4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowest <= self.rate <= self.highest:
            raise UserError(f"rate must be from lowest {self.lowest} to highest {self.highest}, got {self.rate}")

    def propose(self, geometry: Geometry) -> float | None:
        return self.rate


@dataclass(frozen=True)
class MinNormRate(DynamicRate):
    """The literal minimiser of ‖∇L_SGA(r)‖, −r*; as a rule positive, which ascends the normal samples. A diagnostic."""

    highest: float = 1.0

    def propose(self, geometry: Geometry) -> float | None:
        return min_norm_rate(geometry)


@dataclass(frozen=True)
class MarginRate(DynamicRate):
    """The mildest smoothing at which the normal loss falls, to first order, as fast as asked for.

    Args:
        margin: Weight m ≥ 0 of a plain descent step on the normal samples whose fall is asked for; 0 keeps their loss
            level.
    """

    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(0, margin=self.margin)

    def propose(self, geometry: Geometry) -> float | None:
        return margin_rate(geometry, self.margin)


@dataclass(frozen=True)
class MarginWeight(DynamicRate):
    """The margin rule for the weight λ of gradient difference, which may be 1 and more: λ = m + c/n.

    Args:
        margin: Weight m ≥ 0 of a plain descent step on the normal samples whose fall is asked for; 0 keeps their loss
            level.
    """

    lowest: float = 0.0
    highest: float = 8.0
    margin: float = 0.0

    parameter = "normal_weight"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(0, margin=self.margin)

    def propose(self, geometry: Geometry) -> float | None:
        return margin_weight(geometry, self.margin)


@dataclass(frozen=True)
class NormRatio(DynamicRate):
    """Normalised gradient difference as a weight: λ = ‖g_f‖/‖ḡ_n‖, at which both parts of the update are of one length.

    The update is ‖g_f‖ times that of NGDiff, ḡ_n/‖ḡ_n‖ − g_f/‖g_f‖, whose automatic learning rate is not part of this.
    Source: Bu et al., "Unlearning as multi-task optimization", arXiv 2410.22086.
    """

    lowest: float = 0.0
    highest: float = 8.0

    parameter = "normal_weight"

    def propose(self, geometry: Geometry) -> float | None:
        return norm_ratio(geometry)
