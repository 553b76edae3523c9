"""The composite score: memorisation, privacy and utility in one number, reported with all parts."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from sga.callbacks.evaluator import EvaluationCallback, callback_of
from sga.callbacks.membership_inference import MembershipInference
from sga.datamodule import EvaluationData
from sga.evaluation.composite import add_composite, full_values
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.requests import Answers


class Composite(EvaluationCallback):
    """Memorisation, privacy and utility as in arXiv 2506.12618, and their harmonic mean; from other callbacks' metrics.

    Fluency and utility are relative to the full model, which is the model that the run starts from.
    """

    def __init__(self) -> None:
        self._full: dict[str, float] = {}
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"full": self._full}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._full = dict(state_dict["full"])

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        records = data.sets.get("forget", ())
        if not records or any(record.is_text for record in records):
            return  # plain text has neither paraphrased nor generated answers
        trainer = self._trainer
        assert trainer is not None, "set up before anything is evaluated"
        training = trainer.state.fn == "fit"
        if training and trainer.global_step == 0:
            self._full = full_values(evaluation.metrics, evaluation.name)
        why = (
            "the run did not measure model utility and fluency of the model that it started from"
            if training
            else "only a run that trains knows the full model's; sga score RUN --full LOG takes it from a log"
        )
        membership = callback_of(trainer, MembershipInference)
        add_composite(
            evaluation,
            [reference.membership_auc or {} for reference in data.references],
            self._full,
            None if membership is None else str(membership.min_k_share),
            why,
        )
