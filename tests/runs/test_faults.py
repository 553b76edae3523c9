"""Faults on the way: signals, a full disk, a run folder that goes, gradients that are no numbers. A run can go on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file

import sga.files
from sga import __main__ as command_line
from sga.callbacks.checkpoints import RunCheckpoints
from sga.cli import UnlearningCLI, run_verb
from sga.errors import DivergenceError, Interruption, StoppedError
from sga.module import UnlearningModule

main = command_line.main

SHORT = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")
SMALL = (
    "--data.source=sga.Authors",
    "--data.source.forget_authors=1",
    "--data.source.retain_authors=2",
    "--data.source.holdout_authors=1",
    "--data.source.questions_per_author=6",
    "--data.evaluation_rows=4",
    "--data.batch_size=2",
    "--model.language_model=sga.SmallLlama",
    "--model.language_model.hidden_size=32",
    "--model.language_model.layers=2",
    "--model.language_model.heads=2",
    "--model.language_model.vocabulary=400",
    "--model.loss=sga.SmoothedGradientAscent",
    "--model.loss.smoothing_rate=-4",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=1e-3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    *SHORT[:1],
    *SHORT[2:],
)
"""Of a process of its own, on the built-in authors, from random weights."""

LAST = "last.ckpt"


@pytest.fixture
def fit(unlearn_options: list[str]) -> Callable[..., UnlearningCLI]:
    """Runs SGA into a folder, three steps an epoch, two epochs; more options override."""

    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={folder}", *options])

    return run


@pytest.fixture(scope="module")
def whole(unlearn_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run that was left alone."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    run_verb(["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={folder}"])
    return folder


def kept_weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / LAST, weights_only=True)["state_dict"]
    return found


def weights(run: UnlearningCLI) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), "bit-equal weights"


def same(a: Any, b: Any) -> bool:
    """Whether two contents of checkpoints are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def step_of(folder: Path, name: str = LAST) -> int:
    found: int = torch.load(folder / "checkpoints" / name, weights_only=True)["global_step"]
    return found


def leftovers(folder: Path) -> list[Path]:
    """Files that only a write that did not end leaves behind."""
    return [path for path in folder.rglob(".*") if path.name != ".answers"]


