"""Negative log-likelihoods of answers under a causal language model: the numbers that losses and metrics read."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sga.batches import Batch


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the batch's answer tokens, row by row in reading order.

    The language-model head sees the M positions that predict an answer token and no others: what it is given is cut
    on the way in, so that whatever the model does after it (scaling, soft-capping) is done as always.

    Returns:
        [M, V] for the M answer tokens; float32 at least, whatever the weights' type.
    """
    predicting = batch.answer_mask[:, 1:]  # [B*K, T-1]: position t predicts token t + 1
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    if head is None:
        logits: Tensor = model(**arguments).logits[:, :-1][predicting]  # [B*K, T, V] -> [M, V]
    else:

        def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][:, :-1][predicting][None], *inputs[1:])  # [B*K, T, H] -> [1, M, H]

        handle = head.register_forward_pre_hook(cut)
        try:
            logits = model(**arguments).logits[0]  # [1, M, V] -> [M, V]
        finally:
            handle.remove()
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
