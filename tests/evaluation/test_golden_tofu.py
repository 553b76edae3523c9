"""The numbers that TOFU's own aggregation and open-unlearning's evaluator gave, from the same per-sample values.

The files are in the folder `golden` of the environment variable SGA_DATA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import golden_numbers

from sga.evaluation.metrics import (
    extraction_strength,
    forget_quality,
    log_truth_ratio,
    model_utility,
    normalized_probability,
    privleak,
    probability,
    rouge,
    rouge_l_recall,
    truth_ratio_forget,
    truth_ratio_retain,
)

TOFU_NAMES = {"retain": "Retain", "real_authors": "Real Authors", "world_facts": "Real World"}
OPEN_UNLEARNING_NAMES = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}


@pytest.fixture(scope="module")
def tofu() -> dict[str, Any]:
    return golden_numbers("tofu_llama2_7b.json")


@pytest.fixture(scope="module")
def open_unlearning() -> dict[str, Any]:
    return golden_numbers("open_unlearning_tiny_retain.json")


# TOFU's aggregation of its published Llama-2-7B logs


def tofu_log_ratio(log: dict[str, Any], mean: Any = "geometric") -> np.ndarray:
    return log_truth_ratio(log["avg_paraphrased_loss"], log["average_perturb_loss"], mean)


def tofu_parts(log: dict[str, Any]) -> dict[str, float]:
    """The nine parts of Model Utility by our names."""
    parts = {"retain_probability": probability(log["retain"]["avg_gt_loss"])}
    for name in ("real_authors", "world_facts"):
        parts[f"{name}_probability"] = normalized_probability(
            log[name]["avg_gt_loss"], log[name]["average_perturb_loss"]
        )
    for name in TOFU_NAMES:
        parts[f"{name}_rouge"] = float(np.mean(log[name]["rougeL_recall"]))
        parts[f"{name}_truth_ratio"] = truth_ratio_retain(tofu_log_ratio(log[name]))
    return parts


def test_tofu_parts_of_model_utility(tofu):
    parts = tofu_parts(tofu["model_log"])
    for name, theirs in TOFU_NAMES.items():
        assert parts[f"{name}_probability"] == pytest.approx(tofu["expected"][f"Prob. {theirs}"], rel=1e-9)
        assert parts[f"{name}_rouge"] == pytest.approx(tofu["expected"][f"ROUGE {theirs}"], rel=1e-9)
        assert parts[f"{name}_truth_ratio"] == pytest.approx(tofu["expected"][f"Truth Ratio {theirs}"], rel=1e-9)


def test_tofu_model_utility(tofu):
    assert model_utility(tofu_parts(tofu["model_log"])) == pytest.approx(0.6226773637427151, rel=1e-9)
    assert model_utility(tofu_parts(tofu["model_log"])) == pytest.approx(tofu["expected"]["Model Utility"], rel=1e-9)
    reference = model_utility(tofu_parts(tofu["reference_log"]))
    assert reference == pytest.approx(tofu["expected_reference_model_utility"], rel=1e-9)


def test_tofu_forget_set(tofu):
    forget = tofu["model_log"]["forget"]
    assert probability(forget["avg_gt_loss"]) == pytest.approx(tofu["expected"]["Prob. Forget"], rel=1e-9)
    assert np.mean(forget["rougeL_recall"]) == pytest.approx(tofu["expected"]["ROUGE Forget"], rel=1e-9)
    score = truth_ratio_forget(tofu_log_ratio(forget))
    assert score == pytest.approx(tofu["expected"]["Truth Ratio Forget"], rel=1e-9)


def test_tofu_forget_quality(tofu):
    own, reference = tofu["model_log"]["forget"], tofu["reference_log"]["forget"]
    quality = forget_quality(
        tofu_log_ratio(own),
        tofu_log_ratio(reference),
        float(np.mean(own["avg_gt_loss"])),
        float(np.mean(reference["avg_gt_loss"])),
    )
    assert quality.p_value == pytest.approx(1.834066410994743e-21, rel=1e-9)
    assert quality.p_value == pytest.approx(tofu["expected"]["Forget Quality"], rel=1e-9)
    assert quality.ks_statistic == pytest.approx(tofu["expected"]["KS Test Forget"], rel=1e-12)
    assert quality.log10_p == pytest.approx(np.log10(1.834066410994743e-21), abs=1e-9)
    assert (quality.n, quality.n_reference) == (300, 300)
    # the model still has all of TOFU: its forget loss is far below that of the model that never saw the forget set
    assert quality.direction == "under-unlearned"


def test_tofu_numbers_tell_the_arithmetic_mean_from_the_geometric_one(tofu):
    """Negative control: the option is another metric, so the tests above would notice a swapped default."""
    own, reference = (tofu_log_ratio(tofu[log]["forget"], "arithmetic") for log in ("model_log", "reference_log"))
    assert abs(truth_ratio_forget(own) / tofu["expected"]["Truth Ratio Forget"] - 1) > 1e-3
    assert abs(forget_quality(own, reference).log10_p - np.log10(tofu["expected"]["Forget Quality"])) > 0.1


def test_tofu_rouge_of_100_generations(tofu):
    pairs = tofu["rouge_pairs"]
    assert len(pairs) == 100
    scores = rouge([pair["generated"] for pair in pairs], [pair["truth"] for pair in pairs])
    for name in ("rouge1_recall", "rougeL_recall"):
        assert scores[name] == pytest.approx([pair[name] for pair in pairs], rel=1e-12, abs=1e-12)
    assert rouge_l_recall(pairs[0]["generated"], pairs[0]["truth"]) == scores["rougeL_recall"][0]
    plain = rouge([pair["generated"] for pair in pairs], [pair["truth"] for pair in pairs], stemmer=False)
    assert plain["rougeL_recall"] != scores["rougeL_recall"]


# open-unlearning's evaluation of a tiny model


def open_unlearning_log_ratio(log: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(log R, nll of the right answer) of one set."""
    short = {"forget": "forget", **OPEN_UNLEARNING_NAMES}[name]
    right = "Q_A_PARA_Prob" if name in ("forget", "retain") else "Q_A_Prob"
    right_nll = log["per_sample"][f"{short}_{right}/avg_loss"]
    return log_truth_ratio(right_nll, log["per_sample"][f"{short}_Q_A_PERT_Prob/avg_loss"]), np.array(right_nll)


