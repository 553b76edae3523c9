"""Ascent with tokens weighted by their probability."""

from __future__ import annotations

from torch import Tensor

from sga.errors import check_finite
from sga.groups.roles import FORGET
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Average, RetainingLoss, RetainTerm


class WGA(RetainingLoss):
    """Weighted gradient ascent: tokens that the model no longer predicts hardly count.

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
            beta: Power β of the token's probability in its weight, at least 0.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the ascent.
            retain_weight: Weight α of the retain term.
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
    """Ascent with weights for saturation (not yet forgotten) and importance (not certain) of tokens.

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
            beta1: Power β1 of the token's probability p in its weight (saturation).
            beta2: Power β2 of 1 − p in its weight (importance).
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the ascent.
            retain_weight: Weight α of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(0, beta1=beta1, beta2=beta2)
        self.beta1, self.beta2 = beta1, beta2

    def forget(self, tokens: AnswerTokens) -> Tensor:
        forget = tokens.of(FORGET)
        p = (-forget.token_nll.detach()).exp()  # [M]
        return -self.mean(forget, p**self.beta1 * (1 - p) ** self.beta2 * forget.token_nll)
