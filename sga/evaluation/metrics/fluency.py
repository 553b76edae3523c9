"""Fluency: whether a model still speaks, by the tokens of its answers and without the true ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sga.errors import UserError


def ngram_entropy(tokens: Sequence[int], n: int, length: int = 32) -> float | None:
    """Entropy of the n-grams of one answer, as a share of the most that its length allows.

    ``entropy(counts of n-grams of tokens[:length]) / log(number of n-grams)``. In [0, 1]: 1 = no n-gram occurs twice,
    0 = a single one throughout ("TheTheThe"). Every answer is truncated to the same number of tokens, because longer
    texts repeat more; an answer that is shorter is compared with the most that its own length allows. Word salad
    scores 1 too: see the nll of the answer under the starting model for that.

    >>> round(ngram_entropy([1, 2, 1, 2, 1], n=2), 3)  # two bigrams, twice each: log 2 of log 4
    0.5

    Args:
        tokens: Token ids of the answer, [T], without the one that ended it.
        n: Number of tokens of an n-gram.
        length: Number of tokens that are read, from the first on.

    Returns:
        The share; None for fewer than two n-grams, which cannot repeat.

    Raises:
        UserError: `n` is below 1 or `length` is not above `n`.
    """
    if n < 1 or length <= n:
        raise UserError(f"n must be at least 1 and length above n, got n = {n} and length = {length}")
    found = _ngrams(tokens[:length], n)
    if len(found) < 2:
        return None
    counts = np.array(list(Counter(found).values()), dtype=np.float64)
    # The entropy over its maximum, log n - (c·log c)/n over log n: exactly 1 where every count is 1.
    return max(0.0, 1 - float((counts * np.log(counts)).sum()) / (len(found) * math.log(len(found))))


def fluency(tokens: Sequence[int], length: int = 32) -> float:
    """Mean of the 2-gram and the 3-gram entropy of one answer, each a share of the most possible.

    In [0, 1]; higher = less repetition; best is the starting model's. 0 for an empty answer, 1 for one that is too
    short to repeat anything. After the n-gram entropy of Zhang et al., arXiv 1809.05972, which ROME (arXiv 2202.05262)
    calls fluency. Differs from theirs: model tokens in place of words, so that "TheTheThe" is not one word; equal
    lengths; a share in place of bits, so that short answers are not held for bad ones.

    >>> fluency([5, 5, 5, 5]), fluency([]), fluency([1, 2])
    (0.0, 0.0, 1.0)

    Args:
        tokens: Token ids of the answer, [T], without the one that ended it.
        length: Number of tokens that are read, from the first on; at least 4.

    Raises:
        UserError: `length` is below 4.
    """
    entropies = [ngram_entropy(tokens, n, length) for n in (2, 3)]
    known = [entropy for entropy in entropies if entropy is not None]
    if not known:
        return 1.0 if tokens else 0.0
    return sum(known) / len(known)


def repeats_ngram(tokens: Sequence[int], n: int = 4) -> bool:
    """True if some n-gram of tokens occurs twice in one answer; n = 4 is the sign of an answer that turns in circles.

    >>> repeats_ngram([1, 2, 3, 4, 9, 1, 2, 3, 4]), repeats_ngram([1, 2, 3, 4, 9, 1, 2, 3])
    (True, False)

    Args:
        tokens: Token ids of the answer, [T].
        n: Number of tokens of an n-gram.

    Raises:
        UserError: `n` is below 1.
    """
    if n < 1:
        raise UserError(f"n must be at least 1, got {n}")
    found = _ngrams(tokens, n)
    return len(set(found)) < len(found)


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
