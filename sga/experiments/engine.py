"""Makes, resumes and reuses the tasks of an experiment: the one engine of the demo, sequences and sweeps.

A task with the same key that is finished is reused, one that was begun goes on from its last checkpoint, and anything
else is made. What is known stands in the run folders, so that a command that was killed anywhere goes on when it is
given again, and several commands may work in one folder: each takes what nobody has locked.
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

POLL = 2.0
"""Seconds between looks at run folders that others write."""

_STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which people and schedulers stop a run; it is not failed, and the next command goes on with it."""

GRACE = 30.0
"""Seconds that runs have to write a checkpoint when the command that started them is stopped."""


class Job(Protocol):
    """A task that is being made."""

    def poll(self) -> Outcome | None:
        """How it ended; None while it goes on."""

    def stop(self) -> None:
        """Ends it at once, so that the next command goes on with it."""


class Pool:
    """Place where tasks are made, one after the other.

    Attributes:
        shows: True if the output of the runs is on the terminal; otherwise it is in their `LOG_FILE`.
        workers: Number of tasks at a time.
        pause: Seconds between looks whether one has ended.
    """

    shows = False
    workers = 1
    pause = 0.05

    def batch(self) -> AbstractContextManager[object]:
        """Surrounds the start of several tasks."""
        return nullcontext()

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Begins a task; takes its lock over with ``lock.pop_all()``, or leaves locking to the job."""
        raise NotImplementedError

    def stop(self, jobs: Iterable[Job]) -> None:
        """Ends tasks that are being made, because the command ends."""
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
) -> dict[str, Outcome]:
    """Makes tasks and all that they need until every one has ended, here or by another command.

    Args:
        tasks: The tasks, or a function that gives those that are known by now. It is called with 0 whenever one has
            ended, and then, if there is room for more than it gave, with the number of tasks that there is room for.
        folder: Folder of the experiment, on a file system that all who work on it see.
        pool: Place where the tasks are made; by default a process of their own, one after the other.
        replace: True if a run of another configuration in the place of a task is deleted; otherwise it is refused.
        retry: True if a task that failed before goes on from its last checkpoint; otherwise it stays failed.
        wait: True if tasks that another command makes are waited for; otherwise they are refused.
        total: Number of tasks that there will be, for the messages; by default of those that are known.
        words: Result of a finished task in words.

    Returns:
        How tasks ended, by key. Those that need a failed one are not among them.

    Raises:
        UserError: a run folder is of something else, or, without `wait`, locked.
    """
    engine = _Engine(tasks, folder, pool or Processes(), replace, retry, wait, total, words)
    try:
        engine.work()
    finally:
        engine.pool.stop(engine.running.values())
    return engine.ended


@dataclass
class _Engine:
    """One call of `run`."""

    tasks: Tasks
    folder: Path
    pool: Pool
    replace: bool
    retry: bool
    wait: bool
    total: int | None
    words: Callable[[Task], str]
    known: dict[str, Task] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Job] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    pace: Pace | None = None

    def work(self) -> None:
        """Until nothing is left that could be done."""
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
        """Notes which jobs have ended; whether any has."""
        found = {key: result for key, job in self.running.items() if (result := job.poll()) is not None}
        for key, result in found.items():
            del self.running[key]
            self._end(self.known[key], result)
        return bool(found)

    def _look(self, room: int) -> bool:
        """Learns of tasks, and what has become of them in the folder; whether there are new ones."""
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
        """How a task ended before, as far as that counts."""
        found = outcome(task, self.folder)
        return None if found is None or (found.reason is not None and self.retry) else found

    def _open(self) -> list[Task]:
        """Tasks that may still be made: those that need nothing that failed."""
        failed = {key for key, found in self.ended.items() if found.reason is not None}
        tasks = [task for key, task in self.known.items() if key not in self.ended]
        return [task for task in tasks if not failed & with_needs(task.needed).keys()]

    def _start(self) -> None:
        """Begins what can be begun."""
        with self.pool.batch():
            for task in self._open():
                needed = all(need.key in self.ended for need in task.needed)
                if needed and task.key not in self.running and len(self.running) < self.pool.workers:
                    self._try(task)

    def _try(self, task: Task) -> None:
        """Begins a task unless somebody else makes it, or has made it by now."""
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
            check_folder(task, self.folder, self.replace)  # whoever had the lock may have made something else there
            resumed = read_state(self.folder / task.name).get("key") == task.key
            self._say_if_shown(task, "going on where it stopped" if resumed else "")
            self.running[task.key] = self.pool.start(task, self.folder, lock)

    def _end(self, task: Task, found: Outcome) -> None:
        self.ended[task.key] = found
        assert self.pace is not None, "tasks were looked at first"
        said = self.words(task) if found.reason is None else f"FAILED: {found.reason}"
        if not self.pool.shows:
            print(f"[{self.pace.after(len(self.ended))}] {task.title}: {said}", flush=True)

    def _say_if_shown(self, task: Task, said: str) -> None:
        """What happens to a task, above the output of its run."""
        if self.pool.shows:
            place = f"[{list(self.known).index(task.key) + 1}/{self.total or len(self.known)}]"
            print(f"{place} {task.title}{said and f': {said}'}", flush=True)


class Pace:
    """How far the work is, and how long the rest takes at the pace since it began."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done_before, self.began = total, done, time.monotonic()

    def after(self, done: int) -> str:
        """In words, once so many pieces are done."""
        new, left = done - self.done_before, self.total - done
        if new < 1 or left < 1:
            return f"{done} of {self.total}"
        return f"{done} of {self.total}, {duration((time.monotonic() - self.began) / new * left)} left"


