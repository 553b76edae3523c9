"""Progress of attacks: lines with the time left in a log file, one bar in a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from sga.attacks.progress import AttackProgress


class Clock:
    """A clock that goes forward when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_gets_a_line_for_each_part_with_the_time_left() -> None:
    said: list[str] = []
    clock = Clock()
    progress = AttackProgress(said.append, Console(file=StringIO()), clock)
    with progress, progress.measurement("unlearned mine: sampling") as tick:
        clock.now = 30.0  # loading, which the time left knows nothing of
        tick(4, 40)
        clock.now = 40.0
        tick(8, 40)
        clock.now = 60.0
        tick(40, 40)
    assert said == [
        "    unlearned mine: sampling: 4 of 40",
        "    unlearned mine: sampling: 8 of 40, about 80 s left",
        "    unlearned mine: sampling: 40 of 40",
        "  unlearned mine: sampling, 60 s",
    ]


def test_where_nobody_knows_how_many_there_are_only_the_number_is_said() -> None:
    said: list[str] = []
    progress = AttackProgress(said.append, Console(file=StringIO()), Clock())
    with progress.measurement("strength") as tick:
        tick(3, None)
    assert said[0] == "    strength: 3"


def test_a_terminal_gets_one_bar_and_a_line_for_each_measurement() -> None:
    shown = StringIO()
    said: list[str] = []
    clock = Clock()
    console = Console(file=shown, force_terminal=True, width=80)
    with AttackProgress(said.append, console, clock) as progress:
        progress.attack(3, 9)
        with progress.measurement("unlearned mine: sampling") as tick:
            for done in (4, 8, 12):
                clock.now += 10.0
                tick(done, 40)
            progress.refresh()
            assert len(progress.tasks) == 1
        assert progress.tasks == []
    drawn = shown.getvalue()
    assert "3/9 unlearned mine: sampling" in drawn and "12/40" in drawn and "0:01:10" in drawn
    assert said == ["  unlearned mine: sampling, 30 s"]


def test_a_measurement_that_fails_is_taken_off_the_bar_and_not_said_to_be_done() -> None:
    said: list[str] = []
    progress = AttackProgress(said.append, Console(file=StringIO()), Clock())
    with pytest.raises(RuntimeError), progress.measurement("nf4"):
        raise RuntimeError("no room")
    assert said == [] and progress.tasks == []
