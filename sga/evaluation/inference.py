"""Running a model on evaluation batches: token log-probabilities and greedy answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

from sga.errors import DivergenceError, UserError
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch
from sga.evaluation.requests import Answer, Generation, TokenScores
from sga.likelihood import attention_mask, logits_at, takes

_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers of a [positions, vocabulary] block that are looked at together: what fits the processor's cache on a CPU."""

_PART = {"cpu": 256}
"""Rows that begin to be generated together, where that is fewer than all."""


class Inference:
    """Answers batches with one model at one moment; where memory runs out a batch is halved, and later ones with it.

    What scoring has proved is not generated again: where the true answer begins with the model's own arg-max tokens, a
    greedy answer begins with them too, and generation goes on from there.

    Args:
        model: A Hugging Face causal language model in eval mode.
        stop_ids: Tokens that end a generated answer; not part of it.
    """

    def __init__(self, model: nn.Module, stop_ids: Sequence[int]) -> None:
        self.model = model
        self.stop_ids = tuple(stop_ids)
        self._proved: dict[tuple[int, ...], tuple[int, ...]] = {}  # the beginning of the greedy answer, by prompt
        self._trees, self._tried = True, 0  # whether the model can, as far as sequences of so many tokens tell
        self._fits: dict[type, float] = {ScoreBatch: float("inf"), GenerateBatch: float("inf")}

    def answer(self, batch: ScoreBatch | GenerateBatch) -> list[Answer]:
        """One answer per job, in order.

        Raises:
            UserError: a single sequence does not fit in memory.
        """
        if not batch.indices:
            return []
        if len(batch.indices) == 1 or batch.tokens <= self._fits[type(batch)]:
            try:
                return self._answer(batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                what = f"{len(batch.indices)} sequences, {batch.tokens} tokens"
                if len(batch.indices) == 1:
                    raise UserError(
                        f"out of memory with a single sequence ({what}): {error}; lower --data.max_length, or use a "
                        "device with more memory or a smaller --trainer.precision"
                    ) from error
            # Outside the except block, whose traceback holds on to the tensors of the failed attempt.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._fits[type(batch)] = batch.tokens / 2
            warnings.warn(f"out of memory with {what}: going on with batches of half that size", stacklevel=2)
        first, second = batch.halves()
        return [*self.answer(first), *self.answer(second)]

    def _answer(self, batch: ScoreBatch | GenerateBatch) -> list[Answer]:
        if isinstance(batch, GenerateBatch):
            return list(self._generate(batch))
        if batch.sees is not None:
            if self._trees and batch.longest > self._tried:  # longer than any window that has shown itself so far
                self._trees, self._tried = trees_work(self.model, batch), batch.longest
            if not self._trees:
                batch = batch.apart()
        scores, hits = score_batch_with_hits(self.model, batch)
        for job, hit in zip(batch.jobs, hits, strict=True):
            proved = job.ids[job.prompt_length :][: len(hit) if hit.all() else int(hit.argmin())]
            if len(proved) > len(self._proved.get(job.prompt, ())):
                self._proved[job.prompt] = proved
        return list(scores)

    def _generate(self, batch: GenerateBatch) -> list[Generation]:
        finished: dict[int, Generation] = {}
        begun: list[tuple[int, ...]] = []
        left: list[tuple[int, GenerateJob]] = []
        for index, job in zip(batch.indices, batch.jobs, strict=True):
            proved = self._proved.get(job.ids, ())[: job.limit]
            stop = next((place for place, token in enumerate(proved) if token in self.stop_ids), None)
            if stop is not None or len(proved) == job.limit:
                finished[index] = Generation(proved[:stop])
            else:
                begun.append(proved)
                left.append((index, replace(job, ids=job.ids + proved, limit=job.limit - len(proved))))
        if left:
            rest = generate(self.model, GenerateBatch(left, batch.pad_id).to(batch.input_ids.device), self.stop_ids)
            for (index, _), start, generation in zip(left, begun, rest, strict=True):
                finished[index] = Generation(start + generation.ids)
        return [finished[index] for index in batch.indices]


def _out_of_memory(error: Exception) -> bool:
    """Whether this is how PyTorch says that an allocation failed, on a GPU or on a CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text or "not enough memory" in text


def most_tokens(model: nn.Module, device: torch.device) -> int:
    """Tokens of a scoring batch, padding included, that use about a third of the free memory at most.

    On a CPU larger batches than these only leave its cache; on a GPU they no longer get faster.
    """
    config: Any = model.config
    per_token = 4 * (3 * config.vocab_size + 24 * config.hidden_size)  # logits and what a layer holds, in bytes
    return int(min(max(free_memory(device) // 3 // per_token, 256), 2048 if device.type == "cpu" else 65536))


def most_rows(model: nn.Module, device: torch.device, length: int) -> int:
    """Rows of a generating batch whose keys and values use about a third of the free memory at most.

    Args:
        model: A Hugging Face causal language model.
        device: Where it runs.
        length: Most tokens of a sequence.
    """
    config: Any = model.config
    per_row = 2 * 4 * config.num_hidden_layers * config.hidden_size * length  # grouped queries need less than this
    return int(min(max(free_memory(device) // 3 // per_row, 1), 1024))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, in main memory for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30  # where the system does not say (macOS): what a laptop has to spare


def score_batch(model: nn.Module, batch: ScoreBatch) -> list[TokenScores]:
    """Log-probabilities of each job's scored tokens, and details of those that want them, in one forward pass.

    Logits exist at scored positions only, and once where several sequences share a beginning.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: What to score.

    Returns:
        One entry per job, in order.
    """
    return score_batch_with_hits(model, batch)[0]


@torch.no_grad()
def score_batch_with_hits(model: nn.Module, batch: ScoreBatch) -> tuple[list[TokenScores], list[NDArray[np.bool_]]]:
    """`score_batch`, and for every job which of its scored tokens are the arg-max, [T]."""
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.sees is not None:
        arguments["attention_mask"] = attention_mask(model, batch.sees)
        arguments["position_ids"] = batch.position_ids
    logits = logits_at(model, batch.predicting, **arguments)  # [M, V]
    ends = np.cumsum([len(job.ids) - job.prompt_length for job in batch.jobs])[:-1]
    columns = [np.split(column.cpu().numpy(), ends) for column in _statistics(logits, batch)]
    scores = [
        TokenScores(*parts) if job.detail else TokenScores(parts[0])
        for job, parts in zip(batch.jobs, zip(*columns, strict=True), strict=True)
    ]
    return scores, columns[1]


def trees_work(model: nn.Module, batch: ScoreBatch) -> bool:
    """Whether the model scores a tree of sequences as it scores them one by one.

    Tried out, on the tree of the batch with the longest sequence: models differ in the attention masks that they take
    and in how they count positions, one that ignores either gives numbers that look right, and one that looks back
    over a window of its own shows it only where a sequence is longer.
    """
    if not takes(model, "position_ids"):
        return False
    sample = batch.longest_tree()
    try:
        together = score_batch(model, sample)
    except Exception as error:  # whatever a model raises that does not know such a mask
        if _out_of_memory(error):
            raise
        return False
    alone = score_batch(model, sample.apart())
    half = next(model.parameters()).dtype.itemsize < 4 or torch.is_autocast_enabled(sample.input_ids.device.type)
    tolerance = 0.1 if half else 1e-3
    return all(
        np.allclose(a.avg_nll, b.avg_nll, rtol=tolerance / 10, atol=tolerance, equal_nan=True)
        for a, b in zip(together, alone, strict=True)
    )


def _statistics(logits: Tensor, batch: ScoreBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p of the targets, arg-max hits, and mean and variance of log p over the vocabulary, each [S].

    Taken block by block, so that no second [M, V] tensor exists. Mean and variance are right only where `batch.detail`.
    """
    positions, vocabulary = logits.shape
    device, dtype = logits.device, torch.promote_types(logits.dtype, torch.float32)
    log_probs = torch.empty(len(batch.targets), dtype=torch.float64, device=device)
    hits = torch.zeros(len(batch.targets), dtype=torch.bool, device=device)
    means, variances = torch.zeros(2, positions, dtype=torch.float64, device=device)
    step = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // vocabulary)
    starts = range(0, positions, step)
    order = batch.prediction.argsort()  # scored tokens in the order of the positions that predict them
    bounds = torch.searchsorted(batch.prediction[order], torch.tensor([*starts, positions], device=device)).tolist()
    for start, low, high in zip(starts, bounds, bounds[1:], strict=False):
        log_p = logits[start : start + step].to(dtype).log_softmax(dim=-1)  # [m, V]
        here = order[low:high]
        rows, targets = batch.prediction[here] - start, batch.targets[here]
        found = log_p[rows, targets]
        log_probs[here] = found.double()
        # The arg-max is the first of equal maxima; finding it takes longer than finding how large it is.
        largest = (found == log_p.amax(dim=-1)[rows]).nonzero()[:, 0]
        hits[here[largest]] = log_p[rows[largest]].argmax(dim=-1) == targets[largest]
        some = batch.detail[start : start + step].nonzero()[:, 0]
        if len(some):
            log_p = log_p if len(some) == len(log_p) else log_p[some]
            p = log_p.exp()
            finite = log_p.clamp(min=-1e4)  # 0·(−inf) = 0: a token that cannot occur counts nothing
            mean = (p * finite).sum(dim=-1)
            means[start + some] = mean.double()
            variances[start + some] = (p * (finite - mean[:, None]).square()).sum(dim=-1).double()
    where = batch.prediction
    return log_probs, hits, means[where], variances[where]


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
