"""Distillation towards a distribution in which the forget token is suppressed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sga.errors import check_finite
from sga.groups.roles import FORGET
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Average, Needs, RetainingLoss, RetainTerm


class UNDIAL(RetainingLoss):
    """Distils the starting model's own predictions with the forget tokens' logits lowered.

    L = γ·mean over groups and tokens of the cross-entropy to softmax(z_ref − b·onehot(y)) + α·L_retain.
    Source: Dong et al., arXiv 2402.10052. Compared with dong-river/LLM_unlearning at f580f9a3 (b = 5 and lr 6e-4 there)
    and with open-unlearning at 19a6141d (b = 10 and lr 1e-4): the same target, averaged over prompt and padding too.
    """

    def __init__(
        self,
        penalty: float = 10.0,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            penalty: Amount b subtracted from the forget token's logit.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the distillation.
            retain_weight: Weight α of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(0, penalty=penalty)
        self.penalty = penalty

    @property
    def needs(self) -> Needs:
        needs = super().needs
        return replace(needs, reference=(FORGET, *needs.reference), logits=True)

    def forget(self, tokens: AnswerTokens) -> Tensor:
        forget = tokens.of(FORGET)
        assert forget.reference is not None and forget.reference.logits is not None, "named among the needs"
        return self.mean(
            forget, _cross_entropy(forget, without_target(forget.reference.logits, forget.targets, self.penalty))
        )


class CEU(RetainingLoss):
    """CE-U: distils the model's own predictions with the forget token left out.

    L = γ·mean over groups and tokens of the cross-entropy to softmax(z with z_y = −∞), the target without gradient, +
    α·L_retain. Source: Yang, arXiv 2503.01224. Compared with open-unlearning at 2231e313, which leaves out the first
    answer token, `skipped_tokens` 1, and says that a footnote of the paper on its training does so.
    """

    def __init__(
        self,
        skipped_tokens: int = 0,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
    ) -> None:
        """Checks the settings.

        Args:
            skipped_tokens: Number of tokens at the beginning of a forget answer that do not count.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the cross-entropy.
            retain_weight: Weight α of the retain term.
        """
        super().__init__(retain, forget_weight, retain_weight)
        check_finite(0, skipped_tokens=skipped_tokens)
        self.skipped_tokens = skipped_tokens

    @property
    def needs(self) -> Needs:
        return replace(super().needs, logits=True)

    def forget(self, tokens: AnswerTokens) -> Tensor:
        forget = tokens.of(FORGET)
        assert forget.logits is not None, "named among the needs"
        read = forget.places >= self.skipped_tokens  # [M]
        values = _cross_entropy(forget, without_target(forget.logits, forget.targets, math.inf))
        return forget.total(values * read) / forget.total(read.to(values)).clamp(min=1)


def without_target(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Distribution softmax(z − b·onehot(y)) without gradient, [M, V].

    >>> without_target(torch.zeros(1, 3), torch.tensor([2]), math.inf)
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    lowered = logits.detach().clone()
    lowered[torch.arange(len(targets), device=targets.device), targets] -= penalty
    return lowered.softmax(dim=-1)


def _cross_entropy(tokens: AnswerTokens, target: Tensor) -> Tensor:
    """Cross-entropy −Σ_v target_v·log p_v at each answer token, [M], nats."""
    return -(target * tokens.log_probabilities).sum(dim=-1)
