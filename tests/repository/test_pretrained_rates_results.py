"""The judge of the look at rates on a pretrained model, by hand, and its page against its rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"
FILE = RESULTS / "pretrained-rates.json.gz"


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("pretrained_rates_judge")


def test_differences_are_told_seed_by_seed_with_their_sign(judge: ModuleType) -> None:
    shortfalls = {
        "margin": (1.0, 2.0),
        "mean": (1.5, 1.0),
        "shuffled": (3.0, 2.5),
        "norm": (4.0, 4.0),
        "gd-2": (4.0, 4.0),
    }
    values = {name: 0.0 for name in judge.Judged.__dataclass_fields__}
    rows = [
        judge.Judged(**{**values, "world": world, "recipe": recipe, "choice": choice, "shortfall": one, "says": ""})
        for recipe, both in {**shortfalls, "gd-2-alternatives": (5.0, 4.5)}.items()
        for world, one in zip((31, 32), both, strict=True)
        for choice in ("last", "rule")
    ]
    told = judge.answer(rows)
    assert told.startswith("Shortfall at the last evaluation on seed 31 and 32: margin less mean −0.5 and +1.0; margin")
    assert told.endswith("cannot be told at n = 2.")
    said = judge.contrasts(rows).splitlines()
    assert said[0] == "| less than 0: the first is better | seed 31 | seed 32 | sign |" and len(said) == 10
    assert said[2:6] == [
        "| margin − mean, last evaluation | −0.5 | +1.0 | two |",
        "| margin − shuffled, last evaluation | −2.0 | −0.5 | one |",
        "| gd-2-alternatives − gd-2, last evaluation | +1.0 | +0.5 | one |",
        "| norm − gd-2, last evaluation | +0.0 | +0.0 | zero |",
    ]
    runs = {"31/margin": {"rates": [1.0, 2.0, 4.5]}, "31/gd-2": {"rates": None}}
    assert judge.rates({"runs": runs}).splitlines()[2:] == ["| 31/margin | 3 | 2.50 | 1.00 | 4.50 |"]


@pytest.mark.skipif(not FILE.is_file(), reason="the experiment has not been run")
def test_the_page_is_recomputed(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (RESULTS / "pretrained-rates.md").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["judge", str(FILE), "--keep", str(tmp_path / FILE.name)])
    judge.main()
    printed, parts = capsys.readouterr().out, judge.page_parts(judge.read(FILE))
    assert [part for part in parts if part not in page or part not in printed] == [] and len(parts) == 5
    assert judge.read(tmp_path / FILE.name) == judge.read(FILE)
    assert parts[0] in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = judge.read(FILE)
    one, other = found["runs"]["31/margin"], found["runs"]["31/kl"]
    swapped = judge.page_parts({**found, "runs": {**found["runs"], "31/margin": other, "31/kl": one}})
    assert all(part not in page for part in swapped), "other rows, other tables"
