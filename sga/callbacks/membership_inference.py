"""Membership inference: can the forget data still be told from data that the model never saw?"""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluation import Evaluation, EvaluationCallback
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.metrics import membership_auc, min_k_score
from sga.evaluation.requests import Answers, Request, Score


class MembershipInference(EvaluationCallback):
    """AUC of the loss and of Min-K % Prob between forget (members) and holdout (never trained on)."""

    def __init__(self, min_k_share: float = 0.4) -> None:
        """Checks the share.

        Args:
            min_k_share: Share of the least likely tokens that Min-K % averages; MUSE uses 0.4.
        """
        if not 0 < min_k_share <= 1:
            raise UserError(f"min_k_share must be above 0 and at most 1, got {min_k_share}")
        self.min_k_share = min_k_share

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        if "holdout" in data.sets:
            for name in ("forget", "holdout"):
                yield from (Score(record.question, record.answer) for record in data.sets.get(name, ()))

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        missing = [name for name in ("forget", "holdout") if name not in data.sets]
        if missing:
            for score in ("loss", "min_k"):
                evaluation.absent[f"{data.name}/mia/{score}"] = data.absent.get(
                    missing[0], f"there is no {missing[0]} set"
                )
            return
        values: dict[str, dict[str, list[float]]] = {"loss": {}, "min_k": {}}
        for name in ("forget", "holdout"):
            for record in data.sets[name]:
                scores = answers.scores(record.question, record.answer)
                row = evaluation.row(name, record)
                row["avg_nll"] = scores.avg_nll
                row["min_k"] = min_k_score(scores.text_log_probs, self.min_k_share)
                values["loss"].setdefault(name, []).append(row["avg_nll"])
                values["min_k"].setdefault(name, []).append(row["min_k"])
        for score, by_set in values.items():
            evaluation.metrics[f"{data.name}/mia/{score}"] = membership_auc(by_set["forget"], by_set["holdout"])
