"""The composite score of an evaluation, computed from its rows and metrics, with all of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from sga.errors import UserError
from sga.evaluation.aggregation import CLASSIFIER_FLUENCY, MEMORIZATION_SCORES, add_with_range
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.log import Log
from sga.evaluation.metrics import (
    correct_share,
    memorization_score,
    overall_score,
    paraphrase_probability,
    privacy_score,
    relative_fluency,
    relative_membership,
    relative_utility,
    utility_score,
)
from sga.evaluation.reference import UNSTATED

PRIVACY_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
FULL_PARTS = ("model_utility", "forget/fluency", f"forget/{CLASSIFIER_FLUENCY}")
"""Metrics of the full model that the composite score needs, by name without prefix: one of the two fluencies."""
PUBLISHED_SHARE = "0.4"
"""Share of tokens of Min-K % and Min-K %++ in the published privacy score."""


def full_values(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Metrics of `FULL_PARTS` that the full model's evaluation has, by name without prefix."""
    return {part: metrics[f"{prefix}/{part}"] for part in FULL_PARTS if f"{prefix}/{part}" in metrics}


def check_same(log: Log, full: Log, sets: Sequence[str]) -> None:
    """Checks that the log of a full model can be compared with a log.

    Raises:
        UserError: the full model's log has other rows in these sets, or was made with other settings.
    """
    for set_name in sets:
        if set(full.ids(set_name)) != set(log.ids(set_name)):
            raise UserError(f"--full {full.source}: has other {set_name} rows than the log; evaluate the same ones")
    here, there = {**UNSTATED, **log.settings}, {**UNSTATED, **full.settings}
    different = [name for name in here if here[name] and there.get(name) and here[name] != there[name]]
    if different:
        raise UserError(
            f"--full {full.source}: {', '.join(different)} differs from the log's; evaluate both in the same way"
        )


def add_composite(
    evaluation: Evaluation,
    reference_aucs: Sequence[Mapping[str, float]],
    full: Mapping[str, float],
    min_k_share: str | None = PUBLISHED_SHARE,
    needs_full: str = "the full model's evaluation is not known",
) -> None:
    """Adds ``composite/…``: memorisation, privacy, utility and the overall score, each with its parts, all in [0, 1].

    With several references, each s and the privacy score are means over them. A score is absent, with a reason, if a
    number that one of its parts needs is missing.

    Args:
        evaluation: Evaluation with forget rows and with the metrics that the parts are made of.
        reference_aucs: Membership AUC by attack of each retrained model, on the same rows, in [0, 1].
        full: Metrics of the model before unlearning, from `full_values`; empty where they are not known.
        min_k_share: Share of tokens of Min-K % from the settings, None if unknown; a share other than 40 % is noted.
        needs_full: Reason why `full` is empty, for the absent score.
    """
    prefix = f"{evaluation.name}/composite"
    scores = {
        "memorization": _memorization(evaluation, prefix),
        "privacy": _privacy(evaluation, prefix, reference_aucs),
        "utility": _utility(evaluation, prefix, full, needs_full),
    }
    if min_k_share is not None and float(min_k_share) != float(PUBLISHED_SHARE):
        evaluation.note(f"{prefix}/privacy takes Min-K % with a share of {min_k_share}, published is {PUBLISHED_SHARE}")
    missing = [name for name, value in scores.items() if value is None]
    if missing:
        evaluation.absent[f"{prefix}/overall"] = f"needs {' and '.join(missing)}, which {_is(missing)} absent"
        return
    evaluation.add(
        f"{prefix}/overall", overall_score(**{name: value for name, value in scores.items() if value is not None})
    )


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _memorization(evaluation: Evaluation, prefix: str) -> float | None:
    name = f"{prefix}/memorization"
    right = evaluation.column("forget", "paraphrased_nll")
    wrong = evaluation.lists("forget", "perturbed_nll")
    parts = {score: evaluation.metrics.get(f"{evaluation.name}/forget/{score}") for score in MEMORIZATION_SCORES}
    lacking = [score for score, value in parts.items() if value is None]
    if right is None or wrong is None:
        lacking.append("paraphrased and perturbed answers")
    if lacking or right is None or wrong is None:
        evaluation.absent[name] = f"the forget rows lack {', '.join(lacking)}"
        return None
    paraphrase, share = paraphrase_probability(right), float(correct_share(right, wrong).mean())
    evaluation.add(f"{prefix}/paraphrase_probability", paraphrase)
    evaluation.add(f"{prefix}/correct_share", share)
    value = memorization_score(
        **{score: part for score, part in parts.items() if part is not None},
        paraphrase_probability=paraphrase,
        truth_ratio=share,
    )
    evaluation.add(name, value)
    return value


