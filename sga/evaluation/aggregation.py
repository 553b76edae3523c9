"""Metrics from rows of per-sample numbers: one path for validation, for logs of other programs, and for comparisons.

A row may have: ``avg_nll``, ``tokens`` (number of scored ones), ``paraphrased_nll`` (the answer's own where there is
no paraphrase), ``perturbed_nll`` (a list), ``log_truth_ratio``, ``rouge_l_recall``, ``exact_memorization``,
``extraction_strength``, and the membership scores ``min_k``, ``min_k_plus_plus``, ``zlib``, ``reference``,
``gradient_norm`` (the loss is ``avg_nll``); retain rows have ``normal``, true if training draws normals
from them. A metric is absent, with a reason, if the rows lack a field that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import TypeVar

import numpy as np

from sga.data.records import FORGET_PARAPHRASED
from sga.data.reserved import RETAIN_UNSEEN
from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import (
    LOW_FORGET_QUALITY,
    Floats,
    TruthRatioMean,
    log_truth_ratio,
    membership_auc,
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
KEPT_SETS = (*UTILITY_SETS, RETAIN_UNSEEN)
"""Sets that the model should still answer: those of model utility, and the retain rows that unlearning has not seen."""
ANSWERED_SETS = ("forget", FORGET_PARAPHRASED, *KEPT_SETS)
"""Sets of questions whose answers have a probability and a ROUGE score."""
UTILITY_UNSEEN = "model_utility_unseen"
RETAIN_NORMALS = "retain_normals"
"""Prefix of metrics over the retain rows that training has as normals, a subset of the retain set."""
MEMBERSHIP_SCORES = ("loss", "min_k", "min_k_plus_plus", "zlib", "reference")
COSTLY_MEMBERSHIP_SCORES = ("gradient_norm",)
"""Scores that rows have only if a setting turned them on."""
MUSE_SETS = ("verbmem", "knowmem_forget", "knowmem_retain")
PASSAGE_SETS = ("forget_passages", "holdout_passages")
MEMORIZATION_SCORES = ("exact_memorization", "extraction_strength")
MEMORIZED_SETS = ("forget", "retain", RETAIN_UNSEEN)
FLUENCY_SETS = ("forget", RETAIN_UNSEEN)
FLUENCY_PARTS = ("fluency", "empty", "repeated", "degenerate")
CLASSIFIER_FLUENCY = "classifier_fluency"
"""Probability of fluent text by a classifier; there only where one was given."""

T = TypeVar("T")
Reasons = Mapping[str, str]
"""Reason for a missing number, by evaluation set or by ``set/part``; a set's reason holds for all its parts."""


def _reason(reasons: Reasons, set_name: str, part: str, otherwise: str) -> str:
    return reasons.get(f"{set_name}/{part}") or reasons.get(set_name) or otherwise


