"""Parts of a set of records: folds, and evenly spaced rows."""

from __future__ import annotations

from collections.abc import Sequence

from sga.data.records import Record
from sga.errors import UserError


def in_folds(records: Sequence[Record], folds: int, wanted: Sequence[int]) -> tuple[Record, ...]:
    """Records of the wanted folds, in order; fold k of n has the records from (k−1)·N/n up to k·N/n, rounded down.

    >>> records = [Record(str(number), "", "text") for number in range(5)]
    >>> [record.id for record in in_folds(records, 2, [2])]
    ['2', '3', '4']

    Raises:
        UserError: there are fewer records than folds.
    """
    if len(records) < folds:
        raise UserError(f"{len(records)} forget records cannot be cut into {folds} folds; lower --data.folds")
    ends = [number * len(records) // folds for number in range(folds + 1)]
    return tuple(record for fold in sorted(wanted) for record in records[ends[fold - 1] : ends[fold]])


def evenly(records: Sequence[Record], limit: int | None) -> tuple[Record, ...]:
    """At most `limit` records, evenly spaced, the first one included."""
    if limit is None or len(records) <= limit:
        return tuple(records)
    return tuple(records[index * len(records) // limit] for index in range(limit))
