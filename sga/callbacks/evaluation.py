"""What every metric callback shares: it asks for answers, and turns them into metrics and rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.evaluation.requests import Answers, Request


@dataclass
class Evaluation:
    """What one evaluation found.

    Attributes:
        metrics: Value by flat name, such as ``tofu/model_utility``. Finite numbers only.
        absent: For each metric that could not be computed, why.
        notes: What a reader of the numbers should know.
        rows: Per-sample values by (evaluation set, record id).
        texts: The record of each row, for those who write texts beside numbers.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    texts: dict[tuple[str, str], Record] = field(default_factory=dict)

    def row(self, name: str, record: Record) -> dict[str, Any]:
        """The row of a record in the evaluation set `name`, made where it is not there yet."""
        self.texts[name, record.id] = record
        return self.rows.setdefault((name, record.id), {})


class EvaluationCallback(pl.Callback):
    """A group of metrics. All callbacks' requests are answered together, each one once, on all processes."""

    @abstractmethod
    def requests(self, data: EvaluationData) -> Iterable[Request]:
        """What this callback needs to know; duplicates (its own and others') cost nothing."""

    @abstractmethod
    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        """Adds this callback's metrics, rows and absences to `evaluation`."""


class Evaluator(pl.Callback):
    """Runs the metric callbacks once all answers are there, and sees to it that the last weights are evaluated."""

    def __init__(self) -> None:
        self._evaluated_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_step": self._evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_step = state_dict["evaluated_step"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that ends within an epoch (max_steps, an early stop) has not been evaluated where it ended.
        if self._evaluated_step != trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, every_row=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, every_row=True)

    def _evaluate(self, trainer: pl.Trainer, module: Any, every_row: bool) -> None:
        data: EvaluationData = module.data.evaluation_data(every_row)
        answers: Answers = module.answers
        answers.gather()
        self._evaluated_step = trainer.global_step
        evaluation = Evaluation()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EvaluationCallback):
                callback.evaluate(data, answers, evaluation)
        module.evaluation = evaluation
        # For ModelCheckpoint, EarlyStopping and the like. The run folder's own files are written by RunFiles, which
        # also sees the evaluation before the first step, when Lightning drops what is logged here.
        module.log_dict(evaluation.metrics, logger=False, sync_dist=trainer.world_size > 1)
