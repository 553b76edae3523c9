"""Low-rank adapters (LoRA, DoRA) by PEFT: a few weights beside frozen ones, saved both alone and merged.

The layers are injected into the Hugging Face model itself, so its head, blocks, checkpointing and generation work as
usual. PEFT (extra ``lora``) is imported only when an adapter is made.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import peft as hf_peft
from transformers.utils.peft_utils import check_peft_version

from sga.errors import UserError, check_numbers
from sga.models.blocks import transformer_blocks
from sga.models.pretrained import Pretrained

ADAPTER = "default"
"""PEFT's name for the only adapter of a model."""


class LoRA(Pretrained):
    """A Hugging Face model with frozen weights and a trainable low-rank adapter: W·x + (alpha/rank)·B·A·x.

    A is random and B zero, so that training starts from the model itself. A run writes the adapter alone to
    ``adapter/``, in PEFT's format, and the model with the adapter merged into its weights to ``model/``. Sources: Hu et
    al., arXiv 2106.09685; DoRA: Liu et al., arXiv 2402.09353.
    """

    trains_all_weights = False

    def __init__(
        self,
        name_or_path: str,
        rank: int = 8,
        alpha: int = 32,
        dropout: float = 0.05,
        target_modules: Sequence[str] | None = None,
        dora: bool = False,
        revision: str = "main",
        tokenizer_name_or_path: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Stores the settings of model and adapter. Defaults are TOFU's (``config/forget_lora.yaml``).

        Args:
            name_or_path: Name on the Hub, a local folder in Hugging Face format, or a run folder of this program with
                its ``model/``.
            rank: Rank of the adapter, the number of rows of A and columns of B, at least 1.
            alpha: Numerator of the factor alpha/rank on the adapter's output.
            dropout: Share of the adapter's inputs that is dropped in training, in [0, 1). Set 0 for a mixture of
                experts whose experts get an adapter, see docs/speed-and-memory.md.
            target_modules: Names of the layers that get an adapter, such as q_proj and v_proj; null for every linear
                layer except the language-model head.
            dora: True to also train the norm of each row of the weights (DoRA), which takes more memory and time.
            revision: Branch, tag or commit on the Hub.
            tokenizer_name_or_path: Location of the tokenizer; null if it is beside the model.
            dtype: Type of the frozen weights; bfloat16 loses no updates, because they do not change. The adapter's
                weights are always float32.
            attention: Implementation of attention; null for sdpa, or eager for a model without sdpa.
            trust_remote_code: True to run Python code that comes with the model. Only for sources that you trust.
        """
        check_numbers(1, rank=rank, alpha=alpha)
        check_numbers(0, below=1, dropout=dropout)
        if target_modules is not None and not target_modules:
            raise UserError("target_modules must name at least one layer; null takes every linear one but the head")
        if importlib.util.find_spec("peft") is None:
            raise UserError("an adapter needs the package peft: pip install 'sga-unlearning[lora]'")
        try:
            check_peft_version(hf_peft.MIN_PEFT_VERSION)
        except ValueError as error:
            raise UserError(
                f"transformers {transformers.__version__} does not work with peft {version('peft')} ({error}): "
                "pip install 'sga-unlearning[lora]' installs two that go together"
            ) from error
        super().__init__(name_or_path, revision, tokenizer_name_or_path, dtype, attention, trust_remote_code)
        self.rank, self.alpha, self.dropout, self.dora = rank, alpha, dropout, dora
        self.target_modules = None if target_modules is None else tuple(target_modules)

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return self.prepared(super().network(tokenizer))

    def prepared(self, network: PreTrainedModel) -> PreTrainedModel:
        """The network with an adapter injected, in which only the adapter can be trained."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.target_modules is None else list(self.target_modules),
            exclude_modules=_unfit(network) or None if self.target_modules is None else None,
            use_dora=self.dora,
            task_type="CAUSAL_LM",
        )
        try:
            network.add_adapter(config, ADAPTER)
        except ValueError as error:
            if "ParamWrapper" in str(error):  # PEFT's name for an adapter on a weight tensor that is not a layer
                raise UserError(
                    f"the experts of {self.name_or_path!r} are tensors of weights, of which an adapter has no dropout "
                    "and no DoRA: set --model.language_model.dropout 0 and dora false, or leave the experts out with "
                    "--model.language_model.target_modules, such as [q_proj,k_proj,v_proj,o_proj]"
                ) from error
            raise UserError(
                f"no adapter fits into {self.name_or_path!r}: {error} (--model.language_model.target_modules names the "
                "layers that get one)"
            ) from error
        frozen = _frozen_matrices(network)
        if self.target_modules is None and frozen:
            warnings.warn(
                f"these weights of {type(network).__name__}'s blocks get no adapter and stay as they are, because they "
                f"are no linear layers that PEFT adapts: {', '.join(frozen)}",
                stacklevel=2,
            )
        _check_tied(network)
        for parameter in network.parameters():
            if parameter.requires_grad and parameter.dtype == torch.bfloat16:
                parameter.data = parameter.data.float()  # PEFT gives them the type of the frozen weights
        return network


