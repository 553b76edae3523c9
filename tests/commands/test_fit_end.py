"""How a training run ends in the terminal: the table, the arrows, and the commands that come next."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sga.__main__ import VERBS, main
from sga.commands.fit import _verdict, fit_end
from sga.report.summary import Column, fixed
from sga.runs.folder import load_run


def column(best: Any, name: str = "x") -> Column:
    return Column(name, "X", "x", best, fixed, "")


@pytest.mark.parametrize(
    ("best", "start", "end", "goal", "said"),
    [
        ("high", 0.5, 0.7, None, "▲ better"),
        ("high", 0.7, 0.5, 0.9, "▼ worse"),
        ("low", 0.7, 0.5, None, "▲ better"),
        ("retain", 1.0, 0.3, 0.4, "▲ better"),  # 0.1 from the reference after 0.6
        ("retain", 0.5, 0.1, 0.4, "▼ worse"),  # both sides of the reference are worse than its value
        ("retain", 0.5, 0.1, None, ""),
        (None, 1.0, 9.0, None, ""),
        ("high", 0.501, 0.502, None, ""),  # as both are written
    ],
)
def test_an_arrow_says_what_is_better(best: Any, start: float, end: float, goal: float | None, said: str) -> None:
    assert _verdict(column(best), start, end, goal) == said


def test_membership_inference_aims_at_a_half_where_there_is_no_reference() -> None:
    assert _verdict(column("retain", "mia/loss"), 0.9, 0.6, None) == "▲ better"
    assert _verdict(column("retain", "mia/loss"), 0.5, 0.1, None) == "▼ worse"


def test_the_end_of_a_run_has_start_result_and_reference_and_commands_that_there_are(finished_run: Path) -> None:
    run, retain = load_run(finished_run), finished_run.parent / "retain"
    lines = fit_end(run, [str(retain)])
    table = lines[1 : lines.index("next") - 1]
    assert re.match(rf" +step 0 +(last|chosen), step {run.chosen_step} +reference", table[0])
    utility = next(line for line in table if line.startswith("Model utility"))
    values = [fixed(value) for value in (run.value("model_utility", run.evaluations[0]), run.value("model_utility"),
                                         load_run(retain).value("model_utility")) if value is not None]  # fmt: skip
    assert utility.split()[2:5] == values
    assert max(map(len, table)) <= 80 and any("▲" in line or "▼" in line for line in table)
    commands = [shlex.split(line) for line in lines[lines.index("next") + 1 :]]
    assert len(commands) == 3 and all(words[0] == "sga" and words[1] in VERBS for words in commands)
    assert commands[0] == ["sga", "report", str(finished_run), str(retain)]
    assert "reference" in table[0] and "reference" not in fit_end(run)[1], "none, no column"


def test_a_run_of_one_evaluation_has_no_start_and_no_verdict(finished_run: Path) -> None:
    """As when a target or a retained model is trained: it used to end in a ValueError, after all of its work."""
    run = load_run(finished_run)
    run.__dict__["evaluations"] = run.evaluations[-1:]
    for references in ([], [str(finished_run.parent / "retain")]):
        lines = fit_end(run, references)
        assert re.fullmatch(rf" +(last|chosen), step {run.chosen_step}" + " +reference" * len(references), lines[1])
        assert not any("▲" in line or "▼" in line for line in lines)


@pytest.mark.runs
def test_a_fit_prints_it(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a run"
    more = ["--model_utility.generate=false", "--evaluation.answers=null", f"--run.folder={folder}"]
    assert main(["fit", *unlearn_options, *more]) == 0
    printed = capsys.readouterr().out
    assert "▲" in printed and f"sga report '{folder}'\n" in printed
    command = shlex.split(next(line for line in printed.splitlines() if line.startswith("  sga report")))
    monkeypatch.chdir(tmp_path)
    assert main(command[1:]) == 0
    assert main(["fit", *unlearn_options, *more, "--trainer.fast_dev_run=true", f"--run.folder={tmp_path / 'b'}"]) == 0
    assert "next" not in capsys.readouterr().out.splitlines()
