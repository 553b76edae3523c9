"""Estimate of a training run's cost: memory of each device by use, disk, operations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sga.errors import UserError
from sga.losses.base import Needs
from sga.models.adapters import LoRA, is_adapter_weight
from sga.models.blocks import check_layers, transformer_blocks
from sga.models.pretrained import Pretrained
from sga.models.text_config import text_config
from sga.optimization import EIGHT_BIT
from sga.planning.trace import fake_network, trace

GIB = 2**30


@dataclass(frozen=True)
class PlannedRun:
    """Settings of a run that its memory and time depend on.

    Attributes:
        language_model: Model to train, with or without adapter.
        needs: Needs of the loss, which may add a reference model or logits.
        precision: Name of the precision, as for Lightning's trainer.
        checkpointing: True if activations are recomputed in the backward pass.
        devices: Number of devices.
        sharded: True if weights, gradients and optimiser states are sharded over the devices.
        gpu: True if the devices are GPUs, on which optimisers update all parameters at once.
        rows: Number of sequences of a group that go through the model.
        pass_rows: Number of sequences of a group in one forward pass; below `rows` if the backward pass is split.
        split: True if the gradients of forget and normal samples are kept separately (dynamic rates).
        micro_batch_size: Number of groups of a forward pass on each device.
        batch_size: Number of groups of an optimiser step over all devices.
        length: Length in tokens of the longest sequence, to which the others are padded.
        fill: Tokens of a forward pass relative to all its sequences padded to `length`, in (0, 1]; below 1 with packed
            rows.
        answer_length: Mean number of answer tokens of a sequence.
        step_tokens: Number of tokens of a step over all devices, padding included; None for all sequences at `length`.
        optimizer_bytes: Bytes of optimiser states per trainable weight.
    """

    language_model: Pretrained
    needs: Needs
    precision: str
    checkpointing: bool
    devices: int
    sharded: bool
    gpu: bool
    rows: int
    pass_rows: int
    split: bool
    micro_batch_size: int
    batch_size: int
    length: int
    answer_length: float
    step_tokens: float | None
    optimizer_bytes: float
    fill: float = 1.0


@dataclass(frozen=True)
class EstimateLine:
    """One use of memory: its name, its size in bytes on each device, and how the size is counted."""

    name: str
    size: float
    how: str


@dataclass(frozen=True)
class RunEstimate:
    """Estimated cost of a run.

    Attributes:
        parameters: Number of weights of the model, including an adapter's.
        trainable: Number of trained weights.
        lines: Memory of each device by use.
        peak: Peak memory of each device in bytes; less than the sum of the lines if they are not all in use at once.
        checkpoint: Size of ``checkpoints/last.ckpt`` in bytes; there are two while a new one is written.
        export: Size of the weights in ``model/`` in bytes.
        adapter: Size of the weights in ``adapter/`` in bytes; 0 without an adapter.
        flops: Number of floating-point operations of a step on each device.
    """

    parameters: int
    trainable: int
    lines: tuple[EstimateLine, ...]
    peak: float
    checkpoint: float
    export: float
    adapter: float
    flops: float


def estimate_run(request: PlannedRun) -> RunEstimate:
    """Estimates the cost of a run; the formulas are in docs/speed-and-memory.md, section Planning.

    Raises:
        UserError: the model has no configuration, lacks a layer that the loss names, or does not support requested
            gradient checkpointing.
    """
    network = _network(request)
    shares = request.devices if request.sharded else 1
    parameters = list(network.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    weights, gradients = _bytes(parameters), _bytes(trainable)
    states = request.optimizer_bytes * sum(parameter.numel() for parameter in trainable)
    rows = request.micro_batch_size * request.pass_rows
    answers = max(1, round(rows * request.answer_length))
    packed_rows = math.ceil(rows * request.fill)
    traced = trace(network, packed_rows, request.length, answers, request.precision in ("bf16-mixed", "16-mixed"))
    casts, passes = float(traced.casts), float(traced.peak)
    cast_how = "2 bytes for each weight of a matrix product, while autocast keeps them"
    if request.sharded:
        casts = _gathered(network, request.precision)
        passes += casts - traced.casts
        cast_how = "gathered: all that is in no block, one block and the next one on its way"
    lines = [
        EstimateLine("weights", weights / shares, f"{_types(parameters)}{_divided(shares)}"),
        EstimateLine("gradients", gradients / shares, f"as the trainable weights{_divided(shares)}"),
        EstimateLine(
            "optimiser", states / shares, f"{request.optimizer_bytes:g} bytes a trainable weight{_divided(shares)}"
        ),
    ]
    if request.split:
        lines.append(EstimateLine("second gradient", gradients / shares, "of the forget samples, for the dynamic rate"))
    if request.devices > 1 and not request.sharded:
        lines.append(EstimateLine("messages", gradients, "buckets in which gradients are averaged over devices"))
    if request.needs.reference:
        if not isinstance(request.language_model, LoRA):
            lines.append(EstimateLine("starting model", weights / shares, f"a second model{_divided(shares)}"))
        if request.needs.logits:
            vocabulary = text_config(network).vocab_size
            lines.append(
                EstimateLine(
                    "its logits", 4.0 * answers * vocabulary, f"4 bytes x {answers} answer tokens x vocabulary"
                )
            )
    held = sum(line.size for line in lines)
    lines += [
        EstimateLine("weights in use", casts, cast_how),
        EstimateLine(
            "activations",
            traced.activations,
            f"kept for the backward pass, {packed_rows} rows of {request.length} tokens",
        ),
        EstimateLine("logits", traced.logits, f"{answers} answer tokens, float32 logits and cross-entropy"),
        EstimateLine(
            "backward pass", max(0.0, passes - casts - traced.activations - traced.logits), "most at once, beyond these"
        ),
    ]
    # In an optimiser step no activations are left; PyTorch's optimisers update all parameters at once on a GPU.
    at_once = request.gpu and request.optimizer_bytes != EIGHT_BIT
    step = (gradients if at_once else max(map(_one, trainable))) / shares
    adapter = _bytes([p for name, p in network.named_parameters() if is_adapter_weight(name)])
    lora = isinstance(request.language_model, LoRA)
    tokens = request.step_tokens or float(request.batch_size * request.rows * request.length)
    flops = traced.flops / (packed_rows * request.length) * tokens
    if request.needs.reference:
        share = min(1.0, len(request.needs.reference) / 2)
        flops += 2 * sum(p.numel() for p in parameters) * tokens * share
    return RunEstimate(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        lines=tuple(lines),
        peak=held + max(passes, step),
        checkpoint=(adapter if lora else weights) + states,
        export=weights - adapter,
        adapter=adapter,
        flops=flops / request.devices,
    )


def cheaper_runs(request: PlannedRun) -> dict[str, PlannedRun]:
    """Variants of a run that take less memory, by the command-line option for each."""
    found: dict[str, PlannedRun] = {}
    if not request.checkpointing:
        found["--model.gradient_checkpointing true"] = replace(request, checkpointing=True)
    if request.micro_batch_size > 1:
        found["--data.micro_batch_size 1"] = replace(request, micro_batch_size=1, fill=1.0)
    least = replace(request, checkpointing=True, micro_batch_size=1, fill=1.0)
    both = "--model.gradient_checkpointing true --data.micro_batch_size 1"
    if len(found) == 2:
        found[both] = least
    if not isinstance(request.language_model, LoRA):
        name = request.language_model.name_or_path
        found[f"--model.language_model=LoRA {both}"] = replace(least, language_model=LoRA(name))
        found[f"--model.language_model=LoRA --model.language_model.dtype bfloat16 {both}"] = replace(
            least, language_model=LoRA(name, dtype="bfloat16")
        )
        if request.optimizer_bytes > 3 and request.gpu:
            found[f"--model.optimizer=sga.AdamW8bit {both}"] = replace(least, optimizer_bytes=EIGHT_BIT)
    if request.devices > 1 and not request.sharded:
        found[f"weights divided over the {request.devices} devices (--trainer.strategy fsdp2), {both}"] = replace(
            least, sharded=True
        )
    return found


def _network(request: PlannedRun) -> PreTrainedModel:
    network = fake_network(request.language_model)
    target = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(request.precision)
    if target is not None:
        for parameter in network.parameters():
            with parameter.fake_mode:  # type: ignore[attr-defined]
                parameter.data = parameter.data.to(target)
    needs = request.needs
    check_layers(network, needs.hidden_layer, needs.trained_layers, needs.trained_weights)
    if request.checkpointing:
        try:
            enable: Any = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
            enable()  # its name in later transformers, where the older name warns
        except ValueError as error:
            raise UserError(f"--model.gradient_checkpointing: {error}") from error
    return network


def _gathered(network: PreTrainedModel, precision: str) -> int:
    """Size in bytes of the weights that `sga.models.sharding.shard` has gathered at the same time during a step."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() * (2 if precision == "bf16-mixed" else p.element_size()) for p in module.parameters())

    each = [size(block) for block in transformer_blocks(network)]
    return size(network) - sum(each) + 2 * max(each)


def _one(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(map(_one, parameters))


def _types(parameters: list[nn.Parameter]) -> str:
    return " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))


def _divided(shares: int) -> str:
    return f", divided over {shares} devices" if shares > 1 else ""