@dataclass
class InThisProcess(Pool):
    """Runs one task after the other in this process; an exception of a run ends them all.

    Saves some 8 seconds a task, which Python and its libraries take to start, and keeps memory that is not given back.

    Attributes:
        hear: What is told each line that a run prints, which then goes to its `LOG_FILE`; None leaves the output on the
            terminal.
        phase: What is told each task as it begins.
    """

    hear: Callable[[str], None] | None = None
    phase: Callable[[Task], None] = lambda task: None

    @property
    def shows(self) -> bool:  # type: ignore[override]
        """Whether the output of the runs is on the terminal."""
        return self.hear is None

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Runs a task."""
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
        end(task, folder, Outcome(), 0)
        return _Ended(Outcome())


def _terminal_handlers() -> list[logging.StreamHandler[Any]]:
    """Lightning's handlers of the logging module, which hold the terminal whatever standard output is."""
    names = ("", "lightning", "lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [one for one in handlers if isinstance(one, logging.StreamHandler) and one.stream is sys.__stderr__]


class _Log(io.TextIOBase):
    """A file to which a run prints; every whole line is also told to somebody.

    The file is opened anew each time: what keeps hold of this after the run, such as a handler of the logging module,
    finds nothing closed.
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
    """Runs each task in a process of its own on this machine, which ends together with this one.

    A crash, or memory that is not given back, stays the run's own.

    Attributes:
        workers: Number of runs at a time. They share the CPU cores, unless OMP_NUM_THREADS says otherwise.
        gpus: Numbers of GPUs, of which each run gets one, by turns; empty if each sees them all.
        shows: True if what the runs print is on the terminal.
    """

    workers: int = 1
    gpus: Sequence[str] = ()
    shows: bool = False
    places: dict[int, _Process] = field(default_factory=dict)

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Starts a task on a free place."""
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
        """Asks the runs to write a checkpoint and end; kills what takes longer than `GRACE`, or at an interrupt."""
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
    """A run in a process of its own."""

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
        """Whether its end was noticed."""
        return self.process.returncode is not None

    def poll(self) -> Outcome | None:
        """How it ended."""
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
                return found  # as it was begun: the next command goes on with it
            # Linux counts from what this process had then; the run loads all that is in it, and a model.
            end(self.task, self.folder, found, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return found

    def ask_to_end(self) -> None:
        """Has it end where the next command can go on; `sga.experiments.fit` listens."""
        assert self.process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # it is ending
            os.write(self.process.stdin.fileno(), b"end\n")

    def stop(self) -> None:
        """Ends it at once."""
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
    """A reason for people from an exit code and the end of a log, if there is one."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    if log is None or not log.is_file():
        return f"exit code {code}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output")
    return f"{said.removeprefix('sga: error: ')[:400]} (exit code {code})"


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, as an interrupt."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
