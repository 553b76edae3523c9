"""What a killed process leaves in a run folder, and when a start may begin there anew."""

from __future__ import annotations

import shutil
from pathlib import Path

from sga.data.records import Benchmark
from sga.data.reserved import RETAIN_UNSEEN
from sga.errors import UserError
from sga.files import is_unfinished, read_json_object

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


def check_reserved_rows(folder: Path, benchmark: Benchmark) -> None:
    """Raises a UserError where the run of a folder had other retain rows reserved than the benchmark has now."""
    path = folder / "run.json"
    before = read_json_object(path).get("reserved") if path.is_file() else None
    now = [record.id for record in benchmark.evaluation.get(RETAIN_UNSEEN, ())]
    if before is not None and before != now:
        raise UserError(
            f"{path}: the run had {len(before)} other rows reserved for measuring utility than data, seed and "
            f"--data.reserved give now ({len(now)} rows): go on with the run's configuration, or in another run.folder"
        )
