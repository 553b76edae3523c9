"""Number of rows that a model needs to pass as not recognised: the interval of few rows is wider than is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.handover import Tolerances, membership_check
from sga.evaluation.metrics import membership_auc

DRAWS = 200
"""Number of simulated models."""
_TRIED = (12, 16, 20, 24, 30, 40, 50, 60, 80, 100, 150, 200)
"""Numbers of rows that are tried for the least at which every second model passes."""


@lru_cache
def passing(rows: int, others: int | None = None, wrong: int = 1, tolerances: Tolerances | None = None) -> int:
    """Number of models out of `DRAWS` that the rule passes as not recognised, though none can recognise anything.

    The models are simulated and judged by the rule's own interval and check, `Bootstrap` and `membership_check`. With a
    holdout set the scores of both sets are drawn from one normal distribution; without one the true answer takes any
    place among the wrong answers to its question.

    >>> passing(12), passing(100) > 190
    (0, True)

    Args:
        rows: Number of forget rows that are judged.
        others: Number of holdout rows that are judged; None without a holdout set.
        wrong: Number of wrong answers to each question; used without a holdout set.
        tolerances: Largest allowed distances of value and interval from 0.5; None takes the rule's own.
    """
    tolerances = tolerances or Tolerances()
    rng, bootstrap, found = np.random.default_rng(0), Bootstrap(), 0
    for _ in range(DRAWS):
        if others is None:
            shares = rng.integers(0, wrong, rows, endpoint=True) / wrong
            score, value, draws = "pairs", float(shares.mean()), bootstrap.means("forget", shares)
        else:
            members, nonmembers = rng.normal(size=rows), rng.normal(size=others)
            score, value = "loss", membership_auc(members, nonmembers)
            draws = bootstrap.aucs("forget", members, "holdout", nonmembers)
        found += membership_check(score, value, *bootstrap.interval(draws), 0.5, tolerances).violation == 0
    return found


def enough_rows(holdout: bool, wrong: int = 1, tolerances: Tolerances | None = None) -> int | None:
    """Number of rows, of each set, from about which on every second model passes; None if it is more than is tried.

    Args:
        holdout: True with a holdout set.
        wrong: Number of wrong answers to each question; used without a holdout set.
        tolerances: Largest allowed distances of value and interval from 0.5; None takes the rule's own.
    """
    tried: Iterable[int] = _TRIED
    return next((n for n in tried if 2 * passing(n, n if holdout else None, wrong, tolerances) >= DRAWS), None)
