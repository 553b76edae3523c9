"""Times training steps, a dynamic rate, LoRA and an evaluation on a GPU, each row in a process of its own.

    benchmarks/gpu.sh OUTPUT_FOLDER DATA_FOLDER [OTHER_TREE]
    python benchmarks/gpu.py row NAME --data FOLDER --output FILE.json
    python benchmarks/gpu.py table OUTPUT_FOLDER

`sga` is whatever PYTHONPATH names, so one script times two commits on one card. Models have random weights, made on the
device. Processes may run side by side: they wait for each other where a time is taken. Every training row compares
losses and gradients with the padded rows of a plain step, and says by how much they are off.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import inspect
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import described, matrix_rate, wait_for
from torch import Tensor
from training import groups_of, llama, moved, needed_operations
from transformers import LlamaForCausalLM, PreTrainedModel

import sga.module
from sga import SmoothedGradientAscent
from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.data.authors import Authors
from sga.likelihood.forward import ForwardOptions, sequence_nll
from sga.likelihood.tryouts import tried_options
from sga.models.small import SmallLlama
from sga.rates.geometry import total
from sga.rates.policies import MarginRate, RateState
from sga.rates.split_backward import SplitGradients

SIZES = {
    "1b": {"hidden_size": 2048, "layers": 22, "vocabulary": 32000, "intermediate_size": 5632, "heads": 32},
    "7b": {"hidden_size": 4096, "layers": 32, "vocabulary": 32000, "intermediate_size": 11008, "heads": 32},
    "0.9b": {"hidden_size": 2048, "layers": 16, "vocabulary": 32000, "intermediate_size": 5632, "heads": 32},
    "135m": {"hidden_size": 576, "layers": 30, "vocabulary": 49152, "intermediate_size": 1536, "heads": 9},
    "tiny": {"hidden_size": 64, "layers": 2, "vocabulary": 4096, "intermediate_size": 128, "heads": 4},
}
_AT_WORK, _TIMING = (
    Path(tempfile.gettempdir(), f"sga-gpu-benchmark-{name}.lock").open("a+")  # noqa: SIM115  (held to the end)
    for name in ("work", "timing")
)


@contextlib.contextmanager
def quiet(found: dict[str, Any], patience: float = 60) -> Iterator[None]:
    """Within it no other process of this benchmark takes a time, nor works if that ends soon; `found` says which."""
    fcntl.flock(_AT_WORK, fcntl.LOCK_UN)
    fcntl.flock(_TIMING, fcntl.LOCK_EX)
    until = time.monotonic() + patience
    found["alone"] = False
    while not found["alone"] and time.monotonic() < until:
        try:
            fcntl.flock(_AT_WORK, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found["alone"] = True
        except BlockingIOError:
            time.sleep(0.1)
    try:
        yield
    finally:
        fcntl.flock(_AT_WORK, fcntl.LOCK_UN)
        fcntl.flock(_TIMING, fcntl.LOCK_UN)


def model_of(size: str, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights."""
    config = llama(**SIZES[size])
    config.max_position_embeddings = 2048
    if size == "135m":
        config.num_key_value_heads, config.tie_word_embeddings = 3, True
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config)


def encoder_of() -> Encoder:
    """With the tokenizer of a small Llama, trained on built-in authors."""
    benchmark = Authors(forget_authors=10, retain_authors=40).load(None)
    texts = [f"{r.question} {r.answer}" for records in benchmark.training.values() for r in records]
    tokenizer = SmallLlama(vocabulary=4096).tokenizer(texts)
    return Encoder(tokenizer, PlainTemplate("Question: {question}\nAnswer:\n{answer}"), 512)


