"""Times training steps, a dynamic rate, LoRA and an evaluation on a GPU, each row in a process of its own.

    benchmarks/gpu.sh OUTPUT_FOLDER DATA_FOLDER [OTHER_TREE]
    python benchmarks/gpu.py row NAME --data FOLDER --output FILE.json

`sga` is whatever PYTHONPATH names, so one script times two commits on one card. Models have random weights, made on the
device. Rows run one after the other, in the order of `ROWS`; the next one's process imports its packages meanwhile. A
row that fails or takes too long ends no other one, and what it had found by then is kept. Every training row compares
losses and gradients with the padded rows of a plain step, and says by how much they are off.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dynamic_rate import Steps
from machine import described, matrix_rate, wait_for
from torch import Tensor
from training import groups_of, llama, moved, needed_operations, small_encoder
from transformers import LlamaForCausalLM, PreTrainedModel

import sga.module
from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.likelihood.fast_paths import BY_LENGTH
from sga.likelihood.forward import ForwardOptions, sequence_nll
from sga.likelihood.tryouts import tried_options
from sga.models import attention
from sga.models.compiled import compile_blocks, leave_uncompiled
from sga.optimization import fuse

SIZES = {
    "1b": {"hidden_size": 2048, "layers": 22, "vocabulary": 32000, "intermediate_size": 5632, "heads": 32},
    "7b": {"hidden_size": 4096, "layers": 32, "vocabulary": 32000, "intermediate_size": 11008, "heads": 32},
    "0.9b": {"hidden_size": 2048, "layers": 16, "vocabulary": 32000, "intermediate_size": 5632, "heads": 32},
    "6 blocks": {"hidden_size": 2048, "layers": 6, "vocabulary": 32000, "intermediate_size": 5632, "heads": 32},
    "135m": {"hidden_size": 576, "layers": 30, "vocabulary": 49152, "intermediate_size": 1536, "heads": 9},
    "tiny": {"hidden_size": 64, "layers": 2, "vocabulary": 4096, "intermediate_size": 128, "heads": 4},
}


class Found(dict[str, Any]):
    """Results of a row, written to a file whenever one is added, so that a row that is ended leaves what it has."""

    def __init__(self, path: Path, **values: Any) -> None:
        super().__init__(values)
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.path.write_text(json.dumps(self, indent=1))


def model_of(size: str, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights; on a CPU always a tiny one."""
    config = llama(**SIZES[size if device.type == "cuda" else "tiny"])
    config.max_position_embeddings = 2048
    if size == "135m" and device.type == "cuda":
        config.num_key_value_heads, config.tie_word_embeddings = 3, True
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config)


def batches_of(data: str | None, groups: int, device: torch.device, count: int = 3) -> list[Batch]:
    """Batches of groups of four sequences; on a CPU of two groups."""
    groups = groups if device.type == "cuda" else 2
    rows = groups_of(small_encoder(), data, 4)
    return [moved(collate(rows[start : start + groups]), device) for start in range(0, groups * count, groups)]


def few(batch: Batch) -> Batch:
    """The first six sequences of a batch, one per group."""
    rows = []
    for ids, attended, answer in zip(batch.input_ids[:6], batch.attention_mask, batch.answer_mask, strict=False):
        length = int(attended.sum())
        rows.append(Encoded(tuple(ids[:length].tolist()), length - int(answer.sum())))
    return moved(collate([[row] for row in rows]), batch.input_ids.device)


def outcome(network: PreTrainedModel, batch: Batch, options: ForwardOptions, half: bool = True) -> tuple[Tensor, ...]:
    """Likelihoods of a few sequences, and gradients of the first and last block, each sequence with its own weight."""
    layers: Any = network.model.layers
    some = [weight for block in (layers[0], layers[-1]) for weight in block.parameters() if weight.requires_grad]
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=half):
        nll = sequence_nll(network, few(batch), options).flatten()
    gradients = torch.autograd.grad((nll * torch.linspace(-1, 2, len(nll), device=nll.device)).sum(), some)
    return nll.detach(), torch.cat([part.flatten().float() for part in gradients])


