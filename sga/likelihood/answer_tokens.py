"""A model's numbers at the answer tokens of a batch, by group and by role, which losses read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sga.batching.batch import to_device
from sga.groups.roles import columns_of


@dataclass(frozen=True)
class AnswerTokens:
    """Numbers of B groups of C sequences with M answer tokens in all, end-of-sequence tokens included; row b·C + c is
    sequence c of group b.

    Attributes:
        roles: Role of each of the C columns.
        token_nll: Negative log-probability of each answer token, [M], nats.
        targets: Token ids of the answer tokens, [M].
        rows: Row of the sequence that each answer token belongs to, [M], ascending.
        lengths: Number of answer tokens of each sequence, [B, C].
        sequence_lengths: Number of all tokens of each sequence, [B, C], prompt included.
        logits: Logits that predict the answer tokens, [M, V]; None unless the loss needs them.
        hidden: Output of a block at the answer tokens, [M, H]; None unless the loss needs it.
        mean_lengths: Mean number of answer tokens for the role of each of the C columns, over all groups of the
            optimiser step; None if these groups are the whole step.
        reference_nll: Negative log-likelihood of each answer under the starting model, [B, C], nats, summed over
            tokens; NaN for roles for which the loss does not need it.
        host_rows: Copy of `rows` on the CPU, [M]; None if it has to be read from the device.
        reference: Starting model's numbers for the columns of some roles; None unless the loss needs them.
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
    host_rows: NDArray[np.int64] | None = None
    mean_lengths: tuple[float, ...] | None = None

    def total(self, values: Tensor) -> Tensor:
        """Sums values over each sequence's answer tokens, [M] -> [B, C]."""
        sums = torch.zeros(self.lengths.numel(), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.rows, values).view_as(self.lengths)  # [B*C] -> [B, C]

    def mean(self, values: Tensor) -> Tensor:
        """Averages values over each sequence's answer tokens, [M] -> [B, C]."""
        return self.total(values) / self.lengths

    def token_mean(self, values: Tensor) -> Tensor:
        """Part of each sequence in a mean over tokens, [M] -> [B, C]: averaged over the groups of an optimiser step and
        the columns of a role, the parts give the mean over all answer tokens of this role in the step."""
        total = self.total(values)
        if self.mean_lengths is not None:
            return total / to_device(torch.tensor(self.mean_lengths, dtype=total.dtype), total.device)
        lengths = self.lengths.to(total).mean(dim=0)  # [C]
        roles = [columns_of(self.roles, [role]) for role in self.roles]
        return total / torch.stack([lengths[columns].mean() for columns in roles])

    @property
    def places(self) -> Tensor:
        """Position of each answer token in its answer, from 0, [M]."""
        lengths = self.lengths.flatten()  # [B, C] -> [B*C]
        return torch.arange(len(self.rows), device=self.rows.device) - (lengths.cumsum(0) - lengths)[self.rows]

    @property
    def nll(self) -> Tensor:
        """Mean negative log-likelihood of each sequence, [B, C], nats per token."""
        return self.mean(self.token_nll)

    @property
    def mean_nll(self) -> dict[str, Tensor]:
        """Mean of `nll` over groups and columns, by role, nats per token."""
        columns = {role: columns_of(self.roles, [role]) for role in dict.fromkeys(self.roles)}
        nll = self.nll.unbind(dim=1)  # columns, without an index tensor, which would synchronise with the GPU
        return {role: torch.stack([nll[column] for column in chosen]).mean() for role, chosen in columns.items()}

    @property
    def total_nll(self) -> Tensor:
        """Negative log-likelihood of each sequence, [B, C], nats, summed over its answer tokens."""
        return self.total(self.token_nll)

    @property
    def log_ratio(self) -> Tensor:
        """Difference log p − log p_ref of each sequence, [B, C], nats."""
        assert self.reference_nll is not None, "the loss's needs name reference_nll"
        return self.reference_nll.to(self.token_nll) - self.total_nll

    @property
    def log_probabilities(self) -> Tensor:
        """Log-probabilities of the whole vocabulary at each answer token, [M, V], nats."""
        assert self.logits is not None, "the loss's needs name logits"
        return self.logits.log_softmax(dim=-1)

    def of(self, *roles: str) -> AnswerTokens:
        """The numbers of the columns with some roles alone, in order."""
        columns = columns_of(self.roles, roles)
        assert columns, f"there is a sequence of role {' or '.join(roles)}"
        if len(columns) == len(self.roles):
            return self
        # On the CPU, because a GPU's mask would have to be waited for.
        rows = self.rows.cpu().numpy() if self.host_rows is None else self.host_rows
        index = np.full(len(self.roles), -1)
        index[columns] = np.arange(len(columns))
        column = index[rows % len(self.roles)]  # [M]
        places = np.flatnonzero(column >= 0)
        chosen = (rows // len(self.roles) * len(columns) + column)[places]
        kept, moved = to_device(np.stack([places, chosen]), self.rows.device)

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[kept]

        def at_columns(values: Tensor) -> Tensor:
            return torch.stack([values[:, column] for column in columns], dim=1)

        there = self.reference is not None and columns_of(self.reference.roles, roles)
        return replace(
            self,
            roles=tuple(self.roles[column] for column in columns),
            token_nll=self.token_nll[kept],
            targets=self.targets[kept],
            rows=moved,
            host_rows=chosen,
            lengths=at_columns(self.lengths),
            sequence_lengths=at_columns(self.sequence_lengths),
            logits=cut(self.logits),
            hidden=cut(self.hidden),
            mean_lengths=self.mean_lengths and tuple(self.mean_lengths[column] for column in columns),
            reference_nll=None if self.reference_nll is None else at_columns(self.reference_nll),
            reference=self.reference.of(*roles) if self.reference is not None and there else None,
        )
