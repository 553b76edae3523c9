"""Tables of the pages are what the stored numbers of the runs give, and so are the claims about them."""

from __future__ import annotations

import importlib
import json
import sys
from statistics import fmean
from types import ModuleType

import pytest
from conftest import ROOT

from sga.evaluation.metrics import forget_quality

RESULTS = ROOT / "docs" / "results"
PAGE = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())


def script(name: str) -> ModuleType:
    """A script of benchmarks/, as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("result_tables")


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("results/methods-compared.md", "methods"),
        ("results.md", "demo"),
        ("results.md", "normals"),
        ("results.md", "rates"),
        ("results.md", "evaluation_speed"),
        ("results.md", "training_speed"),
        ("results/gpu.md", "gpu_steps"),
        ("results/gpu.md", "gpu_ways"),
        ("speed-and-memory.md", "memory_of_steps"),
        ("benchmarks.md", "muse"),
        ("benchmarks.md", "book"),
        ("normals.md", "normals_on_tofu"),
    ],
)
def test_a_table_is_what_the_stored_runs_give(tables: ModuleType, page: str, name: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    made = getattr(tables, name)()
    assert made in text and made.count("\n") >= 3
    assert tables.replaced(text, made) == text, "it stands once, where the script writes it"
    if name in ("methods", "demo", "normals", "rates"):
        assert tables.CEILING in made


@pytest.mark.parametrize(("benchmark", "name"), [("memory", "memory"), ("training", "training-speed-tiny-tofu")])
def test_a_page_of_a_benchmark_is_what_it_makes_of_the_stored_numbers(
    tables: ModuleType, benchmark: str, name: str
) -> None:
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert script(benchmark).table(tables.stored(name)).rstrip() == text.rstrip() and "\n|" in text


def test_every_table_of_the_script_is_tested_and_csv_files_are_its_own(tables: ModuleType) -> None:
    made = {(page, table.__name__) for page, several in tables.TABLES.items() for table in several}
    [mark] = [mark for mark in test_a_table_is_what_the_stored_runs_give.pytestmark if mark.name == "parametrize"]
    assert set(mark.args[1]) == made
    written = {name: (RESULTS / f"{name}.csv").read_text(encoding="utf-8") for name in tables.SWEEPS}
    assert written == {name: tables.sweep_csv(name) for name in tables.SWEEPS}


@pytest.mark.parametrize(("name", "by"), [("memory", "memory"), ("training-speed-tiny-tofu", "training")])
def test_a_page_of_its_own_is_what_its_benchmark_makes_of_the_numbers(tables: ModuleType, name: str, by: str) -> None:
    written = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert script(by).table(tables.stored(name)) == written and written.count("\n|") > 5


def test_stored_means_are_of_the_stored_runs_and_no_interval_of_seeds_is_left(tables: ModuleType) -> None:
    for name in (*tables.SWEEPS, "methods-choosing"):
        for row in tables.stored(name)["rows"]:
            for metric, found in row["metrics"].items():
                values = [
                    next(value for key, value in run.items() if key in (metric, f"authors/{metric}"))
                    for run in row["runs"].values()
                ]
                assert set(found) == {"mean", "values"} and found["values"] == values, (name, metric)
                assert found["mean"] == pytest.approx(sum(values) / len(values), abs=1e-12)
            for run in row["runs"].values():
                assert run["frontier_area"] == pytest.approx(tables.hypervolume(run["evaluations"]), abs=1e-12)
    assert "Student" not in json.dumps([tables.stored(name) for name in (*tables.SWEEPS, "muse", "book")])


def test_negative_control_another_evaluation_changes_the_table(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tables.stored("methods")
    row = next(row for row in content["rows"] if row["stage"] == "final")
    next(iter(row["runs"].values()))["evaluations"][-1]["authors/forget_quality_log10"] -= 1
    read = tables.stored
    monkeypatch.setattr(tables, "stored", lambda name: content if name == "methods" else read(name))
    assert tables.methods() not in (RESULTS / "methods-compared.md").read_text(encoding="utf-8")


def test_pairs_that_differ_are_as_many_as_the_pages_say(tables: ModuleType) -> None:
    pairs, uncorrected, left = tables.pairs_that_stand(tables.stored("methods"))
    assert f"Of the {pairs} pairs of configurations {uncorrected} differ by a paired t-test" in PAGE
    assert f"and {len(left)} of them after Holm" in PAGE
    assert not [pair for pair in left for name in pair if name.startswith("SmoothedGradientAscent")]
    assert (
        f"its rank correlation with that of the last evaluation is {tables.agreement(tables.stored('methods')):.2f}"
        in PAGE
    )
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"Of {pairs} pairs of 22 configurations [{len(left)} differ" in readme
    choosing = (ROOT / "docs" / "choosing.md").read_text("utf-8")
    assert f"Of {pairs} pairs of 22 configurations {len(left)} differ" in choosing


def test_the_cost_of_a_dynamic_rate_is_as_stored(tables: ModuleType) -> None:
    page = " ".join((ROOT / "docs" / "smoothing-rate.md").read_text("utf-8").split())
    small, large = tables.stored("dynamic-rate")
    assert (
        f"took {small['ratio']:.2f} times a fixed one with 1.3 M parameters (median of {small['steps']} steps)" in page
    )
    assert (
        f"and {large['ratio']:.2f} times with hidden size {large['hidden_size']} and {large['layers']} layers" in page
    )


def test_a_run_is_over_unlearned_below_the_reference_and_under_unlearned_above(tables: ModuleType) -> None:
    assert [tables.side(auc, 0.5) for auc in (0.02, 0.39, 0.45, 0.55, 0.61, 1.0)] == [
        "over", "over", "near", "near", "under", "under"
    ]  # fmt: skip


def test_the_floor_makes_the_papers_rate_look_level_with_npo(tables: ModuleType) -> None:
    runs = tables.reported(tables.stored("methods"))
    both = [runs[f"{name}, lr=0.000{lr}"] for name, lr in
            (("SmoothedGradientAscent smoothing_rate=-0.8", 2), ("NPO retain=nll", 8))]  # fmt: skip
    means = [
        [sum(tables.hypervolume(run["evaluations"], floor) for run in some) / 3 for some in both] for floor in (-12, -6)
    ]
    assert means[0] == pytest.approx([0.386, 0.388], abs=5e-4) and means[1] == pytest.approx([0.083, 0.0], abs=5e-4)


def test_the_retained_models_are_the_ceiling_whatever_their_order(tables: ModuleType) -> None:
    """Each against the others; the range of log10 p does not depend on which comes first."""
    models = tables.retained_models()
    assert len(models) == 4
    ratios = [model["forget_log_truth_ratio"] for _, model in sorted(tables.stored("retained")["models"].items())]
    p = [[forget_quality(one, other).p_value for other in ratios] for one in ratios]
    assert [round(one, 3) for one in p[0][1:]] == [0.266, 0.014, 0.165] and min(p[1][2:] + p[2][3:]) > 0.91
    assert "p = 0.27, 0.014 and 0.17" in PAGE and "at least 0.92" in PAGE
    nll = [fmean(model["forget_avg_nll"]) for model in tables.stored("retained")["models"].values()]
    assert round(nll[0], 1) == 9.4 and all(7.75 < one < 8.05 for one in nll[1:])
    areas = tables.areas(models)
    assert f"hypervolume between {min(areas):.2f} and {max(areas):.2f}" in PAGE
    logs = [point["authors/forget_quality_log10"] for point in models]
    assert min(logs) > -2 and all(0.45 < point["authors/mia/min_k"] < 0.6 for point in models)
    assert all(low <= log <= high for log, (low, high) in zip(logs, (point["range"] for point in models), strict=True))


def test_stored_results_are_small_and_json_is_compressed() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path.name for path in files if path.stat().st_size > 200_000 or path.suffix == ".json"] == []
