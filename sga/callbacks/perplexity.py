"""Perplexity on what is to be forgotten, what is to be kept, and what was chosen as normal data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from sga.callbacks.evaluation import Evaluation, EvaluationCallback
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.evaluation.metrics import DIVERGED, perplexity
from sga.evaluation.requests import Answers, Request, Score


class Perplexity(EvaluationCallback):
    """Token-weighted perplexity of answers: forget and retain evaluation sets, normal samples of the groups."""

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for records in _texts(data).values():
            yield from (Score(record.question, record.answer) for record in records)

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        for name, records in _texts(data).items():
            if not records:
                evaluation.absent[f"perplexity/{name}"] = data.absent.get(
                    name, "these groups have no normal samples" if name == "normal" else f"there is no {name} set"
                )
                continue
            scores = [answers.scores(record.question, record.answer) for record in records]
            found = perplexity([-s.log_probs.sum() for s in scores], [len(s.log_probs) for s in scores])
            evaluation.metrics[f"perplexity/{name}/log"] = found.log
            if name == "normal" and found.log > DIVERGED:
                note = f"perplexity on normal text is e^{found.log:.0f}, above 1e10: the model has diverged"
                evaluation.notes.append(note)
                warnings.warn(note, stacklevel=2)
            if math.isfinite(found.value):
                evaluation.metrics[f"perplexity/{name}"] = found.value
            else:
                evaluation.absent[f"perplexity/{name}"] = (
                    f"exceeds what a float holds; its logarithm is {found.log:.1f}"
                )


def _texts(data: EvaluationData) -> dict[str, tuple[Record, ...]]:
    return {"forget": data.sets.get("forget", ()), "retain": data.sets.get("retain", ()), "normal": data.normals}
