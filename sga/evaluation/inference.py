"""Running a model on evaluation batches: token log-probabilities and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from sga.batches import Batch
from sga.evaluation.requests import GenerateBatch, TokenScores
from sga.likelihood import answer_logits, takes


@torch.no_grad()
def score(model: nn.Module, batch: Batch) -> list[TokenScores]:
    """Log-probabilities of each row's answer tokens, in one forward pass.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: Rows to score (K = 1).

    Returns:
        One entry per row, in order.
    """
    logits = answer_logits(model, batch)  # [M, V]
    targets = batch.input_ids[batch.answer_mask]  # [M]
    log_probs = -functional.cross_entropy(logits, targets, reduction="none")
    lengths = batch.answer_mask.sum(dim=1).tolist()
    parts = np.split(log_probs.double().cpu().numpy(), np.cumsum(lengths)[:-1])
    return [TokenScores(part) for part in parts]


@torch.no_grad()
def generate(
    model: nn.Module, batch: GenerateBatch, stop_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[str]:
    """Greedy answers with a key-value cache; a row leaves the batch when it ends.

    Plain arg-max decoding: the model's own generation_config (sampling, penalties) is not read.

    Args:
        model: A Hugging Face causal language model in eval mode.
        batch: Prompts, padded on the left.
        stop_ids: Tokens that end an answer; not part of it.
        decode: Text of token ids.

    Returns:
        One text per row, in order, of at most `max_new_tokens` tokens and never beyond the model's length limit.
    """
    device = batch.input_ids.device
    stops = torch.tensor(list(stop_ids), device=device)
    rows = torch.arange(batch.input_ids.shape[0], device=device)  # which row each line of the shrinking batch is
    answers: list[list[int]] = [[] for _ in rows]
    room = torch.minimum(
        torch.full_like(rows, batch.max_new_tokens), batch.room - batch.attention_mask.sum(dim=1)
    )  # [N] tokens that each row may still get
    cache = DynamicCache()
    attention = batch.attention_mask
    input_ids = batch.input_ids
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)  # [N, T]: padding on the left shifts nothing
    for _ in range(batch.max_new_tokens):
        logits = _last_logits(model, input_ids, attention, positions, cache)  # [N, V]
        tokens = logits.argmax(dim=-1)
        alive = ~torch.isin(tokens, stops) & (room > 0)
        for row, token in zip(rows[alive].tolist(), tokens[alive].tolist(), strict=True):
            answers[row].append(token)
        alive = alive & (room > 1)
        if not bool(alive.any()):
            break
        if not bool(alive.all()):
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, tokens, room, attention = rows[kept], tokens[kept], room[kept], attention[kept]
            positions = positions[kept]
        room = room - 1
        input_ids = tokens[:, None]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [decode(answer) for answer in answers]


def _last_logits(
    model: nn.Module, input_ids: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    """Logits of the next token, [N, V]."""
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
