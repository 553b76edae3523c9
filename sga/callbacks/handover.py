"""The stopping rule without a retain model: choose the evaluation that violates the hand-over conditions least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sga.callbacks.fluency import is_degenerate
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.overlap import fill_rouge
from sga.callbacks.rules import Point, StoppingRule, Verdict
from sga.data.records import FORGET_PARAPHRASED, Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.facts import says_fact
from sga.evaluation.handover import LEAST_ROWS, Account, Tolerances, account, reported_part
from sga.evaluation.handover_quantities import Answered, add_quantities, likelier_share, other_answers
from sga.evaluation.metrics import extraction_strength, min_k_score, rouge
from sga.evaluation.requests import Answers, Request, Score, ScoreText, TokenScores, record_score

MIN_K_SHARE = 0.4


@dataclass(frozen=True)
class FitToHandOver(StoppingRule):
    """Chooses the evaluation that violates the conditions for handing over least; needs no retain model.

    An evaluation's score is its largest violation, in [0, 1]; ties are broken by the next largest, and so on, because
    one condition may not move at all while others do. The conditions: the forget set is not recognised and cannot be
    extracted; the model is still useful, still speaks and has not collapsed. The run ends at the first evaluation
    without a violation, because no later one can be better.

    Args:
        tolerances: Largest allowed distance of each quantity from its goal.
        least_rows: Number of rows of the forget set, and of the holdout set where there is one, from which on one half
            is chosen by and the other reported on; at least 4. Halves of 20 rows seldom have intervals narrow enough
            to count as forgotten; see docs/handover.md.
        ends: True to end the run at the first evaluation without a violation; false makes the same choice but trains to
            the last epoch, for experiments that report both.
    """

    needs_intervals: ClassVar[bool] = True

    tolerances: Tolerances = Tolerances()  # noqa: RUF009  (frozen)
    least_rows: int = LEAST_ROWS
    ends: bool = True

    def __post_init__(self) -> None:
        if self.least_rows < 4:
            raise UserError(f"least_rows must be at least 4, two in each half, got {self.least_rows}")

    def declaration(self) -> str:
        return "least violation of the conditions for handing over"

    def needs(self) -> tuple[str, ...]:
        return ()  # a condition that cannot be tested is reported as such

    def needs_of_start(self) -> tuple[str, ...]:
        return ("handover/all/rows",)

    def check(self, data: EvaluationData) -> None:
        if data.alternatives and not data.sets.get("holdout") and not data.sets.get(RETAIN_UNSEEN):
            raise UserError(
                "--stop.rule FitToHandOver compares with answers of retain records to the forget questions where there "
                "is neither a holdout set nor a reserved row, and training learns other answers to these questions, "
                "which may be the same: reserve rows (--data.reserved 0.2), give a holdout set, or train without other "
                "answers"
            )

    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        found = self.account_of(point, start)
        if not found.tells_of_forgetting:
            raise UserError(
                "--stop.rule FitToHandOver can say nothing about forgetting: neither recognition nor extraction is "
                "testable; give a holdout set, or questions with answers in place of plain text"
            )
        better = chosen is None or found.ranking < self.account_of(chosen, start).ranking
        stop = found.sentence if self.ends and not found.score else None
        violations = {f"handover/violation/{name.replace(' ', '_')}": v for name, v in found.violations().items()}
        return Verdict(better, found.sentence, stop, {"handover/score": found.score, **violations})

    def account_of(self, point: Point, start: Point) -> Account:
        """Findings of the conditions on an evaluation, on the rows that choices are made on."""
        return account(point.metrics, start.metrics, self.tolerances)

    def result(self, chosen: Point, start: Point) -> dict[str, Any]:
        """Entry ``handover`` of metrics.json: the finding on the held-out rows, and all checks by part."""
        parts = ("choosing", "held_out", "all")
        found = {
            part: account(chosen.metrics, start.metrics, self.tolerances, part)  # type: ignore[arg-type]
            for part in parts
            if f"handover/{part}/rows" in chosen.metrics
        }
        reported = found[reported_part(chosen.metrics)]
        rows = f"chosen on one half of the forget rows, reported on the {reported.rows} of the other half"
        if reported.part == "all":
            rows = f"chosen and reported on all {reported.rows} forget rows: halves take {self.least_rows} of each set"
        return {
            "handover": {
                "sentence": reported.sentence,
                "fit": reported.fit,
                "score": reported.score,
                "untested": list(reported.untested),
                "rows": rows,
                "step": chosen.step,
                "parts": {part: one.as_json() for part, one in found.items()},
            }
        }

    # ---- what it asks ----------------------------------------------------------------------------------------------

    def requests(self, data: EvaluationData, utility: ModelUtility | None) -> Iterable[Request]:
        forget, holdout = data.sets.get("forget", ()), data.sets.get("holdout", ())
        yield from (record_score(record, detail=True) for record in (*forget, *holdout))
        for records in (forget, holdout):
            if utility is not None and utility.generates(records):
                yield from (utility.generation(record) for record in records)
        if not holdout:
            others = _other_answers(data)
            for record, other in zip(forget, others or (), strict=bool(others)):
                yield Score(record.question, other, detail=True)
            yield from (request for wrong in _wrong_answers(data) for request in wrong)

    def observe(
        self, data: EvaluationData, answers: Answers, evaluation: Evaluation, utility: ModelUtility | None
    ) -> None:
        forget, holdout = data.sets.get("forget", ()), data.sets.get("holdout", ())
        if not forget:
            raise UserError("--stop.rule FitToHandOver looks at the forget set, and there is none")
        _note_facts(data, answers, evaluation, utility)
        found = _answered([record_score(record) for record in forget], answers)
        found = _with_rouge(found, "forget", forget, answers, evaluation, utility)
        if holdout:
            comparison = _answered([record_score(record) for record in holdout], answers)
            comparison = _with_rouge(comparison, "holdout", holdout, answers, evaluation, utility)
            if utility is not None and utility.generates(holdout):
                spoken = (answers.generation(utility.generation(record)) for record in holdout)
                comparison = replace(comparison, degenerate=np.array([float(is_degenerate(one)) for one in spoken]))
            add_quantities(evaluation, found, comparison, True, least_rows=self.least_rows)
            return
        others = _other_answers(data)
        unseen = None
        if others is not None:
            unseen = _answered([Score(r.question, o) for r, o in zip(forget, others, strict=True)], answers)
            if found.rouge_l_recall is not None and utility is not None:
                scores = rouge(others, [record.answer for record in forget], True, utility.rouge_tokenizer)
                unseen = replace(unseen, rouge_l_recall=np.array(scores["rougeL_recall"]))
        likelier = None
        wrong = _wrong_answers(data)
        if wrong:
            likelier = np.array(
                [
                    likelier_share(true, [answers.scores(one).avg_nll for one in some])
                    for true, some in zip(found.avg_nll, wrong, strict=True)
                ]
            )
        add_quantities(evaluation, found, unseen, False, likelier, self.least_rows)


def _note_facts(data: EvaluationData, answers: Answers, evaluation: Evaluation, utility: ModelUtility | None) -> None:
    """Fills ``fact_recall`` of rows with a greedy answer and a fact: 1 if the answer says the fact, else 0."""
    for name in ("forget", FORGET_PARAPHRASED, "holdout", "retain", RETAIN_UNSEEN):
        records = data.sets.get(name, ())
        if utility is None or not utility.generates(records):
            continue
        for record in records:
            says = says_fact(record, answers.generation(utility.generation(record)).text)
            if says is not None:
                evaluation.row(name, record)["fact_recall"] = float(says)


def _other_answers(data: EvaluationData) -> tuple[str, ...] | None:
    """Another record's answer to each forget question, from reserved rows or, without any, retain rows; or None."""
    pool = data.sets.get(RETAIN_UNSEEN) or data.sets.get("retain", ())
    return other_answers(tuple(data.sets.get("forget", ())), tuple(pool))


