"""`sga plan` against reality: parameters, memory at its peak, files; and against what is found by hand."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig

from sga.__main__ import main
from sga.cli import run_verb
from sga.errors import UserError
from sga.losses.base import Needs
from sga.models.adapters import LoRA
from sga.models.pretrained import Pretrained
from sga.optimization import EIGHT_BIT, optimizer_bytes
from sga.planning.estimate import GIB, PlannedRun, RunEstimate, estimate_run
from sga.planning.gpus import GPUS, known_gpu, named_gpu
from sga.planning.trace import fake_network, trace

HIDDEN, INNER, LAYERS, VOCABULARY = 256, 688, 4, 8000


@pytest.fixture(scope="session")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of hidden 256 as a folder with a config.json and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    ).save_pretrained(folder)
    return folder


def request(language_model: Pretrained, **changes: Any) -> PlannedRun:
    values: dict[str, Any] = {
        "needs": Needs(),
        "precision": "32-true",
        "checkpointing": False,
        "devices": 1,
        "sharded": False,
        "gpu": False,
        "rows": 4,
        "pass_rows": 4,
        "split": False,
        "micro_batch_size": 4,
        "batch_size": 4,
        "length": 128,
        "answer_length": 64.0,
        "step_tokens": None,
        "optimizer_bytes": 8.0,
    }
    return PlannedRun(language_model, **{**values, **changes})


def sizes(found: RunEstimate) -> dict[str, float]:
    return {line.name: line.size for line in found.lines}


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_parameters_are_exact(config_folder: Path, tiny_models: Path) -> None:
    """Two embeddings (not tied), and by block four h x h, three h x f and two norms; one norm at the end."""
    by_hand = 2 * VOCABULARY * HIDDEN + LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN) + HIDDEN
    found = estimate_run(request(Pretrained(str(config_folder))))
    assert found.parameters == found.trainable == by_hand
    real = AutoModelForCausalLM.from_pretrained(tiny_models / "full")
    assert estimate_run(request(Pretrained(str(tiny_models / "full")))).parameters == real.num_parameters()
    lora = estimate_run(request(LoRA(str(config_folder), rank=4)))
    assert lora.trainable == LAYERS * 4 * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER))
    assert lora.parameters == by_hand + lora.trainable


def test_activations_are_those_of_the_formula(config_folder: Path) -> None:
    """For each token and block in float32 values: of each norm its input, the normalised and the scaled vector (2·3h);
    queries, keys, values and the output of attention (4h); and of the MLP the gate before and after its activation, the
    other projection, and their product (4f). Beside the blocks 3h for the last norm. 5 %: the mask,
    positions, attention's normalisers, and vectors that the model holds a little longer.
    """
    found = trace(fake_network(Pretrained(str(config_folder))), 16, 128, 1000, autocast=False)
    by_hand = 4 * 16 * 128 * (LAYERS * (10 * HIDDEN + 4 * INNER) + 3 * HIDDEN)
    assert found.activations == pytest.approx(by_hand, rel=0.05)
    assert found.casts == 0
    # Log-probabilities, for which the logits are freed, and the vectors at answer positions.
    assert found.logits == pytest.approx(1000 * 4 * (VOCABULARY + HIDDEN), rel=0.02)


def test_operations_are_six_for_each_weight_and_token_and_attention(config_folder: Path) -> None:
    """2 forward and 4 backward (Kaplan et al., arXiv 2001.08361, section 2.1); the head sees answer tokens only.
    Attention: two products of T x T x h forward, five backward because the scores are computed again.
    """
    network = fake_network(Pretrained(str(config_folder)))
    tokens, answers = 16 * 128, 1000
    matrices = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
    attention = 7 * LAYERS * 2 * 16 * 128**2 * HIDDEN
    by_hand = 6 * matrices * tokens + 6 * VOCABULARY * HIDDEN * answers + attention
    plain = trace(network, 16, 128, answers, autocast=False).flops
    assert plain == pytest.approx(by_hand, rel=0.01)
    network.gradient_checkpointing_enable()
    again = trace(network, 16, 128, answers, autocast=False).flops
    # The last product of a block is not computed again: nothing that the backward pass reads comes after it.
    repeated = matrices - LAYERS * HIDDEN * INNER
    assert again == pytest.approx(by_hand + 2 * repeated * tokens + 2 / 7 * attention, rel=0.01)


def test_autocast_keeps_copies_of_the_weights(config_folder: Path) -> None:
    found = trace(fake_network(Pretrained(str(config_folder))), 4, 64, 100, autocast=True)
    matrices = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INNER) + VOCABULARY * HIDDEN
    assert found.casts == 2 * matrices


@pytest.mark.runs
def test_devices_share_or_copy(config_folder: Path) -> None:
    model = Pretrained(str(config_folder))
    weights = estimate_run(request(model)).parameters * 4
    block = 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN
    sharded = sizes(estimate_run(request(model, devices=4, sharded=True, precision="bf16-mixed")))
    assert (sharded["weights"], sharded["gradients"], sharded["optimiser"]) == (weights / 4, weights / 4, weights / 2)
    beside = 2 * VOCABULARY * HIDDEN + HIDDEN  # embeddings, head, last norm: whole from the forward pass on
    assert sharded["weights in use"] == 2 * (beside + 2 * block) and "messages" not in sharded
    frozen = sizes(estimate_run(request(LoRA(str(config_folder), rank=4, dtype="bfloat16"), devices=4, sharded=True)))
    adapter = 4 * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER))
    assert frozen["weights"] == (2 * weights / 4 + 4 * LAYERS * adapter) / 4, "bfloat16, and float32 beside it"
    assert (frozen["gradients"], frozen["optimiser"]) == (LAYERS * adapter, 2 * LAYERS * adapter)
    assert frozen["weights in use"] == 2 * beside + 2 * (2 * block + 4 * adapter), "each in its own type"
    copied = sizes(estimate_run(request(model, devices=4)))
    assert (copied["weights"], copied["optimiser"], copied["messages"]) == (weights, 2 * weights, weights)
    assert estimate_run(request(model, devices=4)).flops == estimate_run(request(model)).flops / 4


@pytest.mark.runs
def test_methods_take_what_they_need(config_folder: Path) -> None:
    model, kl = Pretrained(str(config_folder)), Needs(reference=("normal",), logits=True)
    weights = estimate_run(request(model)).parameters * 4
    with_reference = sizes(estimate_run(request(model, needs=kl)))
    assert with_reference["starting model"] == weights
    shared = sizes(estimate_run(request(model, needs=kl, devices=4, sharded=True)))
    assert shared["starting model"] == weights / 4, "it is cut like the trained one"
    assert with_reference["its logits"] == 4 * 16 * 64 * VOCABULARY
    assert "starting model" not in sizes(estimate_run(request(LoRA(str(config_folder)), needs=kl))), (
        "the adapter is off"
    )
    assert sizes(estimate_run(request(model, split=True)))["second gradient"] == weights
    layer = Needs(trained_layers=(LAYERS - 1,))
    assert estimate_run(request(model, needs=layer)).trainable == 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN
    assert sizes(estimate_run(request(model, precision="bf16-true")))["weights"] == weights / 2
    frozen = sizes(estimate_run(request(LoRA(str(config_folder), dtype="bfloat16"))))
    assert frozen["weights"] == weights / 2 + frozen["gradients"], "the adapter is float32"


def test_states_of_optimisers() -> None:
    def sgd(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1)

    def momentum(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    assert optimizer_bytes(torch.optim.AdamW, "torch.optim.AdamW") == 8
    assert (optimizer_bytes(sgd, "sgd"), optimizer_bytes(momentum, "sgd")) == (0, 4)
    assert optimizer_bytes(sgd, "sga.AdamW8bit") == EIGHT_BIT


# ---- against reality ------------------------------------------------------------------------------------------------

BENCHMARKS = ROOT / "benchmarks"
readable = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read a process's memory from")


@pytest.fixture(scope="session")
def memory() -> Iterator[ModuleType]:
    """The benchmark's module; it lies outside the package, beside others that it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("memory")


