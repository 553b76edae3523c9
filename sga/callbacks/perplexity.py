"""Perplexity on the forget set, the retain set, the reserved rows and the normal samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from sga.callbacks.evaluator import EvaluationCallback
from sga.data.records import Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.datamodule import EvaluationData
from sga.evaluation.aggregation import add_perplexity
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import DIVERGED
from sga.evaluation.requests import Answers, Request, record_score


class Perplexity(EvaluationCallback):
    """Token-weighted perplexity of answers on forget, retain and reserved rows, and on the groups' normal samples."""

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for records in _texts(data).values():
            yield from (record_score(record) for record in records)

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        for name, records in _texts(data).items():
            if not records:
                evaluation.absent[f"perplexity/{name}"] = data.absent.get(
                    name, "these groups have no normal samples" if name == "normal" else f"there is no {name} set"
                )
                continue
            scores = [answers.scores(record_score(record)) for record in records]
            nll = np.array([-s.log_probs.sum() for s in scores])
            tokens = np.array([len(s.log_probs) for s in scores], dtype=np.float64)
            log = add_perplexity(evaluation, name, nll, tokens)
            if name == "normal" and log > DIVERGED:
                note = f"perplexity on normal text is e^{log:.0f}, above 1e10: the model has diverged"
                evaluation.note(note)
                warnings.warn(note, stacklevel=2)


def _texts(data: EvaluationData) -> dict[str, tuple[Record, ...]]:
    found = {"forget": data.sets.get("forget", ()), "retain": data.sets.get("retain", ()), "normal": data.normals}
    return found | ({RETAIN_UNSEEN: data.sets[RETAIN_UNSEEN]} if RETAIN_UNSEEN in data.sets else {})
