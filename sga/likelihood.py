"""Negative log-likelihoods of answers under a causal language model: the numbers that losses and metrics read."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sga.batches import Batch


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the batch's answer tokens, row by row in reading order.

    The head is applied from the first position on that any row needs, where the model allows that (`logits_to_keep`).

    Returns:
        [M, V] for the M answer tokens; float32 at least, whatever the weights' type.
    """
    width = batch.input_ids.shape[1]
    first = int(batch.answer_mask.any(dim=0).nonzero()[0])  # first column that holds an answer token; at least 1
    kept = width - first + 1
    extra: dict[str, Any] = {"logits_to_keep": kept} if takes(model, "logits_to_keep") else {}
    logits: Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra
    ).logits
    logits = logits[:, -kept:-1]  # [B*K, kept, V] -> [B*K, kept - 1, V]: position t predicts token t + 1
    logits = logits[batch.answer_mask[:, first:]]  # -> [M, V]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def sequence_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of each sequence's answer tokens, in one forward pass for all groups.

    nll = −(1/T)·Σ_t log p(a_t | prompt, a_<t), the end-of-sequence token counted.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        batch: B groups of K sequences.

    Returns:
        [B, K], nats per token.
    """
    logits = answer_logits(model, batch)
    targets = batch.input_ids[batch.answer_mask]  # [M]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    sums = torch.zeros(batch.answer_mask.shape[0], dtype=losses.dtype, device=losses.device)
    rows = batch.answer_mask.nonzero()[:, 0]
    sums = sums.index_add(0, rows, losses)
    means = sums / batch.answer_mask.sum(dim=1)
    return means.view(-1, batch.group_size)  # [B*K] -> [B, K]
