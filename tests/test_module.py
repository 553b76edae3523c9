"""Whole runs by the command line, in process: what they do to the model, what they leave behind, how they go on."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import all_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from sga.__main__ import main
from sga.batching.batch import collate
from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.callbacks import checkpoints
from sga.callbacks.run_files import RunFiles
from sga.cli import UnlearningCLI, run_verb
from sga.data.own import OwnData
from sga.errors import DivergenceError, UserError
from sga.likelihood.forward import sequence_nll
from sga.optimization import ConstantSchedule, LinearSchedule

Weights = dict[str, torch.Tensor]
Fit = Callable[..., UnlearningCLI]

SHORT = ("--model_utility.generate=false", "--export.enabled=false")
"""For tests of the training loop: no greedy answers, no model folder."""


@pytest.fixture
def fit(unlearn_options: list[str]) -> Fit:
    """Runs a short SGA run into a folder; more options override."""

    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, f"--run.folder={folder}", *options])

    return run


def weights(run: UnlearningCLI) -> Weights:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def distance(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run without the time that they were made at."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder / "metrics.jsonl")]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- what training does ---------------------------------------------------------------------------------------------


def test_ascent_raises_the_forget_nll_and_with_lr_zero_nothing_moves(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "up", *SHORT)
    before, *_, after = metrics(tmp_path / "up")
    assert after["own/forget/avg_nll"] > before["own/forget/avg_nll"] + 0.05
    still = fit(tmp_path / "still", "--model.optimizer.lr=0", *SHORT)
    first, *others = metrics(tmp_path / "still")
    moving = ("step", "epoch")
    assert len(others) == 2
    for other in others:
        assert {k: v for k, v in other.items() if k not in moving} == {
            k: v for k, v in first.items() if k not in moving
        }
    assert first == before
    assert still.trainer.global_step == 4


def test_smoothing_protects_the_normal_samples(fit: Fit, tmp_path: Path) -> None:
    """r = −4 at K = 4 is λ = 0.75, and Adam sees λ only; ascent alone, λ = 0, harms them more."""
    for name, rate in (("smoothed", -4), ("plain", 0)):
        fit(tmp_path / name, f"--model.loss.smoothing_rate={rate}", *SHORT)
    smoothed, plain = (metrics(tmp_path / name)[-1]["perplexity/normal/log"] for name in ("smoothed", "plain"))
    assert smoothed < plain


def test_rate_zero_gradient_ascent_and_groups_of_one_are_the_same_run(fit: Fit, tmp_path: Path) -> None:
    """Losses that read no normal samples leave them out of the forward pass."""
    rate_zero = weights(fit(tmp_path / "zero", "--model.loss.smoothing_rate=0", *SHORT))
    ascent = weights(fit(tmp_path / "ascent", "--model.loss=sga.GradientAscent", *SHORT))
    alone = weights(fit(tmp_path / "alone", "--data.group_size=1", *SHORT))
    assert distance(rate_zero, ascent) == 0
    assert distance(rate_zero, alone) == 0
    assert distance(rate_zero, weights(fit(tmp_path / "other", *SHORT))) > 1e-4


@pytest.mark.parametrize(
    ("micro", "average"), [(4, "sequence"), (1, "sequence"), (2, "sequence"), (3, "sequence"), (3, "token")]
)
def test_the_trajectory_does_not_depend_on_the_micro_batch(fit: Fit, tmp_path: Path, micro: int, average: str) -> None:
    """Steps of 4 and then 2 groups, in one pass and in several. 1e-7: Llama's norm computes in float32 always.

    A step of Adam at this learning rate moves each weight by up to 1e-3, so what is compared is 10 000 times larger.
    """
    double = ("--trainer.precision=64-true", f"--model.loss.average={average}", *SHORT)
    whole = fit(tmp_path / "whole", *double)
    parts = fit(tmp_path / "parts", f"--data.micro_batch_size={micro}", *double)
    assert (whole.trainer.global_step, parts.trainer.global_step) == (4, 4)
    assert parts.trainer.accumulate_grad_batches == math.ceil(4 / micro)
    assert distance(weights(whole), weights(parts)) < 1e-7
    for ours, theirs in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_the_seed_orders_the_groups(fit: Fit, tmp_path: Path) -> None:
    """Weights come from the target, so the order of groups is all that the seed decides here."""
    first, again = (weights(fit(tmp_path / name, "--seed_everything=1", *SHORT)) for name in "ab")
    assert distance(first, again) == 0
    assert distance(first, weights(fit(tmp_path / "c", "--seed_everything=2", *SHORT))) > 1e-5


def test_a_loss_that_is_no_number_stops_the_run(fit: Fit, unlearn_options: list[str], tmp_path: Path) -> None:
    blown = ("--model.optimizer.lr=1e30", "--data.batch_size=2", *SHORT)
    with pytest.raises(DivergenceError, match=r"(the loss is nan|a gradient is no longer a number) at step"):
        fit(tmp_path / "a", *blown)
    assert not (tmp_path / "a" / "model").exists()
    assert main(["fit", *unlearn_options, f"--run.folder={tmp_path / 'b'}", *blown]) == 1


def test_the_linear_schedule_by_hand() -> None:
    """20 steps, 4 an epoch, one epoch of warm-up: 1/4, 2/4, 3/4, 1, and then from 1 down to 1/16 in 16 steps."""

    def rates(schedule: LinearSchedule | ConstantSchedule, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = schedule.scheduler(optimizer, total_steps=20, steps_per_epoch=4)
        found = []
        for _ in range(steps):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    expected = [0.25, 0.5, 0.75, 1.0] + [(16 - k) / 16 for k in range(16)] + [0.0]
    assert rates(LinearSchedule(1), 21) == pytest.approx(expected)
    assert rates(LinearSchedule(0, 0.5), 21) == pytest.approx([1 - 0.5 * k / 20 for k in range(21)])
    assert rates(LinearSchedule(0.5), 3) == pytest.approx([0.5, 1.0, 1.0])
    assert rates(ConstantSchedule(), 21) == [1.0] * 21
    for wrong in ({"warmup_epochs": -1}, {"final_factor": 1.5}):
        with pytest.raises(UserError):
            LinearSchedule(**wrong)


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> dict[int, Path]:
    """Copies of the run folder as it was after each save of last.ckpt, in order: what a kill right then would leave."""
    found: dict[int, Path] = {}
    save = checkpoints.save

    def save_and_copy(trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        save(trainer, name, weights_only)
        folder = Path(trainer.default_root_dir)
        if name == "last":
            found[len(found)] = folder.with_name(f"{folder.name}-{len(found)}")
            shutil.copytree(folder, found[len(found) - 1], ignore=shutil.ignore_patterns("tensorboard"))

    monkeypatch.setattr(checkpoints, "save", save_and_copy)
    return found


@pytest.fixture(scope="session")
def dropout_target(own_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with dropout, so that a resumed run also has to draw as the whole one drew."""
    folder = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(own_target / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    return folder


def test_the_dropout_of_the_resume_tests_is_felt(fit: Fit, dropout_target: Path, tmp_path: Path) -> None:
    with_dropout = fit(tmp_path / "a", f"--model.language_model.name_or_path={dropout_target}", *SHORT)
    assert distance(weights(with_dropout), weights(fit(tmp_path / "b", *SHORT))) > 1e-4


def assert_same_run(resumed: UnlearningCLI, folder: Path, whole: Weights, whole_folder: Path) -> None:
    assert distance(weights(resumed), whole) == 0, "bit-equal weights"
    assert metrics(folder) == metrics(whole_folder)
    assert all_rows(folder) == all_rows(whole_folder)


@pytest.mark.parametrize("micro", [4, 1])
def test_a_run_resumed_from_any_checkpoint_ends_as_the_whole_one(
    fit: Fit, dropout_target: Path, tmp_path: Path, snapshots: dict[int, Path], micro: int
) -> None:
    """Three steps an epoch, a checkpoint after every step: within epochs, at their ends, and at the end of the run."""
    options = (
        f"--model.language_model.name_or_path={dropout_target}",
        "--data.batch_size=2",
        f"--data.micro_batch_size={micro}",
        "--checkpoint.every_n_steps=1",
        *SHORT,
    )
    whole = weights(fit(tmp_path / "whole", *options))
    taken = dict(snapshots)
    steps = [
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for path in taken.values()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]
    for folder in taken.values():
        resumed = fit(folder, "--ckpt_path=last", *options)
        assert resumed.trainer.global_step == 6
        assert_same_run(resumed, folder, whole, tmp_path / "whole")


@pytest.mark.parametrize("micro", [4, 1])
def test_a_run_resumed_twice_ends_as_the_whole_one(
    fit: Fit, tmp_path: Path, snapshots: dict[int, Path], micro: int
) -> None:
    """Killed after step 2, resumed, and killed again right after each of the checkpoints that the second run writes."""
    options = ("--data.batch_size=2", f"--data.micro_batch_size={micro}", "--checkpoint.every_n_steps=1", *SHORT)
    whole = weights(fit(tmp_path / "whole", *options))
    first = snapshots[1]
    snapshots.clear()
    fit(first, "--ckpt_path=last", *options)
    taken = dict(snapshots)
    assert len(taken) >= 4
    for folder in taken.values():
        assert_same_run(fit(folder, "--ckpt_path=last", *options), folder, whole, tmp_path / "whole")


def test_a_finished_run_can_be_prolonged(fit: Fit, tmp_path: Path) -> None:
    constant = ("--model.schedule=ConstantSchedule", *SHORT)
    whole = weights(fit(tmp_path / "whole", *constant, "--trainer.max_epochs=3"))
    fit(tmp_path / "two", *constant)
    longer = fit(tmp_path / "two", *constant, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert_same_run(longer, tmp_path / "two", whole, tmp_path / "whole")


def test_a_resumed_float64_run_keeps_all_its_digits(fit: Fit, tmp_path: Path, snapshots: dict[int, Path]) -> None:
    """Weights that pass through float32 on their way out of a checkpoint come back rounded."""
    double = ("--trainer.precision=64-true", *SHORT)
    whole = weights(fit(tmp_path / "whole", *double))
    resumed = fit(snapshots[0], "--ckpt_path=last", *double)
    assert_same_run(resumed, snapshots[0], whole, tmp_path / "whole")


def test_last_before_the_first_checkpoint_is_the_beginning(fit: Fit, tmp_path: Path) -> None:
    """A run killed before its first checkpoint is started again by the same command."""
    whole = weights(fit(tmp_path / "whole", *SHORT))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed", ignore=shutil.ignore_patterns("checkpoints", "metrics*"))
    resumed = fit(tmp_path / "killed", "--ckpt_path=last", *SHORT)
    assert_same_run(resumed, tmp_path / "killed", whole, tmp_path / "whole")


def test_a_run_is_not_written_over_and_not_resumed_as_another(fit: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(folder, *SHORT)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with pytest.raises(UserError, match="already holds a run"):
        fit(folder, *SHORT)
    for option, named in (
        ("--model.loss.smoothing_rate=-2", "model.loss.init_args.smoothing_rate: -4.0 before, -2.0 now"),
        ("--data.batch_size=3", "data.batch_size: 4 before, 3 now"),
        ("--data.micro_batch_size=2", "data.micro_batch_size: None before, 2 now"),
        ("--seed_everything=5", "seed_everything: 0 before, 5 now"),
        ("--model.loss=sga.GradientAscent", "GradientAscent"),
    ):
        with pytest.raises(UserError, match=re.escape(named)):
            fit(folder, *SHORT, option, "--ckpt_path=last")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before, "and nothing was touched"


@pytest.mark.parametrize(
    "wrong",
    [
        "--evaluation.reference=nowhere/at/all",
        "--model.loss=sga.GradientDifference --data.group_size=1",
        "--data.group_size=40",
        "--data.max_length=8",
    ],
)
def test_a_start_refused_for_its_settings_does_not_mark_the_folder(
    fit: Fit, tmp_path: Path, wrong: str, own_target: Path
) -> None:
    """After mending the setting the same command runs, with the pairing that is asked for then."""
    with pytest.raises(UserError):
        fit(tmp_path / "run", *SHORT, "--data.pairing=sga.RandomNormals", *wrong.split())
    fit(tmp_path / "run", *SHORT, "--data.group_size=3")
    assert all(len(line["normals"]) == 2 for line in lines(tmp_path / "run" / "pairs.jsonl"))
    fit(tmp_path / "clean", *SHORT, "--data.group_size=3")
    assert lines(tmp_path / "run" / "pairs.jsonl") == lines(tmp_path / "clean" / "pairs.jsonl")


# ---- what a run leaves behind ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(
    unlearn_options: list[str], own_reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, UnlearningCLI]:
    """A short run with everything on. Tests that write into it take a copy."""
    folder = tmp_path_factory.mktemp("training") / "run"
    reference = f"--evaluation.reference={own_reference}"
    run = run_verb(["fit", *unlearn_options, f"--run.folder={folder}", reference, "--checkpoint.keep_epochs=true"])
    return folder, run


def test_every_file_of_a_run_is_there(run_folder: tuple[Path, UnlearningCLI]) -> None:
    folder, _ = run_folder
    found = files(folder)
    assert {name for name in found if not name.startswith(("tensorboard/", "model/"))} == {
        "checkpoints/epoch-001-step-000002.ckpt",
        "checkpoints/epoch-002-step-000004.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "pairs.jsonl",
        "rows/000000.jsonl",
        "rows/000002.jsonl",
        "rows/000004.jsonl",
        "run.json",
    }
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= set(found)
    assert not [path for path in folder.rglob(".*")], "no temporary file is left"


def test_metrics_have_their_names_and_are_finite(run_folder: tuple[Path, UnlearningCLI]) -> None:
    folder, _ = run_folder
    points = lines(folder / "metrics.jsonl")
    assert [(point["step"], point["epoch"]) for point in points] == [(0, 0.0), (2, 1.0), (4, 2.0)]
    sets = ("forget", "retain", "retain_unseen", "real_authors", "world_facts")
    parts = ("probability", "rouge_l_recall", "truth_ratio")
    means = {f"own/{name}/{part}" for name in sets for part in parts}
    means |= {f"own/forget/{part}" for part in ("avg_nll", "exact_memorization", "extraction_strength")}
    means |= {f"own/{name}/{part}" for name in sets[1:3] for part in ("exact_memorization", "extraction_strength")}
    means |= {f"own/retain_normals/{part}" for part in (*parts, "exact_memorization", "extraction_strength")}
    means |= {f"own/mia/{score}" for score in ("loss", "min_k", "min_k_plus_plus", "zlib", "reference")}
    means |= {"own/model_utility", "own/model_utility_unseen", "own/privleak"}
    fluent = ("fluency", "empty", "repeated", "degenerate")
    means |= {f"own/{name}/{part}" for name in ("forget", "retain_unseen") for part in fluent}
    texts = ("forget", "retain", "retain_unseen", "normal")
    means |= {f"perplexity/{name}{log}" for name in texts for log in ("", "/log")}
    single = {"own/ks_statistic", "own/ks_n", "own/forget_quality", "own/forget_quality_log10"}
    single |= {"own/privleak_reference_auc"}
    attacks = {f"s_{attack}" for attack in ("loss", "zlib", "min_k", "min_k_plus_plus")}
    composite = {"overall", "memorization", "privacy", "utility", "relative_utility", "ngram_fluency", *attacks}
    single |= {f"own/composite/{part}" for part in (*composite, "paraphrase_probability", "correct_share")}
    for point in points:
        with_interval = {name for name in means if f"{name}/ci_low" in point}  # not where every row is the same
        expected = single | means | {f"{name}/ci_{end}" for name in with_interval for end in ("low", "high")}
        assert set(point) == expected | {"step", "epoch", "seconds"} and len(with_interval) > 15
        assert all(math.isfinite(value) for value in point.values())
        for name in with_interval:
            rounding = 1e-9 * max(1, abs(point[name]))
            low, high = point[f"{name}/ci_low"], point[f"{name}/ci_high"]
            assert low - rounding <= point[name] <= high + rounding, name
        assert point["own/forget/avg_nll/ci_low"] < point["own/forget/avg_nll/ci_high"]
    summary = json.loads((folder / "metrics.json").read_text())
    assert {key: summary[key] for key in points[-1]} == points[-1]
    assert set(summary["absent"]) == {f"own/{name}/generation_nll" for name in ("forget", "retain_unseen")}
    extra = {"chosen", "frontier_area", "frontier_area_ks", "absent", "notes", "tokens", "normals/similarity"}
    assert set(summary) - set(points[-1]) == extra


def test_run_json_and_config_say_what_was_run(run_folder: tuple[Path, UnlearningCLI], own_target: Path) -> None:
    folder, _ = run_folder
    run = json.loads((folder / "run.json").read_text())
    assert (run["verb"], run["role"], run["method"]) == ("fit", "unlearn", "SmoothedGradientAscent")
    assert run["parameters"] == {"smoothing_rate": -4.0, "alternative_rate": None}
    assert len(run["reserved"]) == 2 and run["alternatives"] == 0
    assert (run["group_size"], run["forget_records"], run["retain_records"], run["processes"]) == (4, 6, 10, 1)
    assert run["model"] == str(own_target / "model")
    assert run["evaluation"]["precision"] == "32-true"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    init_args = {"smoothing_rate": -4.0, "average": "sequence", "unit_ascent": False}
    assert config["model"]["loss"]["init_args"] == init_args
    assert config["data"]["batch_size"] == 4


def test_rows_are_there_for_every_record_and_step_and_metrics_are_their_means(
    run_folder: tuple[Path, UnlearningCLI],
) -> None:
    folder, _ = run_folder
    rows = all_rows(folder)
    counts = {"forget": 6, "retain": 10, "retain_unseen": 2, "holdout": 4, "real_authors": 2, "world_facts": 2}
    for point in lines(folder / "metrics.jsonl"):
        here = [row for row in rows if row["step"] == point["step"]]
        assert {name: sum(row["set"] == name for row in here) for name in counts} == counts
        assert len({(row["set"], row["id"]) for row in here}) == 26
        forget = [row for row in here if row["set"] == "forget"]
        assert sum(row["avg_nll"] for row in forget) / 6 == pytest.approx(point["own/forget/avg_nll"])
        assert sum(row["rouge_l_recall"] for row in forget) / 6 == pytest.approx(point["own/forget/rouge_l_recall"])
        assert all(row["question"] and row["answer"] and len(row["perturbed_nll"]) == 3 for row in forget)
    assert len(rows) == 3 * 26
    starting = [row for row in rows if row["step"] == 0 and row["set"] == "forget"]
    assert sum(row["generation"] == row["answer"] for row in starting) >= 3, "the target knows what is to be forgotten"


def test_retain_is_split_into_rows_that_are_normals_and_rows_that_are_not(
    run_folder: tuple[Path, UnlearningCLI],
) -> None:
    """Of the run's own groups, by content, and never a reserved row."""
    folder, _ = run_folder
    groups = lines(folder / "pairs.jsonl")
    drawn = {normal["id"].split("/")[-1] for group in groups for normal in group["normals"]}
    rows = all_rows(folder)
    reserved = {row["id"] for row in rows if row["set"] == "retain_unseen"}
    for point in lines(folder / "metrics.jsonl"):
        retain = [row for row in rows if row["step"] == point["step"] and row["set"] == "retain"]
        normals = [row for row in retain if row["normal"]]
        assert {row["id"].split("/")[-1] for row in normals} == {row["id"].split("/")[-1] for row in retain} & drawn
        assert normals and not {row["id"] for row in normals} & reserved and len(normals) < len(retain)
        for part in ("probability", "rouge_l_recall", "exact_memorization", "extraction_strength"):
            mean = sum(row[part] for row in normals) / len(normals)
            assert point[f"own/retain_normals/{part}"] == pytest.approx(mean), part


def test_tensorboard_has_the_training_curves_and_the_evaluations(run_folder: tuple[Path, UnlearningCLI]) -> None:
    folder, _ = run_folder
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/forget_nll", "train/normal_nll", "own/model_utility"} <= scalars
    assert len(events.Scalars("train/loss")) == 4
    assert [event.step for event in events.Scalars("own/forget/avg_nll")] == [0, 2, 4]
    for event, nll, normal in zip(
        events.Scalars("train/loss"),
        events.Scalars("train/forget_nll"),
        events.Scalars("train/normal_nll"),
        strict=True,
    ):
        assert event.value == pytest.approx(-4 * nll.value + 3 * normal.value, abs=1e-4), (
            "r = −4, K = 4: weights −4, 3·1"
        )


def test_the_model_folder_is_the_model(
    run_folder: tuple[Path, UnlearningCLI], own_root: Path, own_target: Path
) -> None:
    folder, run = run_folder
    records = OwnData("forget.jsonl", "retain.jsonl").load(str(own_root)).training["forget"]

    def nll(model: Any, tokenizer: Any) -> torch.Tensor:
        encoder = Encoder(tokenizer, PlainTemplate(), 160)
        batch = collate([[encoder.encode(record.question, record.answer)] for record in records])
        with torch.no_grad():
            return sequence_nll(model.eval(), batch)[:, 0]

    loaded = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    found = nll(loaded, AutoTokenizer.from_pretrained(folder / "model"))
    assert torch.equal(found, nll(run.model.model, run.datamodule.tokenizer))
    last = lines(folder / "metrics.jsonl")[-1]
    assert found.mean().item() == pytest.approx(last["own/forget/avg_nll"], abs=1e-5)
    before = AutoModelForCausalLM.from_pretrained(own_target / "model", dtype=torch.float32)
    assert (nll(before, run.datamodule.tokenizer) - found).abs().max() > 0.01


def test_evaluation_rows_thin_out_every_set_but_not_in_sga_test(
    unlearn_options: list[str], fit: Fit, tmp_path: Path
) -> None:
    fit(tmp_path / "run", "--data.evaluation_rows=3", "--trainer.max_epochs=1")
    step = [row for row in all_rows(tmp_path / "run") if row["step"] == 0]
    assert [row["id"] for row in step if row["set"] == "retain"] == ["retain/0", "retain/3", "retain/6"]
    assert sum(row["set"] == "world_facts" for row in step) == 2
    without_loss = [option for option in unlearn_options if "model.loss" not in option and "optimizer" not in option]
    run_verb(
        ["test", *without_loss, f"--run.folder={tmp_path / 'run'}", "--data.evaluation_rows=3", "--ckpt_path=last"]
    )
    tested = all_rows(tmp_path / "run" / "test")
    assert len(tested) == 26
    assert set(files(tmp_path / "run" / "test")) == {
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "rows/000000.jsonl",
        "run.json",
    }
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2, "the run's own evaluations stay"


@pytest.fixture
def evaluate_options(unlearn_options: list[str], own_reference: Path) -> list[str]:
    """Options of validate, test and predict: those of the run without loss, optimiser, length and model."""
    training = ("--model.", "--trainer.max_epochs", "--data.batch_size")
    return [option for option in unlearn_options if not option.startswith(training)] + [
        f"--evaluation.reference={own_reference}",
        "--model.language_model=sga.Pretrained",
    ]


def test_validating_the_exported_model_gives_the_last_evaluation_of_the_run(
    run_folder: tuple[Path, UnlearningCLI], evaluate_options: list[str], tmp_path: Path
) -> None:
    folder, _ = run_folder
    run_verb(
        [
            "validate",
            *evaluate_options,
            f"--model.language_model.name_or_path={folder}",
            f"--run.folder={tmp_path / 'v'}",
        ]
    )
    [found] = metrics(tmp_path / "v")
    *_, expected = metrics(folder)
    of_the_start = {f"own/composite/{part}" for part in ("relative_utility", "ngram_fluency", "utility", "overall")}
    assert found.keys() == expected.keys() - of_the_start, "only a training run knows its starting model"
    for name, value in expected.items():
        if name not in {"step", "epoch"} | of_the_start:
            assert found[name] == pytest.approx(value, rel=1e-6), name
    first = metrics(folder)[0]
    assert found["own/forget/avg_nll"] != pytest.approx(first["own/forget/avg_nll"], rel=1e-3)


def test_validating_a_checkpoint_in_its_run_folder_does_not_destroy_the_run(
    run_folder: tuple[Path, UnlearningCLI], evaluate_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """`--ckpt_path last` means the checkpoint of --run.folder, so a user may try this: refused, with what to do."""
    folder = tmp_path / "copy"
    shutil.copytree(run_folder[0], folder)
    kept = ("metrics.jsonl", "rows/000004.jsonl", "pairs.jsonl", "config.yaml", "run.json")
    before = {name: (folder / name).read_bytes() for name in kept}
    options = ["validate", *evaluate_options, f"--model.language_model.name_or_path={own_target}"]
    with pytest.raises(UserError, match="holds a training run"):
        run_verb([*options, f"--run.folder={folder}", "--ckpt_path=last"])
    assert {name: (folder / name).read_bytes() for name in kept} == before
    run_verb([*options, f"--run.folder={tmp_path / 'own'}", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"])
    [point] = lines(tmp_path / "own" / "metrics.jsonl")
    last = lines(folder / "metrics.jsonl")[-1]
    assert point["perplexity/forget/log"] == pytest.approx(last["perplexity/forget/log"], rel=1e-6)


def test_a_run_that_ends_within_an_epoch_is_evaluated_where_it_ended(fit: Fit, tmp_path: Path) -> None:
    """Otherwise metrics.json describes weights that are not those in model/."""
    run = fit(tmp_path / "run", "--data.batch_size=2", "--trainer.max_steps=4", "--model_utility.generate=false")
    assert run.trainer.global_step == 4
    assert metrics(tmp_path / "run")[-1]["step"] == 4
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 4


def test_predict_writes_greedy_answers(
    run_folder: tuple[Path, UnlearningCLI], evaluate_options: list[str], tmp_path: Path, own_target: Path
) -> None:
    run_verb(
        [
            "predict",
            *evaluate_options,
            f"--model.language_model.name_or_path={own_target}",
            f"--run.folder={tmp_path / 'p'}",
            "--data.predict_sets=[forget,world_facts]",
        ]
    )
    found = lines(tmp_path / "p" / "predictions.jsonl")
    assert [(line["set"], line["id"]) for line in found] == [
        *(("forget", f"forget/{index}") for index in range(6)),
        *(("world_facts", f"world_facts/{index}") for index in range(2)),
    ]
    assert sum(line["generation"] == line["answer"] for line in found) >= 5
    assert all(set(line) == {"set", "id", "question", "answer", "generation"} for line in found)
    with pytest.raises(UserError, match="predict_sets names nonsense, but the evaluation sets are forget"):
        run_verb(
            [
                "predict",
                *evaluate_options,
                f"--model.language_model.name_or_path={own_target}",
                f"--run.folder={tmp_path / 'q'}",
                "--data.predict_sets=[nonsense]",
            ]
        )


# ---- texts ----------------------------------------------------------------------------------------------------------


def telling(folder: Path, texts: set[str]) -> set[tuple[str, str]]:
    """(file, text) of every text that stands in a file; checkpoints and the model itself are left out."""
    found = set()
    for path in folder.rglob("*"):
        part = path.relative_to(folder).parts[0]
        if path.is_file() and part not in ("checkpoints", "model"):
            content = path.read_bytes()
            readable = content.decode("utf-8", errors="ignore").replace("\\", "")
            found |= {(str(path.relative_to(folder)), text) for text in texts if text in readable}
    return found


@pytest.fixture
def all_texts(own_root: Path, run_folder: tuple[Path, UnlearningCLI]) -> set[str]:
    """Everything that is said in the data, and the answers that the model generated."""
    sets = ("forget", "retain", "holdout", "real_authors", "world_facts")
    benchmark = OwnData(*(f"{name}.jsonl" for name in sets)).load(str(own_root))
    texts = {row["generation"] for row in all_rows(run_folder[0]) if "generation" in row}
    for records in benchmark.evaluation.values():
        for record in records:
            texts |= {record.question, record.answer, record.paraphrased_answer or "", *record.perturbed_answers}
    return {text for text in texts if len(text) > 9 or text in ("Shakespeare", "Goethe", "Tehran")}


def test_without_texts_a_run_folder_holds_hashes_and_numbers_only(
    fit: Fit,
    run_folder: tuple[Path, UnlearningCLI],
    all_texts: set[str],
    own_reference: Path,
    evaluate_options: list[str],
    own_target: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "silent"
    fit(folder, "--run.texts=false", f"--evaluation.reference={own_reference}", "--checkpoint.keep_epochs=true")
    run_verb(
        [
            "test",
            *evaluate_options,
            f"--model.language_model.name_or_path={own_target}",
            f"--run.folder={folder}",
            "--run.texts=false",
        ]
    )
    assert len(all_texts) > 80
    told = telling(run_folder[0], all_texts)
    assert {name.split("/")[0] for name, _ in told} == {"rows", "pairs.jsonl", "tensorboard"}, "negative control"
    assert telling(folder, all_texts) == set()
    assert metrics(folder) == metrics(run_folder[0]), "the numbers are the same"
    rows = all_rows(folder)
    assert all(len(row["sha256"]) == 16 and "question" not in row and "generation" not in row for row in rows)


def test_without_texts_predictions_keep_none_either(
    all_texts: set[str], evaluate_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """Written without texts or refused: both are fine, texts in the folder are not."""
    with contextlib.suppress(UserError):
        run_verb(
            [
                "predict",
                *evaluate_options,
                f"--model.language_model.name_or_path={own_target}",
                f"--run.folder={tmp_path / 'p'}",
                "--run.texts=false",
            ]
        )
    assert telling(tmp_path, all_texts) == set()


def test_a_resumed_run_without_texts_finds_its_pairing(fit: Fit, tmp_path: Path) -> None:
    options = ("--run.texts=false", "--data.pairing=sga.RandomNormals", "--model.schedule=ConstantSchedule", *SHORT)
    fit(tmp_path / "run", *options)
    before = (tmp_path / "run" / "pairs.jsonl").read_bytes()
    fit(tmp_path / "run", *options, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert (tmp_path / "run" / "pairs.jsonl").read_bytes() == before
    assert [point["step"] for point in metrics(tmp_path / "run")] == [0, 2, 4, 6]


def test_a_pairing_of_the_user_s_is_taken(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "a", "--data.pairing=sga.RandomNormals", *SHORT)
    pairs = tmp_path / "a" / "pairs.jsonl"
    run = fit(tmp_path / "b", f"--data.pairs={pairs}", *SHORT)
    assert lines(tmp_path / "b" / "pairs.jsonl") == lines(pairs)
    fit(tmp_path / "c", *SHORT)
    assert lines(tmp_path / "c" / "pairs.jsonl") != lines(pairs), "the default pairing is another"
    assert [callback for callback in run.trainer.callbacks if isinstance(callback, RunFiles)]
