"""Rules that choose and end: by hand, in whole runs that diverge, and in runs that are killed around a decision."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from sga.callbacks import checkpoints, stopping
from sga.callbacks.checkpoints import RunCheckpoints
from sga.callbacks.handover import FitToHandOver
from sga.callbacks.rules import (
    BestForgetQuality,
    FailureSignatures,
    ForgetNLLReached,
    Point,
    StoppingRule,
    Verdict,
)
from sga.callbacks.stopping import Stopping
from sga.cli import UnlearningCLI, run_verb
from sga.errors import UserError
from sga.report.page import write_report
from sga.runs.folder import load_run

Fit = Callable[..., UnlearningCLI]

# ---- rules by hand --------------------------------------------------------------------------------------------------


def points(*metrics: dict[str, float]) -> list[Point]:
    """Evaluations at steps 0, 1, 2, …"""
    return [Point(step, values) for step, values in enumerate(metrics)]


def follow(rule: StoppingRule, sequence: Sequence[Point]) -> tuple[int | None, int | None]:
    """Steps of the chosen evaluation and of the one that ended the run."""
    chosen = None
    for point in sequence:
        verdict = rule.judge(point, sequence[0], chosen)
        chosen = point if verdict.choose else chosen
        if verdict.stop is not None:
            return None if chosen is None else chosen.step, point.step
    return None if chosen is None else chosen.step, None


TRADE_OFF = points(
    *(
        {"model_utility_unseen": utility, "forget_quality_log10": quality}
        for utility, quality in ((0.80, -6.0), (0.78, -4.0), (0.74, -2.0), (0.60, -0.1), (0.75, -1.5), (0.73, -3.0))
    )
)


@pytest.mark.parametrize(
    ("rule", "chosen", "ended"),
    [
        (BestForgetQuality(0.9), 4, None),  # budget 0.72: all but step 3
        (BestForgetQuality(0.7), 3, None),  # budget 0.56: all
        (BestForgetQuality(1.0), 0, None),  # nothing but the starting model keeps all of its utility
        (BestForgetQuality(0.9, stop_below_budget=True), 2, 3),
    ],
)
def test_the_best_forget_quality_within_the_budget(rule: StoppingRule, chosen: int, ended: int | None) -> None:
    assert follow(rule, TRADE_OFF) == (chosen, ended)


def test_of_equal_forget_quality_the_higher_utility_and_of_equals_the_earlier() -> None:
    of = {"forget_quality_log10": -2.0}
    assert follow(BestForgetQuality(0.5), points(*({"model_utility_unseen": u} | of for u in (0.5, 0.6, 0.6)))) == (
        1,
        None,
    )


@pytest.mark.parametrize(
    ("nlls", "chosen", "ended"),
    [
        ((0.1, 0.9, 2.5, 9.0), 2, 2),  # 0.5 above is nearer than 1.1 below
        ((0.1, 0.9, 3.5, 9.0), 1, 2),  # 1.5 above is not: rolled back
        ((0.1, 0.9, 2.0), 2, 2),  # reached exactly
        ((0.1, 1.5, 0.9), 1, None),  # never reached
        ((2.1, 3.0), 0, 0),  # nothing to unlearn
    ],
)
def test_the_forget_nll_of_the_reference(nlls: Sequence[float], chosen: int, ended: int | None) -> None:
    sequence = points(*({"forget_nll": nll, "reference_forget_nll": 2.0} for nll in nlls))
    assert follow(ForgetNLLReached(), sequence) == (chosen, ended)


def failing(**changes: float) -> list[Point]:
    """Healthy, healthy, and then with some metrics changed."""
    healthy = {
        "model_utility_unseen": 0.6,
        "forget_quality_log10": -6.0,  # low, but on the side where there is more to unlearn
        "forget_nll": 0.5,
        "reference_forget_nll": 2.0,
        "perplexity/normal/log": 1.0,
        "privleak": -80.0,
    }
    return points(healthy, healthy, healthy | {name.replace("__", "/"): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("rule", "changes", "ends"),
    [
        (FailureSignatures(), {"perplexity__normal__log": math.log(1.01e10)}, True),
        (FailureSignatures(), {"perplexity__normal__log": math.log(0.99e10)}, False),
        (FailureSignatures(), {"perplexity__normal__log": 5000.0}, True),  # no float holds e^5000
        (FailureSignatures(), {"model_utility_unseen": 0.39}, True),
        (FailureSignatures(model_utility=None), {"model_utility_unseen": 0.0}, False),
        (FailureSignatures(normal_perplexity=None), {"perplexity__normal__log": 5000.0}, False),
        (FailureSignatures(), {"forget_nll": 30.0, "privleak": 90.0}, False),  # not looked at by default
        (FailureSignatures(forget_quality=0.01), {"forget_nll": 30.0}, True),
        (FailureSignatures(forget_quality=0.01), {"forget_nll": 30.0, "forget_quality_log10": -1.9}, False),
        (FailureSignatures(privleak=20.0), {"privleak": 21.0}, True),
        (FailureSignatures(privleak=20.0), {"privleak": 19.0}, False),
    ],
)
def test_failure_signatures(rule: StoppingRule, changes: dict[str, float], ends: bool) -> None:
    assert follow(rule, failing(**changes)) == ((1, 2) if ends else (2, None))


def test_every_signature_is_named_and_a_bad_start_is_never_chosen() -> None:
    start = Point(0, {"model_utility_unseen": 0.1, "perplexity/normal/log": 50.0})
    verdict = FailureSignatures().judge(start, start, None)
    assert not verdict.choose
    assert verdict.stop == ("perplexity on normal text is e^50.0, above 1e+10; model utility 0.100 is below 0.4")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: BestForgetQuality(0.0), "utility_share must be above 0 and at most 1, got 0.0"),
        (lambda: BestForgetQuality(1.1), "utility_share must be above 0 and at most 1, got 1.1"),
        (lambda: FailureSignatures(0.5), "normal_perplexity must be above 1, got 0.5"),
        (lambda: FailureSignatures(model_utility=40.0), "model_utility must be above 0 and below 1, got 40.0"),
        (lambda: FailureSignatures(privleak=-1.0), "privleak must be at least 0, got -1.0"),
        (lambda: FailureSignatures(None, None), "looks at no signature"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], StoppingRule], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        make()


def test_rules_need_what_they_read() -> None:
    """Each rule decides from the metrics that it names, and from nothing else."""
    for rule in (BestForgetQuality(), ForgetNLLReached(), FailureSignatures(), FailureSignatures(1e3, 0.2, 0.01, 0.0)):
        point = Point(0, dict.fromkeys(rule.needs(), -9.0))  # a low quality, so that its side is looked at
        assert isinstance(rule.judge(point, point, None), Verdict)
        for name in rule.needs():
            with pytest.raises(KeyError):
                lacking = Point(0, {key: value for key, value in point.metrics.items() if key != name})
                rule.judge(lacking, lacking, lacking)


# ---- whole runs -----------------------------------------------------------------------------------------------------

SHORT = ("--model_utility.generate=false", "--export.enabled=false")
DIVERGED = ("--stop.rule=FailureSignatures", "--stop.rule.model_utility=null", "--stop.rule.normal_perplexity=1e4")
"""1e4 in place of 1e10 is a matter of fewer steps."""


@pytest.fixture
def ascend(unlearn_options: list[str], own_reference: Path) -> Fit:
    """Runs gradient ascent at a rate at which it collapses; two steps an epoch."""
    loss = ("--model.loss.smoothing_rate", "--model.loss=")
    options = [option for option in unlearn_options if not option.startswith(loss)]

    def run(folder: Path, *more: str) -> UnlearningCLI:
        return run_verb(
            [
                "fit",
                *options,
                "--model.loss=sga.GradientAscent",
                "--model.optimizer.lr=1e-2",
                "--model.schedule=ConstantSchedule",
                "--trainer.max_epochs=8",
                "--evaluation.resamples=0",
                f"--evaluation.reference={own_reference}",
                f"--run.folder={folder}",
                *more,
            ]
        )

    return run


def evaluations(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    del found["seconds"]
    return found


def checkpoint(folder: Path, name: str = "best") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def assert_exported(folder: Path, step: int) -> None:
    """The model folder holds the weights of best.ckpt, to the bit, and these are of a step."""
    best = checkpoint(folder)
    exported = load_file(folder / "model" / "model.safetensors")
    assert best["global_step"] == step
    assert exported
    assert all(torch.equal(exported[name], best["state_dict"][f"model.{name}"]) for name in exported)


def test_a_run_that_diverges_is_ended_and_rolled_back(ascend: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = ascend(folder, *DIVERGED, "--model_utility.generate=false")
    *healthy, diverged = evaluations(folder)
    log = "perplexity/normal/log"
    assert len(healthy) >= 2, "it diverges after the first epoch"
    assert all(point[log] <= math.log(1e4) for point in healthy)
    assert diverged[log] > math.log(1e4)
    assert run.trainer.global_step == diverged["step"] < 16
    found = summary(folder)
    assert found["chosen"] == "last evaluation without a failure (perplexity on normal text above 10000)"
    assert found["because"] == "no sign of failure"
    assert found["stopped"].startswith(f"at step {diverged['step']}: perplexity on normal text is e^")
    assert {key: found[key] for key in healthy[-1]} == healthy[-1]
    assert_exported(folder, healthy[-1]["step"])
    assert checkpoint(folder, "last")["global_step"] == diverged["step"], "what a run goes on from is not rolled back"
    assert "optimizer_states" not in checkpoint(folder), "weights only"
    assert not [path for path in folder.rglob(".*")], "no temporary file is left"

    report = load_run(folder)
    assert report.chosen_step == healthy[-1]["step"]
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "last evaluation without a failure" in page
    assert found["stopped"] in page


def test_the_nearest_to_the_reference_s_nll_is_kept(ascend: Fit, own_reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ascend(folder, "--stop.rule=ForgetNLLReached", "--model_utility.generate=false")
    goal = summary(own_reference)["own/forget/avg_nll"]
    nlls = {point["step"]: point["own/forget/avg_nll"] for point in evaluations(folder)}
    *before, last = nlls
    assert nlls[last] >= goal > max(nlls[step] for step in before), "ended where it was reached"
    nearest = min(nlls, key=lambda step: abs(nlls[step] - goal))
    found = summary(folder)
    assert found["step"] == nearest
    assert found["stopped"].startswith(f"at step {last}: the forget nll has reached the reference's")
    assert found["because"] == f"forget nll {nlls[nearest]:.3f}, the reference's {goal:.3f}"
    assert_exported(folder, nearest)


def test_choosing_changes_nothing_but_the_result(ascend: Fit, tmp_path: Path, own_options: list[str]) -> None:
    """A rule that does not stop leaves training alone, to the bit; and `sga test` takes what it chose."""
    free, ruled = tmp_path / "free", tmp_path / "ruled"
    options = ("--trainer.max_epochs=6", "--model.optimizer.lr=1e-3")  # slower, to pass through a trade-off
    ascend(free, *options)
    ascend(ruled, *options, "--stop.rule=BestForgetQuality", "--stop.rule.utility_share=0.8")
    assert evaluations(free) == evaluations(ruled)
    ours, theirs = (checkpoint(folder, "last")["state_dict"] for folder in (ruled, free))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    assert not (free / "checkpoints" / "best.ckpt").exists()
    assert summary(free)["chosen"] == "the last evaluation"
    assert not {"because", "stopped"} & summary(free).keys()
    exported = load_file(free / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], theirs[f"model.{name}"]) for name in exported)

    start, *_ = points_of = evaluations(ruled)
    affordable = [p for p in points_of if p["own/model_utility_unseen"] >= 0.8 * start["own/model_utility_unseen"]]
    assert len(affordable) < len(points_of), "the budget rules something out"
    best = max(affordable, key=lambda p: (p["own/forget_quality_log10"], p["own/model_utility_unseen"], -p["step"]))
    found = summary(ruled)
    assert found["chosen"] == "best forget quality with at least 0.8 of the starting model's utility"
    assert {key: found[key] for key in best} == best
    assert 0 < best["step"] < points_of[-1]["step"], "neither the first nor the last"
    assert "stopped" not in found
    assert found["frontier_area"] == summary(free)["frontier_area"], "of all evaluations"
    assert_exported(ruled, best["step"])

    run_verb(
        [
            "test",
            *own_options,
            "--evaluation.resamples=0",
            f"--run.folder={ruled}",
            "--model.language_model=Pretrained",
            f"--model.language_model.name_or_path={free}",
        ]
    )
    assert json.loads((ruled / "test" / "run.json").read_text())["checkpoint"].endswith("best.ckpt")
    tested = summary(ruled / "test")
    assert tested["perplexity/forget/log"] == pytest.approx(best["perplexity/forget/log"], rel=1e-6)


def test_without_an_evaluation_that_qualifies_the_last_one_stays_the_result(ascend: Fit, tmp_path: Path) -> None:
    """The starting model is over the threshold already: nothing is trained, and nothing is called a choice."""
    folder = tmp_path / "run"
    run = ascend(folder, "--stop.rule=FailureSignatures", "--stop.rule.model_utility=0.999")
    assert run.trainer.global_step == 0
    found = summary(folder)
    assert (found["step"], found["chosen"]) == (0, "the last evaluation")
    assert found["because"].startswith("no evaluation qualifies as last evaluation without a failure")
    assert found["stopped"].startswith("at step 0: model utility")
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert (folder / "model" / "model.safetensors").is_file()


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            "--stop.rule=BestForgetQuality --evaluation.reference=null",
            "BestForgetQuality decides by forget_quality_log10, which is absent: there is no reference",
        ),
        ("--stop.rule=ForgetNLLReached --evaluation.reference=null", "by reference_forget_nll, which is absent"),
        ("--stop.rule=FailureSignatures --model_utility.generate=false", "by model_utility_unseen, which is absent"),
        (
            "--stop.rule=FailureSignatures --data.reserved=0",
            "by model_utility_unseen, which is absent: no retain row is reserved",
        ),
        (
            "--stop.rule=FailureSignatures --data.group_size=1",
            "by perplexity/normal/log, which is absent: these groups have no normal samples",
        ),
        ("--stop.rule=BestForgetQuality --trainer.num_sanity_val_steps=0", "needs the evaluation before the first"),
    ],
)
def test_a_rule_without_its_metric_is_refused_before_anything_is_written(
    ascend: Fit, tmp_path: Path, options: str, named: str
) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        ascend(tmp_path / "run", *options.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_only_an_evaluation_can_tell_is_refused_before_the_first_step(
    ascend: Fit, tmp_path: Path, own_options: list[str]
) -> None:
    with pytest.raises(UserError, match=r"decides by privleak, which is absent: \w+"):
        ascend(
            tmp_path / "run", "--stop.rule=FailureSignatures", "--stop.rule.privleak=5", "--data.source.holdout=null"
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_does_not_go_on_under_another_rule_or_from_weights_alone(ascend: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ascend(folder, *DIVERGED, *SHORT)
    with pytest.raises(UserError, match=r"stop\.rule: .* before, None now"):
        ascend(folder, *SHORT, "--ckpt_path=last")
    for name in ("best", str(folder / "checkpoints" / "best.ckpt")):
        with pytest.raises(UserError, match=r"best\.ckpt holds weights only"):
            ascend(folder, *DIVERGED, *SHORT, f"--ckpt_path={name}")


@pytest.mark.parametrize(
    ("rule", "lacking"),
    [(FitToHandOver(), "handover/all/rows"), (BestForgetQuality(), "model_utility_unseen")],
)
def test_a_start_that_was_not_measured_for_the_rule_is_refused_when_it_is_loaded(
    rule: StoppingRule, lacking: str
) -> None:
    state = {"rule": repr(ForgetNLLReached()), "choice": None, "stopped": None}
    named = f"compares with {lacking} of the starting model, which the run did not measure under ForgetNLLReached()"
    with pytest.raises(UserError, match=re.escape(named)):
        Stopping(rule).load_state_dict(state | {"start": {"step": 0, "metrics": {"forget_nll": 0.1}}})
    Stopping(rule).load_state_dict(state | {"start": {"step": 0, "metrics": {lacking: 1.0}}})
    Stopping(ForgetNLLReached()).load_state_dict(state | {"start": {"step": 0, "metrics": {"forget_nll": 0.1}}})


# ---- going on -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A copy of the run folder right after a checkpoint was written: what a kill there leaves."""

    folder: Path
    name: str
    step: int


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    found: list[Snapshot] = []
    save = checkpoints.save

    def save_and_copy(trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        save(trainer, name, weights_only)
        folder = Path(trainer.default_root_dir)
        copy = folder.with_name(f"{folder.name}-{len(found)}")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tensorboard"))
        found.append(Snapshot(copy, name, trainer.global_step))

    monkeypatch.setattr(checkpoints, "save", save_and_copy)
    monkeypatch.setattr(stopping, "save", save_and_copy)
    return found


def assert_same_end(folder: Path, whole: Path) -> None:
    assert summary(folder) == summary(whole)
    assert evaluations(folder) == evaluations(whole)
    ours, theirs = (checkpoint(path) for path in (folder, whole))
    assert ours["global_step"] == theirs["global_step"]
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert checkpoint(folder, "last")["global_step"] == checkpoint(whole, "last")["global_step"]


EVERY_STEP = "--checkpoint.every_n_steps=1"
WITHIN_EPOCHS = ("--data.batch_size=1", "--trainer.val_check_interval=4", "--model.optimizer.lr=3e-3")
"""Six steps an epoch, an evaluation after its fourth and a checkpoint at its end."""


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param((*DIVERGED, EVERY_STEP), marks=pytest.mark.slow),
        ("--stop.rule=ForgetNLLReached", EVERY_STEP),
        ("--stop.rule=ForgetNLLReached", *WITHIN_EPOCHS),
    ],
)
def test_a_run_killed_after_any_checkpoint_ends_as_the_whole_one(
    ascend: Fit, tmp_path: Path, snapshots: list[Snapshot], rule: tuple[str, ...]
) -> None:
    """Also between the choice and the next checkpoint, and after the decision to stop."""
    options = (*rule, "--model_utility.generate=false")
    whole = tmp_path / "whole"
    ascend(whole, *options)
    taken = list(snapshots)
    assert {snapshot.name for snapshot in taken} == {"best", "last"}
    assert taken[-1].step == evaluations(whole)[-1]["step"]
    assert summary(whole)["stopped"]
    for snapshot in taken:
        ascend(snapshot.folder, *options, "--ckpt_path=last")
        assert_same_end(snapshot.folder, whole)


