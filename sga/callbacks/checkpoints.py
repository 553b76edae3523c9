"""Checkpoints that a run can go on from, at any step, to the same end."""

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
    """Writes a checkpoint of the run folder, named as `RunFolder.checkpoint` has it; every process has to call it.

    It is written whole or not at all.

    Lightning's own way moves a file there from the folder for temporary files, which on another file system is a copy
    over the old checkpoint: a run that is killed meanwhile has neither.

    Raises:
        StoppedError: the run folder is gone.
        OSError: the disk is full, say; what was written of the new checkpoint is taken away.
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
        if path.is_dir():  # of a strategy that writes a checkpoint in parts
            shutil.rmtree(path)
        os.replace(unfinished, path)
    trainer.strategy.barrier(f"{name} is in place")


def check_there(trainer: pl.Trainer) -> None:
    """Refuses to write into a run folder that was taken away: what would come back is less than a run.

    Raises:
        StoppedError: it is gone.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero and not folder.is_dir():
        raise StoppedError(f"the run folder {folder} is gone, at step {trainer.global_step}; start the run again")


class StraightToDisk(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor into its file.

    Differs from Lightning's, which first makes two whole copies of it in memory and one in the folder for temporary
    files. For a 7 B model with its optimiser each of them is 84 GB.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        failed: list[OSError] = []

        class Watched:
            """torch.save makes an error of its own of what goes wrong in a write."""

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
    """Notes the first SIGINT or SIGTERM while it is on; the second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def on(self) -> None:
        """Takes the signals' place, in the main thread; others get none."""
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def off(self) -> None:
        """Gives them back."""
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
    """Writes ``checkpoints/last.ckpt`` after each epoch's evaluation, and between if asked to.

    Ascent can diverge within an epoch, and then the last checkpoint is of no use to anybody. So whenever one that was
    evaluated and had not diverged (perplexity on normal text at most 1e10) would be written over by one that has, or
    that was not evaluated, it stays as ``checkpoints/good.ckpt``, until the last one is good again. While all goes well
    this costs nothing: no further file, and no writing, because the file only gets another name.

    SIGINT and SIGTERM end a run of one process after the step that is under way, or after the evaluation at an epoch's
    end, with a checkpoint from which it goes on to the same end. A second signal ends it at once, which costs what was
    done since the checkpoint before.

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
        check_numbers(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.keep_epochs = keep_epochs
        self.keep_good = keep_good
        self._last_step = 0  # of the batch before, to tell a finished optimiser step from one that accumulates
        self._saved_step: int | None = None
        self._good_step: int | None = None  # of the last evaluation, if it had not diverged
        self._last_is_good = False  # the file that is there
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
        if trainer.world_size == 1:  # several have to stop at the same step, which is Lightning's doing
            self._watch.on()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            check_there(trainer)  # before anybody's on_validation_end, where files are written

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
        # Here rather than in on_train_epoch_end, where Lightning counts an epoch that was cut off as complete.
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
    """Whether no step follows this one or, at an epoch's end, this epoch: then the last evaluation may be to come."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    ended = trainer.is_last_batch and 0 <= epochs <= trainer.current_epoch + 1
    return ended or 0 <= trainer.max_steps <= trainer.global_step


def _path(trainer: pl.Trainer, name: str) -> Path:
    return RunFolder(trainer.default_root_dir).checkpoint(name)


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
