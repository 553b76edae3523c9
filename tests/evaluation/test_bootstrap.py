"""Resampling: exactly the statistic of explicitly resampled rows, and intervals that cover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sga.data.records import Record
from sga.evaluation.aggregation import add_membership, add_utility
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import (
    MODEL_UTILITY_PARTS,
    Floats,
    log_truth_ratio,
    membership_auc,
    model_utility,
    normalized_probability,
    perplexity,
    privleak,
    probability,
    truth_ratio_retain,
)


def rows_of(counts: Floats) -> list[int]:
    """The rows of one resample, each as often as it was drawn."""
    return [row for row, count in enumerate(counts) for _ in range(int(count))]


# ---- resamples ------------------------------------------------------------------------------------------------------


def test_a_resample_has_as_many_rows_as_the_set_and_is_drawn_evenly() -> None:
    counts = Bootstrap(resamples=4000, seed=1).counts("forget", 10)
    assert counts.shape == (4000, 10)
    assert (counts.sum(axis=1) == 10).all() and counts.min() == 0
    # A count is binomial (10, 1/10): mean 1, variance 0.9, so the mean of 4000 has a deviation of 0.015.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts.var(axis=0), 0.9, atol=0.1)
    assert (counts == 0).mean() == pytest.approx(0.9**10, abs=0.01)


def test_resamples_are_one_per_set_and_repeat_with_the_seed() -> None:
    bootstrap = Bootstrap(resamples=50)
    first = bootstrap.counts("forget", 20)
    assert bootstrap.counts("forget", 20) is first, "of every metric of the set"
    np.testing.assert_array_equal(Bootstrap(resamples=50).counts("forget", 20), first)
    for other in (
        bootstrap.counts("retain", 20),
        Bootstrap(resamples=50, seed=1).counts("forget", 20),
        bootstrap.counts("forget", 21)[:, :20],
    ):
        assert (other != first).any()


def test_means_and_ratios_are_those_of_the_resampled_rows() -> None:
    bootstrap, rng = Bootstrap(resamples=30), np.random.default_rng(0)
    values, weights = rng.normal(size=17), rng.uniform(1, 9, size=17)
    means, ratios = bootstrap.means("forget", values), bootstrap.ratios("forget", values, weights)
    for number, counts in enumerate(bootstrap.counts("forget", 17)):
        rows = rows_of(counts)
        assert means[number] == pytest.approx(values[rows].mean(), abs=1e-12)
        assert ratios[number] == pytest.approx(values[rows].sum() / weights[rows].sum(), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_aucs_are_scikit_learn_s_on_the_resampled_rows(ties: bool) -> None:
    bootstrap, rng = Bootstrap(resamples=300, seed=2), np.random.default_rng(0)
    members, others = rng.normal(size=23), rng.normal(0.5, 2, size=11)
    if ties:
        members, others = members.round(), others.round()
        assert len(np.intersect1d(members, others)) > 2
    found = bootstrap.aucs("forget", members, "holdout", others)
    pairs = zip(bootstrap.counts("forget", 23), bootstrap.counts("holdout", 11), strict=True)
    for auc, (ours, theirs) in zip(found, pairs, strict=True):
        resampled, beside = members[rows_of(ours)], others[rows_of(theirs)]
        labels = [1] * len(resampled) + [0] * len(beside)
        assert auc == pytest.approx(roc_auc_score(labels, -np.concatenate([resampled, beside])), abs=1e-12)
        assert auc == pytest.approx(membership_auc(resampled, beside), abs=1e-12)
    assert found.std() > 0.01


def test_aucs_of_sets_that_are_told_apart_are_one() -> None:
    bootstrap = Bootstrap(resamples=20)
    assert (bootstrap.aucs("forget", np.arange(5.0), "holdout", np.arange(9.0, 12.0)) == 1).all()
    assert (bootstrap.aucs("forget", np.arange(9.0, 12.0), "holdout", np.arange(5.0)) == 0).all()
    assert (bootstrap.aucs("forget", np.ones(4), "holdout", np.ones(3)) == 0.5).all()


# ---- intervals ------------------------------------------------------------------------------------------------------


def test_an_interval_is_the_quantiles_of_the_draws() -> None:
    draws = np.arange(101.0)
    assert Bootstrap().interval(draws) == pytest.approx((2.5, 97.5))
    assert Bootstrap(level=0.8).interval(draws) == pytest.approx((10.0, 90.0))


@pytest.mark.parametrize("rows", [30, 300])
def test_intervals_agree_with_the_plain_bootstrap_of_the_mean(rows: int) -> None:
    """Two independent bootstraps of 4000 resamples: ends differ by their own sampling error, 3 % of the width here."""
    values = np.random.default_rng(rows).exponential(size=rows)
    bootstrap = Bootstrap(resamples=4000)
    low, high = bootstrap.interval(bootstrap.means("forget", values))
    plain = np.random.default_rng(5).choice(values, (4000, rows)).mean(axis=1)
    plain_low, plain_high = np.quantile(plain, [0.025, 0.975])
    assert low == pytest.approx(plain_low, abs=0.06 * (high - low))
    assert high == pytest.approx(plain_high, abs=0.06 * (high - low))
    # The normal approximation, roughly
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(rows), rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 samples of 40 normal numbers: 95 % intervals cover 0 in 178 to 199 of them.

    The percentile bootstrap of 40 rows covers 94 % (its variance is short by 1/40); three deviations of a binomial
    (200, 0.94) are 10. An interval of another level does not: 80 % would cover 143 to 177.
    """
    rng = np.random.default_rng(0)
    covered = dict.fromkeys((0.95, 0.8), 0)
    for seed in range(200):
        values = rng.normal(size=40)
        for level in covered:
            bootstrap = Bootstrap(resamples=300, seed=seed, level=level)
            low, high = bootstrap.interval(bootstrap.means("forget", values))
            covered[level] += low <= 0 <= high
    assert 178 <= covered[0.95] <= 199
    assert 143 <= covered[0.8] <= 177


