"""The composite score: by hand, at its ends, and on every row of a published table of 92 models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import golden_numbers

from sga.errors import UserError
from sga.evaluation.composite import add_composite, full_values
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import (
    correct_share,
    harmonic_mean,
    log_truth_ratio,
    memorization_score,
    overall_score,
    paraphrase_probability,
    privacy_score,
    relative_fluency,
    relative_membership,
    relative_utility,
    utility_score,
)

PRIVACY = {"loss": "s_loss", "zlib": "s_zlib", "min_k": "s_mink", "min_k_plus_plus": "s_minkpp"}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return golden_numbers("tofu_llama32_1b_methods.json")


def memorization_of(row: dict[str, Any]) -> float:
    return memorization_score(
        extraction_strength=1 - row["one_minus_es"],
        exact_memorization=1 - row["one_minus_em"],
        paraphrase_probability=1 - row["one_minus_paraprob"],
        truth_ratio=1 - row["one_minus_truth"],
    )


def privacy_of(row: dict[str, Any]) -> float:
    return privacy_score(**{name: row[column] for name, column in PRIVACY.items()})


def utility_of(row: dict[str, Any]) -> float:
    return utility_score(model_utility=row["model_utility"], fluency=row["fluency"])


def test_every_published_row(published: dict[str, Any]) -> None:
    """Memorisation, privacy of four attacks, utility, and utility over the full model's of the same epoch."""
    assert len(published["models"]) == 92
    for row in published["models"]:
        assert memorization_of(row) == pytest.approx(row["mem"], abs=1e-6), row["model"]
        assert privacy_of(row) == pytest.approx(row["privacy_mia"], abs=1e-6), row["model"]
        assert utility_of(row) == pytest.approx(row["utility"], abs=1e-6), row["model"]
        relative = relative_utility(utility_of(row), published["full_utility"][row["epoch"]])
        assert relative == pytest.approx(row["utility_rel"], abs=1e-6), row["model"]


def test_rows_with_an_attack_at_0_have_privacy_0_and_the_29_others_do_not(published: dict[str, Any]) -> None:
    zero = [row for row in published["models"] if min(row[column] for column in PRIVACY.values()) == 0]
    rest = [row for row in published["models"] if row not in zero]
    assert (len(zero), len(rest)) == (63, 29)
    assert [privacy_of(row) for row in zero] == [0.0] * 63
    for row in rest:
        assert privacy_of(row) == pytest.approx(row["privacy_mia"], abs=1e-11), row["model"]
        parts = [row[column] for column in PRIVACY.values()]
        assert min(parts) <= privacy_of(row) <= max(parts) + 1e-12, row["model"]


def test_negative_control_the_full_utility_of_the_other_epoch_is_seen(published: dict[str, Any]) -> None:
    full, swapped = published["full_utility"], {"ep5": "ep10", "ep10": "ep5"}
    off = [
        row["model"]
        for row in published["models"]
        if abs(relative_utility(utility_of(row), full[swapped[row["epoch"]]]) - row["utility_rel"]) > 1e-6
    ]
    assert len(off) > 50


def test_by_hand() -> None:
    # 4 / (1/0.8 + 1/0.4 + 1/0.5 + 1/0.25) = 4 / 9.75
    mem = memorization_score(
        extraction_strength=0.2, exact_memorization=0.6, paraphrase_probability=0.5, truth_ratio=0.75
    )
    assert mem == pytest.approx(4 / 9.75, abs=1e-12)
    assert utility_score(model_utility=0.6, fluency=0.3) == pytest.approx(0.4, abs=1e-12)
    assert overall_score(memorization=1.0, privacy=0.5, utility=0.5) == pytest.approx(0.6, abs=1e-12)
    assert privacy_score(loss=1, zlib=1, min_k=1, min_k_plus_plus=1) == 1.0
    assert relative_utility(0.8, 0.7) == 1.0 and relative_fluency(0.3, 0.6) == 0.5


def test_a_part_at_0_makes_it_0_and_the_smallest_positive_part_does_not() -> None:
    assert overall_score(memorization=0.9, privacy=0.0, utility=0.9) == 0.0
    assert memorization_score(
        extraction_strength=1.0, exact_memorization=0.0, paraphrase_probability=0.0, truth_ratio=0.0
    ) == 0.0  # fmt: skip
    assert 0 < harmonic_mean(a=1e-300, b=1.0) < 1e-299