def _wrong_answers(data: EvaluationData) -> list[list[Score]]:
    """Wrong answers to each forget question: perturbed ones if all records have them, else other records'; or empty."""
    forget = data.sets.get("forget", ())
    if all(record.perturbed_answers for record in forget):
        return [[Score(record.question, wrong) for wrong in record.perturbed_answers] for record in forget]
    others = _other_answers(data)
    return [] if others is None else [[Score(r.question, other)] for r, other in zip(forget, others, strict=True)]


def _answered(requests: Sequence[Score | ScoreText], answers: Answers) -> Answered:
    scores = [answers.scores(request) for request in requests]
    return Answered(
        np.array([score.avg_nll for score in scores]),
        np.array([min_k_score(score.text.log_probs, MIN_K_SHARE) for score in scores]),
        np.array([extraction_strength(_hits(score.text)) for score in scores]),
    )


def _hits(scores: TokenScores) -> Any:
    assert scores.hits is not None, "details were asked for"
    return scores.hits


def _with_rouge(
    found: Answered,
    name: str,
    records: Sequence[Record],
    answers: Answers,
    evaluation: Evaluation,
    utility: ModelUtility | None,
) -> Answered:
    """Adds ROUGE of greedy answers, also to the rows; `found` is returned unchanged where no answers are generated."""
    if utility is None or not utility.generates(records):
        return found
    generated = [answers.generation(utility.generation(record)).text for record in records]
    truth = [record.answer for record in records]
    fill_rouge(evaluation, name, records, generated, truth, utility.rouge_tokenizer)
    return replace(found, rouge_l_recall=evaluation.column(name, "rouge_l_recall"))
