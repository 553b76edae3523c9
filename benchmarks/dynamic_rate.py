"""Times a training step at a dynamic rate against one at a fixed rate, and measures the memory that it adds.

    python benchmarks/dynamic_rate.py --model FOLDER --output result.json
    python benchmarks/dynamic_rate.py --hidden-size 768 --layers 12 --steps 10

Both kinds of step are whole optimiser steps (forward, backward, AdamW) on the same groups of built-in authors, taken in
turns in one process, so that a change of the machine's speed meets both. `ratio` is the quotient of the medians and
`paired_ratio` the median of the quotients of neighbouring steps. Memory is counted in copies of the gradients:
what the split backward pass holds besides the gradients that a fixed rate holds too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import wait_for
from training import RATE, TEMPLATE, groups_of, llama, moved, small_encoder
from transformers import LlamaForCausalLM, PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoder
from sga.files import write_json
from sga.likelihood.forward import ForwardOptions, sequence_nll
from sga.losses.ascent import SmoothedGradientAscent
from sga.models.pretrained import Pretrained
from sga.rates.geometry import total
from sga.rates.policies import MarginRate, RateState
from sga.rates.split_backward import SplitGradients

GROUP_SIZE = 4


class Steps:
    """The two kinds of optimiser step on one model."""

    def __init__(self, network: PreTrainedModel, device: torch.device, precision: str) -> None:
        self.network, self.device = network.to(device).train(), device  # type: ignore[arg-type]
        self.bf16 = precision == "bf16-mixed"
        # With a learning rate of 0 it does all its work, and the last step has as much to do as the first.
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
        self.policy = MarginRate(margin=0.6)
        self.loss, self.state, self.options = SmoothedGradientAscent(RATE), RateState(), ForwardOptions()

    def context(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def nll(self, batch: Batch) -> torch.Tensor:
        with self.context():
            return sequence_nll(self.network, batch, self.options)

    def fixed(self, batch: Batch) -> None:
        """One pass over all samples."""
        loss = self.loss(self.nll(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def dynamic(self, batch: Batch) -> None:
        """A pass over the forget samples, one over the normal samples, geometry, a decision, their combination."""
        split = SplitGradients(self.network.named_parameters())
        forget = self.nll(batch.forget_only()).mean()
        with split.forget_part():
            forget.backward()
        normal = self.nll(batch.normals_only()).mean()
        self.optimizer.zero_grad()
        normal.backward()
        self.state = self.policy.decide(self.state, 0, 1, total(split.geometry(batch.group_size).values()))
        assert self.state.value is not None
        split.combine(*self.loss.weights(batch.group_size, self.state.value))
        self.optimizer.step()

    def seconds(self, step: Callable[[Batch], None], batch: Batch) -> float:
        wait_for(self.device)
        start = time.perf_counter()
        step(batch)
        wait_for(self.device)
        return time.perf_counter() - start

    def peak_bytes(self, step: Callable[[Batch], None], batch: Batch) -> int | None:
        """Most memory in use during a step; None where the device does not count it."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        step(batch)
        return torch.cuda.max_memory_allocated()

    def extra_gradient_copies(self, batch: Batch) -> float:
        """Bytes of g_f beside ``grad`` when both are complete, as a multiple of the trainable gradients' bytes."""
        split = SplitGradients(self.network.named_parameters())
        with split.forget_part():
            self.nll(batch.forget_only()).mean().backward()
        self.nll(batch.normals_only()).mean().backward()
        held = sum(gradient.nbytes for gradient in split.forget if gradient is not None)
        self.optimizer.zero_grad()
        return held / sum(parameter.nbytes for parameter in split.parameters)


def measure(steps: Steps, batches: list[Batch], count: int, warm_up: int) -> dict[str, Any]:
    """Times `count` steps of each kind in turns, the one that begins changing every time."""
    times: dict[str, list[float]] = {"fixed": [], "dynamic": []}
    for number in range(warm_up + count):
        batch = batches[number % len(batches)]
        for name in ("fixed", "dynamic") if number % 2 else ("dynamic", "fixed"):
            times[name].append(steps.seconds(getattr(steps, name), batch))
    fixed, dynamic = times["fixed"][warm_up:], times["dynamic"][warm_up:]
    return {
        "fixed_seconds": statistics.median(fixed),
        "dynamic_seconds": statistics.median(dynamic),
        "ratio": statistics.median(dynamic) / statistics.median(fixed),
        "paired_ratio": statistics.median(d / f for d, f in zip(dynamic, fixed, strict=True)),
        "extra_gradient_copies": steps.extra_gradient_copies(batches[0]),
        "fixed_peak_bytes": steps.peak_bytes(steps.fixed, batches[0]),
        "dynamic_peak_bytes": steps.peak_bytes(steps.dynamic, batches[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; without it an untrained Llama of the given size is made")
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8, help="groups of 4 sequences in a step")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--output", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        source = Pretrained(arguments.model)
        encoder = Encoder(source.tokenizer(()), TEMPLATE, 512)
        network = source.network(encoder.tokenizer)
    else:
        encoder = small_encoder()
        config = llama(arguments.hidden_size, arguments.layers, len(encoder.tokenizer))
        config.tie_word_embeddings = True
        network = LlamaForCausalLM(config)
    device, size = torch.device(arguments.device), arguments.batch_size
    rows = groups_of(encoder, None, GROUP_SIZE)
    batches = [moved(collate(rows[start : start + size]), device) for start in range(0, len(rows) - size + 1, size)]
    steps = Steps(network, device, arguments.precision)
    result = {
        "model": Path(arguments.model).name if arguments.model else "untrained Llama",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "hidden_size": network.config.hidden_size,
        "layers": network.config.num_hidden_layers,
        "groups_per_step": arguments.batch_size,
        "steps": arguments.steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": arguments.precision,
        **measure(steps, batches, arguments.steps, arguments.warm_up),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
