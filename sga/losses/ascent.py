"""Smoothed Gradient Ascent and its controls: losses on nll [B, K] alone.

docs/smoothing-rate.md derives the equations in one sign convention.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

from torch import Tensor

from sga.batching.batch import to_device
from sga.errors import UserError, check_finite
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, columns_of
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Average, Loss
from sga.rates.policies import RatePolicy
from sga.rates.smoothing import check_smoothing_rate, smoothing_vector


class WeighingLoss(Loss, ABC):
    """Base of losses w_f·ℓ_f + w_n·ℓ̄_n with both weights given by one number, fixed or set by a policy in training.

    Normal samples are neighbours and, if the data has them, alternatives in the last columns. Both have the same weight
    unless alternatives have their own number.
    """

    parameter: str
    """Name of the number among the arguments, such as ``smoothing_rate``."""
    alternative_parameter: str
    """Name of the alternatives' own number among the arguments."""

    def __init__(
        self, setting: float | RatePolicy, of_alternatives: float | None = None, average: Average = "sequence"
    ) -> None:
        super().__init__()
        self.average_over(average)
        if average == "token" and isinstance(setting, RatePolicy) and setting.dynamic:
            raise UserError(
                f"average token cannot be combined with {type(setting).__name__}, which compares means per sequence: "
                f"leave average out, or give {self.parameter} a number"
            )
        if isinstance(setting, RatePolicy) and of_alternatives is not None:
            raise UserError(
                f"{self.alternative_parameter} {of_alternatives:g} cannot be combined with {type(setting).__name__}, "
                f"which sets one {self.parameter} for all normals: leave {self.alternative_parameter} out, or fix both"
            )
        self.of_alternatives = of_alternatives
        """The alternatives' own number; None if they count as all normals."""
        if isinstance(setting, RatePolicy) and setting.parameter not in (None, self.parameter):
            other = {"smoothing_rate": SmoothedGradientAscent, "normal_weight": GradientDifference}
            cure = f"; use it with {other[setting.parameter].__name__}" if setting.parameter in other else ""
            raise UserError(
                f"{type(self).__name__} takes a policy for its {self.parameter}, but {type(setting).__name__} sets a "
                f"{setting.parameter}{cure}"
            )
        self._setting: float | RatePolicy = setting if isinstance(setting, RatePolicy) else float(setting)

    @property
    def policy(self) -> RatePolicy | None:
        return self._setting if isinstance(self._setting, RatePolicy) else None

    def roles(self, step: int) -> tuple[str, ...]:
        return (FORGET, NORMAL, ALTERNATIVE) if self.uses_normals else (FORGET,)

    def of(self, tokens: AnswerTokens, *settings: float) -> Tensor:
        alternatives = len(columns_of(tokens.roles, [ALTERNATIVE]))
        loss: Tensor = self(self.nll(tokens), *settings, **({"alternatives": alternatives} if alternatives else {}))
        return loss

    def check_alternatives(self, count: int) -> None:
        if not count and self.of_alternatives is not None:
            raise UserError(
                f"{self.alternative_parameter} {self.of_alternatives:g} weighs alternatives, and the groups have "
                f"none: set --data.alternatives, or leave {self.alternative_parameter} out"
            )
        if count and not self.uses_normals:
            raise UserError(
                f"{type(self).__name__} with {self.parameter} 0 reads no normals, and no alternatives among them: give "
                f"{self.parameter} or {self.alternative_parameter} another number, or leave --data.alternatives out"
            )

    @abstractmethod
    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """Weights w_f of ℓ_f and w_n of ℓ̄_n for a value of the number and groups of K = `group_size`."""

    def check_group_size(self, group_size: int) -> None:
        if self.policy is not None and self.policy.dynamic and group_size < 2:
            raise UserError(
                f"{type(self.policy).__name__} compares forget with normal samples: group_size must be at least 2, got "
                f"{group_size} (set --data.group_size)"
            )

    def _number(self, value: float | None) -> float:
        """The given number, or else the fixed one."""
        if value is not None:
            return value
        if isinstance(self._setting, RatePolicy):
            raise UserError(
                f"{self.parameter} is set by {self._setting}, step by step: give its value, as in loss(nll, -0.8)"
            )
        return self._setting