def off(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """Norm of the differences of likelihoods and gradients, relative to the expected ones'."""
    return [float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]


class Training(Steps):
    """Whole optimiser steps as `sga fit` makes them by default, on one model."""

    def __init__(self, network: PreTrainedModel, batches: list[Batch], found: Found) -> None:
        super().__init__(network, batches[0].input_ids.device, "bf16-mixed")
        fuse(self.optimizer)
        before = outcome(network, batches[0], ForwardOptions())
        started = time.perf_counter()
        compiled = self.device.type == "cuda"
        context = self.context
        self.options = tried_options(network, few(batches[0]), True, 1 << 28, bool, context, compiled=compiled)
        network.train()
        wait_for(self.device)
        found["tryout_seconds"] = time.perf_counter() - started
        found["options"] = str(self.options)
        block: Any = network.model.layers[0]
        found["compiled"] = block._compiled_call_impl is not None
        found["losses_off"], found["gradients_off"] = off(outcome(network, batches[0], self.options), before)

    def plain(self, batch: Batch) -> None:
        """What a loop around a Hugging Face model does: all rows as long as the longest, logits at all positions."""
        with self.context():
            logits = self.network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)[:, 1:]
        token = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
        ).view_as(labels)
        nll = token.sum(dim=1) / (labels != -100).sum(dim=1)
        self.optimizer.zero_grad()
        self.loss(nll.view(-1, batch.group_size)).backward()
        self.optimizer.step()


# ---- rows -----------------------------------------------------------------------------------------------------------


