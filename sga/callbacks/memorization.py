"""Memorisation: does the model still continue the forget answers word for word?"""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import reasons
from sga.datamodule import EvaluationData
from sga.evaluation.aggregation import MEMORIZED_SETS, add_memorization
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import exact_memorization, extraction_strength
from sga.evaluation.requests import Answers, Request, record_score


class Memorization(EvaluationCallback):
    """Exact memorisation and extraction strength of forget and retain sets, from the arg-max of each answer token."""

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return [record_score(record, detail=True) for name in MEMORIZED_SETS for record in data.sets.get(name, ())]

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        for name in MEMORIZED_SETS:
            for record in data.sets.get(name, ()):
                row = evaluation.row(name, record)
                hits = answers.scores(record_score(record)).text.hits
                assert hits is not None, "details were asked for"
                row["exact_memorization"] = exact_memorization(hits)
                row["extraction_strength"] = extraction_strength(hits)
        add_memorization(evaluation, reasons(data))
