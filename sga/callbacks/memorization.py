"""Memorisation: does the model still continue the forget answers word for word?"""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import reasons
from sga.datamodule import EvaluationData
from sga.evaluation.aggregation import MEMORIZED_SETS, add_memorization, add_retain_normals
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import exact_memorization, extraction_strength
from sga.evaluation.requests import Answers, Request, record_score

_DIGITS = 4
"""Decimals of the nll of single tokens, which are only shown."""


class Memorization(EvaluationCallback):
    """Exact memorisation and extraction strength of forget and retain sets, from the arg-max at each answer token.

    Rows of forget questions also get each answer token and its nll, which reports show before and after unlearning.
    """

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return [record_score(record, detail=True) for name in MEMORIZED_SETS for record in data.sets.get(name, ())]

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        for name in MEMORIZED_SETS:
            for record in data.sets.get(name, ()):
                row = evaluation.row(name, record)
                scores = answers.scores(record_score(record)).text
                assert scores.hits is not None, "details were asked for"
                row["exact_memorization"] = exact_memorization(scores.hits)
                row["extraction_strength"] = extraction_strength(scores.hits)
                if name == "forget" and not record.is_text:
                    tokens = data.encoder.answer_tokens(record.question, record.answer)
                    row["answer_tokens"] = tokens[: len(scores.log_probs)]
                    row["token_nll"] = [round(-float(one), _DIGITS) for one in scores.log_probs]
        add_memorization(evaluation, reasons(data))
        add_retain_normals(evaluation)