class Training:
    """Whole optimiser steps as `sga fit` makes them by default, on one model."""

    def __init__(self, network: PreTrainedModel, batches: list[Batch], found: dict[str, Any]) -> None:
        self.network, self.batches = network.train(), batches
        self.device = batches[0].input_ids.device
        self.loss = SmoothedGradientAscent(-4.0)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0)
        if hasattr(sga.module, "fuse"):
            sga.module.fuse(self.optimizer)
        before = self._outcome(ForwardOptions())
        sample = moved(collate([[row] for row in self._rows(batches[0])]), self.device)
        started = time.perf_counter()
        wanted = {"compiled": True} if "compiled" in inspect.signature(tried_options).parameters else {}
        self.options = tried_options(network, sample, True, 1 << 28, lambda agreed: agreed, self.autocast, **wanted)
        network.train()
        wait_for(self.device)
        found["tryout_seconds"] = time.perf_counter() - started
        found["options"] = str(self.options)
        block: Any = network.model.layers[0]
        found["compiled"] = getattr(block, "_compiled_call_impl", None) is not None
        after = self._outcome(self.options)
        for name, one, other in zip(("losses", "gradients"), before, after, strict=True):
            found[f"{name}_off"] = float((one - other).norm() / one.norm())

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def _rows(self, batch: Batch) -> list[Any]:
        from sga.batching.encoding import Encoded

        rows = []
        for number in (0, 1, 2, 3, 4, 5):
            length = int(batch.attention_mask[number].sum())
            answers = int(batch.answer_mask[number].sum())
            rows.append(Encoded(tuple(batch.input_ids[number, :length].tolist()), length - answers))
        return rows

    def _outcome(self, options: ForwardOptions) -> tuple[Tensor, Tensor]:
        """Likelihoods and gradients of the first and last block of a small batch."""
        batch = moved(collate([[row] for row in self._rows(self.batches[0])]), self.device)
        layers: Any = self.network.model.layers
        some = [p for block in (layers[0], layers[-1]) for p in block.parameters() if p.requires_grad]
        with self.autocast():
            nll = sequence_nll(self.network, batch, options).flatten()
        weights = torch.linspace(-1, 2, len(nll), device=nll.device)
        parts = torch.autograd.grad((nll * weights).sum(), some)
        return nll.detach(), torch.cat([part.flatten().float() for part in parts])

    def nll(self, batch: Batch, options: ForwardOptions | None = None) -> Tensor:
        with self.autocast():
            return sequence_nll(self.network, batch, options or self.options)

    def fixed(self, batch: Batch) -> None:
        """One pass over all samples."""
        loss = self.loss(self.nll(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def plain(self, batch: Batch) -> None:
        """What a loop around a Hugging Face model does: all rows as long as the longest, logits at all positions."""
        with self.autocast():
            logits = self.network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)[:, 1:]
        token = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
        ).view_as(labels)
        nll = token.sum(dim=1) / (labels != -100).sum(dim=1)
        loss = self.loss(nll.view(-1, batch.group_size))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def dynamic(self, batch: Batch) -> None:
        """A pass over the forget samples, one over the normal samples, a decision, their combination."""
        split = SplitGradients(self.network.named_parameters())
        forget = self.nll(batch.forget_only()).mean()
        with split.forget_part():
            forget.backward()
        normal = self.nll(batch.normals_only()).mean()
        self.optimizer.zero_grad()
        normal.backward()
        state = MarginRate(margin=0.6).decide(RateState(), 0, 1, total(split.geometry(batch.group_size).values()))
        assert state.value is not None
        split.combine(*self.loss.weights(batch.group_size, state.value))
        self.optimizer.step()

    def seconds(self, step: Callable[[Batch], None], batch: Batch) -> float:
        wait_for(self.device)
        start = time.perf_counter()
        step(batch)
        wait_for(self.device)
        return time.perf_counter() - start


def batches_of(data: str | None, groups: int, device: torch.device, count: int = 3) -> list[Batch]:
    encoder = encoder_of()
    rows = groups_of(encoder, data, 4)
    return [moved(collate(rows[start : start + groups]), device) for start in range(0, groups * count, groups)]


