"""Fully sharded data parallelism (FSDP2): weights, gradients and optimiser states in parts, one on each device.

Each process trains on its own groups as under DDP. The weights of a block are gathered when its forward or backward
pass begins and let go afterwards; gradients are averaged while they are cut into parts again. While a model answers
evaluation requests every device holds the whole of it, so that processes may take different numbers of forward passes.
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
    under DDP: it is replaced in one go, is read without running code that comes with it (the index of a folder of parts
    is a pickle), and one device can evaluate it.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = timedelta(minutes=30)) -> None:
        """Notes the settings.

        Args:
            process_group_backend: nccl, gloo or another; null takes the device's usual one.
            timeout: After how long a process that waits for another one gives up.
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
        # Weights that were gathered in inference mode could not be trained afterwards.
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)


StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="Fully sharded data parallelism (fully_shard)")


def check_strategy(trainer: pl.Trainer, language_model: LanguageModel) -> None:
    """Refuses ways to use several devices under which results have not been shown to be right.

    Args:
        trainer: With the strategy and the precision.
        language_model: What is trained or evaluated.

    Raises:
        UserError: the strategy, its precision, or the model under it.
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
    """Refuses types of weights that do not go into parts together."""
    if language_model.dora and precision == "bf16-mixed":
        raise UserError(
            "DoRA does not go with --trainer.strategy fsdp2 and --trainer.precision bf16-mixed, under which the norms "
            "that it trains would be rounded to bfloat16 wherever they are gathered, and small changes of theirs lost; "
            "take --trainer.precision 32-true, with --model.language_model.dtype bfloat16 for less memory"
        )
    # From 2.8 on PyTorch asks for one type among the trained weights of a block only.
    two_types = language_model.dtype == "bfloat16" and precision in ("32-true", "bf16-mixed")
    if two_types and torch.__version__ < "2.8":
        raise UserError(
            "--trainer.strategy fsdp2 with an adapter (float32) on --model.language_model.dtype bfloat16 needs PyTorch "
            f"2.8 or later, this is {torch.__version__}: install a later one, or take float32"
        )


def shard(network: nn.Module, strategy: object, precision: str | None, trained: bool = True) -> None:
    """Cuts the weights of each block, and of the rest together, into parts; only under `FullyShardedStrategy`.

    Under ``bf16-mixed`` the parts stay float32, and so does what optimisers see; weights are rounded to bfloat16 as
    they are gathered, which halves what is sent, and gradients are summed in float32. Norms and the residual stream are
    bfloat16 then, where autocast by itself (one device, DDP) leaves them float32.

    An adapter is cut with the block that it stands in. Frozen weights have no gradients to be sent, and may be of
    another type than the adapter: each is gathered in its own, or under the two bfloat16 precisions both in bfloat16.

    Args:
        network: A model whose blocks are in a list.
        strategy: The trainer's.
        precision: The trainer's.
        trained: False where no backward pass follows.
    """
    if not isinstance(strategy, FullyShardedStrategy):
        return
    mesh: DeviceMesh = strategy.device_mesh["data_parallel"]
    policy = MixedPrecisionPolicy()
    if precision in ("bf16-mixed", "bf16-true"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in transformer_blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Tied embeddings are in the rest twice, and in one part. A backward pass needs the rest again at once.
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=None if trained else True)


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` has cut the model's weights into parts."""
    return isinstance(network, FSDPModule)


def gather(network: nn.Module) -> None:
    """Makes the whole of a sharded model's weights stay on each device until `scatter`; nothing for other models."""
    for module in _parts(network):
        if module is not network:
            module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def scatter(network: nn.Module) -> None:
    """Undoes `gather`, and what a forward pass without a backward pass leaves gathered."""
    for module in _parts(network):
        if module is not network:
            module.set_reshard_after_forward(True, recurse=False)
        module.reshard()


def _parts(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with whole tensors, every process has to call it.

    Returns:
        On the CPU and in the first process where weights were in parts; the others get an empty one then.
    """
    if not is_sharded(network):
        return network.state_dict()
    weights: dict[str, Any] = get_model_state_dict(network, options=_WHOLE)
    first: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        first.setdefault(parameter, name)
        if weights:  # tied weights are one tensor again, as those who write models expect
            weights[name] = weights[first[parameter]]
    return weights


def load_whole_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads a state dict with whole tensors, that of the first process; every process has to call it.

    Args:
        module: Whose weights may be in parts.
        weights: In other processes than the first one it may be empty where weights are in parts.
    """
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module, dict(weights), options=options)
    elif weights:
        module.load_state_dict(weights)
