"""Progress of attacks: one bar in a terminal, a line for each step of long work in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sga.evaluation.table import duration

Tick = Callable[[int, int | None], None]
"""Takes the number of parts that are done and the number of all; None where nobody knows how many there will be."""


class AttackProgress(Progress):
    """Display of the measurement under way, with the time that is left of it.

    Args:
        say: Function that takes each finished line.
        console: Console of the bar; None takes standard output. Where that is no terminal, each part is a line.
        clock: Clock in seconds that only goes forward.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = console or Console(file=sys.stdout)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, get_time=clock, disable=not console.is_terminal)
        self.say, self._place = say, ""

    def attack(self, number: int, total: int) -> None:
        """Notes which attack begins, of how many."""
        self._place = f"{number}/{total} "

    @contextmanager
    def measurement(self, what: str) -> Iterator[Tick]:
        """Shows one measurement while it is made; the yielded function takes how far it is."""
        task = self.add_task(self._place + what, total=None)
        begun = self.get_time()
        first: list[tuple[float, int]] = []  # time and number of the first part, which includes loading

        def tick(done: int, total: int | None) -> None:
            self.update(task, completed=done, total=total)
            first.append((self.get_time(), done))
            parts, left = done - first[0][1], ""
            if parts and total is not None and done < total:
                seconds = (self.get_time() - first[0][0]) / parts * (total - done)
                left = f", about {duration(seconds)} left"
            if self.disable:
                self.say(f"    {what}: {done}{'' if total is None else f' of {total}'}{left}")

        try:
            yield tick
        finally:
            self.remove_task(task)
        self.say(f"  {what}, {duration(self.get_time() - begun)}")
