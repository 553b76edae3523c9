"""Exceptions that the command line turns into one readable line, and checks that raise them."""

from __future__ import annotations

import math


class UserError(ValueError):
    """Wrong input, said so that it can be mended: what is wrong, where, and how to put it right.

    The command line prints the message without a traceback and exits with code 2 (set SGA_TRACEBACK=1 to see where it
    was raised). Everything else that is raised is a defect of this package, but for what stands below and for what the
    operating system refuses (a full disk, say), which ends in exit code 1.
    """


def check_numbers(
    at_least: float | None = None,
    at_most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    **numbers: float | None,
) -> None:
    """Refuses numbers that are outside a range, NaN included; None, a setting that is left out, passes.

    >>> check_numbers(above=0, at_most=1, share=1.0)

    Args:
        at_least: Lowest allowed number.
        at_most: Highest allowed number.
        above: Number that they must exceed.
        below: Number that they must not reach.
        numbers: Values by the name of their setting.

    Raises:
        UserError: one is outside; names it, the range and the value.
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    if at_least is not None and at_most is not None:
        words = f"in [{at_least:g}, {at_most:g}]"
    for name, value in numbers.items():
        if value is not None and not (
            (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        ):
            raise UserError(f"{name} must be {words}, got {value}")


def check_finite(at_least: float | None = None, *, above: float | None = None, **numbers: float | None) -> None:
    """Refuses what is no finite number, `at_least` or `above` another; None, a setting that is left out, passes.

    Raises:
        UserError: one is not; names it, the rule and the value.
    """
    rule = "" if at_least is None else f" of at least {at_least:g}"
    rule += "" if above is None else f" above {above:g}"
    low = max(-math.inf if limit is None else limit for limit in (at_least, above))
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value >= low and value != above):
            raise UserError(f"{name} must be a finite number{rule}, got {value}")


class StoppedError(RuntimeError):
    """A run that cannot go on, though nothing was wrong with what it was given. Exit code 1.

    Attributes:
        kept: Which weights are left, and where; a sentence, or empty where nobody has said.
    """

    kept = ""

    def __str__(self) -> str:
        return f"{super().__str__()}. {self.kept}" if self.kept else super().__str__()


class DivergenceError(StoppedError):
    """The loss or a gradient is no longer a number; training on would destroy the weights."""


class Interruption(Exception):
    """A signal ended a run, which can go on. Exit code 128 plus the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
