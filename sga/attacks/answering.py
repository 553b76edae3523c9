"""Answers of a model to records as an attack asks about them: an ordinary evaluation, row by row, with its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sga.attacks.prompts import Prompted
from sga.batching.encoding import Encoder
from sga.errors import DivergenceError
from sga.evaluation.cache import AnswerCache, model_key
from sga.evaluation.facts import says_fact
from sga.evaluation.inference import Inference, most_rows, most_tokens, stop_tokens
from sga.evaluation.metrics import extraction_strength, probability, rouge
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, Job, ScoreBatch, ScoreJob
from sga.evaluation.requests import Answer, Generation, TokenScores

Row = dict[str, Any]


def answered_rows(
    network: PreTrainedModel,
    encoder: Encoder,
    asked: Sequence[Prompted],
    max_new_tokens: int,
    cache: Path | None = None,
) -> list[Row]:
    """Rows of records: ``avg_nll``, ``probability``, ``extraction_strength``; of questions also ``rouge_l_recall``
    and, where the record has a fact, ``fact_recall`` (1 if the answer says it, see `sga.evaluation.facts.says_fact`).

    Args:
        network: Model in eval mode.
        encoder: Tokenizer and longest sequence.
        asked: Records as the attack asks about them.
        max_new_tokens: Largest number of tokens of a greedy answer.
        cache: Path of the folder of cached answers, by content of weights and tokens; None caches none.

    Raises:
        DivergenceError: the model gives NaN.
    """
    scores: list[Job] = [ScoreJob(one.prompt + one.answer, len(one.prompt), True, one.ends, False) for one in asked]
    spoken = [one for one in asked if one.truth]
    jobs = [*scores, *_generated(encoder, spoken, max_new_tokens)]
    found = _answers(network, encoder, jobs, cache)
    rows = []
    for index, one in enumerate(asked):
        answer = found[index]
        assert isinstance(answer, TokenScores)
        if not np.isfinite(answer.log_probs).all():
            raise DivergenceError("it gives a NaN or infinite log-probability")
        whole = TokenScores(answer.log_probs, answer.hits, ends=one.ends)
        rows.append(
            {
                "id": one.id,
                "avg_nll": whole.avg_nll,
                "probability": probability([whole.avg_nll]),
                "extraction_strength": extraction_strength(whole.text.hits),  # type: ignore[arg-type]
            }
        )
    said = [encoder.decode(found[len(asked) + place].ids) for place in range(len(spoken))]  # type: ignore[union-attr]
    recalls = rouge(said, [one.truth for one in spoken])["rougeL_recall"] if spoken else []
    of_answer: dict[str, Row] = {}
    for one, text, recall in zip(spoken, said, recalls, strict=True):
        says = says_fact(one.record, text)
        of_answer[one.id] = {"rouge_l_recall": recall} | ({} if says is None else {"fact_recall": float(says)})
    return [{**row, **of_answer.get(str(row["id"]), {})} for row in rows]


def greedy_answers(
    network: PreTrainedModel,
    encoder: Encoder,
    asked: Sequence[Prompted],
    max_new_tokens: int,
    cache: Path | None = None,
) -> list[str]:
    """Greedy answers to records, see `answered_rows`."""
    found = _answers(network, encoder, _generated(encoder, asked, max_new_tokens), cache)
    return [encoder.decode(found[place].ids) for place in range(len(asked))]  # type: ignore[union-attr]


def _generated(encoder: Encoder, asked: Sequence[Prompted], max_new_tokens: int) -> list[GenerateJob]:
    limits = [max(1, min(max_new_tokens, encoder.max_length - len(one.prompt))) for one in asked]
    return [GenerateJob(one.prompt, limit, False) for one, limit in zip(asked, limits, strict=True)]


def _answers(network: PreTrainedModel, encoder: Encoder, jobs: Sequence[Job], cache: Path | None) -> dict[int, Answer]:
    stops = stop_tokens(encoder.tokenizer, network)
    store = None
    if cache is not None:
        settings = {"device": network.device.type, "torch": torch.__version__, "stop_ids": str(stops)}
        store = AnswerCache(cache, model_key(network, settings))
    found = {} if store is None else store.find(jobs)
    new: dict[int, Answer] = {}
    inference = Inference(network, stops)
    with torch.no_grad():
        for batch in _batches(network, encoder, jobs, found):
            moved = batch.to(network.device)
            new |= dict(zip(batch.indices, inference.answer(moved), strict=True))
    if store is not None:
        store.add(jobs, new)
    return found | new


def _batches(
    network: PreTrainedModel, encoder: Encoder, jobs: Sequence[Job], known: dict[int, Answer]
) -> Iterator[ScoreBatch | GenerateBatch]:
    """Batches of jobs that are not known yet, the longest first, as large as the memory takes; scoring comes first."""
    pad = encoder.tokenizer.pad_token_id or 0
    order = sorted((index for index in range(len(jobs)) if index not in known), key=lambda index: -len(jobs[index].ids))
    tokens, rows = most_tokens(network, network.device), most_rows(network, network.device, encoder.max_length)
    scored: list[tuple[int, ScoreJob]] = []
    for index in order:
        job = jobs[index]
        if isinstance(job, ScoreJob):
            if scored and len(scored[0][1].ids) * (len(scored) + 1) > tokens:
                yield ScoreBatch([[entry] for entry in scored], pad)
                scored = []
            scored.append((index, job))
    if scored:
        yield ScoreBatch([[entry] for entry in scored], pad)
    spoken = [(index, job) for index in order if isinstance(job := jobs[index], GenerateJob)]
    for start in range(0, len(spoken), rows):
        yield GenerateBatch(spoken[start : start + rows], pad)


def sampled_answers(
    network: PreTrainedModel, encoder: Encoder, asked: Sequence[Prompted], samples: int, max_new_tokens: int, seed: int
) -> list[str]:
    """Answers drawn at temperature 1 and top-p 1: `samples` to the first record, then to the next one, and so on.

    Args:
        network: Model in eval mode.
        encoder: Tokenizer and longest sequence.
        asked: Records as they are asked about.
        samples: Number of answers to each record.
        max_new_tokens: Largest number of tokens of an answer.
        seed: Seed of the random numbers; the same seed, records and device give the same answers.
    """
    generator = torch.Generator(network.device).manual_seed(seed)
    inference = Inference(network, stop_tokens(encoder.tokenizer, network), generator)
    rows = most_rows(network, network.device, encoder.max_length)
    drawn = _generated(encoder, [one for one in asked for _ in range(samples)], max_new_tokens)
    said: list[str] = []
    with torch.no_grad():
        for start in range(0, len(drawn), rows):
            jobs = [(place, job) for place, job in enumerate(drawn[start : start + rows])]
            batch = GenerateBatch(jobs, encoder.tokenizer.pad_token_id or 0).to(network.device)
            said += [encoder.decode(one.ids) for one in inference.answer(batch) if isinstance(one, Generation)]
    return said
