"""Layouts of a batch's sequences in the model's input: one sequence per row, or packed rows of several sequences.

With one sequence per row all rows are as long as the longest, and about half of question-answer data is padding. Packed
rows have almost none: positions restart with every sequence, and tokens do not see other sequences. Many models infer
the latter from the positions; whether a model does is tried out before training, see
`sga.likelihood.tryouts.packed_options`.
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

from sga.batching.batch import Batch, to_device

MULTIPLE = 8
"""Multiple that row lengths are padded to: matrix units are faster on whole tiles."""


@dataclass(frozen=True)
class Layout:
    """Input of a model for a batch, with the places of the answer tokens.

    Attributes:
        arguments: Arguments of the forward pass: ``input_ids`` [R, T], and a mask, positions or lengths that say which
            token sees which.
        predicting: Index into the flattened [R·T] of the position that predicts each answer token, [M], in the batch's
            reading order.
        answers: Index into the flattened [R·T] of each answer token itself, [M].
        rows: Index of the batch's sequence that each answer token belongs to, [M], ascending.
        host_rows: Copy of `rows` on the CPU, [M].
        targets: Token ids of the answer tokens, [M].
    """

    arguments: dict[str, Any]
    predicting: Tensor
    answers: Tensor
    rows: Tensor
    host_rows: NDArray[np.int64]
    targets: Tensor


def padded(batch: Batch) -> Layout:
    """Layout with one sequence per row, as in the batch."""
    width = batch.input_ids.shape[1]
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return _layout(batch, arguments, np.arange(len(batch.input_ids)) * width)


def _layout(batch: Batch, arguments: dict[str, Any], begins: NDArray[np.int64]) -> Layout:
    """Layout in which each sequence of the batch begins at the index `begins` of the flattened rows."""
    rows, places = batch.answer_places()
    answers = begins[rows] + places  # a sequence's first token is never an answer token
    width = batch.input_ids.shape[1]
    moved = to_device(np.stack([answers - 1, answers, rows, rows * width + places]), batch.input_ids.device)
    return Layout(arguments, moved[0], moved[1], moved[2], rows, batch.input_ids.flatten()[moved[3]])


def packed(batch: Batch, hidden_size: int | None = None, room: int = 0, by_length: bool = False) -> Layout:
    """Layout with several sequences per row.

    Args:
        batch: Batch of B groups of K sequences.
        hidden_size: Hidden size of a model that builds a mask of whole rows; the row length is then the cheapest by
            `row_cost`, since longer rows waste less room but have more pairs of tokens. None for other models.
        room: Largest number of tokens of a row, if more than the longest sequence has; used without `hidden_size`.
        by_length: True to put all sequences in one row and pass their lengths to attention, see `sga.models.attention`.
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
        positions[number, end:] = np.arange(width - end)  # padding is a sequence of its own, which is not read
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
    """Arguments of attention by length for a row, under transformers' names.

    The mask is a decoy of NaN: a layer that reads it, because the lengths do not reach it, gives NaN and is noticed.
    """
    starts = to_device(np.array(begins, dtype=np.int32), device)
    # Rounded up to a power of two, so that compiled code is not specialised to every batch's longest sequence.
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
    """Operations of a transformer block on `rows` rows of `width` tokens, in units of 4·H.

    A token takes 24·H² for its matrix products and 4·H for each token that it could see (Kaplan et al., arXiv
    2001.08361, table 1, with an inner size of 4·H).

    >>> row_cost(rows=10, width=200, hidden_size=768) > row_cost(rows=4, width=400, hidden_size=768)
    True
    """
    return rows * width * (6 * hidden_size + width)


def visible(position_ids: Tensor) -> Tensor:
    """Mask of the tokens that each token of packed rows sees: its own sequence up to itself, [R, T] -> [R, T, T].

    >>> visible(torch.tensor([[0, 1, 0]])).int().tolist()
    [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]
    """
    sequence = (position_ids == 0).cumsum(dim=1)  # [R, T]
    return (sequence[:, :, None] == sequence[:, None, :]).tril()


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Packs items into bins by first-fit decreasing: longest first, each into the first bin with room for it.

    Needs at most 11/9 of the fewest possible bins plus one (Johnson, 1973).

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
