"""Attention by the lengths of packed sequences, and decoding attention that does not copy the key-value cache.

Registered with transformers under `NAME`. Packed rows then need no mask: PyTorch's variable-length kernel
(`torch.nn.attention.varlen`, from 2.10) computes pairs of tokens of the same sequence only. All other cases use `sdpa`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sga.models.text_config import text_config

NAME = "sga_by_length"
"""Name of this attention among transformers' implementations."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature by which transformers' models call it.

    Args:
        module: Attention layer that calls it.
        query: Queries, [R, H, T, D].
        key: Keys, [R, G, S, D]; G divides H.
        value: Values, [R, G, S, D].
        attention_mask: Mask of the tokens that each token sees; ignored if lengths are given.
        scaling: Factor on the scores; None for 1/√D.
        dropout: Share of attention weights that are dropped; has to be 0 with lengths.
        cu_seq_lens_q: Index of the beginning of each sequence of a single packed row, and of the end of the last one,
            int32.
        max_length_q: Upper bound of the sequences' lengths in tokens.
        options: Further arguments of the model, such as ``sliding_window``.

    Returns:
        Attention output, [R, T, H, D], and None in place of attention weights.

    Raises:
        ValueError: lengths are given together with an option that attention by length does not support.
    """
    if cu_seq_lens_q is None:
        groups = key.shape[1]
        if query.shape[2] == 1 and query.shape[1] > groups and (attention_mask is None or attention_mask.shape[1] == 1):
            return _one_token(query, key, value, attention_mask, scaling, dropout), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    if dropout or options.get("softcap") is not None or options.get("s_aux") is not None or len(query) != 1:
        raise ValueError("packed sequences are computed by length without dropout, caps and sinks, in a single row")
    assert max_length_q is not None, "the two are given together"
    window = options.get("sliding_window")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # [1, H, T, D] -> [T, H, D]
    return by_length(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[None], None


def by_length(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention within each of several concatenated sequences.

    Args:
        query: Queries, [T, H, D].
        key: Keys, [T, G, D]; G divides H.
        value: Values, [T, G, D].
        begins: Index of the beginning of each sequence, and of the end of the last one, int32.
        longest: Upper bound of the sequences' lengths in tokens.
        scaling: Factor on the scores; None for 1/√D.
        window: Number of tokens that a token sees, itself included; None for all.

    Returns:
        Attention output, [T, H, D].
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    if device != "cuda":
        return one_by_one(query, key, value, begins, scaling, window)
    return _by_kernel(query, key, value, begins, longest, scaling, window)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    options: dict[str, Any] = {}
    if "scale" in _KERNEL.takes:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "window_size" in _KERNEL.takes:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _KERNEL.takes:
            options["enable_gqa"] = True
        else:
            key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    assert _KERNEL.function is not None, "see available"
    found: Tensor = _KERNEL.function(query, key, value, begins, begins, longest, longest, **options)
    return found


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """`by_length` in plain PyTorch, for CPUs and as the reference for the kernel."""
    found = []
    sizes = begins.diff().tolist()
    split = (torch.split(part.transpose(0, 1), sizes, dim=1) for part in (query, key, value))  # of [H, T, D]
    for q, k, v in zip(*split, strict=True):
        places = torch.arange(q.shape[1], device=q.device)
        back = places[:, None] - places  # [t, t]
        sees = (back >= 0) & (back < (window or len(places) + 1))
        found.append(
            functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scaling, enable_gqa=len(q) != len(k))
        )
    return torch.cat(found, dim=1).transpose(0, 1)  # [H, T, D] -> [T, H, D]


def _one_token(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """Attention of one new token per row: heads that share keys become rows of one head, so that no key is copied."""
    rows, heads, _, size = query.shape
    packed = query.view(rows, key.shape[1], -1, size)  # [R, H, 1, D] -> [R, G, H/G, D]
    found = functional.scaled_dot_product_attention(packed, key, value, mask, dropout, scale=scaling)
    return found.reshape(rows, 1, heads, size)  # [R, G, H/G, D] -> [R, 1, H, D]


def can_switch(model: nn.Module) -> bool:
    """True if a model's attention is `sdpa` and can be replaced by this one."""
    return (
        isinstance(model, PreTrainedModel)
        and getattr(text_config(model), "_attn_implementation", None) in ("sdpa", NAME)
        and bool(model._can_set_attn_implementation())
    )


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """True if there is a kernel for attention by length on this device and in this type."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and _KERNEL.find()


class _Kernel:
    """PyTorch's function for attention by length, imported when it is first needed, which takes a second.

    Attributes:
        function: Function of PyTorch; None before `find`, and for torch before 2.10.
        takes: Names of its arguments, which change with torch's version.
    """

    def __init__(self) -> None:
        self.function: Callable[..., Tensor] | None = None
        self.takes: frozenset[str] = frozenset()

    def find(self) -> bool:
        """Imports the function; returns True if this version of torch has it."""
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return False
        self.function, self.takes = varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)  # type: ignore[assignment]
        return True


_KERNEL = _Kernel()


@contextmanager
def switched(model: nn.Module) -> Iterator[None]:
    """Context in which a model, for which `can_switch` is true, uses this attention."""
    assert isinstance(model, PreTrainedModel)
    before = text_config(model)._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
