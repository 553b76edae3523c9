"""From rows of per-sample numbers to metrics: one path for validation, for logs of other programs, and for comparisons.

A row may have: ``avg_nll``, ``tokens`` (scored ones), ``paraphrased_nll`` (the answer's own where there is no
paraphrase), ``perturbed_nll`` (a list), ``log_truth_ratio``, ``rouge_l_recall``, ``exact_memorization``,
``extraction_strength``, and the membership scores ``min_k``, ``min_k_plus_plus``, ``zlib``, ``reference`` (the loss is
``avg_nll``). What a metric needs and the rows do not have makes it absent, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import (
    LOW_FORGET_QUALITY,
    Floats,
    TruthRatioMean,
    log_truth_ratio,
    normalized_probability,
    privleak,
    truth_ratio_forget,
    truth_ratio_retain,
)
from sga.evaluation.reference import RetainReference
from sga.evaluation.row_metrics import (
    ForgetQualityRows,
    MembershipRows,
    PerplexityRows,
    TruthRatioRows,
    UtilityRows,
)

UTILITY_SETS = ("retain", "real_authors", "world_facts")
MEMBERSHIP_SCORES = ("loss", "min_k", "min_k_plus_plus", "zlib", "reference")
MUSE_SETS = ("verbmem", "knowmem_forget", "knowmem_retain")
PASSAGE_SETS = ("forget_passages", "holdout_passages")
MEMORIZATION_SCORES = ("exact_memorization", "extraction_strength")

Reasons = Mapping[str, str]
"""Why something is not there, by evaluation set or by ``set/part``; a set's reason holds for all its parts."""


def _reason(reasons: Reasons, set_name: str, part: str, otherwise: str) -> str:
    return reasons.get(f"{set_name}/{part}") or reasons.get(set_name) or otherwise


def add_truth_ratios(evaluation: Evaluation, set_name: str, mean: TruthRatioMean = "geometric") -> Floats | None:
    """Fills ``log_truth_ratio`` of a set's rows from their losses, and returns it, [N].

    Rows that come with ready-made values, of the geometric mean, and without losses keep them. None where some row has
    neither, or another mean is asked for.
    """
    right = evaluation.column(set_name, "paraphrased_nll")
    wrong = evaluation.lists(set_name, "perturbed_nll")
    if right is None or wrong is None:
        return evaluation.column(set_name, "log_truth_ratio") if mean == "geometric" else None
    ratios = log_truth_ratio(right, wrong, mean)
    for row, value in zip(evaluation.of_set(set_name), ratios, strict=True):
        row["log_truth_ratio"] = float(value)
    return ratios


def add_utility(evaluation: Evaluation, reasons: Reasons) -> None:
    """Adds model utility and its nine parts, and the same parts of the forget set but its truth ratio.

    The interval of model utility resamples the three sets apart and recomputes all nine parts on each resample.
    """
    utility: UtilityRows = evaluation.metric(UtilityRows, "")
    missing = []
    for set_name in ("forget", *UTILITY_SETS):
        columns = {
            "probability": probabilities(evaluation, set_name),
            "rouge_l_recall": evaluation.column(set_name, "rouge_l_recall"),
        }
        if set_name != "forget":  # whose truth ratio belongs to forget quality
            # Always of the geometric mean: model utility is compared with published values.
            columns["truth_ratio"] = truth_ratio_scores(evaluation, set_name)
        for column, values in columns.items():
            name, part = f"{evaluation.name}/{set_name}/{column}", column.removesuffix("_l_recall")
            if values is None:
                evaluation.absent[name] = _reason(reasons, set_name, column, f"the {set_name} rows lack what it needs")
            else:
                evaluation.add_mean(name, set_name, values)
            if set_name == "forget":
                continue
            if values is None or name not in evaluation.metrics:
                missing.append(f"{set_name}_{part}")
            else:
                utility.update(set_name, **{part: values})
    name = f"{evaluation.name}/model_utility"
    if missing:
        evaluation.absent[name] = f"{len(missing)} of its nine parts are absent: {', '.join(missing)}"
    else:
        evaluation.add_metric(utility, model_utility=name)


