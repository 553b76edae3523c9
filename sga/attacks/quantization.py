"""Weights rounded to 8 or 4 bits, as bitsandbytes rounds them, in plain PyTorch: the same on every machine."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sga.likelihood.forward import head_of

Precision = Literal["int8", "nf4"]

BLOCK = 64
"""Number of weights that share a scale in nf4, bitsandbytes' default."""

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Values of a 4-bit NormalFloat (Dettmers et al., arXiv 2305.14314, appendix E)."""


def rounded_int8(weight: Tensor) -> Tensor:
    """Weights [out, in] rounded to 255 levels of each row's largest magnitude (LLM.int8's, arXiv 2208.07339)."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    levels = (weight * (127.0 / largest.clamp(min=torch.finfo(weight.dtype).tiny))).round()
    return levels * (largest / 127.0)


def rounded_nf4(weight: Tensor, block: int = BLOCK) -> Tensor:
    """Weights rounded to the nearest NF4 value times the largest magnitude of each run of `block` weights."""
    flat = weight.reshape(-1)
    padded = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)  # -> [blocks, block]
    largest = padded.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(NF4, dtype=weight.dtype, device=weight.device)
    middles = (values[1:] + values[:-1]) / 2
    scaled = padded / largest.clamp(min=torch.finfo(weight.dtype).tiny)
    return (values[torch.bucketize(scaled, middles)] * largest).view(-1)[: len(flat)].view_as(weight)


@torch.no_grad()
def quantize(network: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    """Rounds the weights of all linear layers but the head, in place, as a model loaded in that precision has them.

    bitsandbytes' layers with weights in nf4 give the same outputs. Differs from its LLM.int8 layers in that activations
    are not rounded: what the weights hold is attacked.
    """
    head = head_of(network)
    for module in network.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            weight = module.weight.T if isinstance(module, Conv1D) else module.weight
            found = rounded_int8(weight) if precision == "int8" else rounded_nf4(weight.contiguous())
            module.weight.copy_(found.T if isinstance(module, Conv1D) else found)
    return network
