"""Ascent on the forget sample combined with other terms: alternating, a divergence, other answers, retain samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from sga.errors import UserError, check_finite, check_numbers
from sga.groups.group import AlternativeKind
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, RETAIN
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.ascent import SmoothedGradientAscent
from sga.losses.base import Average, Needs, RetainingLoss, TokenLoss, check_normals


class Alternating(TokenLoss):
    """Alternates between ascent on the forget sample and descent on its normal samples, one optimiser step each.

    L = mean over groups of −nll_0 at even steps, and of mean_k nll_k at odd ones. An epoch has half as many forget
    passes as with other methods, so train for twice as many epochs. Source: the motivation of Pang et al., arXiv
    2510.22376.
    """

    def __init__(self, average: Average = "sequence") -> None:
        """Checks the setting.

        Args:
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__()
        self.average_over(average)

    def check_group_size(self, group_size: int) -> None:
        check_normals(self, group_size)

    def roles(self, step: int) -> tuple[str, ...]:
        return (FORGET,) if step % 2 == 0 else (NORMAL,)

    def forward(self, tokens: AnswerTokens) -> Tensor:
        nll = self.nll(tokens).mean()
        return -nll if FORGET in tokens.roles else nll


class KLMinimization(RetainingLoss):
    """Ascends on the forget sample and keeps predictions on normal samples near the starting model's.

    L = mean over groups of −nll_0 + α·KL(p_ref ‖ p_θ) on normal samples, averaged over the tokens of question and
    answer, all but the first.
    Source: Eq. 6 of TOFU, Maini et al., arXiv 2401.06121. Compared with locuslab/tofu at 8c49eee7, which averages over
    padding too.
    """

    def __init__(self, retain_weight: float = 1.0, average: Literal["sequence", "answer"] = "sequence") -> None:
        """Checks the settings.

        Args:
            retain_weight: Weight α of the divergence.
            average: Part of a normal sample over whose tokens the divergence, and the logged nll, is averaged.
                ``sequence``, question and answer, is the paper's definition; ``answer`` is cheaper.
        """
        super().__init__("kl", 1.0, retain_weight)
        if average not in ("sequence", "answer"):
            raise UserError(f"average must be sequence or answer, got {average!r}")
        self.average = average

    @property
    def needs(self) -> Needs:
        return replace(super().needs, whole=(NORMAL,) if self.average == "sequence" else ())

    def forget(self, tokens: AnswerTokens) -> Tensor:
        return -tokens.of(FORGET).nll


class LLMU(RetainingLoss):
    """Combines ascent, descent on an unrelated answer to the forget question, and a divergence on normal samples.

    L = mean over groups of −γ·nll_0 + μ·nll(forget question, other answer) + α·KL(p_ref ‖ p_θ) on normal samples.
    Source: Yao et al., arXiv 2310.10683. Compared with kevinyaobytedance/llm_unlearn at 1143a5b6, which draws five
    other answers anew for each batch, and UCSC-REAL/FLAT at 05a6e6ab, which takes one, as here; both average the
    divergence over prompt and padding too.
    """

    forget_roles = (FORGET, ALTERNATIVE)

    def __init__(
        self,
        forget_weight: float = 0.5,
        mismatch_weight: float = 1.0,
        retain_weight: float = 1.0,
        alternative: AlternativeKind = "retain_answer",
    ) -> None:
        """Checks the weights.

        Args:
            forget_weight: Weight γ of the ascent.
            mismatch_weight: Weight μ of the other answer's nll.
            retain_weight: Weight α of the divergence.
            alternative: Kind of the other answer: a refusal, the answer of a random retain record, that of the most
                similar normal sample, or (data) those of --data.alternatives.
        """
        super().__init__("kl", forget_weight, retain_weight)
        check_finite(0, mismatch_weight=mismatch_weight)
        self.mismatch_weight, self.alternative = mismatch_weight, alternative

    @property
    def needs(self) -> Needs:
        return replace(super().needs, alternative=self.alternative)

    def forget(self, tokens: AnswerTokens) -> Tensor:
        return -tokens.of(FORGET).nll

    def forward(self, tokens: AnswerTokens) -> Tensor:
        return super().forward(tokens) + self.mismatch_weight * tokens.of(ALTERNATIVE).nll.mean()


class SmoothedGradientDifference(TokenLoss):
    """Smoothed Gradient Ascent with additional descent on random retain samples other than the normal samples.

    L = L_SGA(r) + α·mean nll of `retain_samples` random records of the retain split for each group. At r = 0 it is
    TOFU's gradient difference on random retain samples. Source: L_SGA of Pang et al., arXiv 2510.22376, with the retain
    term of TOFU, arXiv 2401.06121.
    """

    def __init__(
        self,
        smoothing_rate: float = -0.8,
        retain_weight: float = 1.0,
        retain_samples: int = 1,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            smoothing_rate: Smoothing rate r in (−∞, 1].
            retain_weight: Weight α of the retain samples' mean nll.
            retain_samples: Number of retain samples for each group; the same ones in every epoch.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__()
        self.average_over(average)
        check_finite(0, retain_weight=retain_weight)
        check_numbers(1, retain_samples=retain_samples)
        self._ascent = SmoothedGradientAscent(smoothing_rate)
        self.uses_normals = self._ascent.uses_normals
        self.smoothing_rate, self.retain_weight, self.retain_samples = smoothing_rate, retain_weight, retain_samples

    @property
    def needs(self) -> Needs:
        return Needs(retain=self.retain_samples)

    def roles(self, step: int) -> tuple[str, ...]:
        return (*super().roles(step), RETAIN)

    def forward(self, tokens: AnswerTokens) -> Tensor:
        ascent: Tensor = self._ascent(self.nll(tokens.of(FORGET, NORMAL)))
        return ascent + self.retain_weight * self.nll(tokens.of(RETAIN)).mean()
