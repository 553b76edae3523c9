"""Base classes of losses, and the needs that a loss declares.

There are three kinds, each a few lines to add: a `Loss` reads nll [B, K]; a `TokenLoss` reads everything in
`AnswerTokens`; a `RetainingLoss` is a TokenLoss that defines its forget term and adds one of the usual retain terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from sga.errors import UserError, check_finite
from sga.groups.group import AlternativeKind
from sga.groups.roles import FORGET, NORMAL
from sga.likelihood.answer_tokens import AnswerTokens
from sga.rates.policies import RatePolicy

RetainTerm = Literal["nll", "kl", "reverse_kl"]
Average = Literal["sequence", "token"]
"""Kind of mean in a loss: over each sequence's tokens and then groups, or over all answer tokens of an optimiser step.
"""


@dataclass(frozen=True)
class Needs:
    """Needs of a loss besides the nll of forget and normal samples; only what is named here is computed.

    Attributes:
        alternative: Kind of another answer to each forget question, in a column of role ``alternative``; None for none.
        retain: Number of random retain samples for each group, in columns of role ``retain``.
        reference_nll: Roles whose answers the starting model scores once, before training.
        reference: Roles whose sequences the starting model reads at every step, which takes a second model in memory.
        logits: True to provide the [M, V] logits, also of the reference.
        hidden_layer: Index of the block, from 0, whose output at the answer tokens is provided; None for none.
        trained_layers: Indices of the blocks to train; None trains the whole model.
        trained_weights: Ending of the names of the weights to train in these blocks; None trains all.
        whole: Roles whose sequences count from their second token on, prompt tokens included.
    """

    alternative: AlternativeKind | None = None
    retain: int = 0
    reference_nll: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    logits: bool = False
    hidden_layer: int | None = None
    trained_layers: tuple[int, ...] | None = None
    trained_weights: str | None = None
    whole: tuple[str, ...] = ()


class Loss(nn.Module):
    """A scalar from nll [B, K], the mean negative log-likelihood (nats per answer token) of each of B groups' forget
    sample (column 0) and of its K−1 normal samples. It is a mean over groups, so that micro-batches do not change it.

    Subclasses set `uses_normals` to False if they read column 0 only; the module then leaves the other sequences out
    of the forward pass.
    """

    uses_normals: bool = True
    mean_over: Average = "sequence"
    """Kind of mean; ``token`` makes `mean` and `nll` parts of a mean over all answer tokens of a role in an optimiser
    step, as published trainers average over a batch."""

    def average_over(self, average: Average) -> None:
        """Sets `mean_over`; raises a UserError for any other name."""
        if average not in get_args(Average):
            raise UserError(f"average must be sequence or token, got {average!r}")
        self.mean_over = average

    def mean(self, tokens: AnswerTokens, values: Tensor) -> Tensor:
        """Means per sequence of values per answer token, of the kind `mean_over`, [M] -> [B, C].

        The mean of the result over groups is a term of the loss.
        """
        return tokens.mean(values) if self.mean_over == "sequence" else tokens.token_mean(values)

    def nll(self, tokens: AnswerTokens) -> Tensor:
        """`mean` of the tokens' nll, [B, C]."""
        return self.mean(tokens, tokens.token_nll)

    @property
    def needs(self) -> Needs:
        """Needs of this loss besides the nll of forget and normal samples."""
        return Needs()

    @property
    def policy(self) -> RatePolicy | None:
        """Policy that sets the loss's number during training; None if it is fixed, or there is none."""
        return None

    def check_group_size(self, group_size: int) -> None:
        """Raises a UserError if this loss cannot work with groups of K = `group_size`."""

    def check_alternatives(self, count: int) -> None:
        """Raises a UserError where this loss cannot work with `count` alternatives among a group's normals."""
        if count and self.needs.alternative != "data":
            raise UserError(
                f"{type(self).__name__} has no use for alternatives among the normals, which are for "
                "SmoothedGradientAscent and GradientDifference, and for DPO and its like with --model.loss.alternative "
                "data: leave --data.alternatives out"
            )
        if not count and self.needs.alternative == "data":
            raise UserError(
                f"{type(self).__name__} with alternative data takes the answers of --data.alternatives, and there are "
                "none: set it, or give alternative another value"
            )

    def roles(self, step: int) -> tuple[str, ...]:
        """Roles of the sequences that take part in the forward pass after `step` optimiser steps."""
        return (FORGET, NORMAL) if self.uses_normals else (FORGET,)

    def of(self, tokens: AnswerTokens, *settings: float) -> Tensor:
        """Loss of a model's numbers on a batch; `settings` is the policy's number, if there is a policy."""
        loss: Tensor = self(self.nll(tokens), *settings)
        return loss


