"""Distillation towards a distribution in which the forget token is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sga.answers import FORGET, Answers
from sga.losses.base import Needs, RetainingLoss, RetainTerm, check_numbers


class UNDIAL(RetainingLoss):
    """Distils the starting model's own predictions with the forget tokens' logits lowered.

    L = γ·mean over groups and tokens of the cross-entropy to softmax(z_ref − b·onehot(y)) + α·L_retain.
    Source: Dong et al., arXiv 2402.10052.
    """

    def __init__(
        self,
        penalty: float = 10.0,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
    ) -> None:
        """Checks the settings.

        Args:
            penalty: b, what is taken from the forget token's logit.
            retain: What holds the normal samples; null leaves them out.
            forget_weight: γ, the weight of the distillation.
            retain_weight: α, the weight of the retain term.
        """
        super().__init__(retain, forget_weight, retain_weight)
        check_numbers(0, penalty=penalty)
        self.penalty = penalty

    @property
    def needs(self) -> Needs:
        needs = super().needs
        return replace(needs, reference=(FORGET, *needs.reference), logits=True)

    def forget(self, answers: Answers) -> Tensor:
        forget = answers.of(FORGET)
        assert forget.reference is not None and forget.reference.logits is not None, "named among the needs"
        return _cross_entropy(forget, without_target(forget.reference.logits, forget.targets, self.penalty))


class CEU(RetainingLoss):
    """CE-U: descends towards the model's own predictions with the forget token left out.

    L = γ·mean over groups and tokens of the cross-entropy to softmax(z with z_y = −∞), the target without gradient, +
    α·L_retain. Source: Yang, arXiv 2503.01224.
    """

    def __init__(
        self, retain: RetainTerm | None = None, forget_weight: float = 1.0, retain_weight: float = 1.0
    ) -> None:
        """Checks the settings.

        Args:
            retain: What holds the normal samples; null leaves them out.
            forget_weight: γ, the weight of the cross-entropy.
            retain_weight: α, the weight of the retain term.
        """
        super().__init__(retain, forget_weight, retain_weight)

    @property
    def needs(self) -> Needs:
        return replace(super().needs, logits=True)

    def forget(self, answers: Answers) -> Tensor:
        forget = answers.of(FORGET)
        assert forget.logits is not None, "named among the needs"
        return _cross_entropy(forget, without_target(forget.logits, forget.targets, math.inf))


def without_target(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """softmax(z − b·onehot(y)) without gradient, [M, V].

    >>> without_target(torch.zeros(1, 3), torch.tensor([2]), math.inf)
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    lowered = logits.detach().clone()
    lowered[torch.arange(len(targets), device=targets.device), targets] -= penalty
    return lowered.softmax(dim=-1)


def _cross_entropy(answers: Answers, target: Tensor) -> Tensor:
    """Mean over each answer's tokens of −Σ_v target_v·log p_v, [B, C]."""
    return answers.mean(-(target * answers.log_probabilities).sum(dim=-1))
