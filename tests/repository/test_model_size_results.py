"""The judge of the look at three model sizes, by hand, and its page against its rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"
FILES = [RESULTS / f"model-size-{name}.json.gz" for name in ("small", "medium", "large")]


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("model_size_judge")


def rows(judge: ModuleType, shortfalls: dict[str, list[float]]) -> list[Any]:
    values = {name: 0.0 for name in judge.Judged.__dataclass_fields__}
    return [
        judge.Judged(
            **{**values, "world": world, "recipe": recipe, "choice": choice, "shortfall": shortfall, "says": ""}
        )
        for recipe, by_world in shortfalls.items()
        for world, shortfall in enumerate(by_world, 1)
        for choice in ("last", "rule")
    ]


def test_each_weight_has_its_own_best_learning_rate_and_only_whole_worlds_count(
    judge: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """λ = 1: means 6 and 5 over worlds 1 and 2; λ = 2: 4.5. World 1 is best at λ = 1, world 2 at λ = 2."""
    small = {"weight-1-lr4e-4": [3.0, 9.0, 0.0], "weight-1-lr8e-4": [6.0, 4.0, 0.0], "weight-2-lr8e-4": [6.0, 3.0, 0.0]}
    other = {"weight-1-lr1e-4": [1.0, 1.0], "weight-2-lr2e-4": [2.0, 0.5]}  # means 1 and 1.25
    made = [rows(judge, one) for one in (small, other, other)]
    monkeypatch.setattr(judge, "judge", lambda collected: made[collected])
    sizes = [judge.cells(number) for number in range(3)]
    worlds = judge.whole_worlds(sizes)
    assert worlds == [1, 2] and judge.best_rates(sizes[0], worlds) == {1.0: (8e-4, 5.0), 2.0: (8e-4, 4.5)}
    assert judge.best_weights(sizes[0], worlds) == {1: 1.0, 2: 2.0}
    best = judge.best_table(sizes, worlds).splitlines()
    assert best[0] == "| parameters | λ = 1 (best in) | λ = 2 (best in) |"
    assert best[2] == "| 231,744 | 5.0 (1 of 2) | 4.5 (1 of 2) |"
    said = judge.answer(sizes, worlds)
    assert said.startswith("The mean shortfall is least at λ = 2 with 231,744 parameters (1, 2), at λ = 1 with 651,904")
    assert said.endswith("the best λ of worlds 1, 2. Whether the best λ moves with size cannot be told at n = 2.")
    told = judge.cells_table(sizes, worlds)
    assert "| 231,744 | 1 | 0.0004 | 6.0 |" in told and "| 231,744 | 1 | 0.0008 | **5.0** |" in told


@pytest.mark.skipif(not FILES[0].is_file(), reason="the experiment has not been run")
def test_the_page_is_recomputed(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (RESULTS / "model-size.md").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["judge", *map(str, FILES), "--keep", str(tmp_path)])
    judge.main()
    printed, parts = capsys.readouterr().out, judge.page_parts([judge.read(path) for path in FILES])
    assert [part for part in parts if part not in page or part not in printed] == [] and len(parts) == 6
    assert parts[0] in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(judge.read(tmp_path / path.name) == judge.read(path) for path in FILES)
    swapped = judge.page_parts([judge.read(path) for path in reversed(FILES)])
    assert swapped[1] not in page and swapped[2] not in page, "other rows, other tables"
