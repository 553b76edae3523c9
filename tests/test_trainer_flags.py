"""Flags of Lightning's trainer: what a run with each of them does, or the sentence that refuses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer

from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.callbacks.evaluator import Evaluator
from sga.callbacks.run_files import RunFiles
from sga.cli import UnlearningCLI, run_verb
from sga.errors import UserError
from sga.models.pretrained import Pretrained

Points = list[tuple[int, float]]

WHOLE: Points = [(0, 0.0), (2, 1.0), (4, 2.0)]
"""Step and epoch of each evaluation of the run without any flag: two epochs of two steps."""

SHORT = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")


def run(options: list[str], folder: Path, flags: str, *more: str) -> UnlearningCLI:
    given = [f"--{flag}" if "." in flag.partition("=")[0] else f"--trainer.{flag}" for flag in flags.split()]
    return run_verb(["fit", *options, *SHORT, f"--run.folder={folder}", *given, *more])


def points(folder: Path) -> Points:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(point["step"], point["epoch"]) for point in found]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("num_sanity_val_steps=0", WHOLE[1:]),
        ("num_sanity_val_steps=2", WHOLE),
        ("num_sanity_val_steps=-1", WHOLE),
        ("limit_train_batches=1", [(0, 0.0), (1, 1.0), (2, 2.0)]),
        ("limit_train_batches=0.5", [(0, 0.0), (1, 1.0), (2, 2.0)]),
        ("limit_train_batches=1 data.micro_batch_size=2", [(0, 0.0), (1, 1.0), (2, 2.0)]),  # a step is two batches
        ("limit_train_batches=1.0", WHOLE),
        ("limit_train_batches=9", WHOLE),
        ("limit_val_batches=0", []),
        ("limit_val_batches=1.0", WHOLE),
        ("overfit_batches=1", [(0, 0.0), (1, 1.0), (2, 2.0)]),
        ("overfit_batches=0.5", [(0, 0.0), (1, 1.0), (2, 2.0)]),
        ("max_time=00:01:00:00", WHOLE),
        ("max_steps=3", [(0, 0.0), (2, 1.0), (3, 1.5)]),
        ("max_steps=3 max_epochs=-1", [(0, 0.0), (2, 1.0), (3, 1.5)]),
        ("max_steps=3 limit_train_batches=1 max_epochs=-1", [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]),
        ("val_check_interval=1", [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]),
        ("val_check_interval=0.5", [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]),
        ("val_check_interval=3 check_val_every_n_epoch=null", [(0, 0.0), (3, 1.5), (4, 2.0)]),
        ("check_val_every_n_epoch=2", [(0, 0.0), (4, 2.0)]),
        ("check_val_every_n_epoch=2 max_epochs=3", [(0, 0.0), (4, 2.0), (6, 3.0)]),
        ("accumulate_grad_batches=2 data.micro_batch_size=2", WHOLE),
        ("gradient_clip_val=0.5", WHOLE),
        ("precision=64-true", WHOLE),
        ("precision=bf16-mixed", WHOLE),
    ],
)
def test_a_flag_counts_steps_and_evaluates_as_it_says(
    unlearn_options: list[str], tmp_path: Path, flags: str, expected: Points
) -> None:
    """The schedule ends with the run: whatever the number of steps, it has come down to 0 after the last one."""
    done = run(unlearn_options, tmp_path / "run", flags)
    assert points(tmp_path / "run") == expected
    assert [group["lr"] for group in done.trainer.optimizers[0].param_groups] == [0.0]
    if expected:
        assert done.trainer.global_step == expected[-1][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("devices=2", WHOLE),
        ("devices=2 num_sanity_val_steps=2 limit_train_batches=1", [(0, 0.0), (1, 1.0), (2, 2.0)]),
        ("devices=2 fast_dev_run=true", []),
    ],
)
def test_flags_mean_the_same_on_two_devices(
    unlearn_options: list[str], tmp_path: Path, flags: str, expected: Points
) -> None:
    options = [*unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}", "--trainer.strategy=ddp"]
    given = [f"--trainer.{flag}" for flag in flags.split()]
    subprocess.run([sys.executable, "-m", "sga", "fit", *options, *given], check=True, timeout=300)
    assert points(tmp_path / "run") == expected


def test_the_warm_up_is_an_epoch_of_the_steps_that_there_are(unlearn_options: list[str], tmp_path: Path) -> None:
    """Three epochs of one step: the first at the peak, then down by halves."""
    done = run(unlearn_options, tmp_path / "run", "limit_train_batches=1 max_epochs=3")
    [schedule] = [one.scheduler for one in done.trainer.lr_scheduler_configs]
    assert [schedule.lr_lambdas[0](step) for step in range(4)] == [1.0, 1.0, 0.5, 0.0]  # type: ignore[union-attr]


def test_time_that_is_up_ends_a_run_with_an_evaluation(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step, that is within an epoch; with more time the run goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(Timer, "on_train_batch_end", lambda _, trainer, *__: setattr(trainer, "should_stop", True))
        run(unlearn_options, tmp_path / "run", "max_time=00:01:00:00")
    assert points(tmp_path / "run") == [(0, 0.0), (1, 0.5)]
    longer = run(unlearn_options, tmp_path / "run", "max_time=00:01:00:00", "--ckpt_path=last")
    assert points(tmp_path / "run") == [(0, 0.0), (1, 0.5), (2, 1.0), (4, 2.0)]
    whole = run(unlearn_options, tmp_path / "whole", "max_time=00:01:00:00").model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in longer.model.state_dict().items())


@pytest.mark.parametrize("killed", ["before", "after"])
def test_an_evaluation_at_the_checkpoint_s_step_is_neither_lost_nor_there_twice(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """A checkpoint within an epoch is written before the evaluation of its step: a kill may come on either side."""
    folder = tmp_path / "run"
    flags = "val_check_interval=1 checkpoint.every_n_steps=1"
    made: list[int] = []
    start, end = Evaluator.on_validation_start, RunFiles.on_validation_end

    def kill(self: object, trainer: pl.Trainer, *_: object) -> None:
        if killed == "after":
            end(self, trainer, *_)  # type: ignore[arg-type]
        if trainer.global_step == 1:
            raise MemoryError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(
            *((Evaluator, "on_validation_start") if killed == "before" else (RunFiles, "on_validation_end")), kill
        )
        with pytest.raises(MemoryError):
            run(unlearn_options, folder, f"{flags} num_sanity_val_steps=0")
    assert points(folder) == ([] if killed == "before" else [(1, 0.5)])

    def counted(self: Evaluator, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        made.append(trainer.global_step)
        start(self, trainer, module)

    monkeypatch.setattr(Evaluator, "on_validation_start", counted)
    resumed = run(unlearn_options, folder, flags, "--ckpt_path=last")
    assert points(folder) == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)] and made == [1, 2, 3, 4]
    whole = run(unlearn_options, tmp_path / "whole", flags).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.model.state_dict().items())
    made.clear()
    longer = run(unlearn_options, folder, f"{flags} max_epochs=3", "--ckpt_path=last")
    assert made == [5, 6] and longer.trainer.global_step == 6, "what the checkpoint has is not made again"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        *[(f"limit_val_batches={limit}", "--data.evaluation_rows") for limit in ("1", "2", "0.5")],
        ("limit_train_batches=0", "trains nothing"),
        ("limit_val_batches=0 stop.rule=sga.FailureSignatures", "leave out --trainer.limit_val_batches 0"),
        ("val_check_interval=5", "more than the 2 batches of an epoch"),
        ("accumulate_grad_batches=3", "contradicts batch_size"),
        ("gradient_clip_val=-1", "at least 0"),
        ("max_epochs=-1 max_time=00:01:00:00", "the length of the run"),
        ("num_sanity_val_steps=-2", "num_sanity_val_steps"),
        ("limit_train_batches=-1", "limit_train_batches"),
        ("overfit_batches=1.5", "overfit_batches"),
        ("precision=7", "precision"),
    ],
)
def test_a_flag_is_refused_before_a_model_is_loaded(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, said: str
) -> None:
    monkeypatch.setattr(Pretrained, "network", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises((UserError, SystemExit), match=re.escape(said) if "precision" not in said else None):
        run(unlearn_options, tmp_path / "run", flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_limited_evaluation_is_refused(own_options: list[str], own_target: Path, tmp_path: Path, verb: str) -> None:
    limit = {"validate": "val"}.get(verb, verb)
    model = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={own_target}"]
    with pytest.raises(UserError, match="evaluation_rows"):
        run_verb([verb, *own_options, *model, f"--run.folder={tmp_path / 'x'}", f"--trainer.limit_{limit}_batches=2"])


@pytest.mark.parametrize("flags", ["fast_dev_run=true", "fast_dev_run=2", "fast_dev_run=1 data.micro_batch_size=1"])
def test_a_fast_dev_run_trains_evaluates_and_leaves_nothing(
    unlearn_options: list[str], tmp_path: Path, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    tried = run(unlearn_options, folder, f"{flags} stop.rule=sga.FailureSignatures")
    assert tried.trainer.global_step == (2 if "=2" in flags else 1)
    assert not folder.exists() and "nothing of it is kept" in capsys.readouterr().out
    assert not Path(tried.trainer.default_root_dir).exists()
    if "true" in flags:
        run(unlearn_options, folder, "max_steps=1")
        assert points(folder) == [(0, 0.0), (1, 0.5)]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_fast_dev_run_of_an_evaluation_is_whole(
    own_options: list[str], own_target: Path, tmp_path: Path, verb: str
) -> None:
    model = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={own_target}"]
    run_verb([verb, *own_options, *model, f"--run.folder={tmp_path / 'x'}", "--trainer.fast_dev_run=true"])
    assert not (tmp_path / "x").exists()


def test_a_limited_loader_draws_anew_and_an_overfitting_one_does_not() -> None:
    def epochs(repeats: bool) -> list[list[torch.Tensor]]:
        groups = [[Encoded((number, number), 1)] for number in range(1, 13)]
        loader = GroupLoader(groups, batch_size=4, micro_batch_size=2, seed=0)
        loader.limit(2, repeats)
        assert (loader.steps_per_epoch, len(loader)) == (1, 2)
        return [[batch.input_ids for batch in loader] for _ in range(3)]

    def same(found: list[list[torch.Tensor]]) -> bool:
        return all(torch.equal(torch.cat(found[0]), torch.cat(other)) for other in found[1:])

    assert same(epochs(True)) and not same(epochs(False))
