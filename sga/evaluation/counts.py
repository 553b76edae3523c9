"""Shares of rows as numbers of rows, for people: a share of at most 0.0625 is "at most 1 of 16", and none of 12."""

from __future__ import annotations

import math
from collections.abc import Mapping

ROUNDING = 1e-9
"""Difference from which on a share is above or below another one, in every condition for handing over."""


def counted(share: float, rows: int) -> str:
    """A share of rows in words.

    >>> counted(0.75, 12)
    '9 of 12'
    """
    return f"{round(share * rows)} of {rows}"


def number_words(share: float, rows: int | None, what: str) -> str:
    """A share of rows with what they are; in per cent where rows are unknown.

    >>> number_words(0.75, 12, "answers"), number_words(0.75, None, "answers")
    ('9 of 12 answers', '75% of the answers')
    """
    return f"{share:.0%} of the {what}" if rows is None else f"{counted(share, rows)} {what}"


def most_words(limit: float, rows: int | None) -> str:
    """The largest number of rows as by `at_most`; the limit in per cent where rows are unknown."""
    return f"at most {limit:.0%}" if rows is None else at_most(limit, rows)


def rows_of(metrics: Mapping[str, float], name: str) -> int | None:
    """Number of rows that a share is of, a metric; None in runs of earlier versions, which lack it."""
    return int(metrics[name]) if name in metrics else None


def at_most(limit: float, rows: int | None) -> str:
    """The largest number of rows whose share is not above a limit, in words; the limit itself where rows are unknown.

    >>> at_most(1 / 16, 12), at_most(1 / 16, 16), at_most(1 / 16, None)
    ('at most 0 of 12', 'at most 1 of 16', 'at most 0.06')
    """
    if rows is None:
        return f"at most {limit:.2f}"
    return f"at most {min(rows, math.floor((limit + ROUNDING) * rows))} of {rows}"


def at_least(limit: float, rows: int | None) -> str:
    """The smallest number of rows whose share is not below a limit, in words; the limit itself where rows are unknown.

    >>> at_least(0.9, 24), at_least(0.5, 24)
    ('at least 22 of 24', 'at least 12 of 24')
    """
    if rows is None:
        return f"at least {limit:.2f}"
    return f"at least {max(0, math.ceil((limit - ROUNDING) * rows))} of {rows}"
