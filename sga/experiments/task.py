"""A task: one `sga fit` or `sga validate`, with its configuration, the tasks it needs, and the state of its run folder.

Experiments (the demo, a sequence, a sweep) are lists of tasks; `sga.experiments.engine` runs them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sga.data.builtin import source_hash
from sga.errors import UserError
from sga.experiments.configuration import applied, digest, set_value
from sga.files import read_json_object, write_json, write_text, yaml_text
from sga.runs.folder import RunFolder
from sga.runs.lock import LockedError, write_lock

STATE_FILE = "task.json"
CONFIG_FILE = "fit.yaml"
LOG_FILE = "fit.log"

_OLD_STATE_FILES = ("trial.json", "request.json", "step.json")
"""Earlier names of the state file in sweeps, sequences and the demo, which are still read."""


@dataclass(frozen=True)
class Task:
    """One `sga fit` of an experiment, or one `sga validate`.

    Attributes:
        name: Name of the run folder within the experiment's folder; may have slashes.
        config: Whole configuration, without ``run.folder`` and without the settings that `needs` fills.
        needs: Tasks that have to be finished first, by the setting that gets their run folder; several tasks for a
            setting that takes a list.
        key: Hash of everything that the result depends on; by default of the configuration and the needs' keys.
        title: Name of the task in messages; by default the name of its folder.
        keep_weights: False to delete the checkpoints of the finished run.
        verb: Verb that runs the task, ``fit`` or ``validate``.
    """

    name: str
    config: dict[str, Any]
    needs: Mapping[str, Task | tuple[Task, ...]] = field(default_factory=dict)
    key: str = ""
    title: str = ""
    keep_weights: bool = True
    verb: Literal["fit", "validate"] = field(default="fit", kw_only=True)

    def __post_init__(self) -> None:
        needs = {
            setting: need.key if isinstance(need, Task) else [one.key for one in need]
            for setting, need in self.needs.items()
        }
        object.__setattr__(self, "key", self.key or digest([self.config, needs]))
        object.__setattr__(self, "title", self.title or self.name)

    @property
    def needed(self) -> tuple[Task, ...]:
        """All tasks of `needs`, in order."""
        return tuple(one for need in self.needs.values() for one in ((need,) if isinstance(need, Task) else need))

    def full_config(self, folder: Path) -> dict[str, Any]:
        """Complete configuration, with the paths of the task's own run folder and of those that it needs.

        The paths are absolute, so that the run can be resumed from another working directory.
        """
        folder = folder.resolve()
        places = {
            setting: str(folder / need.name) if isinstance(need, Task) else [str(folder / one.name) for one in need]
            for setting, need in self.needs.items()
        }
        config = applied(self.config, places)
        set_value(config, "run.folder", str(folder / self.name))
        return config


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task that has ended.

    Attributes:
        reason: Reason of the failure in words; None for a finished run.
        code: Exit code of the run; 0 for a finished run or if unknown.
    """

    reason: str | None = None
    code: int = 0


def with_needs(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks and all tasks that they need, by key; needs come first."""
    found: dict[str, Task] = {}
    for task in tasks:
        found |= with_needs(task.needed) | {task.key: task}
    return found


def read_state(run_folder: Path) -> dict[str, Any]:
    """State of a task by its run folder: ``key``, ``state`` (started, finished, failed), ``reason``; empty without one.

    Raises:
        UserError: the file is damaged.
    """
    for name in (STATE_FILE, *_OLD_STATE_FILES):
        if (run_folder / name).is_file():
            state = read_json_object(run_folder / name)
            return {"state": "finished" if state.get("finished") else "started", **state}
    return {}


def outcome(task: Task, folder: Path) -> Outcome | None:
    """Outcome of a task from its run folder; None if it has not ended, or if the folder belongs to another task."""
    state = read_state(folder / task.name)
    if state.get("key") != task.key or state["state"] == "started":
        return None
    return Outcome() if state["state"] == "finished" else Outcome(str(state["reason"]), int(state.get("code", 1)))


def check_folder(task: Task, folder: Path, replace: bool) -> None:
    """Checks that a task's run folder is free or its own. The result is reliable only while the task is `held`.

    Args:
        task: Task to check the run folder of.
        folder: Folder of the experiment.
        replace: True to accept a run of another configuration, to be deleted; a run that no experiment made is never
            accepted.

    Raises:
        UserError: the folder has another run, or files that no experiment wrote.
    """
    path = folder / task.name
    state = read_state(path)
    # A process that was killed as it wrote the first state leaves the beginnings of that file and nothing else.
    begun = path.is_dir() and all(found.name.startswith(f".{STATE_FILE}.") for found in path.iterdir())
    if not state and path.exists() and not begun:
        raise UserError(f"{path} was not made by this command: choose another --folder, or move it away")
    if state and state.get("key") != task.key and not replace:
        raise UserError(f"{path} holds a run of another configuration: choose another --folder, or delete it")


def check_folders(tasks: Iterable[Task], folder: Path, replace: bool) -> None:
    """Checks the run folders of all tasks by `check_folder`, before anything runs.

    A folder that another command has locked may have no state yet; it is checked again once it is free.
    """
    for task in tasks:
        try:
            check_folder(task, folder, replace)
        except UserError:
            with ExitStack() as lock:
                try:
                    lock.enter_context(held(task, folder))
                except LockedError:
                    if not read_state(folder / task.name):
                        continue
                check_folder(task, folder, replace)


@contextmanager
def held(task: Task, folder: Path) -> Iterator[None]:
    """Lock that keeps other commands, also on other machines, from running a task.

    The lock is held from reading the state to the end of the run. The run itself has another lock, on its folder, which
    it may hold for a moment longer than a command that was killed.

    Raises:
        LockedError: another command is running the task, or its run has not ended yet.
    """
    path = folder / task.name
    with write_lock(path.with_name(f"{path.name}.task"), "--folder"):
        with write_lock(path, "--folder"):
            pass
        yield


def begin(task: Task, folder: Path) -> bool:
    """Prepares a task's run folder for `sga fit`; True if there is a run to resume. Only while the task is `held`."""
    path = folder / task.name
    state = read_state(path)
    resumed = state.get("key") == task.key
    if not resumed:
        shutil.rmtree(path, ignore_errors=True)
        state = {}
    state = {
        "key": task.key,
        "state": "started",
        "source": source_hash(),
        "attempts": int(state.get("attempts", 0)) + 1,
        "peak_memory_bytes": int(state.get("peak_memory_bytes", 0)),
    }
    write_json(path / STATE_FILE, state)
    write_text(path / CONFIG_FILE, yaml_text(task.full_config(folder)))
    return resumed


def end(task: Task, folder: Path, ended: Outcome, peak_memory: int) -> None:
    """Writes the outcome of a run and its peak memory in bytes, the largest of several attempts, into its state file.

    Does nothing if the folder has been deleted.
    """
    path = folder / task.name
    state = read_state(path)
    if state.get("key") != task.key:
        return
    state["peak_memory_bytes"] = max(int(state["peak_memory_bytes"]), peak_memory)
    state["state"] = "finished" if ended.reason is None else "failed"
    if ended.reason is not None:
        state |= {"reason": ended.reason, "code": ended.code}
    if not task.keep_weights:
        shutil.rmtree(RunFolder(path).checkpoints_path, ignore_errors=True)
    write_json(path / STATE_FILE, state)
