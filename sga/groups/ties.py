"""The order of equally near retain records, which differs from forget record to forget record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sga.data.records import Record
from sga.groups.group import record_hash
from sga.groups.search import Keys, Ties


def tie_order(forget: Sequence[Record], pool: Sequence[Record], seed: int) -> Ties:
    """Keys made of the records' texts and a seed, so that the order of the files does not count.

    Of ten questions "What is the capital of …?" all retained capitals are equally near: by file order, every one of
    them would get the first capital's record and answer.
    """
    keys = np.random.default_rng([seed, 0x71E5]).integers(2**64, size=1, dtype=np.uint64)
    return Ties(_hashes(forget) ^ keys, _hashes(pool))


def _hashes(records: Sequence[Record]) -> Keys:
    return np.array([int(record_hash(record), 16) for record in records], dtype=np.uint64)
