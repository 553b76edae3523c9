"""What losses read: a model's numbers at the answer tokens of a batch, by group and by role."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sga.groups.roles import columns_of


@dataclass(frozen=True)
class AnswerTokens:
    """B groups of C sequences with M answer tokens in all, the end-of-sequence tokens counted; row b·C + c is
    sequence c of group b.

    Attributes:
        roles: Role of each of the C columns.
        token_nll: [M], −log p of each answer token, nats.
        targets: [M], the answer tokens.
        rows: [M], the sequence that each belongs to; rising.
        lengths: [B, C], answer tokens of each sequence.
        sequence_lengths: [B, C], all its tokens, the prompt's too.
        logits: [M, V] that predict the answer tokens; None unless the loss asks for them.
        hidden: [M, H], a block's output at the answer tokens; None unless the loss asks for it.
        mean_lengths: As in `sga.batching.batch.Batch`.
        reference_nll: [B, C], what the starting model gives as `total_nll`; NaN where the loss does not ask for it.
        reference: The starting model's numbers for the columns of some roles; None unless the loss asks for them.
    """

    roles: tuple[str, ...]
    token_nll: Tensor
    targets: Tensor
    rows: Tensor
    lengths: Tensor
    sequence_lengths: Tensor
    logits: Tensor | None = None
    hidden: Tensor | None = None
    reference_nll: Tensor | None = None
    reference: AnswerTokens | None = None
    mean_lengths: tuple[float, ...] | None = None

    def total(self, values: Tensor) -> Tensor:
        """Sums over each sequence's answer tokens, [M] -> [B, C]."""
        sums = torch.zeros(self.lengths.numel(), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.rows, values).view_as(self.lengths)  # [B*C] -> [B, C]

    def mean(self, values: Tensor) -> Tensor:
        """Means over each sequence's answer tokens, [M] -> [B, C]."""
        return self.total(values) / self.lengths

    def token_mean(self, values: Tensor) -> Tensor:
        """Each sequence's part in a mean over tokens, [M] -> [B, C]: the mean of a role's parts over the groups of an
        optimiser step, and over its columns, is the mean over all answer tokens that this role has in the step."""
        total = self.total(values)
        if self.mean_lengths is not None:
            return total / total.new_tensor(self.mean_lengths)
        lengths = self.lengths.to(total).mean(dim=0)  # [C]
        roles = [columns_of(self.roles, [role]) for role in self.roles]
        return total / torch.stack([lengths[columns].mean() for columns in roles])

    @property
    def places(self) -> Tensor:
        """Place of each answer token in its answer, counted from 0, [M]."""
        lengths = self.lengths.flatten()  # [B, C] -> [B*C]
        return torch.arange(len(self.rows), device=self.rows.device) - (lengths.cumsum(0) - lengths)[self.rows]

    @property
    def nll(self) -> Tensor:
        """Mean negative log-likelihood of each sequence, [B, C], nats per token."""
        return self.mean(self.token_nll)

    @property
    def mean_nll(self) -> dict[str, Tensor]:
        """Mean of `nll` over groups and the columns of each role, by role."""
        columns = {role: columns_of(self.roles, [role]) for role in dict.fromkeys(self.roles)}
        nll = self.nll.unbind(dim=1)  # columns, without an index that a GPU is waited for
        return {role: torch.stack([nll[column] for column in chosen]).mean() for role, chosen in columns.items()}

    @property
    def total_nll(self) -> Tensor:
        """Negative log-likelihood of each sequence, [B, C], nats."""
        return self.total(self.token_nll)

    @property
    def log_ratio(self) -> Tensor:
        """log p − log p_ref of each sequence, [B, C], nats."""
        assert self.reference_nll is not None, "the loss's needs name reference_nll"
        return self.reference_nll.to(self.token_nll) - self.total_nll

    @property
    def log_probabilities(self) -> Tensor:
        """log p of every token of the vocabulary at each answer token, [M, V]."""
        assert self.logits is not None, "the loss's needs name logits"
        return self.logits.log_softmax(dim=-1)

    def of(self, *roles: str) -> AnswerTokens:
        """The columns of some roles alone, in their order."""
        columns = columns_of(self.roles, roles)
        assert columns, f"there is a sequence of role {' or '.join(roles)}"
        if len(columns) == len(self.roles):
            return self
        index = torch.full((len(self.roles),), -1, device=self.rows.device)
        index[columns] = torch.arange(len(columns), device=self.rows.device)
        group, column = self.rows // len(self.roles), index[self.rows % len(self.roles)]  # [M]
        kept = column >= 0

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[kept]

        there = self.reference is not None and columns_of(self.reference.roles, roles)
        return replace(
            self,
            roles=tuple(self.roles[column] for column in columns),
            token_nll=self.token_nll[kept],
            targets=self.targets[kept],
            rows=(group * len(columns) + column)[kept],
            lengths=self.lengths[:, columns],
            sequence_lengths=self.sequence_lengths[:, columns],
            logits=cut(self.logits),
            hidden=cut(self.hidden),
            mean_lengths=self.mean_lengths and tuple(self.mean_lengths[column] for column in columns),
            reference_nll=None if self.reference_nll is None else self.reference_nll[:, columns],
            reference=self.reference.of(*roles) if self.reference is not None and there else None,
        )
