"""Membership inference: scores, AUC and PrivLeak."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import Floats, vector


def membership_auc(member_scores: npt.ArrayLike, nonmember_scores: npt.ArrayLike) -> float:
    """AUC by which a score tells forget (members) from holdout (non-members): area under the ROC curve.

    ``P(member < non-member) + P(equal) / 2``, for scores that are *low* for members (loss, zlib, reference, Min-K %,
    Min-K %++). In [0, 1]: 1.0 = members recognised perfectly, 0.5 = not told apart, below = members look less familiar
    than non-members, a sign of over-unlearning. Best is the value of a model never trained on the members. Equal to
    scikit-learn's ``roc_auc_score``, whose import would take three times as long as all of `sga score`.

    Args:
        member_scores: Scores of the forget rows, [N], low for members.
        nonmember_scores: Scores of the holdout rows, [M].

    Raises:
        UserError: one of the two is empty or not finite.
    """
    members = vector("member_scores", member_scores)
    nonmembers = vector("nonmember_scores", nonmember_scores)
    ordered = np.sort(members)
    below = np.searchsorted(ordered, nonmembers, side="left") + np.searchsorted(ordered, nonmembers, side="right")
    return int(below.sum()) / (2 * len(members) * len(nonmembers))  # exact up to the division


def min_k_score(token_logprobs: npt.ArrayLike, share: float = 0.4) -> float:
    """Min-K % Prob: how surprising the most surprising tokens of one sequence are.

    ``-mean(lowest max(1, int(share * T)) of token_logprobs)``; Shi et al., arXiv 2310.16789; MUSE and open-unlearning
    take share = 0.4. Nats, at least 0; low = member.

    Args:
        token_logprobs: Log-probabilities of the answer tokens, [T], nats, without the end-of-sequence token.
        share: Share of the tokens that is averaged, in (0, 1].

    Raises:
        UserError: no token, a value is not finite, or `share` is outside (0, 1].
    """
    return -_lowest_mean(vector("token_logprobs", token_logprobs), share)


def min_k_plus_plus_score(
    token_logprobs: npt.ArrayLike, mu: npt.ArrayLike, sigma2: npt.ArrayLike, share: float = 0.4
) -> float:
    """Min-K %++: Min-K % of log-probabilities standardised by what the model thinks of the whole vocabulary there.

    ``-mean(lowest max(1, int(share * T)) of (token_logprobs - mu) / sqrt(max(sigma2, 1e-6)))``; Zhang et al.,
    arXiv 2404.02936; the clamp is open-unlearning's. Standard deviations, any sign; low = member.

    Args:
        token_logprobs: Log-probabilities of the answer tokens, [T], nats, without the end-of-sequence token.
        mu: Means of the log-probability under the model's own next-token distribution, [T], nats.
        sigma2: Variances of the same log-probability, [T].
        share: Share of the tokens that is averaged, in (0, 1].

    Raises:
        UserError: no token, lengths differ, a value is not finite, or `share` is outside (0, 1].
    """
    logprobs, mean, variance = vector("token_logprobs", token_logprobs), vector("mu", mu), vector("sigma2", sigma2)
    if not len(logprobs) == len(mean) == len(variance):
        raise UserError(
            "token_logprobs, mu and sigma2 must have one value a token, "
            f"got {len(logprobs)}, {len(mean)} and {len(variance)}"
        )
    return -_lowest_mean((logprobs - mean) / np.sqrt(np.maximum(variance, 1e-6)), share)


def _lowest_mean(values: Floats, share: float) -> float:
    if not 0 < share <= 1:
        raise UserError(f"share must be in (0, 1], got {share}")
    return float(np.sort(values)[: max(1, int(share * len(values)))].mean())


def zlib_score(avg_nll: float, text: str) -> float:
    """The loss per byte of the compressed text, which discounts text that is predictable for anyone.

    ``avg_nll / len(zlib.compress(text as UTF-8))``, of the answer only; Carlini et al., arXiv 2012.07805, as in
    open-unlearning. Nats per byte, at least 0; low = member.

    Raises:
        UserError: `avg_nll` is not finite.
    """
    return float(vector("avg_nll", [avg_nll])[0]) / len(zlib.compress(text.encode("utf-8")))


def privleak(auc: float, reference_auc: float) -> float:
    """MUSE's PrivLeak: by how many per cent membership is harder to see than in a retrained model.

    ``100 * (AUC' - AUC'_reference) / AUC'_reference`` with ``AUC' = 1 - AUC``; MUSE, arXiv 2407.06460 §3.2, with the
    AUC of Min-40 % Prob. Per cent, at least -100; best is 0. About -100: still leaks (under-unlearned); above 0:
    over-unlearned. Explodes for a small AUC'_reference: show both AUCs beside it. `reference_auc` = 0.5 gives
    open-unlearning's default.

    >>> privleak(auc=1.0, reference_auc=0.5)
    -100.0

    Args:
        auc: AUC of the unlearned model, 1.0 = members recognised perfectly (`membership_auc`).
        reference_auc: AUC of the retrained model in the same orientation.

    Raises:
        UserError: an AUC is outside [0, 1], or `reference_auc` is 1 (nothing to divide by).
    """
    for name, value in (("auc", auc), ("reference_auc", reference_auc)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} must be in [0, 1], got {value}")
    if reference_auc == 1:
        raise UserError("reference_auc must be below 1: a model that leaks all membership is no retrained reference")
    return 100 * ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc)
