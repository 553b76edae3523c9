"""Try-outs of what makes a training step fast on a GPU: attention by length, compiled blocks.

Both compute what the plain path computes, rounded elsewhere, so each is compared with it, values and gradients, on the
run's own model, device and precision before the first step; one that is wrong or does not run is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sga.batching.batch import Batch
from sga.likelihood.forward import ForwardOptions, sequence_nll
from sga.models import attention
from sga.models.blocks import transformer_blocks
from sga.models.compiled import compile_blocks, leave_uncompiled
from sga.models.text_config import text_config

Autocast = Callable[[], AbstractContextManager[Any]]

BY_LENGTH = ForwardOptions(packing=True, by_length=True)


def take_lengths(model: nn.Module, batch: Batch, autocast: Autocast) -> str | None:
    """Exchanges a model's attention for one that takes packed sequences by their lengths, if that is right.

    For a model that `packed_options` has found to keep packed sequences apart by a mask.

    Args:
        model: A Hugging Face causal language model.
        batch: A few sequences.
        autocast: Context manager of the training's precision.

    Returns:
        None if it is exchanged; else what is wrong, or an empty text if there is nothing to try.
    """
    if not attention.can_switch(model):
        return ""
    with autocast():
        device = next(model.parameters()).device
        dtype = _working_type(model)
        if not attention.available(device, dtype):
            return ""
        try:
            fault = _kernel_fault(model, batch, device, dtype) or _model_fault(model, batch)
        except Exception as error:  # whatever a kernel raises on a device or a size that it was not made for
            if isinstance(error, torch.OutOfMemoryError):
                raise
            fault = _failed(error)
    if fault is None:
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
    return fault


def take_compiled(model: nn.Module, batch: Batch, options: ForwardOptions, autocast: Autocast) -> str | None:
    """Compiles a model's blocks, and leaves them so if they say what they said before.

    Args:
        model: A Hugging Face causal language model.
        batch: A few sequences.
        options: How batches are fed to the model in training.
        autocast: Context manager of the training's precision.

    Returns:
        None if the blocks are compiled; else what is wrong.
    """
    blocks = transformer_blocks(model)
    some = [weight for block in (blocks[0], blocks[-1]) for weight in block.parameters() if weight.requires_grad]

    def outcome() -> list[Tensor]:
        torch.manual_seed(0)
        with autocast(), torch.enable_grad():
            nll = sequence_nll(model, batch, options)
            weights = torch.linspace(-1, 2, nll.numel(), device=nll.device).to(nll)  # as losses give, of either sign
            found = torch.autograd.grad((nll.flatten() * weights).sum(), some, allow_unused=True) if some else ()
        gradients = [part.flatten().float() for part in found if part is not None]
        return [nll.detach().float(), *([torch.cat(gradients)] if gradients else [])]

    training, random = model.training, torch.get_rng_state()
    model.train()
    try:
        plain = outcome()
        compile_blocks(model)
        try:
            found = outcome()
            outcome_of_more = None
        except Exception as error:  # whatever a compiler raises, the lack of one included
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found, outcome_of_more = [], _failed(error)
        with autocast():
            half = _working_type(model).itemsize < 4
        fault = outcome_of_more or _difference(
            found, plain, ("values", "gradients"), 5e-2 if half else 1e-3 if plain[0].is_cuda else 1e-4
        )
    finally:
        model.train(training)
        torch.set_rng_state(random)
    if fault is not None:
        leave_uncompiled(model)
    return fault


def _working_type(model: nn.Module) -> torch.dtype:
    first = next(model.parameters())
    enabled = torch.is_autocast_enabled(first.device.type)
    return torch.get_autocast_dtype(first.device.type) if enabled else first.dtype


def _kernel_fault(model: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype) -> str | None:
    """What the kernel does wrong on random numbers of the model's sizes and the batch's lengths."""
    config = text_config(model)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    begins = torch.tensor([0, *batch.lengths], device=device).cumsum(0).int()
    count = sum(batch.lengths)
    inputs = [torch.randn(count, number, size, device=device).to(dtype) for number in (heads, groups, groups)]
    upstream = torch.randn(count, heads, size, device=device)
    window = getattr(config, "sliding_window", None)

    def outcome(function: Callable[..., Tensor], *parts: Tensor, **options: Any) -> list[Tensor]:
        leaves = [part.detach().requires_grad_() for part in parts]
        with torch.enable_grad():
            values = function(*leaves, begins, scaling=None, window=window, **options)
        return [values.detach(), *torch.autograd.grad(values, leaves, upstream.to(values.dtype))]

    found = outcome(attention.by_length, *inputs, longest=1 << count.bit_length())
    with torch.autocast(device.type, enabled=False):
        plain = outcome(attention.one_by_one, *(part.float() for part in inputs))
    return _difference(found, plain, ("values", "gradients of queries", "of keys", "of values"), 3e-2)


def _model_fault(model: nn.Module, batch: Batch) -> str | None:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = sequence_nll(model, batch)
            with attention.switched(model):
                found = sequence_nll(model, batch, BY_LENGTH)
    finally:
        model.train(training)
    return None if torch.allclose(found, alone, rtol=3e-2, atol=3e-2) else "gives wrong likelihoods in this model"


def _difference(found: Sequence[Tensor], plain: Sequence[Tensor], names: Sequence[str], tolerance: float) -> str | None:
    for name, theirs, ours in zip(names, found, plain, strict=False):
        off = float((theirs.float() - ours.float()).norm() / ours.float().norm().clamp(min=1e-12))
        if not off < tolerance:
            return f"gives wrong {name} (off by {off:.1g} of their norm)"
    return None


def _failed(error: Exception) -> str:
    return f"failed ({type(error).__name__}: {' '.join(str(error).split()):.300})"
