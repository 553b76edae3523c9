"""The composite score in a run: every part stands in metrics.json, utility as a share of the run's own start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sga.evaluation.metrics import overall_score


def test_a_run_has_the_composite_of_each_evaluation(finished_run: Path) -> None:
    lines = (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    (prefix,) = {name.rpartition("/")[0] for name in last if name.endswith("/composite/overall")}
    assert first[f"{prefix}/relative_utility"] == 1.0, "the run starts from the full model"
    parts = {
        "memorization": last[f"{prefix}/memorization"],
        "privacy": last[f"{prefix}/privacy"],
        "utility": last[f"{prefix}/relative_utility"],
    }
    assert last[f"{prefix}/overall"] == pytest.approx(overall_score(**parts), abs=1e-12)
    assert 0 < parts["utility"] <= 1 and f"{prefix}/s_min_k" in last
