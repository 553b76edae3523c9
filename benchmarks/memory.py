"""Measures the memory of a training step at its peak, beside what `sga plan` says of it.

    python benchmarks/memory.py [--output FILE.json]
    python benchmarks/memory.py --model FOLDER_WITH_CONFIG --rows 32 --length 160
    python benchmarks/memory.py --hidden-size 2048 --layers 16 --large-vocabulary 128000 --device cuda

Each way of training is measured in a process of its own: SGA at K = 4 with AdamW, two passes over the same sequences
and the optimiser's step. Gradients are there in the second pass, as in accumulation, which is what `sga plan` counts
too. Weights are random, for memory depends on shapes alone. The first ways have one sequence a row; the last four
differ in rows and logits and have the large vocabulary, where that shows. `sga plan` knows neither the plain loop nor
logits in parts.

On a CPU it is the growth of the process's resident memory (VmHWM of /proc, so Linux only), on a GPU that of
``torch.cuda.max_memory_allocated``. No GPU has been at hand to try `--device cuda`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import described
from training import Steps, llama, moved
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.batching.packing import packed, padded
from sga.errors import UserError
from sga.files import write_json, write_text
from sga.losses.base import Needs
from sga.models.adapters import LoRA
from sga.models.pretrained import Pretrained
from sga.optimization import optimizer_bytes
from sga.planning.estimate import PlannedRun, estimate_run

GROUP_SIZE = 4
STATUS = Path("/proc/self/status")
MIB = 2**20


@dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        title: What it is called in the table.
        step: plain, padded or packed, as in training.py.
        bf16: Whether under bfloat16 autocast.
        checkpointing: Whether activations are computed again in the backward pass.
        adapter: Whether a LoRA adapter is trained and not the weights.
        in_parts: Whether `--max-logits` is in force.
        large: Whether it has the large vocabulary.
    """

    title: str
    step: str = "padded"
    bf16: bool = False
    checkpointing: bool = False
    adapter: bool = False
    in_parts: bool = False
    large: bool = False

    @property
    def planned(self) -> bool:
        """Whether `sga plan` knows it."""
        return self.step != "plain" and not self.in_parts


WAYS = {
    "weights": Way("all weights, float32"),
    "bf16": Way("all weights, bf16 autocast", bf16=True),
    "checkpointing": Way("all weights, gradient checkpointing", checkpointing=True),
    "lora": Way("LoRA of rank 8", adapter=True),
    "lora-checkpointing": Way("LoRA of rank 8, gradient checkpointing", adapter=True, checkpointing=True),
    "plain": Way("plain loop: logits at all positions", step="plain", large=True),
    "padded": Way("one sequence a row, logits of answers", large=True),
    "packed": Way("packed rows, logits of answers", step="packed", large=True),
    "parts": Way("packed rows, logits of answers in parts", step="packed", in_parts=True, large=True),
}


LARGE = [name for name, way in WAYS.items() if way.large]