def _privacy(evaluation: Evaluation, prefix: str, references: Sequence[Mapping[str, float]]) -> float | None:
    name = f"{prefix}/privacy"
    own = {attack: evaluation.metrics.get(f"{evaluation.name}/mia/{attack}") for attack in PRIVACY_ATTACKS}
    lacking = [attack for attack, auc in own.items() if auc is None]
    theirs = [attack for attack in PRIVACY_ATTACKS if not all(attack in aucs for aucs in references)]
    if lacking:
        evaluation.absent[name] = f"there is no membership AUC of {', '.join(lacking)}"
    elif not references:
        evaluation.absent[name] = "no reference: give a retrained model's run"
    elif theirs:
        evaluation.absent[name] = f"a reference has no membership AUC of {', '.join(theirs)} for these rows"
    if name in evaluation.absent:
        return None
    try:
        found = [
            {attack: relative_membership(auc, aucs[attack]) for attack, auc in own.items() if auc is not None}
            for aucs in references
        ]
    except UserError as error:  # an AUC of 0: a property of the reference, not of this model
        evaluation.absent[name] = str(error)
        return None
    for attack in PRIVACY_ATTACKS:
        evaluation.add(f"{prefix}/s_{attack}", fmean(one[attack] for one in found))
    values = [privacy_score(**one) for one in found]
    return add_with_range(evaluation, name, values)


def _utility(evaluation: Evaluation, prefix: str, full: Mapping[str, float], needs_full: str) -> float | None:
    """Adds the utility score; returns it relative to the full model's, the share that the overall score uses."""
    name = f"{prefix}/utility"
    own = full_values(evaluation.metrics, evaluation.name)
    by_classifier = FULL_PARTS[2] in own
    needed = (FULL_PARTS[0], FULL_PARTS[2 if by_classifier else 1])
    lacking = [part for part in needed if part not in own]
    if lacking:
        evaluation.absent[name] = f"{', '.join(lacking)} {_is(lacking)} absent"
        return None
    missing = [part for part in needed if part not in full]
    if missing:
        evaluation.absent[name] = (
            needs_full if not full else f"the full model's {', '.join(missing)} {_is(missing)} absent"
        )
        return None
    if min(full[part] for part in needed) <= 0:
        evaluation.absent[name] = "the full model's model utility or fluency is 0"
        return None
    if by_classifier:  # as published: a probability needs no model to be held against
        fluency, full_fluency = (values[f"forget/{CLASSIFIER_FLUENCY}"] for values in (own, full))
    else:
        fluency, full_fluency = relative_fluency(own["forget/fluency"], full["forget/fluency"]), 1.0
    value = utility_score(model_utility=own["model_utility"], fluency=fluency)
    relative = relative_utility(value, utility_score(model_utility=full["model_utility"], fluency=full_fluency))
    evaluation.add(f"{prefix}/{CLASSIFIER_FLUENCY if by_classifier else 'ngram_fluency'}", fluency)
    evaluation.add(name, value)
    evaluation.add(f"{prefix}/relative_utility", relative)
    return relative
