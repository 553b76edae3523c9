"""The language model's part of a configuration, which for a multimodal model is one of several parts."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(of: object) -> Any:
    """Configuration with the sizes of the language model; None without a configuration.

    A model that also reads images or sound has a configuration for each of its parts; vocabulary, hidden size, layers,
    positions and window are in the one for text.

    Args:
        of: Model or configuration of Hugging Face.
    """
    config: Any = getattr(of, "config", None) if isinstance(of, nn.Module) else of
    take: Any = getattr(config, "get_text_config", None)
    return config if take is None else take(decoder=True)
