"""Runs in processes of their own, and what tests read of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from conftest import ROOT, exact_norms
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sga.models.pretrained import Pretrained
from sga.rates.geometry import total
from sga.runs.processes import GRACE

MARGIN = ("--model.loss.smoothing_rate=sga.MarginRate", "--model.loss.smoothing_rate.margin=0.6")


RECORD = "--trainer.callbacks+=processes.RateRecorder"


EXACT = ("--trainer.precision=64-true", "--model.language_model=processes.ExactPretrained")


class ExactPretrained(Pretrained):
    """A model that computes in float64 throughout once it is converted; Llama's own norm is float32."""

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return exact_norms(super().network(tokenizer))


class RateRecorder(pl.Callback):
    """Writes each optimiser step's number with all its digits, and the counts, to a file of each process."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        state, path = pl_module.rate.state, Path(trainer.default_root_dir, f"rates-{trainer.global_rank}.jsonl")
        geometry = total(pl_module.rate.geometry.values()) if pl_module.rate.geometry else None
        line = {
            "step": trainer.global_step,
            "value": state.value,
            "decisions": state.decisions,
            "cosine": geometry.cosine if geometry is not None else None,
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rates(folder: Path, rank: int = 0) -> list[float]:
    """The number at each optimiser step."""
    by_step = {line["step"]: line["value"] for line in lines(folder / f"rates-{rank}.jsonl") if line["step"]}
    assert sorted(by_step) == list(range(1, len(by_step) + 1))
    return [by_step[step] for step in sorted(by_step)]


LIMIT = GRACE + 15
"""Seconds from a failure to the end: Lightning looks every 5, the first process waits for `GRACE`; the rest is load."""


def environment() -> dict[str, str]:
    """The environment of a process that runs on one thread and finds the classes of tests."""
    tests = ROOT / "tests"
    folders = [tests, *sorted(path for path in tests.iterdir() if path.is_dir())]
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def start(*arguments: str, module: tuple[str, ...] = ("-m", "sga", "fit")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *module, *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def fails(rank: int, step: int, how: str) -> list[str]:
    """Options that end one process of a run; `failing.Fails` writes a file ``failed`` just before."""
    values = {"rank": rank, "step": step, "how": how}
    return ["--trainer.callbacks+=failing.Fails", *(f"--trainer.callbacks.{k}={v}" for k, v in values.items())]


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """Exit code and what was printed; asserts that it ends soon, with every process of it."""
    _, printed = process.communicate(timeout=300)  # reads on until the last process has closed it
    seconds = time.time() - (folder / "failed").stat().st_mtime
    assert seconds < LIMIT, printed[-2000:]
    return process.returncode, printed


SHARDED = ["--trainer.devices=2", "--trainer.strategy=fsdp2"]


# Five groups a step and then one: the shares are uneven, and in each epoch's last step a process has nothing to do.
UNEVEN = ["--data.batch_size=5", "--data.micro_batch_size=2", "--checkpoint.every_n_steps=1"]


def sga(*arguments: str) -> str:
    """Runs `python -m sga …` and gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "sga", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder / "metrics.jsonl")]


def distance(one: Path, two: Path) -> float:
    """The largest difference between two runs' exported weights."""
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys(), "tied weights are written once"
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


# ---- what is refused ------------------------------------------------------------------------------------------------


def trainer(strategy: object, precision: str = "32-true") -> Any:
    return SimpleNamespace(strategy=strategy, precision=precision)