def add_truth_ratios(evaluation: Evaluation, set_name: str, mean: TruthRatioMean = "geometric") -> Floats | None:
    """Fills ``log_truth_ratio`` of a set's rows from their losses, and returns it, [N]; None where it cannot be had.

    Rows without losses keep the values that they came with, which are of the geometric mean: with another `mean`, or
    where some row has neither, the result is None.
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
    """Adds model utility and its nine parts, and the same parts of the forget set except its truth ratio.

    ``model_utility`` is over every row, as published; ``model_utility_unseen`` uses the reserved rows for its three
    retain parts, where there are any. For the intervals the three sets are resampled separately, and all nine parts
    are recomputed for each resample.
    """
    found: dict[str, Floats] = {}
    for set_name in ANSWERED_SETS:
        if set_name in (RETAIN_UNSEEN, FORGET_PARAPHRASED) and not evaluation.of_set(set_name):
            if set_name == FORGET_PARAPHRASED and set_name in reasons:
                evaluation.absent[f"{evaluation.name}/{set_name}/probability"] = reasons[set_name]
            continue
        columns = {
            "probability": probabilities(evaluation, set_name),
            "rouge_l_recall": evaluation.column(set_name, "rouge_l_recall"),
        }
        if set_name not in ("forget", FORGET_PARAPHRASED):  # their truth ratio belongs to forget quality
            # Always with the geometric mean: model utility is compared with published values.
            columns["truth_ratio"] = truth_ratio_scores(evaluation, set_name)
        for column, values in columns.items():
            name = f"{evaluation.name}/{set_name}/{column}"
            if values is None:
                evaluation.absent[name] = _reason(reasons, set_name, column, f"the {set_name} rows lack what it needs")
                continue
            evaluation.add_mean(name, set_name, values)
            if name in evaluation.metrics:
                found[f"{set_name}_{column.removesuffix('_l_recall')}"] = values
    _add_harmonic_mean(evaluation, "model_utility", "retain", found)
    if evaluation.of_set(RETAIN_UNSEEN):
        _add_harmonic_mean(evaluation, UTILITY_UNSEEN, RETAIN_UNSEEN, found)
    elif RETAIN_UNSEEN in reasons:
        evaluation.absent[f"{evaluation.name}/{UTILITY_UNSEEN}"] = reasons[RETAIN_UNSEEN]


def add_retain_normals(evaluation: Evaluation) -> None:
    """Adds probability, ROUGE-L, truth ratio and memorisation of the retain rows that are normals (``normal`` true).

    Compare them with ``retain_unseen/…``, rows that training never sees. Nothing is added where no row is a normal,
    or the rows have no such field.
    """
    normal = evaluation.column("retain", "normal")
    if normal is None or not normal.any():
        return
    columns = {
        "probability": probabilities(evaluation, "retain"),
        "rouge_l_recall": evaluation.column("retain", "rouge_l_recall"),
        "truth_ratio": truth_ratio_scores(evaluation, "retain"),
        **{score: evaluation.column("retain", score) for score in MEMORIZATION_SCORES},
    }
    for column, values in columns.items():
        if values is not None:
            evaluation.add_mean(f"{evaluation.name}/{RETAIN_NORMALS}/{column}", RETAIN_NORMALS, values[normal > 0])


def _add_harmonic_mean(evaluation: Evaluation, name: str, retain: str, found: Mapping[str, Floats]) -> None:
    """Adds the harmonic mean of the nine parts, with the retain parts taken from the set named `retain`."""
    name = f"{evaluation.name}/{name}"
    utility: UtilityRows = evaluation.metric(UtilityRows, retain)
    missing = []
    for set_name in UTILITY_SETS:
        for part in ("probability", "rouge", "truth_ratio"):
            key = f"{retain if set_name == 'retain' else set_name}_{part}"
            if key in found:
                utility.update(set_name, **{part: found[key]})
            else:
                missing.append(key)
    if missing:
        evaluation.absent[name] = f"{len(missing)} of its nine parts are absent: {', '.join(missing)}"
    else:
        evaluation.add_metric(utility, model_utility=name)


def probabilities(evaluation: Evaluation, set_name: str) -> Floats | None:
    """Values per row whose mean is TOFU's Probability of a set, [N]; None where the rows lack a loss for it.

    On real authors and world facts it is the answer's share among all options, elsewhere exp(−avg_nll).
    """
    nll = evaluation.column(set_name, "avg_nll")
    if nll is None or set_name not in ("real_authors", "world_facts"):
        return None if nll is None else np.exp(-nll)
    wrong = evaluation.lists(set_name, "perturbed_nll")
    if wrong is None:
        return None
    return np.array([normalized_probability([right], [others]) for right, others in zip(nll, wrong, strict=True)])


def truth_ratio_scores(evaluation: Evaluation, set_name: str, mean: TruthRatioMean = "geometric") -> Floats | None:
    """Values per row whose mean is TOFU's Truth Ratio score of a set, [N]; None where the rows lack a loss for it."""
    ratios = add_truth_ratios(evaluation, set_name, mean)
    score = truth_ratio_forget if set_name == "forget" else truth_ratio_retain
    return None if ratios is None else np.array([score([ratio]) for ratio in ratios])


