"""The composite score in a run: scores and parts stand in metrics.json, what cannot be had is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sga.evaluation.metrics import memorization_score


def test_a_run_has_the_composite_of_each_evaluation(finished_run: Path) -> None:
    lines = (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert all("authors/composite/memorization" in json.loads(line) for line in lines)
    reference = json.loads((finished_run.parent / "retain" / "metrics.json").read_text(encoding="utf-8"))
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        ours, theirs = last[f"authors/mia/{attack}"], reference[f"authors/mia/{attack}"]
        expected = 1 - min(abs(ours - theirs) / theirs, 1)
        assert last[f"authors/composite/s_{attack}"] == pytest.approx(expected, abs=1e-12)
    memorization = memorization_score(
        extraction_strength=last["authors/forget/extraction_strength"],
        exact_memorization=last["authors/forget/exact_memorization"],
        paraphrase_probability=last["authors/composite/paraphrase_probability"],
        truth_ratio=last["authors/composite/correct_share"],
    )
    assert last["authors/composite/memorization"] == pytest.approx(memorization, abs=1e-12)
    assert "the full model's model utility or fluency is 0" in last["absent"]["authors/composite/utility"]
    assert "needs utility" in last["absent"]["authors/composite/overall"]
