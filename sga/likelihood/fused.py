"""The head and its cross-entropy in one function that keeps no logits: Liger's, where it is installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FusedHead:
    """What takes the place of a head whose logits are read for targets' negative log-likelihoods only.

    Attributes:
        name: Package and version that it is from.
        nll: Of hidden states [M, H], the head's weight [V, H] and targets [M]; [M], nats, one for each target, with
            gradients for the first two.
    """

    name: str
    nll: Callable[[Tensor, Tensor, Tensor], Tensor] = field(repr=False)


def fused_head(head: nn.Module | None) -> FusedHead | None:
    """Liger's function, where the package is installed (extra ``liger``) and the head is one for it, on a Hopper GPU.

    Elsewhere the function is PyTorch on 512 tokens at a time, slower than logits in parts. It takes no bias, and gives
    float32 at most. Whether it is right there, `sga.likelihood.tryouts.fused_fault` finds out.
    """
    if type(head) is not nn.Linear or head.bias is not None or head.weight.dtype == torch.float64:
        return None
    if not _on_hopper(head.weight.device):
        return None
    try:
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as function
    except ImportError:  # not there, or older than 0.8.2
        return None

    def nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        values: Tensor = function.apply(hidden, weight, targets)
        return values

    return FusedHead(f"liger-kernel {importlib.metadata.version('liger-kernel')}", nll)


def _on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
