"""Forgetting by maximising an f-divergence between two answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from sga.errors import UserError
from sga.groups.group import AlternativeKind
from sga.groups.roles import ALTERNATIVE, FORGET, columns_of
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Needs, TokenLoss

DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "total_variation": (lambda x: x.tanh() / 2, lambda u: u),
    "kl": (lambda x: x, lambda u: (u - 1).exp()),
    "jensen_shannon": (lambda x: math.log(2) - softplus(-x), lambda u: -(2 - u.exp()).log()),
    "pearson": (lambda x: x, lambda u: u * u / 4 + u),
}
"""Variational function g* and conjugate f* of each divergence, as in arXiv 2410.11143."""


class FLAT(TokenLoss):
    """Makes another answer to the forget question likely and the forget answer unlikely, weighted by an f-divergence.

    L = mean over groups of −g*(P_good) + f*(g*(P_bad)), where P is the mean over an answer's tokens of their
    probability, good the other answer and bad the forget answer. No retain data.
    Source: Wang et al., arXiv 2410.11143. Compared with UCSC-REAL/FLAT at 05a6e6ab: the same g* and f*∘g* in closed
    form, applied to P averaged over the batch, where this and every other loss here is a mean over groups.
    """

    uses_normals = False

    def __init__(
        self,
        divergence: Literal["total_variation", "kl", "jensen_shannon", "pearson"] = "total_variation",
        alternative: AlternativeKind = "refusal",
        average: Literal["answer", "sequence"] = "answer",
    ) -> None:
        """Checks the settings.

        Args:
            divergence: Name of the f-divergence.
            alternative: Kind of the good answer: a refusal, the answer of a random retain record, that of the most
                similar normal sample, or (data) those of --data.alternatives, each of which counts as one.
            average: Positions over which P is averaged. ``answer`` is the paper's definition; ``sequence`` counts each
                prompt position as 0, as the published code does (which counts padding too).
        """
        super().__init__()
        if divergence not in DIVERGENCES:
            raise UserError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
        if average not in ("answer", "sequence"):
            raise UserError(f"average must be answer or sequence, got {average!r}")
        self.divergence, self.alternative, self.average = divergence, alternative, average

    @property
    def needs(self) -> Needs:
        return Needs(alternative=self.alternative)

    def roles(self, step: int) -> tuple[str, ...]:
        return FORGET, ALTERNATIVE

    def forward(self, tokens: AnswerTokens) -> Tensor:
        lengths = tokens.lengths if self.average == "answer" else tokens.sequence_lengths
        probability = tokens.total((-tokens.token_nll).exp()) / lengths  # [B, 1 + M], M alternatives
        bad, good = (probability[:, columns_of(tokens.roles, [role])] for role in (FORGET, ALTERNATIVE))
        optimal, conjugate = DIVERGENCES[self.divergence]
        return (conjugate(optimal(bad)) - optimal(good)).mean()  # [B, 1] - [B, M]
