"""A whole evaluation of a small model on TOFU forget10 against what another evaluator measured on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import all_rows, golden_numbers, shipped

from sga.cli import run_verb
from sga.evaluation.metrics import memorization_score


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return golden_numbers("open_unlearning_tiny_retain.json")


def their_ratios(rows: list[dict[str, Any]]) -> np.ndarray:
    """open-unlearning's R = P_wrong / (P_right + 1e-10), [N], of our losses."""
    right = np.exp(-np.array([row["paraphrased_nll"] for row in rows]))
    wrong = np.exp([-np.mean(row["perturbed_nll"]) for row in rows])
    return wrong / (right + 1e-10)


@pytest.mark.slow
def test_every_row_equals_the_published_evaluator(
    golden: dict[str, Any], tofu_root: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """avg_nll of 400 + 400 + 100 + 117 rows to 1e-4, AUCs and utility to 1e-3, ROUGE of at least 99 % of rows.

    Memorisation of every forget row exactly, and truth ratios by their formula to 2e-4 of their size.
    """
    run_verb(
        [
            "validate",
            *shipped("tofu-small", "sga"),
            f"--model.language_model.name_or_path={tiny_models / 'retain'}",
            f"--data.root={tofu_root}",
            f"--run.folder={tmp_path / 'run'}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--membership_inference.reference_auc=0.5",
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in all_rows(tmp_path / "run"):
        rows.setdefault(row["set"], []).append(row)
    per_sample = golden["per_sample"]
    for found in rows.values():
        found.sort(key=lambda row: int(row["id"].split("/")[1]))
    for prefix, name in (("forget", "forget"), ("retain", "retain"), ("ra", "real_authors"), ("wf", "world_facts")):
        ours = rows[name]
        for column, field in (("Q_A_Prob", "avg_nll"), ("Q_A_PARA_Prob", "paraphrased_nll")):
            if f"{prefix}_{column}/avg_loss" in per_sample:
                theirs = per_sample[f"{prefix}_{column}/avg_loss"]
                np.testing.assert_allclose([row[field] for row in ours], theirs, atol=1e-4, rtol=0)
        theirs = per_sample[f"{prefix}_Q_A_PERT_Prob/avg_loss"]
        np.testing.assert_allclose([row["perturbed_nll"] for row in ours], theirs, atol=1e-4, rtol=0)
        ratios = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        np.testing.assert_allclose(their_ratios(ours), per_sample[f"{ratios}/score"], rtol=2e-4)  # two nll, 1e-4 each
        recalls = np.array([row["rouge_l_recall"] for row in ours])
        same = np.isclose(recalls, per_sample[f"{prefix}_Q_A_ROUGE/rougeL_recall"], atol=1e-9)
        assert same.mean() >= 0.99  # ties in greedy decoding fall either way between batch shapes
    hits = np.array([row["exact_memorization"] for row in rows["forget"]])
    np.testing.assert_allclose(hits, per_sample["exact_memorization/score"], atol=1e-6)  # theirs are float32
    strengths = [row["extraction_strength"] for row in rows["forget"]]
    # Their loop ends one token before the end, so an answer of T tokens whose last one is no hit gets 1 / T, not 0.
    without_eos = [row["tokens"] - 1 for row in rows["forget"]]
    floored = [strength or 1 / tokens for strength, tokens in zip(strengths, without_eos, strict=True)]
    np.testing.assert_allclose(floored, per_sample["extraction_strength/score"], atol=1e-9)
    assert 0 < strengths.count(0) < 400, "both cases occur"
    summary = golden["summary"]
    assert metrics["tofu/model_utility"] == pytest.approx(summary["model_utility"], abs=1e-3)
    assert metrics["tofu/mia/loss"] == pytest.approx(summary["mia_loss"], abs=1e-3)
    for score in ("min_k", "min_k_plus_plus", "zlib"):
        assert metrics[f"tofu/mia/{score}"] == pytest.approx(summary[f"mia_{score}"], abs=1e-3)
    assert metrics["tofu/privleak"] == pytest.approx(summary["privleak"], abs=0.2)  # 100·(0.5 − AUC)/0.5, AUC to 1e-3
    assert metrics["tofu/forget/exact_memorization"] == pytest.approx(summary["exact_memorization"], abs=1e-6)
    assert metrics["tofu/forget/extraction_strength"] == pytest.approx(np.mean(strengths), abs=1e-12)
    assert metrics["tofu/forget/probability"] == pytest.approx(summary["forget_Q_A_Prob"], abs=1e-6)
    # Their R = P_wrong/(P_right + 1e-10), ours is taken in log space; see tests/test_golden_tofu.py for the difference.
    assert metrics["tofu/forget/truth_ratio"] == pytest.approx(summary["forget_truth_ratio"], abs=1.5e-3)
    # The composite's memorisation, of their rows and of ours; the one departure is the 1 / T of extraction strength.
    right, wrong = (np.array(per_sample[f"forget_Q_A_{part}_Prob/avg_loss"]) for part in ("PARA", "PERT"))
    parts = {
        "exact_memorization": np.mean(per_sample["exact_memorization/score"]),
        "paraphrase_probability": np.exp(-right).mean(),
        "truth_ratio": (np.exp(-right) / (np.exp(-right) + np.exp(-wrong.mean(axis=1)))).mean(),
    }
    theirs = np.array(per_sample["extraction_strength/score"])
    corrected = memorization_score(extraction_strength=np.where(strengths, theirs, 0).mean(), **parts)
    assert metrics["tofu/composite/memorization"] == pytest.approx(corrected, abs=1e-5)
    published = memorization_score(extraction_strength=theirs.mean(), **parts)
    assert 1e-5 < metrics["tofu/composite/memorization"] - published < 0.02, "they find more extracted, by 1 / T a row"


@pytest.mark.slow
def test_the_composite_of_our_own_rows_is_what_plain_loops_make_of_them(
    tofu_root: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """The full model against the retain model on 24 rows of each set: memorisation and privacy, part by part."""
    for name, more in (("retain", []), ("full", [f"--evaluation.reference={tmp_path / 'retain'}"])):
        run_verb(
            [
                "validate",
                *shipped("tofu-small", "sga"),
                f"--model.language_model.name_or_path={tiny_models / name}",
                f"--data.root={tofu_root}",
                "--data.evaluation_rows=24",
                f"--run.folder={tmp_path / name}",
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
                "--model_utility.generate=false",
                *more,
            ]
        )
    metrics = json.loads((tmp_path / "full" / "metrics.json").read_text(encoding="utf-8"))
    theirs = json.loads((tmp_path / "retain" / "metrics.json").read_text(encoding="utf-8"))
    rows = [row for row in all_rows(tmp_path / "full") if row["set"] == "forget"]
    left = {"es": 0.0, "em": 0.0, "paraphrase": 0.0, "truth": 0.0}
    for row in rows:
        right = np.exp(-row["paraphrased_nll"])
        wrong = np.prod([np.exp(-nll) for nll in row["perturbed_nll"]]) ** (1 / len(row["perturbed_nll"]))
        values = (row["extraction_strength"], row["exact_memorization"], right, right / (right + wrong))
        left = {part: total + value / len(rows) for (part, total), value in zip(left.items(), values, strict=True)}
    memorization = 4 / sum(1 / (1 - part) for part in left.values())
    assert metrics["tofu/composite/memorization"] == pytest.approx(memorization, abs=1e-9)
    likeness = []
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        own, reference = metrics[f"tofu/mia/{attack}"], theirs[f"tofu/mia/{attack}"]
        likeness.append(1 - min(abs(own - reference) / reference, 1))
        assert metrics[f"tofu/composite/s_{attack}"] == pytest.approx(likeness[-1], abs=1e-9)
    privacy = 0 if min(likeness) == 0 else 4 / sum(1 / one for one in likeness)
    assert metrics["tofu/composite/privacy"] == pytest.approx(privacy, abs=1e-9)
    assert "tofu/composite/overall" in metrics["absent"], "only a run that trains knows its full model's utility"
