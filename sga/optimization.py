"""Optimisers and learning-rate schedules that know the length of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sga.errors import UserError


class Schedule(ABC):
    """Learning-rate schedule, made into a scheduler once the number of steps is known."""

    @abstractmethod
    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """Scheduler that Lightning steps once per optimiser step."""


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Linear warm-up from 0 and linear decay to 0, per optimiser step.

    Args:
        warmup_epochs: Length of the warm-up in epochs; fractions are allowed. TOFU uses 1.
        final_factor: Learning rate at the end as a share of the peak, in [0, 1].
    """

    warmup_epochs: float = 1.0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise UserError(f"warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if not 0 <= self.final_factor <= 1:
            raise UserError(f"final_factor must be between 0 and 1, got {self.final_factor}")

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup  # the first step already moves
            left = (total_steps - step) / max(1, total_steps - warmup)
            return self.final_factor + (1 - self.final_factor) * max(0.0, min(1.0, left))

        return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """Constant learning rate, without warm-up and decay."""

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 1.0)


def adamw(parameters: Any) -> AdamW:
    """TOFU's optimiser: AdamW, lr 1e-5, weight decay 0.01."""
    return AdamW(parameters, lr=1e-5, weight_decay=0.01)


def fuse(optimizer: Optimizer) -> None:
    """Switches Adam or AdamW to its fused kernel if all weights are on GPUs and no other implementation is named."""
    if type(optimizer) not in (torch.optim.Adam, AdamW):
        return
    for group in optimizer.param_groups:
        if group.get("fused") is None and group.get("foreach") is None and not group.get("differentiable"):
            group["fused"] = all(p.is_cuda and p.is_floating_point() for p in group["params"]) or None


EIGHT_BIT = 2 + 2 * 4 / 256
"""Bytes per weight of two 8-bit states with a float32 scale for each block of 256 (arXiv 2110.02861)."""


def optimizer_bytes(make: Callable[[list[Parameter]], Any], name: str) -> float:
    """Bytes of an optimiser's states per weight, measured by one step on a small parameter."""
    if "8bit" in name.lower():
        return EIGHT_BIT
    parameter = Parameter(torch.zeros(64, 64))
    parameter.grad = torch.ones_like(parameter)
    optimizer = make([parameter])
    optimizer.step(lambda: torch.zeros(()))
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    return sum(value.nbytes for value in tensors if value.numel() > 1) / parameter.numel()


class AdamW8bit(Optimizer):
    """AdamW with two states of one byte per weight, in blocks with their own scale; by bitsandbytes, on a GPU.

    Parameters of fewer than 4096 elements have float32 states. Source: Dettmers et al., arXiv 2110.02861. The
    constructor imports bitsandbytes (extra ``eight-bit``) and returns its own optimiser.
    """

    def __new__(
        cls,
        params: Iterable[Any],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        paged: bool = False,
    ) -> Any:
        """Makes bitsandbytes' optimiser.

        Args:
            params: Parameters to optimise, or groups of them.
            lr: Peak learning rate, per step.
            betas: Decay rates of the running averages of gradients and of their squares.
            eps: Constant added to the denominator.
            weight_decay: Coefficient of the decoupled weight decay.
            paged: True to let the driver move states to the host's memory when the GPU's memory is full.
        """
        try:
            from bitsandbytes import optim
        except ImportError:
            raise UserError(
                "AdamW8bit needs the package bitsandbytes: pip install 'sga-unlearning[eight-bit]'"
            ) from None
        kind = optim.PagedAdamW8bit if paged else optim.AdamW8bit
        return kind(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
