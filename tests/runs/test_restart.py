"""What a start makes of a folder that a killed process has left, and of a checkpoint that is not what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sga.__main__ import main
from sga.cli import run_verb
from sga.module import UnlearningModule
from sga.runs.lock import write_lock

SHORT = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")


class Killed(BaseException):
    """Ends a run as SIGKILL does, as far as its folder goes."""


@pytest.fixture
def command(unlearn_options: list[str], tmp_path: Path) -> list[str]:
    """Three steps an epoch, two epochs, into ``run``."""
    return ["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={tmp_path / 'run'}"]


@pytest.fixture
def begun(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed before its first evaluation had ended."""

    def kill(self: UnlearningModule, *arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(UnlearningModule, "validation_step", kill)
        run_verb([*command, "--data.pairing=sga.RandomNormals"])
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "run.json", "pairs.jsonl", "tensorboard"}
    return folder


def test_a_run_that_has_nothing_to_go_on_from_begins_anew(
    begun: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the settings of the new start, with its own pairing."""
    pairs = (begun / "pairs.jsonl").read_bytes()
    assert main([*command, "--seed_everything=7"]) == 0
    assert capsys.readouterr().out.count("beginning anew") == 1
    assert json.loads((begun / "run.json").read_text())["seed"] == 7
    assert "seed_everything: 7" in (begun / "config.yaml").read_text()
    assert (begun / "pairs.jsonl").read_bytes() != pairs
    assert len(list((begun / "tensorboard").glob("events*"))) == 1


def test_with_ckpt_path_last_it_begins_anew_too(begun: Path, command: list[str]) -> None:
    assert main([*command, "--seed_everything=7", "--ckpt_path=last"]) == 0
    assert json.loads((begun / "run.json").read_text())["seed"] == 7


def test_so_does_an_evaluation(
    begun: Path, command: list[str], own_target: Path, own_options: list[str], tmp_path: Path
) -> None:
    model = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={own_target}"]
    assert main(["validate", *own_options, *model, *SHORT[:1], f"--run.folder={begun}"]) == 0
    assert json.loads((begun / "run.json").read_text())["verb"] == "validate"
    assert not (begun / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "rows/000000.jsonl", "rows.jsonl", "checkpoints/last.ckpt", "model/config.json"]
)
def test_negative_control_a_folder_with_results_or_checkpoints_is_refused(
    name: str, begun: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (begun / name).parent.mkdir(exist_ok=True)
    (begun / name).write_text("{}\n")
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    assert main([*command, "--seed_everything=7"]) == 2
    assert "already holds a run: go on with it (--ckpt_path last)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_negative_control_a_configuration_of_the_user_s_own_is_not_written_over(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# mine\nseed_everything: 3\n")
    assert main(command) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# mine")


def test_what_a_killed_write_left_is_removed_by_the_next_start(command: list[str], tmp_path: Path) -> None:
    """In the run folder only, and nothing that somebody else may have put there."""
    folder = tmp_path / "run"
    ours = (".metrics.jsonl.0a1b2c3d", "checkpoints/.last.ckpt.unfinished", "test/rows/.000000.jsonl.ffffffff")
    others = (
        ".env.20241105",
        "rows/.env.20241105",
        "checkpoints/.mine.ckpt.unfinished",
        ".notes",
        ".cache.deadbee",
        ".x.0A1B2C3D",
        "mine/.metrics.jsonl.0a1b2c3d",
        "a.0a1b2c3d",
        "../.a.0a1b2c3d",
    )
    for name in (*ours, *others, "run.json", "test/run.json", ".model.unfinished/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert main([*command, "--model.loss.smoothing_rate=2"]) == 2
    assert [name for name in (*ours, ".model.unfinished") if (folder / name).exists()] == []
    assert [name for name in others if not (folder / name).exists()] == []


def test_negative_control_in_a_folder_of_the_user_s_own_nothing_is_removed(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    names = (".env.20241105", ".config.yaml.20241105", "checkpoints/.last.ckpt.unfinished")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "config.yaml").write_text("# mine\nseed_everything: 3\n")
    assert main([*command, "--model.loss.smoothing_rate=2"]) == 2
    assert [name for name in names if not (folder / name).exists()] == []


def test_negative_control_another_process_s_are_left(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / ".metrics.jsonl.0a1b2c3d").write_text("x")
    with write_lock(folder):
        assert main(command) == 2
    assert (folder / ".metrics.jsonl.0a1b2c3d").exists()


# ---- damaged checkpoints --------------------------------------------------------------------------------------------


def damage(path: Path, size: int = 4000) -> None:
    """Writes over the middle of a file, as a bad disk or a copy that went wrong does."""
    with path.open("r+b") as file:
        middle = file.seek(path.stat().st_size // 2)
        turned = bytes(byte ^ 255 for byte in file.read(size))
        file.seek(middle)
        file.write(turned)


@pytest.fixture(scope="module")
def finished(unlearn_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of each epoch."""
    folder = tmp_path_factory.mktemp("restart") / "whole"
    options = ("--data.batch_size=2", "--checkpoint.keep_epochs=true")
    run_verb(["fit", *unlearn_options, *SHORT, *options, f"--run.folder={folder}"])
    return folder


@pytest.fixture
def again(finished: Path, unlearn_options: list[str], tmp_path: Path) -> tuple[Path, Callable[..., int]]:
    """A copy of that run, and what starts a verb on it."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def start(verb: str, *options: str) -> int:
        return main([verb, "--config", str(folder / "config.yaml"), f"--run.folder={folder}", *options])

    return folder, start


@pytest.mark.parametrize("size", [1, 4000])
def test_a_damaged_checkpoint_is_not_gone_on_from(
    size: int, again: tuple[Path, Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, start = again
    last, epochs = folder / "checkpoints" / "last.ckpt", sorted((folder / "checkpoints").glob("epoch-*"))
    damage(last, size)
    torch.load(last, weights_only=True)  # which finds nothing amiss
    assert start("fit", "--ckpt_path=last", "--trainer.max_epochs=3") == 2
    said = capsys.readouterr().err
    assert f"--ckpt_path {last}: damaged" in said and f"go on from {epochs[-1]}, of step 6" in said
    damage(epochs[-1])
    assert start("fit", "--ckpt_path=last", "--trainer.max_epochs=3") == 2
    assert f"go on from {epochs[0]}, of step 3" in capsys.readouterr().err, "not from one that is damaged too"
    epochs[0].unlink()
    assert start("fit", "--ckpt_path=last", "--trainer.max_epochs=3") == 2
    assert "no other one beside it to go on from" in capsys.readouterr().err
    shutil.copy(last, last.with_name("good.ckpt"))
    assert start("fit", f"--ckpt_path={last.with_name('good.ckpt')}", "--trainer.max_epochs=3") == 2
    assert f"{last.with_name('good.ckpt')}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["test", "predict", "rate"])
def test_nor_is_one_evaluated(
    verb: str, again: tuple[Path, Callable[..., int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, start = again
    damage(folder / "checkpoints" / "last.ckpt")
    assert start(verb, "--ckpt_path=last") == 2
    assert f"--ckpt_path {folder / 'checkpoints' / 'last.ckpt'}: damaged" in capsys.readouterr().err


def test_negative_control_an_unchanged_run_resumes(again: tuple[Path, Callable[..., int]]) -> None:
    assert again[1]("fit", "--ckpt_path=last", "--trainer.max_epochs=3") == 0
