"""Forgetting by steering a hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sga.errors import UserError, check_finite
from sga.groups.roles import FORGET, NORMAL
from sga.likelihood.answer_tokens import AnswerTokens
from sga.losses.base import Needs, TokenLoss, check_normals


class RMU(TokenLoss):
    """Steers a block's output on forget answers to a random direction and preserves it on normal answers.

    L = mean over groups and answer tokens of ‖h(x_f) − c·u‖² + α·‖h(x_n) − h_ref(x_n)‖², u a random unit vector with
    entries drawn from [0, 1) before normalisation. The paper forgets plain texts, all of whose tokens count (here all
    but the first); its settings for a 7 B model are c = 6.5 and α = 1200.
    Source: WMDP, Li et al., arXiv 2403.03218. Compared with a copy of its code (hkhanuja/Unlearning at 5a586f57) and
    with open-unlearning at 7fa0b552: both average over the hidden size too (norm ``mean``) and train the last matrix of
    the blocks' MLP alone (`trained_weights`); the first counts padding, the second answer tokens, as here.
    """

    def __init__(
        self,
        layer: int = 7,
        trained_layers: Sequence[int] | None = None,
        trained_weights: str | None = None,
        steering: float = 2.0,
        retain_weight: float = 1.0,
        norm: Literal["sum", "mean"] = "sum",
        seed: int = 0,
    ) -> None:
        """Checks the settings.

        Args:
            layer: Index of the block whose output is steered, from 0; negative indices count from the last block.
            trained_layers: Indices of the blocks to train; null for `layer` and the two before it.
            trained_weights: Ending of the names of the weights to train in these blocks, such as
                ``mlp.down_proj.weight`` (Llama) in published code; null trains all of them.
            steering: Length c of the vector that forget answers are steered to.
            retain_weight: Weight α of the term on normal samples.
            norm: Reduction of squares over the hidden size, ``sum`` or ``mean``.
            seed: Seed of the random direction u.
        """
        super().__init__()
        check_finite(0, steering=steering, retain_weight=retain_weight)
        if norm not in ("sum", "mean"):
            raise UserError(f"norm must be sum or mean, got {norm!r}")
        if trained_layers is None:
            trained_layers = [place for place in range(layer - 2, layer + 1) if (place < 0) == (layer < 0)]
        if not trained_layers or any((place < 0) != (layer < 0) or place > layer for place in trained_layers):
            raise UserError(
                f"trained_layers must be blocks up to layer {layer}, counted from the same end, got "
                f"{list(trained_layers)}: later ones do not change what is steered"
            )
        self.layer, self.trained_layers, self.trained_weights = layer, tuple(trained_layers), trained_weights
        self.steering, self.retain_weight, self.norm, self.seed = steering, retain_weight, norm, seed

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=(NORMAL,),
            hidden_layer=self.layer,
            trained_layers=self.trained_layers,
            trained_weights=self.trained_weights,
        )

    def check_group_size(self, group_size: int) -> None:
        check_normals(self, group_size)

    def direction(self, size: int) -> Tensor:
        """The random unit vector u, [size]."""
        u = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        return functional.normalize(u, dim=0)

    def forward(self, tokens: AnswerTokens) -> Tensor:
        forget, normal = tokens.of(FORGET), tokens.of(NORMAL)
        assert forget.hidden is not None and normal.hidden is not None, "named among the needs"
        assert normal.reference is not None and normal.reference.hidden is not None, "named among the needs"
        target = self.steering * self.direction(forget.hidden.shape[-1]).to(forget.hidden)
        away = forget.mean(self._squared(forget.hidden - target)).mean()
        kept = normal.mean(self._squared(normal.hidden - normal.reference.hidden)).mean()
        return away + self.retain_weight * kept

    def _squared(self, difference: Tensor) -> Tensor:  # [M, H] -> [M]
        squares = difference.square()
        return squares.sum(dim=-1) if self.norm == "sum" else squares.mean(dim=-1)
