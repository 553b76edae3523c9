"""How hard a text pulls at a model's weights: what the membership attack by gradient norm goes by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sga.batching.batch import Batch
from sga.likelihood.forward import sequence_nll


def gradient_norm(model: nn.Module, batch: Batch) -> float:
    """Mean over a model's trained weight tensors of the Euclidean norm of the gradient of one sequence's mean nll.

    A mean of the tensors' norms, not the norm of all; low for what the model has learned. The weights' own ``grad`` is
    left alone. Takes a backward pass. Source: the gradient-norm attack of arXiv 2402.17012 with p = 2, as in
    open-unlearning at 2952d4a8.

    Args:
        model: The model; what of it needs no gradient, such as the weights beside an adapter, is left out.
        batch: One group of one sequence.
    """
    assert len(batch.input_ids) == 1, "one sequence"
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        normal = replace(
            batch,  # tensors of the inference mode, in which evaluations run, have no part in gradients
            input_ids=batch.input_ids.clone(),
            attention_mask=batch.attention_mask.clone(),
            answer_mask=batch.answer_mask.clone(),
        )
        loss = sequence_nll(model, normal).sum()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([one.norm() for one in gradients if one is not None]).mean())
