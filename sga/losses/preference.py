"""Descent on other answers than the forget answer, and preferences against it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import logsigmoid

from sga.errors import check_finite
from sga.groups.group import AlternativeKind
from sga.groups.roles import ALTERNATIVE, FORGET
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Average, Needs, RetainingLoss, RetainTerm


class PreferenceOptimization(RetainingLoss):
    """Descends on a refusal to each forget question and on the normal samples; TOFU's PO, also called IDK.

    L = mean over groups of nll(forget question, refusal) + α·mean_k nll_k. The forget answer itself is never read.
    Source: TOFU, Maini et al., arXiv 2401.06121. Compared with locuslab/tofu at 8c49eee7, which takes one mean over the
    tokens of refusals and retain samples together.
    """

    forget_roles = (ALTERNATIVE,)

    def __init__(
        self,
        alternative: AlternativeKind = "refusal",
        retain: RetainTerm | None = "nll",
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            alternative: Kind of answer to learn: a refusal, the answer of a random retain record, that of the most
                similar normal sample, or (data) those of --data.alternatives.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight of the other answer's nll.
            retain_weight: Weight α of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        self.alternative = alternative

    @property
    def needs(self) -> Needs:
        return replace(super().needs, alternative=self.alternative)

    def forget(self, tokens: AnswerTokens) -> Tensor:
        return self.nll(tokens.of(ALTERNATIVE))


class Mismatch(PreferenceOptimization):
    """Descends on the answer of another sample, unrelated to the forget question, and on the normal samples.

    L = mean over groups of nll(forget question, other answer) + α·mean_k nll_k. Source: the baseline of that name in
    FLAT, Wang et al., arXiv 2410.11143, after LLMU, arXiv 2310.10683.
    """

    def __init__(
        self,
        retain: RetainTerm | None = "nll",
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight of the other answer's nll.
            retain_weight: Weight α of the retain term.
            average: Mean per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__("retain_answer", retain, forget_weight, retain_weight, average)


class DPO(RetainingLoss):
    """Prefers a refusal to the forget answer, both relative to the starting model.

    L = γ·mean over groups of −(1/β)·log σ(β·[log(p/p_ref)(refusal) − log(p/p_ref)(forget)]) + α·L_retain, with log p
    summed over answer tokens. Source: Rafailov et al., arXiv 2305.18290, in the form of Eq. 2 of NPO, arXiv 2404.05868;
    codes that share a function with NPO have the factor 2/β, which is forget_weight 2. Compared with locuslab/tofu at
    8c49eee7 (factor 1, forget_weight β), licong-lin/negative-preference-optimization at 9e5f646b and open-unlearning at
    19a6141d (both 2/β).
    """

    forget_roles = (FORGET, ALTERNATIVE)

    def __init__(
        self,
        beta: float = 0.1,
        alternative: AlternativeKind = "refusal",
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            beta: Inverse temperature β, above 0.
            alternative: Kind of preferred answer, as for PreferenceOptimization. Of several of --data.alternatives
                each is preferred to the forget answer, and the term is their mean.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the preference term.
            retain_weight: Weight α of the retain term.
            average: Kind of mean in the retain term: per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(above=0, beta=beta)
        self.beta, self.alternative = beta, alternative

    @property
    def needs(self) -> Needs:
        return replace(super().needs, alternative=self.alternative, reference_nll=self.forget_roles)

    def forget(self, tokens: AnswerTokens) -> Tensor:
        margin = tokens.of(ALTERNATIVE).log_ratio - tokens.of(FORGET).log_ratio  # [B, M] - [B, 1]
        return -logsigmoid(self.beta * margin) / self.beta


class NPO(RetainingLoss):
    """The rejecting half of DPO: ascent that fades out as a sample becomes less likely than under the starting model.

    L = γ·mean over groups of −(2/β)·log σ(−β·log(p/p_ref)(forget)) + α·L_retain, with log p summed over answer tokens.
    For β → 0 its gradient is that of ascent on the summed nll. Source: Eq. 3 of Zhang et al., arXiv 2404.05868, whose
    NPO+KL is written with KL(p_θ ‖ p_ref), ``reverse_kl``. Compared with licong-lin/negative-preference-optimization at
    9e5f646b and open-unlearning at 19a6141d: the same forget term, but KL(p_ref ‖ p_θ), ``kl``.
    """

    def __init__(
        self,
        beta: float = 0.1,
        retain: RetainTerm | None = None,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            beta: Inverse temperature β, above 0.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the preference term.
            retain_weight: Weight α of the retain term.
            average: Kind of mean in the retain term: per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(above=0, beta=beta)
        self.beta = beta

    @property
    def needs(self) -> Needs:
        return replace(super().needs, reference_nll=(FORGET,))

    def forget(self, tokens: AnswerTokens) -> Tensor:
        return -2 / self.beta * logsigmoid(-self.beta * tokens.of(FORGET).log_ratio)


class SimNPO(RetainingLoss):
    """NPO with the length-normalised nll and a margin in place of the reference model.

    L = γ·mean over groups of −(2/β)·log σ(β·nll_0 − δ) + α·L_retain. The defaults are the paper's for TOFU forget10.
    Source: Fan et al., arXiv 2410.07163. Compared with OPTML-Group/Unlearn-Simple at a7782fcf (whose README has these
    defaults) and open-unlearning at 56b662ea: both compute σ(β·(nll_0 − δ)), which is `scaled_margin`.
    """

    def __init__(
        self,
        beta: float = 4.5,
        margin: float = 0.0,
        scaled_margin: bool = False,
        retain: RetainTerm | None = "nll",
        forget_weight: float = 0.125,
        retain_weight: float = 1.0,
        average: Average = "sequence",
    ) -> None:
        """Checks the settings.

        Args:
            beta: Inverse temperature β, above 0.
            margin: Reward margin δ, at least 0.
            scaled_margin: True to multiply the margin by β too, as published code does.
            retain: Kind of retain term on the normal samples (``nll``, ``kl``, ``reverse_kl``); null for none.
            forget_weight: Weight γ of the preference term.
            retain_weight: Weight α of the retain term.
            average: Kind of mean in the retain term: per sequence, or over all answer tokens of an optimiser step.
        """
        super().__init__(retain, forget_weight, retain_weight, average)
        check_finite(above=0, beta=beta)
        check_finite(0, margin=margin)
        self.beta, self.margin, self.scaled_margin = beta, margin, scaled_margin

    def forget(self, tokens: AnswerTokens) -> Tensor:
        margin = self.beta * self.margin if self.scaled_margin else self.margin
        return -2 / self.beta * logsigmoid(self.beta * tokens.of(FORGET).nll - margin)
