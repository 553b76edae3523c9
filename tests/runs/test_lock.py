"""The lock of a run folder: a second start, a holder that was killed, several processes, and those that wait."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from processes import start

from sga.__main__ import main
from sga.cli import _is_first_process
from sga.errors import UserError
from sga.experiments.engine import InThisProcess, Processes, run
from sga.experiments.task import Task
from sga.files import write_json
from sga.runs.lock import LockedError, write_lock

ONE_EVALUATION = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---- the lock alone -------------------------------------------------------------------------------------------------


def test_the_holder_of_a_lock_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    with write_lock(folder):
        held = names(tmp_path)
        since = f"{datetime.now():%Y-%m-%d %H}"
        with pytest.raises(LockedError) as refused, write_lock(folder, "--output"):
            pass
        assert names(tmp_path) == held == {"a", "a/b", "a/b/.run.lock"}, "the folder itself is not made"
    said = f"{folder} is being written by process {os.getpid()} on {socket.gethostname()} since {since}"
    assert str(refused.value).startswith(said)
    assert str(refused.value).endswith("; wait for it, stop it, or choose another --output")
    assert not names(tmp_path)
    with write_lock(folder):
        folder.mkdir()
    assert names(tmp_path) == {"a", "a/b", "a/b/run"}, "what something is in stays"


@pytest.mark.runs
def test_it_is_one_lock_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with write_lock(tmp_path / "run"):
        for path in ("run", "link", "elsewhere/../run"):
            with pytest.raises(LockedError), write_lock(Path(path)):
                pass
        with write_lock(Path("another")):
            pass


def hold(folder: Path, held: Any) -> None:
    with write_lock(folder):
        held.set()
        time.sleep(60)


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held))
    process.start()
    assert held.wait(30)
    with pytest.raises(LockedError, match=f"process {process.pid} "), write_lock(tmp_path / "run"):
        pass
    process.kill()
    process.join()
    assert names(tmp_path) == {".run.lock"}
    with write_lock(tmp_path / "run"):
        assert json.loads((tmp_path / ".run.lock").read_bytes())["pid"] == os.getpid()
    assert not names(tmp_path)


def test_many_that_come_and_go_are_never_two_at_once(tmp_path: Path) -> None:
    """Each deletes the file and the folder above it on leaving, while others wait for them."""
    within: list[int] = []
    most: list[int] = []

    def come_and_go() -> None:
        for number in range(30):
            try:
                with write_lock(tmp_path / "runs" / "run"):
                    within.append(number)
                    most.append(len(within))
                    time.sleep(0.001)
                    within.pop()
            except LockedError:
                continue

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) > 30
    assert names(tmp_path) <= {"runs"}, "no lock is left, and the folder only where the next one had come already"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_is_a_warning(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = re.escape(f"cannot be locked ({os.strerror(number)})")
    with pytest.warns(UserWarning, match=said), write_lock(tmp_path / "run"):
        (tmp_path / "run").mkdir()


def test_the_first_process_of_all_machines_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks as Lightning reads them from the environment of a process that it, torchrun or SLURM has started."""
    for rank, machine, first in ((0, None, True), (1, None, False), (0, "0", True), (0, "1", False), (3, "1", False)):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        monkeypatch.delenv("NODE_RANK", raising=False)
        if machine is not None:
            monkeypatch.setenv("NODE_RANK", machine)
        assert _is_first_process() is first


# ---- runs -----------------------------------------------------------------------------------------------------------

PAUSING = """
import sys, time
from pathlib import Path
from sga.module import UnlearningModule
go, step = Path(sys.argv[1]), UnlearningModule.training_step
def pausing(self, *arguments):
    while self.global_step == 1 and not go.exists():
        time.sleep(0.05)
    return step(self, *arguments)
UnlearningModule.training_step = pausing
from sga.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
"""`sga` that makes a pause after a run's first step until a file is there."""


@contextmanager
def pausing(folder: Path, go: Path, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, after its first step and its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSING, str(go), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not (folder / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "three minutes have passed"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def command(unlearn_options: list[str], tmp_path: Path) -> list[str]:
    """Of a run of four steps into ``runs/one``."""
    folder = f"--run.folder={tmp_path / 'runs' / 'one'}"
    return ["fit", *unlearn_options, *ONE_EVALUATION, "--checkpoint.every_n_steps=1", folder]


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a run, but for TensorBoard's, which are written by a thread of their own."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path: path.read_bytes() for path in files}


def test_a_second_start_is_refused_and_the_first_run_ends_as_if_alone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, go = tmp_path / "runs" / "one", tmp_path / "go"
    with pausing(folder, go, command) as process:
        before, others = contents(folder), names(folder.parent)
        for more in ([], ["--ckpt_path=last"]):
            assert main([*command, *more]) == 2
            said = capsys.readouterr().err
            assert re.match(
                rf"sga: error: {re.escape(str(folder))} is being written by process {process.pid} on "
                rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d; wait for it, stop it, "
                r"or choose another --run\.folder\n$",
                said,
            )
        assert contents(folder) == before
        assert names(folder.parent) == others
        go.touch()
        _, printed = process.communicate(timeout=180)
        assert process.returncode == 0, printed
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4]
    assert [path.name for path in folder.parent.iterdir()] == ["one"], "the lock's file is gone"
    assert main(command) == 2 and "already holds a run: go on with it" in capsys.readouterr().err


def test_the_folder_of_a_killed_run_is_taken_over(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "one"
    with pausing(folder, tmp_path / "go", command) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder.parent / ".one.lock").exists()
        assert main(command) == 2
        assert "already holds a run: go on with it (--ckpt_path last)" in capsys.readouterr().err
        assert main([*command, "--ckpt_path=last"]) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_a_start_that_fails_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--model.loss.smoothing_rate=2"]) == 2
    assert not names(tmp_path)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_what_writes_into_the_folder_takes_the_lock_too(
    verb: str, own_options: list[str], own_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={own_target}"]
    with write_lock(tmp_path / "run"):
        assert main([verb, *own_options, *model, f"--run.folder={tmp_path / 'run'}"]) == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert not names(tmp_path)


@pytest.mark.slow
def test_a_run_of_two_processes_starts(unlearn_options: list[str], tmp_path: Path) -> None:
    """The second one starts while the first one holds the lock."""
    options = [*unlearn_options, *ONE_EVALUATION, "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(*options, f"--run.folder={tmp_path / 'run'}")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- sequences and the demo; sweeps are in tests/experiments ---------------------------------------------------------


@pytest.mark.runs
def test_the_demo_and_a_sequence_refuse_a_folder_that_is_held(tmp_path: Path) -> None:
    """Before anything in it is changed; the demo would delete what is there."""
    write_json(tmp_path / "one" / "step.json", {"key": "another", "finished": True})
    for pool in (InThisProcess(), Processes(shows=True)):
        with write_lock(tmp_path / "one"):
            before = names(tmp_path)
            with pytest.raises(UserError, match=r"is being written by process .* choose another --folder"):
                run([Task("one", {})], tmp_path, pool, replace=True, wait=False)
            assert names(tmp_path) == before
