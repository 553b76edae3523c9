"""The tables of docs/results/hand-over.md are those that the judge makes of the stored rows."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hand_over_judge", ROOT / "benchmarks" / "hand_over_judge.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hand_over_judge"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["hand-over", "hand-over-development", "hand-over-pretrained"])
def test_tables_are_recomputed_from_the_stored_rows(judge: ModuleType, name: str) -> None:
    rows = judge.judge(judge.read(RESULTS / f"{name}.json.gz"), reserved=name.endswith("pretrained"))
    page = (RESULTS / "hand-over.md").read_text(encoding="utf-8")
    assert judge.table(rows) in page
    assert name.endswith("development") or judge.seeds(rows) in page


def fake_run(nll: list[float], ratio: list[float], **metrics: float) -> dict[str, Any]:
    """A run of one evaluation with 4 forget rows; 4 holdout rows of nll 1 to 4."""
    evaluation = {
        "step": 0, "epoch": 0.0, "authors/model_utility_unseen": 0.9, "authors/forget/degenerate": 0.0,
        "authors/forget/extraction_strength": 0.0, "authors/forget/rouge_l_recall": 0.0,
        "authors/retain_unseen/probability": 0.9, "authors/retain_unseen/rouge_l_recall": 0.9,
        "authors/retain_unseen/truth_ratio": 0.9, "handover/all/rows": 4.0,
        "handover/all/forget/extraction_strength": 0.1, "handover/all/comparison/extraction_strength": 0.2, **metrics,
    }  # fmt: skip
    forget = [{"avg_nll": one, "log_truth_ratio": other, "fluency": 0.8} for one, other in zip(nll, ratio, strict=True)]
    return {"evaluations": [evaluation], "rows": {"0": {"forget": forget, "holdout": [1.0, 2.0, 3.0, 4.0]}}}


def test_an_evaluation_is_judged_by_hand(judge: ModuleType) -> None:
    """AUC: 0.5 of the retained models, whose nll are the holdout's; 1 where every forget row is below them."""
    usual, same = [1.0, 2.0, 3.0, 4.0], [-0.2, 0.0, 0.1, 0.3]
    world = {f"judged-{number}": fake_run(usual, same) for number in (1, 2, 3)}
    known = fake_run([0.1, 0.2, 0.3, 0.4], [9.0, 9.1, 9.2, 9.3])
    known["evaluations"].append({**known["evaluations"][0], "step": 5, "authors/model_utility_unseen": 0.45})
    known["rows"]["5"] = fake_run(usual, same)["rows"]["0"]
    found = judge.World(1, {**world, "recipe": known}, judge.Rule()).all()
    start, last = (next(one for one in found if one.recipe == "recipe" and one.choice == c) for c in ("rule", "last"))
    assert (start.auc, start.auc_gap, last.auc_gap) == (1.0, 0.5, 0.0)
    assert start.log10_p == pytest.approx(math.log10(2 / 70)), "all of one sample above the other, 2/C(8, 4)"
    assert (last.log10_p, last.utility_share, last.fluency_share) == (0.0, 0.5, pytest.approx(1.0))
    assert (start.meets, last.meets) == (2, 3)
    assert start.shortfall == pytest.approx(math.log10(0.05) - math.log10(2 / 70) + 0.35 / 0.15)
    assert last.shortfall == pytest.approx(4.0), "0.4 below 0.9, in units of 0.1"
    nothing = {"authors/model_utility_unseen": 0.0}
    known["evaluations"] = [{**one, **nothing} for one in known["evaluations"]]
    [reserved] = [
        one
        for one in judge.World(1, {**world, "recipe": known}, judge.Rule(), reserved=True).all()
        if one.recipe == "recipe" and one.choice == "last"
    ]
    assert (reserved.utility_share, reserved.meets, reserved.shortfall) == (1.0, 4, 0.0), "the nine parts are not asked"
    retained = [one for one in found if one.recipe == "retained"]
    assert [one.meets for one in retained] == [4, 4, 4]


def test_the_rule_takes_the_first_of_equals(judge: ModuleType) -> None:
    evaluations = [{"handover/all/rows": 4.0, "handover/all/forget/extraction_strength": value,
                    "handover/all/comparison/extraction_strength": 0.2} for value in (0.9, 0.4, 0.6, 0.4)]  # fmt: skip
    assert judge.Rule().chosen(evaluations) == 1


def test_a_world_that_lacks_a_run_is_left_out_whole(judge: ModuleType) -> None:
    usual = fake_run([1.0, 2.0, 3.0, 4.0], [-0.2, 0.0, 0.1, 0.3])
    several = {**usual, "evaluations": usual["evaluations"] * 2, "rows": {**usual["rows"], "5": usual["rows"]["0"]}}
    runs = {f"{world}/{name}": usual for world in (1, 2) for name in ("judged-1", "judged-2", "judged-3")}
    runs |= {"1/a": several, "1/b": several, "2/a": several}
    assert {row.world for row in judge.judge({"runs": runs})} == {1}
