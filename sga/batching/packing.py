"""Where the sequences of a batch stand in what a model reads: one a row, or several to a row, one after the other.

Rows of one sequence each are as long as the longest, and on question-answer data about half of them is padding. Packed
rows have next to none: positions start again with every sequence, and no token sees another sequence's. A model finds
that out from the positions; whether it does is tried out before training, see `sga.likelihood.tryouts.packed_options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sga.batching.batch import Batch

MULTIPLE = 8
"""Rows are filled up to a multiple of so many tokens: matrix units are faster on whole tiles."""


@dataclass(frozen=True)
class Layout:
    """What a model reads of a batch.

    Attributes:
        arguments: Of the forward pass: ``input_ids`` [R, T] and whatever says which token sees which.
        predicting: [M], the place in the flattened [R·T] from which each answer token is predicted, in the batch's
            reading order.
        answers: [M], the places of the answer tokens themselves.
    """

    arguments: dict[str, Tensor]
    predicting: Tensor
    answers: Tensor


def padded(batch: Batch) -> Layout:
    """One sequence a row, as the batch has them."""
    places = batch.answer_mask.flatten().nonzero()[:, 0]  # column 0 is never an answer token
    return Layout({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, places - 1, places)


def packed(batch: Batch, hidden_size: int | None = None, room: int = 0) -> Layout:
    """Several sequences to a row.

    Args:
        batch: B groups of K sequences.
        hidden_size: Of a model that makes a mask of whole rows. Longer rows leave less room unused, and have more
            pairs of tokens to look at; how long they are follows from both, see `row_cost`.
        room: Most tokens of a row, where that is more than the longest sequence has; without `hidden_size`.
    """
    lengths = batch.attention_mask.sum(dim=1).tolist()
    longest = max(lengths)
    rooms = [max(room, longest)] if hidden_size is None else [longest * quarters // 4 for quarters in (4, 5, 6, 8, 12)]
    tried = [first_fit(lengths, size) for size in rooms]
    rows = min(tried, key=lambda rows: row_cost(len(rows), _width(rows, lengths), hidden_size or 0))
    width = _width(rows, lengths)
    source = np.zeros((len(rows), width), dtype=np.int64)  # place of each token in the batch, flattened
    positions = np.zeros_like(source)
    begins = np.zeros(len(lengths), dtype=np.int64)  # place of each sequence's first token in the rows, flattened
    for number, row in enumerate(rows):
        end = 0
        for index in row:
            start, end = end, end + lengths[index]
            begins[index] = number * width + start
            source[number, start:end] = np.arange(lengths[index]) + index * batch.input_ids.shape[1]
            positions[number, start:end] = np.arange(lengths[index])
        positions[number, end:] = np.arange(width - end)  # what fills the row up is a sequence that nobody reads
    device = batch.input_ids.device
    order, place = batch.answer_mask.nonzero().unbind(dim=1)
    answers = torch.from_numpy(begins).to(device)[order] + place  # [M]
    arguments = {
        "input_ids": batch.input_ids.flatten()[torch.from_numpy(source).to(device)],  # [B*K*T] -> [R, T]
        "position_ids": torch.from_numpy(positions).to(device),
    }
    return Layout(arguments, answers - 1, answers)


def _width(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    longest = max(sum(lengths[index] for index in row) for row in rows)
    return -(-longest // MULTIPLE) * MULTIPLE


def row_cost(rows: int, width: int, hidden_size: int) -> int:
    """Operations of a transformer block on so many rows, in units of 4·H.

    24·H² for a token's matrix products and 4·H for each token that it could see (Kaplan et al., arXiv 2001.08361,
    table 1, with an inner size of 4·H).

    >>> row_cost(rows=10, width=200, hidden_size=768) > row_cost(rows=4, width=400, hidden_size=768)
    True
    """
    return rows * width * (6 * hidden_size + width)


def visible(position_ids: Tensor) -> Tensor:
    """Which tokens each token of packed rows sees: its own sequence's up to itself, [R, T] -> [R, T, T].

    >>> visible(torch.tensor([[0, 1, 0]])).int().tolist()
    [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]
    """
    sequence = (position_ids == 0).cumsum(dim=1)  # [R, T]
    return (sequence[:, :, None] == sequence[:, None, :]).tril()


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Deals things to bins: the longest first, each to the first bin that has room for it.

    Needs at most 11/9 of the fewest possible bins and one more (Johnson, 1973).

    >>> first_fit([5, 9, 4, 1], room=10)
    [[1, 3], [0, 2]]
    """
    bins: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = next((place for place, free in enumerate(left) if free >= lengths[index]), None)
        if place is None:
            bins.append([index])
            left.append(room - lengths[index])
        else:
            bins[place].append(index)
            left[place] -= lengths[index]
    return bins
