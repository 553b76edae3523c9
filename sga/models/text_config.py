"""Differences between Hugging Face's models: the language model's part of a configuration, the name of the cache."""

from __future__ import annotations

import inspect
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


def cache_argument(model: nn.Module) -> str:
    """Name of the forward pass's argument for the key-value cache.

    It is ``past_key_values``, from transformers 5.24 on ``cache``, in models without attention ``cache_params``.
    """
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache_params", "cache") if name in taken), "past_key_values")
