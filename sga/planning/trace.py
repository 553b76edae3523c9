"""Trace of one forward and backward pass over shapes alone: memory over time, and number of operations.

The model is made of fake tensors, which have a type and a shape but no numbers, so that a model of any size is traced
in seconds on any machine. The trace sees every operation that autograd and autocast perform, for any architecture, with
adapters and gradient checkpointing. For Llama's blocks the result agrees with a calculation by hand as in Korthikanti
et al., arXiv 2205.05198, section 4 (a test checks this).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sga.errors import UserError
from sga.models.adapters import LoRA
from sga.models.pretrained import Pretrained


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_FLOPS: dict[Any, Any] = {
    **flop_registry,
    # PyTorch counts operations of attention on a GPU only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention_flops),  # type: ignore[no-untyped-call]
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward_flops),  # type: ignore[no-untyped-call]
}
"""Functions that count the operations of each kind of product from the shapes of its inputs."""


@dataclass(frozen=True)
class Trace:
    """Memory of a micro-batch's two passes, besides weights, gradients and optimiser states, and operations.

    Attributes:
        casts: Size of the bfloat16 copies of weights at the end of the forward pass, in bytes.
        activations: Size of all other tensors at that time except the logits, in bytes.
        logits: Size of the logits at answer positions and of cross-entropy's own tensors, in bytes.
        peak: Largest size of all these together at any time, in bytes.
        flops: Number of operations of both passes (2 for each multiplication and addition of a matrix product).
    """

    casts: int
    activations: int
    logits: int
    peak: int
    flops: int


class _Live(TorchDispatchMode):
    """Counter of the bytes of storages that operations allocate, from allocation until they are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.casts: dict[int, int] = {}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        count = _FLOPS.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*arguments, **(options or {}), out_val=result)
        is_cast = function is torch.ops.aten._to_copy.default and self._key(arguments[0]) in self.known
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, is_cast)
        return result

    @staticmethod
    def _key(tensor: Tensor) -> int:
        key: int = tensor.untyped_storage()._cdata
        return key

    def _add(self, tensor: Tensor, is_cast: bool) -> None:
        key, storage = self._key(tensor), tensor.untyped_storage()
        if key in self.known or key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        if is_cast:
            self.casts[key] = storage.nbytes()
        self.now += self.sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
        self.casts.pop(key, None)


def fake_network(language_model: Pretrained) -> PreTrainedModel:
    """The model with fake tensors in place of weights, with its adapter if it has one.

    Raises:
        UserError: the model has no configuration of a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(
            language_model.name_or_path,
            revision=language_model.revision,
            trust_remote_code=language_model.trust_remote_code,
            **language_model.gguf_arguments,
        )
        with torch.device("meta"):
            network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config,
                dtype=getattr(torch, language_model.dtype),
                trust_remote_code=language_model.trust_remote_code,
                attn_implementation="sdpa",
            )
            if isinstance(language_model, LoRA):
                network = language_model.prepared(network)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"no model can be planned from {language_model.name_or_path!r}: {error}") from error
    _make_fake(network)
    return network


def _make_fake(network: nn.Module) -> None:
    """Replaces tensors on the meta device by fake tensors of the CPU; shared ones stay shared."""
    made: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in network.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        fake: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                        if isinstance(tensor, nn.Parameter):
                            fake = nn.Parameter(fake, tensor.requires_grad)
                        made[id(tensor)] = fake
                    place[name] = made[id(tensor)]


def trace(network: PreTrainedModel, rows: int, length: int, answers: int, autocast: bool) -> Trace:
    """Traces the passes of a micro-batch as in `sga.likelihood.forward.answer_tokens`.

    Args:
        network: Network of fake tensors, from `fake_network`.
        rows: Number N of sequences.
        length: Length T of each sequence in tokens, padding included.
        answers: Number M of answer tokens of all sequences.
        autocast: True to compute matrix products in bfloat16 under autocast.
    """
    network.train()
    mode = next(network.parameters()).fake_mode  # type: ignore[attr-defined]
    with mode:
        # Gradients exist as after an earlier micro-batch, so that a new gradient is temporary.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        live = _Live([*network.parameters(), *network.buffers(), *gradients])
        ids = torch.zeros(rows, length, dtype=torch.long)
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                hidden: Tensor = network.base_model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
                ).last_hidden_state
                activations = live.now - sum(live.casts.values())
                loss = _loss(network, hidden, answers)
                casts = sum(live.casts.values())
                logits = live.now - casts - activations
                del hidden
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in network.parameters():
            parameter.grad = None
    return Trace(casts, activations, logits, live.peak, live.flops)


def _loss(network: PreTrainedModel, hidden: Tensor, answers: int) -> Tensor:
    """Mean nll of M answer tokens; shapes do not depend on the choice of tokens."""
    head: Any = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: Tensor = head(hidden.flatten(0, 1)[:answers].clone()).float()  # [N, T, H] -> [M, H] -> [M, V]
    return functional.cross_entropy(logits, torch.zeros(answers, dtype=torch.long), reduction="none").mean()
