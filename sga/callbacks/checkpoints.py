"""Checkpoints that a run can go on from, at any step, to the same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from sga.errors import UserError

FOLDER = "checkpoints"
LAST = "last.ckpt"


class RunCheckpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after each epoch's evaluation, and between if asked to.

    Differs from Lightning's ModelCheckpoint in one thing: nothing is saved between an epoch's last step and its
    evaluation, because a run that resumed there would skip the evaluation. For checkpoints by metric add a
    ModelCheckpoint to trainer.callbacks.
    """

    def __init__(self, every_n_steps: int | None = None, keep_epochs: bool = False) -> None:
        """Checks the settings.

        Args:
            every_n_steps: Also save after every n optimiser steps within an epoch; null saves at epoch ends only.
            keep_epochs: Keep a checkpoint of each epoch besides the last one. One of a 7 B model with its optimiser
                takes 84 GB.
        """
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self._last_step = 0  # of the batch before, to tell a finished optimiser step from one that accumulates

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        due = self.every_n_steps is not None and stepped and trainer.global_step % self.every_n_steps == 0
        if due and not trainer.is_last_batch:
            self._save(trainer, LAST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.keep_epochs:
            self._save(trainer, f"epoch-{trainer.current_epoch + 1:03}-step-{trainer.global_step:06}.ckpt")
        self._save(trainer, LAST)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / FOLDER / name)
