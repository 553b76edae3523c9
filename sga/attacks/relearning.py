"""Relearning: a few steps of training on a few rows, and how fast the others come back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from lightning.fabric.utilities import move_data_to_device
from transformers import PreTrainedModel

from sga.batching.batch import collate
from sga.batching.encoding import Encoded, Encoder
from sga.data.folds import evenly
from sga.data.records import Record
from sga.likelihood.forward import sequence_nll

BATCH = 4
"""Number of records of a step."""

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates that the strength is chosen from: the least at which the control model learns its records."""

LEARNED = 0.5
"""Mean probability of the answers from which on the control model has learned its records."""


def relearned_and_rest(records: Sequence[Record], share: float) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Records to relearn, evenly spaced and at least one, and the others, at least one."""
    learned = evenly(records, min(max(1, round(share * len(records))), len(records) - 1))
    ids = {record.id for record in learned}
    return learned, tuple(record for record in records if record.id not in ids)


def looks(rows: int, steps: int) -> list[int]:
    """Steps after which the model is evaluated: 0, 1, 2, 4, … up to `steps`, or one epoch where that is more.

    >>> looks(4, 8), looks(80, 8)
    ([0, 1, 2, 4, 8], [0, 1, 2, 4, 8, 16, 20])
    """
    last = max(steps, -(-rows // BATCH))
    return [0, *(2**power for power in range(last.bit_length()) if 2**power < last), last]


def relearn(
    network: PreTrainedModel, encoder: Encoder, rows: Sequence[Record], rate: float, steps: int, seed: int
) -> Iterator[int]:
    """Trains on records by AdamW; yields the number of steps taken, before the first one and after each.

    The order of records follows from the seed alone, so that a resumed curve has the same weights.

    Args:
        network: Model in float32, which is trained in place.
        encoder: Tokenizer, template and longest sequence.
        rows: Records to train on, `BATCH` in a step.
        rate: Learning rate of AdamW.
        steps: Number of optimiser steps.
        seed: Seed of the order of records.
    """
    encoded = [encoder.encode(record.question, record.answer) for record in rows]
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    yield 0
    for step, batch in enumerate(_batches(encoded, seed), start=1):
        moved = move_data_to_device(collate([[one] for one in batch]), network.device)
        loss = sequence_nll(network, moved).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step
        if step == steps:
            return


def _batches(rows: Sequence[Encoded], seed: int) -> Iterator[list[Encoded]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), BATCH):
            yield [rows[place] for place in order[start : start + BATCH]]