def add_forget_quality(
    evaluation: Evaluation,
    references: RetainReference | Sequence[RetainReference] | None,
    reasons: Reasons,
    mean: TruthRatioMean = "geometric",
) -> None:
    """Adds the forget set's mean nll and truth ratio, and forget quality against aligned references.

    With several references, log10 p is the mean over references (never computed from averaged rows), and so is D. Its
    range and the number of references are added too, and as a ceiling log10 p of the references against each other.

    Args:
        evaluation: Evaluation with forget rows; metrics are added to it.
        references: Numbers of each retain model for the forget rows, or for the first of them
            (`sga.evaluation.reference.reference_for`); one or several, None without a reference.
        reasons: Reason why the forget set, its truth ratio or the reference (``forget/reference``) is missing.
        mean: Kind of mean over the perturbed answers in the truth ratio.
    """
    references = _several(references)
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
    if not references:
        evaluation.absent[name] = _reason(reasons, "forget", "reference", "no reference")
        return
    found, directions = [], set()
    for reference in references:
        kept = slice(0, len(reference))  # a foreign log of 300 rows is compared with our first 300
        quality = _quality(evaluation, ratios[kept], reference.log_truth_ratio(mean))
        found.append(quality.values())
        if nll is not None and reference.answer_nll is not None:
            directions.add(quality.direction(float(nll[kept].mean()), float(reference.answer_nll.mean())))
    if directions in ({"under-unlearned"}, {"over-unlearned"}):
        evaluation.note(
            f"forget quality is below {LOW_FORGET_QUALITY} because the model is {directions.pop()}, by its forget nll"
        )
    logs = [values["log10_p"] for values in found]
    evaluation.add(name, found[0]["p_value"] if len(found) == 1 else 10 ** fmean(logs))
    add_with_range(evaluation, f"{name}_log10", logs)
    evaluation.add(f"{prefix}/ks_statistic", fmean([values["ks_statistic"] for values in found]))
    evaluation.add(f"{prefix}/ks_n", min(values["n"] for values in found))
    if len(found) > 1:
        evaluation.add(f"{prefix}/forget_quality_references", len(found))
        ceiling = [
            _quality(evaluation, one.log_truth_ratio(mean)[:rows], other.log_truth_ratio(mean)[:rows])
            for one, other in combinations(references, 2)
            for rows in [min(len(one), len(other))]
        ]
        add_with_range(evaluation, f"{name}_log10_ceiling", [quality.values()["log10_p"] for quality in ceiling])


def _quality(evaluation: Evaluation, ratios: Floats, reference: Floats) -> ForgetQualityRows:
    """Forget quality of truth ratios [N] against those of a reference on the same rows."""
    quality: ForgetQualityRows = evaluation.metric(ForgetQualityRows, "forget")
    quality.update(ratios, reference)
    return quality


def _several(given: T | Sequence[T] | None) -> Sequence[T]:
    """A single object as a tuple of one, None as an empty tuple; a sequence unchanged."""
    return () if given is None else given if isinstance(given, Sequence) else (given,)


def add_with_range(evaluation: Evaluation, name: str, values: Sequence[float]) -> float:
    """Adds the mean over references and, for more than one, ``_min`` and ``_max``; returns the mean."""
    evaluation.add(name, fmean(values))
    if len(values) > 1:
        evaluation.add(f"{name}_min", min(values))
        evaluation.add(f"{name}_max", max(values))
    return fmean(values)


def add_membership(
    evaluation: Evaluation,
    reference_min_k_aucs: float | Sequence[float] | None,
    reasons: Reasons,
    all_scores: bool = True,
) -> None:
    """Adds the AUC of each membership score between forget (members) and holdout, and PrivLeak.

    Args:
        evaluation: Evaluation with forget and holdout rows that have the scores of `MEMBERSHIP_SCORES`.
        reference_min_k_aucs: AUC of Min-K % of each retrained model, in [0, 1], for PrivLeak. PrivLeak's interval takes
            them as fixed.
        reasons: Reason why the holdout set, a score (``holdout/min_k``) or the reference (``forget/privleak``) is
            missing.
        all_scores: True to list missing scores as absent; False passes over them.
    """
    prefix = evaluation.name
    min_k_draws: Floats | None = None
    for score in (*MEMBERSHIP_SCORES, *COSTLY_MEMBERSHIP_SCORES):
        name = f"{prefix}/mia/{score}"
        column = "avg_nll" if score == "loss" else score
        members, nonmembers = evaluation.column("forget", column), evaluation.column("holdout", column)
        if members is None or nonmembers is None:
            if all_scores and score in MEMBERSHIP_SCORES:
                otherwise = _reason(reasons, "forget", score, "forget or holdout rows lack the score")
                evaluation.absent[name] = _reason(reasons, "holdout", score, otherwise)
            continue
        auc: MembershipRows = evaluation.metric(MembershipRows, "")
        auc.update(members, True)
        auc.update(nonmembers, False)
        evaluation.add_metric(auc, auc=name)
        if score == "min_k" and evaluation.bootstrap is not None:
            min_k_draws = auc.draws(evaluation.bootstrap)["auc"]
        if score == "reference":
            _average_over_references(evaluation, name)
    add_privleak(evaluation, reference_min_k_aucs, reasons, min_k_draws)


