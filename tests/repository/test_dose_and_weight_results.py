"""The judge of the experiment on worse normals and on two sources' weights by hand, and its page against its rows."""

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


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("dose_and_weight_judge")


def judged(judge: ModuleType, world: int, recipe: str, shortfall: float) -> Any:
    values = {name: 0.0 for name in judge.Judged.__dataclass_fields__}
    return judge.Judged(
        **{**values, "world": world, "recipe": recipe, "choice": "last", "shortfall": shortfall, "says": ""}
    )


def grid(judge: ModuleType, worlds: int, alternatives: list[float], neighbours: list[float]) -> list[Any]:
    """Rows with these shortfalls at λ = 1, 2 and 4, a little worse from world to world at λ = 4."""
    rows = []
    for source, values in (("alternatives", alternatives), ("neighbours", neighbours)):
        for name, value in zip((f"{source}-1.0", source, f"{source}-4.0"), values, strict=True):
            slope = 0.01 * (source == "neighbours" and name.endswith("4.0"))
            rows += [judged(judge, world, name, value + slope * world) for world in range(worlds)]
    return rows


def sloped(judge: ModuleType, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(judge, "judge", lambda collected: rows)
    found: list[Any] = judge.judged({})
    return found


def test_the_source_moves_the_best_weight_if_both_say_so(judge: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """(3 − 9) − (8 − 4) is −10, less 0.01 a world; the least p of ten worlds, 2/2¹⁰, times five is told; λ 4 and 1."""
    rows = sloped(judge, grid(judge, 10, [9.0, 6.0, 3.0], [4.0, 6.0, 8.0]), monkeypatch)
    [(one, p)] = [(one, p) for question, one, p in judge.primary(rows, judge.QUESTIONS) if question is judge.SOURCE]
    assert one.differences[3] == pytest.approx(-10.03) and p == pytest.approx(5 * 2 / 2**10)
    said = judge.source_answer(rows)
    assert "| **yes** |" in said and "λ = 4 with alternatives and at λ = 1 with neighbours" in said
    assert "difference by world: +2.00 [+2.00, +2.00]" in said
    assert "| alternatives | 10 | 9.0 (0) | 6.0 (0) | 3.0 (10) |" in judge.weights_table(rows)


def test_one_of_the_two_is_not_enough(judge: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A told difference of slopes with λ = 4 best for both; five worlds, which are not tested."""
    same, few = (
        judge.source_answer(sloped(judge, grid(judge, worlds, [9.0, 6.0, 3.0], neighbours), monkeypatch))
        for worlds, neighbours in ((10, [5.0, 4.5, 4.0]), (5, [4.0, 6.0, 8.0]))
    )
    assert "| cannot be told at n = 10 |" in same and "Holm p = 0.0098" in same
    assert "| cannot be told at n = 5 |" in few and "too few for a test" in few
    assert judge.source_answer([judged(judge, 1, "corrupted-25", 3.0)]) == ""


def test_worse_normals_are_yes_where_the_shortfall_is_higher(judge: ModuleType) -> None:
    rows = [judged(judge, world, "neighbours", 5.0) for world in range(10)]
    rows += [judged(judge, world, "corrupted-50", 6.0 + world) for world in range(10)]
    rows += [judged(judge, world, "off-topic-50", 4.0 - world) for world in range(10)]
    lines = judge.answers_table(rows).splitlines()[2:]
    assert len(lines) == 2 and "| **yes** | 0 of 10 worlds are better with *corrupted-50*" in lines[0]
    assert "| **no, they are better** | 10 of 10" in lines[1] and "Holm p = 0.0098" in lines[1], "five in the family"


def test_a_world_that_lacks_a_run_is_left_out_of_that_question_whole_and_named(judge: ModuleType) -> None:
    recipes = [*judge.PARTS["dose"], *judge.PARTS["weight"]]
    runs = {f"{world}/{recipe}": {} for world in (1, 2, 3) for recipe in recipes}
    del runs["2/off-topic-100"], runs["3/neighbours-4.0"], runs["1/corrupted-25"]
    base = {"runs": {"1/neighbours": {}, "4/neighbours": {}}, "failed": {}}
    collected, left = judge.merged(base, {"runs": runs, "failed": {"1/corrupted-25": "NaN"}})
    assert left == {"dose": [2, 4], "weight": [3, 4]}
    assert "2/corrupted-25" not in collected["runs"] and "2/neighbours-4.0" in collected["runs"]
    assert "3/alternatives-1.0" not in collected["runs"] and "3/off-topic-100" in collected["runs"]
    assert "1/corrupted-25" in collected["failed"], (
        "a run that failed has ended" and "1/neighbours" in collected["runs"]
    )
    assert judge.left_out(left, 4) == "Worlds left out, of 4: of question 1 worlds 2, 4; of question 2 worlds 3, 4."


def standing_in(judge: ModuleType) -> dict[str, Any]:
    """Other recipes' stored runs under this experiment's names."""
    runs = judge.read(judge.BASE)["runs"]
    names = dict(zip([*judge.PARTS["dose"], *judge.PARTS["weight"]], ["mean", "shuffled", "pairs", "margin"] * 2,
                     strict=True))  # fmt: skip
    return {
        "runs": {f"{world}/{name}": copy.deepcopy(runs[f"{world}/{other}"]) for world in range(11, 23)
                 for name, other in names.items()},
        "failed": {},
    }  # fmt: skip


def test_stored_runs_of_others_under_these_names_give_their_contrasts(judge: ModuleType) -> None:
    """off-topic-50 stands for pairs: its contrast with neighbours is the one of the other page."""
    parts = judge.page_parts(standing_in(judge), judge.read(judge.BASE))
    [line] = [line for line in parts[1].splitlines() if line.startswith("| off-topic-50 − neighbours | 12 |")]
    assert "| 12 | +1.62 [+0.84, +2.50] | 1 of 12 | 0.0015 |" in line
    assert parts[-1] == "Worlds left out, of 12: of question 1 none; of question 2 none."
    assert "λ 4 less 1" not in parts[5] and "| neighbours | last | 12 | 6.3 |" in parts[5]


FILE = RESULTS / "dose-and-weight.json.gz"


@pytest.mark.skipif(not FILE.is_file(), reason="the experiment has not been run")
def test_the_page_is_recomputed_and_its_figure_is_the_command_s(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (RESULTS / "dose-and-weight.md").read_text(encoding="utf-8")
    kept, drawn = tmp_path / "kept.json.gz", tmp_path / "figure.svg"
    monkeypatch.setattr("sys.argv", ["judge", str(FILE), "--keep", str(kept), "--figure", str(drawn)])
    judge.main()
    printed = capsys.readouterr().out
    parts = judge.page_parts(judge.read(FILE), judge.read(judge.BASE))
    assert [part for part in parts if part not in page or part not in printed] == [] and len(parts) == 7
    assert parts[0] in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert judge.read(kept) == judge.read(FILE)
    pictures = [path.read_text(encoding="utf-8") for path in (drawn, ROOT / "docs" / "images" / "dose-and-weight.svg")]
    one, other = (sorted(re.findall(r'aria-label="([^"]*)"', picture)) for picture in pictures)
    assert one == other and len(one) > 40
    other_rows = judge.page_parts(standing_in(judge), judge.read(judge.BASE))
    assert other_rows[0] not in page and other_rows[5] not in page, "other rows, other tables"