@pytest.mark.parametrize("name", ["forget", "retain", "real_authors", "world_facts"])
def test_open_unlearning_truth_ratio_of_each_row(open_unlearning, name):
    """Its R is P_wrong / (P_right + 1e-10) = R / (1 + 1e-10·e^nll): with that factor equal to rounding, without it
    apart by 1e-10·e^nll, at most 1e-3 here because the nll stay below 16.2.
    """
    short = {"forget": "forget_truth_ratio"} | {key: f"{s}_Truth_Ratio" for key, s in OPEN_UNLEARNING_NAMES.items()}
    theirs = np.array(open_unlearning["per_sample"][f"{short[name]}/score"])
    log_ratio, right_nll = open_unlearning_log_ratio(open_unlearning, name)
    assert right_nll.max() < 16.2
    with_epsilon = log_ratio - np.log1p(1e-10 * np.exp(right_nll))
    assert np.exp(with_epsilon) == pytest.approx(theirs, rel=1e-12)
    assert np.exp(log_ratio) == pytest.approx(theirs, rel=1.1e-3)


def test_open_unlearning_truth_ratio_scores(open_unlearning):
    """Means of rows that the epsilon moves by at most 1e-3, most of them by far less: 1e-4."""
    components = open_unlearning["components"]
    forget = truth_ratio_forget(open_unlearning_log_ratio(open_unlearning, "forget")[0])
    assert forget == pytest.approx(components["forget_truth_ratio"], rel=1e-4)
    for name, short in OPEN_UNLEARNING_NAMES.items():
        score = truth_ratio_retain(open_unlearning_log_ratio(open_unlearning, name)[0])
        assert score == pytest.approx(components[f"{short}_Truth_Ratio"], rel=1e-4)


