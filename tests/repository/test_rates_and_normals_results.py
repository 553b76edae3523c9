"""The judge of the experiment on rates and normals by hand, and its page against the stored rows."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("rates_judge", BENCHMARKS / "rates_and_normals_judge.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "rates_judge", module)
        spec.loader.exec_module(module)
        yield module


def judged(judge: ModuleType, world: int, recipe: str, shortfall: float, choice: str = "last", **more: Any) -> Any:
    values = {name: 0.0 for name in judge.Judged.__dataclass_fields__}
    return judge.Judged(
        **{**values, "world": world, "recipe": recipe, "choice": choice, "shortfall": shortfall, "says": "", **more}
    )


def test_a_contrast_is_paired_over_worlds_and_tested_exactly(judge: ModuleType) -> None:
    """Six worlds, five better and one worse by the least: ranks 1 of 21, p = 2·2/64; a seventh lacks one of the two."""
    differences = [-6.0, -5.0, -4.0, -3.0, -2.0, 1.0]
    rows = [judged(judge, world, "a", 10 + d) for world, d in enumerate(differences)]
    rows += [judged(judge, world, "b", 10.0) for world in range(6)]
    rows += [judged(judge, 7, "a", 0.0), judged(judge, 0, "a", -100.0, "rule")]
    found = judge.contrast(rows, "a", "b", "shortfall")
    assert list(found.differences.values()) == differences and found.better == 5
    assert found.mean == pytest.approx(sum(differences) / 6) and found.low < found.mean < found.high
    assert found.p_value == pytest.approx(4 / 64) and found.sign_p == pytest.approx(2 * 7 / 64)
    few = judge.contrast([row for row in rows if row.world < 5], "a", "b", "shortfall")
    assert few.p_value is None and few.sign_p is None
    assert judge.contrast(rows, "a", "c", "shortfall") is None


def test_better_is_lower_or_higher_by_the_quantity(judge: ModuleType) -> None:
    """AUC gap −0.3 against 0.2 is farther from 0; utility 0.9 against 0.8 is better."""
    rows = [
        judged(judge, 1, "a", 0, auc_gap=-0.3, utility_share=0.9),
        judged(judge, 1, "b", 0, auc_gap=0.2, utility_share=0.8),
    ]
    assert judge.contrast(rows, "a", "b", "distance of AUC").better == 0
    assert judge.contrast(rows, "a", "b", "distance of AUC").mean == pytest.approx(0.1)
    assert judge.contrast(rows, "a", "b", "utility").better == 1


def test_holm_counts_contrasts_that_are_not_tested(judge: ModuleType) -> None:
    """p = 2/2⁶ for six of six; alone in a family of four it is four times that."""
    rows = [judged(judge, world, recipe, shift + world) for world in range(6)
            for recipe, shift in (("alternatives", 0.0), ("neighbours", 1.0 + world))]  # fmt: skip
    rows += [judged(judge, world, recipe, 1.0) for world in range(3) for recipe in ("margin", "mean")]
    (_, first, p), (_, second, none) = judge.primary(rows)
    assert (first.p_value, p) == (pytest.approx(2 / 64), pytest.approx(8 / 64))
    assert second.p_value is None and none is None
    assert "not tested" in judge.primary_table(rows).splitlines()[-1]
    told = judge.answers(rows).splitlines()[2:]
    assert "| cannot be told at n = 6 |" in told[0] and "Holm p = 0.12" in told[0]
    assert "| cannot be told at n = 3: too few for a test |" in told[1] and "Holm" not in told[1]


def test_a_difference_that_is_told_has_its_direction(judge: ModuleType) -> None:
    """Eight of eight worlds: p = 2/2⁸, four times that after Holm."""
    for shift, said in ((-1.0, "**yes**"), (1.0, "**no, it is worse**")):
        rows = [judged(judge, world, "alternatives", 10 + shift * (1 + world)) for world in range(8)]
        rows += [judged(judge, world, "neighbours", 10.0) for world in range(8)]
        line = judge.answers(rows).splitlines()[2]
        assert f"| {said} |" in line and "Holm p = 0.0312" in line
        assert ("8 of 8" if shift < 0 else "0 of 8") in line


def run(nll: float, *, evaluations: int = 2, last: float | None = None) -> dict[str, Any]:
    """A run whose forget rows have this nll at the start, and another one at the end."""
    values = [nll] * (evaluations - 1) + [nll if last is None else last]
    metrics = {"authors/model_utility_unseen": 0.9, "authors/forget/degenerate": 0.0, "handover/all/rows": 4.0,
               "authors/forget/rouge_l_recall": 0.0, "authors/forget/extraction_strength": 0.0,
               "authors/retain_unseen/probability": 0.9, "authors/retain_unseen/rouge_l_recall": 0.9,
               "authors/retain_unseen/truth_ratio": 0.9, "handover/all/forget/extraction_strength": 0.1,
               "handover/all/comparison/extraction_strength": 0.2}  # fmt: skip
    rows = {
        str(step): {"forget": [{"avg_nll": one + i / 10, "log_truth_ratio": one, "fluency": 0.9} for i in range(4)],
                    "holdout": [4.0, 5.0, 6.0, 7.0]}
        for step, one in enumerate(values)
    }  # fmt: skip
    return {"evaluations": [{"step": step, "epoch": step, **metrics} for step in range(evaluations)], "rows": rows}


def test_worlds_whose_target_does_not_know_or_retained_models_do_are_left_out(judge: ModuleType) -> None:
    runs: dict[str, Any] = {}
    for world, target, retained in ((1, 0.01, 5.0), (2, 0.9, 5.0), (3, 0.01, 0.3)):
        runs |= {f"{world}/judged-{number}": run(retained, evaluations=1) for number in (1, 2, 3)}
        runs[f"{world}/a"] = run(target - 0.15 if target < 0.5 else target, last=5.0)
    runs |= {"4/judged-1": run(5.0, evaluations=1), "4/a": run(-0.14, last=5.0)}
    collected = {"runs": runs, "failed": {"1/b": "DivergenceError: …"}}
    found, refused = judge.worlds_of(collected)
    assert list(found) == [1] and sorted(refused) == [2, 3, 4] and refused[4] == "not finished"
    rows = judge.judge(collected)
    assert {(row.recipe, row.choice) for row in rows} == {(r, c) for r in "ab" for c in ("last", "rule")}
    by_recipe = {row.recipe: row.shortfall for row in rows if row.choice == "last"}
    assert by_recipe["b"] == by_recipe["a"], "what failed is judged as the worst"
    assert "| 2 | | | no: target 0.35" in judge.worlds_table(collected)


def test_rates_are_averaged_by_epoch_over_worlds(judge: ModuleType) -> None:
    """Two steps an epoch: (1 + 3)/2 and (3 + 5)/2 in the first, 8 in the second."""
    found = judge.rates_table({"1/margin": [1, 3, 8, 8], "2/margin": [3, 5, 8, 8], "1/pairs": None}, steps=2)
    assert found.splitlines()[0] == "| λ in epoch | 1 | 2 |" and found.splitlines()[2:] == ["| margin | 3.0 | 8.0 |"]


RESULTS = sorted((ROOT / "docs" / "results").glob("rates-and-normals*.json.gz"))


@pytest.mark.parametrize("path", RESULTS, ids=[path.name for path in RESULTS])
def test_tables_are_recomputed_from_the_stored_rows(judge: ModuleType, path: Path) -> None:
    found = judge.read(path)
    rows = judge.judge(found)
    page = (ROOT / "docs" / "results" / "rates-and-normals.md").read_text(encoding="utf-8")
    assert judge.means_table(rows, judge.rates_of(found)) in page
    if path.name == "rates-and-normals.json.gz":
        assert judge.primary_table(rows) in page and judge.answers(rows) in page
        assert judge.answers(rows) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
        assert judge.secondary_table(rows, "last") in page and judge.secondary_table(rows, "rule") in page
        assert judge.worlds_table(found) in page and judge.rates_table(judge.rates_of(found)) in page


def test_the_command_of_the_page_prints_its_tables_and_draws_its_figure(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From what is kept: the same tables, the same file, the same picture; another world's value moves a mark."""
    stored = ROOT / "docs" / "results" / "rates-and-normals.json.gz"
    kept, drawn = tmp_path / "kept.json.gz", tmp_path / "rates-and-normals.svg"
    monkeypatch.setattr("sys.argv", ["judge", str(stored), "--keep", str(kept), "--figure", str(drawn)])
    judge.main()
    rows = judge.judge(judge.read(stored))
    assert judge.answers(rows) in capsys.readouterr().out
    assert judge.read(kept) == judge.read(stored)
    picture = drawn.read_text(encoding="utf-8")
    committed = (ROOT / "docs" / "images" / "rates-and-normals.svg").read_text(encoding="utf-8")
    assert sorted(marks(picture)) == sorted(marks(committed))
    worlds = sum(len(one.differences) for _, one, _ in judge.primary(rows))
    assert picture.count('aria-roledescription="circle"') == worlds and worlds == 48
    moved = [judge.Judged(**{**vars(row), "shortfall": row.shortfall + (row.world == 11)}) for row in rows[:8]]
    judge.figure([*moved, *rows[8:]], drawn)
    assert sorted(marks(drawn.read_text(encoding="utf-8"))) != sorted(marks(picture))


def marks(picture: str) -> list[str]:
    """What an SVG's marks say of themselves, numbers included: the same by any version of the renderer."""
    found = re.findall(r'aria-label="([^"]*)"', picture)
    assert len(found) > 50
    return found
