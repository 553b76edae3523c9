"""Smoothed Gradient Ascent and its controls: losses on nll [B, K] alone.

docs/smoothing-rate.md derives the equations in one sign convention.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod

from torch import Tensor

from sga.errors import UserError
from sga.losses.base import Loss
from sga.rates.policies import RatePolicy
from sga.rates.smoothing import check_smoothing_rate, smoothing_vector


class WeighingLoss(Loss, ABC):
    """A loss w_f·ℓ_f + w_n·ℓ̄_n whose two weights follow from one number, fixed or set by a policy as training goes."""

    parameter: str
    """Name of that number among the arguments."""

    def __init__(self, setting: float | RatePolicy) -> None:
        super().__init__()
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

    @abstractmethod
    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """The weights w_f of ℓ_f and w_n of ℓ̄_n that a number means."""

    def check_group_size(self, group_size: int) -> None:
        if self.policy is not None and self.policy.dynamic and group_size < 2:
            raise UserError(
                f"{type(self.policy).__name__} compares forget with normal samples: group_size must be at least 2, got "
                f"{group_size} (set --data.group_size)"
            )

    def _number(self, value: float | None) -> float:
        """The number to weigh with: the one given, or else the fixed one."""
        if value is not None:
            return value
        if isinstance(self._setting, RatePolicy):
            raise UserError(
                f"{self.parameter} is set by {self._setting}, step by step: give its value, as in loss(nll, -0.8)"
            )
        return self._setting


class SmoothedGradientAscent(WeighingLoss):
    """Ascends the forget sample and, for r < 0, descends on its normal samples, with weights from label smoothing.

    L = mean over groups of −Σ_k y_k·nll_k, y = `smoothing_vector(K, r)`:
    the forget weight is −(1 − r(K−1)/K), each normal weight −r/K. r = 0 and K = 1 are gradient ascent to the last bit.
    For r ≤ 0 the gradient is parallel to that of gradient difference with λ = `equivalent_normal_weight(K, r)` < 1.

    Source: Pang et al., arXiv 2510.22376. Differs from the paper's Algorithm in sign only where the paper contradicts
    its own label vector; see docs/smoothing-rate.md.
    """

    parameter = "smoothing_rate"

    def __init__(self, smoothing_rate: RatePolicy | float = -0.8) -> None:
        """Checks the rate; r > 0 is allowed and warned about once.

        Args:
            smoothing_rate: r in (−∞, 1], or a policy that sets it as training goes, such as sga.MarginRate. The
                paper's best fixed values are between −0.8 and −8.
        """
        super().__init__(smoothing_rate)
        highest = smoothing_rate.bounds[1] if isinstance(smoothing_rate, RatePolicy) else smoothing_rate
        check_smoothing_rate(highest)
        if highest > 0:
            warnings.warn(
                f"smoothing_rate = {highest:g} is positive: the normal samples are ascended too, which destroys "
                "utility. The useful range is r < 0.",
                stacklevel=2,
            )
        self.smoothing_rate = self._setting
        self.uses_normals = smoothing_rate != 0

    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """−(1 − ρ) and −ρ with ρ = r(K−1)/K."""
        check_smoothing_rate(value)
        rho = value * (group_size - 1) / group_size
        return -(1 - rho), -rho

    def forward(self, nll: Tensor, smoothing_rate: float | None = None) -> Tensor:  # [B, K] -> []
        weights = -smoothing_vector(nll.shape[1], self._number(smoothing_rate)).to(nll)  # [K]
        # The forget column apart: r = 0 adds exact zeros to what GradientAscent computes, and is equal to the last bit.
        return (weights[0] * nll[:, 0] + (weights[1:] * nll[:, 1:]).sum(dim=1)).mean()


class GradientAscent(Loss):
    """Ascends the forget sample and ignores normal data: L = mean over groups of −nll_0. Diverges if not stopped.

    Source: TOFU, Maini et al., arXiv 2401.06121.
    """

    uses_normals = False

    def forward(self, nll: Tensor) -> Tensor:  # [B, K] -> []
        return (-nll[:, 0]).mean()


class GradientDifference(WeighingLoss):
    """Ascends the forget sample and descends on the mean of its normal samples with a free weight.

    L = mean over groups of −nll_0 + λ·mean_k nll_k, k = 1..K−1. λ = 1 is TOFU's gradient difference (on normal samples
    of our choice instead of random retain samples) and the limit r → −∞ of Smoothed Gradient Ascent; λ > 1 is beyond
    its reach. Source: TOFU, Maini et al., arXiv 2401.06121.
    """

    parameter = "normal_weight"

    def __init__(self, normal_weight: RatePolicy | float = 1.0) -> None:
        """Checks the weight.

        Args:
            normal_weight: λ ≥ 0, the weight of the normal samples' mean nll, or a policy that sets it as training goes,
                such as sga.MarginWeight.
        """
        super().__init__(normal_weight)
        lowest = normal_weight.bounds[0] if isinstance(normal_weight, RatePolicy) else normal_weight
        _check_normal_weight(lowest)
        self.normal_weight = self._setting

    def check_group_size(self, group_size: int) -> None:
        if group_size < 2:
            raise UserError(
                f"GradientDifference needs normal samples: group_size must be at least 2, got {group_size} "
                "(set --data.group_size)"
            )

    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """−1 and λ."""
        _check_normal_weight(value)
        return -1.0, value

    def forward(self, nll: Tensor, normal_weight: float | None = None) -> Tensor:  # [B, K] -> []
        return (-nll[:, 0] + self._number(normal_weight) * nll[:, 1:].mean(dim=1)).mean()


def _check_normal_weight(normal_weight: float) -> None:
    if not (math.isfinite(normal_weight) and normal_weight >= 0):
        raise UserError(f"normal_weight must be a finite number of at least 0, got {normal_weight}")


class FineTuning(Loss):
    """Descends on every sequence alike: L = mean of nll. Trains target and retain models (group_size 1)."""

    def forward(self, nll: Tensor) -> Tensor:  # [B, K] -> []
        return nll.mean()
