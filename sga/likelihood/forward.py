"""The forward pass over a batch: negative log-likelihoods of its answer tokens, in one pass for all groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sga.batching.batch import Batch
from sga.batching.packing import packed, padded, visible
from sga.likelihood.answer_tokens import AnswerTokens
from sga.likelihood.fused import FusedHead
from sga.likelihood.repeated import distinct
from sga.models.blocks import transformer_blocks
from sga.models.text_config import text_config


def logits_at(model: nn.Module, places: Tensor, **arguments: Any) -> Tensor:
    """Logits at chosen places, in their order.

    The language-model head sees these M places and no others: what it is given is cut on the way in, so that
    whatever the model does after it (scaling, soft-capping) is done as always.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        places: [M], in the flattened [R·T].
        arguments: Arguments of the forward pass, ``input_ids`` [R, T] among them.

    Returns:
        [M, V], in the type in which the model gives them.
    """
    head = head_of(model)
    if head is None:
        whole: Tensor = model(**arguments, use_cache=False).logits
        return whole.flatten(0, 1)[places]  # [R, T, V] -> [M, V]
    with cut_to_places(head, places):
        logits: Tensor = model(**arguments, use_cache=False).logits[0]  # [1, M, V] -> [M, V]
    return logits


def head_of(model: nn.Module) -> nn.Module | None:
    """The language-model head; None where a model has no single one."""
    found: nn.Module | None = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    return found


@contextmanager
def cut_to_places(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Within it the head is given M places only, [R, T, H] -> [1, M, H]."""

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, 1)[places][None], *inputs[1:])

    handle = head.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


@dataclass(frozen=True)
class ForwardOptions:
    """How a model reads batches; of no consequence for what it says but for rounding.

    Attributes:
        packing: Whether several sequences stand in a row; see `sga.batching.packing`.
        room: Most tokens of such a row, where that is more than the longest sequence has; 0 finds it out. Where
            attention takes the sequences' lengths instead of a mask of whole rows, all go in one row.
        by_length: True if packed rows are one row, whose sequences attention is told the lengths of in place of a mask;
            the model's attention is `sga.models.attention.NAME` then.
        given_mask: Whether the model is given a mask of what sees what. Most make it from the positions themselves.
        max_logits: Most logits (answer tokens times vocabulary) that exist at a time; where there are more, the head
            is run on parts of the answer tokens, and once more in the backward pass. None has no limit.
        fused: What gives the answer tokens' likelihoods in place of the head, however many; None takes the head.
    """

    packing: bool = False
    room: int = 0
    by_length: bool = False
    given_mask: bool = False
    max_logits: int | None = None
    fused: FusedHead | None = None


def sequence_nll(model: nn.Module, batch: Batch, options: ForwardOptions = ForwardOptions()) -> Tensor:
    """Mean negative log-likelihood of each sequence's answer tokens, in one forward pass for all groups.

    nll = −(1/T)·Σ_t log p(a_t | prompt, a_<t), the end-of-sequence token counted.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        batch: B groups of K sequences.
        options: How batches are fed to the model.

    Returns:
        [B, K], nats per token.
    """
    return answer_tokens(model, batch, options=options).nll


