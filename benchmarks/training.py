"""Times SGA's training step against a plain Hugging Face loop's, on the same groups, in one run.

    python benchmarks/training.py --model FOLDER --data FOLDER_WITH_TOFU [--output FILE.json]
    python benchmarks/training.py --hidden-size 768 --layers 12 --vocabulary 32000 --data FOLDER_WITH_TOFU
    python benchmarks/training.py --hidden-size 4096 --layers 32 --heads 32 --device cuda --precision bf16-mixed

A step is forward, loss, backward and AdamW over the same number of groups of K sequences. `plain` takes them in file
order, fills all rows up to the longest, and has logits at every position. `padded` is this package's step without
packing, `packed` the one that `sga fit` makes, `parts` the same without a fused head. They and the group sizes take
turns, the kinds of step on the same groups, so that a change of the machine's speed meets all of them; ratios are
medians of the quotients of neighbouring steps. Tokens are real tokens, padding is not counted. Losses are compared; the
program fails where they differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import described, matrix_rate, wait_for
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded, Encoder
from sga.batching.templates import PlainTemplate
from sga.data.authors import Authors
from sga.data.tofu import TOFU
from sga.files import write_json, write_text
from sga.groups.pairing import NearestNormals, make_groups
from sga.likelihood.forward import ForwardOptions, head_of, sequence_nll
from sga.likelihood.fused import fused_head
from sga.likelihood.tryouts import fused_fault
from sga.losses.ascent import SmoothedGradientAscent
from sga.models.pretrained import Pretrained
from sga.models.small import SmallLlama

Step = Callable[[Batch], Tensor]
RATE = -4.0
TEMPLATE = PlainTemplate("Question: {question}\nAnswer:\n{answer}")


def small_encoder() -> Encoder:
    """Encoder with the tokenizer of a small Llama, trained on built-in authors."""
    benchmark = Authors(forget_authors=10, retain_authors=40).load(None)
    texts = [f"{r.question} {r.answer}" for records in benchmark.training.values() for r in records]
    return Encoder(SmallLlama(vocabulary=4096).tokenizer(texts), TEMPLATE, 512)


def groups_of(encoder: Encoder, root: str | None, group_size: int) -> list[list[Encoded]]:
    """TOFU's forget10 with its nearest normal samples, or that of built-in authors."""
    source = Authors(forget_authors=10, retain_authors=40) if root is None else TOFU()
    benchmark = source.load(root)
    forget, retain = benchmark.training["forget"], benchmark.training["retain"]
    groups = make_groups(forget, retain, group_size, NearestNormals(), seed=0)
    records = [record for group in groups for record in (group.forget, *group.normals)]
    rows, _ = encoder.encode_all([(record.question, record.answer) for record in records])
    return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]


