"""Greedy decoding in buffers of fixed size: each step does the same work on the same memory, as a CUDA graph needs.

A step of a small model is hundreds of short kernels, which the CPU launches more slowly than the GPU runs them.
Captured as a graph they are launched at once, and the CPU waits for the GPU once in `LOOK` steps. Rows that have ended
are dropped when the buffers are rebuilt: when half of the rows are done, or after `STAGE` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from sga.errors import DivergenceError
from sga.evaluation.request_batches import GenerateBatch
from sga.models import attention
from sga.models.text_config import cache_argument

STAGE = 64
"""Number of new tokens that freshly made buffers have room for."""
LOOK = 16
"""Number of steps between two checks of how many rows have ended."""
_MULTIPLE = 16
"""Multiple that buffer lengths are rounded up to: attention kernels read masks of such lengths without a copy."""


class _FixedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """Keys and values of one layer: the prompts' as they come, then each new token's at its place in a buffer."""

    place: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.place is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
        else:
            assert self.keys is not None and self.values is not None, "the prompts came first"
            self.keys.index_copy_(2, self.place, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, self.place, value_states.to(self.values.dtype))
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def move(self, kept: Tensor, room: int, place: Tensor) -> None:
        """Copies the rows `kept` into a buffer of `room` tokens; the next token is written at `place`."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(len(kept), old.shape[1], room, old.shape[3])
            length = min(room, old.shape[2])
            new[:, :, :length] = old[kept, :, :length]
            setattr(self, name, new)
        self.place = place


def check_logits(logits: Tensor) -> None:
    """Raises a DivergenceError if logits [N, V] of first tokens are NaN, whose arg-max would read like an answer."""
    if logits.amax(dim=-1).isnan().any():
        raise DivergenceError(
            "the model's logits are NaN where an answer is to begin: it has diverged beyond what can be "
            "evaluated; start from an earlier checkpoint or lower the learning rate"
        )


class GraphDecoding:
    """State of the rows of a batch that are decoded together.

    Args:
        model: A model in eval mode for which `attention.can_switch` is true.
        batch: Prompts, padded on the left.
        rows: Indices of the batch's rows to decode, [N]; each may get at least one token.
        stop_ids: Token ids that end an answer and are not part of it.
        graph: True to capture steps as a CUDA graph; False runs the same steps eagerly, on a CPU for instance.
    """

    def __init__(
        self, model: nn.Module, batch: GenerateBatch, rows: Tensor, stop_ids: Sequence[int], graph: bool
    ) -> None:
        self.model, self.rows, self.graph = model, rows, graph
        self.stops = torch.tensor(list(stop_ids), dtype=torch.long, device=rows.device)
        width = int(batch.attention_mask[rows].sum(dim=1).max())
        self.room = batch.limits[rows]
        """Number of tokens that each row may still get, [N]."""
        self.cache = Cache(layer_class_to_replicate=_FixedLayer)
        self.width = width
        """Number of tokens of the context so far, padding included."""
        attended = batch.attention_mask[rows, -width:]
        positions = (attended.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left shifts nothing
        self.logits: Tensor = self._forward(batch.input_ids[rows, -width:], attended, positions)  # [N, V]
        self.sees, self.positions = attended.bool(), positions[:, -1:]
        self.done = torch.zeros_like(self.room, dtype=torch.bool)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1,
            **{cache_argument(self.model): self.cache},
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits

    def run(self, answers: list[list[int]]) -> None:
        """Decodes until every row has ended; appends their tokens to `answers`, indexed by batch row."""
        check_logits(self.logits)
        while len(self.rows):
            self.begin(min(STAGE, int(self.room.max())))
            self._stage()
            said = self.said[:, : self.steps].tolist()
            for row, tokens in zip(self.rows.tolist(), said, strict=True):
                answers[row] += [token for token in tokens if token >= 0]
            self.keep((~self.done).nonzero()[:, 0])

    def keep(self, kept: Tensor) -> None:
        """Drops all rows but `kept`, indices among the present rows, when the buffers are next rebuilt."""
        self.kept = kept
        for name in ("rows", "room", "logits", "positions", "sees", "done"):
            setattr(self, name, getattr(self, name)[kept])

    def begin(self, steps: int) -> None:
        """Makes buffers for `steps` further tokens of the present rows."""
        device, count = self.rows.device, len(self.rows)
        room = -(-(self.width + steps) // _MULTIPLE) * _MULTIPLE
        self.place = torch.full((1,), self.width, device=device)
        kept = getattr(self, "kept", torch.arange(count, device=device))
        for layer in self.cache.layers:
            assert isinstance(layer, _FixedLayer)
            layer.move(kept, room, self.place)
        sees = torch.zeros(count, 1, 1, room, dtype=torch.bool, device=device)
        sees[:, 0, 0, : self.width] = self.sees[:, : self.width]
        self.mask = sees
        self.said = torch.full((count, steps), -1, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.steps, self.most = 0, steps
        # A graph needs memory of its own to write to.
        self.logits, self.positions, self.room = self.logits.clone(), self.positions.clone(), self.room.clone()
        self.done, self.ids = self.done.clone(), torch.zeros(count, 1, dtype=torch.long, device=device)

    def _stage(self) -> None:
        recorded: torch.cuda.CUDAGraph | None = None
        count = len(self.rows)
        while self.steps < self.most:
            if recorded is not None:
                recorded.replay()
            else:
                self._step()  # eagerly, once: the set-up that kernels do at their first call cannot be captured
                if self.graph and self.most > 2:
                    recorded = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(recorded):
                        self._step()
            self._count()
            if self.steps % LOOK == 0 and int((~self.done).sum()) <= count // 2:
                break
        self.sees = self.mask[:, 0, 0]

    def _count(self) -> None:
        self.steps, self.width = self.steps + 1, self.width + 1

    def _step(self) -> None:
        """Chooses a token for each row and reads it; writes to the same memory every time, without synchronising."""
        tokens = self.logits.argmax(dim=-1)  # [N]
        spoken = ~(self.done | (tokens[:, None] == self.stops).any(dim=1))
        self.said.index_copy_(1, self.column, tokens.masked_fill(~spoken, -1)[:, None])
        self.room.sub_(1)
        self.done.copy_(~spoken | (self.room < 1))
        self.ids.copy_(tokens[:, None])
        self.read()

    def read(self) -> None:
        """Feeds `ids` to the model and stores the logits of the next token."""
        # Rows that are done and wait must not leave the context: positions may index a table.
        self.positions.add_(1).masked_fill_(self.done[:, None], 0)
        self.mask.index_fill_(3, self.place, True)
        self.logits.copy_(self._forward(self.ids, self.mask, self.positions))
        self.place.add_(1)
        self.column.add_(1)


def can_decode(model: nn.Module) -> bool:
    """True if a model can be decoded in fixed buffers: attention that can be switched, and no sliding window."""
    config: Any = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None)
    return attention.can_switch(model) and window is None