def ratio(memory: ModuleType, folder: Path, way: str, rows: int, length: int) -> float:
    """Planned by measured."""
    case = (str(folder), memory.WAYS[way], rows, length)
    planned, real = memory.planned(*case), memory.measured(*case)
    print(f"planned {planned / 2**20:.0f} MiB, measured {real / 2**20:.0f} MiB")
    return planned / real


@readable
@pytest.mark.slow
@pytest.mark.parametrize("way", ["weights", "bf16", "checkpointing", "lora", "lora-checkpointing", "packed"])
def test_the_peak_is_the_measured_one_within_15_percent(memory: ModuleType, config_folder: Path, way: str) -> None:
    assert 0.85 < ratio(memory, config_folder, way, 16, 128) < 1.15


@readable
@pytest.mark.slow
def test_the_peak_of_tiny_tofu_is_within_15_percent(memory: ModuleType, tiny_models: Path) -> None:
    assert 0.85 < ratio(memory, tiny_models / "full", "weights", 32, 160) < 1.15


@readable
@pytest.mark.slow
def test_logits_that_are_not_made_take_no_memory(memory: ModuleType, tmp_path: Path) -> None:
    """Of the plain loop they are held with their copy and log-probabilities; of parts, all but one are let go."""
    vocabulary, rows, length = 20000, 16, 128
    LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=vocabulary
    ).save_pretrained(tmp_path)

    def measured(way: str, max_logits: int | None = None) -> int:
        size: int = memory.measured(str(tmp_path), memory.WAYS[way], rows, length, max_logits)
        return size

    batch = memory.batch_of(rows, length)
    answers = int(batch.answer_mask.sum())
    whole = measured("packed")
    assert measured("plain") - measured("padded") > 2 * 4 * vocabulary * (rows * length - answers)
    assert whole - measured("parts", 16 * vocabulary) > 4 * vocabulary * answers
    # As many as there are: one part, and nothing is let go.
    assert abs(whole - measured("parts", answers * vocabulary)) < 0.1 * 4 * vocabulary * answers


