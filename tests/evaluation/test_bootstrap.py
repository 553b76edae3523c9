"""Resampling: exactly the statistic of explicitly resampled rows, and intervals that cover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from sga.data.records import Record
from sga.evaluation.aggregation import add_membership, add_perplexity, add_utility
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
@pytest.mark.runs
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
    assert evaluation.metrics["own/model_utility"] == 0 and "own/model_utility/ci_low" not in evaluation.metrics
    assert "own/model_utility has no interval: every resample gives the same" in evaluation.notes


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


# ---- intervals of no width ------------------------------------------------------------------------------------------


def test_one_row_has_no_interval_and_a_note_says_so() -> None:
    """Every resample of one row is that row: [8.46, 8.46] would claim certainty."""
    sizes = {"forget": 1, "holdout": 4, "retain": 1, "real_authors": 5, "world_facts": 5}
    evaluation = evaluation_of(sizes, resamples=50)
    evaluation.add_mean("own/forget/avg_nll", "forget", [8.46])
    add_utility(evaluation, {})
    add_membership(evaluation, 0.5, {})
    add_perplexity(evaluation, "forget", np.array([8.46]), np.array([1.0]))
    with_interval = {name.removesuffix("/ci_low") for name in evaluation.metrics if name.endswith("/ci_low")}
    parts = ("probability", "rouge_l_recall", "truth_ratio")
    assert with_interval == {f"own/{name}/{part}" for name in ("real_authors", "world_facts") for part in parts}
    assert {"own/model_utility", "own/mia/min_k", "own/privleak", "perplexity/forget"} <= set(evaluation.metrics)
    assert {f"no interval for what is computed from one row: {name}" for name in ("forget", "retain")} <= set(
        evaluation.notes
    )


def test_an_auc_of_one_against_many_has_no_interval() -> None:
    for sizes in ({"forget": 1, "holdout": 30}, {"forget": 30, "holdout": 1}):
        evaluation = evaluation_of(sizes, resamples=50)
        add_membership(evaluation, None, {})
        assert not [name for name in evaluation.metrics if "/ci_" in name]


def test_shares_at_an_end_of_their_range_have_wilsons_bound() -> None:
    """0 of 40: Wilson's upper bound is 1.96² / (40 + 1.96²) = 0.0876; of 100 points a hundred times that."""
    z = 1.959963984540054
    reach = z**2 / (40 + z**2)
    assert reach == pytest.approx(stats.binomtest(0, 40).proportion_ci(0.95, "wilson").high, abs=1e-12)
    evaluation = Evaluation("own")
    for name, value, low, high in (
        ("own/forget/rouge_l_recall", 0.0, 0.0, reach),
        ("own/forget/exact_memorization", 1.0, 1 - reach, 1.0),
        ("muse/verbmem", 100.0, 100 - 100 * reach, 100.0),
        ("book/forget/bleu", 0.0, 0.0, 100 * reach),
    ):
        evaluation.add_mean(name, "forget", [value] * 40)
        assert evaluation.metrics[f"{name}/ci_low"] == pytest.approx(low, abs=1e-12), name
        assert evaluation.metrics[f"{name}/ci_high"] == pytest.approx(high, abs=1e-12), name
    assert evaluation.notes == []


def test_an_auc_at_its_end_counts_the_smaller_set_and_privleak_follows() -> None:
    evaluation = evaluation_of({"forget": 15, "holdout": 12}, resamples=50)
    for row in evaluation.of_set("forget"):
        row["min_k"] = -9.0
    add_membership(evaluation, 0.5, {})
    reach = Bootstrap().wilson_bound(12)
    found = evaluation.metrics
    assert (found["own/mia/min_k/ci_low"], found["own/mia/min_k/ci_high"]) == (pytest.approx(1 - reach), 1.0)
    assert found["own/privleak"] == found["own/privleak/ci_low"] == -100
    assert found["own/privleak/ci_high"] == pytest.approx(-100 + 200 * reach)


def test_equal_values_within_the_range_have_no_interval_and_a_note_says_so() -> None:
    evaluation = Evaluation("own")
    evaluation.add_mean("own/forget/probability", "forget", [0.3] * 7)
    evaluation.add_mean("own/forget/avg_nll", "forget", [0.0] * 7)  # a loss of 0 is no share
    assert set(evaluation.metrics) == {"own/forget/probability", "own/forget/avg_nll"}
    assert evaluation.notes == [
        f"own/forget/{name} has no interval: every resample gives the same" for name in ("probability", "avg_nll")
    ]


def test_ordinary_intervals_are_the_bootstraps_to_the_last_bit() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    evaluation, bootstrap = Evaluation("own"), Bootstrap()
    evaluation.add_mean("own/forget/rouge_l_recall", "forget", values)
    ends = tuple(evaluation.metrics[f"own/forget/rouge_l_recall/ci_{end}"] for end in ("low", "high"))
    assert ends == bootstrap.interval(bootstrap.means("forget", values))


# ---- numbers that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_absent(value: float) -> None:
    """By `add`, or written by a callback of one's own."""
    evaluation = Evaluation("own")
    evaluation.add("harness/boolq/acc_stderr", value)
    evaluation.metrics["own/mine"] = value
    evaluation.row("forget", Record("forget/0", "q", "a"))["surprise"] = value
    evaluation.leave_out_non_finite()
    assert evaluation.metrics == {}
    assert evaluation.absent == {
        name: f"not a finite number: {value}" for name in ("harness/boolq/acc_stderr", "own/mine")
    }
    assert evaluation.of_set("forget") == [{"surprise": None}]
    assert evaluation.notes == ["forget: some rows have no surprise, which was not a finite number"]


def test_resamples_that_are_not_finite_give_no_interval() -> None:
    evaluation = Evaluation("own")
    evaluation.add("own/mine", 1.0, np.array([1.0, math.inf, 2.0]))
    assert evaluation.metrics == {"own/mine": 1.0}
    assert evaluation.notes == ["own/mine has no interval: some resamples give no finite number"]