def test_weights_that_the_state_does_not_know_are_not_taken_for_the_chosen_ones(
    ascend: Fit, tmp_path: Path, snapshots: list[Snapshot]
) -> None:
    """Where a run does not repeat itself, a best.ckpt that is ahead of the state must go."""
    options = ("--stop.rule=BestForgetQuality", "--stop.rule.utility_share=1", "--trainer.max_epochs=2")
    whole = tmp_path / "whole"
    ascend(whole, *options)
    assert summary(whole)["step"] == 0, "nothing after the start is within the budget"
    first = next(snapshot for snapshot in snapshots if snapshot.name == "last")
    ahead = checkpoint(first.folder) | {"global_step": 77}
    torch.save(ahead, first.folder / "checkpoints" / "best.ckpt")
    ascend(first.folder, *options, "--ckpt_path=last")
    found = summary(first.folder)
    assert (found["step"], found["chosen"]) == (4, "the last evaluation")
    assert not (first.folder / "checkpoints" / "best.ckpt").exists()


def test_a_damaged_choice_is_said(ascend: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the run's end, where it is read, and where a run goes on; without the file the rule goes on too."""
    options = ("--stop.rule=BestForgetQuality", "--stop.rule.utility_share=1", "--trainer.max_epochs=2")
    folder = tmp_path / "run"
    best = folder / "checkpoints" / "best.ckpt"
    method = RunCheckpoints._save_last

    def save_and_damage(self: RunCheckpoints, trainer: pl.Trainer) -> None:
        method(self, trainer)
        if trainer.global_step == 4:
            content = best.read_bytes()
            middle = len(content) // 2
            best.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "_save_last", save_and_damage)
        with pytest.raises(UserError, match=r"best\.ckpt is damaged or gone, and the weights of the chosen step 0"):
            ascend(folder, *options)
    more = (*options, "--trainer.max_epochs=3", "--ckpt_path=last")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged, and with it the weights .* of step 0"):
        ascend(folder, *more)
    best.unlink()
    ascend(folder, *more)
    assert summary(folder)["step"] == 6