def _unfit(network: PreTrainedModel) -> list[str]:
    """Names of linear layers unfit for an adapter: those that return more than a product, or do not read text."""
    decoder: Any = network.get_decoder()  # type: ignore[no-untyped-call]
    text = {id(module) for module in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    blocks = {id(module) for module in transformer_blocks(network).modules()}
    text = text if blocks <= text else {id(module) for module in network.modules()}
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and (id(module) not in text or not _gives_a_product(module))
    ]


@torch.no_grad()
def _gives_a_product(layer: nn.Linear) -> bool:
    """True if a linear layer returns a product; routers derived from one return choices and weights of experts."""
    if type(layer).forward is nn.Linear.forward:
        return True
    try:
        return isinstance(layer(layer.weight[:1]), Tensor)
    except Exception:  # a layer with another kind of input
        return False


def _frozen_matrices(network: PreTrainedModel) -> list[str]:
    """Weight matrices of the blocks that have no adapter and belong to none, by their names without block number."""
    found: dict[str, None] = {}
    for block in transformer_blocks(network):
        layers: list[Any] = [layer for layer in block.modules() if hasattr(layer, "get_base_layer")]
        adapted = {id(getattr(layer.get_base_layer(), _adapted_weight(layer))) for layer in layers}
        for name, parameter in block.named_parameters():
            if parameter.dim() > 1 and id(parameter) not in adapted and not is_adapter_weight(name):
                plain = (part for part in _plain(name).split(".") if not part.isdigit())
                found[".".join(plain)] = None
    return list(found)


def _adapted_weight(layer: Any) -> str:
    """Name of the weight that a PEFT layer adapts; experts have several weight tensors in one module."""
    return str(getattr(layer, "parameter_name", "weight"))


def _plain(name: str) -> str:
    """Name of an adapted network's parameter in the network without the adapter.

    >>> _plain("layers.0.mlp.experts.base_layer.base_layer.down_proj")
    'layers.0.mlp.experts.down_proj'
    """
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _check_tied(network: PreTrainedModel) -> None:
    """Refuses adapters on embeddings tied to the head: after merging, the two would no longer be one matrix."""
    head: Any = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings: Any = network.get_input_embeddings()
    adapted = [hasattr(layer, "base_layer") for layer in (head, embeddings)]
    weights = [getattr(getattr(layer, "base_layer", layer), "weight", None) for layer in (head, embeddings)]
    if any(adapted) and weights[0] is weights[1]:
        raise UserError(
            "target_modules names the embeddings or the head, which share their weights in this model: an adapter "
            "could not be merged into one of them alone; leave them out"
        )


def has_adapter(network: nn.Module) -> bool:
    """True if the network has an adapter that `adapter_off` can switch off."""
    return bool(getattr(network, "peft_config", None)) or hasattr(network, "disable_adapter")


def adapter_settings(network: nn.Module) -> dict[str, Any]:
    """Settings of a network's adapters that change its output besides the weights, for hashing; empty without one."""
    return {
        name: {"rank": config.r, "alpha": config.lora_alpha, "dora": config.use_dora}
        for name, config in (getattr(network, "peft_config", None) or {}).items()
    }


def is_adapter_weight(name: str) -> bool:
    """True if a parameter of an adapted network, given by name, belongs to the adapter.

    >>> is_adapter_weight("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    True
    >>> is_adapter_weight("model.layers.0.self_attn.q_proj.base_layer.weight")
    False
    """
    return any(part.startswith("lora_") for part in name.split("."))


@contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """Context in which an adapted network computes without its adapter; other networks are unchanged.

    Sets the flag behind PEFT's own switch, because the switch also freezes the adapter and afterwards unfreezes all of
    it, which breaks losses that train some blocks only, and strategies that have wrapped the parameters.
    """
    own: Any = getattr(network, "disable_adapter", None)  # PEFT's wrapper around a model, in a user's own loop
    if own is not None:
        with own():
            yield
        return
    layers = [layer for layer in _layers(network) if not layer._disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _layers(network: nn.Module) -> list[Any]:
    """Layers of the network that have an adapter."""
    if not getattr(network, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@torch.no_grad()
def save_merged(network: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a plain model with the adapter merged into its weights; the network itself stays unchanged to the bit.

    W + (alpha/rank)·B·A is rounded to the type of the weights. Takes memory on the CPU for the whole model, and on the
    weights' device for one further layer.

    Args:
        network: Adapted network, whose weights may be sharded.
        folder: Path of the folder to write, in Hugging Face format.
        weights: State dict of the network with whole tensors.
    """
    state = {_plain(name): value.cpu() for name, value in weights.items() if not is_adapter_weight(name)}
    adapted = {id(layer) for layer in _layers(network)}
    for name, layer in network.named_modules():
        if id(layer) in adapted:
            # Merging writes into these clones. As the memo of deepcopy they replace shards, which cannot be copied.
            whole: dict[int, Any] = {
                id(part): nn.Parameter(weights[f"{name}.{key}"].clone(), part.requires_grad)
                for key, part in layer.named_parameters()
            }
            one: Any = copy.deepcopy(layer, whole)
            one.merge()
            merged = _adapted_weight(one)
            state[f"{_plain(name)}.{merged}"] = getattr(one.get_base_layer(), merged).cpu()
    with torch.device("meta"):
        plain = type(network)(copy.deepcopy(network.config))
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = network.generation_config
    plain.save_pretrained(folder)
