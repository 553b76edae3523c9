"""Exact nearest neighbours by cosine, computed in blocks, without the whole [N, M] matrix in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = Any
"""Rows of length 1 (or 0), [N, D]: a float NumPy array, a memory map, or a SciPy CSR matrix."""
Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

Keys: TypeAlias = NDArray[np.uint64]

QUERIES_PER_BLOCK = 256
POOL_PER_BLOCK = 65536
FAISS_FROM = 100_000
"""Number of pool vectors from which on FAISS is used if it is installed."""


@dataclass(frozen=True)
class Ties:
    """Order of equally near pool rows that differs from query to query.

    In the order of the pool, all queries with ties would get the same few rows.

    Attributes:
        queries: Key of each query, [N], uint64.
        pool: Key of each pool row, [M], uint64.
    """

    queries: Keys
    pool: Keys

    def ranks(self, rows: Indices, places: Indices) -> Keys:
        """Hash of each pair of query and pool row, by the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
        mixed: Keys = self.queries[rows] + self.pool[places] * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        ranks: Keys = mixed ^ (mixed >> np.uint64(31))
        return ranks


def nearest(
    queries: Vectors,
    pool: Vectors,
    count: int,
    decimals: int = 6,
    use_faiss: bool | None = None,
    ties: Ties | None = None,
) -> tuple[Floats, Indices]:
    """Finds the `count` pool rows with the largest inner product with each query; ties by pool order or by `ties`.

    Time is O(N·M·D); memory is one block of [256, 65536] products besides the vectors.

    Args:
        queries: Unit vectors of the queries, [N, D].
        pool: Unit vectors of the pool, [M, D], M at least `count`. A memory map is read block by block.
        count: Number of pool rows per query.
        decimals: Number of decimals that similarities are rounded to first, so that values that differ only in the
            order of summation tie.
        use_faiss: True to search with FAISS; None to use it if it is installed, M is large and vectors are dense. FAISS
            makes a copy of the pool, and its choice among ties at the end of a list is not specified.
        ties: Order of ties; None for the order of the pool.

    Returns:
        Similarities, descending, [N, count], and pool indices, [N, count].
    """
    assert 0 < count <= pool.shape[0], "as many pool rows as are asked for"
    if use_faiss is None:
        dense = isinstance(pool, np.ndarray)
        use_faiss = dense and pool.shape[0] >= FAISS_FROM and importlib.util.find_spec("faiss") is not None
    if use_faiss:
        return _faiss_nearest(queries, pool, count, decimals, ties)
    scores = np.empty((queries.shape[0], count))
    indices = np.empty((queries.shape[0], count), dtype=np.int64)
    for start in range(0, queries.shape[0], QUERIES_PER_BLOCK):
        block = slice(start, start + QUERIES_PER_BLOCK)
        scores[block], indices[block] = _nearest_of_block(queries[block], pool, count, decimals, ties, start)
    return scores, indices


def _nearest_of_block(
    queries: Vectors, pool: Vectors, count: int, decimals: int, ties: Ties | None, first_query: int
) -> tuple[Floats, Indices]:
    rows = queries.shape[0]
    best = np.full((rows, count), -np.inf)
    places = np.full((rows, count), -1, dtype=np.int64)
    for start in range(0, pool.shape[0], POOL_PER_BLOCK):
        products = similarities(queries, pool[start : start + POOL_PER_BLOCK], decimals)  # [rows, block]
        # In pool order a later tie with the worst kept score loses, so only larger scores need a look.
        bar = best[:, -1:]
        if start == 0 and products.shape[1] > count:
            bar = np.partition(products, -count, axis=1)[:, [-count]]
        if ties is not None or (start == 0 and products.shape[1] > count):
            bar = np.nextafter(bar, -np.inf)
        row, column = np.nonzero(products > bar)
        if not len(row):
            continue
        every_row = np.concatenate([np.repeat(np.arange(rows), count), row])
        every_score = np.concatenate([best.ravel(), products[row, column]])
        every_place = np.concatenate([places.ravel(), column + start])
        order = np.lexsort((*_tie_order(ties, every_row + first_query, every_place), -every_score, every_row))
        first = np.searchsorted(every_row[order], np.arange(rows))  # each row has at least `count` entries
        kept = order[first[:, None] + np.arange(count)]  # [rows, count]
        best, places = every_score[kept], every_place[kept]
    return best, places


def similarities(queries: Vectors, pool: Vectors, decimals: int = 6) -> Any:
    """Inner products of a block, [N, M], rounded."""
    products = queries @ pool.T
    dense = products if isinstance(products, np.ndarray) else products.toarray()
    return np.round(dense, decimals, out=dense)


def _tie_order(ties: Ties | None, rows: Indices, places: Indices) -> tuple[NDArray[np.generic], ...]:
    """Sort keys of equal scores for lexsort, the most significant one last."""
    return (places,) if ties is None or not places.size else (places, ties.ranks(rows, places))


def _faiss_nearest(
    queries: Vectors, pool: Vectors, count: int, decimals: int, ties: Ties | None
) -> tuple[Floats, Indices]:
    import faiss

    index = faiss.IndexFlatIP(pool.shape[1])
    for start in range(0, pool.shape[0], POOL_PER_BLOCK):
        index.add(np.ascontiguousarray(pool[start : start + POOL_PER_BLOCK], dtype=np.float32))
    found, places = index.search(np.ascontiguousarray(queries, dtype=np.float32), count)
    scores = np.round(found.astype(np.float64), decimals)
    rows = np.broadcast_to(np.arange(places.shape[0])[:, None], places.shape)
    order = np.lexsort((*_tie_order(ties, rows, places), -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1).astype(np.int64)


def unit(vectors: Any) -> Any:
    """Scales dense rows to length 1; rows of zeros stay unchanged."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


Embedding: TypeAlias = Callable[[Sequence[tuple[str, str]]], Vectors]
"""Function from N pairs of question and answer (an empty question: the answer alone) to unit vectors [N, D]."""
