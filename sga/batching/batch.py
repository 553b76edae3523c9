"""Batches of token ids: B groups of K sequences, padded.

`Batch.scale` is a factor by which the losses of an optimiser step's micro-batches sum to the mean over its groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, columns_of

if TYPE_CHECKING:
    from sga.batching.encoding import Encoded  # imports transformers, which losses do without


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Copies numbers to a device without synchronising with the GPU, unlike ``torch.tensor`` and a plain ``to``."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    # Apple's GPUs may read unpinned memory too late (https://github.com/pytorch/pytorch/issues/83015).
    return pinned.to(device, non_blocking=device.type != "mps")


@dataclass  # not frozen: Lightning converts dataclasses field by field
class Batch:
    """B groups of K sequences, flattened; row b·K is the forget sample of group b.

    Sequences that a method reads besides forget and normal samples follow them in each group, and count in K.

    Attributes:
        input_ids: Token ids, [B*K, T], padded on the right.
        attention_mask: Mask of real tokens, [B*K, T], 1 on them; made from lengths, because the pad token and the
            end-of-sequence token may have the same id.
        answer_mask: Mask of answer tokens, [B*K, T], True on them, the end-of-sequence token included. Column 0 is
            always False.
        group_size: Number K of sequences of each group in this batch.
        scale: Factor on the mean loss over these B groups (see the module's docstring); 1 for a whole step.
        tokens: Number of real tokens of the batch.
        roles: Role of each of the K sequences, see `sga.groups.roles`.
        reference_nll: Negative log-likelihood of each answer under the starting model, [B, K], nats, summed over its
            tokens; NaN where unknown. None if the loss does not need it.
        mean_lengths: Mean number of answer tokens for the role of each of the K columns, over all groups of the
            optimiser step; None if the batch is the whole step.
        bounds: Number of prompt tokens and of all tokens of each sequence, B·K pairs: the content of the masks on the
            CPU, so that a GPU need not be synchronised. None if only the masks are known.
        keys: Number of each sequence, B·K, equal for sequences with the same tokens; None if unknown.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_mask: Tensor
    group_size: int
    scale: float
    tokens: int
    roles: tuple[str, ...]
    reference_nll: Tensor | None = None
    bounds: tuple[tuple[int, int], ...] | None = None
    keys: tuple[int, ...] | None = None
    mean_lengths: tuple[float, ...] | None = None

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each sequence, B·K."""
        if self.bounds is None:
            return self.attention_mask.sum(dim=1).tolist()
        return [length for _, length in self.bounds]

    def answer_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Index of the sequence of each answer token, and position in that sequence, [M] each, in reading order."""
        if self.bounds is None:
            rows, places = self.answer_mask.nonzero().cpu().numpy().T
            return rows, places
        rows = np.repeat(np.arange(len(self.bounds)), [length - prompt for prompt, length in self.bounds])
        return rows, np.concatenate([np.arange(prompt, length) for prompt, length in self.bounds])

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """The batch with its tensors on a device; Lightning calls it for every batch."""
        moved: dict[str, Any] = {
            name: to_device(value, torch.device(device))
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def forget_only(self) -> Batch:
        """The forget samples of the groups alone (K = 1), for losses that do not read normal samples."""
        return self.select(FORGET)

    def normals_only(self) -> Batch:
        """The normal samples and alternatives of the groups, without the forget samples; needs K of at least 2."""
        return self.select(NORMAL, ALTERNATIVE)

    def select(self, *roles: str) -> Batch:
        """The sequences of some roles alone, without unneeded padding."""
        columns = columns_of(self.roles, roles)
        assert columns, f"there is a sequence of role {' or '.join(roles)}"
        if len(columns) == self.group_size:
            return self

        def cut(values: Tensor) -> Tensor:
            return torch.stack(
                [values.view(-1, self.group_size, values.shape[1])[:, c] for c in columns], dim=1
            ).flatten(0, 1)  # -> [B*count, T]

        bounds = self.bounds and tuple(
            pair for index, pair in enumerate(self.bounds) if index % self.group_size in columns
        )
        keys = self.keys and tuple(key for index, key in enumerate(self.keys) if index % self.group_size in columns)
        attention = cut(self.attention_mask)
        lengths = attention.sum(dim=1).tolist() if bounds is None else [length for _, length in bounds]
        width = max(lengths)
        return replace(
            self,
            input_ids=cut(self.input_ids)[:, :width],
            attention_mask=attention[:, :width],
            answer_mask=cut(self.answer_mask)[:, :width],
            group_size=len(columns),
            tokens=sum(lengths),
            roles=tuple(self.roles[column] for column in columns),
            reference_nll=None if self.reference_nll is None else self.reference_nll[:, columns],
            bounds=bounds,
            keys=keys,
            mean_lengths=self.mean_lengths and tuple(self.mean_lengths[column] for column in columns),
        )


def collate(
    groups: Sequence[Sequence[Encoded]],
    scale: float = 1.0,
    pad_id: int = 0,
    roles: Sequence[str] | None = None,
    reference: Mapping[Encoded, float] | None = None,
    mean_lengths: Mapping[str, float] | None = None,
) -> Batch:
    """Pads B groups of K sequences on the right into one batch.

    Args:
        groups: Encoded sequences of B groups, K each.
        scale: Factor on the mean loss over the groups; see `Batch.scale`.
        pad_id: Token id that pads short rows; never attended to.
        roles: Role of each of the K sequences; by default a forget sample and its normal samples.
        reference: Negative log-likelihood (nats, summed over answer tokens) under the starting model, for sequences
            that need one; None for no sequence.
        mean_lengths: Mean number of answer tokens by role, over the whole optimiser step; None if these groups are the
            whole step.
    """
    group_size = len(groups[0])
    roles = (FORGET, *[NORMAL] * (group_size - 1)) if roles is None else tuple(roles)
    assert len(roles) == group_size, "a role for each sequence"
    rows = [sequence for group in groups for sequence in group]
    assert len(rows) == group_size * len(groups), "groups of one size"
    lengths = torch.tensor([len(row.ids) for row in rows])
    prompts = torch.tensor([row.prompt_length for row in rows])
    width = int(lengths.max())
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
    position = torch.arange(width)
    attention = position < lengths[:, None]  # [B*K, T]
    numbers: dict[Encoded, int] = {}
    return Batch(
        input_ids=input_ids,
        attention_mask=attention.long(),
        answer_mask=attention & (position >= prompts[:, None]),
        group_size=group_size,
        scale=scale,
        tokens=int(lengths.sum()),
        roles=roles,
        reference_nll=None
        if reference is None
        else torch.tensor([reference.get(row, math.nan) for row in rows]).view(-1, group_size),  # [B*K] -> [B, K]
        bounds=tuple((row.prompt_length, len(row.ids)) for row in rows),
        keys=tuple(numbers.setdefault(row, len(numbers)) for row in rows),
        mean_lengths=None if mean_lengths is None else tuple(mean_lengths[role] for role in roles),
    )
