"""Probability and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import Floats, vector
from sga.evaluation.metrics.truth_ratio import right_and_wrong

DIVERGED = math.log(1e10)
"""Log perplexity on normal text above which the paper calls a model diverged (arXiv 2510.22376)."""


def probability(avg_nll: npt.ArrayLike) -> float:
    """The mean probability per token that the model gives to the right answers (TOFU's Probability on forget, retain).

    ``mean(exp(-avg_nll))``; TOFU's aggregation, arXiv 2401.06121 §2.2. In [0, 1]; higher is better on the retain set,
    lower means more forgotten on the forget set.

    Args:
        avg_nll: Losses of the answers, [N], nats per token.

    Raises:
        UserError: empty, not one-dimensional, or not finite.
    """
    return float(np.exp(-vector("avg_nll", avg_nll)).mean())


def normalized_probability(right_nll: npt.ArrayLike, wrong_nll: Sequence[npt.ArrayLike] | Floats) -> float:
    """Share of the right answer in the probability of all options (Probability on real authors and facts).

    ``mean(p_right / (p_right + sum_i p_wrong_i))`` with ``p = exp(-avg_nll)``, computed as
    ``exp(-logsumexp([0, right_nll - wrong_nll_i]))`` so that no probability underflows. TOFU's aggregation. In [0, 1],
    higher is better.

    Args:
        right_nll: Losses of the right answers, [N], nats per token.
        wrong_nll: Losses of the wrong answers, N sequences whose lengths may differ, nats per token.

    Raises:
        UserError: empty, not finite, or `right_nll` and `wrong_nll` of different length.
    """
    right, wrong = right_and_wrong(right_nll, wrong_nll)
    logs = [-np.logaddexp.reduce(np.append(r - w, 0.0)) for r, w in zip(right, wrong, strict=True)]
    return float(np.exp(np.array(logs)).mean())


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity and its logarithm.

    Attributes:
        log: Mean nll per token, nats; at least 0, lower is better on normal text.
        value: Perplexity, exp(log); at least 1, infinite where that exceeds float64 (log above 709): use `log` there.
    """

    log: float
    value: float


def perplexity(total_nll: npt.ArrayLike, tokens: npt.ArrayLike) -> PerplexityResult:
    """Perplexity of a set of sequences, each token counted alike.

    ``exp(sum(total_nll) / sum(tokens))``. Lower is better on normal and retain text; above 1e10 the model has diverged.

    Args:
        total_nll: Losses in nats, summed over the tokens of a sequence: [N], or one number for the whole set.
        tokens: Number of scored tokens, of the same form.

    Raises:
        UserError: empty, misaligned or not finite, or a sequence without a token.
    """
    nll, count = vector("total_nll", np.atleast_1d(total_nll)), vector("tokens", np.atleast_1d(tokens))
    if len(nll) != len(count):
        raise UserError(f"total_nll and tokens must be aligned, got {len(nll)} and {len(count)} values")
    if count.min() < 1:
        raise UserError(f"tokens must be at least 1 for each sequence, got {count.min():g}; leave empty ones out")
    log = float(nll.sum() / count.sum())
    return PerplexityResult(log, math.exp(log) if log < math.log(np.finfo(np.float64).max) else math.inf)
