"""A process that fails ends the others with its error shown; a run that ended so goes on to the same end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_rows
from processes import ended, fails, start
from safetensors.torch import load_file


def fit(*arguments: str) -> None:
    process = start(*arguments)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("fault", "RuntimeError: a fault of one process"),
        ("user", "sga: error: a mistake of one process"),
        ("killed", ""),
    ],
)
def test_whichever_fails_both_end(
    unlearn_options: list[str], tmp_path: Path, strategy: str, rank: int, how: str, said: str
) -> None:
    processes = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    options = [*unlearn_options, "--model_utility.generate=false", *processes, f"--run.folder={tmp_path}"]
    code, printed = ended(start(*options, *fails(rank, 1, how)), tmp_path)
    assert code != 0 and said in printed
    if rank == 0 and how == "user":
        assert code == 2
    if rank == 1 and how == "killed":  # whoever looks first
        assert "process 1 was ended by SIGKILL" in printed or "terminated with code -9" in printed
    if rank == 0 and how == "killed":
        assert "the first process is gone" in printed or "Connection" in printed


@pytest.mark.slow
def test_under_torchrun(unlearn_options: list[str], tmp_path: Path) -> None:
    """Two processes that torchrun starts take the steps of two that Lightning starts; one that fails ends both."""
    options = [*unlearn_options, "--model_utility.generate=false", "--trainer.devices=2", "--trainer.strategy=fsdp2"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sga", "fit")
    process = start(*options, f"--run.folder={tmp_path / 'torchrun'}", module=torchrun)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-4000:]
    fit(*options, f"--run.folder={tmp_path / 'lightning'}")
    assert_same_weights(tmp_path / "torchrun", tmp_path / "lightning")
    folder = tmp_path / "fails"
    process = start(*options, *fails(1, 1, "fault"), f"--run.folder={folder}", module=torchrun)
    _, printed = process.communicate(timeout=300)
    assert process.returncode != 0 and "RuntimeError: a fault of one process" in printed
    assert time.time() - (folder / "failed").stat().st_mtime < 45, "torchrun asks for half a minute before it kills"


# ---- going on -------------------------------------------------------------------------------------------------------


def assert_same_weights(one: Path, two: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def state(folder: Path) -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return kept


@pytest.fixture
def dropping(own_target: Path, tmp_path: Path) -> Path:
    """The target with dropout in its attention, so that a step depends on random numbers."""
    folder = tmp_path / "dropping"
    folder.mkdir()
    for file in (own_target / "model").iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [[], ["ddp"], ["fsdp2"]], ids=["one", "ddp", "fsdp2"])
def test_a_run_that_failed_within_an_epoch_resumes_exactly(
    unlearn_options: list[str], dropping: Path, tmp_path: Path, processes: list[str]
) -> None:
    """Killed at step 4 of 6, the first of the second epoch being step 3: weights, optimiser, dropout, the order of
    groups, the draw of normals from a pool, running averages of the rate's geometry, and metrics, all to the bit.
    """
    options = [option for option in unlearn_options if "name_or_path" not in option and "smoothing_rate" not in option]
    options += [f"--model.language_model.name_or_path={dropping}", "--model_utility.generate=false"]
    options += ["--model.loss.smoothing_rate=sga.MarginRate", "--model.loss.smoothing_rate.margin=0.6"]
    options += ["--data.batch_size=2", "--data.micro_batch_size=1", "--data.pool_size=5"]
    options += ["--checkpoint.every_n_steps=1", "--evaluation.answers=null"]
    options += [f"--trainer.strategy={name}" for name in processes]
    options += ["--trainer.devices=2"] if processes else []
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(*options, f"--run.folder={whole}")
    process = start(*options, f"--run.folder={cut}", *fails(1 if processes else 0, 4, "killed"))
    _, printed = process.communicate(timeout=300)
    assert process.returncode != 0 and (cut / "failed").is_file(), printed[-2000:]
    kept = state(cut)
    assert kept["global_step"] == 4 and kept["UnlearningData"]["position"] == (1 if processes else 2)
    fit(*options, f"--run.folder={cut}", "--ckpt_path=last")
    assert_same_weights(whole, cut)
    ours, theirs = state(cut), state(whole)
    assert ours["rate_state"] == theirs["rate_state"] and ours["rate_state"]["decisions"] == 6
    assert ours["UnlearningData"] == theirs["UnlearningData"]
    assert (cut / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
    assert all_rows(cut) == all_rows(whole)
    moments, expected = (found["optimizer_states"][0]["state"] for found in (ours, theirs))
    assert moments.keys() == expected.keys() and moments
    for name, values in expected.items():
        assert all(torch.equal(values[key], moments[name][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
