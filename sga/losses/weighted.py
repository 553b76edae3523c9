"""Ascent whose tokens are weighed by their probability."""

from __future__ import annotations

from torch import Tensor

from sga.errors import check_finite
from sga.groups.roles import FORGET
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Average, RetainingLoss, RetainTerm


class WGA(RetainingLoss):
    """Weighted gradient ascent: tokens that the model no longer predicts are left alone.

    L = γ·mean over groups and tokens of −p^β·ce + α·L_retain, the weight p^β without gradient. β = 0 is gradient
    ascent.
    Source: Eq. 2 of Wang et al., arXiv 2502.19301, which sums over tokens. Compared with tmlr-group/G-effect at
    3003a77d and open-unlearning at 19a6141d: the same weights, one mean over all tokens of a batch.
    """

    def __init__(
        self,
        beta: float = 1.0,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            beta: β, the power of the token's probability.
            retain: What holds the normal samples; null leaves them out.
            forget_weight: γ, the weight of the ascent.
            retain_weight: α, the weight of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(0, beta=beta)
        self.beta = beta

    def forget(self, tokens: AnswerTokens) -> Tensor:
        forget = tokens.of(FORGET)
        p = (-forget.token_nll.detach()).exp()  # [M]
        return -self.mean(forget, p**self.beta * forget.token_nll)


class SatImp(RetainingLoss):
    """Ascent on tokens between saturation and importance: neither still certain nor already forgotten.

    L = γ·mean over groups and tokens of −p^β1·(1 − p)^β2·ce + α·L_retain, the weights without gradient.
    Source: Yang et al., arXiv 2505.11953. Compared with tmlr-group/SatImp at 35ecbe22 and open-unlearning at 19a6141d:
    the same weights, one mean over all tokens of a batch; the latter's configuration has γ = 0.1 and α = 1 (``nll``).
    """

    def __init__(
        self,
        beta1: float = 5.0,
        beta2: float = 1.0,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            beta1: β1, the power of the token's probability (saturation).
            beta2: β2, the power of its complement (importance).
            retain: What holds the normal samples; null leaves them out.
            forget_weight: γ, the weight of the ascent.
            retain_weight: α, the weight of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(0, beta1=beta1, beta2=beta2)
        self.beta1, self.beta2 = beta1, beta2

    def forget(self, tokens: AnswerTokens) -> Tensor:
        forget = tokens.of(FORGET)
        p = (-forget.token_nll.detach()).exp()  # [M]
        return -self.mean(forget, p**self.beta1 * (1 - p) ** self.beta2 * forget.token_nll)
