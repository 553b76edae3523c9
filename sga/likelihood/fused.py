"""Fused head: the head and its cross-entropy in one function without logits in memory, by Liger if installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FusedHead:
    """Replacement of a head whose logits are needed for the targets' negative log-likelihoods only.

    Attributes:
        name: Name and version of the package that it comes from.
        nll: Function from hidden states [M, H], the head's weight [V, H] and targets [M] to the nll of each target,
            [M], nats, with gradients for the first two.
    """

    name: str
    nll: Callable[[Tensor, Tensor, Tensor], Tensor] = field(repr=False)


def fused_head(head: nn.Module | None) -> FusedHead | None:
    """Liger's fused head on a Hopper GPU, if the package is installed (extra ``liger``) and supports the head.

    On other devices its function is plain PyTorch on 512 tokens at a time, slower than our chunks. It supports no bias,
    and at most float32. `sga.likelihood.tryouts.fused_fault` checks that its numbers are right.
    """
    if type(head) is not nn.Linear or head.bias is not None or head.weight.dtype == torch.float64:
        return None
    if not _on_hopper(head.weight.device):
        return None
    try:
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as function
    except ImportError:  # not installed, or older than 0.8.2
        return None

    def nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        values: Tensor = function.apply(hidden, weight, targets)
        return values

    return FusedHead(f"liger-kernel {importlib.metadata.version('liger-kernel')}", nll)


def _on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
