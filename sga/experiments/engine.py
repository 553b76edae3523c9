"""Engine of experiments (demo, sequences, sweeps): runs, resumes and reuses their tasks.

A finished task with the same key is reused, a task that was begun is resumed from its last checkpoint, and all others
are run. The state is in the run folders, so that you can repeat a command that was killed anywhere, and several
commands may work in one folder: each takes tasks that no other has locked.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from sga.evaluation.table import duration
from sga.experiments.task import (
    CONFIG_FILE,
    LOG_FILE,
    Outcome,
    Task,
    begin,
    check_folder,
    check_folders,
    end,
    held,
    outcome,
    read_state,
    with_needs,
)
from sga.runs.lock import LockedError
from sga.runs.memory import release_memory

POLL = 2.0
"""Seconds between checks of run folders that other commands write."""

_STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which people and schedulers stop a run; it does not count as failed, and the next command resumes it."""

GRACE = 30.0
"""Seconds that runs have to write a checkpoint once the command that started them is stopped."""


class Job(Protocol):
    """A task that is running."""

    def poll(self) -> Outcome | None:
        """Outcome of the task; None while it is running."""

    def stop(self) -> None:
        """Ends the task at once; the next command resumes it."""


class Pool:
    """Place where tasks run, one after the other; subclasses run them in processes or as cluster jobs.

    Attributes:
        shows: True if the output of runs goes to the terminal; otherwise it goes to their `LOG_FILE`.
        workers: Number of tasks at a time.
        pause: Seconds between checks for tasks that have ended.
    """

    shows = False
    workers = 1
    pause = 0.05

    def batch(self) -> AbstractContextManager[object]:
        """Context around the start of several tasks."""
        return nullcontext()

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Starts a task; takes over its lock by ``lock.pop_all()``, or leaves locking to the job."""
        raise NotImplementedError

    def stop(self, jobs: Iterable[Job]) -> None:
        """Ends running tasks, because the command ends."""
        for job in jobs:
            job.stop()


Tasks = Sequence[Task] | Callable[[int], Sequence[Task]]


def run(
    tasks: Tasks,
    folder: Path,
    pool: Pool | None = None,
    *,
    replace: bool = False,
    retry: bool = False,
    wait: bool = True,
    total: int | None = None,
    words: Callable[[Task], str] = lambda task: "done",
    alike: bool = True,
) -> dict[str, Outcome]:
    """Runs tasks and all tasks that they need until every one has ended, in this command or in another one.

    Args:
        tasks: Tasks to run, or a function that returns the tasks known so far. It is called with 0 whenever a task has
            ended, and then, if more could run than it returned, with the number of tasks that there is room for.
        folder: Folder of the experiment, on a file system that all workers see.
        pool: Place where the tasks run; by default a process each, one after the other.
        replace: True to delete a run of another configuration in a task's folder; otherwise it is refused.
        retry: True to resume a task that failed before from its last checkpoint; otherwise it stays failed.
        wait: True to wait for tasks that another command is running; otherwise they are refused.
        total: Number of tasks in the end, for the messages; by default the number known so far.
        words: Function that describes the result of a finished task.
        alike: True if tasks take about as long as each other, so that the pace so far tells the time that is left.

    Returns:
        Outcome of each task by key. Tasks that need a failed one are left out.

    Raises:
        UserError: a run folder belongs to another configuration or, without `wait`, is locked.
    """
    engine = _Engine(tasks, folder, pool or Processes(), replace, retry, wait, total, words, alike)
    try:
        engine.work()
    finally:
        engine.pool.stop(engine.running.values())
    return engine.ended


@dataclass
class _Engine:
    """State of one call of `run`."""

    tasks: Tasks
    folder: Path
    pool: Pool
    replace: bool
    retry: bool
    wait: bool
    total: int | None
    words: Callable[[Task], str]
    alike: bool
    known: dict[str, Task] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    pace: Pace | None = None

    def work(self) -> None:
        """Runs tasks until no task is left that could be run."""
        look_again = 0.0
        while True:
            if self._collect() or time.monotonic() >= look_again:
                self._look(0)
                self._start()
                room = self.pool.workers - len(self.running)
                if room > 0 and self._look(room):
                    self._start()
                look_again = time.monotonic() + POLL
            if not self.running and not self._open():
                return
            time.sleep(self.pool.pause)

    def _collect(self) -> bool:
        """Records the jobs that have ended; returns True if any has."""
        found = {key: result for key, job in self.running.items() if (result := job.poll()) is not None}
        for key, result in found.items():
            del self.running[key]
            self._end(self.known[key], result)
        return bool(found)

    def _look(self, room: int) -> bool:
        """Asks for known tasks and reads their state from the folder; returns True if there are new ones."""
        known = with_needs(self.tasks(room) if callable(self.tasks) else self.tasks)
        new = {key: task for key, task in known.items() if key not in self.known}
        check_folders(new.values(), self.folder, self.replace)
        self.known |= new
        for key, task in self.known.items():
            found = None if key in self.ended or key in self.running else self._found(task)
            if found is None:
                continue
            if key in self.waiting:
                self._end(task, found)
            else:
                self.ended[key] = found
                self._say_if_shown(task, "reused, it is finished")
        self.pace = self.pace or Pace(self.total or len(self.known), len(self.ended))
        return bool(new)

    def _found(self, task: Task) -> Outcome | None:
        """Outcome of a task from an earlier command; None if there is none, or if it failed and is to be retried."""
        found = outcome(task, self.folder)
        return None if found is None or (found.reason is not None and self.retry) else found

    def _open(self) -> list[Task]:
        """Tasks that have not ended and need no failed task."""
        failed = {key for key, found in self.ended.items() if found.reason is not None}
        tasks = [task for key, task in self.known.items() if key not in self.ended]
        return [task for task in tasks if not failed & with_needs(task.needed).keys()]

    def _start(self) -> None:
        """Starts the tasks whose needs are finished, while the pool has room."""
        with self.pool.batch():
            for task in self._open():
                needed = all(need.key in self.ended for need in task.needed)
                if needed and task.key not in self.running and len(self.running) < self.pool.workers:
                    self._try(task)

    def _try(self, task: Task) -> None:
        """Starts a task unless another command is running it, or has finished it meanwhile."""
        with ExitStack() as lock:
            try:
                lock.enter_context(held(task, self.folder))
            except LockedError as error:
                if not self.wait:
                    raise
                if task.key not in self.waiting:
                    print(f"waiting: {error.held}", flush=True)
                self.waiting.add(task.key)
                return
            found = self._found(task)
            if found is not None:
                self._end(task, found)
                return
            check_folder(task, self.folder, self.replace)  # the previous holder of the lock may have changed it
            resumed = read_state(self.folder / task.name).get("key") == task.key
            self._say_if_shown(task, "going on where it stopped" if resumed else "")
            self.running[task.key] = self.pool.start(task, self.folder, lock)

    def _end(self, task: Task, found: Outcome) -> None:
        self.ended[task.key] = found
        assert self.pace is not None, "tasks were looked at first"
        said = self.words(task) if found.reason is None else f"FAILED: {found.reason}"
        if not self.pool.shows:
            print(f"[{self.pace.after(len(self.ended), self.alike)}] {task.title}: {said}", flush=True)

    def _say_if_shown(self, task: Task, said: str) -> None:
        """Prints what happens to a task, above the output of its run."""
        if self.pool.shows:
            place = f"[{list(self.known).index(task.key) + 1}/{self.total or len(self.known)}]"
            print(f"{place} {task.title}{said and f': {said}'}", flush=True)


class Pace:
    """Progress of the work, with the time that is left at the pace so far."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done_before, self.began = total, done, time.monotonic()

    def after(self, done: int, alike: bool = True) -> str:
        """Progress in words once `done` pieces are done; without the time that is left if they are not alike."""
        new, left = done - self.done_before, self.total - done
        if new < 1 or left < 1 or not alike:
            return f"{done} of {self.total}"
        return f"{done} of {self.total}, {duration((time.monotonic() - self.began) / new * left)} left"


