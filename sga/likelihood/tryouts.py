"""Try-outs before training of what a model supports: packing, chunked logits, a fused head."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from sga.batching.batch import Batch
from sga.batching.packing import padded
from sga.errors import UserError
from sga.likelihood.fast_paths import BY_LENGTH, take_compiled, take_lengths
from sga.likelihood.forward import (
    ForwardOptions,
    at_least_float32,
    cut_to_places,
    fused_nll,
    head_of,
    in_place_of_logits,
    logits_at,
    sequence_nll,
    takes,
    vocabulary_size,
)
from sga.likelihood.fused import FusedHead, fused_head
from sga.models.causality import check_causal
from sga.models.compiled import leave_uncompiled
from sga.models.text_config import text_config


def tried_options(
    model: nn.Module,
    sample: Batch,
    packing: bool,
    max_logits: int | None,
    agreed: Callable[[bool], bool],
    autocast: Callable[[], AbstractContextManager[Any]],
    compiled: bool = False,
) -> ForwardOptions:
    """Way of feeding batches to a model in training: the requested options without those that it does not support.

    Args:
        model: A Hugging Face causal language model, or any callable with its interface.
        sample: Batch of a few sequences of the training data, one per group.
        packing: True to put several sequences into a row.
        max_logits: Largest number of logits in memory at a time; None for no limit.
        agreed: Function that returns True if its argument is true in all processes.
        autocast: Context manager of the training's precision.
        compiled: True to compile the blocks if they give the same numbers then.

    Raises:
        UserError: the model is not causal, or cannot be trained in this way.
    """
    options = _read_options(model, sample, packing, max_logits, agreed, autocast)
    if compiled:
        fault = take_compiled(model, sample, replace(options, fused=None), autocast)
        if not agreed(fault is None):
            leave_uncompiled(model)
            warnings.warn(
                f"torch.compile {fault or 'is wrong in another process'}: going on without it, which gives the same "
                "result more slowly (--model.compile=false leaves this out)",
                stacklevel=2,
            )
    return options


def _read_options(
    model: nn.Module,
    sample: Batch,
    packing: bool,
    max_logits: int | None,
    agreed: Callable[[bool], bool],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> ForwardOptions:
    """Options of `tried_options` except compilation."""
    lengths = sample.attention_mask.sum(dim=1).tolist()
    rows = [ids[:length] for ids, length in zip(sample.input_ids.tolist(), lengths, strict=True)]
    check_causal(model, rows[0])
    _check_trainable(model, sample)
    if not agreed(_padding_works_in_training(model, rows)):
        warnings.warn(
            f"what {type(model).__name__} says of a sequence depends on the lengths of the others in its batch "
            "(LongRoPE scales positions by the longest one): results of training change with --data.micro_batch_size; "
            "--data.max_length within the context of its short factors (original_max_position_embeddings) avoids it",
            stacklevel=2,
        )
    options = packed_options(model, sample) if packing else None
    if packing and not agreed(options is not None):
        options = None
        warnings.warn(
            f"{type(model).__name__} takes the sequences of a packed row for one text: going on with one "
            "sequence a row, which gives the same result more slowly (--model.packing=false leaves this out)",
            stacklevel=2,
        )
    options = options or ForwardOptions()
    if options.packing:
        fault = take_lengths(model, sample, autocast)
        if agreed(fault is None):
            options = BY_LENGTH
        elif fault:
            warnings.warn(f"attention by length {fault}: going on with a mask", stacklevel=2)
    if max_logits is None or not agreed(chunks_work(model, sample)):
        return options
    fused = fused_head(head_of(model))
    if not agreed(fused is not None) or fused is None:
        return replace(options, max_logits=max_logits)
    with autocast():
        fault = fused_fault(model, sample, fused, max_logits)
    if not agreed(fault is None):
        warnings.warn(
            f"{fused.name} {fault or 'is wrong in another process'}: going on without it, with logits in parts "
            "(--model.max_logits), which gives the same result",
            stacklevel=2,
        )
        return replace(options, max_logits=max_logits)
    return replace(options, max_logits=max_logits, fused=fused)


def lone_logits(model: nn.Module, ids: Sequence[int], last: int) -> Tensor:
    """Logits at the last positions of a sequence on its own, [last, V], which any batch should reproduce."""
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    places = torch.arange(len(ids) - last, len(ids), device=row.device)
    return logits_at(model, places, input_ids=row, attention_mask=torch.ones_like(row))


def same_logits(model: nn.Module, found: Tensor, expected: Tensor) -> bool:
    """True if two tensors of logits, [..., V], differ by rounding alone.

    Rounding changes 1e-6 of their norm in float32 and 1e-2 in half precision, more in mixtures of experts; a missing,
    shifted or foreign context changes 0.3 and more.
    """
    first = next(model.parameters())
    half = min(first.dtype.itemsize, found.dtype.itemsize) < 4 or torch.is_autocast_enabled(first.device.type)
    one, two = (at_least_float32(logits).clamp(min=-1e4) for logits in (found, expected))  # −∞ for impossible tokens
    size = (two - two.mean(dim=-1, keepdim=True)).norm()
    return not bool((one - two).norm() > (0.1 if half else 1e-3) * size)  # NaN is what a diverged model says anyway


@torch.no_grad()
def padding_works(model: nn.Module, sequences: Sequence[Sequence[int]]) -> bool:
    """True if the model gives sequences in a batch, padded on the right, the same logits as each on its own.

    Tried out on the given sequences. Few causal models fail; some scale positions by the longest sequence of a batch
    (LongRoPE).
    """
    width, device = max(map(len, sequences)), next(model.parameters()).device
    rows = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in sequences], device=device)
    lengths = torch.tensor([len(ids) for ids in sequences], device=device)
    mask = (torch.arange(width, device=device) < lengths[:, None]).long()
    last = min(4, int(lengths.min()))
    ends = torch.arange(len(rows), device=device) * width + lengths  # index after each sequence in the flattened rows
    places = (ends[:, None] - torch.arange(last, 0, -1, device=device)).flatten()
    together = torch.split(logits_at(model, places, input_ids=rows, attention_mask=mask), last)  # [N*last, V]
    return all(
        same_logits(model, found, lone_logits(model, ids, last)) for found, ids in zip(together, sequences, strict=True)
    )


@torch.no_grad()
def packed_options(model: nn.Module, batch: Batch) -> ForwardOptions | None:
    """Options with which the model gives packed sequences the same numbers as each on its own; None if there are none.

    Tried out on a batch of several sequences, because a model that ignores positions sees the preceding sequences of a
    row and gives plausible but wrong numbers.
    """
    if not takes(model, "position_ids"):
        return None
    window: object = getattr(text_config(model), "sliding_window", None)  # a given mask would open it
    ways = [ForwardOptions(packing=True)] + ([ForwardOptions(packing=True, given_mask=True)] if window is None else [])
    return next((way for way in ways if _says_the_same(model, batch, replace(way, room=batch.tokens))), None)


@torch.no_grad()
def _check_trainable(model: nn.Module, batch: Batch) -> None:
    """Refuses a model that has further requirements in training, such as rows of certain lengths.

    Raises:
        UserError: the model's forward pass fails in training mode; quotes its message.
    """
    training = model.training
    model.train()
    try:
        sequence_nll(model, batch)
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{type(model).__name__} cannot be trained on rows of unequal lengths: {said:.300}") from error
    finally:
        model.train(training)


def _padding_works_in_training(model: nn.Module, rows: Sequence[Sequence[int]]) -> bool:
    training = model.training
    model.eval()
    try:
        return padding_works(model, [min(rows, key=len), max(rows, key=len)])
    finally:
        model.train(training)


@torch.no_grad()
def chunks_work(model: nn.Module, batch: Batch) -> bool:
    """True if the head's logits are the model's logits; some models scale or cap them afterwards."""
    return head_of(model) is not None and _says_the_same(model, batch, ForwardOptions(max_logits=1))


def _says_the_same(model: nn.Module, batch: Batch, options: ForwardOptions) -> bool:
    training = model.training
    model.eval()
    try:
        alone, layout = sequence_nll(model, batch), padded(batch)
        half = logits_at(model, layout.predicting[:1], **layout.arguments).dtype.itemsize < 4  # whatever weights are in
        try:
            found = sequence_nll(model, batch, options)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # errors of a model without such input
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    finally:
        model.train(training)
    # Rounding changes 1e-6 of a mean over tokens in float32; visible tokens of other sequences change 1e-3 and more.
    tolerance = 3e-2 if half else 3e-5
    return torch.allclose(found, alone, rtol=tolerance, atol=tolerance)


_TRIED = 2500
"""Largest number of answer tokens of a try-out: more than one chunk of kernels, which take 512 or 1024 at a time."""


@torch.no_grad()
def fused_fault(model: nn.Module, batch: Batch, fused: FusedHead, max_logits: int) -> str | None:
    """Fault of a fused head in place of the model's head, on the batch's device; None if it is right.

    Call it under the autocast of training, for a model for which `chunks_work` is true. Values and gradients are
    compared with the plain head's, with a different weight for each token, negative or positive, as in losses: another
    function of Liger's (``reduction="none"``) gave right values, but gradients as if all tokens had the first one's
    weight (https://github.com/linkedin/Liger-Kernel/issues/968).
    """
    head, layout = head_of(model), padded(batch)
    assert isinstance(head, nn.Linear), "see fused_head"
    # Other tokens than the answer's: gradients of tokens that the model is certain of are nothing but rounding.
    targets = batch.input_ids[batch.answer_mask].roll(1)
    count = min(_TRIED, max(64, max_logits // vocabulary_size(head)))
    again = torch.arange(count, device=targets.device) % len(targets)
    faults: list[str | None] = []

    def tried(hidden: Tensor) -> Tensor:  # [M, H] -> [M]
        faults.append(_fault(fused, hidden[again], head.weight, targets[again]))
        return torch.zeros_like(hidden[:, 0])

    with cut_to_places(head, layout.predicting), in_place_of_logits(head, tried):
        model(**layout.arguments, use_cache=False)
    return faults[0]


def _fault(fused: FusedHead, hidden: Tensor, weight: Tensor, targets: Tensor) -> str | None:
    if isinstance(weight, DTensor):
        return "takes whole weights only"
    upstream = torch.linspace(-1, 2, len(targets), device=hidden.device)

    def outcome(nll: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            inputs = (hidden.detach().requires_grad_(), weight.detach().requires_grad_())
            values = nll(*inputs)
        with torch.autocast(hidden.device.type, enabled=False):
            return [values.detach(), *torch.autograd.grad(values, inputs, upstream.to(values.dtype))]

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = at_least_float32(functional.linear(hidden, weight))
        return functional.cross_entropy(logits, targets, reduction="none")

    try:
        found = outcome(lambda hidden, weight: fused_nll(fused, hidden, weight, targets))
    except Exception as error:  # any error of a kernel on a device or type that it does not support
        return f"failed ({type(error).__name__}: {' '.join(str(error).split()):.300})"
    # Rounding changes 1e-6 of a norm in float32 and, with logits up to 100, 1e-2 in bfloat16; a wrong weight changes 1.
    tolerance = 3e-2 if functional.linear(hidden[:1], weight).dtype.itemsize < 4 else 3e-5
    names = ("values", "gradients of hidden states", "gradients of the head's weight")
    for name, ours, theirs in zip(names, outcome(plain), found, strict=True):
        off = float((theirs - ours).norm() / ours.norm()) if theirs.shape == ours.shape else math.nan
        if not off < tolerance:
            return f"gives wrong {name} (off by {off:.1g} of their norm)"
    return None
