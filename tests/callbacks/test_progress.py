"""How a run is followed while it is under way, and compared afterwards: lines, the bar, TensorBoard."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from rich.progress import Progress, TaskID
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from sga.callbacks.progress import ProgressLines, RunClock, RunProgressBar
from sga.cli import UnlearningCLI, configured_cli, run_verb
from sga.files import read_json_object

SHORT = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null", "--data.batch_size=2")
Fit = Callable[..., UnlearningCLI]


@pytest.fixture
def fit(unlearn_options: list[str], tmp_path: Path) -> Fit:
    """Three steps an epoch, two epochs."""
    return lambda *options: run_verb(["fit", *unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}", *options])


# ---- lines ----------------------------------------------------------------------------------------------------------


def lines(printed: str) -> list[str]:
    """What begins a line of progress, and whether the time that is left stands at its end."""
    found = re.findall(r"^(evaluation before training|step \d+ of \d+, epoch [\d.]+: \w+)(.*)$", printed, re.MULTILINE)
    return [f"{start}{' …' if re.search(r', about .* left$', rest) else ''}" for start, rest in found]


def test_each_epoch_and_evaluation_is_a_line(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    printed = capsys.readouterr().out
    assert lines(printed) == [
        "evaluation before training",
        "step 0 of 6, epoch 0: evaluation",
        "step 3 of 6, epoch 1: train …",
        "step 3 of 6, epoch 1: evaluation …",
        "step 6 of 6, epoch 2: train",
        "step 6 of 6, epoch 2: evaluation",
    ]
    assert re.search(r"epoch 1: train/loss -?[\d.]+, \d+ s of training, about \d+ s left$", printed, re.MULTILINE)
    assert re.search(r"evaluation: own/forget/avg_nll [\d.]+, .*perplexity/normal/log [\d.]+, \d+ s", printed)
    assert "anity" not in printed


def test_a_resumed_run_counts_from_its_own_step(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    capsys.readouterr()
    fit("--ckpt_path=last", "--trainer.max_epochs=4", "--data.micro_batch_size=null")
    assert lines(capsys.readouterr().out) == [
        "step 9 of 12, epoch 3: train …",
        "step 9 of 12, epoch 3: evaluation …",
        "step 12 of 12, epoch 4: train",
        "step 12 of 12, epoch 4: evaluation",
    ]


def test_the_time_that_is_left_has_the_evaluations_in_it() -> None:
    """100 of 400 steps at 2 s, an epoch of 50 steps of 2 passes with 2 evaluations of 30 s each."""
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accumulate_grad_batches=2, accelerator="cpu")
    trainer.fit_loop.max_batches, trainer.val_check_batch, trainer.check_val_every_n_epoch = 100, 50, 1
    one = RunClock()
    one._training, one._evaluation, one._first_step = 200.0, 30.0, 0
    assert one.left(trainer, 100, 400) == 300 * 2 + 6 * 2 * 30
    assert one.left(trainer, 0, 400) is one.left(trainer, 400, 400) is None


# ---- the bar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "options", "kind"),
    [
        (True, ("--trainer.enable_progress_bar=true",), RunProgressBar),
        (True, (), ProgressLines),  # switched off by the tests' own options
        (False, ("--trainer.enable_progress_bar=true",), ProgressLines),
        (
            False,
            (
                "--trainer.enable_progress_bar=true",
                "--trainer.callbacks=lightning.pytorch.callbacks.TQDMProgressBar",
            ),
            TQDMProgressBar,
        ),
    ],
)
def test_a_bar_is_for_terminals(
    terminal: bool, options: tuple[str, ...], kind: type, unlearn_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    callbacks: list[pl.Callback] = configured_cli([*unlearn_options, *options]).trainer.callbacks  # type: ignore[attr-defined]
    found = [callback for callback in callbacks if isinstance(callback, ProgressLines | ProgressBar)]
    assert [type(callback) for callback in found] == [kind]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float, str]]:
    """Description, steps, all steps, time left, whenever the bar is brought up to date."""
    shown: list[tuple[str, float, float, str]] = []
    update = Progress.update

    def noted(bar: Progress, task: TaskID, **fields: Any) -> None:
        shown.append((fields["description"], fields["completed"], fields["total"], fields["left"]))
        update(bar, task, **fields)

    monkeypatch.setattr(Progress, "update", noted)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    return shown


def test_there_is_one_bar_for_the_whole_run_with_the_time_that_is_left(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = drawn(monkeypatch)
    cli = fit("--trainer.enable_progress_bar=true")
    assert {total for _, _, total, _ in shown} == {6}, "steps of all epochs"
    assert [step for _, step, _, _ in shown] == sorted(step for _, step, _, _ in shown), "it never goes back"
    assert re.fullmatch(r"step 0 of 6, evaluation, batch 1 of \d+", shown[0][0])
    assert {step for _, step, _, left in shown if left} == {1, 2, 3, 4, 5}, "none before the first and at the end"
    assert all(re.fullmatch(r"about \d+ s left", left) for *_, left in shown if left)
    [bar] = [one for one in cli.trainer.callbacks if isinstance(one, RunProgressBar)]  # type: ignore[attr-defined]
    assert not bar._bar.live.is_started


def test_an_evaluation_alone_has_a_bar_of_its_batches(
    own_options: list[str], own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = drawn(monkeypatch)
    model = ("--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={own_target}")
    place = f"--run.folder={tmp_path / 'evaluated'}"
    run_verb(["validate", *own_options, *model, place, SHORT[0], SHORT[2], "--trainer.enable_progress_bar=true"])
    last = shown[-1]
    assert last[0] == f"validate: batch {last[2]:g} of {last[2]:g}" and last[1] == last[2] == len(shown)


def test_a_process_that_is_not_the_first_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = RunProgressBar()
    bar.disable()
    bar._show(pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu"), None)
    assert not bar._bar.live.is_started


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def test_runs_can_be_compared_by_their_settings_and_the_chosen_metrics(fit: Fit, tmp_path: Path) -> None:
    fit("--model.schedule=LinearSchedule")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(tags).session_start_info.hparams
    assert {name: value.string_value or value.number_value for name, value in settings.items()} == {
        "method": "SmoothedGradientAscent",
        "smoothing_rate": -4,
        "group_size": 4,
        "lr": 1e-3,
        "seed": 0,
    }
    chosen = read_json_object(tmp_path / "run" / "metrics.json")
    for name in ("own/forget/avg_nll", "perplexity/normal/log"):
        [point] = events.Scalars(f"final/{name}")
        assert point.value == pytest.approx(chosen[name], rel=1e-6)
        assert [one.step for one in events.Scalars(name)] == [0, 3, 6], "no point is added to the curves"
