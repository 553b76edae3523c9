"""Callbacks that end one process of a run, for tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from sga.errors import UserError


class Fails(pl.Callback):
    """Ends one process before an optimiser step's batch, in one of three ways; it leaves a file ``failed`` behind."""

    def __init__(self, rank: int, step: int, how: str) -> None:
        self.rank, self.step, self.how = rank, step, how

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        Path(trainer.default_root_dir, "failed").touch()
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "user":
            raise UserError("a mistake of one process")
        raise RuntimeError("a fault of one process")
