"""Model utility: what the model still knows of what it should keep, in nine parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sga.callbacks.evaluation import Evaluation, EvaluationCallback
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.metrics import (
    log_truth_ratio,
    model_utility,
    normalized_probability,
    probability,
    rouge,
    truth_ratio_retain,
)
from sga.evaluation.requests import Answers, Generate, Request, Score

UTILITY_SETS = ("retain", "real_authors", "world_facts")


def likelihood_requests(records: Sequence[Record]) -> Iterator[Request]:
    """The answer, its paraphrase and its perturbations, of each record, as far as it has them."""
    for record in records:
        yield Score(record.question, record.answer)
        if record.paraphrased_answer is not None:
            yield Score(record.question, record.paraphrased_answer)
        for answer in record.perturbed_answers:
            yield Score(record.question, answer)


def add_likelihoods(
    name: str, records: Sequence[Record], answers: Answers, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Fills the rows of a set with avg_nll, probability, paraphrased_nll and perturbed_nll, and returns them.

    Where a record has no paraphrase (real authors, world facts), the answer itself stands in for it, as in TOFU.
    """
    rows = []
    for record in records:
        row = evaluation.row(name, record)
        nll = answers.scores(record.question, record.answer).avg_nll
        paraphrase = record.paraphrased_answer
        row["avg_nll"] = nll
        row["probability"] = probability([nll])
        row["paraphrased_nll"] = nll if paraphrase is None else answers.scores(record.question, paraphrase).avg_nll
        row["perturbed_nll"] = [answers.scores(record.question, text).avg_nll for text in record.perturbed_answers]
        rows.append(row)
    return rows


class ModelUtility(EvaluationCallback):
    """TOFU's model utility with its nine parts, and the same parts of the forget set; greedy answers for ROUGE-L."""

    def __init__(self, max_new_tokens: int = 200, generate: bool = True) -> None:
        """Checks the settings.

        Args:
            max_new_tokens: Most tokens of a greedy answer. 200 as in open-unlearning; a short limit is faster while a
                diverging model never ends its answers.
            generate: Without generation ROUGE-L is absent, and with it model utility.
        """
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.max_new_tokens = max_new_tokens
        self.generate = generate

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for name in ("forget", *UTILITY_SETS):
            records = data.sets.get(name, ())
            yield from likelihood_requests(records)
            if self.generate:
                yield from (Generate(record.question, self.max_new_tokens) for record in records if not record.is_text)

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        parts: dict[str, float] = {}
        for name in ("forget", *UTILITY_SETS):
            prefix = f"{data.name}/{name}"
            if name not in data.sets:
                reason = data.absent.get(name, f"the data has no {name} set")
                for part in ("probability", "rouge_l_recall", "truth_ratio"):
                    evaluation.absent[f"{prefix}/{part}"] = reason
                continue
            records = data.sets[name]
            rows = add_likelihoods(name, records, answers, evaluation)
            self._rouge(name, records, answers, rows, parts, evaluation, prefix)
            if name in ("forget", "retain"):
                parts[f"{name}_probability"] = probability([row["avg_nll"] for row in rows])
            lacking = [record.id for record in records if not record.perturbed_answers]
            if lacking:
                why = f"{len(lacking)} of {len(records)} {name} records have no perturbed answers, {lacking[0]} first"
                evaluation.absent[f"{prefix}/truth_ratio"] = why
                if name not in ("forget", "retain"):
                    evaluation.absent[f"{prefix}/probability"] = why
            elif name != "forget":  # the forget set's truth ratio belongs to forget quality
                right = [row["paraphrased_nll"] for row in rows]
                wrong = [row["perturbed_nll"] for row in rows]
                log_ratio = log_truth_ratio(right, wrong)
                for row, value in zip(rows, log_ratio, strict=True):
                    row["log_truth_ratio"] = float(value)
                parts[f"{name}_truth_ratio"] = truth_ratio_retain(log_ratio)
                if name != "retain":
                    parts[f"{name}_probability"] = normalized_probability([row["avg_nll"] for row in rows], wrong)
        for name in ("forget", *UTILITY_SETS):
            for part, key in (
                ("probability", "probability"),
                ("rouge_l_recall", "rouge"),
                ("truth_ratio", "truth_ratio"),
            ):
                if f"{name}_{key}" in parts:
                    evaluation.metrics[f"{data.name}/{name}/{part}"] = parts[f"{name}_{key}"]
        nine = {key: value for key, value in parts.items() if not key.startswith("forget_")}
        if len(nine) == 9:
            evaluation.metrics[f"{data.name}/model_utility"] = model_utility(nine)
        else:
            evaluation.absent[f"{data.name}/model_utility"] = f"{9 - len(nine)} of its nine parts are absent"

    def _rouge(
        self,
        name: str,
        records: Sequence[Record],
        answers: Answers,
        rows: Sequence[dict[str, Any]],
        parts: dict[str, float],
        evaluation: Evaluation,
        prefix: str,
    ) -> None:
        if not self.generate or any(record.is_text for record in records):
            why = "generation is switched off" if not self.generate else "plain text has no question to answer"
            evaluation.absent[f"{prefix}/rouge_l_recall"] = why
            return
        generated = [answers.generation(record.question, self.max_new_tokens) for record in records]
        recalls = rouge(generated, [record.answer for record in records])["rougeL_recall"]
        for row, text, recall in zip(rows, generated, recalls, strict=True):
            row["generation"] = text
            row["rouge_l_recall"] = recall
        parts[f"{name}_rouge"] = float(np.mean(recalls))
