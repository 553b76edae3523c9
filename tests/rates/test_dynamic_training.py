"""Rate policies in whole runs: equal to the fixed rate they give, micro-batches, processes, precision, going on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import SMALL_LLAMA, shipped
from lightning.pytorch.plugins.precision import MixedPrecision
from processes import EXACT, MARGIN, RECORD, environment, rates
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sga.__main__ import main
from sga.cli import UnlearningCLI, run_verb
from sga.errors import DivergenceError
from sga.rates.geometry import Geometry
from sga.rates.policies import DynamicRate

Fit = Callable[..., UnlearningCLI]

WEIGHT = (
    "--model.loss=sga.GradientDifference",
    "--model.loss.normal_weight=sga.MarginWeight",
    "--model.loss.normal_weight.margin=0.5",
)
SHORT = ("--model_utility.generate=false", "--export.enabled=false", "--trainer.num_sanity_val_steps=0")


@dataclass(frozen=True)
class Pinned(DynamicRate):
    """Looks at gradients, and takes −4 whatever they are."""

    def propose(self, geometry: Geometry) -> float | None:
        return -4.0


class HalfPrecisionOnCPU(pl.Callback):
    """fp16 under autocast with a scaler, which Lightning offers on GPUs only."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        scaler = torch.amp.GradScaler(device="cpu", init_scale=self.scale)  # type: ignore[attr-defined]
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)  # type: ignore[attr-defined]

    def __init__(self, scale: float) -> None:
        self.scale = scale


@pytest.fixture
def fit(unlearn_options: list[str]) -> Fit:
    """Runs a short unlearning run into a folder, without generation and export; more options override."""

    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, *SHORT, f"--run.folder={folder}", *options])

    return run


def weights(run: UnlearningCLI) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in run.model.parameters()])


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


# ---- the same update ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [(), ("--trainer.gradient_clip_val=0.5",)], ids=["", "clipped"])
@pytest.mark.parametrize("micro", ["4", "1"])
def test_a_split_step_with_a_given_rate_is_the_step_of_that_fixed_rate(
    fit: Fit, tmp_path: Path, micro: str, clip: tuple[str, ...]
) -> None:
    """Plain descent in float64, steps of 4 and then 2 groups, in one pass and group by group: weights to 1e-12."""
    options = (
        *EXACT,
        *clip,
        f"--data.micro_batch_size={micro}",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=1e-2",
        "--model.optimizer.weight_decay=0",
    )
    fixed = weights(fit(tmp_path / "fixed", *options))
    split = fit(tmp_path / "split", *options, "--model.loss.smoothing_rate=test_dynamic_training.Pinned")
    assert split.model.rate.state.decisions == 4
    torch.testing.assert_close(weights(split), fixed, rtol=0, atol=1e-12)
    still = weights(fit(tmp_path / "still", *options, "--model.optimizer.lr=0"))
    assert (fixed - still).abs().max() > 1e-3
    for name in ("train/loss", "train/forget_nll", "train/normal_nll"):
        assert scalars(tmp_path / "split", name) == pytest.approx(scalars(tmp_path / "fixed", name), rel=1e-5)


@pytest.mark.parametrize("rule", [MARGIN, WEIGHT], ids=["margin", "margin_lambda"])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_rate_does_not_depend_on_the_micro_batch(
    fit: Fit, tmp_path: Path, micro: int, rule: tuple[str, ...]
) -> None:
    fit(tmp_path / "whole", *EXACT, *rule, RECORD)
    fit(tmp_path / "parts", *EXACT, *rule, RECORD, f"--data.micro_batch_size={micro}")
    expected = rates(tmp_path / "whole")
    assert len(expected) == 4 and len(set(expected)) > 1
    assert rates(tmp_path / "parts") == pytest.approx(expected, abs=1e-8)


def test_a_schedule_moves_the_rate_and_needs_no_split(fit: Fit, tmp_path: Path) -> None:
    schedule = "--model.loss.smoothing_rate=sga.LinearRate"
    options = (schedule, "--model.loss.smoothing_rate.start=-4", "--model.loss.smoothing_rate.end=-1", RECORD)
    run = fit(tmp_path / "run", *options, "--data.micro_batch_size=1")
    assert rates(tmp_path / "run") == [-4, -3, -2, -1]
    assert run.model.rate.geometry == {} and run.model.rate.state.decisions == 0
    assert scalars(tmp_path / "run", "train/rate") == [-4, -3, -2, -1]
    constant = ("--model.loss.smoothing_rate=sga.FixedRate", "--model.loss.smoothing_rate.value=-4")
    assert torch.equal(weights(fit(tmp_path / "constant", *constant)), weights(fit(tmp_path / "plain")))