def test_open_unlearning_probabilities(open_unlearning):
    """Its exp is taken in float32, hence 1e-6; its normalised one has 1e-10 in the denominator, hence 1e-9."""
    log, components = open_unlearning["per_sample"], open_unlearning["components"]
    for name in ("forget_Q_A_Prob", "retain_Q_A_Prob", "forget_Q_A_PARA_Prob"):
        assert probability(log[f"{name}/avg_loss"]) == pytest.approx(components[name], rel=1e-6)
    for short in ("ra", "wf"):
        value = normalized_probability(log[f"{short}_Q_A_Prob/avg_loss"], log[f"{short}_Q_A_PERT_Prob/avg_loss"])
        assert value == pytest.approx(components[f"{short}_Q_A_Prob_normalised"], rel=1e-9)


def test_open_unlearning_model_utility(open_unlearning):
    log = open_unlearning["per_sample"]
    parts = {"retain_probability": probability(log["retain_Q_A_Prob/avg_loss"])}
    for name, short in OPEN_UNLEARNING_NAMES.items():
        if name != "retain":
            parts[f"{name}_probability"] = normalized_probability(
                log[f"{short}_Q_A_Prob/avg_loss"], log[f"{short}_Q_A_PERT_Prob/avg_loss"]
            )
        parts[f"{name}_rouge"] = float(np.mean(log[f"{short}_Q_A_ROUGE/rougeL_recall"]))
        parts[f"{name}_truth_ratio"] = truth_ratio_retain(open_unlearning_log_ratio(open_unlearning, name)[0])
    assert model_utility(parts) == pytest.approx(open_unlearning["summary"]["model_utility"], rel=1e-3)
    # the epsilon moves one part of nine by 1e-5
    assert model_utility(parts) == pytest.approx(open_unlearning["summary"]["model_utility"], rel=1e-5)


def test_open_unlearning_rouge_of_100_generations(open_unlearning):
    pairs = open_unlearning["generations"]
    scores = rouge([pair["generation"] for pair in pairs], [pair["ground_truth"] for pair in pairs])
    assert scores["rougeL_recall"] == pytest.approx([pair["rougeL_recall"] for pair in pairs], rel=1e-12, abs=1e-12)


def test_open_unlearning_privleak_is_ours_at_a_reference_of_one_half(open_unlearning):
    """Its denominator has 1e-10 too, which is 2e-10 of 0.5."""
    summary = open_unlearning["summary"]
    assert privleak(summary["mia_min_k"], 0.5) == pytest.approx(summary["privleak"], rel=1e-9)


def test_open_unlearning_extraction_strength_has_a_floor_that_ours_has_not(open_unlearning):
    """A row of T tokens without any arg-max hit (exact memorisation 0) has strength 0; its loop gives 1/T."""
    log = open_unlearning["per_sample"]
    strength = np.array(log["extraction_strength/score"])
    without_hit = strength[np.array(log["exact_memorization/score"]) == 0]
    assert len(without_hit) > 100
    lengths = 1 / without_hit
    assert lengths == pytest.approx(lengths.round(), abs=1e-9)
    assert {extraction_strength(np.zeros(int(length))) for length in lengths.round()} == {0.0}
    # far from rounding: these 112 of 400 rows alone make up a third of its mean, and no row of it is 0
    assert without_hit.sum() / strength.sum() > 0.3
    assert strength.min() > 0


# Limits on real data


def test_a_reference_compared_with_itself_has_forget_quality_one(open_unlearning):
    log_ratio, nll = open_unlearning_log_ratio(open_unlearning, "forget")
    quality = forget_quality(log_ratio, log_ratio, float(nll.mean()), float(nll.mean()))
    assert (quality.p_value, quality.direction) == (1.0, "none")
