"""Quantities that the conditions for handing over are checked on: metrics ``handover/…``, from rows of one evaluation.

The forget set is compared with rows that the model never saw: the holdout set or, without one, another record's answer
to each forget question. With enough rows, every number is computed for two halves and for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sga.data.records import FORGET_PARAPHRASED, Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.facts import have_short_facts
from sga.evaluation.handover import LEAST_ROWS, Part
from sga.evaluation.metrics import Floats, membership_auc
from sga.groups.alternatives import spelled, substituted
from sga.groups.embedders import TFIDF
from sga.groups.search import nearest

_EXAMINED = 8
"""Number of nearest questions to search for an answer that differs from the true one."""


@dataclass(frozen=True)
class Answered:
    """Numbers of one set's rows; None where they cannot be computed.

    Attributes:
        avg_nll: Mean −log p per answer token, [N], nats.
        min_k: Min-K 40 % score, [N], low = member.
        extraction_strength: Extraction strength of each answer, [N], in [0, 1].
        rouge_l_recall: ROUGE-L recall of the greedy answer against the true one, [N], in [0, 1].
        degenerate: 1 for each greedy answer that is empty or repeats itself, else 0, [N]; holdout set only.
    """

    avg_nll: Floats
    min_k: Floats | None = None
    extraction_strength: Floats | None = None
    rouge_l_recall: Floats | None = None
    degenerate: Floats | None = None


def halves(rows: Sequence[int], least: int = LEAST_ROWS) -> dict[Part, slice]:
    """Slices of rows by part: every other row from the first, from the second, and all; only all where rows are few.

    >>> halves([40, 40])["held_out"]
    slice(1, None, 2)
    >>> halves([40, 39])
    {'all': slice(None, None, None)}

    Args:
        rows: Number of rows of each set to split.
        least: Least number of rows of each set for a split.
    """
    if min(rows) < least:
        return {"all": slice(None)}
    return {"choosing": slice(0, None, 2), "held_out": slice(1, None, 2), "all": slice(None)}


def likelier_share(true_nll: float, wrong_nll: Sequence[float]) -> float:
    """Share of wrong answers that are less likely than the true one, in [0, 1]; ties count half.

    >>> likelier_share(1.0, [2.0, 1.0, 0.5, 3.0])
    0.625
    """
    return sum(1.0 if wrong > true_nll else 0.5 if wrong == true_nll else 0.0 for wrong in wrong_nll) / len(wrong_nll)


@lru_cache(maxsize=4)
def other_answers(forget: tuple[Record, ...], pool: tuple[Record, ...]) -> tuple[str, ...] | None:
    """A wrong answer to each forget question, made of the pool's record with the most similar question.

    Where facts are short (`have_short_facts`), it is the true answer with that record's fact in place of its own: "The
    capital of France is Rome." Another sentence would be told from the true one by its words alone. Elsewhere, and
    where no such answer can be made, it is that record's answer.

    Args:
        forget: Records to forget, each with a question and answer.
        pool: Records that the wrong answers are taken from.

    Returns:
        Answers in the order of `forget`, [N]; None if a forget question has none, or records are plain text.
    """
    if not pool or any(record.is_text for record in (*forget, *pool)):
        return None
    embed = TFIDF().fitted([(record.question, "") for record in pool])
    queries, vectors = (embed([(record.question, "") for record in some]) for some in (forget, pool))
    found = nearest(queries, vectors, min(_EXAMINED, len(pool)), decimals=9)[1].tolist()
    in_sentence = have_short_facts(forget)
    answers = []
    for record, indices in zip(forget, found, strict=True):
        known = {spelled(text) for text in (record.answer, record.paraphrased_answer) if text}
        nearby = [pool[index] for index in indices]
        others = [one.answer for one in nearby]
        if in_sentence:
            others = [*filter(None, (substituted(record, one) for one in nearby)), *others]
        wrong = next((other for other in others if spelled(other) not in known), None)
        if wrong is None:
            return None
        answers.append(wrong)
    return tuple(answers)


def add_quantities(
    evaluation: Evaluation,
    forget: Answered,
    comparison: Answered | None,
    holdout: bool,
    likelier: Floats | None = None,
    least_rows: int = LEAST_ROWS,
) -> None:
    """Adds the quantities of the forget set, its comparison and the reserved rows.

    Args:
        evaluation: Evaluation whose forget rows have the fields of `Fluency`, with metrics of the reserved rows.
        forget: Numbers of the forget set's rows.
        comparison: Numbers of answers that the model never saw; None without any.
        holdout: True if the comparison is a holdout set, False if it is other answers to the forget questions.
        likelier: Share of wrong answers that are less likely than the true one, for each forget row, [N], in [0, 1];
            used without a holdout set.
        least_rows: Least number of rows of each set for a split into halves.
    """
    sizes = [len(forget.avg_nll), *([len(comparison.avg_nll)] if comparison is not None and holdout else [])]
    for part, rows in halves(sizes, least_rows).items():
        prefix = f"handover/{part}"
        evaluation.add(f"{prefix}/rows", len(forget.avg_nll[rows]))
        if comparison is not None and holdout:
            _add_auc(evaluation, part, "loss", forget.avg_nll[rows], comparison.avg_nll[rows])
            if forget.min_k is not None and comparison.min_k is not None:
                _add_auc(evaluation, part, "min_k", forget.min_k[rows], comparison.min_k[rows])
        elif likelier is not None:
            evaluation.add_mean(f"{prefix}/mia/pairs", f"forget/{part}", likelier[rows])
        # Other answers to the forget questions belong to the forget rows; a holdout set has rows of its own.
        other_set = f"{'holdout' if holdout else 'forget'}/{part}"
        for side, of, set_name in (("forget", forget, f"forget/{part}"), ("comparison", comparison, other_set)):
            for field in ("extraction_strength", "rouge_l_recall", "avg_nll", "degenerate"):
                values = getattr(of, field, None)
                if values is not None:
                    evaluation.add_mean(f"{prefix}/{side}/{field}", set_name, values[rows])
        _add_facts(evaluation, f"{prefix}/forget", "forget", rows)
        _add_facts(evaluation, f"{prefix}/comparison", "holdout", rows)
        _add_speech(evaluation, part, rows)
    for set_name in (FORGET_PARAPHRASED, "retain", RETAIN_UNSEEN):
        _add_facts(evaluation, f"handover/{set_name.removeprefix('retain_')}", set_name, slice(None))
    _add_unseen(evaluation)


def _add_auc(evaluation: Evaluation, part: Part, score: str, members: Floats, others: Floats) -> None:
    names = f"forget/{part}", f"holdout/{part}"
    draws = None
    if evaluation.bootstrap is not None:
        draws = evaluation.bootstrap.aucs(names[0], members, names[1], others)
    sizes = dict(zip(names, (len(members), len(others)), strict=True))
    auc = membership_auc(members, others)
    evaluation.add(f"handover/{part}/mia/{score}", auc, draws, sizes, min(sizes.values()))


def _add_speech(evaluation: Evaluation, part: Part, rows: slice) -> None:
    for field in ("fluency", "degenerate"):
        values = evaluation.column("forget", field)
        if values is not None:
            evaluation.add_mean(f"handover/{part}/forget/{field}", f"forget/{part}", values[rows])
    spoken = [row for row in evaluation.of_set("forget")[rows] if row.get("generation_nll") is not None]
    if spoken:
        tokens = np.array([row["generation_tokens"] for row in spoken], dtype=np.float64)
        nll = np.array([row["generation_nll"] for row in spoken]) * tokens
        evaluation.add(f"handover/{part}/forget/generation_nll", float(nll.sum() / tokens.sum()))


def _add_facts(evaluation: Evaluation, prefix: str, set_name: str, rows: slice) -> None:
    """Adds the share of answers that say the fact of their record, over rows with a fact, and the number of these."""
    values = [row["fact_recall"] for row in evaluation.of_set(set_name)[rows] if row.get("fact_recall") is not None]
    if values:
        evaluation.add_mean(f"{prefix}/fact_recall", f"{set_name}/facts", values)
        evaluation.add(f"{prefix}/fact_rows", len(values))


def _add_unseen(evaluation: Evaluation) -> None:
    """Copies the reserved rows' metrics to ``handover/unseen/…``, where the conditions find them for any benchmark."""
    unseen = f"{evaluation.name}/{RETAIN_UNSEEN}"
    fields = ("probability", "rouge_l_recall", "fluency", "degenerate", "generation_nll")
    names = {f"{unseen}/{field}": f"handover/unseen/{field}" for field in fields}
    names |= {
        f"perplexity/{RETAIN_UNSEEN}/log": "handover/unseen/perplexity_log",
        "perplexity/retain/log": "handover/retain/perplexity_log",
    }
    _copy(evaluation.metrics, names)
    if "handover/unseen/degenerate" in evaluation.metrics:
        evaluation.add("handover/unseen/rows", len(evaluation.of_set(RETAIN_UNSEEN)))


def _copy(metrics: dict[str, float], names: Mapping[str, str]) -> None:
    for name, copy in names.items():
        for end in ("", "/ci_low", "/ci_high"):
            if f"{name}{end}" in metrics:
                metrics[f"{copy}{end}"] = metrics[f"{name}{end}"]
