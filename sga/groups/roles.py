"""Roles of the sequences of a group."""

from __future__ import annotations

from collections.abc import Iterable

FORGET, NORMAL, ALTERNATIVE, RETAIN = "forget", "normal", "alternative", "retain"
"""Roles of a group's sequences: the sample to forget, its normal samples, another answer to its question, and retain
samples drawn at random. Alternatives that are trained on are normals of a second kind."""


def columns_of(present: Iterable[str], roles: Iterable[str]) -> list[int]:
    """Places of the columns that have one of `roles`."""
    wanted = set(roles)
    return [column for column, role in enumerate(present) if role in wanted]
