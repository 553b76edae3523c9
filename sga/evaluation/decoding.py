"""Greedy decoding with growing key-value buffers, from which finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

from sga.errors import DivergenceError
from sga.evaluation.request_batches import GenerateBatch
from sga.evaluation.requests import Generation
from sga.likelihood.forward import takes

_PART = {"cpu": 256}
"""Rows that begin to be generated together, where that is fewer than all."""


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """Keys and values of one layer in a buffer with room, so that a new token does not copy all before it."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._grown("_key_buffer", self.keys, key_states)
        self.values = self._grown("_value_buffer", self.values, value_states)
        return self.keys, self.values

    def _grown(self, name: str, old: Tensor | None, new: Tensor) -> Tensor:
        length = old.shape[-2] if old is not None and old.numel() else 0
        total = length + new.shape[-2]
        buffer: Tensor | None = getattr(self, name, None)
        if buffer is None or buffer.shape[0] != new.shape[0] or buffer.shape[-2] < total:
            room = total + max(32, total // 2)
            buffer = new.new_empty((*new.shape[:-2], room, new.shape[-1]))
            if old is not None and length:
                buffer[..., :length, :] = old
            setattr(self, name, buffer)
        buffer[..., length:total, :] = new
        return buffer[..., :total, :]


@torch.no_grad()
def generate(model: nn.Module, batch: GenerateBatch, stop_ids: Sequence[int]) -> list[Generation]:
    """Greedy continuations with a key-value cache; a row that has ended leaves the batch.

    Plain arg-max decoding: the model's own generation_config (sampling, penalties) is not read. On a CPU, where the
    keys and values of many rows leave the processor's cache, rows begin in parts, and the few of each part whose
    answers are long go on together.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: Prompts, padded on the left.
        stop_ids: Tokens that end an answer; not part of it.

    Returns:
        One entry per row, in order, token ids only.
    """
    device = batch.input_ids.device
    answers: list[list[int]] = [[] for _ in batch.indices]
    rows = (batch.limits > 0).nonzero()[:, 0]
    parts = torch.split(rows, _PART.get(device.type, len(rows))) if len(rows) else ()
    stops = torch.tensor(list(stop_ids), device=device)
    waiting = []
    for part in parts:
        decoding = _Decoding(model, batch, part, stops)
        decoding.run(answers, until=len(part) // 4 if len(parts) > 1 else 0)
        if len(decoding.rows):
            waiting.append(decoding)
    if waiting:
        _Decoding.together(waiting).run(answers)
    return [Generation(tuple(answer)) for answer in answers]


class _Decoding:
    """Rows of a batch that are being generated together.

    Attributes:
        rows: Which of the batch's rows are left, [N].
        input_ids: What the model reads next, [N, T] at first, then [N, 1].
        attention: [N, C], 1 on the real tokens of the context, those to be read included.
        positions: Of `input_ids`.
        room: Tokens that each row may still get, [N].
        cache: Keys and values of what was read.
    """

    def __init__(self, model: nn.Module, batch: GenerateBatch, rows: Tensor, stops: Tensor) -> None:
        self.model, self.stops, self.rows = model, stops, rows
        width = int(batch.attention_mask[rows].sum(dim=1).max())
        self.input_ids, self.attention = batch.input_ids[rows, -width:], batch.attention_mask[rows, -width:]
        self.positions = (self.attention.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left shifts nothing
        self.room = batch.limits[rows]
        self.cache = Cache(layer_class_to_replicate=_GrowingLayer)

    @classmethod
    def together(cls, parts: Sequence[_Decoding]) -> _Decoding:
        """All rows of several parts, each past its first step, their contexts padded on the left to one length."""
        if len(parts) == 1:
            return parts[0]
        whole = cls.__new__(cls)
        whole.model, whole.stops = parts[0].model, parts[0].stops
        for name in ("rows", "input_ids", "positions", "room"):
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts]))
        length = max(part.attention.shape[1] for part in parts)
        whole.attention = torch.cat(
            [functional.pad(part.attention, (length - part.attention.shape[1], 0)) for part in parts]
        )
        whole.cache = Cache(layer_class_to_replicate=_GrowingLayer)
        for index, layers in enumerate(zip(*(part.cache.layers for part in parts), strict=True)):
            keys, values = (
                torch.cat([functional.pad(one, (0, 0, length - 1 - one.shape[-2], 0)) for one in each])
                for each in ([layer.keys for layer in layers], [layer.values for layer in layers])
            )
            whole.cache.update(keys, values, index)
        return whole

    def run(self, answers: list[list[int]], until: int = 0) -> None:
        """Goes on until no more than `until` rows are left, and adds to the answers of the batch's rows."""
        steps: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, their tokens, and whether these belong to the answer
        done = torch.zeros_like(self.room, dtype=torch.bool)
        while len(self.rows):
            logits = _last_logits(self.model, self.input_ids, self.attention, self.positions, self.cache)  # [N, V]
            if not steps and logits.amax(dim=-1).isnan().any():
                raise DivergenceError(
                    "the model's logits are NaN where an answer is to begin: it has diverged beyond what can be "
                    "evaluated; start from an earlier checkpoint or lower the learning rate"
                )
            tokens = logits.argmax(dim=-1)  # [N]
            spoken = ~(done | torch.isin(tokens, self.stops))
            steps.append((self.rows, tokens, spoken))
            done = ~spoken | (self.room <= 1)
            alive = int((~done).sum())
            self.input_ids, self.room = tokens[:, None], self.room - 1
            self.attention = functional.pad(self.attention, (0, 1), value=1)
            # Rows that are done and wait must not leave the context: positions may be places in a table.
            self.positions = (self.positions[:, -1:] + 1).masked_fill(done[:, None], 0)
            # Leaving costs a copy of the cache, so a few wait for each other.
            if alive <= max(until, 0.9 * len(self.rows)):
                self._keep((~done).nonzero()[:, 0])
                done = torch.zeros_like(self.room, dtype=torch.bool)
                if alive <= until:
                    break
        for where, tokens, spoken in steps:
            for row, token in zip(where[spoken].tolist(), tokens[spoken].tolist(), strict=True):
                answers[row].append(token)

    def _keep(self, kept: Tensor) -> None:
        for name in ("rows", "input_ids", "positions", "room", "attention"):
            setattr(self, name, getattr(self, name)[kept])
        if len(kept):
            self.cache.batch_select_indices(kept)


def _last_logits(model: nn.Module, input_ids: Tensor, attention: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    """Logits of the next token, [N, V]; the cache takes in what was read."""
    optional = {"position_ids": positions, "logits_to_keep": 1}
    output = model(
        input_ids=input_ids,
        attention_mask=attention,
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in optional.items() if takes(model, name)},
    )
    logits: Tensor = output.logits[:, -1]
    return logits