def test_steps_between_decisions_take_the_single_pass(fit: Fit, tmp_path: Path) -> None:
    rule = ("--model.loss.smoothing_rate=sga.PaperRate", "--model.loss.smoothing_rate.every=3")
    run = fit(tmp_path / "run", *rule, RECORD)
    first, second, third, fourth = rates(tmp_path / "run")
    assert first == second == third != fourth
    assert run.model.rate.state.decisions == 2
    cosines = scalars(tmp_path / "run", "train/cosine")
    assert cosines[0] == cosines[1] == cosines[2] != cosines[3], "that of the last look"


# ---- monitoring -----------------------------------------------------------------------------------------------------


def test_the_rate_and_what_it_follows_from_are_logged(fit: Fit, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", *MARGIN, RECORD)
    found = {
        name: scalars(tmp_path / "run", f"train/{name}")
        for name in (
            "rate", "rho", "lambda", "cosine", "forget_gradient_norm", "normal_gradient_norm", "forget_weight",
            "normal_weight", "clamped_low", "clamped_high", "infeasible", "loss", "forget_nll", "normal_nll",
        )
    }  # fmt: skip
    assert found["rate"] == pytest.approx(rates(tmp_path / "run"), rel=1e-6)
    for step in range(4):
        rho = 0.75 * found["rate"][step]
        assert found["rho"][step] == pytest.approx(rho, rel=1e-5)
        assert found["lambda"][step] == pytest.approx(-rho / (1 - rho), rel=1e-5)
        assert found["forget_weight"][step] == pytest.approx(rho - 1, rel=1e-5)
        assert found["normal_weight"][step] == pytest.approx(-rho, rel=1e-5)
        assert found["loss"][step] == pytest.approx(
            (rho - 1) * found["forget_nll"][step] - rho * found["normal_nll"][step], rel=1e-4
        )
        assert -1 <= found["cosine"][step] <= 1
    assert min(found["forget_gradient_norm"] + found["normal_gradient_norm"]) > 0
    state = run.model.rate.state
    assert found["clamped_low"][-1] == state.clamped_low and found["infeasible"][-1] == state.infeasible
    assert {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"} <= set(run.model.rate.geometry)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["parameters"] == {"smoothing_rate": "MarginRate(margin=0.6)", "alternative_rate": None}


def test_a_margin_weight_is_logged_as_lambda_and_may_exceed_one(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "run", *WEIGHT, "--model.loss.normal_weight.margin=2", RECORD)
    found = scalars(tmp_path / "run", "train/lambda")
    assert found == pytest.approx(rates(tmp_path / "run"), rel=1e-6) and max(found) > 1
    assert scalars(tmp_path / "run", "train/forget_weight") == [-1] * 4


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [4, 1])
def test_a_dynamic_run_resumed_from_any_checkpoint_ends_as_the_whole_one(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    """Averages of the past, decisions at every second step, counts: all of it in checkpoints, bit-equal weights."""
    taken: list[Path] = []
    save = pl.Trainer.save_checkpoint

    def save_and_copy(trainer: pl.Trainer, filepath: Any, *args: Any, **kwargs: Any) -> None:
        save(trainer, filepath, *args, **kwargs)
        folder = Path(trainer.default_root_dir)
        if folder.name == "whole":
            taken.append(folder.with_name(f"copy-{len(taken)}"))
            shutil.copytree(folder, taken[-1], ignore=shutil.ignore_patterns("tensorboard"))

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save_and_copy)
    options = (
        *MARGIN,
        "--model.loss.smoothing_rate.every=2",
        "--model.loss.smoothing_rate.averaging=0.7",
        "--model.loss.smoothing_rate.lowest=-1.2",
        "--data.batch_size=2",
        f"--data.micro_batch_size={micro}",
        "--checkpoint.every_n_steps=1",
    )
    whole = fit(tmp_path / "whole", *options)
    expected, state = weights(whole), whole.model.rate.state
    assert len(taken) == 6 and state.decisions == 3 and state.averages is not None
    for folder in taken[:-1]:
        resumed = fit(folder, *options, "--ckpt_path=last")
        assert resumed.model.rate.state == state
        assert torch.equal(weights(resumed), expected)


# ---- precision ------------------------------------------------------------------------------------------------------


def test_bf16_autocast_gives_nearly_the_rate_of_float32(fit: Fit, tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        fit(tmp_path / precision, *MARGIN, RECORD, f"--trainer.precision={precision}", "--trainer.max_epochs=1")
    expected = rates(tmp_path / "32-true")
    assert rates(tmp_path / "bf16-mixed") == pytest.approx(expected, rel=0.15)
    assert rates(tmp_path / "bf16-mixed") != expected


def test_a_gradient_scaler_scales_both_parts_and_skips_a_step_that_overflows(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "plain", *MARGIN, RECORD, "--trainer.max_epochs=1", "--data.micro_batch_size=2")
    half = "--trainer.callbacks+=test_dynamic_training.HalfPrecisionOnCPU"
    common = (*MARGIN, RECORD, half, "--trainer.max_epochs=1", "--data.micro_batch_size=2")
    fit(tmp_path / "half", *common, "--trainer.callbacks.scale=256")
    assert rates(tmp_path / "half") == pytest.approx(rates(tmp_path / "plain"), rel=0.15)
    norms = [scalars(tmp_path / name, "train/forget_gradient_norm") for name in ("half", "plain")]
    assert norms[0] == pytest.approx(norms[1], rel=0.05), "the scale is divided out"
    blown = fit(tmp_path / "blown", *common, "--trainer.callbacks.scale=1e30")
    still = fit(tmp_path / "still", "--model.optimizer.lr=0", "--trainer.max_epochs=1")
    assert torch.equal(weights(blown), weights(still)), "both steps are skipped"
    assert blown.model.rate.state.decisions == 0


def test_a_gradient_that_is_no_number_stops_the_run(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Geometry, "finite", property(lambda self: False))
    with pytest.raises(DivergenceError, match="a gradient is no longer a number at step 0"):
        fit(tmp_path / "run", *MARGIN)


# ---- refusals and configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((*MARGIN, "--data.group_size=1"), "group_size must be at least 2, got 1"),
        (("--model.loss.smoothing_rate=sga.MarginWeight",), "use it with GradientDifference"),
        ((*MARGIN, "--model.loss.smoothing_rate.every=0"), "every must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    unlearn_options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    assert main(["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("stem", ["sga-paper-rate", "sga-margin", "gd-margin", "sga-cosine"])
@pytest.mark.runs
def test_the_shipped_configurations_take_a_few_steps(tmp_path: Path, stem: str) -> None:
    """Each on fewer and shorter authors, with the tests' tiny model."""
    run = run_verb(
        [
            "fit",
            *shipped("authors", stem),
            *SHORT,
            RECORD,
            f"--run.folder={tmp_path / 'run'}",
            *SMALL_LLAMA,
            "--model.language_model.context=512",
            "--evaluation.reference=null",
            "--data.source.questions_per_author=4",
            "--data.evaluation_rows=2",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=3",
            "--data.batch_size=2",
            "--data.max_length=512",
            "--trainer.enable_progress_bar=false",
        ]
    )
    found = rates(tmp_path / "run")
    assert len(found) == 3 and all(abs(value) <= 8 for value in found)
    assert run.model.rate.state.decisions == (0 if stem == "sga-cosine" else 3)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    policy = str(next(iter(config["model"]["loss"]["init_args"].values()))["class_path"])
    assert re.fullmatch(r"sga\.\w+(Rate|Weight)", policy), "a name that no move of a module changes"


# ---- two processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rule", [MARGIN, WEIGHT], ids=["margin", "margin_lambda"])
def test_two_processes_take_the_rates_of_one(
    unlearn_options: list[str], tmp_path: Path, rule: tuple[str, ...], strategy: str
) -> None:
    """20 steps of 5 groups and of 1: uneven shares, and a process with nothing to do; r equal at every step, 1e-8."""
    options = [
        *unlearn_options, *SHORT, *EXACT, *rule, RECORD,
        "--data.batch_size=5", "--data.micro_batch_size=2", "--trainer.max_epochs=10", "--trainer.limit_val_batches=0",
    ]  # fmt: skip
    for name, more in (("one", []), ("two", ["--trainer.devices=2", f"--trainer.strategy={strategy}"])):
        done = subprocess.run(
            [sys.executable, "-m", "sga", "fit", *options, *more, f"--run.folder={tmp_path / name}"],
            env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    expected = rates(tmp_path / "one")
    assert len(expected) == 20 and max(expected) - min(expected) > 1e-2
    assert rates(tmp_path / "two") == pytest.approx(expected, rel=0, abs=1e-8)
    assert rates(tmp_path / "two", rank=1) == rates(tmp_path / "two")
