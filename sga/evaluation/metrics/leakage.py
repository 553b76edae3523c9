"""Leaks of a model that is asked many times: leak@k, the expected best of k samples, and a bound per question."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import vector


def leak_at_k(leaks: int, samples: int, k: int) -> float:
    """The probability that at least one of k answers to a question leaks, estimated from n samples of which c leak.

    ``1 - C(n - c, k) / C(n, k)``: the share of all subsets of k samples that hold a leaking one, which is unbiased
    (Chen et al., arXiv 2107.03374, section 2.1, as pass@k; leak@k: Reisizadeh et al., arXiv 2511.04934). In [0, 1];
    higher = more leaks.

    >>> leak_at_k(1, 4, 2)  # 3 of the 6 pairs hold the one that leaks
    0.5

    Args:
        leaks: Number c of samples that leak.
        samples: Number n of samples.
        k: Number of answers that an attacker takes.

    Raises:
        UserError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not (0 <= leaks <= samples and 1 <= k <= samples):
        raise UserError(f"leak_at_k needs 0 <= leaks <= samples and 1 <= k <= samples, got {leaks}, {samples}, {k}")
    return 1 - math.comb(samples - leaks, k) / math.comb(samples, k)


def expected_maximum(scores: npt.ArrayLike, k: int) -> float:
    """The expected best score of k answers, estimated from n samples.

    ``sum over i >= k of C(i - 1, k - 1) * S_(i) / C(n, k)``, S sorted ascending: the mean over all subsets of k samples
    of the largest score in each (arXiv 2511.04934). With scores of 0 and 1 it is `leak_at_k`; k = 1 gives the mean.

    >>> round(expected_maximum([0.0, 0.5, 1.0], 2), 4)  # the pairs' maxima are 0.5, 1, 1
    0.8333

    Args:
        scores: Scores of the samples, [n].
        k: Number of answers that an attacker takes.

    Raises:
        UserError: no score, or not 1 <= k <= n.
    """
    ascending = sorted(vector("scores", scores).tolist())
    n = len(ascending)
    if not 1 <= k <= n:
        raise UserError(f"expected_maximum needs 1 <= k <= {n}, the number of scores, got {k}")
    weights = [math.comb(i - 1, k - 1) / math.comb(n, k) for i in range(k, n + 1)]
    return math.fsum(weight * score for weight, score in zip(weights, ascending[k - 1 :], strict=True))


def clopper_pearson(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of a share: Clopper and Pearson, Biometrika 1934.

    >>> [round(end, 3) for end in clopper_pearson(0, 64)]  # none of 64 samples leaks
    [0.0, 0.056]

    Args:
        count: Number of successes.
        total: Number of trials.
        level: Least coverage of the interval, in (0, 1).

    Raises:
        UserError: not 0 <= count <= total with at least one trial.
    """
    from scipy.stats import beta

    if not 0 <= count <= total or total < 1:
        raise UserError(f"clopper_pearson needs 0 <= count <= total and a trial, got {count} of {total}")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, float(np.clip(high, 0.0, 1.0))
