"""Greedy decoding and sampling, with a growing key-value cache that finished rows leave, or without a cache.

A model with another kind of state may accept a key-value cache in its ``**kwargs`` and ignore it: each token is then
predicted from the one before it alone. So the way of decoding is tried out on each model, see `decoding_way`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sga.evaluation.graph_decoding import GraphDecoding, can_decode, check_logits
from sga.evaluation.request_batches import GenerateBatch, GenerateJob
from sga.evaluation.requests import Generation
from sga.evaluation.scoring import is_out_of_memory
from sga.likelihood.forward import logits_at, takes
from sga.likelihood.tryouts import lone_logits, padding_works, same_logits
from sga.models.attention import switched
from sga.models.text_config import cache_argument, text_config

_PART = {"cpu": 256}
"""Number of prompts decoded together at first, by device type; all of a batch where none is given."""


class DecodingWay(IntEnum):
    """Ways of decoding, fastest first; where a way works for a model, it gives the same answers as the others."""

    GRAPH = 0
    """On a GPU, with buffers of fixed size and steps that are recorded once, see `sga.evaluation.graph_decoding`."""
    GROWING = 1
    """With our growing key-value cache, prompts padded on the left."""
    OWN = 2
    """With the cache that the model's configuration describes (recurrent states, say), prompts padded on the left."""
    UNCACHED = 3
    """Without a cache, prompts padded on the right: a forward pass over the whole text for each token."""
    ALONE = 4
    """Without a cache, one prompt after the other."""


