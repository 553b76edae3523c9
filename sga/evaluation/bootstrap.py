"""Paired bootstrap: one set of rows has the same resamples for every metric and for every run."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from sga.evaluation.metrics import Floats

_CHUNK = 256
"""Number of resamples whose AUC is computed at a time: few enough to stay in a processor's cache."""


@dataclass
class Bootstrap:
    """Percentile bootstrap over the rows of evaluation sets (Efron's percentile interval).

    A resample is drawn once for each set, as counts of its rows, and used for every metric of that set. So metrics of
    several sets or columns (AUC, model utility) and differences between two runs on the same rows are resampled
    jointly, as their correlation requires. The same seed gives the same intervals.

    Attributes:
        resamples: Number of resamples per set; more make the ends of intervals steadier.
        seed: Seed of the resampling, together with the name of the set.
        level: Nominal coverage of `interval`, in (0, 1).
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    _drawn: dict[tuple[str, int], Floats] = field(default_factory=dict, repr=False)

    def counts(self, name: str, rows: int) -> Floats:
        """Number of times that each row of the set `name` occurs in each resample, [resamples, rows]."""
        if (name, rows) not in self._drawn:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            drawn = rng.multinomial(rows, np.full(rows, 1 / rows), size=self.resamples)
            self._drawn[name, rows] = drawn.astype(np.float64)  # once, for all products with a column
        return self._drawn[name, rows]

    def means(self, name: str, values: Floats) -> Floats:
        """Mean of a column of the set `name` in each resample, [resamples]; `values` is [rows]."""
        drawn: Floats = self.counts(name, len(values)) @ values / len(values)
        return drawn

    def ratios(self, name: str, numerator: Floats, denominator: Floats) -> Floats:
        """Sum of `numerator` over sum of `denominator`, both [rows], in each resample, [resamples]."""
        counts = self.counts(name, len(numerator))
        drawn: Floats = (counts @ numerator) / (counts @ denominator)
        return drawn

    def aucs(self, member_name: str, members: Floats, nonmember_name: str, nonmembers: Floats) -> Floats:
        """`membership_auc` of each resample, [resamples]; members and non-members are resampled independently."""
        order = np.argsort(nonmembers, kind="stable")
        left = np.searchsorted(nonmembers[order], members, side="left")
        right = np.searchsorted(nonmembers[order], members, side="right")
        member_counts = self.counts(member_name, len(members))
        nonmember_counts = self.counts(nonmember_name, len(nonmembers))
        twice = np.empty(self.resamples)  # pairs in which the member is below, twice, so that ties count half
        for start in range(0, self.resamples, _CHUNK):
            part = slice(start, start + _CHUNK)
            # [_CHUNK, M + 1]: number of a resample's non-members among the first m in ascending order
            below = np.pad(np.cumsum(nonmember_counts[part][:, order], axis=1), ((0, 0), (1, 0)))
            above = 2 * len(nonmembers) - np.take(below, left, axis=1) - np.take(below, right, axis=1)
            twice[part] = (member_counts[part] * above).sum(axis=1)
        drawn: Floats = twice / 2 / len(members) / len(nonmembers)
        return drawn

    def wilson_bound(self, rows: int) -> float:
        """Width of Wilson's score interval for a share that is 0, or 1, in all of `rows`, in [0, 1].

        ``z² / (rows + z²)`` with z the normal quantile of (1 + level)/2. Needed because resamples of equal rows are all
        alike and give no width. Among variables in [0, 1] with a given mean, those with values 0 and 1 only have the
        largest variance, so the bound holds for all. An AUC of n members and m non-members is a mean over pairs, of
        which min(n, m) are independent of each other: that is its number of rows (Hoeffding, J. Am. Stat. Assoc. 1963,
        section 5).

        >>> round(Bootstrap().wilson_bound(40), 3)  # 1.96² / (40 + 1.96²)
        0.088
        """
        z_squared = NormalDist().inv_cdf((1 + self.level) / 2) ** 2
        return z_squared / (rows + z_squared)

    def interval(self, draws: Floats) -> tuple[float, float]:
        """Quantiles (1 − level)/2 and (1 + level)/2 of a statistic's resampled values, [resamples]."""
        low, high = np.quantile(draws, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


def harmonic_means(parts: Sequence[Floats]) -> Floats:
    """Harmonic mean of parts in each resample, [resamples], from [resamples] each; 0 where a part is 0."""
    with np.errstate(divide="ignore"):
        drawn: Floats = len(parts) / (1 / np.stack(parts)).sum(axis=0)
    return drawn
