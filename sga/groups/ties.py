"""The order of equally near retain records, which differs from forget record to forget record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sga.data.records import Record
from sga.groups.group import record_hash
from sga.groups.search import Keys, Ties


def tie_order(forget: Sequence[Record], pool: Sequence[Record]) -> Ties:
    """Keys made of the records' texts alone: neither the order of the files nor a run's seed counts.

    Of ten questions "What is the capital of …?" all retained capitals are equally near: by file order, every one of
    them would get the first capital's record and answer.
    """
    return Ties(_hashes(forget), _hashes(pool))


def _hashes(records: Sequence[Record]) -> Keys:
    return np.array([int(record_hash(record), 16) for record in records], dtype=np.uint64)