_STEPS = 3
"""Number of tokens that a try-out reads one by one."""


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """Keys and values of one layer in a buffer with spare room, so that a new token does not copy all before it."""

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
def decoding_way(model: nn.Module, batch: GenerateBatch) -> DecodingWay:
    """Fastest way of decoding whose logits agree with those of each prompt alone without a cache.

    Tried out on the batch's longest prompt, its second half and the shortest prompt, each continued with its own
    tokens, the first as far as its answer may go: a sliding window shows only in a text longer than the window. A row
    leaves the batch after the first step, as in decoding.
    """
    jobs = [job for job in batch.jobs if job.limit > 0]
    longest, shortest = (pick(jobs, key=lambda job: (len(job.ids), job.limit)) for pick in (max, min))
    prompts = {shortest.ids: 0, longest.ids[len(longest.ids) // 2 :]: 0, longest.ids: longest.limit}
    texts = [tuple(islice(cycle(ids), len(ids) + max(more, _STEPS))) for ids, more in prompts.items()]
    expected = [lone_logits(model, text, _STEPS + 1) for text in texts]
    if batch.input_ids.is_cuda and can_decode(model) and _records(model, texts, expected, batch):
        return DecodingWay.GRAPH
    for way in (DecodingWay.GROWING, DecodingWay.OWN):
        if _decodes(model, way, texts, expected, batch):
            return way
    return DecodingWay.UNCACHED if padding_works(model, texts) else DecodingWay.ALONE


def _records(
    model: nn.Module, texts: Sequence[tuple[int, ...]], expected: Sequence[Tensor], batch: GenerateBatch
) -> bool:
    """`_decodes` for `GraphDecoding`: the first step runs eagerly, later ones are replayed from a CUDA graph."""
    jobs = [(row, GenerateJob(text[:-_STEPS], _STEPS + 1, cut=False)) for row, text in enumerate(texts)]
    device = batch.input_ids.device
    forced = torch.tensor([text[-_STEPS:] for text in texts], device=device)  # [N, S]
    rows = torch.arange(len(texts), device=device)
    try:
        with switched(model):
            decoding = GraphDecoding(
                model, GenerateBatch(jobs, batch.pad_id).to(device), rows, (), device.type == "cuda"
            )
            recorded: torch.cuda.CUDAGraph | None = None
            for step in range(_STEPS + 1):
                for row, found in zip(decoding.rows.tolist(), decoding.logits, strict=True):
                    if not same_logits(model, found, expected[row][step]):
                        return False
                if step == 0:
                    decoding.keep(rows[1:] if len(texts) > 1 else rows)
                    decoding.begin(_STEPS + 1)
                elif step == 1 and decoding.graph:
                    recorded = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(recorded):
                        decoding.read()
                if step < _STEPS:
                    decoding.ids.copy_(forced[decoding.rows, step][:, None])
                    decoding.read() if recorded is None else recorded.replay()
    except Exception as error:  # whatever a model raises that does not know such a cache, or that waits for the GPU
        if is_out_of_memory(error):
            raise
        return False
    return True


def _decodes(
    model: nn.Module,
    way: DecodingWay,
    texts: Sequence[tuple[int, ...]],
    expected: Sequence[Tensor],
    batch: GenerateBatch,
) -> bool:
    """True if reading the texts' last tokens one by one with a cache gives the expected logits, [S + 1, V] each."""
    jobs = [(row, GenerateJob(text[:-_STEPS], _STEPS + 1, cut=False)) for row, text in enumerate(texts)]
    device = batch.input_ids.device
    forced = torch.tensor([text[-_STEPS:] for text in texts], device=device)  # [N, S]
    try:
        decoding = _Decoding(
            model, GenerateBatch(jobs, batch.pad_id).to(device), torch.arange(len(texts), device=device), way
        )
        for step in range(_STEPS + 1):
            logits = decoding.logits()  # [N, V]
            for row, found in zip(decoding.rows.tolist(), logits, strict=True):
                if not same_logits(model, found, expected[row][step]):
                    return False
            if step < _STEPS:
                decoding.read(forced[decoding.rows, step])
            if step == 0 and len(texts) > 1:
                decoding.keep(torch.arange(1, len(texts), device=device))
    except Exception as error:  # whatever a model raises that does not know such a cache
        if is_out_of_memory(error):
            raise
        return False
    return True


@torch.no_grad()
def generate(
    model: nn.Module,
    batch: GenerateBatch,
    stop_ids: Sequence[int],
    way: DecodingWay = DecodingWay.GROWING,
    generator: torch.Generator | None = None,
) -> list[Generation]:
    """Greedy or sampled continuations of prompts; a row that has ended leaves the batch.

    Plain arg-max decoding, or draws from the model's own distribution (temperature 1, top-p 1): the model's
    generation_config (sampling, penalties) is not read. On a CPU, where keys and values of many rows do not fit the
    processor's cache, rows start in parts; the few of each part with long answers are then merged and finished
    together.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: Prompts, padded on the left.
        stop_ids: Token ids that end an answer and are not part of it.
        way: Way of decoding that works for the model, from `decoding_way`.
        generator: Random generator on the model's device, for sampling; None decodes greedily.

    Returns:
        One `Generation` per row, in order, with token ids and no text.
    """
    device = batch.input_ids.device
    answers: list[list[int]] = [[] for _ in batch.indices]
    rows = (batch.limits > 0).nonzero()[:, 0]
    parts = torch.split(rows, _PART.get(device.type, len(rows))) if len(rows) else ()
    if way >= DecodingWay.UNCACHED:
        alone = torch.split(rows, 1) if way == DecodingWay.ALONE else parts
        _generate_uncached(model, batch, alone, stop_ids, answers, generator)
        return [Generation(tuple(answer)) for answer in answers]
    if way == DecodingWay.GRAPH:
        if len(rows):
            with switched(model):
                GraphDecoding(model, batch, rows, stop_ids, device.type == "cuda").run(answers)
        return [Generation(tuple(answer)) for answer in answers]
    stops = torch.tensor(list(stop_ids), device=device)
    waiting = []
    for part in parts:
        decoding = _Decoding(model, batch, part, way, generator)
        decoding.run(answers, stops, until=len(part) // 4 if len(parts) > 1 and way == DecodingWay.GROWING else 0)
        if len(decoding.rows):
            waiting.append(decoding)
    if waiting:
        _Decoding.together(waiting).run(answers, stops)
    return [Generation(tuple(answer)) for answer in answers]


def _generate_uncached(
    model: nn.Module,
    batch: GenerateBatch,
    parts: Sequence[Tensor],
    stop_ids: Sequence[int],
    answers: list[list[int]],
    generator: torch.Generator | None,
) -> None:
    """Appends tokens to `answers` part by part; texts are padded on the right, where a causal model does not look."""
    device = batch.input_ids.device
    for part in parts:
        texts = {row: list(batch.jobs[row].ids) for row in part.tolist()}
        while texts:
            lengths = torch.tensor([len(text) for text in texts.values()], device=device)
            width = int(lengths.max())
            filled = [[*text, *[batch.pad_id] * (width - len(text))] for text in texts.values()]
            ids = torch.tensor(filled, device=device)
            mask = (torch.arange(width, device=device) < lengths[:, None]).long()
            places = torch.arange(len(texts), device=device) * width + lengths - 1
            logits = logits_at(model, places, input_ids=ids, attention_mask=mask)  # [N, V]
            check_logits(logits)
            for row, token in zip(list(texts), _next_tokens(logits, generator).tolist(), strict=True):
                if token not in stop_ids:
                    answers[row].append(token)
                    texts[row].append(token)
                if token in stop_ids or len(answers[row]) == batch.jobs[row].limit:
                    del texts[row]


def _next_tokens(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Most likely token of each row, or a token sampled from the model's distribution; [N, V] -> [N]."""
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.float().softmax(dim=-1), 1, generator=generator)[:, 0]


class _Decoding:
    """State of the rows of a batch that are decoded together.

    Attributes:
        rows: Indices of the batch's rows that have not ended, [N].
        input_ids: Token ids that the model reads next, [N, T] at first, then [N, 1].
        attention: Mask of the context, [N, C], 1 on real tokens, those in `input_ids` included.
        positions: Position ids of the tokens in `input_ids`, with their shape.
        room: Number of tokens that each row may still get, [N].
        cache: Key-value cache, or the model's own kind, of the tokens read so far.
        generator: Random generator for sampling; None decodes greedily.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: GenerateBatch,
        rows: Tensor,
        way: DecodingWay,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.rows, self.generator = model, rows, generator
        width = int(batch.attention_mask[rows].sum(dim=1).max())
        self.input_ids, self.attention = batch.input_ids[rows, -width:], batch.attention_mask[rows, -width:]
        self.positions = (self.attention.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left shifts nothing
        self.room = batch.limits[rows]
        self.cache: Cache = (
            Cache(layer_class_to_replicate=_GrowingLayer)
            if way == DecodingWay.GROWING
            else DynamicCache(config=text_config(model))
        )

    @classmethod
    def together(cls, parts: Sequence[_Decoding]) -> _Decoding:
        """Merges parts that are past their first step into one; contexts are padded on the left to one length."""
        if len(parts) == 1:
            return parts[0]
        whole = cls.__new__(cls)
        whole.model, whole.generator = parts[0].model, parts[0].generator
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

    def run(self, answers: list[list[int]], stops: Tensor, until: int = 0) -> None:
        """Decodes until at most `until` rows are left; appends their tokens to `answers`, indexed by batch row."""
        steps: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, their tokens, and whether these belong to the answer
        done = torch.zeros_like(self.room, dtype=torch.bool)
        while len(self.rows):
            logits = self.logits()  # [N, V]
            if not steps:
                check_logits(logits)
            tokens = _next_tokens(logits, self.generator)  # [N]
            spoken = ~(done | torch.isin(tokens, stops))
            steps.append((self.rows, tokens, spoken))
            done = ~spoken | (self.room <= 1)
            alive = int((~done).sum())
            self.read(tokens)
            # Rows that are done and wait must not leave the context: positions may index a table.
            self.positions = self.positions.masked_fill(done[:, None], 0)
            # Dropping rows copies the cache, so finished rows wait until there are several.
            if alive <= max(until, 0.9 * len(self.rows)):
                self.keep((~done).nonzero()[:, 0])
                done = torch.zeros_like(self.room, dtype=torch.bool)
                if alive <= until:
                    break
        for where, tokens, spoken in steps:
            for row, token in zip(where[spoken].tolist(), tokens[spoken].tolist(), strict=True):
                answers[row].append(token)

    def read(self, tokens: Tensor) -> None:
        """Appends a token to each row, [N]; the next `logits` reads it."""
        self.input_ids, self.room = tokens[:, None], self.room - 1
        self.attention = functional.pad(self.attention, (0, 1), value=1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, kept: Tensor) -> None:
        """Drops all rows but `kept`, indices among the present rows."""
        for name in ("rows", "input_ids", "positions", "room", "attention"):
            setattr(self, name, getattr(self, name)[kept])
        if len(kept):
            self.cache.reorder_cache(kept)  # type: ignore[arg-type]  # which selects, and knows states other than keys and values

    def logits(self) -> Tensor:
        """Logits of the next token, [N, V]; `input_ids` are added to the cache."""
        optional = {"position_ids": self.positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=self.input_ids,
            attention_mask=self.attention,
            use_cache=True,
            # An unknown name may vanish in **kwargs: `decoding_way` finds that out.
            **{cache_argument(self.model): self.cache},
            **{name: value for name, value in optional.items() if takes(self.model, name)},
        )
        logits: Tensor = output.logits[:, -1]
        return logits
