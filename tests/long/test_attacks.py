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
from conftest import shipped

from sga.attacks.settings import ASKING, ROUNDING
from sga.cli import run_verb

NAMES = ["none", *ASKING, *ROUNDING, "relearn 4", "relearn 16", "relearn-benign 16", "sampling"]
"""Rows of the table with the defaults, 80 forget records."""


@pytest.fixture(scope="module")
def runs(tofu_root: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the rows that `full` knows.

    ``target`` and ``retain`` are evaluated as they are, ``unlearned`` is two epochs of gradient difference,
    ``diverged`` four of gradient ascent, and ``other`` is the retained model after one more epoch on what it knows.
    """
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
    more = [
        "--model.loss=sga.FineTuning",
        "--data.train_on=[retain]",
        "--data.group_size=1",
        "--model.optimizer.lr=3e-4",
    ]
    for name, model, verb, options in (
        ("target", "full", "validate", shipped("tofu-small", "evaluate")),
        ("retain", "retain", "validate", shipped("tofu-small", "evaluate")),
        ("unlearned", "full", "fit", [*shipped("tofu-small", "gd"), "--trainer.max_epochs=2"]),
        ("diverged", "full", "fit", [*shipped("tofu-small", "ga"), "--trainer.max_epochs=4"]),
        ("other", "retain", "fit", [shipped("tofu-small", "gd")[0], *more, "--trainer.max_epochs=1"]),
    ):
        place = f"--model.language_model.name_or_path={tiny_models / model}"
        run_verb([verb, *options, *data, place, f"--run.folder={root / name}"])
    return root


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, in which the retained model's are measured once for all that are compared with it."""
    return tmp_path_factory.mktemp("results")


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
def test_all_attacks_take_less_than_a_quarter_of_an_hour(runs: Path, results: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = attacks(runs / "unlearned", runs / "retain", results)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 900
    assert content["untried"] == content["failed"] == {} and content["diverged"] is None
    assert [one["attack"] for one in content["findings"]] == NAMES
    assert content["settings"]["samples"] == 64 and "on 40 questions" in content["findings"][-1]["says"]
    assert content["verdict"][0].startswith("Partly recovered: "), "two epochs of gradient difference hide what they do"


@pytest.mark.slow
def test_target_is_recovered_a_retained_model_is_clean_and_a_diverged_one_diverged(
    runs: Path, tiny_models: Path, results: Path
) -> None:
    """With all attacks at their defaults; the retained model is not the one that it is compared with."""
    target = attacks(runs / "target", runs / "retain", results)
    assert target["verdict"][0].startswith("Fully recovered: ") and "without any attack" in target["verdict"][0]
    words = {one["attack"]: one["word"] for one in target["findings"]}
    assert [*words] == NAMES and words["none"] == words["nf4"] == words["relearn 16"] == "fully recovered"
    other = attacks(runs / "other", runs / "retain", results, "--target", str(tiny_models / "full"))
    most = max(one["high"] for one in other["findings"] if one["attack"] != "none")
    may = (
        f"; up to {min(most, 1):.0%} of what was lost may, by the 95 % intervals of so few records"
        if most > 0.1
        else ""
    )
    assert other["verdict"] == [
        f"Clean: under {len(NAMES) - 1} attacks no more comes back than retained models say under the same attack{may}."
    ]
    diverged = attacks(runs / "diverged", runs / "retain", results)
    assert diverged["verdict"][0].startswith("Diverged: ") and "says nothing about forgetting" in diverged["verdict"][0]
    assert not any(line.startswith(("Clean", "Fully")) for line in diverged["verdict"])
    assert diverged["findings"][0]["word"] == "diverged"


KILLS = (1, 4, 7, 9, 11, 13, 16, 19, 22, 25)
"""Numbers of pieces after which the process is killed: between attacks, within both curves and both samplings."""


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same(runs: Path, tmp_path: Path) -> None:
    some = ("--attacks", "nf4", "relearn", "sampling", "--shares", "0.05", "--rate", "1e-3", "--steps", "8")
    some += ("--samples", "8", "--questions", "16", "--rows", "40")
    whole = attacks(runs / "unlearned", runs / "retain", tmp_path / "whole", *some)
    folder, kills, killed_at = tmp_path / "killed", 0, set()
    for wanted in KILLS:
        process = subprocess.Popen(
            command(runs / "unlearned", runs / "retain", folder, *some),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and pieces(folder) < wanted:
            time.sleep(0.03)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        killed_at.add(pieces(folder))
    assert kills >= len(KILLS) - 3 and len(killed_at) >= 6, (kills, killed_at)
    assert attacks(runs / "unlearned", runs / "retain", folder, *some) == whole


def pieces(folder: Path) -> int:
    """Number of results, of looks at curves and of chunks of questions that are there."""
    count = 0
    for path in (folder / "results").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        count += 1 + len(content.get("points", ())) + len(content.get("scores", ())) // 4
    return count