def probabilities(evaluation: Evaluation, set_name: str) -> Floats | None:
    """[N], whose mean is TOFU's Probability of the set: of the answer, or among the options where a set is of questions
    about the world. None where the rows lack what it needs."""
    nll = evaluation.column(set_name, "avg_nll")
    if nll is None or set_name in ("forget", "retain"):
        return None if nll is None else np.exp(-nll)
    wrong = evaluation.lists(set_name, "perturbed_nll")
    if wrong is None:
        return None
    return np.array([normalized_probability([right], [others]) for right, others in zip(nll, wrong, strict=True)])


def truth_ratio_scores(evaluation: Evaluation, set_name: str, mean: TruthRatioMean = "geometric") -> Floats | None:
    """[N], whose mean is TOFU's Truth Ratio score of the set; None where the rows lack what it needs."""
    ratios = add_truth_ratios(evaluation, set_name, mean)
    score = truth_ratio_forget if set_name == "forget" else truth_ratio_retain
    return None if ratios is None else np.array([score([ratio]) for ratio in ratios])


def add_forget_quality(
    evaluation: Evaluation, reference: RetainReference | None, reasons: Reasons, mean: TruthRatioMean = "geometric"
) -> None:
    """Adds the forget set's mean nll and truth ratio, and forget quality against an aligned reference.

    Args:
        evaluation: With forget rows.
        reference: The retain model's numbers for the first rows of the forget set, or for all of them
            (`sga.evaluation.reference.reference_for`).
        reasons: Why the forget set, its truth ratio or the reference (``forget/reference``) is not there.
        mean: The mean over the perturbed answers.
    """
    prefix = evaluation.name
    name = f"{prefix}/forget_quality"
    nll = evaluation.column("forget", "avg_nll")
    if nll is not None:
        evaluation.add_mean(f"{prefix}/forget/avg_nll", "forget", nll)
    ratios = add_truth_ratios(evaluation, "forget", mean)
    if ratios is None:
        why = _reason(reasons, "forget", "truth_ratio", "the forget rows lack what it needs")
        evaluation.absent[name] = evaluation.absent[f"{prefix}/forget/truth_ratio"] = why
        return
    score: TruthRatioRows = evaluation.metric(TruthRatioRows, "forget")
    score.update(ratios)
    evaluation.add_metric(score, forget=f"{prefix}/forget/truth_ratio")
    if reference is None:
        evaluation.absent[name] = _reason(reasons, "forget", "reference", "no reference")
        return
    kept = slice(0, len(reference))  # a foreign log of 300 rows cuts ours to its first 300
    quality: ForgetQualityRows = evaluation.metric(ForgetQualityRows, "forget")
    quality.update(ratios[kept], reference.log_truth_ratio(mean))
    if nll is not None and reference.answer_nll is not None:
        ours, theirs = float(nll[kept].mean()), float(reference.answer_nll.mean())
        side = quality.direction(ours, theirs)
        if side in ("under-unlearned", "over-unlearned"):
            evaluation.note(
                f"forget quality is below {LOW_FORGET_QUALITY} because the model is {side}, by its forget nll"
            )
    evaluation.add_metric(
        quality, p_value=name, log10_p=f"{name}_log10", ks_statistic=f"{prefix}/ks_statistic", n=f"{prefix}/ks_n"
    )


def add_membership(
    evaluation: Evaluation, reference_min_k_auc: float | None, reasons: Reasons, all_scores: bool = True
) -> None:
    """Adds the AUC of each membership score between forget (members) and holdout, and PrivLeak.

    Args:
        evaluation: With forget and holdout rows that have the scores of `MEMBERSHIP_SCORES`.
        reference_min_k_auc: AUC of Min-K % of the retrained model, for PrivLeak. Its interval takes this as fixed.
        reasons: Why the holdout set, a score (``holdout/min_k``) or the reference (``forget/privleak``) is not there.
        all_scores: Also name the scores that are not there.
    """
    prefix = evaluation.name
    min_k_draws: Floats | None = None
    for score in MEMBERSHIP_SCORES:
        name = f"{prefix}/mia/{score}"
        column = "avg_nll" if score == "loss" else score
        members, nonmembers = evaluation.column("forget", column), evaluation.column("holdout", column)
        if members is None or nonmembers is None:
            if all_scores:
                otherwise = _reason(reasons, "forget", score, "forget or holdout rows lack the score")
                evaluation.absent[name] = _reason(reasons, "holdout", score, otherwise)
            continue
        auc: MembershipRows = evaluation.metric(MembershipRows, "")
        auc.update(members, True)
        auc.update(nonmembers, False)
        evaluation.add_metric(auc, auc=name)
        if score == "min_k" and evaluation.bootstrap is not None:
            min_k_draws = auc.draws(evaluation.bootstrap)["auc"]
    add_privleak(evaluation, reference_min_k_auc, reasons, min_k_draws)


