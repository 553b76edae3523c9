"""Sequences that stand in a batch more than once, which the model has to read only once.

Groups of a small data set share their neighbours: of eight groups with six neighbours each, drawn from twenty records,
more than half of the neighbours are repetitions. What the model says of them is the same, and their gradients add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sga.batching.batch import Batch
from sga.likelihood.answer_tokens import AnswerTokens
from sga.models.text_config import text_config


@dataclass(frozen=True)
class Distinct:
    """The sequences of a batch, each once.

    Attributes:
        batch: U groups of one sequence.
        place: [B*K], the row in there of each of the batch's sequences.
    """

    batch: Batch
    place: Tensor

    def repeated(self, once: AnswerTokens, batch: Batch) -> AnswerTokens:
        """What the model says about the whole batch.

        Args:
            once: What it says about each sequence once.
            batch: The whole batch.
        """
        lengths = once.lengths.flatten()  # [U, 1] -> [U]
        rows = batch.answer_mask.nonzero()[:, 0]  # [M]
        own = lengths[self.place]  # [B*K]
        within = torch.arange(len(rows), device=rows.device) - (own.cumsum(0) - own)[rows]
        index = (lengths.cumsum(0) - lengths)[self.place[rows]] + within  # [M]

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        return AnswerTokens(
            roles=batch.roles,
            token_nll=once.token_nll[index],
            targets=once.targets[index],
            rows=rows,
            lengths=own.view(-1, batch.group_size),  # [B*K] -> [B, K]
            sequence_lengths=batch.attention_mask.sum(dim=1).view(-1, batch.group_size),
            logits=at(once.logits),
            hidden=at(once.hidden),
            reference_nll=batch.reference_nll,
            mean_lengths=batch.mean_lengths,
        )


def distinct(model: nn.Module, batch: Batch) -> Distinct | None:
    """The batch's sequences, each once; None where none is repeated, or dropout makes each reading another.

    Args:
        model: The model that is to read them.
        batch: B groups of K sequences.
    """
    if model.training and _drops(model):
        return None
    marks = batch.attention_mask + batch.answer_mask.long()  # 0 padding, 1 prompt, 2 answer
    rows = torch.cat([torch.where(marks > 0, batch.input_ids, 0), marks], dim=1)  # [B*K, 2T]
    found, place = torch.unique(rows, dim=0, return_inverse=True)
    if len(found) == len(rows):
        return None
    first = torch.full((len(found),), len(rows), device=place.device)
    first = first.scatter_reduce(0, place, torch.arange(len(rows), device=place.device), "amin")  # [U]
    attention = batch.attention_mask[first]
    once = replace(
        batch,
        input_ids=batch.input_ids[first],
        attention_mask=attention,
        answer_mask=batch.answer_mask[first],
        group_size=1,
        tokens=int(attention.sum()),
        roles=batch.roles[:1],
        reference_nll=None,
        bounds=None if batch.bounds is None else tuple(batch.bounds[row] for row in first.tolist()),
    )
    return Distinct(once, place)


def _drops(model: nn.Module) -> bool:
    """Whether something of the model is dropped at random in training."""
    config: Any = text_config(model)
    settings = {} if config is None else vars(config)
    rates = [value for name, value in settings.items() if "drop" in name]
    layers = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in (*rates, *layers))