@pytest.mark.parametrize("wrong", [math.nan, -0.01, 1.01, math.inf])
def test_parts_that_are_no_shares_are_refused_by_name(wrong: float) -> None:
    for score, names in (
        (memorization_score, ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio")),
        (privacy_score, tuple(PRIVACY)),
        (utility_score, ("model_utility", "fluency")),
        (overall_score, ("memorization", "privacy", "utility")),
    ):
        for name in names:
            with pytest.raises(UserError, match=name):
                score(**{**dict.fromkeys(names, 0.5), name: wrong})  # type: ignore[operator]
    with pytest.raises(UserError, match="auc must be in"):
        relative_membership(wrong, 0.5)
    with pytest.raises(UserError, match="at least one part"):
        harmonic_mean()


def test_membership_is_measured_from_the_references_value_on_both_sides() -> None:
    assert relative_membership(0.5, 0.5) == 1
    assert relative_membership(0.4, 0.5) == pytest.approx(0.8) == pytest.approx(relative_membership(0.6, 0.5))
    assert relative_membership(0.9, 0.4) == 0
    with pytest.raises(UserError, match="above 0"):
        relative_membership(0.5, 0.0)


def test_the_correct_share_is_one_over_one_plus_truth_ratio_and_never_underflows() -> None:
    right, wrong = [1.0, 800.0], [[2.0, 3.0], [801.0, 802.0]]
    share = correct_share(right, wrong)
    assert share == pytest.approx(1 / (1 + np.exp(log_truth_ratio(right, wrong))), abs=1e-12)
    # of probabilities, where they do not underflow: e^-1 / (e^-1 + e^-2.5)
    assert share[0] == pytest.approx(math.exp(-1) / (math.exp(-1) + math.exp(-2.5)), abs=1e-12)
    assert share[1] == pytest.approx(share[0], abs=1e-12)
    assert paraphrase_probability([0.0, math.log(2)]) == 0.75


# ---- of an evaluation -----------------------------------------------------------------------------------------------

AUCS = {"loss": 0.9, "zlib": 0.6, "min_k": 0.5, "min_k_plus_plus": 0.4}
FULL = {"model_utility": 0.8, "forget/fluency": 0.9}


def evaluated(**left_out: bool) -> Evaluation:
    """Two forget rows: p of the paraphrase 1/2 and 1/4, of the wrong answers 1/2 and 1/4 (their geometric mean)."""
    evaluation = Evaluation("tofu", bootstrap=None)
    for number, p in enumerate((0.5, 0.25)):
        wrong = [] if "perturbed" in left_out else [-math.log(p) - 1, -math.log(p) + 1]
        evaluation.rows["forget", str(number)] = {"paraphrased_nll": -math.log(p), "perturbed_nll": wrong}
    evaluation.metrics = {
        "tofu/forget/extraction_strength": 0.2,
        "tofu/forget/exact_memorization": 0.6,
        "tofu/model_utility": 0.6,
        "tofu/forget/fluency": 0.45,
        **{f"tofu/mia/{attack}": auc for attack, auc in AUCS.items()},
    }
    return evaluation


def test_an_evaluation_has_each_score_with_its_parts() -> None:
    evaluation = evaluated()
    reference = dict.fromkeys(AUCS, 0.5)
    add_composite(evaluation, [reference], FULL)
    found = {name.removeprefix("tofu/composite/"): value for name, value in evaluation.metrics.items()}
    assert found["paraphrase_probability"] == pytest.approx(0.375) and found["correct_share"] == pytest.approx(0.5)
    memorization = 4 / (1 / 0.8 + 1 / 0.4 + 1 / 0.625 + 1 / 0.5)
    privacy = 4 / (1 / 0.2 + 1 / 0.8 + 1 / 1 + 1 / 0.8)
    utility = 2 / (1 / 0.6 + 1 / 0.5)  # fluency is half of the full model's
    assert found["ngram_fluency"] == pytest.approx(0.5) and found["utility"] == pytest.approx(utility)
    relative = utility / (2 / (1 / 0.8 + 1))
    assert found["relative_utility"] == pytest.approx(relative)
    assert [found[f"s_{attack}"] for attack in AUCS] == pytest.approx([0.2, 0.8, 1.0, 0.8])
    assert (found["memorization"], found["privacy"]) == pytest.approx((memorization, privacy))
    assert found["overall"] == pytest.approx(3 / (1 / memorization + 1 / privacy + 1 / relative))
    assert not evaluation.absent and not evaluation.notes


def test_several_references_give_means_and_a_range_and_their_order_changes_nothing() -> None:
    references = [dict.fromkeys(AUCS, 0.5), {**dict.fromkeys(AUCS, 0.5), "loss": 0.8}]
    both, alone = [], []
    for order in (references, references[::-1]):
        evaluation = evaluated()
        add_composite(evaluation, order, FULL)
        both.append(evaluation.metrics)
    for reference in references:
        evaluation = evaluated()
        add_composite(evaluation, [reference], FULL)
        alone.append(evaluation.metrics["tofu/composite/privacy"])
    assert both[0] == both[1]
    assert both[0]["tofu/composite/privacy"] == pytest.approx(sum(alone) / 2)
    assert both[0]["tofu/composite/privacy_min"] == min(alone) < max(alone) == both[0]["tofu/composite/privacy_max"]


def test_what_is_missing_is_said_and_never_filled_in() -> None:
    evaluation = evaluated(perturbed=False)
    add_composite(evaluation, [], {}, "0.2")
    assert not any("/composite/" in name for name in evaluation.metrics)
    said = evaluation.absent
    assert "paraphrased and perturbed answers" in said["tofu/composite/memorization"]
    assert "no reference" in said["tofu/composite/privacy"] and "not known" in said["tofu/composite/utility"]
    assert said["tofu/composite/overall"] == "needs memorization and privacy and utility, which are absent"
    assert "share of 0.2" in evaluation.notes[0]
    evaluation = evaluated()
    add_composite(evaluation, [{**AUCS, "zlib": 0.0}], FULL)
    assert "reference_auc must be above 0" in evaluation.absent["tofu/composite/privacy"]
    assert full_values(evaluation.metrics, "tofu") == {"model_utility": 0.6, "forget/fluency": 0.45}
