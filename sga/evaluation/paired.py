"""Two evaluations of the same rows: is their difference more than chance? Pure statistics on aligned numbers.

All of it is paired: row i of A and row i of B are the same question. Differences in how hard questions are then
cancel, and differences are found that two separate intervals would hide.

* The interval of a difference resamples rows, the same ones on both sides (`sga.Bootstrap`).
* The p-value swaps A and B within rows. If it made no difference which of the two models answered a row, every such
  swap would have been as likely as what was seen; p is the share of swaps whose difference is at least as large. The
  test is two-sided: swapping every row turns a difference into its negative, so large means large in absolute value.

The unit of both is the row, and rows count as independent of each other. Where rows come in clusters (several questions
about one author), p-values and intervals are too optimistic; and neither knows that training with another seed gives
another model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sga.errors import UserError, check_numbers
from sga.evaluation.bootstrap import Bootstrap, harmonic_means
from sga.evaluation.metrics import Floats, membership_auc

Signs = npt.NDArray[np.int8]

_CHUNK = 1 << 20
"""Signs that are multiplied at a time: 8 MB as float64."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference of B from A in one metric, with its interval and p-value.

    Attributes:
        rows: Number of rows that were compared, over all sets that the metric is made of.
        a: Value of the metric for A.
        b: Value of the metric for B.
        low: Lower end of the bootstrap interval of `difference`; None where a set has one row, or where every resample
            gives the same difference, which is not 0.
        high: Upper end of the same interval; None in the same cases.
        p_value: Two-sided p-value of the permutation test; in (0, 1], 1 where no row differs.
        smallest_p: Smallest p-value that this many rows and swaps can give.
    """

    rows: int
    a: float
    b: float
    low: float | None
    high: float | None
    p_value: float
    smallest_p: float

    @property
    def difference(self) -> float:
        """B − A."""
        return self.b - self.a


@dataclass
class PairedTests:
    """Differences of metrics between two evaluations of the same rows.

    Resamples and swaps are drawn once for each set and used for every metric of it: whole rows are swapped, all their
    columns at once. The same seed gives the same numbers.

    Attributes:
        resamples: Number of bootstrap resamples, and of random swaps. If all 2^N swaps of N rows are no more than
            that, they are enumerated, and p is exact.
        seed: Seed of resamples and swaps.
        level: Coverage of the intervals, in (0, 1).
    """

    resamples: int = 10_000
    seed: int = 0
    level: float = 0.95
    bootstrap: Bootstrap = field(init=False, repr=False)
    _drawn: dict[tuple[str, int], Signs] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_numbers(1, resamples=self.resamples)
        self.bootstrap = Bootstrap(self.resamples, self.seed, self.level)

    def mean(self, set_name: str, a: npt.ArrayLike, b: npt.ArrayLike) -> PairedDifference:
        """The difference of two means over the rows of a set; its permutation test flips the signs of ``b - a``.

        Args:
            set_name: Name of the set that the resamples and swaps are drawn for.
            a: Values of the rows of A, [N].
            b: Values of the same rows of B, [N].

        Raises:
            UserError: empty, not aligned, or not finite.
        """
        old, new = _pair(set_name, a, b)
        change = new - old
        swapped = self._swapped({set_name: len(change)}, lambda signs: _product(signs[set_name], change / len(change)))
        draws = self.bootstrap.means(set_name, change)
        return self._found({set_name: len(change)}, old.mean(), new.mean(), draws, swapped)

    def auc(
        self,
        member_name: str,
        members_a: npt.ArrayLike,
        members_b: npt.ArrayLike,
        nonmember_name: str,
        nonmembers_a: npt.ArrayLike,
        nonmembers_b: npt.ArrayLike,
    ) -> PairedDifference:
        """The difference of two `membership_auc` of the same members and non-members.

        An AUC sees only the order of one model's scores, so each side's are replaced by their ranks, 1 to N + M, before
        rows are swapped (Venkatraman and Begg, Biometrika 1996): two models differ in the scale of their scores, and
        swapping scores of unlike scale would drown any difference.

        An AUC is a mean over pairs of a member and a non-member. Swapping rows with signs s (members) and t
        (non-members), 1 = kept and −1 = swapped, turns ``auc_b - auc_a`` into ``sum(s * w) + sum(t * v)``: all terms in
        s·t cancel between the two sides. So this test, too, flips the signs of one weight a row: how much the row alone
        moves the AUC against the rows of *both* sides, ``w = (above(member_b) - above(member_a)) / (2·N·M)`` with
        ``above(x)`` the number of the 2·M non-member ranks above x, ties half; ``v`` alike.

        Args:
            member_name: Name of the members' set.
            members_a: Scores of the members under A, [N], low for members.
            members_b: Scores of the same rows under B, [N].
            nonmember_name: Name of the non-members' set.
            nonmembers_a: Scores of the non-members under A, [M].
            nonmembers_b: Scores of the same rows under B, [M].

        Raises:
            UserError: empty, not aligned, or not finite.
        """
        old, new = _pair(member_name, members_a, members_b)
        old_others, new_others = _pair(nonmember_name, nonmembers_a, nonmembers_b)
        rows = {member_name: len(old), nonmember_name: len(old_others)}
        pairs = len(old) * len(old_others)
        (rank_a, other_a), (rank_b, other_b) = (
            np.split(_below(scores, scores) + 0.5, [len(old)])  # mean ranks, from 1
            for scores in (np.append(old, old_others), np.append(new, new_others))
        )
        members, others = np.append(rank_a, rank_b), np.append(other_a, other_b)
        weights = (_below(others, rank_a) - _below(others, rank_b)) / (2 * pairs)
        other_weights = (_below(members, other_b) - _below(members, other_a)) / (2 * pairs)
        swapped = self._swapped(
            rows,
            lambda signs: _product(signs[member_name], weights) + _product(signs[nonmember_name], other_weights),
        )
        draws = self.bootstrap.aucs(member_name, new, nonmember_name, new_others)
        draws -= self.bootstrap.aucs(member_name, old, nonmember_name, old_others)
        return self._found(rows, membership_auc(old, old_others), membership_auc(new, new_others), draws, swapped)

    def harmonic_mean(self, parts: Sequence[tuple[str, npt.ArrayLike, npt.ArrayLike]]) -> PairedDifference:
        """The difference of two harmonic means of row means (model utility has nine); 0 where one of the parts is.

        A swap exchanges a whole row, in all parts of its set, and both harmonic means are computed anew.

        Args:
            parts: Parts of the mean, each with its set, the values of A and those of B, [N of that set].

        Raises:
            UserError: no part, parts of one set with different numbers of rows, or as `mean`.
        """
        if not parts:
            raise UserError("a harmonic mean needs at least one part")
        columns: dict[str, list[tuple[Floats, Floats]]] = {}
        for set_name, a, b in parts:
            columns.setdefault(set_name, []).append(_pair(set_name, a, b))
        rows = {}
        for set_name, pairs in columns.items():
            lengths = {len(old) for old, _ in pairs}
            if len(lengths) > 1:
                raise UserError(f"the parts of {set_name} have different numbers of rows: {sorted(lengths)}")
            rows[set_name] = lengths.pop()
        old = [np.array([old.mean()]) for pairs in columns.values() for old, _ in pairs]
        new = [np.array([new.mean()]) for pairs in columns.values() for _, new in pairs]

        def swapped(signs: Mapping[str, Signs]) -> Floats:
            kept, exchanged = [], []
            for set_name, pairs in columns.items():
                centre = np.array([(old + new).mean() / 2 for old, new in pairs])  # [parts]
                half = np.stack([(new - old) / (2 * rows[set_name]) for old, new in pairs], axis=1)  # [N, parts]
                moved = _product(signs[set_name], half)  # [swaps, parts]
                # rounding must not make a part that is 0 a negative number, whose inverse could cancel another's
                kept += list(np.maximum(centre + moved, 0).T)
                exchanged += list(np.maximum(centre - moved, 0).T)
            return harmonic_means(kept) - harmonic_means(exchanged)

        draws = [
            harmonic_means(
                [self.bootstrap.means(name, pair[side]) for name, pairs in columns.items() for pair in pairs]
            )
            for side in (0, 1)
        ]
        return self._found(
            rows, harmonic_means(old)[0], harmonic_means(new)[0], draws[1] - draws[0], self._swapped(rows, swapped)
        )

    def _found(
        self, rows: Mapping[str, int], a: float, b: float, draws: Floats, swapped: tuple[Floats, bool]
    ) -> PairedDifference:
        low, high = self.bootstrap.interval(draws)
        is_point = high - low <= 1e-12 * max(1.0, abs(b - a)) and abs(b - a) > 1e-12
        has_interval = min(rows.values()) > 1 and not is_point
        differences, exact = swapped
        size = np.abs(differences)
        # Sums of the same numbers in another order differ by rounding, and equally large differences have to count.
        extreme = int((size[1:] >= size[0] - 1e-12 * size.max()).sum())
        swaps = len(size) - 1
        return PairedDifference(
            rows=sum(rows.values()),
            a=float(a),
            b=float(b),
            low=low if has_interval else None,
            high=high if has_interval else None,
            # Random swaps may all miss what was seen, which is one of them: counted, or p could be 0.
            p_value=extreme / swaps if exact else (extreme + 1) / (swaps + 1),
            smallest_p=2 / swaps if exact else 1 / (swaps + 1),
        )

    def _swapped(
        self, rows: Mapping[str, int], difference: Callable[[Mapping[str, Signs]], Floats]
    ) -> tuple[Floats, bool]:
        """[1 + swaps]: what was seen, then the difference after each swap; and whether those are all swaps there are.

        Args:
            rows: Number of rows by set.
            difference: Function from signs [S, N] by set (1 = kept, −1 = swapped) to S differences.
        """
        seen = {name: np.ones((1, n), dtype=np.int8) for name, n in rows.items()}
        total = sum(rows.values())
        exact = total < 63 and 2**total <= self.resamples
        if exact:
            codes = np.arange(2**total, dtype=np.int64)[:, None]
            every = (1 - 2 * (codes >> np.arange(total) & 1)).astype(np.int8)  # [2^N, N]
            ends = np.cumsum(list(rows.values()))[:-1]
            signs = dict(zip(rows, np.split(every, ends, axis=1), strict=True))
        else:
            signs = {name: self._random_signs(name, n) for name, n in rows.items()}
        return np.concatenate([difference(seen), difference(signs)]), exact

    def _random_signs(self, name: str, rows: int) -> Signs:
        """[resamples, rows]: 1 or −1 with equal probability."""
        if (name, rows) not in self._drawn:
            # the last entry tells this stream from the bootstrap's
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), 1])
            self._drawn[name, rows] = 2 * rng.integers(0, 2, size=(self.resamples, rows), dtype=np.int8) - 1
        return self._drawn[name, rows]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: reject where below α, and the chance of any false rejection is at most α.

    In ascending order, ``adjusted_k = max over j <= k of min(1, (m - j + 1) * p_j)``; Holm 1979. Valid however the
    tests depend on each other.

    >>> holm([0.04, 0.01])
    [0.04, 0.02]

    Args:
        p_values: P-values of the m tests, in any order.

    Returns:
        m adjusted p-values, in the same order.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _product(signs: Signs, weights: Floats) -> Floats:
    """[S] or [S, C]: ``signs @ weights`` for signs [S, N] and weights [N] or [N, C], without all signs as float64."""
    step = max(1, _CHUNK // max(1, signs.shape[1]))
    parts = [signs[start : start + step].astype(np.float64) @ weights for start in range(0, len(signs), step)]
    return np.concatenate(parts)


def _below(values: Floats, limits: Floats) -> Floats:
    """[M]: how many of `values` are below each of M `limits`, those equal to it counted half."""
    ordered = np.sort(values)
    both = np.searchsorted(ordered, limits, side="left") + np.searchsorted(ordered, limits, side="right")
    return both / 2


def _pair(name: str, a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 [N], N > 0, aligned and finite."""
    pair = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or not len(pair[0]):
        raise UserError(
            f"{name}: A and B must have a number for each of the same rows, "
            f"got shapes {list(pair[0].shape)} and {list(pair[1].shape)}"
        )
    if not all(np.isfinite(values).all() for values in pair):
        raise UserError(f"{name}: A and B must be finite; a model that has diverged gives other values")
    return pair
