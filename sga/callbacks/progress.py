"""Progress of a run: one bar in a terminal, lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

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


class RunClock:
    """Seconds that steps and evaluations of this process take, and the time that is left of the whole run.

    Attributes:
        began: Moment when the steps or the evaluation under way began, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self._training = 0.0  # of all steps
        self._evaluation = 0.0  # of the last one
        self._first_step = 0

    def start(self, step: int) -> None:
        """Starts the clock at a training step."""
        self.began, self._first_step = time.monotonic(), step

    def end_steps(self) -> float:
        """Stops the clock of training, as when an evaluation begins; returns the seconds of all steps."""
        self._training += time.monotonic() - self.began
        self.began = time.monotonic()
        return self._training

    def end_evaluation(self) -> float:
        """Stops the clock of an evaluation; returns its seconds."""
        self._evaluation, self.began = time.monotonic() - self.began, time.monotonic()
        return self._evaluation

    def left(self, trainer: pl.Trainer, step: int, total: int) -> float | None:
        """Estimated seconds until the end of the run, evaluations included; None before the first step."""
        done = step - self._first_step
        if done < 1 or step >= total:
            return None
        each = trainer.num_training_batches
        evaluations = each // min(trainer.val_check_batch or each, each) / (trainer.check_val_every_n_epoch or 1)
        epochs = (total - step) * trainer.accumulate_grad_batches / each
        return self._training / done * (total - step) + self._evaluation * evaluations * epochs


class RunProgressBar(ProgressBar):
    """One bar over all of a verb, with the time that is left; in training that counts the evaluations to come.

    Args:
        console: Console to draw on; None takes standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._clock = RunClock()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        # What is printed above the bar keeps its lines, which hold paths.
        self._bar = Progress(*columns, console=console or Console(soft_wrap=True), transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._batches = 0  # of the evaluation under way
        self._enabled = True
        self._loss = ""
        self._read = 0.0  # when the loss was read, for which a GPU has to be waited for

    def disable(self) -> None:
        """Draws nothing from now on, which Lightning asks of all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Draws again."""
        self._enabled = True

    def _show(self, trainer: pl.Trainer, module: Any, batches: Sequence[int | float] = ()) -> None:
        """Brings the bar up to date; `batches` are those of an evaluation under way, by loader."""
        if not self._enabled:
            return
        self._bar.start()
        part = f"batch {self._batches} of {sum(batches):g}" if batches else ""
        if trainer.state.fn == "fit":
            step, total = trainer.global_step, float(module.total_steps())
            seconds = self._clock.left(trainer, step, int(total))
            if time.monotonic() > self._read + 1 and "train/loss" in trainer.callback_metrics:
                self._read = time.monotonic()
                self._loss = f", train/loss {float(trainer.callback_metrics['train/loss']):.4g}"
            words = f"step {step} of {total:g}{f', evaluation, {part}' if part else self._loss}"
        else:
            step, total = self._batches, float(sum(batches))
            seconds = (time.monotonic() - self._clock.began) / step * (total - step) if step else None
            words = f"{trainer.state.fn.value if trainer.state.fn else ''}: {part}"
        left = "" if seconds is None else f"about {duration(seconds)} left"
        self._bar.update(self._task, description=words, completed=step, total=total, left=left)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer.global_step)
        self._show(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._clock.end_steps()
        self._show(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = 0
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._clock.end_steps()
        else:
            self._clock.start(trainer.global_step)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._batches += 1
        sanity = trainer.sanity_checking
        self._show(trainer, pl_module, trainer.num_sanity_val_batches if sanity else trainer.num_val_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.end_evaluation()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches = 0
        self._clock.start(0)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._batches += 1
        self._show(trainer, pl_module, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._batches += 1
        self._show(trainer, pl_module, trainer.num_predict_batches)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._bar.stop()


class ProgressLines(pl.Callback):
    """Callback that prints one line per epoch and evaluation, for log files."""

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
