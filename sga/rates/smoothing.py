"""The label vector of Smoothed Gradient Ascent, and what a rate is equivalent to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sga.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def smoothing_vector(
    group_size: int, smoothing_rate: float, alternatives: int = 0, alternative_rate: float | None = None
) -> Tensor:
    """Generalised label smoothing of a one-hot target whose true class is the forget sample.

    y_0 = 1 − r(K−1)/K and y_k = r/K for k = 1..K−1; the entries sum to 1. Where the last m of the K−1 are alternatives
    with a rate r_a of their own, they have y_k = r_a/K, and y_0 = 1 − (r(K−1−m) + r_a·m)/K.
    Source: Wei et al., arXiv 2106.04149; as used by Pang et al., arXiv 2510.22376. The second rate is ours.

    Args:
        group_size: Group size K, at least 1.
        smoothing_rate: Smoothing rate r in (−∞, 1].
        alternatives: Number of alternatives m, at most K−1.
        alternative_rate: Rate r_a of the alternatives in (−∞, 1]; None for r.

    Returns:
        Label vector y [K], float64.

    Raises:
        UserError: r or r_a > 1 or not finite, or K < 1.

    >>> smoothing_vector(4, -0.8)
    tensor([ 1.6000, -0.2000, -0.2000, -0.2000], dtype=torch.float64)
    >>> smoothing_vector(4, -0.8, alternatives=1, alternative_rate=-2.0)
    tensor([ 1.9000, -0.2000, -0.2000, -0.5000], dtype=torch.float64)
    """
    import torch  # not at the top: run folders and the report need only the equivalences below

    if group_size < 1:
        raise UserError(f"group_size must be at least 1, got {group_size} (1 is gradient ascent without normal data)")
    check_smoothing_rate(smoothing_rate)
    vector = torch.full((group_size,), smoothing_rate / group_size, dtype=torch.float64)
    vector[0] = 1 - smoothing_rate * (group_size - 1) / group_size
    if (
        alternatives and alternative_rate is not None and alternative_rate != smoothing_rate
    ):  # else to the last bit as without alternatives
        check_smoothing_rate(alternative_rate, "alternative_rate")
        vector[group_size - alternatives :] = alternative_rate / group_size
        vector[0] = 1 - vector[1:].sum()
    return vector


def check_smoothing_rate(smoothing_rate: float, name: str = "smoothing_rate") -> None:
    """Raises a UserError unless r is a finite number of at most 1."""
    if not math.isfinite(smoothing_rate):
        raise UserError(f"{name} must be a finite number, got {smoothing_rate}")
    if smoothing_rate > 1:
        raise UserError(
            f"{name} must be at most 1, got {smoothing_rate:g} (r = 1 ascends all samples equally; "
            "r = 0 is gradient ascent; r < 0 is the useful range)"
        )


def equivalent_normal_weight(group_size: int, smoothing_rate: float) -> float:
    """Weight λ for which L_SGA(r) is a positive multiple of gradient difference −ℓ_f + λ·ℓ̄_n.

    λ = −ρ/(1 − ρ) with ρ = r(K−1)/K: in [0, 1) for r ≤ 0, and negative (ascent on normal data) for r > 0.

    >>> round(equivalent_normal_weight(4, -0.8), 6)
    0.375
    """
    rho = smoothing_rate * (group_size - 1) / group_size
    return -rho / (1 - rho)


def equivalent_smoothing_rate(group_size: int, normal_weight: float) -> float | None:
    """Smoothing rate r whose loss is a positive multiple of −ℓ_f + λ·ℓ̄_n; None for λ ≥ 1, which no r reaches.

    >>> round(equivalent_smoothing_rate(4, 0.375), 6)
    -0.8
    """
    if normal_weight >= 1:
        return None
    return -normal_weight / (1 - normal_weight) * group_size / (group_size - 1)
