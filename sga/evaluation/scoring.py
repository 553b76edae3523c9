"""Scoring: log-probabilities of the answer tokens of a batch, in one forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sga.evaluation.request_batches import ScoreBatch
from sga.evaluation.requests import TokenScores
from sga.likelihood.forward import attention_mask, logits_at, takes

_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Number of logits in a block [positions, vocabulary], by device type; on a CPU it has to fit the processor's cache."""


def score_batch(model: nn.Module, batch: ScoreBatch) -> list[TokenScores]:
    """Log-probabilities of each job's scored tokens, with details where a job has `detail`, in one forward pass.

    Logits are computed at scored positions only, and once where several sequences share a beginning.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: The sequences to score, on the model's device.

    Returns:
        One `TokenScores` per job, in order.
    """
    return score_batch_with_hits(model, batch)[0]


@torch.no_grad()
def score_batch_with_hits(model: nn.Module, batch: ScoreBatch) -> tuple[list[TokenScores], list[NDArray[np.bool_]]]:
    """`score_batch`, and for every job the arg-max hits of its scored tokens, [T], bool, with or without detail."""
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
    """True if the model scores a tree of sequences as it scores them one by one.

    Tried out on the batch's tree with the longest sequence, because models differ in the attention masks and position
    ids that they take: a model that ignores either gives plausible but wrong numbers, and a sliding window shows only
    in a sequence longer than the window.
    """
    if not takes(model, "position_ids"):
        return False
    sample = batch.longest_tree()
    try:
        together = score_batch(model, sample)
    except Exception as error:  # any error of a model that does not know such a mask
        if is_out_of_memory(error):
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
    """Log p of the targets, arg-max hits, and mean and variance of log p over the vocabulary, each [S].

    Computed block by block, so that no second [M, V] tensor exists. Mean and variance are valid only where
    `batch.detail` is true.
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


def is_out_of_memory(error: Exception) -> bool:
    """True if an allocation failed, on a GPU or on a CPU, in PyTorch, in a C++ container or in Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("DefaultCPUAllocator", "not enough memory", "bad_alloc"))
