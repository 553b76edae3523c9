"""Which precision a run computes in, and that its weights move in it."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor
from transformers import AutoModelForCausalLM

from sga.__main__ import main
from sga.cli import UnlearningCLI, _set_precision, configured_cli, run_verb
from sga.models.pretrained import PURE_BFLOAT16
from sga.optimization import AdamW8bit


@pytest.mark.parametrize(
    ("asked", "accelerator", "gpu", "bfloat16", "expected"),
    [
        (None, "auto", True, True, "bf16-mixed"),
        (None, "gpu", True, True, "bf16-mixed"),
        (None, "auto", True, False, "32-true"),
        (None, "auto", False, False, "32-true"),
        (None, "cpu", True, True, "32-true"),
        ("32-true", "auto", True, True, "32-true"),
        ("bf16-true", "auto", True, True, "bf16-true"),
    ],
)
def test_the_default_follows_from_the_device_and_what_is_asked_for_wins(
    asked: str | None, accelerator: str, gpu: bool, bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    trainer = Namespace(precision=asked, accelerator=accelerator)
    _set_precision(trainer)
    assert trainer.precision == expected


# ---- runs -----------------------------------------------------------------------------------------------------------

ONE_STEP = (
    "--model.schedule=ConstantSchedule",
    "--model.optimizer.lr=1e-5",
    "--model.optimizer.weight_decay=0",
    "--trainer.max_steps=1",
    "--model_utility.generate=false",
    "--export.enabled=false",
)


def fit(unlearn_options: list[str], folder: Path, *options: str) -> UnlearningCLI:
    return run_verb(["fit", *unlearn_options, *ONE_STEP, f"--run.folder={folder}", *options])


def large_and_moved(run: UnlearningCLI, target: Path) -> tuple[int, int]:
    """Weights of magnitude above 2^-8, and how many of them one step has moved."""
    start: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(target / "model").state_dict()
    large = moved = 0
    for name, value in run.model.model.state_dict().items():
        before = start[name].to(value.dtype)
        mask = before.abs() > 2**-8  # at 2^-8 itself the step downwards is half as long
        large += int(mask.sum())
        moved += int((value != before)[mask].sum())
    return large, moved


def test_under_autocast_weights_and_states_are_float32_and_a_small_step_moves_them(
    unlearn_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """Adam's first step is lr = 1e-5 for every weight that has a gradient: embeddings of absent tokens have none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*pure bfloat16.*")
        run = fit(unlearn_options, tmp_path / "run", "--trainer.precision=bf16-mixed")
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    states = [value for state in run.trainer.optimizers[0].state.values() for value in state.values()]
    assert states and {value.dtype for value in states} == {torch.float32}
    held = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in held.values()} == {torch.float32}
    large, moved = large_and_moved(run, own_target)
    assert moved > 0.7 * large


def test_pure_bfloat16_is_taken_on_request_with_a_warning_and_stands_still(
    unlearn_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=PURE_BFLOAT16[:40]):
        run = fit(unlearn_options, tmp_path / "run", "--trainer.precision=bf16-true")
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.bfloat16}
    large, moved = large_and_moved(run, own_target)
    assert large > 10_000 and moved == 0


def test_what_was_taken_is_written_down_and_a_reference_of_another_precision_is_refused(
    unlearn_options: list[str], own_reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(unlearn_options, tmp_path / "run", f"--evaluation.reference={own_reference}")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert configured_cli([*unlearn_options]).trainer.precision == "32-true", "as `sga rate` and `sga normals` take it"
    options = ["--trainer.precision=bf16-mixed", f"--evaluation.reference={own_reference}"]
    assert main(["fit", *unlearn_options, *ONE_STEP, f"--run.folder={tmp_path / 'other'}", *options]) == 2
    printed = capsys.readouterr().err
    assert "precision is '32-true' there and 'bf16-mixed' here" in printed
    assert not (tmp_path / "other" / "config.yaml").exists()


# ---- optimisers with small states -----------------------------------------------------------------------------------


def test_a_missing_package_is_said(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    options = [*unlearn_options, "--model.optimizer=sga.AdamW8bit", "--model.optimizer.lr=1e-5"]
    assert main(["fit", *options, f"--run.folder={tmp_path / 'run'}"]) == 2
    assert "needs the package bitsandbytes: pip install 'sga-unlearning[eight-bit]'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_eight_bit_optimiser_is_bitsandbytes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(torch.optim.AdamW):
        pass

    class Paged(torch.optim.AdamW):
        pass

    package = types.ModuleType("bitsandbytes")
    package.optim = types.SimpleNamespace(AdamW8bit=Plain, PagedAdamW8bit=Paged)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    weights = [torch.nn.Parameter(torch.ones(2))]
    made = AdamW8bit(weights, lr=0.5, weight_decay=0.1)
    assert type(made) is Plain and made.defaults["lr"] == 0.5 and made.defaults["weight_decay"] == 0.1
    assert type(AdamW8bit(weights, paged=True)) is Paged
