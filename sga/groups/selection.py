"""Selection of normals among a forget sample's candidates, with diversity and a cap on reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Similarity = Callable[[int, Sequence[int]], Any]
"""Function from a pool index and several others to the similarity with each of them."""


def select(
    candidates: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]],
    count: int,
    diversity: float = 0.0,
    max_reuse: int | None = None,
    similarity: Similarity | None = None,
    apart: Similarity | None = None,
) -> list[list[int]]:
    """Selects at most `count` candidates for each forget sample; returns their positions in the order of choice.

    Every forget sample chooses one per round, so that a cap on reuse does not leave the worst to the last ones. With
    diversity d the choice is by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998):
    (1 − d)·score − d·(largest similarity to the chosen ones); ties go to the earlier candidate.

    Args:
        candidates: Pool indices for each forget sample, best first.
        scores: Similarity of each candidate to its forget sample.
        count: Number of normals for each forget sample.
        diversity: Weight d in [0, 1]; 0 takes the nearest.
        max_reuse: Largest number of forget samples that may share a pool record; None for any number.
        similarity: Similarity between pool records; needed for diversity above 0.
        apart: True for each other pool record that a record may share a group with; None allows all.
    """
    chosen: list[list[int]] = [[] for _ in candidates]
    closest = [np.full(len(one), -np.inf) for one in candidates]  # largest similarity to a chosen one
    free = [np.ones(len(one), dtype=bool) for one in candidates]
    uses: Counter[int] = Counter()
    for _ in range(count):
        for row, indices in enumerate(candidates):
            open_ = [place for place in np.flatnonzero(free[row]).tolist()
                     if max_reuse is None or uses[indices[place]] < max_reuse]  # fmt: skip
            if not open_:
                continue
            if diversity and chosen[row]:
                values = [(1 - diversity) * scores[row][place] - diversity * closest[row][place] for place in open_]
                place = open_[int(np.argmax(values))]
            else:
                place = open_[0]
            chosen[row].append(place)
            free[row][place] = False
            uses[indices[place]] += 1
            if apart is not None:
                free[row] &= apart(indices[place], indices)
            if diversity:
                assert similarity is not None, "there is something to compare"
                closest[row] = np.maximum(closest[row], similarity(indices[place], indices))
    return chosen