@readable
@pytest.mark.runs
def test_the_benchmark_of_memory_runs(
    memory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some ways on a tiny model; in this process, where peaks mean nothing."""
    ways = ["bf16", "lora-checkpointing", "plain", "packed", "parts"]
    monkeypatch.setattr(memory, "measured", memory.growth)
    sizes = ["--hidden-size=64", "--layers=1", "--vocabulary=100", "--large-vocabulary=200", "--rows=4", "--length=8"]
    memory.main([*sizes, "--max-logits=400", f"--output={tmp_path / 'memory.json'}", "--ways", *ways])
    found = json.loads((tmp_path / "memory.json").read_text())
    assert list(found["ways"]) == ways
    assert {name for name, way in found["ways"].items() if way["planned_bytes"] is None} == {"plain", "parts"}
    assert {way["vocabulary"] for way in found["ways"].values()} == {100, 200}
    assert min(way["measured_bytes"] for way in found["ways"].values()) >= 0
    page = (tmp_path / "memory.md").read_text()
    assert page.count("\n| 100 |") == 2 and page.count("\n| 200 |") == 3 and page in capsys.readouterr().out
    with pytest.raises(SystemExit):
        memory.main(["--rows=6"])
    assert "--rows must be a multiple of 4" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Pretrained", "LoRA"])
def test_files_are_as_large_as_planned(kind: str, own_options: list[str], tiny_models: Path, tmp_path: Path) -> None:
    model = f"{tiny_models / 'full'}"
    run_verb(
        [
            "fit",
            *own_options,
            f"--model.language_model={kind}",
            f"--model.language_model.name_or_path={model}",
            *(["--model.language_model.rank=32"] if kind == "LoRA" else []),
            "--model.loss=sga.GradientAscent",
            "--data.batch_size=2",
            "--trainer.max_steps=1",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.limit_val_batches=0",
            f"--run.folder={tmp_path}",
        ]
    )
    found = estimate_run(request(Pretrained(model) if kind == "Pretrained" else LoRA(model, rank=32)))
    files = {"checkpoints/last.ckpt": found.checkpoint, "model/model.safetensors": found.export}
    if kind == "LoRA":
        files["adapter/adapter_model.safetensors"] = found.adapter
    for name, size in files.items():
        assert (tmp_path / name).stat().st_size == pytest.approx(size, rel=0.05), name


# ---- the command ----------------------------------------------------------------------------------------------------


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["plan", *options]) == 0
    return capsys.readouterr().out


def test_it_reads_a_configuration_and_no_weights(
    config_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    printed = plan(capsys, str(config_folder), "--length", "128", "--flops", "1e12", "--data.micro_batch_size=2")
    assert "one device, bf16-mixed, gradient checkpointing off" in printed
    assert "32 groups of 4 sequences, 2 at a time on a device, 128 tokens" in printed
    assert "weights and optimiser; twice" in printed and "1e+12 a second (as given)" in printed


@pytest.mark.runs
def test_it_says_what_fits(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(config_folder), "--length=64", "--flops=1e12", "--trainer.accelerator=cpu"]
    assert "It fits in 80 GiB." in plan(capsys, *options, "--memory=80")
    model = Pretrained(str(config_folder))
    one = estimate_run(request(model, micro_batch_size=1, length=64, answer_length=32.0)).peak / GIB * 1.01
    printed = plan(capsys, *options, f"--memory={one}")
    assert f"It does not fit in {one:g} GiB." in printed and "GiB, fits: --data.micro_batch_size 1\n" in printed
    assert "does not fit either: --model.gradient_checkpointing true\n" in printed and "Nothing of" not in printed


def test_lengths_come_from_the_data(
    own_options: list[str], own_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """6 groups of 4 in steps of 4: two steps an epoch. GA reads the forget samples only."""
    options = [*own_options, "--data.batch_size=4", "--flops=1e12"]
    printed = plan(capsys, str(own_target), *options)
    assert "as the data's longest" in printed and "2 steps an epoch" in printed and "of 4 sequences" in printed
    assert "of 1 sequences" in plan(capsys, str(own_target), *options, "--model.loss=sga.GradientAscent")
    dynamic = ["--model.loss=sga.SmoothedGradientAscent", "--model.loss.smoothing_rate=sga.MarginRate"]
    assert "second gradient" in plan(capsys, str(own_target), *options, *dynamic)


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(group) for group in found.groups()]


@pytest.mark.runs
def test_a_named_gpu_is_planned_for_by_its_data_sheet(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """989 TFLOP/s of an H100 at 20 to 25 %; 80 GB are 74.5 GiB. A T4 has no bfloat16, so that the run is in float32."""
    options = [str(config_folder), "--length=128", "--gpu"]
    printed = plan(capsys, *options, "h100")
    assert "time, an estimate" in printed and "measured on an H200" in printed and "It fits in 74.5 GiB" in printed
    operations, low, high = numbers(r"(\S+) operations .* 20 to 25 % of .*: (\S+) to (\S+) s", printed)
    assert (low, high) == pytest.approx((operations / 989e12 / 0.25, operations / 989e12 / 0.20), rel=0.01)
    printed = plan(capsys, *options, "T4")
    operations, low, _ = numbers(r"(\S+) operations .*: (\S+) to (\S+) s", printed)
    assert "32-true" in printed and low == pytest.approx(operations / 8.1e12 / 0.25, rel=0.01)
    printed = plan(capsys, *options, "t4", "--trainer.precision=16-mixed", "--memory=0.001")
    operations, low, _ = numbers(r"(\S+) operations .*: (\S+) to (\S+) s", printed)
    assert low == pytest.approx(operations / 65e12 / 0.25, rel=0.01) and "It does not fit in 0.001 GiB" in printed


def test_no_step_is_faster_than_the_optimiser_s_pass_over_memory(
    config_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and AdamW's states read and written, gradients read: 3 x 4 + 2 x 8 bytes a weight; 2 tokens a step."""
    tiny = ["--length=2", "--data.batch_size=1", "--data.group_size=1", "--model.loss=sga.GradientAscent"]
    printed = plan(capsys, str(config_folder), *tiny, "--gpu=h100")
    weights = estimate_run(request(Pretrained(str(config_folder)))).parameters
    low, high = numbers(r"operations .*: (\S+) to (\S+) s", printed)
    assert low == high == pytest.approx(28 * weights / 3350e9, rel=0.01)


@pytest.mark.runs
def test_the_machine_s_own_gpu_is_looked_up_and_no_gpu_is_given_a_cpu_s_speed(
    config_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(config_folder), "--length=16"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    printed = plan(capsys, *options)
    assert "name the GPU with --gpu" in printed and "measured on" not in printed and "a second" not in printed
    assert "measured on this machine's CPU" in plan(capsys, *options, "--trainer.accelerator=cpu")
    monkeypatch.setattr("sga.commands.plan._here", lambda: "NVIDIA A100-SXM4-40GB")
    printed = plan(capsys, *options)
    assert "of the a100-40's 3.12e+14" in printed and "It fits in 37.3 GiB" in printed
    assert "of the h200's" in plan(capsys, *options, "--gpu=h200"), "what is named wins"


def test_gpus_are_found_by_both_their_names() -> None:
    for gpu in GPUS:
        assert all(named_gpu(name) is gpu for name in (gpu.name, gpu.name.upper(), *gpu.devices))
        assert all(known_gpu(f"{maker} {name}") is gpu for maker in ("NVIDIA", "Tesla") for name in gpu.devices)
        assert gpu.half > gpu.single and gpu.memory < 200e9
    assert known_gpu("NVIDIA GeForce RTX 4090").name == "rtx4090"
    assert known_gpu("NVIDIA GeForce RTX 4090 Laptop GPU") is known_gpu("") is known_gpu("NVIDIA") is None


@pytest.mark.runs
def test_what_cannot_be_planned_is_said(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        assert main(["plan", *options]) == 2
        return capsys.readouterr().err

    folder = str(config_folder)
    assert "no such folder" in refused("./no/model", "--length=8")
    assert "--length must be above 0, got 0" in refused(folder, "--length=0")
    assert "--answer must be given with --length, and be smaller" in refused(folder, "--length=8", "--answer=8")
    assert "needs a number of devices, got --trainer.devices -1" in refused(
        folder, "--length=8", "--trainer.devices=-1"
    )
    assert "has no configuration to plan from" in refused("--model.language_model=SmallLlama", "--length=8")
    assert "--gpu h1000 is not known; known are h200, h100, " in refused(folder, "--length=8", "--gpu=h1000")
    assert "leave out --trainer.accelerator cpu" in refused(
        folder, "--length=8", "--gpu=t4", "--trainer.accelerator=cpu"
    )
    assert "has no rate for --trainer.precision 64-true" in refused(
        folder, "--length=8", "--gpu=t4", "--trainer.precision=64-true"
    )
    assert "or give --length and --answer" in refused(folder, "--data.source=Authors")


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="no model can be planned from"):
        fake_network(Pretrained(str(tmp_path)))