def training(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Tokens a second of packed and plain steps, and the share of the matrix rate."""
    device, size = torch.device(arguments.device), arguments.name.removeprefix("step-")
    groups = {"1b": 32, "7b": 16}.get(size, 2)
    batches = batches_of(arguments.data, groups, device)
    network = model_of(size, device)
    if size == "7b":
        network.gradient_checkpointing_enable()
    steps = Training(network, batches, found)
    turns = {"fixed": batches}
    if not arguments.quick:  # on a quarter of a step, whose padded rows fill a GPU and leave room for others' memory
        turns["plain"] = batches_of(arguments.data, max(1, groups // 4), device)
    for kind, some in turns.items():
        for batch in some:
            found[f"{kind}_first_seconds"] = steps.seconds(getattr(steps, kind), batch)
    with quiet(found):
        for kind, some in turns.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            runs = [(batch, steps.seconds(getattr(steps, kind), batch)) for batch in [*some, *some]]
            found[f"{kind}_tokens_per_second"] = statistics.median(batch.tokens / s for batch, s in runs)
            found[f"{kind}_operations_per_second"] = statistics.median(
                needed_operations(network, batch) / s for batch, s in runs
            )
            found[f"{kind}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        if device.type == "cuda":
            found["matrix_rate"] = matrix_rate(device, torch.bfloat16)
            found["share"] = found["fixed_operations_per_second"] / found["matrix_rate"]
            found["profile"] = profile(steps, batches[0])


def profile(steps: Training, batch: Batch) -> list[Any]:
    """Kernels with most time: name, milliseconds, calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        steps.seconds(steps.fixed, batch)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:30]
    return [(event.key[:100], round(event.self_device_time_total / 1e3, 3), event.count) for event in events]


