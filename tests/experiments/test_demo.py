"""The demo: killed anywhere and started again it completes with the same numbers; what is finished is reused."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sga.commands.demo import main
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.demo import Step, read_steps


def numbers(folder: Path) -> list[dict[str, Any]]:
    """results.json without what time and place decide."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in results]


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_completes_with_the_same_numbers(small_plan: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(small_plan), "--folder"]
    main([*arguments, str(tmp_path / "whole")])
    draws = random.Random(20261123)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "sga", "demo", *arguments, str(killed)]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draws.uniform(9, 25))  # imports take about 8 s
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert numbers(killed) == numbers(tmp_path / "whole")
    assert (killed / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_second_run_reuses_what_is_valid_and_says_so(
    small_plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    main(["--config", str(small_plan), "--folder", str(folder)])
    capsys.readouterr()
    main(["--config", str(small_plan), "--folder", str(folder)])
    assert capsys.readouterr().out.count("reused") == 4
    sga = small_plan.parent / "sga.yaml"
    sga.write_text(sga.read_text(encoding="utf-8").replace("-4.0", "-2.0"), encoding="utf-8")
    main(["--config", str(small_plan), "--folder", str(folder)])
    assert capsys.readouterr().out.count("reused") == 3  # the changed one is made again
    rates = {entry["smoothing_rate"] for entry in numbers(folder) if entry["run"] == "sga"}
    assert rates == {-2.0}
    shutil.rmtree(folder / "retain")
    main(["--config", str(small_plan), "--folder", str(folder)])
    assert capsys.readouterr().out.count("reused") == 3


def test_the_key_of_a_step_depends_on_configuration_settings_and_needs(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("seed_everything: 0\n", encoding="utf-8")
    need = Step("need", "", (config,), {"x": 1})
    step = Step("step", "", (config,), {"y": 1}, (need,))
    assert step.key() == Step("step", "", (config,), {"y": 1}, (need,)).key()
    assert step.key() != Step("step", "", (config,), {"y": 2}, (need,)).key()
    assert step.key() != Step("step", "", (config,), {"y": 1}, (Step("need", "", (config,), {"x": 2}),)).key()
    before = step.key()
    config.write_text("seed_everything: 1\n", encoding="utf-8")
    assert step.key() != before


def test_the_packaged_plans_name_what_exists(tmp_path: Path) -> None:
    demo = read_steps(packaged_path("configs/demo/demo.yaml"), tmp_path)
    three = read_steps(packaged_path("configs/demo/three-seeds.yaml"), tmp_path)
    assert [step.name for step in demo[:2]] == ["target", "retain"]
    assert len(three) - 2 == 3 * (len(demo) - 2) > 0


@pytest.mark.parametrize(
    "text", ["", "target: a.yaml", "{", "target: a\nretain: b\nseeds: [0]\nruns: {x: {config: c}}"]
)
def test_a_bad_plan_is_said_before_anything_runs(text: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"plan\.yaml"):
        read_steps(plan, tmp_path)
