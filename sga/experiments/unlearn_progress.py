"""Progress of `sga unlearn`: one bar with the time left for all runs, or lines where there is no terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sga.evaluation.table import duration
from sga.experiments.task import Task

_STEP = re.compile(r"step (\d+) of (\d+), .*?(?:, about (.* left))?$")
_TIME = re.compile(r"(?:(\d+) h )?(?:(\d+) min)?(?:(\d+) s)? left")
_EVERY = 1.0
"""Seconds between two lines at least."""


class WholeProgress(Progress):
    """One bar over evaluation, training, export and the evaluation of what was exported.

    The share that is done is the time so far over that and the time left. That is what training says of itself and, for
    the exported model, the seconds that the starting model's evaluation took; the bar only moves to and fro before.

    Args:
        console: Console that it is drawn on; None takes standard output. Without a terminal each step is a line.
        clock: Function that gives the seconds of a clock that only goes forward.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # Standard output as it is now: runs have another, their log.
        console = console or Console(file=sys.stdout)
        self._began = self._phase_began = self._last_line = clock()
        self._last_step = ""
        self._evaluates = False
        self._evaluation: float | None = None
        self._ends: float | None = None
        self._task: TaskID | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        super().__init__(*columns, console=console, transient=True, get_time=clock, disable=not console.is_terminal)

    @property
    def left(self) -> float | None:
        """Seconds that are left of all; None before that can be told."""
        return None if self._ends is None else max(0.0, self._ends - self.get_time())

    def phase(self, task: Task) -> None:
        """Begins one of the three runs; those that are finished already do not begin."""
        now = self.get_time()
        if self._task is None:
            self._began, self._task = now, self.add_task("", total=None, left="")
        if task.verb == "fit" and self._evaluates:
            self._evaluation = now - self._phase_began
        elif task.verb != "fit":
            self._ends = None if self._evaluation is None else now + self._evaluation
        self._phase_began, self._evaluates = now, task.verb != "fit"
        if self.disable:
            self.console.print(f"    {task.title} …", highlight=False)
        self.update(self._task, description=task.title)

    def hear(self, line: str) -> None:
        """Takes a line that a run prints."""
        found = _STEP.match(line)
        if found is None or found[1] == "0":
            return
        seconds = _seconds(found[3])
        if seconds is not None:
            self._ends = self.get_time() + seconds + (self._evaluation or 0.0)
        # After a step and its evaluation the run prints a line each.
        if self.disable and found[1] != self._last_step and self.get_time() - self._last_line > _EVERY:
            self._last_line, self._last_step = self.get_time(), found[1]
            left = f", about {found[3]}" if found[3] else ""
            self.console.print(f"    step {found[1]} of {found[2]}{left}", highlight=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, brought up to date whenever it is drawn."""
        if self._task is not None and self.left is not None:
            done = self.get_time() - self._began
            left = f"about {duration(self.left)} left"
            self.update(self._task, completed=done, total=max(done + self.left, 1e-9), left=left)
        yield from super().get_renderables()


def _seconds(words: str | None) -> float | None:
    """Seconds of a duration in words, as `duration` writes it.

    >>> _seconds("41 s left"), _seconds("2 h 5 min left"), _seconds(None)
    (41.0, 7500.0, None)
    """
    found = None if words is None else _TIME.fullmatch(words)
    if found is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(hours * 3600 + minutes * 60 + seconds)