def batch_of(rows: int, length: int) -> Batch:
    """Sequences from a quarter of the length to all of it, the second half of each an answer; in groups of K."""
    lengths = [length - (3 * length // 4) * row // max(1, rows - 1) for row in range(rows)]
    sequences = [Encoded(tuple(index % 50 + 3 for index in range(size)), size // 2) for size in lengths]
    return collate([sequences[start : start + GROUP_SIZE] for start in range(0, rows, GROUP_SIZE)])


def planned(folder: str, way: Way, rows: int, length: int, device: str = "cpu") -> float | None:
    """Bytes that `sga plan` says of the model in a folder; None where it says nothing."""
    if not way.planned:
        return None
    batch = batch_of(rows, length)
    layout = packed(batch) if way.step == "packed" else padded(batch)
    packed_rows, width = layout.arguments["input_ids"].shape
    request = PlannedRun(
        language_model=LoRA(folder) if way.adapter else Pretrained(folder),
        needs=Needs(),
        precision="bf16-mixed" if way.bf16 else "32-true",
        checkpointing=way.checkpointing,
        devices=1,
        sharded=False,
        gpu=device != "cpu",
        rows=GROUP_SIZE,
        pass_rows=GROUP_SIZE,
        split=False,
        micro_batch_size=rows // GROUP_SIZE,
        batch_size=rows // GROUP_SIZE,
        length=width,
        answer_length=int(batch.answer_mask.sum()) / rows,
        step_tokens=None,
        optimizer_bytes=optimizer_bytes(torch.optim.AdamW, "torch.optim.AdamW"),
        fill=packed_rows / rows,
    )
    return estimate_run(request).peak


def measured(folder: str, way: Way, rows: int, length: int, max_logits: int | None = None, device: str = "cpu") -> int:
    """Bytes by which the memory of a process that trains the model in a folder grows at most.

    Raises:
        UserError: memory cannot be read here, or the process failed.
    """
    if device == "cpu" and not STATUS.exists():
        raise UserError(
            f"there is no {STATUS} to read a process's memory from; measure on Linux, or with --device cuda"
        )
    case = json.dumps([folder, asdict(way), rows, length, max_logits, device])
    # Else the C library keeps freed blocks of up to 32 MiB for itself, which count as resident.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True, env=environment)
    if done.returncode:
        cure = "killed, as where memory runs out" if done.returncode == -9 else done.stderr.strip()[-2000:]
        raise UserError(f"measuring {way.title!r} failed with exit code {done.returncode}: {cure}")
    return int(done.stdout.split()[-1])


def growth(folder: str, way: Way, rows: int, length: int, max_logits: int | None = None, device: str = "cpu") -> int:
    """What `measured` says, of this process; a new one, or the peak is what was before."""
    torch.set_num_threads(1)  # each has buffers of its own
    config = AutoConfig.from_pretrained(folder)
    # Libraries are loaded and threads started.
    small = llama(hidden_size=64, layers=1, vocabulary=100)
    train(network_of(small, folder, way, device), way, batch_of(GROUP_SIZE, 16), max_logits)
    gc.collect()
    before = memory("VmRSS", device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    train(network_of(config, folder, way, device), way, batch_of(rows, length), max_logits)
    return memory("VmHWM", device) - before


def memory(what: str, device: str) -> int:
    """Bytes that this process has (VmRSS) or had at most (VmHWM); of a GPU, those of tensors."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() if what == "VmHWM" else torch.cuda.memory_allocated()
    found = re.search(what + r":\s+(\d+) kB", STATUS.read_text())
    assert found is not None, "Linux writes both"
    return int(found[1]) * 1024


def network_of(config: PretrainedConfig, folder: str, way: Way, device: str) -> PreTrainedModel:
    """A model with random weights, made ready for a way of training."""
    with torch.device(device):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        if way.adapter:
            network = LoRA(folder).prepared(network)
    if way.checkpointing:
        network.gradient_checkpointing_enable()
    return network


def train(network: PreTrainedModel, way: Way, batch: Batch, max_logits: int | None) -> None:
    """An optimiser's step, so that its states are there, and one of two passes."""
    steps = Steps(network, way.bf16, max_logits if way.in_parts else None)
    for batches in ([batch_of(GROUP_SIZE, 16)], [batch, batch]):
        for one in batches:
            steps.forward(way.step, moved(one, steps.device)).backward()
        steps.optimizer.step()


def parameters_of(folder: str) -> int:
    """Weights of the model in a folder, an adapter's not counted."""
    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return network.num_parameters()


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    sizes = [f"{count:,} with a vocabulary of {int(size):,}" for size, count in result["parameters"].items()]
    lines = [
        f"# Memory of a training step, {result['model']}",
        "",
        f"{result['date']}, {result['device']}, commit {result['commit']}; `{result['command']}`",
        "",
        f"{result['hidden_size']} hidden, {result['layers']} blocks; parameters: {', '.join(sizes)}. SGA at "
        f"K = {GROUP_SIZE} with AdamW, {result['rows']} sequences of up to {result['length']} tokens, "
        f"{result['tokens']:,} in all, {result['padded_tokens']:,} with padding, {result['answer_tokens']:,} of them "
        f"of answers. Measured: {result['measure']}. In parts: at most {result['max_logits']:,} logits at a time.",
        "",
        "| vocabulary | step | planned, MiB | measured, MiB | measured / planned |",
        "|---|---|---|---|---|",
    ]
    for row in result["ways"].values():
        plan, real = row["planned_bytes"], row["measured_bytes"]
        beside = ("–", "–") if plan is None else (f"{plan / MIB:,.0f}", f"{real / plan:.2f}")
        lines.append(f"| {row['vocabulary']:,} | {row['step']} | {beside[0]} | {real / MIB:,.0f} | {beside[1]} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints, and if asked writes, what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder with a config.json; without it an untrained Llama of the given size")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--large-vocabulary", type=int, default=128000, help=f"of {', '.join(LARGE)}")
    parser.add_argument("--rows", type=int, default=16, help=f"sequences of a pass, a multiple of {GROUP_SIZE}")
    parser.add_argument("--length", type=int, default=128, help="tokens of the longest; the shortest has a quarter")
    parser.add_argument("--max-logits", type=int, default=1 << 24, help="that exist at a time, of parts")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the result here, and as Markdown beside it")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args(arguments)
    if options.case:
        folder, way, *rest = json.loads(options.case)
        print(growth(folder, Way(**way), *rest))
        return
    if options.rows < GROUP_SIZE or options.rows % GROUP_SIZE:
        parser.error(f"--rows must be a multiple of {GROUP_SIZE}, the sequences of a group, got {options.rows}")
    if options.length < 8:
        parser.error(
            f"--length must be at least 8, so that the shortest has a prompt and an answer, got {options.length}"
        )
    torch.set_num_threads(1)  # as the processes that are measured
    batch = batch_of(options.rows, options.length)
    found: dict[str, Any] = {}
    parameters: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.ways:
            way = WAYS[name]
            folder = options.model or str(Path(temporary, "large" if way.large else "small"))
            if not options.model:
                vocabulary = options.large_vocabulary if way.large else options.vocabulary
                llama(options.hidden_size, options.layers, vocabulary).save_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
            parameters[str(config.vocab_size)] = parameters_of(folder)
            found[name] = {
                "step": way.title,
                "vocabulary": config.vocab_size,
                "planned_bytes": planned(folder, way, options.rows, options.length, options.device),
                "measured_bytes": measured(
                    folder, way, options.rows, options.length, options.max_logits, options.device
                ),
            }
            print(json.dumps({name: found[name]}), flush=True)
    on_cpu = options.device == "cpu"
    result = {
        **described(torch.device(options.device)),
        "model": Path(options.model).name if options.model else "untrained Llama",
        "parameters": parameters,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "group_size": GROUP_SIZE,
        "rows": options.rows,
        "length": options.length,
        "tokens": batch.tokens,
        "padded_tokens": batch.input_ids.numel(),
        "answer_tokens": int(batch.answer_mask.sum()),
        "max_logits": options.max_logits,
        "measure": "the growth of resident memory at its peak" if on_cpu else "torch.cuda.max_memory_allocated",
        "ways": found,
    }
    print(table(result))
    if options.output:
        write_json(options.output, result)
        write_text(options.output.with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
