"""The field's composite: memorisation, privacy and utility, each a harmonic mean of parts, and the three in one number.

Memorisation, utility and the overall score are open-unlearning's (arXiv 2506.12618), whose code was never published
(its issue 150); privacy and all definitions are as re-coded in github.com/gnueaj/unlearning-depth-score at fc31639.
Differs from that code: a part at 0 makes a harmonic mean 0, where 1e-12 in the denominators there leaves about 1e-12.
Every score is in [0, 1] and higher is better; show the parts beside it, because one part at 0 hides all others.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sga.errors import UserError
from sga.evaluation.metrics.arrays import Floats, vector
from sga.evaluation.metrics.truth_ratio import log_truth_ratio

_ROUNDING = 1e-6
"""Distance that a part may lie beyond 0 or 1: float32 means do, and the re-coded s of a model itself is 1 + 1e-12."""


def harmonic_mean(**parts: float) -> float:
    """The harmonic mean of named parts, 0 where any of them is 0.

    ``len(parts) / sum(1 / part)``. In [0, 1], higher is better; never above the smallest part times their number.

    >>> round(harmonic_mean(forget=0.5, keep=1.0), 6), harmonic_mean(forget=0.0, keep=1.0)
    (0.666667, 0.0)

    Raises:
        UserError: no part, or one that is NaN or outside [0, 1]; all such parts are named.
    """
    if not parts:
        raise UserError("a harmonic mean needs at least one part")
    wrong = [f"{name} = {part}" for name, part in parts.items() if not -_ROUNDING <= part <= 1 + _ROUNDING]  # NaN too
    if wrong:
        raise UserError(f"parts of a composite score must be in [0, 1], got {', '.join(wrong)}")
    values = [min(max(float(part), 0.0), 1.0) for part in parts.values()]
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1 / value for value in values)


def memorization_score(
    *, extraction_strength: float, exact_memorization: float, paraphrase_probability: float, truth_ratio: float
) -> float:
    """Memorisation score: one minus what is left of the forget set, by four measures.

    ``harmonic mean of 1 - extraction_strength, 1 - exact_memorization, 1 - paraphrase_probability, 1 - truth_ratio``;
    open-unlearning, arXiv 2506.12618. In [0, 1], higher = less memorised; best is the retain model's. 0 where a measure
    is 1.

    >>> memorization_score(
    ...     extraction_strength=0.5, exact_memorization=0.5, paraphrase_probability=0.5, truth_ratio=0.5)
    0.5

    Args:
        extraction_strength: Mean over the forget set of `sga.evaluation.metrics.extraction_strength`, in [0, 1].
        exact_memorization: Mean over the forget set of `sga.evaluation.metrics.exact_memorization`, in [0, 1].
        paraphrase_probability: Mean of exp(-avg_nll) of the paraphrased answers, in [0, 1].
        truth_ratio: Mean of `correct_share`, p_right / (p_right + p_wrong), in [0, 1]; not TOFU's truth ratio.

    Raises:
        UserError: a part is NaN or outside [0, 1].
    """
    return harmonic_mean(
        **{
            "1 - extraction_strength": 1 - extraction_strength,
            "1 - exact_memorization": 1 - exact_memorization,
            "1 - paraphrase_probability": 1 - paraphrase_probability,
            "1 - truth_ratio": 1 - truth_ratio,
        }
    )


def correct_share(paraphrased_nll: npt.ArrayLike, wrong_nll: list[list[float]] | Floats) -> Floats:
    """Share of the right answer in the probability of a right and a wrong one, for each row.

    ``p_right / (p_right + p_wrong)`` with p = exp(-avg_nll), p_right of the *paraphrased* answer and p_wrong the
    geometric mean over the wrong ones, which is ``1 / (1 + R)`` of TOFU's truth ratio R; arXiv 2506.12618. Computed
    from log R, so that no probability underflows. In [0, 1]; 1/2 where right and wrong are equally likely; higher =
    more memorised on the forget set.

    >>> correct_share([math.log(2)], [[math.log(6)]]).round(6)  # 1/2 of 1/2 + 1/6
    array([0.75])

    Args:
        paraphrased_nll: Losses of the paraphrased answers, [N], nats per token.
        wrong_nll: Losses of the perturbed answers, N sequences, nats per token.

    Returns:
        [N]; its mean is the ``truth_ratio`` of `memorization_score`.

    Raises:
        UserError: empty, not finite or misaligned.
    """
    share: Floats = np.exp(-np.logaddexp(0.0, log_truth_ratio(paraphrased_nll, wrong_nll)))
    return share


def relative_membership(auc: float, reference_auc: float) -> float:
    """Likeness of a membership AUC to that of a model that never saw the forget set.

    ``1 - min(|auc - reference_auc| / reference_auc, 1)``; s_a of arXiv 2506.12618 as re-coded in fc31639. In [0, 1]: 1
    = the reference's AUC, 0 = off by as much as it: at twice the reference's AUC and beyond, and at an AUC of 0.

    >>> relative_membership(auc=0.25, reference_auc=0.5), relative_membership(auc=1.0, reference_auc=0.5)
    (0.5, 0.0)

    Args:
        auc: AUC of the unlearned model, as `membership_auc` gives it.
        reference_auc: AUC of the retrained model, on the same rows.

    Raises:
        UserError: an AUC is NaN or outside [0, 1], or `reference_auc` is 0, which nothing can be divided by.
    """
    for name, value in (("auc", auc), ("reference_auc", reference_auc)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} must be in [0, 1], got {value}")
    if reference_auc == 0:
        raise UserError("reference_auc must be above 0: the distance to it is taken as a share of it")
    return 1 - min(abs(auc - reference_auc) / reference_auc, 1)


def privacy_score(*, loss: float, zlib: float, min_k: float, min_k_plus_plus: float) -> float:
    """Privacy score: likeness of four membership AUCs to those of a model that never saw the forget set.

    ``harmonic mean of the four s_a`` (`relative_membership`); Min-K % and Min-K %++ with 40 %. Source: the re-coding
    fc31639, "privacy_mia" there. In [0, 1], higher is better, 1 for the reference itself; 0 where one attack is at 0.

    Args:
        loss: Value s of the attack by loss, in [0, 1]; not an AUC.
        zlib: Value s of the attack by loss per compressed byte, in [0, 1].
        min_k: Value s of the attack by Min-40 %, in [0, 1].
        min_k_plus_plus: Value s of the attack by Min-40 %++, in [0, 1].

    Raises:
        UserError: a part is NaN or outside [0, 1].
    """
    return harmonic_mean(loss=loss, zlib=zlib, min_k=min_k, min_k_plus_plus=min_k_plus_plus)


def utility_score(*, model_utility: float, fluency: float) -> float:
    """Utility score: model utility and fluency in one number.

    ``harmonic mean of model_utility and fluency``; arXiv 2506.12618. In [0, 1], higher is better. For `overall_score`
    divide it by the full model's, at most 1 (`relative_utility`).

    Args:
        model_utility: Model utility as TOFU defines it, in [0, 1].
        fluency: Fluency of the forget answers, in [0, 1]: a classifier's mean probability that an answer is no
            gibberish, as published, or the answers' n-gram entropy over the full model's on the same questions, at
            most 1. Name which one it is: the two are not comparable.

    Raises:
        UserError: a part is NaN or outside [0, 1].
    """
    return harmonic_mean(model_utility=model_utility, fluency=fluency)


def relative_utility(utility: float, full_utility: float) -> float:
    """The utility score as a share of the full model's, at most 1.

    ``min(1, utility / full_utility)``, the full model evaluated in the same way.

    Raises:
        UserError: a value is NaN or outside [0, 1], or `full_utility` is 0.
    """
    harmonic_mean(utility=utility, full_utility=full_utility)  # for its check
    if full_utility <= 0:
        raise UserError("full_utility must be above 0: utility is taken as a share of it")
    return min(1.0, max(0.0, utility) / full_utility)


def relative_fluency(fluency: float, full_fluency: float) -> float:
    """Mean n-gram entropy of a model's answers as a share of the full model's on the same questions, at most 1.

    Raises:
        UserError: a value is NaN or outside [0, 1], or `full_fluency` is 0.
    """
    return relative_utility(fluency, full_fluency)


def overall_score(*, memorization: float, privacy: float, utility: float) -> float:
    """Forgetting, privacy and utility in one number.

    ``harmonic mean of the three``; arXiv 2506.12618. In [0, 1], higher is better. 0 where one of them is: show all.

    Args:
        memorization: Value of `memorization_score`, in [0, 1].
        privacy: Value of `privacy_score`, in [0, 1].
        utility: Value of `utility_score` as a share of the full model's (`relative_utility`).

    Raises:
        UserError: a part is NaN or outside [0, 1].
    """
    return harmonic_mean(memorization=memorization, privacy=privacy, utility=utility)


def paraphrase_probability(paraphrased_nll: npt.ArrayLike) -> float:
    """Mean probability per token of the paraphrased answers of the forget set, ``mean(exp(-avg_nll))``.

    In [0, 1]; higher = the fact is still there in other words. arXiv 2506.12618 ("Para. Prob.").

    Raises:
        UserError: empty, not one-dimensional, or not finite.
    """
    return float(np.exp(-vector("paraphrased_nll", paraphrased_nll)).mean())
