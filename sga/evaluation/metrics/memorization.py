"""Exact memorisation and extraction strength."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import Floats, vector


def exact_memorization(argmax_hits: npt.ArrayLike) -> float:
    """The share of one answer's tokens that the model, fed the true tokens before it, puts first.

    ``mean(argmax_hits)``; Tirumala et al., arXiv 2205.10770. In [0, 1]; higher = more memorised, worse on the forget
    set.

    Args:
        argmax_hits: True for each answer token that is the arg-max, [T], without the end-of-sequence token.

    Raises:
        UserError: no token, or a value that is neither true nor false.
    """
    return float(_hits(argmax_hits).mean())


def extraction_strength(argmax_hits: npt.ArrayLike) -> float:
    """The share of one answer that follows once its beginning is given: length of the suffix of arg-max tokens.

    ``1 - k / T`` with the smallest k from which on every token is the arg-max; Carlini et al., arXiv 2012.07805. In
    [0, 1]; higher = more memorised, worse on the forget set; 0 when even the last token is not the arg-max.

    Differs from open-unlearning: its loop ends at k = T - 1 and so gives 1 / T instead of 0 in that case.

    >>> extraction_strength([True, False, True, True])
    0.5

    Args:
        argmax_hits: True for each answer token that is the arg-max, [T], without the end-of-sequence token.

    Raises:
        UserError: no token, or a value that is neither true nor false.
    """
    hits = _hits(argmax_hits)
    misses = np.flatnonzero(hits == 0)
    start = int(misses[-1]) + 1 if len(misses) else 0
    return 1 - start / len(hits)


def _hits(argmax_hits: npt.ArrayLike) -> Floats:
    hits = vector("argmax_hits", argmax_hits)
    if not np.isin(hits, (0.0, 1.0)).all():
        raise UserError("argmax_hits must be true or false for each token")
    return hits
