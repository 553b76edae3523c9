"""The language model's part of a configuration: of a multimodal model it is one of several."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(of: object) -> Any:
    """Where the sizes of the language model are written down; None without a configuration.

    A checkpoint that also reads images or sound has a configuration for each of its parts, and vocabulary, hidden size,
    layers, positions and window stand in that of the text.

    Args:
        of: A model or a configuration of Hugging Face's.
    """
    config: Any = getattr(of, "config", None) if isinstance(of, nn.Module) else of
    take: Any = getattr(config, "get_text_config", None)
    return config if take is None else take(decoder=True)
