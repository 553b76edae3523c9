"""Check, before training, that the disk has room for the files that the run will write."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from sga.callbacks.checkpoints import RunCheckpoints
from sga.callbacks.export import HuggingFaceExport
from sga.callbacks.stopping import Stopping
from sga.errors import StoppedError
from sga.optimization import optimizer_bytes
from sga.runs.folder import RunFolder

GB = 1e9


def free_bytes(folder: Path) -> int:
    """Free disk space for a folder, which need not exist yet, in bytes."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def check_room(trainer: pl.Trainer, module: Any) -> None:
    """Compares the free space with the size of weights and optimiser states that the run will write.

    Raises:
        StoppedError: there is no room for a checkpoint or, where one is replaced, for the new one beside the old one.
    """
    folder = Path(trainer.default_root_dir)
    run = RunFolder(folder)
    last, good, best = (run.checkpoint(name) for name in ("last", "good", "best"))
    weights = module.state_dict(keep_vars=True)
    checkpoint = _size(weights.values()) + _states(trainer, module)
    settings: dict[type, Any] = {type(one): one for one in trainer.callbacks}  # type: ignore[attr-defined]
    saving, rule, export = (settings.get(kind) for kind in (RunCheckpoints, Stopping, HuggingFaceExport))
    if saving is None:
        return
    epochs = max(1, trainer.max_epochs or 1)
    written_over = epochs > 1 or saving.every_n_steps is not None
    at_once = checkpoint * (2 if written_over and not last.exists() else 1)
    free = free_bytes(folder)
    if free < at_once:
        raise StoppedError(
            f"{folder} has {free / GB:.3g} GB of free space, and {last.name} takes {checkpoint / GB:.3g} GB"
            f"{', twice that while a new one is written' if written_over else ''}: make room, or choose another "
            "--run.folder"
        )
    kept = {
        f"{last.name} and the new one": 2 * checkpoint,
        good.name: checkpoint * (saving.keep_good and written_over),
        f"{epochs} of epochs": epochs * checkpoint * saving.keep_epochs,
        f"{best.name} and the new one": 2 * _size(weights.values()) * (rule is not None and rule.rule is not None),
        # A model with an adapter is written merged, with the adapter beside it.
        f"{run.model_path.name}/": _size(module.model.state_dict(keep_vars=True).values())
        * (export is not None and export.enabled),
    }
    there = sum(path.stat().st_size for path in run.checkpoints)
    if free + there < sum(kept.values()) and trainer.is_global_zero:
        parts = ", ".join(f"{name} {size / GB:.3g}" for name, size in kept.items() if size)
        warnings.warn(
            f"{folder} has {free / GB:.3g} GB of free space, and this run may come to write "
            f"{(sum(kept.values()) - there) / GB:.3g} GB ({parts}): the disk may be full before it ends",
            stacklevel=2,
        )


def _size(tensors: Iterable[Any]) -> float:
    """Size of tensors in a file, in bytes; a tensor with several names is written once."""
    return sum(one.nbytes for one in {id(one): one for one in tensors if isinstance(one, Tensor)}.values())


def _states(trainer: pl.Trainer, module: Any) -> float:
    """Size of the optimiser's states in bytes, estimated because they exist only after the first step."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    each: float = optimizer_bytes(module.optimizer, type(trainer.optimizers[0]).__name__)
    return float(sum(each * one.numel() * min(1.0, one.element_size() / 4) for one in trained))  # measured on float32