def answer_tokens(
    model: nn.Module,
    batch: Batch,
    keep_logits: bool = False,
    hidden_layer: int | None = None,
    options: ForwardOptions = ForwardOptions(),
) -> AnswerTokens:
    """What the model says about a batch's answer tokens, in one forward pass for all groups.

    A sequence that stands in the batch more than once is read once.

    Args:
        model: A Hugging Face causal language model, or anything that is called like one.
        batch: B groups of K sequences.
        keep_logits: Whether the logits are wanted: M rows of the vocabulary's size.
        hidden_layer: The block, counted from 0, whose output is wanted; negative ones count from the last.
        options: How batches are fed to the model.
    """
    once = distinct(model, batch)
    if once is not None:
        return once.repeated(answer_tokens(model, once.batch, keep_logits, hidden_layer, options), batch)
    layout = padded(batch)
    if options.packing:
        room = batch.tokens if _attends_by_length(model) else options.room
        layout = packed(batch, None if room else _hidden_size(model), room, options.by_length)
        if options.given_mask:
            sees = visible(layout.arguments["position_ids"])
            layout.arguments["attention_mask"] = attention_mask(model, sees)
    targets = layout.targets
    head = head_of(model)
    logits = None
    with _block_outputs(model, hidden_layer) as outputs:
        nll = None if head is None or keep_logits else _without_logits(head, targets, options)
        if head is None or nll is None:
            logits = at_least_float32(logits_at(model, layout.predicting, **layout.arguments))
            token_nll = functional.cross_entropy(logits, targets, reduction="none")
        else:
            with cut_to_places(head, layout.predicting), in_place_of_logits(head, nll):
                token_nll = model(**layout.arguments, use_cache=False).logits[0, :, 0]  # [1, M, 1] -> [M]
    return AnswerTokens(
        roles=batch.roles,
        token_nll=token_nll,
        targets=targets,
        rows=layout.rows,
        lengths=batch.answer_mask.sum(dim=1).view(-1, batch.group_size),  # [B*K] -> [B, K]
        sequence_lengths=batch.attention_mask.sum(dim=1).view(-1, batch.group_size),
        logits=logits if keep_logits else None,
        hidden=at_least_float32(outputs[0].flatten(0, 1)[layout.answers]) if outputs else None,  # -> [M, H]
        reference_nll=batch.reference_nll,
        mean_lengths=batch.mean_lengths,
    )


def _attends_by_length(model: nn.Module) -> bool:
    """Whether attention takes the lengths of packed sequences instead of a mask of a whole row."""
    name = str(getattr(text_config(model), "_attn_implementation", ""))
    return "flash" in name or "flex" in name


def _hidden_size(model: nn.Module) -> int | None:
    size: int | None = getattr(text_config(model), "hidden_size", None)
    return size


def _without_logits(head: nn.Module, targets: Tensor, options: ForwardOptions) -> Callable[[Tensor], Tensor] | None:
    """The targets' nll [M] as a function of hidden states [M, H], never all logits at once; None where they may be."""
    fused = options.fused
    if fused is not None:
        assert isinstance(head, nn.Linear), "see fused_head"
        return lambda hidden: fused_nll(fused, hidden, head.weight, targets)
    if options.max_logits is None or len(targets) * vocabulary_size(head) <= options.max_logits:
        return None
    return partial(_in_chunks, head.forward, targets, max(1, options.max_logits // vocabulary_size(head)))


def vocabulary_size(head: nn.Module) -> int:
    weight: Any = head.weight
    return int(weight.shape[0])


@contextmanager
def in_place_of_logits(head: nn.Module, nll: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it the head gives a function of its hidden states, [1, M, H] -> [1, M, 1], in place of logits.

    Right only where nothing is done to the logits after the head, see `chunks_work`. Within the model's forward pass,
    where sharded weights are whole.
    """
    forward = head.forward
    head.forward = lambda hidden: nll(hidden[0])[None, :, None]
    try:
        yield
    finally:
        head.forward = forward


def _in_chunks(forward: Callable[[Tensor], Tensor], targets: Tensor, step: int, hidden: Tensor) -> Tensor:
    """The targets' nll [M] from hidden states [M, H]; each part's logits are let go and made again for gradients."""

    def nll(hidden: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(at_least_float32(forward(hidden)), wanted, reduction="none")

    parts = zip(torch.split(hidden, step), torch.split(targets, step), strict=True)
    return torch.cat([checkpoint(nll, *part, use_reentrant=False) for part in parts])


def fused_nll(fused: FusedHead, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The targets' nll [M] from hidden states [M, H] and the head's weight, in the type in which it would multiply."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):  # as in the backward pass
        return fused.nll(hidden, weight, targets)


def attention_mask(model: nn.Module, sees: Tensor) -> Tensor:
    """A mask of which token sees which, [R, T, T], in the form that the model's attention takes, [R, 1, T, T]."""
    dtype = next(model.parameters()).dtype
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


@contextmanager
def _block_outputs(model: nn.Module, layer: int | None) -> Iterator[list[Tensor]]:
    """Collects a block's output [N, T, H] in forward passes that are made within it."""
    found: list[Tensor] = []
    if layer is None:
        yield found
        return

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = transformer_blocks(model)[layer].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