class SmoothedGradientAscent(WeighingLoss):
    """Ascends on the forget sample and, for r < 0, descends on its normal samples, with weights from label smoothing.

    L = mean over groups of −Σ_k y_k·nll_k, y = `smoothing_vector(K, r)`:
    the forget weight is −(1 − r(K−1)/K), each normal weight −r/K. r = 0 and K = 1 are gradient ascent to the last bit.
    For r ≤ 0 the gradient is parallel to that of gradient difference with λ = `equivalent_normal_weight(K, r)` < 1.
    Alternatives may have a rate r_a of their own: their weights are −r_a/K, and y still sums to 1. With `unit_ascent`
    the loss is L/y_0 = −ℓ_f + λ·ℓ̄_n.

    Source: Pang et al., arXiv 2510.22376. Differs from the paper's Algorithm in sign only where the paper contradicts
    its own label vector; see docs/smoothing-rate.md.
    """

    parameter, alternative_parameter = "smoothing_rate", "alternative_rate"

    def __init__(
        self,
        smoothing_rate: RatePolicy | float = -0.8,
        alternative_rate: float | None = None,
        average: Average = "sequence",
        unit_ascent: bool = False,
    ) -> None:
        """Checks the rates; r > 0 is allowed and warned about once.

        Args:
            smoothing_rate: Smoothing rate r in (−∞, 1], or a policy that sets it during training, such as
                sga.MarginRate. The paper's best fixed values are between −0.8 and −8.
            alternative_rate: Rate r_a in (−∞, 1] of the alternatives among the normals; null for r, which is label
                smoothing as published.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
            unit_ascent: Divide the loss by y_0, so that the forget sample has weight −1 whatever the rate: a rate that
                moves is then no schedule of the learning rate in disguise.
        """
        super().__init__(smoothing_rate, alternative_rate, average)
        self.unit_ascent = unit_ascent
        highest = smoothing_rate.bounds[1] if isinstance(smoothing_rate, RatePolicy) else smoothing_rate
        for name, rate in ((self.parameter, highest), (self.alternative_parameter, alternative_rate)):
            if rate is None:
                continue
            check_smoothing_rate(rate, name)
            if rate > 0:
                warnings.warn(
                    f"{name} = {rate:g} is positive: the normal samples are ascended too, which destroys "
                    "utility. The useful range is r < 0.",
                    stacklevel=2,
                )
        self.smoothing_rate, self.alternative_rate = self._setting, alternative_rate
        self.uses_normals = smoothing_rate != 0 or alternative_rate not in (None, 0)

    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """−(1 − ρ) and −ρ with ρ = r(K−1)/K; with `unit_ascent` both are divided by 1 − ρ."""
        check_smoothing_rate(value)
        rho = value * (group_size - 1) / group_size
        return (-1.0, -rho / (1 - rho)) if self.unit_ascent else (-(1 - rho), -rho)

    def forward(self, nll: Tensor, smoothing_rate: float | None = None, alternatives: int = 0) -> Tensor:
        # [B, K] -> []; the last `alternatives` columns are alternatives
        vector = smoothing_vector(nll.shape[1], self._number(smoothing_rate), alternatives, self.alternative_rate)
        weights = to_device(-(vector / vector[0] if self.unit_ascent else vector).to(nll.dtype), nll.device)  # [K]
        # The forget column apart: r = 0 adds exact zeros to what GradientAscent computes, and is equal to the last bit.
        return (weights[0] * nll[:, 0] + (weights[1:] * nll[:, 1:]).sum(dim=1)).mean()


class GradientAscent(Loss):
    """Ascends on the forget sample and ignores normal data: L = mean over groups of −nll_0. Diverges if not stopped.

    Source: TOFU, Maini et al., arXiv 2401.06121.
    """

    uses_normals = False

    def __init__(self, average: Average = "sequence") -> None:
        """Checks the setting.

        Args:
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__()
        self.average_over(average)

    def forward(self, nll: Tensor) -> Tensor:  # [B, K] -> []
        return (-nll[:, 0]).mean()


class GradientDifference(WeighingLoss):
    """Ascends on the forget sample and descends on the mean of its normal samples with a free weight.

    L = mean over groups of −nll_0 + λ·mean_k nll_k, k = 1..K−1. λ = 1 is TOFU's gradient difference (on normal samples
    of our choice instead of random retain samples) and the limit r → −∞ of Smoothed Gradient Ascent; λ > 1 is beyond
    its reach. Alternatives may have a weight of their own: L = −nll_0 + λ·(mean over neighbours) + λ_a·(mean over
    alternatives). Source: TOFU, Maini et al., arXiv 2401.06121; the alternatives' weight is ours.
    """

    parameter, alternative_parameter = "normal_weight", "alternative_weight"

    def __init__(
        self,
        normal_weight: RatePolicy | float = 1.0,
        alternative_weight: float | None = None,
        average: Average = "sequence",
    ) -> None:
        """Checks the weights.

        Args:
            normal_weight: Weight λ ≥ 0 of the normal samples' mean nll, or a policy that sets it during training, such
                as sga.MarginWeight. With `alternative_weight` it applies to the neighbours' mean nll only.
            alternative_weight: Weight λ_a ≥ 0 of the alternatives' mean nll; null counts them as normals like any
                other.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(normal_weight, alternative_weight, average)
        lowest = normal_weight.bounds[0] if isinstance(normal_weight, RatePolicy) else normal_weight
        check_finite(0, normal_weight=lowest, alternative_weight=alternative_weight)
        self.normal_weight, self.alternative_weight = self._setting, alternative_weight

    def check_group_size(self, group_size: int) -> None:
        if group_size < 2:
            raise UserError(
                f"GradientDifference needs normal samples: group_size must be at least 2, got {group_size} "
                "(set --data.group_size)"
            )

    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """Weights −1 and λ."""
        check_finite(0, normal_weight=value)
        return -1.0, value

    def forward(self, nll: Tensor, normal_weight: float | None = None, alternatives: int = 0) -> Tensor:
        # [B, K] -> []; the last `alternatives` columns are alternatives
        weight, first = self._number(normal_weight), nll.shape[1] - alternatives
        if not alternatives or self.alternative_weight is None:
            return (-nll[:, 0] + weight * nll[:, 1:].mean(dim=1)).mean()
        loss = -nll[:, 0] + self.alternative_weight * nll[:, first:].mean(dim=1)
        return (loss + weight * nll[:, 1:first].mean(dim=1) if first > 1 else loss).mean()


class FineTuning(Loss):
    """Descends on every sequence equally: L = mean of nll. Trains target and retain models (group_size 1)."""

    def __init__(self, average: Average = "sequence") -> None:
        """Checks the setting.

        Args:
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__()
        self.average_over(average)

    def forward(self, nll: Tensor) -> Tensor:  # [B, K] -> []
        return nll.mean()
