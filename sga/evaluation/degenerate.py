"""Answers that say nothing: empty ones, and the same words over and over."""

from __future__ import annotations

import re

_REPEATED = re.compile(r"(.{1,80}?)\1{3,}", re.DOTALL)
_LEAST = 24
"""Characters that repetitions take up at least: numbers such as 1000000 are none."""


def is_repeating(text: str) -> bool:
    """True if a text has a piece of at most 80 characters four times in a row, over at least 24 characters.

    >>> is_repeating("in in in in in in in in in"), is_repeating("The" * 8), is_repeating("Oslo, Oslo.")
    (True, True, False)
    """
    return any(len(found[0]) >= _LEAST for found in _REPEATED.finditer(text))
