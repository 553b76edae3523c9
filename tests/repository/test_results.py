"""Tables of the pages that are made of stored results are what these give."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import statistics
from typing import Any

import pytest
from conftest import ROOT

from sga.evaluation.metrics import frontier_area

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def compared() -> Any:
    """The script of the table, as a module."""
    spec = importlib.util.spec_from_file_location("methods_compared", ROOT / "benchmarks" / "methods_compared.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name: str) -> Any:
    """The raw results of a sweep."""
    return json.loads(gzip.decompress((RESULTS / f"{name}.json.gz").read_bytes()))


def test_the_comparison_of_methods_is_what_the_stored_evaluations_give() -> None:
    module, content = compared(), stored("methods")
    assert module.table(content) == (RESULTS / "methods-compared.md").read_text(encoding="utf-8")
    pairs, uncorrected, standing = module.pairs_that_stand(content)
    assert (pairs, uncorrected, standing) == (210, 122, 4)
    said = " ".join(PAGE.split())
    assert "Of the 210 pairs of configurations 122 differ" in said and "and 4 of them after Holm" in said
    assert "Of 210 pairs of 21 configurations [4 differ" in " ".join((ROOT / "README.md").read_text("utf-8").split())


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
def test_areas_of_the_pages_tables_are_in_the_stored_results(name: str, start: str) -> None:
    """Each three areas in a row of the table are a configuration's of the sweep, seeds 1 to 3."""
    areas = {
        ", ".join(f"{row['runs'][seed]['frontier_area']:.2f}" for seed in sorted(row["runs"], key=int))
        for row in stored(name)["rows"]
        if row["stage"] == "final"
    }
    lines = [line for line in PAGE.splitlines() if line.startswith(start)]
    triples = [triple for line in lines for triple in re.findall(r"\d\.\d\d, \d\.\d\d, \d\.\d\d", line)]
    assert triples and set(triples) <= areas


@pytest.mark.parametrize("name", ["methods"])
def test_tables_of_sweeps_are_what_the_raw_results_give(name: str) -> None:
    """`sga sweep`'s results.md, kept beside the raw results, from which the means can be computed again."""
    written = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert f"(results/{name}.md)" in PAGE
    reported = [row for row in stored(name)["rows"] if row["stage"] == "final"]
    assert len([line for line in written.splitlines() if line.startswith("|")]) == 2 + len(reported) > 2
    for row in reported:
        [line] = [line for line in written.splitlines() if line.startswith(f"| {row['configuration']} |")]
        areas = [run["frontier_area"] for run in row["runs"].values()]
        assert f"| {statistics.fmean(areas):.2f} [" in line


def test_the_demos_areas_are_in_the_stored_results() -> None:
    """Three areas in a row, seeds 0 to 2, are computed again from the evaluations."""
    runs: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in stored("demo-three-seeds")["results"]:
        if row["role"] == "unlearn":
            points = runs.setdefault((row["run"].removesuffix(f"-seed{row['seed']}"), row["seed"]), [])
            points.append((row["authors/forget_quality_log10"], row["authors/model_utility"]))
    names = {name for name, _ in runs}
    assert len(names) == 5
    for name in names:
        areas = [f"{frontier_area(runs[name, seed]):.3f}" for seed in range(3)]
        assert f"| {', '.join(areas)} |" in PAGE, name


def test_stored_results_are_small_and_json_is_compressed() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path.name for path in files if path.stat().st_size > 200_000 or path.suffix == ".json"] == []