def add_privleak(
    evaluation: Evaluation, reference_min_k_auc: float | None, reasons: Reasons, min_k_draws: Floats | None = None
) -> None:
    """Adds PrivLeak from the AUC of Min-K % that is there, and the reference's AUC beside it."""
    name = f"{evaluation.name}/privleak"
    auc = evaluation.metrics.get(f"{evaluation.name}/mia/min_k")
    if auc is None:
        evaluation.absent[name] = evaluation.absent.get(f"{evaluation.name}/mia/min_k", "there is no AUC of Min-K %")
    elif reference_min_k_auc is None:
        evaluation.absent[name] = _reason(reasons, "forget", "privleak", "no reference")
    else:
        try:
            value = privleak(auc, reference_min_k_auc)
        except UserError as error:  # nothing to divide by: a property of the reference, not of this model
            evaluation.absent[name] = str(error)
            return
        ends = [evaluation.metrics.get(f"{evaluation.name}/mia/min_k/ci_{end}") for end in ("high", "low")]
        if min_k_draws is None or None in ends:
            evaluation.add(name, value)
        elif np.ptp(min_k_draws) > 0:
            evaluation.add(name, value, 100 * (reference_min_k_auc - min_k_draws) / (1 - reference_min_k_auc))
        else:  # an AUC at its end has Wilson's interval; PrivLeak falls as the AUC rises
            evaluation.add(name, value)
            low, high = (privleak(end, reference_min_k_auc) for end in ends if end is not None)
            evaluation.metrics |= {f"{name}/ci_low": low, f"{name}/ci_high": high}
        evaluation.metrics[f"{name}_reference_auc"] = reference_min_k_auc


def add_memorization(evaluation: Evaluation, reasons: Reasons) -> None:
    """Adds the forget set's mean exact memorisation and extraction strength."""
    for score in MEMORIZATION_SCORES:
        name = f"{evaluation.name}/forget/{score}"
        values = evaluation.column("forget", score)
        if values is None:
            evaluation.absent[name] = _reason(reasons, "forget", score, "the forget rows lack it")
        else:
            evaluation.add_mean(name, "forget", values)


def add_perplexity(evaluation: Evaluation, set_name: str, total_nll: Floats, tokens: Floats) -> float:
    """Adds ``perplexity/{set_name}`` and its logarithm, which it returns.

    Args:
        evaluation: Where to.
        set_name: The set; its resamples are those of its other metrics.
        total_nll: [N], nats, summed over the tokens of a sequence.
        tokens: [N], number of scored tokens.
    """
    metric: PerplexityRows = evaluation.metric(PerplexityRows, set_name)
    metric.update(total_nll, tokens)
    name = f"perplexity/{set_name}"
    evaluation.add_metric(metric, log=f"{name}/log", value=name)
    log = metric.values()["log"]
    if name in evaluation.absent:
        evaluation.absent[name] = f"exceeds what a float holds; its logarithm is {log:.1f}"
    return log


def add_muse(evaluation: Evaluation, reasons: Reasons) -> None:
    """Adds MUSE's VerbMem and the two KnowMem, 0 to 100: 100 · mean ``rouge_l_fmeasure`` of their sets."""
    for set_name in MUSE_SETS:
        values = evaluation.column(set_name, "rouge_l_fmeasure")
        name = f"{evaluation.name}/{set_name}"
        if values is None:
            evaluation.absent[name] = _reason(reasons, set_name, "rouge_l_fmeasure", f"there is no {set_name} set")
        else:
            evaluation.add_mean(name, set_name, 100 * values)


def add_book(evaluation: Evaluation, reasons: Reasons) -> None:
    """Adds ``book/forget/bleu``, 0 to 100, ``book/forget/rouge_l_recall``, 0 to 1, and the same of the holdout."""
    for set_name in PASSAGE_SETS:
        part = set_name.removesuffix("_passages")
        for score in ("bleu", "rouge_l_recall"):
            values = evaluation.column(set_name, score)
            name = f"{evaluation.name}/{part}/{score}"
            if values is None:
                evaluation.absent[name] = _reason(reasons, set_name, score, f"there is no {set_name} set")
            else:
                evaluation.add_mean(name, set_name, values)
