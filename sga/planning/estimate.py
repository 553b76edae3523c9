"""What a training run takes, added up: memory of each device by what it is for, disk, operations."""

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
    """A run, as far as its memory and time depend on it.

    Attributes:
        language_model: Which model, with or without adapter.
        needs: What the loss reads.
        precision: Lightning's name of it.
        checkpointing: Whether activations are computed again in the backward pass.
        devices: How many.
        sharded: Whether weights, gradients and states are divided over the devices; otherwise each has all of them.
        gpu: Whether the device is one; optimisers work on all parameters at once there.
        rows: Sequences of a group that go through the model.
        pass_rows: Sequences of a group in one forward pass: fewer where the backward pass is split.
        split: Whether the gradients of forget and normal samples are held apart (dynamic rates).
        micro_batch_size: Groups of a forward pass on each device.
        batch_size: Groups of a step over all devices.
        length: Tokens of the longest sequence, to which the others are padded.
        fill: Tokens of a forward pass, as a share of all its sequences at that length: with packed rows they are fewer.
        answer_length: Answer tokens of a sequence, on average.
        step_tokens: Tokens of a step over all devices, padding included; None for all of length `length`.
        optimizer_bytes: Bytes of the optimiser's states for each trainable weight.
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
    """One use of memory: its name, bytes on each device, and how they are counted."""

    name: str
    size: float
    how: str


@dataclass(frozen=True)
class RunEstimate:
    """What a run takes.

    Attributes:
        parameters: Weights of the model, an adapter's included.
        trainable: Those that are trained.
        lines: Memory of each device by use.
        peak: The most of it at any time; less than the lines' sum where not all are in use at once.
        checkpoint: Bytes of ``checkpoints/last.ckpt``; while a new one is written there are two.
        export: Bytes of the weights in ``model/``.
        adapter: Bytes of the weights in ``adapter/``; 0 without one.
        flops: Operations of a step on each device.
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
    """Adds up. The formulas stand in docs/speed-and-memory.md, section Planning.

    Raises:
        UserError: the model has no configuration, no gradient checkpointing where it is asked for, or no such layer.
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
    # In an optimiser step no activations are left; PyTorch's own take all parameters at once on a GPU.
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
    """Requests that take less memory, by the option that makes them."""
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
            enable()  # the name in later transformers, where the older one warns
        except ValueError as error:
            raise UserError(f"--model.gradient_checkpointing: {error}") from error
    return network


def _gathered(network: PreTrainedModel, precision: str) -> int:
    """Bytes of the weights that `sga.models.sharding.shard` leaves whole at one time while a step lasts."""

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
