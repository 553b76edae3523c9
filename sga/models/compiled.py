"""Transformer blocks compiled one by one by torch.compile: they share code, and hooks on the head stay outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sga.models.blocks import transformer_blocks


def compile_blocks(model: nn.Module) -> None:
    """Marks a model's blocks for compilation, which happens when they are first called."""
    # Training, evaluation and try-outs need variants; beyond PyTorch's limit of 8 a block would run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        torch._inductor.config.fallback_random = True  # the same dropout as without compilation
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if isinstance(embeddings, nn.Module):
        embeddings.register_forward_hook(_with_gradient)
    for block in transformer_blocks(model):
        block.compile(dynamic=True)


def _with_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Hook that makes the first block's input require gradients; with frozen embeddings (LoRA) it would otherwise need
    a variant of its own."""
    if torch.is_grad_enabled() and isinstance(output, Tensor) and not output.requires_grad:
        output.requires_grad_()


def leave_uncompiled(model: nn.Module) -> None:
    """Undoes `compile_blocks`; the blocks run eagerly again."""
    for block in transformer_blocks(model):
        block._compiled_call_impl = None


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Context in which the blocks run eagerly, for shapes that occur once and are not worth compiling for."""
    blocks = list(transformer_blocks(model))
    calls = [block._compiled_call_impl for block in blocks]
    leave_uncompiled(model)
    try:
        yield
    finally:
        for block, call in zip(blocks, calls, strict=True):
            block._compiled_call_impl = call
