"""Order of equally near retain records, which differs from forget record to forget record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sga.data.records import Record
from sga.groups.group import record_hash
from sga.groups.search import Keys, Ties


def tie_order(forget: Sequence[Record], pool: Sequence[Record]) -> Ties:
    """Order of ties from the records' texts alone, independent of the order of files and of a run's seed.

    For ten questions "What is the capital of …?" all retained capitals are equally near: in file order, every one of
    them would get the first capital's record and answer.
    """
    return Ties(_hashes(forget), _hashes(pool))


def _hashes(records: Sequence[Record]) -> Keys:
    return np.array([int(record_hash(record), 16) for record in records], dtype=np.uint64)
