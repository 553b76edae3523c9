"""Repeated sequences of a batch, which the model reads only once.

Groups of a small data set share their neighbours: of eight groups with six neighbours each, drawn from twenty records,
more than half of the neighbours are repetitions. Their numbers are the same, and their gradients add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sga.batching.batch import Batch, to_device
from sga.likelihood.answer_tokens import AnswerTokens
from sga.models.text_config import text_config


@dataclass(frozen=True)
class Distinct:
    """The distinct sequences of a batch.

    Attributes:
        batch: Batch of U groups of one sequence each.
        place: Row in that batch of each sequence of the whole batch, [B*K].
    """

    batch: Batch
    place: Tensor

    def repeated(self, once: AnswerTokens, batch: Batch) -> AnswerTokens:
        """Expands the model's numbers on the distinct sequences to the whole batch.

        Args:
            once: Numbers of each distinct sequence.
            batch: Whole batch, with its repetitions.
        """
        lengths = once.lengths.flatten()  # [U, 1] -> [U]
        own = lengths[self.place]  # [B*K]
        host_rows, _ = batch.answer_places()  # [M]
        rows = to_device(host_rows, own.device)
        within = torch.arange(len(rows), device=rows.device) - (own.cumsum(0) - own)[rows]
        index = (lengths.cumsum(0) - lengths)[self.place[rows]] + within  # [M]

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        return AnswerTokens(
            roles=batch.roles,
            token_nll=once.token_nll[index],
            targets=once.targets[index],
            rows=rows,
            host_rows=host_rows,
            lengths=own.view(-1, batch.group_size),  # [B*K] -> [B, K]
            sequence_lengths=batch.attention_mask.sum(dim=1).view(-1, batch.group_size),
            logits=at(once.logits),
            hidden=at(once.hidden),
            reference_nll=batch.reference_nll,
            mean_lengths=batch.mean_lengths,
        )


def distinct(model: nn.Module, batch: Batch) -> Distinct | None:
    """Distinct sequences of a batch; None if none is known to be repeated, or if dropout makes repetitions differ.

    Args:
        model: Model that will read them, checked for dropout.
        batch: Batch of B groups of K sequences.
    """
    if batch.keys is None or batch.bounds is None or (model.training and _drops(model)):
        return None
    first: dict[int, int] = {}
    for row, key in enumerate(batch.keys):
        first.setdefault(key, row)
    if len(first) == len(batch.keys):
        return None
    device = batch.input_ids.device
    rows = to_device(np.array(list(first.values())), device)  # [U]
    numbers = {key: number for number, key in enumerate(first)}
    bounds = tuple(batch.bounds[row] for row in first.values())
    once = replace(
        batch,
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        answer_mask=batch.answer_mask[rows],
        group_size=1,
        tokens=sum(length for _, length in bounds),
        roles=batch.roles[:1],
        reference_nll=None,
        bounds=bounds,
        keys=None,
    )
    return Distinct(once, to_device(np.array([numbers[key] for key in batch.keys]), device))


def _drops(model: nn.Module) -> bool:
    """True if the model has dropout."""
    config: Any = text_config(model)
    settings = {} if config is None else vars(config)
    rates = [value for name, value in settings.items() if "drop" in name]
    layers = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(isinstance(rate, (int, float)) and rate > 0 for rate in (*rates, *layers))
