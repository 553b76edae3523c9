"""What a killed process leaves in a run folder, and when a start may begin there anew."""

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
"""What a sweep, a sequence or the demo writes into the folders of its runs."""
_NUMBERED = re.compile(r"(last|best|good|epoch-.+)\.ckpt|\d+\.jsonl")
"""Names of checkpoints and of files of rows."""


def only_begun(folder: Path) -> bool:
    """True if a run has started here and left nothing to resume from: no checkpoint and no evaluation.

    A process that is killed before its first evaluation leaves such a folder. A configuration that this program has not
    written is the user's own, and the folder then is not such a one.
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
    """Deletes what a run that has only begun has written; TensorBoard's folder is the logger's to clear."""
    run = RunFolder(folder)
    for path in (run.info_path, run.pairs_path, run.reference_path, run.config_path):
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Deletes temporary files and folders of a killed process; for the holder of the run folder's lock only.

    A folder that is no run's is the user's own, and so is whatever is not named after a file that a run writes.
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
    """Ids of the rows that are reserved for measuring utility."""
    return [record.id for record in benchmark.evaluation.get(RETAIN_UNSEEN, ())]


def check_reserved_rows(run: RunFolder, benchmark: Benchmark) -> None:
    """Raises a UserError where a run had other retain rows reserved than the benchmark has now."""
    if run.info_path.is_file():
        check_reserved_ids(run.info.get("reserved"), benchmark, f"{run.info_path}: the run")


def check_reserved_ids(before: Sequence[str] | None, benchmark: Benchmark, what: str) -> None:
    """Raises a UserError where `what` had other rows reserved than the benchmark has now; None for none."""
    now = reserved_ids(benchmark)
    if list(before or ()) != now:
        others = "others" if before and len(before) == len(now) else f"{len(now)}"
        raise UserError(
            f"{what} had {len(before or ())} rows reserved for measuring utility, and data, seed and --data.reserved "
            f"give {others} now, on some of which it may have been trained: go on with its configuration"
            + ("" if before else ", and --data.reserved 0")
        )