# ---- how a verb ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "make room and go on"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "choose a place where files can be written"),
        (StoppedError("it stopped"), 1, "stopped: it stopped"),
        (Interruption(signal.SIGTERM, "stopped by SIGTERM after step 3"), 143, "after step 3"),
        (SIGTERMException(), 143, "--ckpt_path last"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_verb_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.delenv("SGA_TRACEBACK", raising=False)
    monkeypatch.setattr(command_line, "_run", lambda verb, arguments: fail(arguments))
    assert main(["fit"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("sga: ") and printed.count("\n") == 1 and said in printed
    monkeypatch.setenv("SGA_TRACEBACK", "1")
    if isinstance(error, SystemExit):
        assert main(["fit"]) == code, "raised, it would end the process with code 0"
    else:
        with pytest.raises(type(error)):
            main(["fit"])


def test_lightning_s_exit_after_an_interrupt_has_the_code_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Sequence[str]) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(command_line, "_run", lambda verb, arguments: fail(arguments))
    assert main(["validate"]) == 130


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file"), RuntimeError("a defect")])
def test_negative_control_a_defect_is_raised(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr(command_line, "_run", lambda verb, arguments: fail(arguments))
    with pytest.raises(type(error)):
        main(["fit"])


# ---- going on within an epoch ---------------------------------------------------------------------------------------


def test_everything_that_a_step_depends_on_is_restored_within_an_epoch(
    fit: Callable[..., UnlearningCLI], own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order of groups, random pairing, draws from its pools, dropout, warm-up and decay, averages of a dynamic rate.

    Two passes a step, three steps an epoch; from checkpoints within epochs the run comes to the same last checkpoint,
    optimiser, schedule and loader included.
    """
    dropout = tmp_path / "model"
    shutil.copytree(own_target / "model", dropout)
    config = json.loads((dropout / "config.json").read_text())
    (dropout / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    options = (
        f"--model.language_model.name_or_path={dropout}",
        "--data.pairing=sga.RandomNormals",
        "--data.pool_size=6",
        "--data.micro_batch_size=1",
        "--model.schedule=LinearSchedule",
        "--model.schedule.warmup_epochs=0.5",
        "--model.loss.smoothing_rate=sga.MarginRate",
        "--model.loss.smoothing_rate.averaging=0.7",
        "--checkpoint.every_n_steps=1",
    )
    taken: list[Path] = []
    save = RunCheckpoints._save_last

    def save_and_copy(self: RunCheckpoints, trainer: pl.Trainer) -> None:
        save(self, trainer)
        folder = Path(trainer.default_root_dir)
        if folder.name == "whole":
            taken.append(tmp_path / f"copy-{len(taken)}")
            shutil.copytree(folder, taken[-1], ignore=shutil.ignore_patterns("tensorboard"))

    monkeypatch.setattr(RunCheckpoints, "_save_last", save_and_copy)
    fit(tmp_path / "whole", *options)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "rate_state", "UnlearningData", "global_step")
    whole = torch.load(tmp_path / "whole" / "checkpoints" / LAST, weights_only=True)
    assert [step_of(folder) for folder in taken] == [1, 2, 3, 4, 5, 6]
    for folder in (taken[1], taken[3], taken[4]):
        fit(folder, *options, "--ckpt_path=last")
        found = torch.load(folder / "checkpoints" / LAST, weights_only=True)
        assert [part for part in parts if not same(found[part], whole[part])] == []
        assert metrics(folder) == metrics(tmp_path / "whole")
        assert (folder / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()


# ---- signals, in process --------------------------------------------------------------------------------------------


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal in the middle of a training step, or of an evaluation, that follows on `step`."""

    def install(step: int, number: signal.Signals, hook: str = "training_step") -> None:
        method = getattr(UnlearningModule, hook)

        def raising(self: UnlearningModule, *arguments: Any) -> Any:
            if self.global_step == step and not sent and not self.trainer.sanity_checking:
                sent.append(number)
                signal.raise_signal(number)
            return method(self, *arguments)

        sent: list[signal.Signals] = []
        monkeypatch.setattr(UnlearningModule, hook, raising)

    return install


@pytest.mark.parametrize(
    ("number", "hook", "step", "kept"),
    [
        (signal.SIGTERM, "training_step", 0, 1),  # ends after the step that is under way
        (signal.SIGINT, "training_step", 1, 2),
        (signal.SIGTERM, "training_step", 2, 3),  # an epoch's last: after its evaluation
        (signal.SIGINT, "validation_step", 3, 3),
        pytest.param(signal.SIGTERM, "training_step", 5, 6, marks=pytest.mark.slow),  # the run's last
        pytest.param(signal.SIGTERM, "validation_step", 6, 6, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_a_run_that_resumes_to_the_same_end(
    fit: Callable[..., UnlearningCLI],
    signal_at: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whole: Path,
    number: signal.Signals,
    hook: str,
    step: int,
    kept: int,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context():
        signal_at(step, number, hook)
        with pytest.raises(Interruption, match=f"stopped by {number.name} after step {kept}; go on with"):
            fit(tmp_path / "run")
    assert signal.getsignal(number) is before, "handlers are given back"
    assert "once more to end at once" in capsys.readouterr().err
    assert step_of(tmp_path / "run") == kept
    assert_equal(weights(fit(tmp_path / "run", "--ckpt_path=last")), kept_weights(whole))
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_step_of_many_passes_is_finished_first(
    fit: Callable[..., UnlearningCLI], signal_at: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data.micro_batch_size=1",)
    whole = weights(fit(tmp_path / "whole", *options))
    with monkeypatch.context():
        signal_at(1, signal.SIGTERM)
        with pytest.raises(Interruption, match="after step 2"):
            fit(tmp_path / "run", *options)
    assert_equal(weights(fit(tmp_path / "run", "--ckpt_path=last", *options)), whole)


def test_a_run_that_ends_within_an_epoch_is_evaluated(
    fit: Callable[..., UnlearningCLI], signal_at: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--trainer.max_steps=4",)
    whole = weights(fit(tmp_path / "whole", *options))
    with monkeypatch.context():
        signal_at(3, signal.SIGTERM)
        with pytest.raises(Interruption, match="after step 4"):
            fit(tmp_path / "run", *options)
    assert_equal(weights(fit(tmp_path / "run", "--ckpt_path=last", *options)), whole)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_signal_before_training_ends_the_run_at_once(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """During the evaluation before the first step there is nothing to keep."""
    # Python takes no notice of the signal where the shell that started it does not, as of a background job.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(self: UnlearningModule, *arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(UnlearningModule, "validation_step", interrupt)
        assert main(["fit", *unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err.endswith("sga: interrupted\n")
    assert main(["fit", *unlearn_options, *SHORT, f"--run.folder={tmp_path / 'run'}", "--ckpt_path=last"]) == 0
    signal.signal(signal.SIGINT, before)


# ---- signals, to a process of its own -------------------------------------------------------------------------------


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sga", "fit", *SMALL, f"--run.folder={folder}", "--ckpt_path=last", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not there():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, "three minutes have passed"
        time.sleep(0.01)


def checkpoint_of(folder: Path) -> Callable[[], bool]:
    return (folder / "checkpoints" / LAST).exists


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_gets_a_signal_resumes_to_the_same_end(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--trainer.max_epochs=12",)
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert start(alone, *options).wait() == 0
    process = start(stopped, *options)
    wait_for(checkpoint_of(stopped), process)
    process.send_signal(number)
    _, printed = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    [*_, last] = printed.splitlines()
    step = step_of(stopped)
    assert last == f"sga: stopped by {number.name} after step {step}; go on with --ckpt_path last"
    assert "Traceback" not in printed and not leftovers(stopped) and not (stopped / "model").exists()
    assert start(stopped, *options).wait() == 0
    assert_equal(load_file(stopped / "model" / "model.safetensors"), load_file(alone / "model" / "model.safetensors"))
    assert metrics(stopped) == metrics(alone)


@pytest.mark.slow
def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    """A step is made to take a minute, which the first interrupt waits for and the second one does not."""
    program = (
        "import sys, time; from sga.module import UnlearningModule as M; step = M.training_step\n"
        "def slow(self, *a):\n"
        "    if self.global_step == 4: print('slow', flush=True); time.sleep(60)\n"
        "    return step(self, *a)\n"
        "M.training_step = slow; from sga.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", program, "fit", *SMALL, f"--run.folder={folder}", "--checkpoint.every_n_steps=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while "slow" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        while "once more to end at once" not in (said := process.stderr.readline()):
            assert said, "it ended"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert time.monotonic() - began < 20
    assert step_of(folder) == 4 and not leftovers(folder)


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [sga.files.write_text, sga.files.write_json])
def test_a_file_is_the_old_one_when_the_disk_is_full(writer: Callable[[Path, str], None], tmp_path: Path) -> None:
    writer(tmp_path / "file", "old")
    before = (tmp_path / "file").read_bytes()
    with file_sizes() as limit, pytest.raises(OSError, match="File too large"):
        limit(1000)
        writer(tmp_path / "file", "x" * 5000)
    assert (tmp_path / "file").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def file_sizes() -> Iterator[Callable[[int], None]]:
    """Gives what lets no file grow beyond some bytes; it ends with the block, because pytest may write to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_has_no_room_leaves_the_old_one_and_a_run_that_resumes(
    fit: Callable[..., UnlearningCLI],
    unlearn_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whole: Path,
) -> None:
    """From the second checkpoint on, files may have half of its size: metrics fit in, weights do not."""
    options = ("--checkpoint.every_n_steps=1",)
    size = (whole / "checkpoints" / LAST).stat().st_size
    save = RunCheckpoints._save_last

    def limited(self: RunCheckpoints, trainer: pl.Trainer) -> None:
        if trainer.global_step == 2:
            limit(size // 2)
        save(self, trainer)

    folder = tmp_path / "run"
    command = ["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={folder}", *options]
    with monkeypatch.context() as patch, file_sizes() as limit:
        patch.setattr(RunCheckpoints, "_save_last", limited)
        assert main(command) == 1
    printed = capsys.readouterr().err
    assert f"sga: stopped: [Errno {errno.EFBIG}] File too large" in printed
    assert "make room and go on (a run: with --ckpt_path last)" in printed and "Traceback" not in printed
    assert step_of(folder) == 1 and not leftovers(folder)
    assert_equal(weights(fit(folder, "--ckpt_path=last", *options)), kept_weights(whole))
    assert metrics(folder) == metrics(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 50_000, 400_000])
def test_a_full_disk_ends_a_run_that_resumes_once_there_is_room(small_disk: Path, tmp_path: Path, free: int) -> None:
    """The disk is filled up to some bytes while the run is under way: no room for anything, for text, for a part."""
    options = ("--trainer.max_epochs=6", "--checkpoint.every_n_steps=1", "--export.enabled=false")
    alone, folder = tmp_path / "alone", small_disk / "run"
    assert start(alone, *options).wait() == 0
    process = start(folder, *options)
    wait_for(checkpoint_of(folder), process)
    filling = small_disk / "filling"
    usage = shutil.disk_usage(small_disk)
    with filling.open("wb") as file:
        file.write(b"\0" * max(0, usage.free - free))
    _, printed = process.communicate(timeout=180)
    assert process.returncode == 1, printed
    assert "No space left on device" in printed.splitlines()[-1] and "Traceback" not in printed
    assert step_of(folder) >= 1 and not leftovers(folder)
    filling.unlink()
    assert start(folder, *options).wait() == 0
    left, right = (torch.load(run / "checkpoints" / LAST, weights_only=True) for run in (folder, alone))
    assert_equal(left["state_dict"], right["state_dict"])
    assert metrics(folder) == metrics(alone)


@pytest.mark.slow
def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_run(small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - 600_000))
    process = start(small_disk / "run")
    _, printed = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "of free space, and last.ckpt takes" in printed.splitlines()[-1]
    assert [path.name for path in small_disk.iterdir()] == ["filling"]


# ---- a run folder that goes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2])
def test_a_run_folder_that_was_taken_away_ends_the_run_and_does_not_come_back(
    unlearn_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    """Within an epoch, and before the evaluation at its end."""
    folder = tmp_path / "run"
    method = UnlearningModule.training_step

    def delete(self: UnlearningModule, *arguments: Any) -> Any:
        if self.global_step == step:
            shutil.rmtree(folder, ignore_errors=True)
        return method(self, *arguments)

    command = ["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={folder}", "--ckpt_path=last"]
    with monkeypatch.context() as patch:
        patch.setattr(UnlearningModule, "training_step", delete)
        assert main(command) == 1
    assert f"sga: stopped: the run folder {folder} is gone, at step {step + 1}" in capsys.readouterr().err
    assert not folder.exists()
    assert main(command) == 0, "and the same command starts it again"


# ---- numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_does_not_get_into_the_weights(
    fit: Callable[..., UnlearningCLI],
    unlearn_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whole: Path,
    value: float,
) -> None:
    """One number of one gradient, at a finite loss and a fixed rate. The weights that are left are those before it."""
    method = UnlearningModule.on_before_optimizer_step
    folder = tmp_path / "run"

    def spoil(self: UnlearningModule, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step == 4:
            list(self.parameters())[3].grad.view(-1)[7] = value  # type: ignore[union-attr]
        method(self, optimizer)

    command = ["fit", *unlearn_options, *SHORT, "--data.batch_size=2", f"--run.folder={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(UnlearningModule, "on_before_optimizer_step", spoil)
        assert main([*command, "--checkpoint.every_n_steps=1"]) == 1
    last = folder / "checkpoints" / LAST
    printed = capsys.readouterr().err
    assert "sga: stopped: a gradient is no longer a number at step 4: training diverged" in printed
    assert f"{last} holds the last weights" in printed or "good.ckpt holds the last weights" in printed
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 4
    assert all(torch.isfinite(one).all() for one in content["state_dict"].values())
    assert_equal(weights(fit(folder, "--checkpoint.every_n_steps=1", "--ckpt_path=last")), kept_weights(whole))


def test_the_message_of_a_diverged_run_names_weights_that_load(
    fit: Callable[..., UnlearningCLI],
    unlearn_options: list[str],
    own_target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the second epoch: last.ckpt is of step 4, not evaluated; good.ckpt, of step 3, was."""
    method = UnlearningModule._check_divergence
    folder = tmp_path / "run"

    def diverge(self: UnlearningModule, loss: torch.Tensor) -> None:
        method(self, loss * float("nan") if self.global_step == 4 else loss)

    with monkeypatch.context() as patch:
        patch.setattr(UnlearningModule, "_check_divergence", diverge)
        with pytest.raises(DivergenceError) as stopped:
            fit(folder, "--checkpoint.every_n_steps=1")
    good = folder / "checkpoints" / "good.ckpt"
    assert f"{good} holds the last weights that were kept" in str(stopped.value)
    assert (step_of(folder, "good.ckpt"), step_of(folder)) == (3, 4)
    options = [option for option in unlearn_options if "model.loss" not in option and "optimizer" not in option]
    run_verb(["validate", *options, *SHORT[:1], f"--run.folder={tmp_path / 'look'}", f"--ckpt_path={good}"])
    [found] = metrics(tmp_path / "look")
    expected = next(point for point in metrics(folder) if point["step"] == 3)
    assert found["own/forget/avg_nll"] == pytest.approx(expected["own/forget/avg_nll"], rel=1e-6)


def test_without_a_checkpoint_the_message_says_so(fit: Callable[..., UnlearningCLI], tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"No checkpoint had been written$"):
        fit(tmp_path / "run", "--model.optimizer.lr=1e30")


def test_a_stopped_run_says_what_is_left_once() -> None:
    error = StoppedError("it stopped")
    assert str(error) == "it stopped"
    error.kept = "Nothing is left"
    assert str(error) == "it stopped. Nothing is left"
