"""Checkpoints from which a run resumes exactly, at any step."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from sga.callbacks.evaluator import evaluation_of
from sga.errors import DivergenceError, Interruption, StoppedError, check_numbers
from sga.evaluation.metrics import DIVERGED
from sga.runs.folder import RunFolder


def save(trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
    """Writes a checkpoint into the run folder, at `RunFolder.checkpoint(name)`; every process has to call it.

    The write is atomic. Lightning's own way moves a file from the folder for temporary files, which across file systems
    is a copy over the old checkpoint: a run that is killed meanwhile has neither.

    Raises:
        StoppedError: the run folder is gone.
        OSError: the write failed, because the disk is full for instance; the unfinished file is removed.
    """
    check_there(trainer)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return  # no weights are left, as with Lightning's own checkpoints
    path = _path(trainer, name)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        trainer.save_checkpoint(unfinished, weights_only)
    except BaseException:
        if trainer.is_global_zero and unfinished.is_file():
            unfinished.unlink()
        raise
    if trainer.is_global_zero:
        if path.is_dir():  # a sharded checkpoint
            shutil.rmtree(path)
        os.replace(unfinished, path)
    trainer.strategy.barrier(f"{name} is in place")


def check_there(trainer: pl.Trainer) -> None:
    """Refuses to write into a run folder that was deleted meanwhile: the result would be an incomplete run.

    Raises:
        StoppedError: the run folder is gone.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero and not folder.is_dir():
        raise StoppedError(f"the run folder {folder} is gone, at step {trainer.global_step}; start the run again")


