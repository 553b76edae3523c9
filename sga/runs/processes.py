"""Supervision of the processes of one machine: they end together, and report which one failed first and how.

Lightning's launcher starts the other processes from the first one, and kills all within seconds when one of the others
has failed. It does not end others that wait for a first process that has failed or was killed; this module does.
torchrun and SLURM have means of their own (docs/many-devices.md).
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

FIRST = "SGA_FIRST_PROCESS"
"""Environment variable with the id of the first process, which starts the others."""
GRACE = 10.0
"""Seconds that the others have to end by themselves and to report why, once the first process has ended."""


@contextmanager
def end_together(trainer: pl.Trainer) -> Iterator[None]:
    """Context in which a failure in one of the processes that Lightning's launcher has started ends all of them.

    The first process waits `GRACE` seconds for the others to end (after a failure, once its error has been shown), then
    kills them. Each of the others ends when the first one is gone.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        over = threading.Event()
        first = os.environ.get(FIRST)
        if first is not None and os.environ.get("LOCAL_RANK", "0") != "0":
            _end_with(int(first), over)
        try:
            yield
        finally:
            over.set()
        return
    os.environ[FIRST] = str(os.getpid())  # before others are started, for them to read
    try:
        yield
    except BaseException:
        atexit.register(_end, launcher.procs)  # after the error has been shown
        raise
    _end(launcher.procs)


def _end_with(first: int, over: threading.Event) -> None:
    """Until `over` is set, ends this process as soon as its parent is no longer `first`, even while it is blocked."""
    if sys.platform == "win32":  # there getppid still names a dead parent
        return

    def watch() -> None:
        while os.getppid() == first:
            if over.wait(1):
                return
        print(
            f"sga: process {os.environ['LOCAL_RANK']}: the first process is gone, so this one ends",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the first process").start()


def _end(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for the other processes, kills those that do not end, and reports how those that failed first ended."""
    deadline = time.monotonic() + GRACE
    for rank, process in enumerate(others, start=1):
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"sga: process {rank} did not end by itself and was killed", file=sys.stderr)
            continue
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", for lack of memory perhaps" if name == "SIGKILL" else ""
            print(f"sga: process {rank} was ended by {name}{hint}", file=sys.stderr)
        elif code > 0:
            print(f"sga: process {rank} ended with code {code}", file=sys.stderr)