# ---- metrics of several sets ----------------------------------------------------------------------------------------


def evaluation_of(sizes: dict[str, int], resamples: int) -> Evaluation:
    """Rows with invented losses and ROUGE values."""
    rng = np.random.default_rng(3)
    evaluation = Evaluation("own", bootstrap=Bootstrap(resamples=resamples))
    for name, size in sizes.items():
        for number in range(size):
            row = evaluation.row(name, Record(f"{name}/{number}", "q", "a"))
            row["avg_nll"], row["paraphrased_nll"] = rng.exponential(size=2).tolist()
            row["perturbed_nll"] = rng.exponential(2, size=3).tolist()
            row["rouge_l_recall"] = float(rng.random())
            row["min_k"] = float(rng.normal(name == "holdout"))
    return evaluation


def utility(rows: dict[str, Sequence[dict[str, list[float]]]]) -> float:
    """Model utility of rows, part by part."""
    parts: dict[str, float] = {}
    for name, these in rows.items():
        nll = [row["avg_nll"] for row in these]
        wrong = [row["perturbed_nll"] for row in these]
        right = [row["paraphrased_nll"] for row in these]
        parts[f"{name}_probability"] = probability(nll) if name == "retain" else normalized_probability(nll, wrong)
        parts[f"{name}_rouge"] = float(np.mean([row["rouge_l_recall"] for row in these]))
        parts[f"{name}_truth_ratio"] = truth_ratio_retain(log_truth_ratio(right, wrong))
    assert parts.keys() == set(MODEL_UTILITY_PARTS)
    return model_utility(parts)


def test_the_interval_of_model_utility_is_that_of_the_slow_loop() -> None:
    """All nine parts anew on each resample of the three sets, in a loop over the published formulas."""
    sizes = {"retain": 12, "real_authors": 7, "world_facts": 9}
    evaluation = evaluation_of(sizes, resamples=80)
    add_utility(evaluation, {})
    assert evaluation.bootstrap is not None
    draws = []
    for number in range(80):
        resampled = {
            name: [evaluation.of_set(name)[row] for row in rows_of(evaluation.bootstrap.counts(name, size)[number])]
            for name, size in sizes.items()
        }
        draws.append(utility(resampled))
    low, high = np.quantile(draws, [0.025, 0.975])
    found = evaluation.metrics
    assert found["own/model_utility"] == pytest.approx(utility({n: evaluation.of_set(n) for n in sizes}), abs=1e-12)
    assert found["own/model_utility/ci_low"] == pytest.approx(low, abs=1e-12)
    assert found["own/model_utility/ci_high"] == pytest.approx(high, abs=1e-12)
    assert low < found["own/model_utility"] < high


def test_utility_is_zero_where_a_part_is_and_says_nothing_about_division() -> None:
    evaluation = evaluation_of({"retain": 5, "real_authors": 5, "world_facts": 5}, resamples=50)
    for row in evaluation.of_set("retain"):
        row["rouge_l_recall"] = 0.0
    with np.errstate(divide="raise", invalid="raise"):
        add_utility(evaluation, {})
    assert {evaluation.metrics[f"own/model_utility{end}"] for end in ("", "/ci_low", "/ci_high")} == {0.0}


def test_intervals_of_auc_and_privleak_belong_to_the_same_resamples() -> None:
    """PrivLeak falls as the AUC rises, so the ends change places."""
    evaluation = evaluation_of({"forget": 15, "holdout": 12}, resamples=200)
    add_membership(evaluation, 0.5, {})
    found = evaluation.metrics
    assert found["own/mia/min_k/ci_low"] < found["own/mia/min_k"] < found["own/mia/min_k/ci_high"]
    for ours, theirs in (("", ""), ("/ci_low", "/ci_high"), ("/ci_high", "/ci_low")):
        assert found[f"own/privleak{ours}"] == pytest.approx(privleak(found[f"own/mia/min_k{theirs}"], 0.5), abs=1e-9)


def test_without_a_bootstrap_there_are_values_and_no_intervals() -> None:
    sizes = {"forget": 5, "holdout": 4, "retain": 5, "real_authors": 5, "world_facts": 5}
    with_intervals, without = evaluation_of(sizes, resamples=10), evaluation_of(sizes, resamples=10)
    without.bootstrap = None
    for evaluation in (with_intervals, without):
        add_utility(evaluation, {})
        add_membership(evaluation, 0.5, {})
    assert not [name for name in without.metrics if "/ci_" in name]
    assert without.metrics == with_intervals.values()
    assert len(with_intervals.metrics) > 2 * len(without.metrics)


def test_token_weighted_perplexity_of_a_resample() -> None:
    """The ratio of sums, not the mean of ratios: a long text that is drawn twice weighs twice."""
    bootstrap = Bootstrap(resamples=40)
    nll, tokens = np.array([3.0, 40.0, 8.0, 1.0]), np.array([2.0, 10.0, 5.0, 1.0])
    draws: Floats = bootstrap.ratios("normal", nll, tokens)
    for drawn, counts in zip(draws, bootstrap.counts("normal", 4), strict=True):
        rows = rows_of(counts)
        assert drawn == pytest.approx(perplexity(nll[rows], tokens[rows]).log, abs=1e-12)