@dataclass
class InThisProcess(Pool):
    """Pool that runs one task after the other in this process; an exception in a run ends the experiment.

    Saves about 8 seconds per task, which Python and its libraries take to start. The memory of a run is freed before
    the next one begins, but for what it leaks.

    Attributes:
        hear: Function called with each line that a run prints, which then goes to its `LOG_FILE`; None leaves the
            output on the terminal.
        phase: Function called with each task as it begins.
    """

    hear: Callable[[str], None] | None = None
    phase: Callable[[Task], None] = lambda task: None

    @property
    def shows(self) -> bool:  # type: ignore[override]
        """True if the output of the runs goes to the terminal."""
        return self.hear is None

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Runs a task to its end."""
        from sga.cli import run_verb

        begin(task, folder)
        self.phase(task)
        with ExitStack() as places:
            if self.hear is not None:
                log = cast(TextIO, _Log(folder / task.name / LOG_FILE, self.hear))
                places.enter_context(redirect_stdout(log))
                places.enter_context(redirect_stderr(log))
                for handler in _terminal_handlers():
                    places.callback(handler.setStream, handler.setStream(log))
            run_verb(_arguments(task, folder))
        release_memory()
        end(task, folder, Outcome(), 0)
        return _Ended(Outcome())


def _terminal_handlers() -> list[logging.StreamHandler[Any]]:
    """Lightning's logging handlers that write to the terminal even if standard output is redirected."""
    names = ("", "lightning", "lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [one for one in handlers if isinstance(one, logging.StreamHandler) and one.stream is sys.__stderr__]


class _Log(io.TextIOBase):
    """Text stream that appends a run's output to a file and passes each complete line to a function.

    The file is opened anew for each write, so that a holder of this stream after the run, such as a logging handler,
    does not find it closed.
    """

    def __init__(self, path: Path, hear: Callable[[str], None]) -> None:
        self._path, self._hear, self._rest = path, hear, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._hear(line)
        return len(text)


@dataclass(frozen=True)
class _Ended:
    outcome: Outcome

    def poll(self) -> Outcome:
        return self.outcome

    def stop(self) -> None:
        pass


@dataclass
class Processes(Pool):
    """Pool that runs each task in its own process on this machine, which ends together with this one.

    A crash or a memory leak affects that run alone.

    Attributes:
        workers: Number of runs at a time. They share the CPU cores evenly unless OMP_NUM_THREADS is set.
        gpus: Indices of GPUs, one for each run in turn; empty if each run may see all GPUs.
        shows: True if the output of the runs goes to the terminal.
    """

    workers: int = 1
    gpus: Sequence[str] = ()
    shows: bool = False
    places: dict[int, _Process] = field(default_factory=dict)

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Starts a task in a free slot."""
        place = next(i for i in range(self.workers) if i not in self.places or self.places[i].has_ended)
        environment = dict(os.environ)
        if self.workers > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // self.workers)))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        begin(task, folder)
        self.places[place] = process = _Process(task, folder, environment, self.shows)
        process.lock = lock.pop_all()
        return process

    def stop(self, jobs: Iterable[Job]) -> None:
        """Asks the runs to write a checkpoint and end; kills those slower than `GRACE`, and all at an interrupt."""
        left = [process for process in self.places.values() if not process.has_ended]
        try:
            for process in left:
                process.ask_to_end()
            if left:
                print(f"waiting up to {GRACE:g} s for a checkpoint; interrupt once more to end at once", flush=True)
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and any([process.poll() is None for process in left]):
                left = [process for process in left if not process.has_ended]
                time.sleep(self.pause)
        finally:
            super().stop(jobs)


class _Process:
    """A run in its own process."""

    lock: ExitStack

    def __init__(self, task: Task, folder: Path, environment: dict[str, str], shows: bool) -> None:
        self.task, self.folder = task, folder
        self.log = None if shows else folder / task.name / LOG_FILE
        command = [sys.executable, "-m", "sga.experiments.fit", *_arguments(task, folder)]
        with ExitStack() as files:
            out = files.enter_context(self.log.open("ab")) if self.log else None
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out and subprocess.STDOUT, env=environment
            )

    @property
    def has_ended(self) -> bool:
        """True if `poll` or `stop` has noticed the end of the process."""
        return self.process.returncode is not None

    def poll(self) -> Outcome | None:
        """Outcome of the run; None while it is running or if a signal stopped it."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return None
        self.process.returncode = code = os.waitstatus_to_exitcode(status)
        found = Outcome(why_ended(code, self.log) if code else None, code if code >= 0 else 128 - code)
        if read_state(self.folder / self.task.name).get("key") != self.task.key:
            found = Outcome("its folder is gone", found.code or 1)
        with self.lock:
            self._close()
            if found.code - 128 in _STOPPED:
                return found  # its state stays "started", so the next command resumes it
            # Linux counts the memory of this process at the fork too, which is less than that of the run with a model.
            end(self.task, self.folder, found, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return found

    def ask_to_end(self) -> None:
        """Asks the run to write a checkpoint and end; `sga.experiments.fit` reads the message."""
        assert self.process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # the process is ending
            os.write(self.process.stdin.fileno(), b"end\n")

    def stop(self) -> None:
        """Kills the run."""
        with self.lock:
            self.process.kill()
            self.process.wait()
            self._close()

    def _close(self) -> None:
        assert self.process.stdin is not None, "it is a pipe"
        self.process.stdin.close()


def _arguments(task: Task, folder: Path) -> list[str]:
    going_on = ["--ckpt_path", "last"] if task.verb == "fit" else []
    return [task.verb, "--config", str(folder / task.name / CONFIG_FILE), *going_on]


def why_ended(code: int, log: Path | None) -> str:
    """Reason of a failure in words, from the exit code and the last lines of the log, if there is one."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    if log is None or not log.is_file():
        return f"exit code {code}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output")
    return f"{said.removeprefix('sga: error: ')[:400]} (exit code {code})"


def _cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def terminable() -> Iterator[None]:
    """Context in which SIGTERM, which schedulers send before they kill, raises KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
