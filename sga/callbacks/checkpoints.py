"""Checkpoints that a run can go on from, at any step, to the same end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from sga.errors import UserError
from sga.evaluation.metrics import DIVERGED

FOLDER = "checkpoints"
LAST = "last.ckpt"
BEST = "best.ckpt"
GOOD = "good.ckpt"


def save(trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
    """Writes a checkpoint into the run folder whole or not at all; every process has to call it.

    Lightning's own way moves a file there from the folder for temporary files, which on another file system is a copy
    over the old checkpoint: a run that is killed meanwhile has neither.
    """
    path = _path(trainer, name)
    unfinished = path.with_name(f".{name}.unfinished")
    trainer.save_checkpoint(unfinished, weights_only)
    if trainer.is_global_zero:
        if path.is_dir():  # of a strategy that writes a checkpoint in parts
            shutil.rmtree(path)
        os.replace(unfinished, path)
    trainer.strategy.barrier(f"{name} is in place")


class RunCheckpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after each epoch's evaluation, and between if asked to.

    Ascent can diverge within an epoch, and then the last checkpoint is of no use to anybody. So whenever one that was
    evaluated and had not diverged (perplexity on normal text at most 1e10) would be written over by one that has, or
    that was not evaluated, it stays as ``checkpoints/good.ckpt``, until the last one is good again. While all goes well
    this costs nothing: no further file, and no writing, because the file only gets another name.

    Differs from Lightning's ModelCheckpoint in one thing: nothing is saved between an epoch's last step and its
    evaluation, because a run that resumed there would skip the evaluation. For checkpoints by metric add a
    ModelCheckpoint to trainer.callbacks.
    """

    def __init__(self, every_n_steps: int | None = None, keep_epochs: bool = False, keep_good: bool = True) -> None:
        """Checks the settings.

        Args:
            every_n_steps: Also save after every n optimiser steps within an epoch; null saves at epoch ends only.
            keep_epochs: Keep a checkpoint of each epoch besides the last one. One of a 7 B model with its optimiser
                takes 84 GB.
            keep_good: Keep the last checkpoint that was evaluated and had not diverged, where that is not the last one.
        """
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self.keep_good = keep_good
        self._last_step = 0  # of the batch before, to tell a finished optimiser step from one that accumulates
        self._good_step: int | None = None  # of the last evaluation, if it had not diverged
        self._last_is_good = False  # the file that is there

    def state_dict(self) -> dict[str, Any]:
        return {"good_step": self._good_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._good_step = state_dict["good_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        went_on = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == _path(trainer, LAST).resolve()
        self._last_is_good = went_on and self._good_step == trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        evaluation = getattr(pl_module, "evaluation", None)
        log = None if evaluation is None else evaluation.metrics.get("perplexity/normal/log")
        self._good_step = trainer.global_step if log is not None and log <= DIVERGED else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        due = self.every_n_steps is not None and stepped and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.is_last_batch:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.keep_epochs:
            save(trainer, f"epoch-{trainer.current_epoch + 1:03}-step-{trainer.global_step:06}.ckpt")
        self._save_last(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        good = _path(trainer, GOOD)
        if trainer.is_global_zero and self._good_step is None and good.is_file():
            print(f"{good} is the last checkpoint that was evaluated and had not diverged; {LAST} is of a later step")

    def _save_last(self, trainer: pl.Trainer) -> None:
        last, good = _path(trainer, LAST), _path(trainer, GOOD)
        is_good = self._good_step == trainer.global_step
        if self.keep_good and self._last_is_good and not is_good and trainer.is_global_zero and last.is_file():
            _copy(last, good)
        save(trainer, LAST)
        if is_good and trainer.is_global_zero:
            good.unlink(missing_ok=True)
        self._last_is_good = is_good


def _path(trainer: pl.Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / FOLDER / name


def _copy(file: Path, copy: Path) -> None:
    """A second name for a file, whole or not at all; a real copy where the file system has no such thing.

    Safe only because `save` puts a new file in the old one's place instead of writing into it.
    """
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(file, unfinished)
    except OSError:
        shutil.copy2(file, unfinished)
    os.replace(unfinished, copy)
    unfinished.unlink(missing_ok=True)  # still there where both were names of one file already
