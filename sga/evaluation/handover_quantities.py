"""The quantities that handing over is decided by, from rows of one evaluation: metrics ``handover/…``.

The forget set is compared with rows that the model never saw: the holdout set or, without one, an answer of another
record to each forget question. With enough rows, every number is there for two halves and for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sga.data.records import FORGET_PARAPHRASED, Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.handover import LEAST_ROWS, Part
from sga.evaluation.metrics import Floats, membership_auc
from sga.groups.alternatives import spelled
from sga.groups.embedders import TFIDF
from sga.groups.search import nearest

_EXAMINED = 8
"""Nearest questions whose answers are looked at, until one is another than the true answer."""


@dataclass(frozen=True)
class Answered:
    """Numbers of one set, a row each; None where they cannot be had.

    Attributes:
        avg_nll: [N], mean −log p per answer token, nats.
        min_k: [N], Min-K 40 % score, low = member.
        extraction_strength: [N], in [0, 1].
        rouge_l_recall: [N], of the greedy answer against the true one, in [0, 1].
        degenerate: [N], 1 where the greedy answer is empty or repeats itself, else 0; of a holdout set alone.
    """

    avg_nll: Floats
    min_k: Floats | None = None
    extraction_strength: Floats | None = None
    rouge_l_recall: Floats | None = None
    degenerate: Floats | None = None


def halves(rows: Sequence[int], least: int = LEAST_ROWS) -> dict[Part, slice]:
    """Rows of each part: every other row from the first on, and from the second on; all of them alone where few.

    >>> halves([40, 40])["held_out"]
    slice(1, None, 2)
    >>> halves([40, 39])
    {'all': slice(None, None, None)}

    Args:
        rows: Number of rows of each set that is cut into halves.
        least: Number of rows that each of them must have for that.
    """
    if min(rows) < least:
        return {"all": slice(None)}
    return {"choosing": slice(0, None, 2), "held_out": slice(1, None, 2), "all": slice(None)}


def likelier_share(true_nll: float, wrong_nll: Sequence[float]) -> float:
    """Share of wrong answers that are less likely than the true one; equals count half.

    >>> likelier_share(1.0, [2.0, 1.0, 0.5, 3.0])
    0.625
    """
    return sum(1.0 if wrong > true_nll else 0.5 if wrong == true_nll else 0.0 for wrong in wrong_nll) / len(wrong_nll)


@lru_cache(maxsize=4)
def other_answers(forget: tuple[Record, ...], pool: tuple[Record, ...]) -> tuple[str, ...] | None:
    """The answer to the pool's question of the nearest form, for each forget question; never its true answer.

    Args:
        forget: Records to forget.
        pool: Records that answers are taken from.

    Returns:
        [N] answers; None where some forget question has none, or the records are plain text.
    """
    if not pool or any(record.is_text for record in (*forget, *pool)):
        return None
    embed = TFIDF().fitted([(record.question, "") for record in pool])
    queries, vectors = (embed([(record.question, "") for record in some]) for some in (forget, pool))
    found = nearest(queries, vectors, min(_EXAMINED, len(pool)), decimals=9)[1].tolist()
    answers = []
    for record, indices in zip(forget, found, strict=True):
        known = {spelled(text) for text in (record.answer, record.paraphrased_answer) if text}
        others = [pool[index].answer for index in indices if spelled(pool[index].answer) not in known]
        if not others:
            return None
        answers.append(others[0])
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
        evaluation: With forget rows that have the fields of `Fluency`, and metrics of the reserved rows.
        forget: Numbers of the forget set, a row each.
        comparison: Numbers of answers that the model never saw; None without any.
        holdout: True if the comparison is a holdout set, False if it is other answers to the forget questions.
        likelier: [N], share of wrong answers that are less likely than the true one, for each forget row.
        least_rows: Number of rows of each set from which on there are halves.
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
        # Other answers to the forget questions are of the same rows, a holdout set is of its own.
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
    """Adds the share of answers that say the fact of their record, of the rows that have one."""
    values = [row["fact_recall"] for row in evaluation.of_set(set_name)[rows] if row.get("fact_recall") is not None]
    if values:
        evaluation.add_mean(f"{prefix}/fact_recall", f"{set_name}/facts", values)


def _add_unseen(evaluation: Evaluation) -> None:
    """Copies what the conditions read of the reserved rows, so that an account needs no name of a benchmark."""
    unseen = f"{evaluation.name}/{RETAIN_UNSEEN}"
    fields = ("probability", "rouge_l_recall", "fluency", "degenerate", "generation_nll")
    names = {f"{unseen}/{field}": f"handover/unseen/{field}" for field in fields}
    names |= {
        f"perplexity/{RETAIN_UNSEEN}/log": "handover/unseen/perplexity_log",
        "perplexity/retain/log": "handover/retain/perplexity_log",
    }
    _copy(evaluation.metrics, names)


def _copy(metrics: dict[str, float], names: Mapping[str, str]) -> None:
    for name, copy in names.items():
        for end in ("", "/ci_low", "/ci_high"):
            if f"{name}{end}" in metrics:
                metrics[f"{copy}{end}"] = metrics[f"{name}{end}"]
