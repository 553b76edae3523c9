"""Forget quality: would a model that never saw the forget data answer like this?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import add_likelihoods, is_plain_text, likelihood_requests, reasons
from sga.datamodule import EvaluationData
from sga.evaluation.aggregation import add_forget_quality
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.requests import Answers, Request


class ForgetQuality(EvaluationCallback):
    """TOFU's forget quality against a reference made by a model trained without the forget data."""

    def __init__(self, truth_ratio_mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        """Notes the mean.

        Args:
            truth_ratio_mean: Kind of mean over the wrong answers' probabilities; TOFU's aggregation uses the geometric
                mean.
        """
        self.truth_ratio_mean = truth_ratio_mean

    def settings(self) -> dict[str, str]:
        return {"truth_ratio_mean": self.truth_ratio_mean}

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return likelihood_requests(data.sets.get("forget", ()))

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        add_likelihoods("forget", data, answers, evaluation)
        if is_plain_text(data):
            nll = [row["avg_nll"] for row in evaluation.of_set("forget")]
            evaluation.add_mean(f"{evaluation.name}/forget/avg_nll", "forget", nll)
            evaluation.absent[f"{evaluation.name}/forget_quality"] = "plain text has no wrong answers to compare with"
            return
        add_forget_quality(
            evaluation,
            data.references,
            {
                **reasons(data),
                "forget/reference": "no reference: give the run folder of a model trained without the forget data "
                "(--evaluation.reference)",
            },
            self.truth_ratio_mean,
        )
