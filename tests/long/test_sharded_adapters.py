"""Adapters under FSDP2: frozen weights and adapter in parts, on two processes, against one that holds all of it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import all_rows, exact_norms
from lightning.pytorch.strategies import DDPStrategy
from processes import MARGIN, SHARDED, UNEVEN, distance, ended, fails, lines, metrics, sga, start, trainer, weights
from safetensors.torch import load_file, save_file
from torch.torch_version import TorchVersion
from transformers import PreTrainedModel

from sga.__main__ import main
from sga.cli import run_verb
from sga.errors import UserError
from sga.models.adapters import LoRA, is_adapter_weight
from sga.models.sharding import PRECISIONS, FullyShardedStrategy, check_strategy

RECORD = "--trainer.callbacks+=test_sharded_adapters.LossRecorder"
EXACT = ("--trainer.precision=64-true", "--model.language_model=test_sharded_adapters.ExactLoRA")
QUICK = ("--model_utility.generate=false", "--evaluation.answers=null")


class ExactLoRA(LoRA):
    """Computes in float64 throughout once it is converted; Llama's own norm is float32."""

    def prepared(self, network: PreTrainedModel) -> PreTrainedModel:
        return super().prepared(exact_norms(network))


class LossRecorder(pl.Callback):
    """Writes each optimiser step's loss with all its digits to a file of the first process."""

    def __init__(self) -> None:
        self.step = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        if stepped and trainer.is_global_zero:
            with Path(trainer.default_root_dir, "losses.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.global_step, **values}) + "\n")


@pytest.fixture
def options(unlearn_options: list[str], own_target: Path) -> list[str]:
    """Of a short run with an adapter without dropout, which each process would draw for itself."""
    found = [option for option in unlearn_options if not option.startswith(("--model.language_model", "--model.opt"))]
    found += ["--model.language_model=LoRA", f"--model.language_model.name_or_path={own_target}"]
    found += ["--model.language_model.dropout=0", "--model.language_model.rank=3"]  # 3 rows on two processes
    return [*found, "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-2", *UNEVEN]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def adapter_distance(one: Path, two: Path) -> float:
    ours, theirs = adapter(one), adapter(two)
    assert ours.keys() == theirs.keys() and {v.dtype for v in ours.values()} == {v.dtype for v in theirs.values()}
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return kept


def assert_holds_the_adapter_only(folder: Path) -> None:
    """Whole weights and two whole moments for each, by name or by number, and the hash of the frozen weights."""
    kept = checkpoint(folder)
    assert kept["state_dict"] and all(is_adapter_weight(name) for name in kept["state_dict"])
    assert len(kept["frozen_weights"]) == 64
    moments = kept["optimizer_states"][0]["state"]
    shapes = sorted(tuple(value.shape) for value in kept["state_dict"].values())
    assert sorted(tuple(state["exp_avg"].shape) for state in moments.values()) == shapes


def assert_same_run(one: Path, two: Path, own_target: Path) -> None:
    """Losses, the adapter, the merged model, metrics and what checkpoints hold."""
    losses = lines(one / "losses.jsonl")
    assert len(losses) == 4 and len({line["train/loss"] for line in losses}) == 4
    for found, wanted in zip(lines(two / "losses.jsonl"), losses, strict=True):
        assert found == pytest.approx(wanted, rel=0, abs=1e-8)
    assert (
        adapter_distance(one, two) < 1e-8 < 1e-2 < max(v.abs().max() for k, v in adapter(one).items() if "lora_B" in k)
    )
    assert distance(one, two) < 1e-8 < 1e-3 < distance(one, own_target)
    for found, wanted in zip(metrics(two), metrics(one), strict=True):
        assert found == pytest.approx(wanted, rel=1e-8, abs=1e-8)
    for name in ("model/config.json", "adapter/adapter_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (two, one))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == value if key != "target_modules" else sorted(ours[key]) == sorted(value)
    for folder in (one, two):
        assert_holds_the_adapter_only(folder)
    assert checkpoint(one)["frozen_weights"] == checkpoint(two)["frozen_weights"]


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_types_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded, ddp = FullyShardedStrategy(), DDPStrategy()
    half, dora = LoRA("model", dtype="bfloat16"), LoRA("model", dora=True)
    for precision in PRECISIONS:
        check_strategy(trainer(sharded, precision), LoRA("model"))
        check_strategy(trainer(sharded, precision), half)
    with pytest.raises(UserError, match=r"DoRA does not go with .* bf16-mixed"):
        check_strategy(trainer(sharded, "bf16-mixed"), dora)
    check_strategy(trainer(sharded, "32-true"), dora)
    check_strategy(trainer(ddp, "bf16-mixed"), dora)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1"))
    for precision in ("32-true", "bf16-mixed"):
        with pytest.raises(UserError, match=r"needs PyTorch 2\.8 or later, this is 2\.7\.1"):
            check_strategy(trainer(sharded, precision), half)
        check_strategy(trainer(sharded, precision), LoRA("model"))
    check_strategy(trainer(sharded, "bf16-true"), half)
    check_strategy(trainer(ddp), half)


def test_a_refusal_comes_before_weights_are_loaded(options: list[str], own_target: Path, tmp_path: Path) -> None:
    """There are none. One process, which fully sharded data parallelism takes as well."""
    shutil.copytree(own_target / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    options += [f"--model.language_model.name_or_path={tmp_path / 'model'}", "--model.language_model.dora=true"]
    options += ["--trainer.devices=1", "--trainer.strategy=fsdp2", "--trainer.precision=bf16-mixed"]
    arguments = ["fit", *options, f"--run.folder={tmp_path / 'run'}"]
    process = multiprocessing.get_context("fork").Process(target=exits, args=(arguments, tmp_path / "printed"))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 2 and "sga: error: DoRA does not go with" in (tmp_path / "printed").read_text()


def exits(arguments: list[str], printed: Path) -> None:
    """Ends a process, whose process group is not to stay in the tests', with the code of a command."""
    with printed.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        sys.exit(main(arguments))


# ---- the same trajectory --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_parts_train_as_the_whole(options: list[str], own_target: Path, tmp_path: Path) -> None:
    """float64, a dynamic rate, clipped gradients, a rank that two processes do not share evenly, generated answers."""
    options += [*EXACT, *MARGIN, RECORD, "--trainer.gradient_clip_val=0.01", "--evaluation.answers=null"]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(["fit", *options, f"--run.folder={one}"])
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    assert_same_run(one, two, own_target)
    expected = [line["train/rate"] for line in lines(one / "losses.jsonl")]
    assert max(expected) - min(expected) > 1e-2, "the rate is dynamic, and among the values that were compared"
    texts, wanted_texts = ([row.get("generation") for row in all_rows(folder)] for folder in (two, one))
    assert texts == wanted_texts and any(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--model.language_model.dora=true", "--model.gradient_checkpointing=true"),
        ("--model.loss=sga.KLMinimization",),
        ("--model.loss=sga.NPO",),
    ],
    ids=["a fixed rate", "DoRA, activations computed again", "a reference at every step", "a reference's losses"],
)
def test_methods_train_as_on_one_device(
    options: list[str], own_target: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    if any(option.startswith("--model.loss=") for option in more):
        options = [option for option in options if not option.startswith("--model.loss")]
    options += [*EXACT, RECORD, *QUICK, *more]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(["fit", *options, f"--run.folder={one}"])
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    assert_same_run(one, two, own_target)


@pytest.mark.slow
def test_weights_that_no_device_holds_whole(options: list[str], own_target: Path, tmp_path: Path) -> None:
    """Without evaluation, for which they would be gathered; gradients are still there when the export begins."""
    options += [*EXACT, RECORD, *QUICK, "--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(["fit", *options, f"--run.folder={one}"])
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    assert adapter_distance(one, two) < 1e-8
    assert distance(one, two) < 1e-8 < 1e-3 < distance(one, own_target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dtype", "loss_tolerance"),
    [("32-true", "bfloat16", 5e-3), ("bf16-mixed", "bfloat16", 0.04), ("bf16-mixed", "float32", 0.04)],
)
def test_types_of_frozen_weights(
    options: list[str], own_target: Path, tmp_path: Path, precision: str, dtype: str, loss_tolerance: float
) -> None:
    """The adapter stays float32, and frozen weights what they are. Tolerances are relative.

    5e-3: activations and their gradients are rounded to bfloat16, 2^-8. 0.04: under bf16-mixed norms and the residual
    stream are bfloat16 here and float32 on one device. A third of the learning rate, because each step multiplies what
    went before it.
    """
    options += [*QUICK, f"--trainer.precision={precision}", f"--model.language_model.dtype={dtype}"]
    options += ["--model.optimizer.lr=3e-3"]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(["fit", *options, f"--run.folder={one}"])
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    assert_holds_the_adapter_only(two)
    assert {value.dtype for value in checkpoint(two)["state_dict"].values()} == {torch.float32}
    assert checkpoint(one)["frozen_weights"] == checkpoint(two)["frozen_weights"]
    assert {value.dtype for value in weights(two).values()} == {getattr(torch, dtype)}
    first, last = metrics(one)[0], metrics(one)[-1]
    for found, wanted in zip(metrics(two), metrics(one), strict=True):
        for name in ("own/forget/avg_nll", "perplexity/retain/log"):
            print(precision, dtype, name, found[name], wanted[name])
            assert found[name] == pytest.approx(wanted[name], rel=loss_tolerance)
    assert last["own/forget/avg_nll"] > 2 * first["own/forget/avg_nll"], "training went somewhere"


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_and_one_device_takes_its_checkpoint(
    options: list[str], own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """With dropout, which each process draws for itself, and NPO, whose reference is the model without its adapter.

    1e-5: one device adds up in another order, in float32.
    """
    target = tmp_path / "target"
    shutil.copytree(own_target / "model", target)
    options = [option for option in options if not option.startswith("--model.loss") and "dropout" not in option]
    options += [f"--model.language_model.name_or_path={target}"]
    lora = [option for option in options if option.startswith("--model.language_model")]
    options += [*QUICK, "--model.loss=sga.NPO", "--model.language_model.dropout=0.2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sga("fit", *options, *SHARDED, f"--run.folder={whole}")
    _, printed = ended(start(*options, *SHARDED, *fails(1, 3, "killed"), f"--run.folder={cut}"), cut)
    assert checkpoint(cut)["global_step"] == 3, printed[-2000:]

    weights_file = target / "model.safetensors"
    before = load_file(weights_file)
    save_file({**before, "model.norm.weight": before["model.norm.weight"] * 1.01}, weights_file, {"format": "pt"})
    process = start(*options, *SHARDED, f"--run.folder={cut}", "--ckpt_path=last")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 2 and "made with another model beside its adapter" in printed
    save_file(before, weights_file, {"format": "pt"})

    sga("fit", *options, *SHARDED, f"--run.folder={cut}", "--ckpt_path=last")
    assert adapter_distance(whole, cut) == distance(whole, cut) == 0
    assert_holds_the_adapter_only(cut)
    ours, theirs = (checkpoint(folder)["optimizer_states"][0]["state"] for folder in (cut, whole))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert all(torch.equal(values[key], ours[name][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert all_rows(cut) == all_rows(whole)
    assert (cut / "reference.json").read_bytes() == (whole / "reference.json").read_bytes()
    last = metrics(whole)[-1]
    for more, where in (([], "alone"), (SHARDED, "sharded")):
        kept = [*own_options, *lora, *QUICK, f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}", *more]
        sga("validate", *kept, f"--run.folder={tmp_path / where}")
        [found] = metrics(tmp_path / where)
        for name in ("own/forget/avg_nll", "perplexity/retain/log"):
            assert found[name] == pytest.approx(last[name], rel=1e-5)


@pytest.mark.slow
def test_a_rule_puts_the_chosen_adapter_back(options: list[str], tmp_path: Path) -> None:
    sga("fit", *options, *QUICK, *SHARDED, "--stop.rule=test_adapters.First", f"--run.folder={tmp_path}")
    best, last = (checkpoint(tmp_path, name) for name in ("best", "last"))
    assert best["global_step"] == 0 < last["global_step"] and best["state_dict"].keys() == last["state_dict"].keys()
    exported = adapter(tmp_path)
    assert len(exported) == len(best["state_dict"])
    for name, value in best["state_dict"].items():
        found = exported[name.replace("model.model.", "base_model.model.model.", 1).replace(".default.", ".")]
        assert torch.equal(found, value)
        assert "lora_B" not in name or not torch.equal(value, last["state_dict"][name])
