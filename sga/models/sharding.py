"""Fully sharded data parallelism (FSDP2): weights, gradients and optimiser states are sharded over the devices.

Each process trains on its own groups as under DDP. The weights of a block are gathered when its forward or backward
pass begins and freed afterwards; gradients are averaged while they are sharded again. During an evaluation every device
holds the whole model, so that processes may make different numbers of forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sga.errors import UserError
from sga.models.adapters import LoRA
from sga.models.blocks import transformer_blocks
from sga.models.pretrained import LanguageModel

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with all processes in one data-parallel group: ``--trainer.strategy fsdp2``.

    A checkpoint is one file with whole weights and optimiser states, gathered in the first process's main memory, as
    under DDP: it is replaced atomically, can be read without running code from it (the index of a sharded checkpoint is
    a pickle), and can be evaluated on one device.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = timedelta(minutes=30)) -> None:
        """Stores the settings of the process group.

        Args:
            process_group_backend: Name of the backend, such as nccl or gloo; null for the device's default.
            timeout: Time after which a process that waits for another one gives up.
        """
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        # Weights gathered in inference mode could not be trained afterwards.
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)


StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="Fully sharded data parallelism (fully_shard)")


def check_strategy(trainer: pl.Trainer, language_model: LanguageModel) -> None:
    """Refuses strategies for several devices under which results are not known to be right.

    Args:
        trainer: Trainer with its strategy and precision.
        language_model: Model to be trained or evaluated.

    Raises:
        UserError: the strategy is not supported, or does not support the precision or the model.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return
    if not isinstance(strategy, FullyShardedStrategy):
        raise UserError(
            f"--trainer.strategy {type(strategy).__name__} is not supported: the loss and its rate, evaluation and "
            "resuming are right on one device, under ddp and under fsdp2 (FSDP2, weights in parts); take one of those"
        )
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"--trainer.strategy fsdp2 does not go with --trainer.precision {trainer.precision} (each device would "
            f"scale gradients by itself); choose from {', '.join(PRECISIONS)}"
        )
    if not language_model.trainable:
        raise UserError(
            "--trainer.strategy fsdp2 takes one model that can be trained, not a decoder over two; leave it out, or "
            "use --trainer.strategy ddp to evaluate on several devices"
        )
    if isinstance(language_model, LoRA):
        _check_adapter(language_model, trainer.precision)


def _check_adapter(language_model: LoRA, precision: str) -> None:
    """Refuses types of weights that cannot be sharded together."""
    if language_model.dora and precision == "bf16-mixed":
        raise UserError(
            "DoRA does not go with --trainer.strategy fsdp2 and --trainer.precision bf16-mixed, under which the norms "
            "that it trains would be rounded to bfloat16 wherever they are gathered, and small changes of theirs lost; "
            "take --trainer.precision 32-true, with --model.language_model.dtype bfloat16 for less memory"
        )
    # From 2.8 on PyTorch needs one type only among the trained weights of a block.
    two_types = language_model.dtype == "bfloat16" and precision in ("32-true", "bf16-mixed")
    if two_types and torch.__version__ < "2.8":
        raise UserError(
            "--trainer.strategy fsdp2 with an adapter (float32) on --model.language_model.dtype bfloat16 needs PyTorch "
            f"2.8 or later, this is {torch.__version__}: install a later one, or take float32"
        )


def shard(network: nn.Module, strategy: object, precision: str | None, trained: bool = True) -> None:
    """Shards the weights of each block, and the remaining ones together; does nothing under another strategy.

    Under ``bf16-mixed`` shards and optimisers' weights are float32; weights are rounded to bfloat16 when they are
    gathered, which halves the traffic, and gradients are summed in float32. Norms and the residual stream are then
    bfloat16, while plain autocast (one device, DDP) leaves them float32.

    An adapter is sharded with its block. Frozen weights have no gradients to exchange, and may have another type than
    the adapter: each is gathered in its own type, or under the two bfloat16 precisions both in bfloat16.

    Args:
        network: Model with its blocks in a list.
        strategy: Strategy of the trainer; only `FullyShardedStrategy` shards.
        precision: Precision of the trainer, by Lightning's name.
        trained: False if the model is only evaluated; its remaining weights are then resharded after each forward pass.
    """
    if not isinstance(strategy, FullyShardedStrategy):
        return
    mesh: DeviceMesh = strategy.device_mesh["data_parallel"]
    policy = MixedPrecisionPolicy()
    if precision in ("bf16-mixed", "bf16-true"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in transformer_blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Tied embeddings are twice in the rest, and in one shard. A backward pass needs the rest again at once.
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=None if trained else True)


def is_sharded(network: nn.Module) -> bool:
    """True if `shard` has sharded the model's weights."""
    return isinstance(network, FSDPModule)


def gather(network: nn.Module) -> None:
    """Gathers all weights of a sharded model on each device until `scatter`; does nothing for other models."""
    for module in _parts(network):
        if module is not network:
            module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def scatter(network: nn.Module) -> None:
    """Undoes `gather`, and frees weights left gathered by a forward pass without a backward pass."""
    for module in _parts(network):
        if module is not network:
            module.set_reshard_after_forward(True, recurse=False)
        module.reshard()


def _parts(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a model with whole tensors; every process has to call it.

    Returns:
        The state dict. If the weights were sharded, it is on the CPU in the first process, and empty in the others.
    """
    if not is_sharded(network):
        return network.state_dict()
    weights: dict[str, Any] = get_model_state_dict(network, options=_WHOLE)
    first: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        first.setdefault(parameter, name)
        if weights:  # tied weights become one tensor again, as writers of models expect
            weights[name] = weights[first[parameter]]
    return weights


def load_whole_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads the first process's state dict with whole tensors; every process has to call it.

    Args:
        module: Module to load into, whose weights may be sharded.
        weights: State dict with whole tensors; for a sharded module it may be empty in all processes but the first.
    """
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module, dict(weights), options=options)
    elif weights:
        module.load_state_dict(weights)
