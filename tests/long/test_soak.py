"""300 steps on two processes that are killed ten times at random moments end as the same steps left alone."""

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

KILLS = 10
STEPS = 300
EVERY = 4
"""Steps between checkpoints."""


def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """`sga fit` in a process group of its own, which its second process belongs to."""
    return subprocess.Popen(
        [sys.executable, "-m", "sga", "fit", *options, f"--run.folder={folder}", "--ckpt_path=last"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / f"{folder.name}.log").open("ab"),
        start_new_session=True,
    )


def written(folder: Path) -> float:
    path = folder / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime if path.exists() else 0.0


def wait_for_checkpoint(process: subprocess.Popen[bytes], folder: Path, since: float) -> None:
    deadline = time.monotonic() + 180
    while written(folder) <= since and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in three minutes"
        time.sleep(0.005)


def step(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
def test_killed_ten_times_in_300_steps(finished_run: Path, tmp_path: Path) -> None:
    """A dynamic rate, normals drawn anew each epoch, two micro-batches a step, six steps an epoch."""
    options = [
        "--data.source=sga.Authors",
        "--data.source.forget_authors=4",
        "--data.source.retain_authors=4",
        "--data.source.holdout_authors=2",
        "--data.source.questions_per_author=6",
        "--data.evaluation_rows=4",
        "--data.pool_size=5",
        "--data.batch_size=4",
        "--data.micro_batch_size=1",
        "--model.language_model=sga.Pretrained",
        f"--model.language_model.name_or_path={finished_run.parent / 'target'}",
        "--model.loss=sga.SmoothedGradientAscent",
        "--model.loss.smoothing_rate=sga.MarginRate",
        "--model.loss.smoothing_rate.margin=0.6",
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=1e-4",
        "--model_utility.generate=false",
        f"--checkpoint.every_n_steps={EVERY}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=50",
        "--trainer.check_val_every_n_epoch=25",
        "--evaluation.resamples=0",
    ]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(alone, options)
    wait_for_checkpoint(process, alone, 0.0)
    began = time.monotonic()
    assert process.wait() == 0, (tmp_path / "alone.log").read_text()[-4000:]
    seconds = time.monotonic() - began
    assert step(alone) == STEPS

    draw = random.Random(0)
    kills: list[int] = []  # the steps at which the run went on
    while True:
        process = start(killed, options)
        wait_for_checkpoint(process, killed, written(killed))
        if len(kills) < KILLS:
            # Counted in checkpoints, because a busy machine changes its speed; then anywhere up to the next one.
            for _ in range(draw.randrange(9)):
                wait_for_checkpoint(process, killed, written(killed))
            time.sleep(draw.uniform(0.0, EVERY / STEPS) * seconds)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "the run outlasts all kills"
            kills.append(step(killed))
            print(f"kill {len(kills)}: at step {kills[-1]}")
            continue
        assert process.wait() == 0, (tmp_path / "killed.log").read_text()[-4000:]
        break
    assert kills == sorted(kills) and kills[-1] < STEPS

    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (alone, killed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert metrics(killed) == metrics(alone) and len(metrics(alone)) == 3
    assert all_rows(killed) == all_rows(alone)
