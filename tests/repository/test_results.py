"""Tables of the pages that are made of stored results are what these give."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def compared() -> Any:
    """The script of the table, as a module."""
    spec = importlib.util.spec_from_file_location("methods_compared", ROOT / "benchmarks" / "methods_compared.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_comparison_of_methods_is_what_the_stored_evaluations_give() -> None:
    module, content = compared(), stored("methods")
    assert module.table(content) == (RESULTS / "methods-compared.md").read_text(encoding="utf-8")
    pairs, uncorrected, standing = module.pairs_that_stand(content)
    assert (pairs, uncorrected, standing) == (210, 122, 4)
    assert "Of the 210 pairs" in README and "122 differ" in README and "and 4 of them after Holm" in README


def test_negative_control_another_evaluation_changes_the_table() -> None:
    module, content = compared(), stored("methods")
    row = next(row for row in content["rows"] if row["stage"] == "final")
    run = next(iter(row["runs"].values()))
    run["evaluations"][-1]["authors/forget_quality_log10"] -= 1
    assert module.table(content) != (RESULTS / "methods-compared.md").read_text(encoding="utf-8")


def test_a_run_is_over_unlearned_below_the_reference_and_under_unlearned_above() -> None:
    side = compared().side
    assert [side(auc, 0.5) for auc in (0.02, 0.39, 0.45, 0.55, 0.61, 1.0)] == [
        "over", "over", "near", "near", "under", "under"
    ]  # fmt: skip


def test_the_floor_makes_the_papers_rate_look_level_with_npo() -> None:
    module = compared()
    runs = module.reported(stored("methods"))
    one = runs["SmoothedGradientAscent smoothing_rate=-0.8, lr=0.0002"]
    other = runs["NPO retain=nll, lr=0.0008"]
    means = [[sum(module.hypervolume(run, floor) for run in some) / 3 for some in (one, other)] for floor in (-12, -6)]
    assert means[0] == pytest.approx([0.386, 0.388], abs=5e-4) and means[1] == pytest.approx([0.083, 0.0], abs=5e-4)


@pytest.mark.parametrize(("name", "start"), [("rates", "| r = "), ("normals", "| random | 0.03")])
def test_areas_of_the_readmes_tables_are_in_the_stored_results(name: str, start: str) -> None:
    """Each three areas in a row of the table are a configuration's of the sweep, seeds 1 to 3."""
    areas = {
        ", ".join(f"{row['runs'][seed]['frontier_area']:.2f}" for seed in sorted(row["runs"], key=int))
        for row in stored(name)["rows"]
        if row["stage"] == "final"
    }
    lines = [line for line in README.splitlines() if line.startswith(start)]
    triples = [triple for line in lines for triple in re.findall(r"\d\.\d\d, \d\.\d\d, \d\.\d\d", line)]
    assert triples and set(triples) <= areas
