"""Memorisation: does the model still continue the forget answers word for word?"""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import reasons
from sga.datamodule import EvaluationData
from sga.evaluation.aggregation import add_memorization
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import exact_memorization, extraction_strength
from sga.evaluation.requests import Answers, Request, record_score

_DIGITS = 4
"""Decimals of the nll of single tokens, which are shown and not computed with."""


class Memorization(EvaluationCallback):
    """Exact memorisation and extraction strength of the forget set, from the arg-max of each answer token.

    Rows of questions also get each answer token and its nll, which reports show before and after.
    """

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return [record_score(record, detail=True) for record in data.sets.get("forget", ())]

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        for record in data.sets.get("forget", ()):
            row = evaluation.row("forget", record)
            hits = answers.scores(record_score(record)).text.hits
            assert hits is not None, "details were asked for"
            row["exact_memorization"] = exact_memorization(hits)
            row["extraction_strength"] = extraction_strength(hits)
            if not record.is_text:
                log_probs = answers.scores(record_score(record)).text.log_probs
                row["answer_tokens"] = data.encoder.answer_tokens(record.question, record.answer)[: len(log_probs)]
                row["token_nll"] = [round(-float(one), _DIGITS) for one in log_probs]
        add_memorization(evaluation, reasons(data))
