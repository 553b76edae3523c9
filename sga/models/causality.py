"""Check that a model is causal: encoders can be loaded as language models, and give plausible but wrong numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sga.errors import UserError

_PROBED = 5
"""Number of tokens of the text that is tried out."""


@torch.no_grad()
def check_causal(model: nn.Module, ids: Sequence[int]) -> None:
    """Refuses a model in which tokens see later ones, such as BERT without ``is_decoder``.

    Such a model would see the answer that it has to predict. Two texts that differ in their last token are passed
    through it; the logits before that token have to agree up to rounding.

    Args:
        model: A Hugging Face language model on any device.
        ids: Token ids of the model, any, at least one.

    Raises:
        UserError: the model is not a causal language model.
    """
    device = next(model.parameters()).device
    text = (list(ids) * _PROBED)[:_PROBED]
    other = next((token for token in ids if token != text[-1]), text[-1] + 1 if text[-1] == 0 else text[-1] - 1)
    rows = torch.tensor([text, [*text[:-1], other]], device=device)  # [2, T]
    training = model.training
    model.eval()
    try:
        said: Tensor = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, :-1]
    finally:
        model.train(training)
    one, two = said.float().clamp(min=-1e4)  # [T-1, V]; some models give −∞ to tokens that they never use
    # Rounding changes 1e-6 of the logits' spread in float32 and 1e-2 in half precision.
    half = said.dtype.itemsize < 4 or next(model.parameters()).dtype.itemsize < 4
    if float((one - two).abs().max()) > (0.1 if half else 1e-4) * max(float(one.std()), 1e-6):
        raise UserError(
            f"{type(model).__name__} is no causal language model: what it says of a token depends on the tokens after "
            "it, so that it has read every answer that it is asked for; give a decoder (of BERT's kind, one with "
            "is_decoder: true in its config.json)"
        )
