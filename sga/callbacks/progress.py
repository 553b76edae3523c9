"""How far a training run is: a bar in a terminal, lines in a log file."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from sga.callbacks.evaluator import evaluation_of
from sga.evaluation.table import duration

_SHOWN = (
    "forget_quality_log10",
    "model_utility",
    "model_utility_unseen",
    "forget/avg_nll",
    "privleak",
    "perplexity/normal/log",
)
"""Metrics of an evaluation's line, as far as it has them."""

_Bar: Any = RichProgressBar if find_spec("rich") else TQDMProgressBar


class RunClock:
    """Seconds that steps and evaluations of this process take, and the time that is left of the whole run."""

    def __init__(self) -> None:
        self._began = 0.0  # of what is under way
        self._training = 0.0  # of all steps
        self._evaluation = 0.0  # of the last one
        self._first_step = 0

    def start(self, step: int) -> None:
        """Training starts at a step."""
        self._began, self._first_step = time.monotonic(), step

    def end_steps(self) -> float:
        """Steps end for a while, or an evaluation begins; returns the seconds of all steps."""
        self._training += time.monotonic() - self._began
        self._began = time.monotonic()
        return self._training

    def end_evaluation(self) -> float:
        """An evaluation ends; returns its seconds."""
        self._evaluation, self._began = time.monotonic() - self._began, time.monotonic()
        return self._evaluation

    def left(self, trainer: pl.Trainer, step: int, total: int) -> float | None:
        """Seconds that are left if steps and evaluations take as long as before; None before the first step."""
        done = step - self._first_step
        if done < 1 or step >= total:
            return None
        each = trainer.num_training_batches
        evaluations = each // min(trainer.val_check_batch or each, each) / (trainer.check_val_every_n_epoch or 1)
        epochs = (total - step) * trainer.accumulate_grad_batches / each
        return self._training / done * (total - step) + self._evaluation * evaluations * epochs


class RunProgressBar(_Bar):  # type: ignore[misc]
    """Lightning's bar with the time that is left of the whole run, evaluations included.

    What Lightning calls a sanity check is the evaluation before the first step here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._clock = RunClock()

    @property
    def sanity_check_description(self) -> str:
        return "Evaluation before training"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clock.start(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._clock.end_steps()
        super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.sanity_checking:
            self._clock.start(trainer.global_step)
        else:
            self._clock.end_steps()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.end_evaluation()
        super().on_validation_end(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)
        left = self._clock.left(trainer, trainer.global_step, pl_module.total_steps()) if trainer.training else None
        return shown if left is None else {**shown, "whole run": f"{duration(left)} left"}


class ProgressLines(pl.Callback):
    """Prints one line for each epoch and for each evaluation, where a bar would be of no use."""

    def __init__(self) -> None:
        self._clock = RunClock()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank_zero_only(print)("evaluation before training", flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            return
        seconds = self._clock.end_steps()
        loss = trainer.callback_metrics.get("train/loss")
        shown = "" if loss is None else f"train/loss {float(loss):.4g}, "
        self._say(trainer, pl_module, f"{shown}{duration(seconds)} of training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            if trainer.sanity_checking:
                self._clock.start(trainer.global_step)
            else:
                self._clock.end_steps()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        seconds = self._clock.end_evaluation()
        evaluation = evaluation_of(trainer)
        assert evaluation is not None, "it has just been made"
        values = evaluation.values()
        names = [name for name in values if name.removeprefix(f"{evaluation.name}/") in _SHOWN] or list(values)[:4]
        shown = "".join(f"{name} {values[name]:.4g}, " for name in names)
        self._say(trainer, pl_module, f"evaluation: {shown}{duration(seconds)}")

    def _say(self, trainer: pl.Trainer, module: Any, what: str) -> None:
        step, total = trainer.global_step, module.total_steps()
        # Within an epoch's last hooks Lightning has not counted it yet.
        epoch = step / max(1, module.data.steps_per_epoch)
        seconds = self._clock.left(trainer, step, total)
        left = "" if seconds is None else f", about {duration(seconds)} left"
        rank_zero_only(print)(f"step {step} of {total}, epoch {epoch:.4g}: {what}{left}", flush=True)
