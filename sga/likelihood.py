"""Negative log-likelihoods of answers under a causal language model: the numbers that losses and metrics read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sga.answers import Answers
from sga.batches import Batch
from sga.errors import UserError


def logits_at(model: nn.Module, predicting: Tensor, **arguments: Any) -> Tensor:
    """Logits at chosen positions, row by row in reading order.

    The language-model head sees these M positions and no others: what it is given is cut on the way in, so that
    whatever the model does after it (scaling, soft-capping) is done as always.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        predicting: [N, T], True on the positions.
        arguments: Arguments of the forward pass, ``input_ids`` [N, T] among them.

    Returns:
        [M, V], in the type in which the model gives them.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    if head is None:
        whole: Tensor = model(**arguments, use_cache=False).logits
        return whole[predicting]  # [N, T, V] -> [M, V]

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][predicting][None], *inputs[1:])  # [N, T, H] -> [1, M, H]

    handle = head.register_forward_pre_hook(cut)
    try:
        logits: Tensor = model(**arguments, use_cache=False).logits[0]  # [1, M, V] -> [M, V]
    finally:
        handle.remove()
    return logits


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the batch's answer tokens, row by row in reading order.

    Returns:
        [M, V] for the M answer tokens; float32 at least, whatever the weights' type.
    """
    predicting = batch.answer_mask.roll(-1, dims=1)  # position t predicts token t + 1; column 0 is False
    logits = logits_at(model, predicting, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return _at_least_float32(logits)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


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
    return read_answers(model, batch).nll


def read_answers(model: nn.Module, batch: Batch, keep_logits: bool = False, hidden_layer: int | None = None) -> Answers:
    """What the model says about a batch's answer tokens, in one forward pass for all groups.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        batch: B groups of K sequences.
        keep_logits: Whether the logits are wanted: M rows of the vocabulary's size.
        hidden_layer: The block, counted from 0, whose output is wanted; negative ones count from the last.
    """
    with _block_outputs(model, hidden_layer) as outputs:
        logits = answer_logits(model, batch)
    targets = batch.input_ids[batch.answer_mask]  # [M]
    return Answers(
        roles=batch.roles,
        token_nll=functional.cross_entropy(logits, targets, reduction="none"),
        targets=targets,
        rows=batch.answer_mask.nonzero()[:, 0],
        lengths=batch.answer_mask.sum(dim=1).view(-1, batch.group_size),  # [B*K] -> [B, K]
        sequence_lengths=batch.attention_mask.sum(dim=1).view(-1, batch.group_size),
        logits=logits if keep_logits else None,
        hidden=_at_least_float32(outputs[0][batch.answer_mask]) if outputs else None,  # [B*K, T, H] -> [M, H]
        reference_nll=batch.reference_nll,
    )


def blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the outermost list of modules, in which each block may hold further ones (experts).

    Raises:
        UserError: the model holds none.
    """
    for module in model.modules():  # the outer before the inner
        if isinstance(module, nn.ModuleList):
            return module
    raise UserError(f"{type(model).__name__} has no list of blocks, so that no hidden layer can be named")


@contextmanager
def _block_outputs(model: nn.Module, layer: int | None) -> Iterator[list[Tensor]]:
    """Collects a block's output [N, T, H] in forward passes that are made within it."""
    found: list[Tensor] = []
    if layer is None:
        yield found
        return

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks(model)[layer].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