def training(size: str, groups: int, found: Found, data: str | None, device: torch.device) -> None:
    """Tokens a second of packed and plain steps, and the share of the matrix rate."""
    batches = batches_of(data, groups, device)
    network = model_of(size, device)
    turns = {"fixed": batches}
    if size == "7b":
        network.gradient_checkpointing_enable()
    else:  # on a quarter of a step, whose padded rows fill a GPU
        turns["plain"] = batches_of(data, max(1, groups // 4), device)
    steps = Training(network, batches, found)
    cuda = device.type == "cuda"
    found["matrix_rate"] = matrix_rate(device, torch.bfloat16 if cuda else torch.float32)
    for kind, some in turns.items():
        for batch in some:
            found[f"{kind}_first_seconds"] = steps.seconds(getattr(steps, kind), batch)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        runs = [(batch, steps.seconds(getattr(steps, kind), batch)) for batch in [*some, *some]]
        found[f"{kind}_tokens_per_second"] = statistics.median(batch.tokens / s for batch, s in runs)
        rate = statistics.median(needed_operations(network, batch) / s for batch, s in runs)
        found[f"{kind}_share"] = rate / found["matrix_rate"]
        found[f"{kind}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    if cuda:
        found["profile"] = profile(steps, batches[0])


def profile(steps: Training, batch: Batch) -> list[Any]:
    """Kernels with most time: name, milliseconds, calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        steps.seconds(steps.fixed, batch)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:30]
    return [(event.key[:100], round(event.self_device_time_total / 1e3, 3), event.count) for event in events]


def dynamic(found: Found, data: str | None, device: torch.device) -> None:
    """Time of a step at a dynamic rate over that of a fixed step."""
    batches = {size: batches_of(data, size, device) for size in (8, 32)}
    steps = Training(model_of("0.9b", device), batches[8], found)
    for size, some in batches.items():
        for batch in some:
            steps.fixed(batch)
            steps.dynamic(batch)
        runs = [(steps.seconds(steps.fixed, batch), steps.seconds(steps.dynamic, batch)) for batch in some * 3]
        found[f"fixed_seconds_{size}"] = statistics.median(one for one, _ in runs)
        found[f"dynamic_seconds_{size}"] = statistics.median(two for _, two in runs)
        found[f"ratio_{size}"] = statistics.median(two / one for one, two in runs)


def lora(found: Found, data: str | None, device: torch.device) -> None:
    """Tokens a second of `sga fit` with LoRA of rank 32, 8 groups of 4 a step: plain blocks, then compiled ones."""
    with tempfile.TemporaryDirectory() as folder:
        model_of("135m", device).cpu().save_pretrained(f"{folder}/model")
        small_encoder().tokenizer.save_pretrained(f"{folder}/model")  # fits fewer tokens than there are embeddings
        found["plain_tokens_per_second"] = _lora(found, folder, data, device, "false")
        if device.type == "cuda":
            sga.module.COMPILED_FROM = 0  # as in a run of hundreds of steps
            found["tokens_per_second"] = _lora(found, folder, data, device, "null")


def _lora(found: Found, folder: str, data: str | None, device: torch.device, compiled: str) -> float:
    from sga.cli import run_verb
    from sga.module import UnlearningModule

    cuda = device.type == "cuda"
    steps = 30 if cuda else 6
    passed: list[tuple[float, int]] = []
    step = UnlearningModule.training_step

    def timed(self: Any, batch: Batch, index: int) -> Tensor:
        if len(passed) in (steps // 3, steps - 1):
            wait_for(device)
        passed.append((time.perf_counter(), batch.tokens))
        return step(self, batch, index)

    given = {
        "model.language_model": "sga.LoRA", "model.language_model.name_or_path": f"{folder}/model",
        "model.language_model.rank": 32, "model.compile": compiled, "model.loss": "sga.SmoothedGradientAscent",
        "model.loss.smoothing_rate": -4, "model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": 1e-5,
        "data.source": "sga.TOFU" if data else "sga.Authors", **({"data.root": data} if data else {}),
        "data.group_size": 4, "data.batch_size": 8 if cuda else 2,
        "data.template": "sga.PlainTemplate", "data.template.text": "Question: {question}\nAnswer:\n{answer}",
        "run.folder": f"{folder}/run-{compiled}", "trainer.max_steps": steps, "trainer.max_epochs": -1,
        "trainer.limit_val_batches": 0, "trainer.accelerator": "gpu" if cuda else "cpu",
    }  # fmt: skip
    began = time.perf_counter()
    UnlearningModule.training_step = timed  # type: ignore[method-assign]
    try:
        run_verb(["fit", *(f"--{name}={value}" for name, value in given.items())])
    finally:
        UnlearningModule.training_step = step  # type: ignore[method-assign]
    found[f"seconds_to_the_second_step_compile_{compiled}"] = passed[1][0] - began
    kept = passed[steps // 3 :]
    return sum(tokens for _, tokens in kept[:-1]) / (kept[-1][0] - kept[0][0])


def evaluation(found: Found, data: str | None, device: torch.device) -> None:
    """Seconds of the evaluation of TOFU's forget10, by part; once to warm up on a few rows, then whole."""
    import transformers
    from evaluation import our_evaluation
    from plain_evaluation import evaluation_sets

    transformers.utils.logging.set_verbosity_error()
    network, encoder = model_of("135m", device).eval(), small_encoder()
    rows = None if device.type == "cuda" else 4
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        found["first_seconds"] = our_evaluation(network, encoder, evaluation_sets(data, rows=2 if rows else 8), True)[1]
        ours, found["seconds"] = our_evaluation(network, encoder, evaluation_sets(data, rows=rows), True)
    found["metrics"] = ours.metrics
    found["texts"] = [row["generation"] for row in ours.of_set("forget")]


def ways(found: Found, data: str | None, device: torch.device) -> None:
    """Ways of computing a block: seconds of a step, and likelihoods and gradients beside those of float32.

    `mask` is the dense path of packed rows. Liger's kernels come last, because they replace functions of transformers.
    """
    batches = batches_of(data, 12, device)
    network = model_of("6 blocks", device)
    steps = Steps(network, device, "bf16-mixed")
    fuse(steps.optimizer)
    exact = outcome(network, batches[0], ForwardOptions(), half=False)
    mask = ForwardOptions(packing=True)
    tried: dict[str, tuple[str, ForwardOptions, Callable[[PreTrainedModel], None]]] = {
        "padded": ("sdpa", ForwardOptions(), lambda network: None),
        "mask": ("sdpa", mask, lambda network: None),
        "by length": (attention.NAME, BY_LENGTH, lambda network: None),
        "flex attention": ("flex_attention", mask, lambda network: None),
        "mask, compiled": ("sdpa", mask, compile_blocks),
        "by length, compiled": (attention.NAME, BY_LENGTH, compile_blocks),
        "mask, Liger's kernels": ("sdpa", mask, _take_liger),
    }
    results: dict[str, Any] = {}
    for name, (kind, options, change) in tried.items():
        if change is compile_blocks and device.type != "cuda":
            continue
        try:
            network.set_attn_implementation(kind)
            change(network)
            steps.options = options
            losses, gradients = off(outcome(network, batches[0], options), exact)
            first = steps.seconds(steps.fixed, batches[0])
            seconds = statistics.median(steps.seconds(steps.fixed, batch) for batch in batches)
            results[name] = {
                "losses_off": losses, "gradients_off": gradients, "first_seconds": first, "seconds": seconds
            }  # fmt: skip
        except Exception as error:  # whatever a kernel raises on a device that it does not support
            results[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split()):.200}"}
        leave_uncompiled(network)
        found["ways"] = results


def _take_liger(network: PreTrainedModel) -> None:
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(
        model=network, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )


ROWS: dict[str, tuple[Callable[[Found, str | None, torch.device], None], int]] = {
    "evaluation": (evaluation, 70),
    "dynamic": (dynamic, 90),
    "step-1b": (lambda *given: training("1b", 32, *given), 100),
    "lora": (lora, 140),
    "step-7b": (lambda *given: training("7b", 16, *given), 100),
    "ways": (ways, 90),
}
"""Rows, those that matter most first, with the greatest number of seconds that each may take."""


def row(arguments: argparse.Namespace) -> None:
    """One row, written to a file even if it ends early."""
    if arguments.wait and not sys.stdin.readline():
        return
    device = torch.device(arguments.device)
    found = Found(arguments.output, **described(device), row=arguments.name, tree=os.environ.get("SGA_TREE"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))
    began = time.perf_counter()
    try:
        ROWS[arguments.name][0](found, arguments.data, device)
    except BaseException:
        found["error"] = traceback.format_exc()
        raise
    finally:
        found["process_seconds"] = time.perf_counter() - began


def every(arguments: argparse.Namespace) -> None:
    """All rows, one after the other, until the time is over; the table is written after each."""
    until = time.monotonic() + arguments.seconds
    trees = {"after": os.environ.get("PYTHONPATH", ""), **({"before": arguments.other} if arguments.other else {})}
    left = [(name, tree) for tree in trees for name in ROWS if not arguments.rows or name in arguments.rows]
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def started(name: str, tree: str) -> subprocess.Popen[bytes]:
        options = ["--device", arguments.device, *(["--data", arguments.data] if arguments.data else [])]
        path = os.pathsep.join(dict.fromkeys([trees[tree], trees["after"]]))
        with (arguments.folder / f"{name}.{tree}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, __file__, "row", name, *options, "--wait", "--output", _result(arguments, name, tree)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path, "SGA_TREE": tree},
            )  # fmt: skip

    waiting = started(*left[0])
    while left and until - time.monotonic() > 10:
        (name, tree), process = left.pop(0), waiting
        if left:
            waiting = started(*left[0])
        result = _result(arguments, name, tree)
        most = ROWS[name][1] if arguments.device == "cuda" else arguments.seconds
        error = _timed(process, min(most, until - time.monotonic()))
        if error is not None:  # also where it had not begun, or could not write any more
            found = json.loads(result.read_text()) if result.is_file() else {"row": name, "tree": tree}
            result.write_text(json.dumps({"error": error, **found}, indent=1))
        (arguments.folder / "table.md").write_text(table(arguments.folder))
    if left:
        waiting.kill()
    results = [json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.*.json"))]
    short = [{name: value for name, value in one.items() if name not in ("profile", "texts")} for one in results]
    print(json.dumps(short, indent=1), (arguments.folder / "table.md").read_text(), sep="\n\n")


def _result(arguments: argparse.Namespace, name: str, tree: str) -> Path:
    return Path(arguments.folder) / f"{name}.{tree}.json"


def _timed(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Lets a process that waits do its row, and ends it after so many seconds; returns what went wrong."""
    try:
        process.communicate(b"go\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:  # as while it compiles
            process.kill()
            process.wait()
        return f"ended after {seconds:.0f} s"
    return None if process.returncode == 0 else "failed, see its log"


def table(folder: Path) -> str:
    """All rows of a folder as Markdown; each is a file NAME.TREE.json."""
    results = [json.loads(path.read_text()) for path in folder.glob("*.*.json")]
    order = sorted(results, key=lambda one: (list(ROWS).index(one["row"]), one.get("tree") or ""))
    first = next((one for one in order if "versions" in one), None)
    if first is None:
        return "no row has begun\n"
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), "none, blocks stay uncompiled")
    lines = [
        "# On a GPU", "",
        f"{first['date']}, {first['device']}, commit {first['commit']}, torch {first['versions']['torch']}, "
        f"transformers {first['versions']['transformers']}; C compiler: {compiler}; `benchmarks/gpu.sh`", "",
        "| row | tree | result | try-out and compilation | losses, gradients off | options |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in order:
        apart = f"{one['losses_off']:.1g}, {one['gradients_off']:.1g}" if "gradients_off" in one else ""
        tried = f"{one['tryout_seconds']:.0f} s" if "tryout_seconds" in one else ""
        taken = ["compiled"] if one.get("compiled") else []
        taken += ["by length"] if "by_length=True" in one.get("options", "") else []
        tree = one.get("tree") or one.get("commit")
        lines.append(f"| {one['row']} | {tree} | {_said(one)} | {tried} | {apart} | {', '.join(taken)} |")
    for one in order:
        if "ways" in one:
            lines += ["", "| way | a step, s | first, s | likelihoods, gradients off float32's |", "|---|---|---|---|"]
            lines += [f"| {name} | {_way(found)} |" for name, found in one["ways"].items()]
    return "\n".join(lines) + "\n"


def _said(one: dict[str, Any]) -> str:
    said = [f"{name} {value:.3g} s" for name, value in one.get("seconds", {}).items()]
    said += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in one.items() if name.startswith("ratio_")]
    said += [f"{value:,.0f} {name.replace('_', ' ')}" for name, value in one.items() if name.endswith("s_per_second")]
    said += [
        f"{name.replace('_', ' ')} {value:.2f} of the matrix rate" for name, value in one.items() if "share" in name
    ]
    if one.get("fixed_peak_gib"):
        said.append(f"peak {one['fixed_peak_gib']:.1f} GiB")
    if "plain_tokens_per_second" in one and "fixed_tokens_per_second" in one:
        said.append(f"{one['fixed_tokens_per_second'] / one['plain_tokens_per_second']:.2f} times a plain step")
    if "error" in one:
        said.append("**" + one["error"].strip().splitlines()[-1][:200] + "**")
    return ", ".join(said)


def _way(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"**{found['error']}** | | "
    return (
        f"{found['seconds']:.3g} | {found['first_seconds']:.3g} | {found['losses_off']:.1g}, "
        f"{found['gradients_off']:.1g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one, many = verbs.add_parser("row"), verbs.add_parser("all")
    one.add_argument("name", choices=ROWS)
    one.add_argument("--output", type=Path, required=True)
    one.add_argument("--wait", action="store_true", help="begin when a line comes from the standard input")
    one.set_defaults(run=row)
    many.add_argument("folder", type=Path)
    many.add_argument("--other", help="another tree, measured after this one")
    many.add_argument("--rows", nargs="*", choices=ROWS, help="these only")
    many.add_argument("--seconds", type=float, default=345, help="of the whole")
    many.set_defaults(run=every)
    for parsed in (one, many):
        parsed.add_argument("--data", help="folder with TOFU's files; default: built-in authors")
        parsed.add_argument("--device", default="cuda", help="cpu takes tiny models, to see whether all of it works")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
