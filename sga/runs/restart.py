"""What a killed process leaves in a run folder, and when a start may begin there anew."""

from __future__ import annotations

import shutil
from pathlib import Path

from sga.files import is_unfinished

_START = ("run.json", "pairs.jsonl", "reference.json", "config.yaml")
"""Files that a run writes before its first evaluation; to it belongs TensorBoard's folder, which the logger clears."""

_RESULTS = (
    "checkpoints",
    "metrics.jsonl",
    "metrics.json",
    "rows.jsonl",
    "predictions.jsonl",
    "model",
    "adapter",
    "test",
)
_PLACES = ("", "checkpoints", "test")
"""Folders of a run to which it writes by way of temporary files."""


def only_begun(folder: Path) -> bool:
    """Whether a run has started here and left nothing to go on from: no checkpoint and no evaluation.

    So it is where one was killed before its first evaluation. A configuration that this program has not written is the
    user's own, and the folder then is not such a one.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        return False
    with config.open("rb") as file:
        ours = file.readline().startswith(b"# lightning.pytorch==")
    return ours and not any(_holds_something(folder / name) for name in _RESULTS)


def _holds_something(path: Path) -> bool:
    return any(not is_unfinished(inner.name) for inner in path.iterdir()) if path.is_dir() else path.exists()


def clear_start(folder: Path) -> None:
    """Takes away what a run that has only begun has written."""
    for name in _START:
        (folder / name).unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Takes away temporary files and folders of a killed process; for the holder of the run folder's lock only."""
    for place in (folder / name for name in _PLACES):
        for path in place.iterdir() if place.is_dir() else ():
            if not is_unfinished(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