def _average_over_references(evaluation: Evaluation, name: str) -> None:
    """Replaces the AUC of the score ``reference`` by the mean of its AUCs against each reference, if rows have them."""
    members, others = (evaluation.lists(side, "reference_each") for side in ("forget", "holdout"))
    if not members or not others:
        return
    pairs = list(zip(np.array(members).T, np.array(others).T, strict=True))  # [references] of [N], [M]
    for end in ("ci_low", "ci_high"):
        evaluation.metrics.pop(f"{name}/{end}", None)
    add_with_range(evaluation, name, [membership_auc(one, other) for one, other in pairs])
    if evaluation.bootstrap is not None:
        draws = [evaluation.bootstrap.aucs("forget", one, "holdout", other) for one, other in pairs]
        sets = {"forget": len(members), "holdout": len(others)}
        evaluation.add(name, evaluation.metrics[name], np.mean(draws, axis=0), sets, min(sets.values()))


def add_privleak(
    evaluation: Evaluation,
    reference_min_k_aucs: float | Sequence[float] | None,
    reasons: Reasons,
    min_k_draws: Floats | None = None,
) -> None:
    """Adds PrivLeak from the evaluation's AUC of Min-K %, and the references' AUC; the mean if there are several."""
    reference_min_k_aucs = _several(reference_min_k_aucs)
    name = f"{evaluation.name}/privleak"
    auc = evaluation.metrics.get(f"{evaluation.name}/mia/min_k")
    if auc is None:
        evaluation.absent[name] = evaluation.absent.get(f"{evaluation.name}/mia/min_k", "there is no AUC of Min-K %")
    elif not reference_min_k_aucs:
        evaluation.absent[name] = _reason(reasons, "forget", "privleak", "no reference")
    else:
        try:
            values = [privleak(auc, reference) for reference in reference_min_k_aucs]
        except UserError as error:  # nothing to divide by: a property of the reference, not of this model
            evaluation.absent[name] = str(error)
            return
        ends = [evaluation.metrics.get(f"{evaluation.name}/mia/min_k/ci_{end}") for end in ("high", "low")]
        value = add_with_range(evaluation, name, values)
        if min_k_draws is not None and None not in ends and np.ptp(min_k_draws) > 0:
            draws = [100 * (reference - min_k_draws) / (1 - reference) for reference in reference_min_k_aucs]
            evaluation.add(name, value, np.mean(draws, axis=0))
        elif min_k_draws is not None and None not in ends:
            # An AUC at its end has Wilson's interval; PrivLeak falls as the AUC rises.
            low, high = (fmean([privleak(end, r) for r in reference_min_k_aucs]) for end in ends if end is not None)
            evaluation.metrics |= {f"{name}/ci_low": low, f"{name}/ci_high": high}
        add_with_range(evaluation, f"{name}_reference_auc", reference_min_k_aucs)


def add_memorization(evaluation: Evaluation, reasons: Reasons) -> None:
    """Adds mean exact memorisation and extraction strength of the forget set, and of retain sets that have them."""
    for set_name in MEMORIZED_SETS:
        for score in MEMORIZATION_SCORES:
            name = f"{evaluation.name}/{set_name}/{score}"
            values = evaluation.column(set_name, score)
            if values is not None:
                evaluation.add_mean(name, set_name, values)
            elif set_name == "forget":
                evaluation.absent[name] = _reason(reasons, "forget", score, "the forget rows lack it")


def add_fluency(evaluation: Evaluation) -> None:
    """Adds mean fluency (n-grams, classifier) and the shares of empty, repeating and degenerate answers.

    Sets whose rows lack them are skipped.
    """
    for set_name in FLUENCY_SETS:
        for part in (*FLUENCY_PARTS, CLASSIFIER_FLUENCY):
            values = evaluation.column(set_name, part)
            if values is not None:
                evaluation.add_mean(f"{evaluation.name}/{set_name}/{part}", set_name, values)


def add_perplexity(evaluation: Evaluation, set_name: str, total_nll: Floats, tokens: Floats) -> float:
    """Adds ``perplexity/{set_name}`` and its natural logarithm, which it returns (nats per token).

    Args:
        evaluation: Evaluation that the metrics are added to.
        set_name: Name of the evaluation set; the set's other metrics use the same resamples.
        total_nll: Negative log-likelihood of each sequence, [N], nats, summed over its tokens.
        tokens: Number of scored tokens of each sequence, [N].
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
    """Adds MUSE's VerbMem and its two KnowMem, 0 to 100: 100 · mean ``rouge_l_fmeasure`` of their sets."""
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
