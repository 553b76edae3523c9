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
    """Logits at chosen positions, in their order.

    The language-model head gets these M positions only: its input is reduced by a hook, so that operations of the model
    after the head (scaling, soft-capping) still apply.

    Args:
        model: A Hugging Face causal language model, or any callable with its interface.
        places: Indices of the positions in the flattened [R·T], [M].
        arguments: Arguments of the forward pass, including ``input_ids`` [R, T].

    Returns:
        Logits, [M, V], in the model's own type.
    """
    head = head_of(model)
    if head is None:
        whole: Tensor = model(**arguments, use_cache=False).logits
        return whole.flatten(0, 1)[places]  # [R, T, V] -> [M, V]
    with cut_to_places(head, places):
        logits: Tensor = model(**arguments, use_cache=False).logits[0]  # [1, M, V] -> [M, V]
    return logits


def head_of(model: nn.Module) -> nn.Module | None:
    """The language-model head; None if a model has no single one."""
    found: nn.Module | None = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    return found


@contextmanager
def cut_to_places(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Context in which the head gets M positions only, [R, T, H] -> [1, M, H]."""

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
    """True if the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


@dataclass(frozen=True)
class ForwardOptions:
    """Way of feeding batches to the model (packing, chunked logits, fused head).

    It affects speed and memory; results agree up to rounding.

    Attributes:
        packing: True to put several sequences into a row; see `sga.batching.packing`.
        room: Largest number of tokens of a packed row, if more than the longest sequence has; 0 chooses it. A model
            with flash or flex attention, which needs no mask of whole rows, gets a single row.
        by_length: True to use a single packed row with the sequences' lengths in place of a mask; the model's attention
            has to be `sga.models.attention.NAME`.
        given_mask: True to pass the model a mask of the tokens that each token sees. Most models make it from the
            positions themselves.
        max_logits: Largest number of logits (answer tokens times vocabulary) in memory at a time; beyond it the head
            runs on chunks of the answer tokens, and again in the backward pass. None for no limit.
        fused: Fused head that computes the answer tokens' likelihoods without logits; None uses the head.
    """

    packing: bool = False
    room: int = 0
    by_length: bool = False
    given_mask: bool = False
    max_logits: int | None = None
    fused: FusedHead | None = None


def sequence_nll(model: nn.Module, batch: Batch, options: ForwardOptions = ForwardOptions()) -> Tensor:
    """Mean negative log-likelihood of each sequence's answer tokens, in one forward pass for all groups.

    nll = −(1/T)·Σ_t log p(a_t | prompt, a_<t), with the end-of-sequence token included.

    Args:
        model: A Hugging Face causal language model, or any callable with its interface.
        batch: Batch of B groups of K sequences.
        options: Way of feeding the batch to the model.

    Returns:
        Mean negative log-likelihood of each sequence, [B, K], nats per token.
    """
    return answer_tokens(model, batch, options=options).nll


def answer_tokens(
    model: nn.Module,
    batch: Batch,
    keep_logits: bool = False,
    hidden_layer: int | None = None,
    options: ForwardOptions = ForwardOptions(),
) -> AnswerTokens:
    """The model's numbers at a batch's answer tokens, in one forward pass for all groups.

    A sequence that occurs in the batch more than once is computed once.

    Args:
        model: A Hugging Face causal language model, or any callable with its interface.
        batch: Batch of B groups of K sequences.
        keep_logits: True to return the logits too, [M, V].
        hidden_layer: Index of the block, from 0, whose output is returned too; negative indices count from the last.
        options: Way of feeding the batch to the model.
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
        host_rows=layout.host_rows,
        lengths=batch.answer_mask.sum(dim=1).view(-1, batch.group_size),  # [B*K] -> [B, K]
        sequence_lengths=batch.attention_mask.sum(dim=1).view(-1, batch.group_size),
        logits=logits if keep_logits else None,
        hidden=at_least_float32(outputs[0].flatten(0, 1)[layout.answers]) if outputs else None,  # -> [M, H]
        reference_nll=batch.reference_nll,
        mean_lengths=batch.mean_lengths,
    )


def _attends_by_length(model: nn.Module) -> bool:
    """True for flash and flex attention, which use the lengths of packed sequences instead of a mask of whole rows."""
    name = str(getattr(text_config(model), "_attn_implementation", ""))
    return "flash" in name or "flex" in name


def _hidden_size(model: nn.Module) -> int | None:
    size: int | None = getattr(text_config(model), "hidden_size", None)
    return size


def _without_logits(head: nn.Module, targets: Tensor, options: ForwardOptions) -> Callable[[Tensor], Tensor] | None:
    """Function from hidden states [M, H] to the targets' nll [M] without all logits at once; None if they may exist."""
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
    """Context in which the head returns a function of its hidden states, [1, M, H] -> [1, M, 1], in place of logits.

    Valid only for a model that does nothing to the logits after the head, see `chunks_work`. The function runs inside
    the model's forward pass, where sharded weights are gathered.
    """
    forward = head.forward
    head.forward = lambda hidden: nll(hidden[0])[None, :, None]
    try:
        yield
    finally:
        head.forward = forward


def _in_chunks(forward: Callable[[Tensor], Tensor], targets: Tensor, step: int, hidden: Tensor) -> Tensor:
    """The targets' nll [M] from hidden states [M, H]; each chunk's logits are freed and recomputed for gradients."""

    def nll(hidden: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(at_least_float32(forward(hidden)), wanted, reduction="none")

    parts = zip(torch.split(hidden, step), torch.split(targets, step), strict=True)
    return torch.cat([checkpoint(nll, *part, use_reentrant=False) for part in parts])


def fused_nll(fused: FusedHead, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The targets' nll [M] from hidden states [M, H] and the head's weight, in the type of the plain head's product."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):  # as in the backward pass
        return fused.nll(hidden, weight, targets)


def attention_mask(model: nn.Module, sees: Tensor) -> Tensor:
    """Converts a mask of the tokens that each token sees, [R, T, T], to the form of attention, [R, 1, T, T]."""
    dtype = next(model.parameters()).dtype
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


@contextmanager
def _block_outputs(model: nn.Module, layer: int | None) -> Iterator[list[Tensor]]:
    """Context that collects a block's output [N, T, H] in forward passes."""
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
