"""Room on the disk, looked at before a run trains: what is counted against what the run then writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from sga.__main__ import main
from sga.callbacks import room
from sga.cli import UnlearningCLI, run_verb
from sga.errors import StoppedError

SHORT = ("--model_utility.generate=false", "--evaluation.answers=null", "--data.batch_size=6")
Fit = Callable[..., UnlearningCLI]


@pytest.fixture
def fit(unlearn_options: list[str], tmp_path: Path) -> Fit:
    """One step an epoch, two epochs."""
    return lambda *options: run_verb(["fit", *unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}", *options])


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the free space that is found, in bytes."""
    return lambda size: monkeypatch.setattr(room, "free_bytes", lambda folder: int(size))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"),
        ("--trainer.precision=bf16-true",),
        ("--model.language_model=sga.LoRA", "--model.language_model.rank=4"),
    ],
)
def test_a_checkpoint_is_as_large_as_counted(
    options: tuple[str, ...], fit: Fit, free: Callable[[float], None], tmp_path: Path
) -> None:
    """Never larger than what is written, so that nothing that fits is refused; a file's other parts are small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(*options)
    counted = room._size(run.model.state_dict(keep_vars=True).values()) + room._states(run.trainer, run.model)
    written = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    assert 0 <= written - counted < 100_000


def test_without_room_nothing_is_trained_or_written(
    unlearn_options: list[str], free: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free(1000)
    assert main(["fit", *unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"sga: stopped: {tmp_path / 'run'} has 1e-06 GB of free space, and last.ckpt takes ")
    assert said.endswith("make room, or choose another --run.folder")
    assert not (tmp_path / "run").exists()


def test_the_new_checkpoint_has_to_fit_beside_the_old_one(
    fit: Fit, free: Callable[[float], None], tmp_path: Path
) -> None:
    fit("--trainer.max_epochs=1")
    checkpoint = size(tmp_path / "run" / "checkpoints")
    free(1.5 * checkpoint)
    with pytest.raises(StoppedError, match="twice that while a new one is written"):
        fit(f"--run.folder={tmp_path / 'other'}")
    with pytest.warns(UserWarning, match=r"may come to write .*last\.ckpt and the new one .*model/ "):
        fit(f"--run.folder={tmp_path / 'other'}", "--trainer.max_epochs=1")
    with pytest.warns(UserWarning, match=r"good\.ckpt "):
        fit("--ckpt_path=last", "--trainer.max_epochs=3")  # the old one is there already


def test_negative_control_with_room_for_all_there_is_no_word(
    fit: Fit, free: Callable[[float], None], tmp_path: Path
) -> None:
    free(1e9)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit("--checkpoint.keep_epochs=true", "--stop.rule=FailureSignatures", "--stop.rule.model_utility=null")
    assert not [one for one in said if "free space" in str(one.message)]


def test_the_free_space_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert room.free_bytes(tmp_path / "not" / "yet") > 0
