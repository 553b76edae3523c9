"""A run that is killed where it stands, three times over, ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_rows
from safetensors.torch import load_file

KILLS = 3


def start(options: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sga", "fit", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def wait_for_training(process: subprocess.Popen[bytes], folder: Path, since: float) -> None:
    """Waits until this process has written a checkpoint."""
    deadline = time.monotonic() + 120
    while written(folder / "checkpoints" / "last.ckpt") <= since and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.005)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_three_times_ends_like_one_left_alone(
    unlearn_options: list[str], tmp_path: Path, seed: int
) -> None:
    """Two micro-batches a step, three steps an epoch, a checkpoint after each step, an evaluation after each epoch."""
    options = [
        *unlearn_options,
        "--data.batch_size=2",
        "--data.micro_batch_size=1",
        "--checkpoint.every_n_steps=1",
        "--trainer.max_epochs=40",
        "--model_utility.generate=false",
    ]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start([*options, f"--run.folder={alone}"])
    wait_for_training(process, alone, 0.0)
    began = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - began

    draw = random.Random(seed)
    kills = 0
    share = 1.0
    for attempt in range(20):
        since = written(killed / "checkpoints" / "last.ckpt")
        process = start([*options, f"--run.folder={killed}", "--ckpt_path=last"])
        wait_for_training(process, killed, since)
        if kills < KILLS:
            delay = share * draw.uniform(0.0, 0.3) * seconds
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            step = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
            print(f"seed {seed}, attempt {attempt}: killed after {delay:.3f} s of {seconds:.3f}, at step {step}")
            continue
        assert code == 0
        break
    assert kills == KILLS, "the run outlasts three kills"

    expected = load_file(alone / "model" / "model.safetensors")
    found = load_file(killed / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert metrics(killed) == metrics(alone)
    assert len(metrics(alone)) == 41
    assert all_rows(killed) == all_rows(alone)
