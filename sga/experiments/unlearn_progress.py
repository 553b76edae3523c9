"""Progress of `sga unlearn`: one bar with the time left for all runs, or lines where there is no terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sga.evaluation.table import duration
from sga.experiments.task import Task

_STEP = re.compile(r"step (\d+) of (\d+), .*?(?:, about (.* left))?$")
_TIME = re.compile(r"(?:(\d+) h )?(?:(\d+) min)?(?:(\d+) s)? left")
_EVERY = 1.0
"""Seconds between two lines at least."""


class _Bar(Progress):
    """A bar that is brought up to date whenever it is drawn."""

    draw: Callable[[], None] = staticmethod(lambda: None)

    def get_renderables(self) -> Iterable[RenderableType]:
        self.draw()
        yield from super().get_renderables()


class WholeProgress:
    """One bar over evaluation, training, export and the evaluation of what was exported.

    The share that is done is the time so far over that and the time left. That is what training says of itself and, for
    the exported model, the seconds that the starting model's evaluation took; the bar only moves to and fro before.

    Args:
        console: Console that it is drawn on; None takes standard output. Without a terminal each step is a line.
        clock: Function that gives the seconds of a clock that only goes forward.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # Standard output as it is now: runs have another, their log.
        self._console = console or Console(file=sys.stdout)
        self._clock = clock
        self._began = self._phase_began = self._last_line = clock()
        self._evaluates = False
        self._evaluation: float | None = None
        self._ends: float | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self._bar = _Bar(*columns, console=self._console, transient=True, get_time=clock)
        self._bar.draw = self._draw
        self._task: TaskID | None = None

    def __enter__(self) -> WholeProgress:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def left(self) -> float | None:
        """Seconds that are left of all; None before that can be told."""
        return None if self._ends is None else max(0.0, self._ends - self._clock())

    def phase(self, task: Task) -> None:
        """Begins one of the three runs; those that are finished already do not begin."""
        now = self._clock()
        if self._task is None:
            self._began, self._task = now, self._bar.add_task("", total=None, left="")
        if task.verb == "fit" and self._evaluates:
            self._evaluation = now - self._phase_began
        elif task.verb != "fit":
            self._ends = None if self._evaluation is None else now + self._evaluation
        self._phase_began, self._evaluates = now, task.verb != "fit"
        self._bar.update(self._task, description=task.title)

    def hear(self, line: str) -> None:
        """Takes a line that a run prints."""
        found = _STEP.match(line)
        if found is None or found[1] == "0":
            return
        seconds = _seconds(found[3])
        if seconds is not None:
            self._ends = self._clock() + seconds + (self._evaluation or 0.0)
        if not self._console.is_terminal and self._clock() - self._last_line > _EVERY:
            self._last_line = self._clock()
            left = f", about {found[3]}" if found[3] else ""
            self._console.print(f"    step {found[1]} of {found[2]}{left}", highlight=False)

    def _draw(self) -> None:
        if self._task is None or self.left is None:
            return
        done = self._clock() - self._began
        self._bar.update(
            self._task, completed=done, total=max(done + self.left, 1e-9), left=f"about {duration(self.left)} left"
        )


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
