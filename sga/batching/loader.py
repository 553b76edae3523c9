"""Loader of training groups, which splits an epoch into batches and resumes exactly.

An optimiser step sees `batch_size` groups, independent of the number of processes and of the size of a forward pass:
the loader splits each step's groups into micro-batches, and by `Batch.scale` their losses sum to the mean over the
step's groups. So loss and gradient do not depend on micro-batch size, accumulation, padding and world size, also in the
last, smaller step of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.errors import UserError
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, columns_of


class GroupLoader:
    """Loader of the micro-batches of one epoch, in an order drawn from (seed, epoch); it can be stopped and resumed.

    Lightning saves `state_dict` in its checkpoints, so a run resumes at the micro-batch where it stopped.

    Args:
        groups: Encoded sequences of each group.
        batch_size: Number of groups per optimiser step, over all processes.
        micro_batch_size: Number of groups per forward pass and process; None for all of the process's groups of a step.
        seed: Seed of the order of groups, and of the draws of normals.
        rank: Index of this process, from 0.
        world_size: Number of processes.
        pad_id: Token id that pads short rows; never attended to.
        roles: Role of each sequence of each group, see `collate`; by default a forget sample and its normal samples.
            Groups may differ in the number of samples to draw from, not in the number drawn.
        group_size: Number of forget and normal samples of a group in an epoch: of more normal samples each epoch uses
            `group_size` − 1, drawn from (seed, epoch, group). None uses all.
        alternatives: Number of alternatives of a group in an epoch, drawn in the same way. None uses all.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Encoded]],
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pad_id: int = 0,
        roles: Sequence[Sequence[str]] | None = None,
        group_size: int | None = None,
        alternatives: int | None = None,
    ) -> None:
        if not groups:
            raise UserError("there is nothing to train on: the training splits hold no record")
        for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.groups = groups
        self._sizes = [sum(len(row.ids) for row in group) for group in groups]
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or -(-batch_size // world_size)
        self.seed, self.rank, self.world_size, self.pad_id = seed, rank, world_size, pad_id
        self.roles = [(FORGET, *[NORMAL] * (len(group) - 1)) for group in groups] if roles is None else roles
        self.reference: Mapping[Encoded, float] | None = None
        """Negative log-likelihoods under the starting model, set once they are known; see `collate`."""
        self._limits = {
            NORMAL: (None if group_size is None else group_size - 1, 0xD4A3),
            ALTERNATIVE: (alternatives, 0xA17D),
        }
        """Number of samples that an epoch uses, and the number of their random stream, by role."""
        self.steps_per_epoch = -(-len(groups) // batch_size)
        """Number of optimiser steps of an epoch."""
        self.repeats = False
        """True if every epoch repeats the first one."""
        self.epoch = 0
        self.position = 0  # number of micro-batches of this epoch yielded so far

    @property
    def accumulation(self) -> int:
        """Number of micro-batches of each process in a full optimiser step."""
        return -(-self.batch_size // (self.micro_batch_size * self.world_size))

    def limit(self, batches: float, repeats: bool = False) -> None:
        """Shortens every epoch to whole optimiser steps, for Lightning's ``limit_train_batches`` and the like.

        Args:
            batches: Number of micro-batches of an epoch (int) or share of them (float), rounded up to whole steps.
            repeats: True if every epoch uses the same groups (``overfit_batches``).
        """
        number = batches if isinstance(batches, int) else int(len(self) * batches)
        self.steps_per_epoch = min(self.steps_per_epoch, max(1, -(-number // self.accumulation)))
        self.repeats = repeats

    def __len__(self) -> int:
        full, rest = divmod(min(len(self.groups), self.steps_per_epoch * self.batch_size), self.batch_size)
        return full * self.accumulation + -(-rest // (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        measured, lengths = None, {}
        for number, (indices, scale, step) in enumerate(self._plan(self._drawn_epoch)):
            if number < self.position:
                continue
            self.position = number + 1
            if measured is not step:
                measured, lengths = step, self._mean_lengths(step)
            drawn = [self.drawn(index) for index in indices]
            yield collate([rows for rows, _ in drawn], scale, self.pad_id, drawn[0][1], self.reference, lengths)

    def _mean_lengths(self, step: Sequence[int]) -> dict[str, float]:
        """Mean number of answer tokens by role over the groups `step` of an optimiser step."""
        found: dict[str, list[int]] = {}
        for rows, roles in map(self.drawn, step):
            for row, role in zip(rows, roles, strict=True):
                found.setdefault(role, []).append(row.answer_length)
        return {role: sum(lengths) / len(lengths) for role, lengths in found.items()}

    @property
    def _drawn_epoch(self) -> int:
        return 0 if self.repeats else self.epoch

    def drawn(self, index: int) -> tuple[list[Encoded], list[str]]:
        """Sequences of a group in this epoch with their roles; the same in every process and after a resume."""
        group, roles = self.groups[index], self.roles[index]
        kept = set(range(len(roles)))
        for role, (limit, stream) in self._limits.items():
            places = columns_of(roles, [role])
            if limit is not None and len(places) > limit:
                draws = np.random.default_rng([self.seed, self._drawn_epoch, index, stream])
                kept -= set(places) - {places[i] for i in draws.choice(len(places), size=limit, replace=False)}
        return [group[place] for place in sorted(kept)], [roles[place] for place in sorted(kept)]

    def _plan(self, epoch: int) -> Iterator[tuple[list[int], float, list[int]]]:
        """Group indices and scale of each micro-batch of this process, with the indices of all groups of its step."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups)).tolist()
        for start in range(0, len(order), self.batch_size)[: self.steps_per_epoch]:
            # Longest first, so that groups of a forward pass, and the work of processes, have similar lengths.
            step = sorted(order[start : start + self.batch_size], key=self._sizes.__getitem__, reverse=True)
            mine = step[self.rank :: self.world_size]
            passes = -(-len(step) // (self.micro_batch_size * self.world_size))
            for number in range(passes):
                part = mine[number * self.micro_batch_size : (number + 1) * self.micro_batch_size]
                # Lightning divides by the accumulation and averages over processes; the scale undoes both. A process
                # without groups left takes part with weight 0, because all processes have to exchange gradients.
                scale = len(part) * self.accumulation * self.world_size / len(step)
                yield (part or step[:1]), scale, step

    def _cut(self) -> dict[str, int]:
        """Settings that the position within an epoch depends on; a checkpoint with others cannot be resumed."""
        return {
            "seed": self.seed,
            "groups": len(self.groups),
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "processes": self.world_size,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "cut": self._cut()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["cut"] != self._cut():
            here = self._cut()
            differences = [
                f"{name} {value} there and {here[name]} here"
                for name, value in state["cut"].items()
                if value != here[name]
            ]
            raise UserError(
                "the checkpoint's position counts other micro-batches than this run's: "
                f"{', '.join(differences)}; resume with the run folder's configuration and as many processes"
            )
        self.epoch, self.position = state["epoch"], state["position"]
