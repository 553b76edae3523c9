"""Inference on batches of requests; a batch that does not fit in memory is halved and retried."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sga.errors import UserError
from sga.evaluation.decoding import DecodingWay, decoding_way, generate
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch
from sga.evaluation.requests import Answer, Generation, TokenScores
from sga.evaluation.scoring import is_out_of_memory, score_batch_with_hits, trees_work
from sga.likelihood.tryouts import padding_works
from sga.models.causality import check_causal
from sga.models.text_config import text_config


class Inference:
    """Answers batches of requests with one model whose weights do not change meanwhile.

    A batch that runs out of memory is halved, and so are later batches of that size. Tokens known from scoring are not
    generated again: where the true answer begins with the model's own arg-max tokens, a greedy answer begins with them
    too, and generation starts after them.

    Args:
        model: A Hugging Face causal language model in eval mode.
        stop_ids: Token ids that end a generated answer and are not part of it.
        generator: Random generator for answers sampled at temperature 1; None answers greedily.
    """

    def __init__(self, model: nn.Module, stop_ids: Sequence[int], generator: torch.Generator | None = None) -> None:
        self.model, self.generator = model, generator
        self.stop_ids = tuple(stop_ids)
        self._proved: dict[tuple[int, ...], tuple[int, ...]] = {}  # known beginning of the greedy answer, by prompt
        # Capabilities of the model, each with the length in tokens that it was tried out at.
        self._trees, self._trees_tried = True, 0
        self._padding, self._padding_tried = True, 0
        self._way, self._way_tried = DecodingWay.GRAPH, 0
        self._causal = False
        self._fits: dict[type, float] = {ScoreBatch: float("inf"), GenerateBatch: float("inf")}

    def answer(self, batch: ScoreBatch | GenerateBatch) -> list[Answer]:
        """Answers of a batch's jobs, in their order.

        Raises:
            UserError: the model is not causal, or a single sequence does not fit in memory.
        """
        if not batch.indices:
            return []
        if len(batch.indices) == 1 or batch.tokens <= self._fits[type(batch)]:
            try:
                return self._answer(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                what = f"{len(batch.indices)} sequences, {batch.tokens} tokens"
                if len(batch.indices) == 1:
                    raise UserError(
                        f"out of memory with a single sequence ({what}): {error}; lower --data.max_length, or use a "
                        "device with more memory or a smaller --trainer.precision"
                    ) from error
            # Outside the except block, because its traceback keeps the tensors of the failed attempt alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._fits[type(batch)] = batch.tokens / 2
            warnings.warn(f"out of memory with {what}: going on with batches of half that size", stacklevel=2)
        first, second = batch.halves()
        return [*self.answer(first), *self.answer(second)]

    def _answer(self, batch: ScoreBatch | GenerateBatch) -> list[Answer]:
        if not self._causal:
            check_causal(self.model, batch.jobs[0].ids)
            self._causal = True
        if isinstance(batch, GenerateBatch):
            return list(self._generate(batch))
        if batch.sees is not None:
            # Tried again for longer sequences: a sliding window shows only in sequences longer than it.
            if self._trees and batch.longest > self._trees_tried:
                self._trees, self._trees_tried = trees_work(self.model, batch), batch.longest
            if not self._trees:
                batch = batch.apart()
        scores, hits = self._scored(batch)
        for job, hit in zip(batch.jobs, hits, strict=True):
            proved = job.ids[job.prompt_length :][: len(hit) if hit.all() else int(hit.argmin())]
            if len(proved) > len(self._proved.get(job.prompt, ())):
                self._proved[job.prompt] = proved
        return list(scores)

    def _scored(self, batch: ScoreBatch) -> tuple[list[TokenScores], list[NDArray[np.bool_]]]:
        shortest, *_, longest = sorted([batch.jobs[0].ids, *(job.ids for job in batch.jobs)], key=len)
        if self._padding and len(shortest) < len(longest) > self._padding_tried:
            self._padding, self._padding_tried = padding_works(self.model, [shortest, longest]), len(longest)
            if not self._padding:
                warnings.warn(
                    f"what {type(self.model).__name__} says of a sequence depends on the lengths of the others in its "
                    "batch (LongRoPE scales positions by the longest one): each is scored alone, which is slower",
                    stacklevel=2,
                )
        if self._padding or len(batch.indices) == 1:
            return score_batch_with_hits(self.model, batch)
        parts = [score_batch_with_hits(self.model, one) for one in batch.apart().singles()]
        return [scores for part, _ in parts for scores in part], [hits for _, part in parts for hits in part]

    def _choose_way(self, batch: GenerateBatch) -> None:
        """Tries out the way of decoding again if texts may get longer than those it was tried out on."""
        longest = max(len(job.ids) + job.limit for job in batch.jobs)
        if self._way == DecodingWay.ALONE or longest <= self._way_tried:
            return
        self._way, self._way_tried = max(self._way, decoding_way(self.model, batch)), longest
        if self._way >= DecodingWay.UNCACHED:
            alone = ", one after the other" if self._way == DecodingWay.ALONE else ""
            warnings.warn(
                f"{type(self.model).__name__} takes no key-value cache with which it says what it says without one: "
                f"greedy answers are made without a cache{alone}, which gives the right ones more slowly",
                stacklevel=2,
            )

    def _continued(self, batch: GenerateBatch) -> list[Generation]:
        try:
            return generate(self.model, batch, self.stop_ids, self._way, self.generator)
        except Exception as error:
            if self._way != DecodingWay.GRAPH or isinstance(error, UserError) or is_out_of_memory(error):
                raise
            said = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        self._way = DecodingWay.GROWING
        warnings.warn(f"recorded steps of decoding failed ({said}): going on without them", stacklevel=2)
        return generate(self.model, batch, self.stop_ids, self._way, self.generator)

    def _generate(self, batch: GenerateBatch) -> list[Generation]:
        finished: dict[int, Generation] = {}
        begun: list[tuple[int, ...]] = []
        left: list[tuple[int, GenerateJob]] = []
        for index, job in zip(batch.indices, batch.jobs, strict=True):
            proved = self._proved.get(job.ids, ())[: job.limit] if self.generator is None else ()
            stop = next((place for place, token in enumerate(proved) if token in self.stop_ids), None)
            if stop is not None or len(proved) == job.limit:
                finished[index] = Generation(proved[:stop])
            else:
                begun.append(proved)
                left.append((index, replace(job, ids=job.ids + proved, limit=job.limit - len(proved))))
        if left:
            unfinished = GenerateBatch(left, batch.pad_id).to(batch.input_ids.device)
            self._choose_way(unfinished)
            rest = self._continued(unfinished)
            for (index, _), start, generation in zip(left, begun, rest, strict=True):
                finished[index] = Generation(start + generation.ids)
        return [finished[index] for index in batch.indices]


def stop_tokens(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> list[int]:
    """Ids of the end-of-sequence tokens of tokenizer and model (chat models often end a turn with another token)."""
    stops = {int(tokenizer.eos_token_id)}
    configured = network.generation_config.eos_token_id if network.generation_config is not None else None
    stops.update([configured] if isinstance(configured, int) else configured or [])
    return sorted(stops)


def most_tokens(model: nn.Module, device: torch.device) -> int:
    """Number of tokens, padding included, of a scoring batch that uses at most about a third of the free memory.

    Capped at 2,048 on a CPU, where larger batches only fall out of its cache, and at 65,536 on a GPU, where larger ones
    are no faster.
    """
    config = text_config(model)
    per_token = 4 * (3 * config.vocab_size + 24 * config.hidden_size)  # logits and what a layer holds, in bytes
    return int(min(max(free_memory(device) // 3 // per_token, 256), 2048 if device.type == "cpu" else 65536))


def most_rows(model: nn.Module, device: torch.device, length: int) -> int:
    """Number of rows of a generation batch whose keys and values use at most about a third of the free memory.

    Args:
        model: A Hugging Face causal language model.
        device: Device that the model runs on, whose free memory counts.
        length: Largest number of tokens of a sequence, prompt and answer.
    """
    config = text_config(model)
    per_row = 2 * 4 * config.num_hidden_layers * config.hidden_size * length  # grouped queries need less than this
    return int(min(max(free_memory(device) // 3 // per_row, 1), 1024))


def free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes; of main memory for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30  # where the system does not say (macOS): a laptop can spare about this much
