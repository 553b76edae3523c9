"""Roles of the sequences of a group."""

from __future__ import annotations

from collections.abc import Iterable

FORGET, NORMAL, ALTERNATIVE, RETAIN = "forget", "normal", "alternative", "retain"
"""Roles of a group's sequences: the forget sample, its normal samples, other answers to its question, and random
retain samples. Alternatives may be trained on as a second kind of normal samples."""


def columns_of(present: Iterable[str], roles: Iterable[str]) -> list[int]:
    """Indices of the columns that have one of `roles`."""
    wanted = set(roles)
    return [column for column, role in enumerate(present) if role in wanted]
