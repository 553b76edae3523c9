"""Learning-rate schedules that know the length of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sga.errors import UserError


class Schedule(ABC):
    """Makes a per-step scheduler once the number of steps is known."""

    @abstractmethod
    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        """A scheduler that Lightning steps once per optimiser step."""


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Linear warm-up from 0 and linear decay to 0, per optimiser step.

    Args:
        warmup_epochs: Length of the warm-up in epochs; fractions are allowed. TOFU uses 1.
        final_factor: Share of the peak learning rate that is left at the end.
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
    """The same learning rate at every step."""

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 1.0)