class Steps:
    """The kinds of step on one model, each a function of a batch that returns the loss."""

    def __init__(self, network: PreTrainedModel, bf16: bool, max_logits: int | None) -> None:
        self.network, self.bf16 = network.train(), bf16
        self.device = next(network.parameters()).device
        # With a learning rate of 0 it does all its work, and the last step has as much to do as the first.
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=self.device.type == "cuda")
        self.loss = SmoothedGradientAscent(RATE)
        self.forward_options = ForwardOptions(max_logits=max_logits)

    def try_fused_head(self, batch: Batch) -> str:
        """Takes a fused head if there is one and it is right, as `sga fit` does; says which head it is."""
        fused, most = fused_head(head_of(self.network)), self.forward_options.max_logits
        if fused is None or most is None:
            return "plain"
        with self.context():
            fault = fused_fault(self.network, batch, fused, most)
        if fault is not None:
            return f"plain: {fused.name} {fault}"
        self.forward_options = replace(self.forward_options, fused=fused)
        return fused.name

    def context(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def plain(self, batch: Batch) -> Tensor:
        """What a loop around a Hugging Face model does: labels are −100 but for answers, logits at all positions."""
        logits = self.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)[:, 1:]
        token = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
        ).view_as(labels)
        nll = token.sum(dim=1) / (labels != -100).sum(dim=1)
        return self.loss(nll.view(-1, batch.group_size))

    def padded(self, batch: Batch) -> Tensor:
        return self.loss(sequence_nll(self.network, batch, self.forward_options))

    def packed(self, batch: Batch) -> Tensor:
        return self.loss(sequence_nll(self.network, batch, replace(self.forward_options, packing=True)))

    def parts(self, batch: Batch) -> Tensor:
        return self.loss(sequence_nll(self.network, batch, replace(self.forward_options, packing=True, fused=None)))

    def forward(self, kind: str, batch: Batch) -> Tensor:
        """The loss, under autocast where it is asked for."""
        with self.context():
            loss: Tensor = getattr(self, kind)(batch)
        return loss

    def run(self, kind: str, batch: Batch) -> dict[str, Any]:
        """One whole step; peak bytes on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait_for(self.device)
        start = time.perf_counter()
        loss = self.forward(kind, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        wait_for(self.device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return {"seconds": seconds, "loss": loss.item(), "peak_bytes": peak}


def needed_operations(network: PreTrainedModel, batch: Batch) -> float:
    """Floating-point operations of a step that computes nothing in vain, recomputation not counted.

    6 for each weight of the blocks and token (Kaplan et al., arXiv 2001.08361), and for each weight of the head and
    answer token; 12·H·Σ t over the tokens that the t-th one sees, in each layer (half a square for each sequence).
    """
    config: Any = network.config
    head = network.get_output_embeddings().weight
    outside = {head.data_ptr(), network.get_input_embeddings().weight.data_ptr()}
    inside = sum(p.numel() for p in network.parameters() if p.dim() > 1 and p.data_ptr() not in outside)
    lengths = batch.attention_mask.sum(dim=1).double()
    seen = float((lengths * (lengths + 1) / 2).sum())
    attention = 12 * config.num_hidden_layers * config.hidden_size * seen
    return 6 * inside * batch.tokens + 6 * head.numel() * int(batch.answer_mask.sum()) + attention


def measure(
    steps: Steps, batches: Mapping[int, Sequence[Batch]], kinds: Sequence[str], count: int, warm_up: int
) -> dict[str, Any]:
    """`count` steps of each kind and group size in turns, the one that begins changing every time.

    Args:
        steps: The kinds of step.
        batches: By group size.
        kinds: The kinds to measure, ``packed`` among them.
        count: Counted steps.
        warm_up: Steps before them.

    Returns:
        By group size, what was found.
    """
    turns = [(size, kind) for size in batches for kind in kinds]
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {turn: [] for turn in turns}
    for number in range(warm_up + count):
        shift = number % len(turns)
        for size, kind in (*turns[shift:], *turns[:shift]):
            batch = batches[size][number % len(batches[size])]
            run = steps.run(kind, batch)
            runs[size, kind].append({**run, "batch": batch, "seconds_per_token": run["seconds"] / batch.tokens})
    kept = {turn: found[warm_up:] for turn, found in runs.items()}
    first = min(batches)
    return {
        str(size): {
            "kinds": {
                kind: _found(steps.network, kept[size, kind], kept[size, "packed"], kept[first, kind]) for kind in kinds
            },
            "tokens_per_forget_sample": sum(batch.tokens for batch in batches[size])
            / sum(len(batch.input_ids) // size for batch in batches[size]),
            "largest_difference_of_losses": max(
                abs(one["loss"] - other["loss"])
                for kind in kinds
                for one, other in zip(runs[size, kind], runs[size, "packed"], strict=True)
            ),
        }
        for size in batches
    }


def _found(
    network: PreTrainedModel,
    runs: Sequence[dict[str, Any]],
    packed: Sequence[dict[str, Any]],
    first: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Medians over the steps of one kind and group size, and of quotients with neighbouring steps.

    Args:
        network: The model.
        runs: The steps.
        packed: The packed ones of this group size.
        first: Those of this kind, of the smallest group size.
    """

    def quotient(above: Sequence[dict[str, Any]], below: Sequence[dict[str, Any]], of: str) -> float:
        return statistics.median(one[of] / other[of] for one, other in zip(above, below, strict=True))

    def rate(of: Callable[[Batch], float]) -> float:
        return statistics.median(of(run["batch"]) / run["seconds"] for run in runs)

    return {
        "seconds_per_step": statistics.median(run["seconds"] for run in runs),
        "tokens_per_second": rate(lambda batch: batch.tokens),
        "forget_samples_per_second": rate(lambda batch: len(batch.input_ids) / batch.group_size),
        "operations_per_second": rate(lambda batch: needed_operations(network, batch)),
        "packed_is_times_faster": quotient(runs, packed, "seconds"),
        "times_the_seconds_per_token_of_the_first": quotient(runs, first, "seconds_per_token"),
        "peak_bytes": max(run["peak_bytes"] or 0 for run in runs) or None,
    }


