"""Try-outs of faster training steps on a GPU: attention by length, and compiled blocks.

Both compute the same as the plain path up to rounding. Each is compared with it in values and gradients, on the run's
own model, device and precision, before the first step; a path that is wrong or fails is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """Switches a model to attention by the lengths of packed sequences, if that gives the right numbers.

    Call it for a model that `packed_options` has found able to read packed sequences.

    Args:
        model: A Hugging Face causal language model.
        batch: Batch of a few sequences to compare on.
        autocast: Context manager of the training's precision.

    Returns:
        None if the model was switched; otherwise the fault in words, or an empty text if there was nothing to try.
    """
    if not attention.can_switch(model):
        return ""
    with autocast():
        device = next(model.parameters()).device
        dtype = _working_type(model)
        if not attention.available(device, dtype):
            return ""
        # Always both: under FSDP2 all processes have to make the same forward passes.
        kernel = _tried(lambda: _kernel_fault(model, batch, device, dtype))
        fault = _tried(lambda: _model_fault(model, batch))
    fault = kernel or fault
    if fault is None:
        model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
    return fault


def take_compiled(model: nn.Module, batch: Batch, options: ForwardOptions, autocast: Autocast) -> str | None:
    """Compiles a model's blocks if they give the same numbers then.

    Args:
        model: A Hugging Face causal language model.
        batch: Batch of a few sequences to compare on.
        options: Way in which training feeds batches to the model.
        autocast: Context manager of the training's precision.

    Returns:
        None if the blocks are compiled; otherwise the fault in words.
    """
    blocks = transformer_blocks(model)
    some = [weight for block in (blocks[0], blocks[-1]) for weight in block.parameters() if weight.requires_grad]

    def outcome(context: Autocast, options: ForwardOptions) -> list[Tensor]:
        torch.manual_seed(0)
        with context(), torch.enable_grad():
            nll = sequence_nll(model, batch, options)
            weights = torch.linspace(-1, 2, nll.numel(), device=nll.device).to(nll)  # of either sign, as in losses
            found = torch.autograd.grad((nll.flatten() * weights).sum(), some, allow_unused=True) if some else ()
        gradients = [part.flatten().float() for part in found if part is not None]
        return [nll.detach().float(), *([torch.cat(gradients)] if gradients else [])]

    training, random = model.training, torch.get_rng_state()
    model.train()
    try:
        plain = outcome(autocast, options)
        with autocast():
            half = _working_type(model).itemsize < 4
        # Single precision is the reference where possible, because half precision gradients are off by some percent.
        rounded = half and some and some[0].dtype == torch.float32
        exact = outcome(nullcontext, ForwardOptions()) if rounded else plain
        compile_blocks(model)
        try:
            found = outcome(autocast, options)
        except Exception as error:  # any error of a compiler, or the lack of one
            if isinstance(error, torch.OutOfMemoryError):
                raise
            fault: str | None = _failed(error)
        else:
            least = 3e-2 if half else 1e-3 if plain[0].is_cuda else 1e-4
            tolerances = [max(least, 1.5 * _off(one, other)) for one, other in zip(plain, exact, strict=True)]
            fault = _difference(found, exact, ("values", "gradients"), *tolerances)
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
    """Fault of the kernel on random numbers with the model's sizes and the batch's lengths; None if it is right."""
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


def _off(theirs: Tensor, ours: Tensor) -> float:
    """Norm of the difference of two tensors, relative to the norm of `ours`."""
    return float((theirs.float() - ours.float()).norm() / ours.float().norm().clamp(min=1e-12))


def _difference(
    found: Sequence[Tensor], plain: Sequence[Tensor], names: Sequence[str], *tolerances: float
) -> str | None:
    """Fault if a tensor is off by more than its tolerance (one for all, or one each); None if none is."""
    every = tolerances if len(tolerances) > 1 else tolerances * len(names)
    for name, theirs, ours, tolerance in zip(names, found, plain, every, strict=False):
        off = _off(theirs, ours)
        if not off <= tolerance:
            return f"gives wrong {name} (off by {off:.1g} of their norm)"
    return None


def _tried(look: Callable[[], str | None]) -> str | None:
    """Result of a check; an exception, such as for a size that a kernel does not support, counts as a fault."""
    try:
        return look()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> str:
    return f"failed ({type(error).__name__}: {' '.join(str(error).split()):.300})"
