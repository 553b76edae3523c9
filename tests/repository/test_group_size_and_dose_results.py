"""The judge of the experiment on group size and on worse normals under a rule, and its page against its rows."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"
FILE, DEVELOPMENT = (RESULTS / f"group-size-and-dose{part}.json.gz" for part in ("", "-development"))


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("group_size_and_dose_judge")


def standing_in(base: dict[str, Any]) -> dict[str, Any]:
    """Other recipes' stored runs under this experiment's names; the last world lacks one of the first question."""
    names = {
        **{"k2-tokens": "mean", "k8-tokens": "shuffled", "k8-passes": "pairs", "neighbours-norm": "margin"},
        **{"corrupted-25-norm": "corrupted-50", "off-topic-50-norm": "pairs", "corrupted-25-mean": "mean"},
    }
    runs = {
        f"{world}/{name}": copy.deepcopy(base["runs"][f"{world}/{other}"])
        for world in range(11, 23)
        for name, other in names.items()
    }
    del runs["22/k8-tokens"]
    return {"runs": runs, "failed": {}}


def test_stored_runs_of_others_under_these_names_give_their_contrasts(judge: ModuleType) -> None:
    """Dose 50 for dose 25 under the rule: the contrast of the page before; twelve of twelve worlds, times seven."""
    base = judge.base_runs()
    assert len(judge.QUESTIONS) == 7
    answers, primary, last, _, means, rates, left = judge.page_parts(standing_in(base), base)
    assert "| corrupted-25-norm − corrupted-25 | 12 | −0.25 [−0.61, +0.15] | 8 of 12 | 0.2783 | 0.2783 |" in primary
    told = f"| 12 | −4.25 [−4.95, −3.63] | 12 of 12 | 0.0005 | {7 * 2 / 4096:.4f} |"
    assert f"| off-topic-50-norm − off-topic-50 {told}" in primary
    assert re.search(r"With `NormRatio`: are neighbours with 25 % .*\| \*\*yes\*\* \| 0 of 12", answers)
    assert re.search(r"25 % of their words replaced: is `NormRatio` better .*\| cannot be told at n = 12", answers)
    assert left == "Worlds left out, of 12: of question 1 world 22; of question 2 none."
    assert "| k2-tokens − neighbours | 11 |" in primary and "| k2-tokens − neighbours | 11 |" in last
    assert "| neighbours-norm | 1.0 | 3.3 |" in rates and "| k8-passes | last | 11 |" in means


@pytest.mark.skipif(not FILE.is_file(), reason="the experiment has not been run")
def test_the_page_is_recomputed_and_its_figure_is_the_command_s(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, base = (RESULTS / "group-size-and-dose.md").read_text(encoding="utf-8"), judge.base_runs()
    kept, drawn = tmp_path / "kept.json.gz", tmp_path / "figure.svg"
    monkeypatch.setattr("sys.argv", ["judge", str(FILE), "--keep", str(kept), "--figure", str(drawn)])
    judge.main()
    printed = capsys.readouterr().out
    parts = judge.page_parts(judge.read(FILE), base)
    assert [part for part in parts if part not in page or part not in printed] == [] and len(parts) == 7
    assert parts[0] in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert judge.read(kept) == judge.read(FILE)
    committed = ROOT / "docs" / "images" / "group-size-and-dose.svg"
    one, other = (
        sorted(re.findall(r'aria-label="([^"]*)"', path.read_text(encoding="utf-8"))) for path in (drawn, committed)
    )
    assert one == other and len(one) > 60
    rows = judge.small_weights(judge.read(FILE), base, judge.read(judge.EXPLORATORY))
    assert judge.means_table(rows, judge.rates_of(judge.read(FILE))) in page and len(rows) == 8 * 6
    others = judge.page_parts(standing_in(base), base)
    assert others[0] not in page and others[4] not in page, "other rows, other tables"


@pytest.mark.skipif(not DEVELOPMENT.is_file(), reason="development has not been run")
def test_the_protocol_has_the_table_that_learning_rates_were_chosen_by(judge: ModuleType) -> None:
    found = judge.read(DEVELOPMENT)
    page = (ROOT / "docs" / "experiments" / "group-size-and-dose.md").read_text(encoding="utf-8")
    rows = [row for row in judge.judge(found) if row.choice == "last"]
    assert judge.means_table(rows, judge.rates_of(found)) in page and len(rows) > 20
