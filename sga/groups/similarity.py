"""Similarity of normal samples to their forget samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sga.data.records import Record
from sga.groups.embedders import TFIDF
from sga.groups.group import Group


def similarity_of_normals(groups: Sequence[Group], pool: Sequence[Record], rows: int = 5000) -> float | None:
    """Mean TF-IDF cosine of forget samples and their normals, which makes pairings by any embedder comparable.

    Args:
        groups: Groups of forget samples with their normals.
        pool: Retain records for the document frequencies.
        rows: Largest number of pool records to use, evenly spaced.

    Returns:
        Mean cosine in [0, 1]; None if there is no normal, or the pool has no word.
    """
    pairs = [(group.forget, normal) for group in groups for normal in group.normals]
    some = pool if len(pool) <= rows else [pool[index * len(pool) // rows] for index in range(rows)]
    if not pairs or not any(re.search(r"\w\w", f"{record.question} {record.answer}") for record in some):
        return None
    embed = TFIDF().fitted([(record.question, record.answer) for record in some])
    one, other = (embed([(pair[side].question, pair[side].answer) for pair in pairs]) for side in (0, 1))
    return float(one.multiply(other).sum() / len(pairs))