class TokenLoss(Loss):
    """A scalar from `AnswerTokens`; its `forward` takes them and returns the mean over groups."""

    def of(self, tokens: AnswerTokens, *settings: float) -> Tensor:
        loss: Tensor = self(tokens)
        return loss


class RetainingLoss(TokenLoss, ABC):
    """Base of losses γ·L_forget + α·L_retain, with L_retain over the group's normal samples.

    L_retain is ``nll``, the mean of their nll; ``kl``, KL(p_ref ‖ p_θ); or ``reverse_kl``, KL(p_θ ‖ p_ref), both
    averaged over answer tokens, with p_ref of the starting model.
    """

    forget_roles: tuple[str, ...] = (FORGET,)
    """Roles of the sequences that `forget` reads."""

    def __init__(
        self, retain: RetainTerm | None, forget_weight: float, retain_weight: float, average: Average = "sequence"
    ) -> None:
        super().__init__()
        self.average_over(average)
        if retain not in (None, "nll", "kl", "reverse_kl"):
            raise UserError(f"retain must be nll, kl, reverse_kl or null, got {retain!r}")
        check_finite(0, forget_weight=forget_weight, retain_weight=retain_weight)
        self.retain, self.forget_weight, self.retain_weight = retain, forget_weight, retain_weight
        self.uses_normals = retain is not None

    @abstractmethod
    def forget(self, tokens: AnswerTokens) -> Tensor:
        """The forget term of each group, [B, 1], or of each of its alternatives, [B, M]."""

    @property
    def needs(self) -> Needs:
        divergence = self.retain in ("kl", "reverse_kl")
        return Needs(reference=(NORMAL,) if divergence else (), logits=divergence)

    def check_group_size(self, group_size: int) -> None:
        if self.retain is not None:
            check_normals(self, group_size)

    def roles(self, step: int) -> tuple[str, ...]:
        return (*self.forget_roles, NORMAL) if self.uses_normals else self.forget_roles

    def forward(self, tokens: AnswerTokens) -> Tensor:
        loss = self.forget_weight * self.forget(tokens).mean()
        if self.retain is not None:
            loss = loss + self.retain_weight * self.retained(tokens.of(NORMAL)).mean()
        return loss

    def retained(self, normal: AnswerTokens) -> Tensor:
        """Retain term of each normal sample, [B, C]."""
        if self.retain == "nll":
            return self.nll(normal)
        assert normal.reference is not None, "the loss's needs name the reference of normal samples"
        ours, theirs = normal.log_probabilities, normal.reference.log_probabilities  # [M, V]
        p, q = (theirs, ours) if self.retain == "kl" else (ours, theirs)
        return self.mean(normal, functional.kl_div(q, p, log_target=True, reduction="none").sum(dim=-1))


def check_normals(loss: Loss, group_size: int) -> None:
    """Raises a UserError if groups have no normal samples."""
    if group_size < 2:
        raise UserError(
            f"{type(loss).__name__} needs normal samples: group_size must be at least 2, got {group_size} "
            "(set --data.group_size)"
        )
