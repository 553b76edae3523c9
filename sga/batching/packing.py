"""Where the sequences of a batch stand in what a model reads: one a row, or several to a row, one after the other.

Rows of one sequence each are as long as the longest, and on question-answer data about half of them is padding. Packed
rows have next to none: positions start again with every sequence, and no token sees another sequence's. A model finds
that out from the positions; whether it does is tried out before training, see `sga.likelihood.tryouts.packed_options`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        rows: [M], the sequence of the batch that each belongs to; rising.
        targets: [M], the answer tokens.
    """

    arguments: dict[str, Any]
    predicting: Tensor
    answers: Tensor
    rows: Tensor
    targets: Tensor


def padded(batch: Batch) -> Layout:
    """One sequence a row, as the batch has them."""
    width = batch.input_ids.shape[1]
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return _layout(batch, arguments, np.arange(len(batch.input_ids)) * width)


def _layout(batch: Batch, arguments: dict[str, Any], begins: NDArray[np.int64]) -> Layout:
    """The layout in which the batch's sequences begin at some places of the flattened rows."""
    rows, places = batch.answer_places()
    answers = begins[rows] + places  # a sequence's first token is never an answer token
    width = batch.input_ids.shape[1]
    moved = to_device(np.stack([answers - 1, answers, rows, rows * width + places]), batch.input_ids.device)
    return Layout(arguments, moved[0], moved[1], moved[2], batch.input_ids.flatten()[moved[3]])


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on a device, for which a GPU is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def packed(batch: Batch, hidden_size: int | None = None, room: int = 0, by_length: bool = False) -> Layout:
    """Several sequences to a row.

    Args:
        batch: B groups of K sequences.
        hidden_size: Of a model that makes a mask of whole rows. Longer rows leave less room unused, and have more
            pairs of tokens to look at; how long they are follows from both, see `row_cost`.
        room: Most tokens of a row, where that is more than the longest sequence has; without `hidden_size`.
        by_length: True if all go in one row, of which attention is told the lengths, see `sga.models.attention`.
    """
    lengths = batch.lengths
    if by_length:
        hidden_size, room = None, sum(lengths)
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
    moved = to_device(np.stack([source, positions]), device)
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids.flatten()[moved[0]],  # [B*K*T] -> [R, T]
        "position_ids": moved[1],
    }
    if by_length:
        arguments |= _lengths(sorted({*begins.tolist(), sum(lengths), width}), max(lengths), device)
    return _layout(batch, arguments, begins)


def _lengths(begins: Sequence[int], longest: int, device: torch.device) -> dict[str, Any]:
    """What attention by length is told of a row; transformers' names.

    The mask is one that nothing may look at: a layer that does, because lengths do not reach it, says nothing but NaN.
    """
    starts = to_device(np.array(begins, dtype=np.int32), device)
    # Blocks of the kernel's grid: a power of two, so that compiled code does not depend on every batch's own.
    most = max(64, 1 << (longest - 1).bit_length())
    return {
        "attention_mask": torch.full((1, 1, 1, 1), math.nan, device=device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": most,
        "max_length_k": most,
    }


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
