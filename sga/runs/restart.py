"""Remains of a killed process in a run folder: when a new start may use the folder, and how it is cleaned."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from sga.data.records import Benchmark
from sga.data.reserved import RETAIN_UNSEEN
from sga.errors import UserError
from sga.files import is_unfinished
from sga.runs.folder import RunFolder

_TASK_FILES = ("task.json", "fit.yaml")
"""Names of files that a sweep, a sequence or the demo writes into the folders of its runs."""
_NUMBERED = re.compile(r"(last|best|good|epoch-.+)\.ckpt|\d+\.jsonl")
"""Pattern of the names of checkpoints and of files of rows."""


def only_begun(folder: Path) -> bool:
    """True if a run has started in this folder but left nothing to resume from: no checkpoint and no evaluation.

    A process killed before its first evaluation leaves such a folder. A configuration that this program has not written
    is the user's own; then the result is False.
    """
    run = RunFolder(folder)
    return _has_our_config(run) and not any(_holds_something(path) for path in run.results)


def _has_our_config(run: RunFolder) -> bool:
    if not run.config_path.is_file():
        return False
    with run.config_path.open("rb") as file:
        return file.readline().startswith(b"# lightning.pytorch==")


def _holds_something(path: Path) -> bool:
    return any(not is_unfinished(inner.name) for inner in path.iterdir()) if path.is_dir() else path.exists()


def clear_start(folder: Path) -> None:
    """Deletes the files of a run that has only begun; the logger clears TensorBoard's folder itself."""
    run = RunFolder(folder)
    for path in (run.info_path, run.pairs_path, run.reference_path, run.config_path):
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Deletes temporary files and folders of a killed process. Call it only while you hold the run folder's lock.

    A folder without a run's files is not touched, and neither are files not named after one that a run writes.
    """
    for run in (RunFolder(folder), RunFolder(folder).test):
        if not run.info_path.is_file() and not _has_our_config(run):
            continue
        ours = {path.name for path in (*run.results, run.info_path, run.config_path, run.pairs_path)}
        ours |= {run.reference_path.name, *_TASK_FILES}
        for place in (run.path, run.checkpoints_path, run.rows_path):
            for path in place.iterdir() if place.is_dir() else ():
                name = path.name[1:].rpartition(".")[0]
                if not is_unfinished(path.name) or not (name in ours or _NUMBERED.fullmatch(name)):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def reserved_ids(benchmark: Benchmark) -> list[str]:
    """Ids of the retain rows that are reserved for measuring utility."""
    return [record.id for record in benchmark.evaluation.get(RETAIN_UNSEEN, ())]


def check_reserved_rows(run: RunFolder, benchmark: Benchmark) -> None:
    """Raises a UserError if a run had reserved other retain rows than the benchmark has now."""
    if run.info_path.is_file():
        check_reserved_ids(run.info.get("reserved"), benchmark, f"{run.info_path}: the run")


def check_reserved_ids(before: Sequence[str] | None, benchmark: Benchmark, what: str) -> None:
    """Raises a UserError if `what` had reserved other rows (None for no rows) than the benchmark has now."""
    now = reserved_ids(benchmark)
    if list(before or ()) != now:
        others = "others" if before and len(before) == len(now) else f"{len(now)}"
        raise UserError(
            f"{what} had {len(before or ())} rows reserved for measuring utility, and data, seed and --data.reserved "
            f"give {others} now, on some of which it may have been trained: go on with its configuration"
            + ("" if before else ", and --data.reserved 0")
        )