def profile(steps: Steps, batch: Batch, rows: int = 12) -> list[dict[str, Any]]:
    """Where the time of a packed step goes: the operators with most time of their own."""
    with torch.profiler.profile() as profiler:
        steps.run("packed", batch)
    name = "self_device_time_total" if steps.device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, name))
    whole = sum(getattr(event, name) for event in events)
    return [
        {"operator": event.key, "share": round(getattr(event, name) / whole, 4), "calls": event.count}
        for event in events[:rows]
    ]


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"# Training step, {result['model']}",
        "",
        f"{result['date']}, {result['device']}, commit {result['commit']}, {result['precision']}; "
        f"`{result['command']}`",
        "",
        f"{result['parameters']:,} parameters; a matrix product runs at {result['matrix_rate'] / 1e9:,.0f} GFLOP/s; "
        f"head: {result['head']}.",
        "",
        "| K | tokens of a forget sample | step | tokens/s | forget samples/s | share of the matrix rate | "
        "packed is faster by | time of a token over that at the least K | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, one in result["group_sizes"].items():
        for kind, row in one["kinds"].items():
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
            lines.append(
                f"| {size} | {one['tokens_per_forget_sample']:.1f} | {kind} | {row['tokens_per_second']:,.0f} | "
                f"{row['forget_samples_per_second']:.2f} | "
                f"{row['operations_per_second'] / result['matrix_rate']:.2f} | {row['packed_is_times_faster']:.2f} | "
                f"{row['times_the_seconds_per_token_of_the_first']:.2f} | {peak} |"
            )
    lines += ["", "Where the time of a packed step goes, by operator:", ""]
    lines += [f"- {row['share']:.1%} {row['operator']} ({row['calls']} calls)" for row in result["profile"]]
    return "\n".join(lines) + "\n"


def llama(
    hidden_size: int, layers: int, vocabulary: int, intermediate_size: int | None = None, heads: int | None = None
) -> LlamaConfig:
    """A Llama's configuration, by default of an inner size of 8/3 of the hidden one and heads of 64."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or int(8 * hidden_size / 3 / 16 + 0.5) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads or hidden_size // 64,
        max_position_embeddings=1024,
    )


def untrained(arguments: argparse.Namespace) -> PreTrainedModel:
    """A Llama with random weights; made on the device, where a CPU would take minutes."""
    config = llama(
        arguments.hidden_size, arguments.layers, arguments.vocabulary, arguments.intermediate_size, arguments.heads
    )
    torch.manual_seed(0)
    with torch.device(arguments.device):
        return LlamaForCausalLM(config)


def main() -> None:
    """Runs the benchmark and prints, and if asked writes, what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with TOFU's files; default: built-in authors")
    parser.add_argument("--model", help="folder of a model; without it an untrained Llama of the given size is made")
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--intermediate-size", type=int, help="default 8/3 of the hidden size")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, help="default one for each 64 of the hidden size")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sequences", type=int, default=32, help="in a step: a K-th of them are forget samples")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument(
        "--kinds", nargs="+", default=["plain", "padded", "packed"], help="of step, parts too; packed is needed"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, for all kinds of step")
    parser.add_argument("--max-logits", type=int, default=1 << 28)
    parser.add_argument("--attention", help="such as eager, sdpa, flash_attention_2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--output", type=Path, help="also write the result here, and as Markdown beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.model:
        language_model = Pretrained(arguments.model)
        tokenizer = language_model.tokenizer(())
        network = language_model.network(tokenizer).to(device)  # type: ignore[arg-type]
        encoder = Encoder(tokenizer, TEMPLATE, 512)
    else:
        encoder, network = small_encoder(), untrained(arguments)
    if arguments.attention:
        network.set_attn_implementation(arguments.attention)
    if arguments.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    if arguments.compile:
        for block in network.model.layers:
            block.compile(dynamic=True)
    bf16 = arguments.precision == "bf16-mixed"
    steps = Steps(network, bf16, arguments.max_logits)
    kinds = tuple(dict.fromkeys([*arguments.kinds, "packed"]))
    batches: dict[int, list[Batch]] = {}
    for group_size in arguments.group_sizes:
        groups = groups_of(encoder, arguments.data, group_size)
        count = max(1, arguments.sequences // group_size)
        starts = range(0, len(groups) - count + 1, count)
        batches[group_size] = [moved(collate(groups[start : start + count]), device) for start in starts]
    head = steps.try_fused_head(batches[arguments.group_sizes[0]][0])
    sizes = measure(steps, batches, kinds, arguments.steps, arguments.warm_up)
    result = {
        **described(device),
        "model": Path(arguments.model).name if arguments.model else "untrained Llama",
        "data": "TOFU forget10" if arguments.data else "built-in authors",
        "precision": arguments.precision,
        "head": head,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "matrix_rate": matrix_rate(device, torch.bfloat16 if bf16 else torch.float32),
        "sequences_per_step": arguments.sequences,
        "steps": arguments.steps,
        "group_sizes": sizes,
        "profile": profile(steps, batches[arguments.group_sizes[-1]][0]),
    }
    print(table(result))
    if arguments.output:
        write_json(arguments.output, result)
        write_text(arguments.output.with_suffix(".md"), table(result))
    worst = max(one["largest_difference_of_losses"] for one in sizes.values())
    if worst > (0.05 if bf16 else 1e-3):
        sys.exit(f"the steps do not give the same loss: they differ by {worst:g}")


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    for name in ("input_ids", "attention_mask", "answer_mask"):
        setattr(batch, name, getattr(batch, name).to(device))
    return batch


if __name__ == "__main__":
    main()
