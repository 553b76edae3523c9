"""`sga attack` on tiny-tofu: recovered, clean, diverged, within minutes; killed anywhere it goes on to the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shipped
from safetensors.torch import load_file, save_file

from sga.cli import run_verb


@pytest.fixture(scope="module")
def runs(tofu_root: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the rows that `full` knows: target and retain evaluated, two epochs of gradient difference."""
    root = tmp_path_factory.mktemp("tiny")
    data = [
        "--data.source.forget_rows=[320,400]",
        "--data.source.retain_rows=[0,320]",
        f"--data.root={tofu_root}",
        "--data.evaluation_rows=8",
        "--model_utility.max_new_tokens=64",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
    ]
    for name, model, verb, method in (
        ("target", "full", "validate", "evaluate"),
        ("retain", "retain", "validate", "evaluate"),
        ("unlearned", "full", "fit", "gd"),
    ):
        options = [*shipped("tofu-small", method), *data, *(["--trainer.max_epochs=2"] if verb == "fit" else [])]
        place = f"--model.language_model.name_or_path={tiny_models / model}"
        run_verb([verb, *options, place, f"--run.folder={root / name}"])
    return root


def command(run: Path, retain: Path, output: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "sga", "attack", str(run), "--reference", str(retain), "--output", str(output)),
        *options,
    ]


def attacks(run: Path, retain: Path, output: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(command(run, retain, output, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads((output / "attacks.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_all_attacks_take_less_than_a_quarter_of_an_hour(runs: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = attacks(runs / "unlearned", runs / "retain", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 900
    assert content["untried"] == {} and content["diverged"] is None and len(content["findings"]) == 11


@pytest.mark.slow
def test_target_is_recovered_retain_is_clean_and_a_broken_model_has_diverged(
    runs: Path, tiny_models: Path, tmp_path: Path
) -> None:
    some = ("--attacks", "paraphrase", "prefix", "few-shot", "first-words", "int8", "nf4", "sampling", "--samples", "8")
    target = attacks(runs / "target", runs / "retain", tmp_path / "target", *some)
    assert target["verdict"][0].startswith("Fully recovered: ") and "without any attack" in target["verdict"][0]
    retain = attacks(
        runs / "retain", runs / "retain", tmp_path / "retain", *some, "--target", str(tiny_models / "full")
    )
    assert retain["verdict"][0].startswith("Clean: ")
    weights = runs / "unlearned" / "model" / "model.safetensors"
    kept = load_file(weights)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: torch.randn(value.shape, generator=generator) * 3 for name, value in kept.items()},
        weights,
        {"format": "pt"},
    )
    try:
        broken = attacks(runs / "unlearned", runs / "retain", tmp_path / "broken", *some)
    finally:
        save_file(kept, weights, {"format": "pt"})
    assert broken["verdict"][0].startswith("Diverged: ")


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same(runs: Path, tmp_path: Path) -> None:
    some = ("--attacks", "nf4", "relearn", "sampling", "--shares", "0.05", "--rate", "1e-3", "--samples", "8")
    whole = attacks(runs / "unlearned", runs / "retain", tmp_path / "whole", *some)
    folder, kills = tmp_path / "killed", 0
    for wanted in (1, 6, 10, 16, 22, 28):
        process = subprocess.Popen(
            command(runs / "unlearned", runs / "retain", folder, *some),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and pieces(folder) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    assert attacks(runs / "unlearned", runs / "retain", folder, *some) == whole


def pieces(folder: Path) -> int:
    """Number of results, of looks at curves and of chunks of questions that are there."""
    count = 0
    for path in (folder / "results").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        count += 1 + len(content.get("points", ())) + len(content.get("scores", ())) // 4
    return count
