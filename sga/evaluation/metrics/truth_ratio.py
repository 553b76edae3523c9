"""TOFU's truth ratio, in log space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import Floats, vector

TruthRatioMean = Literal["geometric", "arithmetic"]


def log_truth_ratio(
    right_nll: npt.ArrayLike, wrong_nll: Sequence[npt.ArrayLike] | Floats, mean: TruthRatioMean = "geometric"
) -> Floats:
    """The logarithm of TOFU's truth ratio R = P_wrong / P_right of each sample; never divides probabilities.

    * geometric (default): ``log R = right_nll - mean_i(wrong_nll_i)``; TOFU's aggregation and open-unlearning.
    * arithmetic: ``log R = right_nll + logsumexp_i(-wrong_nll_i) - log(number of wrong answers)``; the text of TOFU's
      paper (arXiv 2401.06121 §2.2.1) and its ``utils.py``.

    Any real number; above 0 the wrong answers are the likelier ones.

    Differs from open-unlearning: it takes P_wrong / (P_right + 1e-10), which saturates once right_nll passes about 20.

    >>> log_truth_ratio([3.0], [[1.0, 2.0]])
    array([1.5])

    Args:
        right_nll: Losses of the paraphrased answers (of the answer itself where there is no paraphrase), [N], nats per
            token.
        wrong_nll: Losses of the perturbed answers, N sequences whose lengths may differ, nats per token.
        mean: Kind of the mean over the perturbed answers' probabilities.

    Returns:
        [N], log R.

    Raises:
        UserError: empty, not finite, `right_nll` and `wrong_nll` of different length, or an unknown mean.
    """
    right, wrong = right_and_wrong(right_nll, wrong_nll)
    if mean == "geometric":
        log_wrong = [-w.mean() for w in wrong]
    elif mean == "arithmetic":
        log_wrong = [np.logaddexp.reduce(-w) - math.log(len(w)) for w in wrong]
    else:
        raise UserError(f"mean must be 'geometric' or 'arithmetic', got {mean!r}")
    return right + np.array(log_wrong, dtype=np.float64)


def truth_ratio_retain(log_ratio: npt.ArrayLike) -> float:
    """The Truth Ratio score of retain sets: how far the right answer is ahead of the wrong ones.

    ``mean(max(0, 1 - R))``, computed as ``mean(-expm1(min(log_ratio, 0)))``, which cannot overflow. TOFU's
    aggregation. In [0, 1], higher is better.

    Args:
        log_ratio: Log truth ratios R of `log_truth_ratio`, [N].

    Raises:
        UserError: empty, not one-dimensional, or not finite.
    """
    return float(-np.expm1(np.minimum(vector("log_ratio", log_ratio), 0.0)).mean())


def truth_ratio_forget(log_ratio: npt.ArrayLike) -> float:
    """The Truth Ratio score of the forget set: how close right and wrong answers are to equally likely.

    ``mean(min(R, 1/R))``, computed as ``mean(exp(-abs(log_ratio)))``, which cannot overflow. TOFU's aggregation. In
    [0, 1]; higher means that the model does not tell right from wrong, which is better on the forget set.

    Args:
        log_ratio: Log truth ratios R of `log_truth_ratio`, [N].

    Raises:
        UserError: empty, not one-dimensional, or not finite.
    """
    return float(np.exp(-np.abs(vector("log_ratio", log_ratio))).mean())


def right_and_wrong(
    right_nll: npt.ArrayLike, wrong_nll: Sequence[npt.ArrayLike] | Floats
) -> tuple[Floats, list[Floats]]:
    right = vector("right_nll", right_nll)
    if len(right) != len(wrong_nll):
        raise UserError(
            f"right_nll and wrong_nll must be aligned, one list of wrong answers for each right one, "
            f"got {len(right)} and {len(wrong_nll)}"
        )
    return right, [vector(f"wrong_nll[{index}]", wrong) for index, wrong in enumerate(wrong_nll)]
