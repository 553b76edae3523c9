"""The transformer blocks of a model, and freezing of those that a loss does not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sga.errors import UserError


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks: the outermost list of modules (blocks may contain further lists, of experts).

    In a multimodal model they are the blocks of its language model.

    Raises:
        UserError: the model has no list of modules.
    """
    decoder: Any = model.get_decoder() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    for part in (decoder, model):  # the model itself if its decoder has no blocks
        for module in part.modules() if isinstance(part, nn.Module) else ():  # outer modules before inner ones
            if isinstance(module, nn.ModuleList):
                return module
    raise UserError(f"{type(model).__name__} has no list of blocks, so that no hidden layer can be named")


def check_layers(
    model: nn.Module,
    hidden_layer: int | None = None,
    trained_layers: Sequence[int] | None = None,
    trained_weights: str | None = None,
) -> None:
    """Checks the blocks that a loss names, and freezes all weights except those that it trains.

    Args:
        model: Model with its blocks in one list.
        hidden_layer: Index of the block whose output the loss reads, from 0; negative indices count from the last.
        trained_layers: Indices of the blocks to train; None trains the whole model.
        trained_weights: Ending of the names of the weights to train in these blocks; None for all of them.

    Raises:
        UserError: a loss names a block that the model does not have, or weights that a block does not have.
    """
    named = [*(trained_layers or ()), *([] if hidden_layer is None else [hidden_layer])]
    if not named:
        return
    layers = transformer_blocks(model)
    wrong = [layer for layer in named if not -len(layers) <= layer < len(layers)]
    if wrong:
        raise UserError(
            f"the loss names layer {wrong[0]}, but the model has {len(layers)}, 0 to {len(layers) - 1} (or −1 to "
            f"−{len(layers)} from the last); set --model.loss.layer"
        )
    if trained_layers is not None:
        trained = {
            id(weight)
            for layer in trained_layers
            for name, weight in layers[layer].named_parameters()
            if name.endswith(trained_weights or "")
        }
        for layer in trained_layers:
            names = [name for name, _ in layers[layer].named_parameters()]
            if not any(name.endswith(trained_weights or "") for name in names):
                raise UserError(
                    f"no weight of layer {layer} has a name that ends in {trained_weights!r}; there are "
                    f"{', '.join(names)}; set --model.loss.trained_weights"
                )
        for parameter in model.parameters():  # weights frozen by an adapter stay frozen
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)