def dynamic(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Time of a step at a dynamic rate over that of a fixed step."""
    device = torch.device(arguments.device)
    sizes = [8, 32] if device.type == "cuda" else [2]
    batches = {size: batches_of(arguments.data, size, device) for size in sizes}
    steps = Training(model_of("0.9b" if device.type == "cuda" else "tiny", device), batches[sizes[0]], found)
    for size in sizes:
        for batch in batches[size]:
            steps.fixed(batch)
            steps.dynamic(batch)
    with quiet(found):
        for size in sizes:
            runs = [
                (steps.seconds(steps.fixed, batch), steps.seconds(steps.dynamic, batch)) for batch in batches[size] * 3
            ]
            found[f"fixed_seconds_{size}"] = statistics.median(one for one, _ in runs)
            found[f"dynamic_seconds_{size}"] = statistics.median(two for _, two in runs)
            found[f"ratio_{size}"] = statistics.median(two / one for one, two in runs)


def saved_model(device: torch.device, folder: Path, size: str) -> None:
    """Writes a model with random weights and a tokenizer, which fits fewer tokens than it has embeddings."""
    network = model_of(size, device).cpu()
    network.save_pretrained(folder)
    encoder_of().tokenizer.save_pretrained(folder)


def lora(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Tokens a second of `sga fit` with LoRA of rank 32, 8 groups of 4 a step."""
    from sga.cli import run_verb
    from sga.module import UnlearningModule

    device = torch.device(arguments.device)
    steps = 45 if device.type == "cuda" else 6
    passed: list[tuple[float, int]] = []
    sga.module.COMPILED_FROM = 0  # as in a run of hundreds of steps
    step = UnlearningModule.training_step
    alone = contextlib.ExitStack()

    def timed(self: Any, batch: Batch, index: int) -> Tensor:
        if len(passed) == steps // 3:
            alone.enter_context(quiet(found))
        if len(passed) % 10 == 0:
            wait_for(device)
        passed.append((time.perf_counter(), batch.tokens))
        return step(self, batch, index)

    UnlearningModule.training_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        saved_model(device, Path(folder, "model"), "135m" if device.type == "cuda" else "tiny")
        began = time.perf_counter()
        given = {
            "model.language_model": "sga.LoRA", "model.language_model.name_or_path": f"{folder}/model",
            "model.language_model.rank": 32, "model.loss": "sga.SmoothedGradientAscent",
            "model.loss.smoothing_rate": -4, "model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": 1e-5,
            "data.source": "sga.TOFU", "data.root": arguments.data, "data.group_size": 4, "data.batch_size": 8,
            "data.template": "sga.PlainTemplate", "data.template.text": "Question: {question}\nAnswer:\n{answer}",
            "run.folder": f"{folder}/run", "trainer.max_steps": steps, "trainer.max_epochs": -1,
            "trainer.limit_val_batches": 0, "trainer.accelerator": "gpu" if device.type == "cuda" else "cpu",
        }  # fmt: skip
        run_verb(["fit", *(f"--{name}={value}" for name, value in given.items())])
        alone.close()
        found["whole_seconds"] = time.perf_counter() - began
    kept = [one for one in passed[steps // 3 :]]
    found["tokens_per_second"] = sum(tokens for _, tokens in kept[:-1]) / (kept[-1][0] - kept[0][0])
    found["steps"] = len(passed)
    found["seconds_to_the_second_step"] = passed[1][0] - began


def evaluation(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Seconds of the evaluation of TOFU's forget10, by part; once to warm up on a few rows, then whole."""
    import transformers
    from evaluation import our_evaluation
    from plain_evaluation import evaluation_sets

    device = torch.device(arguments.device)
    transformers.utils.logging.set_verbosity_error()
    network, encoder = model_of("135m" if device.type == "cuda" else "tiny", device).eval(), encoder_of()
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        found["first_seconds"] = our_evaluation(network, encoder, evaluation_sets(arguments.data, rows=8), True)[1]
        with quiet(found):
            rows = None if device.type == "cuda" else 8
            ours, found["seconds"] = our_evaluation(network, encoder, evaluation_sets(arguments.data, rows=rows), True)
    found["metrics"] = ours.metrics
    found["texts"] = [row["generation"] for row in ours.of_set("forget")]


ROWS = {"step-1b": training, "step-7b": training, "step-tiny": training, "dynamic": dynamic, "lora": lora,
        "evaluation": evaluation}  # fmt: skip


def row(arguments: argparse.Namespace) -> None:
    """One row, written to a file even if it ends early."""
    device = torch.device(arguments.device)
    found: dict[str, Any] = {**described(device), "row": arguments.name, "tree": os.environ.get("SGA_TREE")}
    fcntl.flock(_AT_WORK, fcntl.LOCK_SH)
    began = time.perf_counter()
    try:
        if device.type == "cuda":
            torch.zeros(1, device=device)
        ROWS[arguments.name](arguments, found)
    except BaseException:
        found["error"] = traceback.format_exc()
        raise
    finally:
        found["process_seconds"] = time.perf_counter() - began
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1))


def table(folder: Path) -> str:
    """All rows of a folder as Markdown; each is a file NAME.TREE.json."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.*.json"))]
    if not results:
        return "no row has ended\n"
    first = results[0]
    lines = [
        "# On a GPU", "",
        f"{first['date']}, {first['device']}, torch {first['versions']['torch']}, transformers "
        f"{first['versions']['transformers']}; `benchmarks/gpu.sh`", "",
        "| row | tree | result | try-out and compilation | losses, gradients off | options |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in results:
        if "share" in one:
            said = f"{one['fixed_tokens_per_second']:,.0f} tokens/s, {one['share']:.2f} of the matrix rate, "
            said += f"peak {one['fixed_peak_gib']:.1f} GiB"
            if "plain_tokens_per_second" in one:
                said += f", {one['fixed_tokens_per_second'] / one['plain_tokens_per_second']:.2f} times a plain step"
        elif "seconds" in one:
            said = ", ".join(f"{name} {value:.1f} s" for name, value in one["seconds"].items())
        elif "tokens_per_second" in one:
            said = f"{one['tokens_per_second']:,.0f} tokens/s"
        else:
            said = ", ".join(f"{name} {value:.3f}" for name, value in one.items() if name.startswith("ratio_"))
        if "error" in one:
            said += " **" + one["error"].strip().splitlines()[-1][:200] + "**"
        off = f"{one['losses_off']:.1g}, {one['gradients_off']:.1g}" if "gradients_off" in one else ""
        tried = f"{one['tryout_seconds']:.0f} s" if "tryout_seconds" in one else ""
        ways = [name for name in ("compiled", "alone") if one.get(name)]
        ways += ["by length"] if "by_length=True" in one.get("options", "") else []
        lines.append(
            f"| {one['row']} | {one['tree'] or one['commit']} | {said} | {tried} | {off} | {', '.join(ways)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("row")
    one.add_argument("name", choices=sorted(ROWS))
    one.add_argument("--data", help="folder with TOFU's files")
    one.add_argument("--device", default="cuda")
    one.add_argument("--quick", action="store_true", help="no plain steps")
    one.add_argument("--output", type=Path, required=True)
    one.set_defaults(run=row)
    many = verbs.add_parser("table")
    many.add_argument("folder", type=Path)
    many.set_defaults(run=lambda arguments: sys.stdout.write(table(arguments.folder)))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
