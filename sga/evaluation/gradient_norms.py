"""Norm of the gradient that a text gives a model's weights: the score of the membership attack by gradient norm."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sga.batching.batch import Batch
from sga.likelihood.forward import sequence_nll


def gradient_norm(model: nn.Module, batch: Batch) -> float:
    """Mean over a model's trained weight tensors of the Euclidean norm of the gradient of one sequence's mean nll.

    The tensors' norms are averaged; it is not the norm of the whole gradient. Low for texts that the model has learned.
    Costs a backward pass, and leaves the weights' own ``grad`` alone. Source: the gradient-norm attack of arXiv
    2402.17012 with p = 2, as in open-unlearning at 2952d4a8.

    Args:
        model: Model to differentiate; weights that need no gradient, such as those beside an adapter, are left out.
        batch: Batch of one group with one sequence.
    """
    assert len(batch.input_ids) == 1, "one sequence"
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        normal = replace(
            batch,  # evaluations run in inference mode, and its tensors cannot take part in gradients
            input_ids=batch.input_ids.clone(),
            attention_mask=batch.attention_mask.clone(),
            answer_mask=batch.answer_mask.clone(),
        )
        loss = sequence_nll(model, normal).sum()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([one.norm() for one in gradients if one is not None]).mean())
