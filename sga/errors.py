"""Exceptions that the command line prints as one readable line, and checks that raise them."""

from __future__ import annotations

import math


class UserError(ValueError):
    """Error in the user's input; the message says what is wrong, where, and how to mend it.

    The command line prints the message without a traceback and exits with code 2 (set SGA_TRACEBACK=1 to see where it
    was raised). The exceptions below have their own exit codes, and errors of the operating system (a full disk, for
    instance) exit with code 1. Any other exception is a defect of this package.
    """


def check_numbers(
    at_least: float | None = None,
    at_most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    **numbers: float | None,
) -> None:
    """Refuses numbers outside a range, and NaN; None, for a setting that is left out, passes.

    >>> check_numbers(above=0, at_most=1, share=1.0)

    Args:
        at_least: Lower bound, itself allowed; None for none.
        at_most: Upper bound, itself allowed; None for none.
        above: Lower bound, itself excluded; None for none.
        below: Upper bound, itself excluded; None for none.
        numbers: Values to check, by the name of their setting.

    Raises:
        UserError: a number is outside; names the setting, the range and the value.
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
    """Refuses numbers that are not finite, or below the bound `at_least` or `above`; None passes.

    Raises:
        UserError: a number is refused; names the setting, the rule and the value.
    """
    rule = "" if at_least is None else f" of at least {at_least:g}"
    rule += "" if above is None else f" above {above:g}"
    low = max(-math.inf if limit is None else limit for limit in (at_least, above))
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value >= low and value != above):
            raise UserError(f"{name} must be a finite number{rule}, got {value}")


class StoppedError(RuntimeError):
    """Error of a run that cannot continue although its input was right. Exit code 1.

    Attributes:
        kept: Sentence on which weights are saved, and where; empty if unknown.
    """

    kept = ""

    def __str__(self) -> str:
        return f"{super().__str__()}. {self.kept}" if self.kept else super().__str__()


class DivergenceError(StoppedError):
    """Error of a loss or gradient that is NaN or infinite; further training would destroy the weights."""


class Interruption(Exception):
    """End of a run by a signal, from which it can be resumed. Exit code 128 plus the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
