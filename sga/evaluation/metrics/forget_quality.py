"""Forget quality: the two-sample Kolmogorov–Smirnov test between truth ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sga.evaluation.metrics.arrays import vector

Direction = Literal["under-unlearned", "over-unlearned", "none", "unknown"]


LOW_FORGET_QUALITY = 0.01
"""Below this p-value the forget distribution differs from the reference's, so that it matters which way."""


@dataclass(frozen=True)
class ForgetQualityResult:
    """TOFU's Forget Quality with what is needed to read it.

    Attributes:
        p_value: P-value of the two-sample Kolmogorov-Smirnov test; in [0, 1], higher is better. 0.0 where it is below
            the smallest float64: use `log10_p`.
        log10_p: Logarithm of the p-value to base 10, exact where `p_value` underflows; at most 0.
        ks_statistic: Largest distance D between the two empirical distributions; in [0, 1], lower is better.
        n: Number of rows of the unlearned model.
        n_reference: Number of rows of the reference.
        direction: Reason of a low p-value. The test is two-sided: ``"under-unlearned"`` where the forget nll is below
            the reference's, ``"over-unlearned"`` where it is above, ``"none"`` where p is at least 0.01 (nothing to
            explain) or the two nll are equal, ``"unknown"`` where the nll were not given.
    """

    p_value: float
    log10_p: float
    ks_statistic: float
    n: int
    n_reference: int
    direction: Direction

    @property
    def log10_floor(self) -> float:
        """The lowest log10 p that these sample sizes allow, log10(2 / C(n + n_reference, n)): D = 1."""
        log_paths = math.lgamma(self.n + self.n_reference + 1) - math.lgamma(self.n + 1)
        return (math.log(2) - log_paths + math.lgamma(self.n_reference + 1)) / math.log(10)


def forget_quality(
    log_ratio: npt.ArrayLike,
    reference_log_ratio: npt.ArrayLike,
    forget_nll: float | None = None,
    reference_forget_nll: float | None = None,
) -> ForgetQualityResult:
    """TOFU's Forget Quality: whether the truth ratios look drawn from those of a model that never saw the forget set.

    p-value of the exact two-sided two-sample Kolmogorov-Smirnov test (arXiv 2401.06121 §2.2.2; SciPy's ``ks_2samp``
    with its defaults, which TOFU uses). The test sees only the order of the values, so log R gives the same p as R; it
    is taken on log R because exp(log_ratio) overflows or underflows for a collapsed model and turns distinct values
    into ties. Its floor 2 / C(2n, n) depends on n alone (n = 40: 1.9e-23, 200: 1.9e-119, 400: 1.1e-239): compare
    p-values at equal n only.

    Args:
        log_ratio: Log truth ratios of the unlearned model on the forget set, [N].
        reference_log_ratio: Log truth ratios of the retain model on the same set, [M].
        forget_nll: Mean avg_nll of the forget answers under the unlearned model; with the next one gives `direction`.
        reference_forget_nll: Mean avg_nll of the forget answers under the retain model.

    Raises:
        UserError: a sample is empty or not finite, or a nll is not finite.
    """
    own, reference = vector("log_ratio", log_ratio), vector("reference_log_ratio", reference_log_ratio)
    n, m = len(own), len(reference)
    values = np.concatenate([own, reference])
    own_below = np.searchsorted(np.sort(own), values, side="right")
    reference_below = np.searchsorted(np.sort(reference), values, side="right")
    distance = int(np.abs(own_below * m - reference_below * n).max())  # D·n·m, an integer: no rounding decides
    log_p = _log_ks_p(n, m, distance)
    direction: Direction = "none"
    if log_p < math.log(LOW_FORGET_QUALITY):
        if forget_nll is None or reference_forget_nll is None:
            direction = "unknown"
        else:
            nll, reference_nll = vector("forget_nll, reference_forget_nll", [forget_nll, reference_forget_nll])
            if nll != reference_nll:
                direction = "under-unlearned" if nll < reference_nll else "over-unlearned"
    return ForgetQualityResult(
        p_value=math.exp(log_p),
        log10_p=log_p / math.log(10),
        ks_statistic=distance / (n * m),
        n=n,
        n_reference=m,
        direction=direction,
    )


def _log_ks_p(n: int, m: int, distance: int) -> float:
    """log P(D·n·m >= distance) under the null hypothesis, exact but for rounding (below 1e-9) at any n, m and depth.

    Under the null hypothesis every order of the n + m values is equally likely: a lattice walk from (0, 0) to (n, m)
    that at (x, y) steps right with probability (n - x) / (n + m - x - y). D reaches `distance` where the walk leaves
    the band |x·m - y·n| < distance. Sums the probability of each first exit, in log space: all terms are positive, so
    nothing cancels, unlike in the alternating closed form. Time O(n·m).
    """
    if distance == 0:
        return 0.0
    with np.errstate(divide="ignore"):
        log = np.log(np.arange(n + m + 1, dtype=np.float64))  # log[0] = -inf: a step that cannot be taken
    low, walk = 0, np.zeros(1)  # walk[i]: log probability of being at x = low + i without having left the band
    exits = [-math.inf]
    for steps in range(1, n + m + 1):
        x = np.arange(low, low + len(walk))
        remaining = log[n + m - steps + 1]
        reached = np.full(len(walk) + 1, -np.inf)
        reached[:-1] = walk + log[m - (steps - 1 - x)] - remaining
        reached[1:] = np.logaddexp(reached[1:], walk + log[n - x] - remaining)
        # |x·m - (steps - x)·n| < distance  <=>  |x·(n + m) - steps·n| < distance, and within the rectangle
        first = max((steps * n - distance) // (n + m) + 1, 0, steps - m)
        last = min(-((-steps * n - distance) // (n + m)) - 1, n, steps)
        if first > last:
            return 0.0
        exits.extend(reached[: first - low])
        exits.extend(reached[last + 1 - low :])
        walk, low = reached[first - low : last + 1 - low], first
    return min(float(np.logaddexp.reduce(exits)), 0.0)