# ---- without a rule -------------------------------------------------------------------------------------------------


def test_the_last_good_checkpoint_outlives_divergence(
    ascend: Fit, tmp_path: Path, snapshots: list[Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "DIVERGED", math.log(1e4))
    whole = tmp_path / "whole"
    ascend(whole, *SHORT)
    good = [point["step"] for point in evaluations(whole) if point["perplexity/normal/log"] <= math.log(1e4)]
    last = evaluations(whole)[-1]["step"]
    assert 0 < good[-1] < last == 16
    assert checkpoint(whole, "good")["global_step"] == good[-1]
    assert "optimizer_states" in checkpoint(whole, "good"), "a run can go on from it"
    assert checkpoint(whole, "last")["global_step"] == last
    for snapshot in list(snapshots):
        assert (snapshot.folder / "checkpoints" / "good.ckpt").exists() == (snapshot.step > good[-1])
        if abs(snapshot.step - good[-1]) <= 2:  # the one before the last good one, itself, and the one after it
            ascend(snapshot.folder, *SHORT, "--ckpt_path=last")
            assert checkpoint(snapshot.folder, "good")["global_step"] == good[-1]
    shutil.copytree(whole, tmp_path / "back")
    ascend(tmp_path / "back", *SHORT, f"--ckpt_path={tmp_path / 'back' / 'checkpoints' / 'good.ckpt'}")
    assert evaluations(tmp_path / "back") == evaluations(whole), "the same way down again"
    assert checkpoint(tmp_path / "back", "good")["global_step"] == good[-1]


def test_a_run_that_goes_well_has_one_checkpoint(ascend: Fit, tmp_path: Path, snapshots: list[Snapshot]) -> None:
    """Within an epoch the last evaluated one is kept beside the newest; at its end there is one again."""
    options = (*SHORT, "--model.optimizer.lr=0", "--trainer.max_epochs=2", "--checkpoint.every_n_steps=1")
    ascend(tmp_path / "run", *options)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert [snapshot.step for snapshot in snapshots] == [1, 2, 3, 4]
    within = snapshots[2].folder
    assert checkpoint(within, "good")["global_step"] == 2
    assert checkpoint(within, "last")["global_step"] == 3
    ascend(tmp_path / "without", *options, "--checkpoint.keep_good=false")
    assert not (snapshots[-2].folder / "checkpoints" / "good.ckpt").exists()


# ---- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_decide_alike(
    unlearn_options: list[str], own_reference: Path, tmp_path: Path, strategy: str
) -> None:
    """Ended at the same step as one process, rolled back to the same one, and resumed to the same end."""
    options = [option for option in unlearn_options if not option.startswith(("--model.loss", "--trainer.max_epochs"))]
    options += ["--model.loss=sga.GradientAscent", "--model.optimizer.lr=1e-2", "--model.schedule=ConstantSchedule"]
    options += ["--trainer.max_epochs=8", "--model_utility.generate=false", "--stop.rule=ForgetNLLReached"]
    options += [f"--evaluation.reference={own_reference}"]
    one, two = tmp_path / "one", tmp_path / "two"
    processes = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    for folder, *more in ((one,), (two, *processes), (two, *processes, "--ckpt_path=last")):
        done = subprocess.run(
            [sys.executable, "-m", "sga", "fit", *options, f"--run.folder={folder}", *more],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found, expected = summary(folder), summary(one)
        assert found["step"] == expected["step"]
        assert found["stopped"].split(":")[0] == expected["stopped"].split(":")[0]
        assert found["own/forget/avg_nll"] == pytest.approx(expected["own/forget/avg_nll"], rel=1e-3)
        assert_exported(folder, expected["step"])