class StraightToDisk(TorchCheckpointIO):
    """Checkpoint writer that streams tensor by tensor into the file.

    Differs from Lightning's, which first makes two whole copies of the checkpoint in memory and one in the folder for
    temporary files. For a 7 B model with its optimiser each of them is 84 GB.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        failed: list[OSError] = []

        class Watched:
            """File that remembers the OSError of a failed write, which torch.save replaces by another error."""

            def write(self, data: Any) -> int:
                try:
                    return file.write(data)
                except OSError as error:
                    failed.append(error)
                    raise

            def flush(self) -> None:
                file.flush()

        watched: Any = Watched()
        with open(path, "wb") as file:
            try:
                torch.save(checkpoint, watched)
            except RuntimeError:
                if failed:
                    raise OSError(failed[0].errno, failed[0].strerror, str(path)) from None
                raise
            file.flush()
            os.fsync(file.fileno())


class SignalWatch:
    """Handler that records the first SIGINT or SIGTERM while it is on; the second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def on(self) -> None:
        """Installs the handlers; does nothing outside the main thread, which alone receives signals."""
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def off(self) -> None:
        """Restores the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for one in self._before:
            signal.signal(one, signal.SIG_DFL)
        print(
            f"\nsga: {self.received.name}: ending at the next place to go on from; once more to end at once",
            file=sys.stderr,
            flush=True,
        )


class RunCheckpoints(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after each epoch's evaluation and, with `every_n_steps`, within epochs.

    Ascent can diverge within an epoch, and then the last checkpoint is useless. So a checkpoint that was evaluated and
    had not diverged (perplexity on normal text at most 1e10) is kept as ``checkpoints/good.ckpt`` when the next one
    has diverged or was not evaluated, until the last one is good again. In a run that does not diverge this costs
    nothing: the file is renamed, not copied.

    SIGINT and SIGTERM end a run of one process after the current step, or after the evaluation at an epoch's end, with
    a checkpoint from which it resumes exactly. A second signal ends it at once, and the work since the last checkpoint
    is lost.

    Differs from Lightning's ModelCheckpoint in one thing: nothing is saved between an epoch's last step and its
    evaluation, because a run that resumed there would skip the evaluation. For checkpoints by metric add a
    ModelCheckpoint to trainer.callbacks.
    """

    def __init__(self, every_n_steps: int | None = None, keep_epochs: bool = False, keep_good: bool = True) -> None:
        """Checks the settings.

        Args:
            every_n_steps: Number of optimiser steps between checkpoints within an epoch; null saves at epoch ends only.
            keep_epochs: True to keep a checkpoint of each epoch besides the last one. Each takes 84 GB for a 7 B model
                with its optimiser.
            keep_good: True to keep the last checkpoint that was evaluated and had not diverged, if it is not the last.
        """
        check_numbers(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self.keep_good = keep_good
        self._last_step = 0  # step after the previous batch, to tell an optimiser step from accumulation
        self._saved_step: int | None = None
        self._good_step: int | None = None  # step of the last evaluation, if it had not diverged
        self._last_is_good = False  # True if the file last.ckpt was evaluated and had not diverged
        self._watch = SignalWatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StraightToDisk()

    def state_dict(self) -> dict[str, Any]:
        return {"good_step": self._good_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._good_step = state_dict["good_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        went_on = (
            trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == _path(trainer, "last").resolve()
        )
        self._last_is_good = went_on and self._good_step == trainer.global_step
        if trainer.world_size == 1:  # several processes have to stop at the same step, which Lightning sees to
            self._watch.on()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            check_there(trainer)  # before any callback's on_validation_end, where files are written

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        evaluation = evaluation_of(trainer)
        log = None if evaluation is None else evaluation.metrics.get("perplexity/normal/log")
        self._good_step = trainer.global_step if log is not None and log <= DIVERGED else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        if not stepped or trainer.is_last_batch:
            return
        check_there(trainer)
        interrupted = self._watch.received is not None and not _is_over(trainer)
        # Not in on_train_epoch_end, where Lightning counts an interrupted epoch as complete.
        ends = trainer.should_stop or _is_over(trainer)
        if interrupted or ends or (self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0):
            self._save_last(trainer)
        if interrupted:
            self._interrupt(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.keep_epochs:
            save(trainer, f"epoch-{trainer.current_epoch + 1:03}-step-{trainer.global_step:06}")
        if trainer.is_last_batch or self._saved_step != trainer.global_step:
            self._save_last(trainer)
        if self._watch.received is not None and not _is_over(trainer):
            self._interrupt(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch.off()
        if self._watch.received is not None:
            self._interrupt(trainer)

    def _interrupt(self, trainer: pl.Trainer) -> None:
        number = self._watch.received
        assert number is not None, "there was a signal"
        raise Interruption(
            number, f"stopped by {number.name} after step {trainer.global_step}; go on with --ckpt_path last"
        )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._watch.off()
        if isinstance(exception, DivergenceError):
            kept = [path for path in (_path(trainer, "good"), _path(trainer, "last")) if path.is_file()]
            exception.kept = (
                f"{kept[0]} holds the last weights that were kept: sga test --ckpt_path {kept[0]} evaluates them"
                if kept
                else "No checkpoint had been written"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last, good = _path(trainer, "last"), _path(trainer, "good")
        if trainer.is_global_zero and self._good_step is None and good.is_file():
            print(
                f"{good} is the last checkpoint that was evaluated and had not diverged; {last.name} is of a later step"
            )

    def _save_last(self, trainer: pl.Trainer) -> None:
        last, good = _path(trainer, "last"), _path(trainer, "good")
        is_good = self._good_step == trainer.global_step
        if self.keep_good and self._last_is_good and not is_good and trainer.is_global_zero and last.is_file():
            _copy(last, good)
        save(trainer, "last")
        self._saved_step = trainer.global_step
        if is_good and trainer.is_global_zero:
            good.unlink(missing_ok=True)
        self._last_is_good = is_good


def _is_over(trainer: pl.Trainer) -> bool:
    """True if this is the run's last step or, at an epoch's end, its last epoch; an evaluation may still follow."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    ended = trainer.is_last_batch and 0 <= epochs <= trainer.current_epoch + 1
    return ended or 0 <= trainer.max_steps <= trainer.global_step


def _path(trainer: pl.Trainer, name: str) -> Path:
    return RunFolder(trainer.default_root_dir).checkpoint(name)


def _copy(file: Path, copy: Path) -> None:
    """Makes a hard link to a file atomically; a real copy on file systems without hard links.

    Safe only because `save` replaces the old file by a new one instead of writing into it.
    """
    unfinished = copy.with_name(f".{copy.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(file, unfinished)
    except OSError:
        shutil.copy2(file, unfinished)
    os.replace(unfinished, copy)
    unfinished.unlink(missing_ok=True)  # still there if both names already linked to one file
