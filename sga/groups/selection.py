"""Which of a forget sample's candidates become its normals: diversity, and a cap on reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Similarity = Callable[[int, Sequence[int]], Any]
"""What one pool record has with each of several, by their indices."""


def select(
    candidates: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]],
    count: int,
    diversity: float = 0.0,
    max_reuse: int | None = None,
    similarity: Similarity | None = None,
    apart: Similarity | None = None,
) -> list[list[int]]:
    """Positions, within each list of candidates, of at most `count` chosen ones, in the order of choice.

    In each round every forget sample chooses one, so that a cap does not leave the worst to those that stand last.
    With diversity d the choice is by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998):
    (1 − d)·score − d·(largest similarity to what is chosen already); of equals the earlier candidate.

    Args:
        candidates: Pool indices for each forget sample, best first.
        scores: Their similarities to it.
        count: Normals for each forget sample.
        diversity: d in [0, 1]; 0 takes the nearest.
        max_reuse: How many forget samples may share a pool record; None for any number.
        similarity: Between pool records; needed for diversity.
        apart: Whether a pool record differs enough from others to stand in a group with them; None lets all stand.
    """
    chosen: list[list[int]] = [[] for _ in candidates]
    closest = [np.full(len(one), -np.inf) for one in candidates]  # to what is chosen already
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
