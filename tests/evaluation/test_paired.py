"""Paired differences: against enumeration, SciPy and scikit-learn's AUC, by simulation, with negative controls."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import permutation_test, rankdata

from sga.errors import UserError
from sga.evaluation.metrics import MODEL_UTILITY_PARTS, Floats, membership_auc, model_utility
from sga.evaluation.paired import PairedTests, holm


def enumerated(statistic: Callable[[Sequence[bool]], float], rows: int) -> float:
    """Share of all 2^rows swaps whose difference is at least as large as the unswapped one's."""
    seen = abs(statistic([False] * rows))
    sizes = [abs(statistic(swap)) for swap in itertools.product([False, True], repeat=rows)]
    return float(np.mean([size >= seen - 1e-12 for size in sizes]))


def exchanged(a: Floats, b: Floats, swap: Sequence[bool]) -> tuple[Floats, Floats]:
    return np.where(swap, b, a), np.where(swap, a, b)


def utility(parts: Sequence[tuple[str, Floats]]) -> float:
    """Model utility from nine columns, in the order of its nine parts."""
    return model_utility(
        {name: float(values.mean()) for name, (_, values) in zip(MODEL_UTILITY_PARTS, parts, strict=True)}
    )


def nine_parts(rng: np.random.Generator, rows: Sequence[int], shift: float = 0.0) -> list[tuple[str, Floats, Floats]]:
    """Nine columns on three sets; B is A, some noise and a shift, within [0.05, 1]."""
    parts = []
    for set_name, n in zip(("retain", "real_authors", "world_facts"), rows, strict=True):
        for _ in range(3):
            a = rng.uniform(0.1, 0.9, size=n)
            parts.append((set_name, a, np.clip(a + rng.normal(0, 0.1, size=n) + shift, 0.05, 1)))
    return parts


# ---- by hand and by enumeration -------------------------------------------------------------------------------------


def test_three_rows_by_hand():
    """b − a = 1, 2, 3: of 8 sign patterns only +++ and −−− reach |6|, so p = 2/8; no resample leaves [1, 3]."""
    found = PairedTests(resamples=500).mean("forget", [1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    assert (found.a, found.b, found.difference, found.rows) == (1.0, 3.0, 2.0, 3)
    assert found.p_value == found.smallest_p == 0.25
    assert 1 <= found.low < 2 < found.high <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_mean_against_enumeration_and_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=9), rng.normal(0.4, 1, size=9).round(1)
    found = PairedTests(resamples=600).mean("forget", a, b)
    assert found.p_value == pytest.approx(enumerated(lambda swap: np.subtract(*exchanged(a, b, swap)).mean(), 9))

    def difference(x: Floats, y: Floats, axis: int = -1) -> Floats:
        return (y - x).mean(axis=axis)

    theirs = permutation_test((a, b), difference, permutation_type="samples", n_resamples=600, vectorized=True)
    assert found.p_value == pytest.approx(theirs.pvalue)


def test_random_swaps_agree_with_scipys_random_swaps():
    rng = np.random.default_rng(7)
    a = rng.normal(size=60)
    b = a + rng.normal(0.2, 1, size=60)
    found = PairedTests(resamples=20_000).mean("forget", a, b)
    theirs = permutation_test(
        (b - a,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=20_000, vectorized=True,
        random_state=1,
    )  # fmt: skip
    assert 0.01 < found.p_value < 0.5
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.015)  # standard error of each below 0.004


@pytest.mark.parametrize("seed", range(4))
def test_an_auc_against_enumeration_with_ties_and_sets_of_unequal_size(seed):
    """The linear form in the docstring against swapping the scores and calling scikit-learn 2^9 times."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, size=(2, 5)).astype(float)
    c, d = rng.integers(1, 7, size=(2, 4)).astype(float)
    found = PairedTests(resamples=512).auc("forget", a, b, "holdout", c, d)
    before, after = rankdata([*a, *c]), rankdata([*b, *d])

    def difference(swap: Sequence[bool]) -> float:
        ranks, new_ranks = exchanged(before, after, swap)
        (old, old_others), (new, new_others) = (np.split(side, [5]) for side in (ranks, new_ranks))
        return membership_auc(new, new_others) - membership_auc(old, old_others)

    assert found.rows == 9
    assert found.a == membership_auc(a, c)
    assert found.difference == pytest.approx(difference([False] * 9))
    assert found.p_value == pytest.approx(enumerated(difference, 9))


def test_random_swaps_of_an_auc_approach_the_exact_p():
    rng = np.random.default_rng(3)
    a, b, c, d = rng.normal(size=6), rng.normal(0.5, 1, size=6), rng.normal(size=6), rng.normal(1.2, 1, size=6)
    exact = PairedTests(resamples=2**12).auc("forget", a, b, "holdout", c, d)
    random = PairedTests(resamples=2**12 - 1).auc("forget", a, b, "holdout", c, d)
    assert exact.smallest_p == 2 / 2**12
    assert random.smallest_p == 1 / 2**12
    assert 0.02 < exact.p_value < 0.98
    assert random.p_value == pytest.approx(exact.p_value, abs=0.03)  # standard error below 0.008
    assert (random.a, random.b, random.low) == (exact.a, exact.b, pytest.approx(exact.low, abs=0.03))


@pytest.mark.parametrize("seed", range(3))
def test_model_utility_against_enumeration_of_whole_rows(seed):
    parts = nine_parts(np.random.default_rng(seed), (4, 3, 2), shift=0.05)
    found = PairedTests(resamples=600).harmonic_mean(parts)
    ends = {"retain": slice(0, 4), "real_authors": slice(4, 7), "world_facts": slice(7, 9)}

    def difference(swap: Sequence[bool]) -> float:
        sides = [[], []]
        for name, a, b in parts:
            for side, values in zip(sides, exchanged(a, b, swap[ends[name]]), strict=True):
                side.append((name, values))
        return utility(sides[1]) - utility(sides[0])

    assert found.rows == 9
    assert found.a == pytest.approx(utility([(name, a) for name, a, _ in parts]))
    assert found.difference == pytest.approx(difference([False] * 9))
    assert found.p_value == pytest.approx(enumerated(difference, 9))


def test_one_part_of_a_harmonic_mean_is_a_mean():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.2, 1, size=(2, 30))
    tests = PairedTests(resamples=300)
    mean, harmonic = tests.mean("retain", a, b), tests.harmonic_mean([("retain", a, b)])
    assert harmonic.p_value == mean.p_value
    assert (harmonic.low, harmonic.high) == pytest.approx((mean.low, mean.high))


def test_a_part_that_is_zero_on_one_side_or_on_both_makes_utility_zero_there_and_nothing_else():
    parts = nine_parts(np.random.default_rng(0), (30, 30, 30))
    zero = np.zeros(30)
    collapsed = [parts[0], ("retain", parts[1][1], zero), *parts[2:]]
    found = PairedTests(resamples=300).harmonic_mean(collapsed)
    assert found.b == 0
    assert found.high < 0
    assert found.p_value == found.smallest_p
    both = [("retain", zero, zero), ("retain", zero, zero), *parts[2:]]
    found = PairedTests(resamples=300).harmonic_mean(both)
    assert (found.a, found.b, found.low, found.high, found.p_value) == (0, 0, 0, 0, 1)


# ---- properties -----------------------------------------------------------------------------------------------------


def test_no_difference_at_all_gives_p_one_exact_and_random():
    rng = np.random.default_rng(0)
    for n in (5, 80):
        a, c = rng.normal(size=n), rng.normal(size=n)
        tests = PairedTests(resamples=200)
        parts = [(name, a, a) for name, a, _ in nine_parts(rng, (n, n, n))]
        for found in (
            tests.mean("forget", a, a),
            tests.auc("forget", a, a, "holdout", c, c),
            tests.harmonic_mean(parts),
        ):
            assert (found.p_value, found.difference, found.low, found.high) == (1, 0, 0, 0)


def test_exchanging_a_and_b_changes_the_sign_and_nothing_else():
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 50))
    b, d = a + rng.normal(0.2, 1, size=50), c + rng.normal(0.2, 1, size=50)
    parts = nine_parts(rng, (40, 10, 12), shift=0.02)
    tests = PairedTests(resamples=400)
    for there, back in (
        (tests.mean("forget", a, b), tests.mean("forget", b, a)),
        (tests.auc("forget", a, b, "holdout", c, d), tests.auc("forget", b, a, "holdout", d, c)),
        (tests.harmonic_mean(parts), tests.harmonic_mean([(name, new, old) for name, old, new in parts])),
    ):
        assert back.difference == -there.difference
        assert back.p_value == there.p_value
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    rng = np.random.default_rng(0)
    a = rng.normal(size=50)
    b = a + rng.normal(0.1, 1, size=50)
    first, again, other = (PairedTests(300, seed).mean("forget", a, b) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.p_value) != (other.low, other.p_value)


def test_equally_large_differences_count_however_they_are_rounded():
    """All |b − a| are 0.1 up to rounding: with 3 of 4 signs positive, 2 + 8 of 16 patterns are at least as large."""
    found = PairedTests(resamples=16).mean("forget", [0.0, 0.3, 0.6, 0.8], [0.1, 0.4, 0.7, 0.7])
    assert found.p_value == 10 / 16


# ---- what the tests are for -----------------------------------------------------------------------------------------


def test_without_a_difference_p_is_below_five_per_cent_in_five_per_cent_of_draws():
    """Exchangeable sides, skewed noise: the test is exact at any distribution. 400 draws: 20 ± 4.4 expected."""
    rng = np.random.default_rng(0)
    means, aucs = 0, 0
    for _ in range(400):
        difficulty = rng.normal(0, 3, size=(2, 25))
        a, b, c, d = rng.exponential(size=(4, 25)) + difficulty[[0, 0, 1, 1]]
        tests = PairedTests(resamples=199)
        means += tests.mean("forget", a, b).p_value <= 0.05
        aucs += tests.auc("forget", a, b, "holdout", c, d).p_value <= 0.05
    assert 8 <= means <= 34  # three standard deviations
    assert 8 <= aucs <= 34


def test_model_utility_is_no_more_often_called_different_than_it_should_be():
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(400):
        parts = []
        for set_name in ("retain", "real_authors", "world_facts"):
            difficulty, noise = rng.uniform(0.2, 0.6, size=12), rng.uniform(0, 0.4, size=(2, 12))
            for _ in range(3):  # columns of a set depend on each other, as probability and truth ratio do
                a, b = difficulty + noise + rng.uniform(0, 0.02, size=(2, 12))
                parts.append((set_name, a, b))
        rejected += PairedTests(resamples=199).harmonic_mean(parts).p_value <= 0.05
    assert 8 <= rejected <= 34


def test_a_real_shift_is_found_and_pairing_is_what_finds_it():
    """Rows differ by 3, the models by 0.2 ± 0.3: plain to see within rows. Negative control: rows of B in any order."""
    rng = np.random.default_rng(0)
    a = rng.normal(0, 3, size=100)
    b = a + rng.normal(0.2, 0.3, size=100)
    tests = PairedTests(resamples=2000)
    found = tests.mean("retain", a, b)
    assert found.p_value < 0.001
    assert 0 < found.low < 0.2 < found.high < 0.4
    shuffled = tests.mean("retain", a, rng.permutation(b))
    assert shuffled.difference == pytest.approx(found.difference)
    assert shuffled.p_value > 0.2
    assert shuffled.low < 0 < shuffled.high


def test_a_shift_in_utility_and_in_an_auc_is_found():
    rng = np.random.default_rng(0)
    tests = PairedTests(resamples=2000)
    found = tests.harmonic_mean(nine_parts(rng, (100, 50, 50), shift=0.05))
    assert found.p_value < 0.001
    assert found.low > 0
    a, c = rng.normal(size=(2, 100))
    found = tests.auc("forget", a, a + 0.5, "holdout", c, c + rng.normal(0, 0.2, size=100))
    assert found.p_value < 0.001
    assert found.high < 0  # members that look less familiar lower the AUC


def test_an_auc_is_compared_whatever_the_scale_of_a_models_scores():
    """Unlearning moves all losses; the AUC and its test see only their order. Negative control: swapping raw scores."""
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=60), rng.normal(0.8, 1, size=60)
    b, d = a + 0.5 + rng.normal(0, 0.3, size=60), c + rng.normal(0, 0.3, size=60)
    tests = PairedTests(resamples=1000)
    found = tests.auc("forget", a, b, "holdout", c, d)
    assert found.p_value < 0.01
    assert tests.auc("forget", a, 20 + 3 * b, "holdout", c, 20 + 3 * d) == found
    assert tests.auc("forget", a, np.exp(b), "holdout", c, np.exp(d)) == found
    swap = rng.integers(0, 2, size=(300, 120)).astype(bool)
    raw = [exchanged(np.append(a, c), 20 + 3 * np.append(b, d), row) for row in swap]
    sizes = [abs(membership_auc(new[:60], new[60:]) - membership_auc(old[:60], old[60:])) for old, new in raw]
    assert np.mean([size >= abs(found.difference) for size in sizes]) > 0.1


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        a = rng.normal(0, 3, size=40)
        found = PairedTests(resamples=200).mean("retain", a, a + rng.normal(0.5, 1, size=40))
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 400 <= 0.98  # percentile intervals of 40 rows cover a little less than 95 %


def test_two_thousand_swaps_of_a_whole_tofu_evaluation_take_a_second_or_two():
    rng = np.random.default_rng(0)
    tests = PairedTests(resamples=2000)
    parts = nine_parts(rng, (400, 100, 117))
    start = time.perf_counter()
    tests.harmonic_mean(parts)
    for _ in range(5):
        scores = rng.normal(size=(4, 400))
        tests.auc("forget", scores[0], scores[1], "holdout", scores[2], scores[3])
    assert time.perf_counter() - start < 10  # far less on an idle machine


# ---- several tests at once ------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Ascending 0.01·4, 0.02·3, 0.03·2 → not below the one before: 0.06, 0.04·1 → 0.06; back in the given order."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert holm([0.01, 0.01]) == [0.02, 0.02]


def test_holm_keeps_false_rejections_of_a_whole_family_below_five_per_cent():
    """Ten true null hypotheses at once: unadjusted, 40 % of tables would call some of them a difference."""
    rng = np.random.default_rng(0)
    p_values = rng.uniform(size=(2000, 10))
    assert np.mean([min(row) < 0.05 for row in p_values]) > 0.35
    assert np.mean([min(holm(list(row))) < 0.05 for row in p_values]) < 0.065


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_not_aligned_or_not_finite_is_refused():
    tests = PairedTests(resamples=10)
    with pytest.raises(UserError, match=r"forget: .* shapes \[3\] and \[2\]"):
        tests.mean("forget", [1, 2, 3], [1, 2])
    with pytest.raises(UserError, match=r"shapes \[0\]"):
        tests.mean("forget", [], [])
    with pytest.raises(UserError, match="holdout: A and B must be finite"):
        tests.auc("forget", [1, 2], [1, 2], "holdout", [1, 2], [1, np.inf])
    with pytest.raises(UserError, match=r"parts of retain have different numbers of rows: \[2, 3\]"):
        tests.harmonic_mean([("retain", [1, 2], [1, 2]), ("retain", [1, 2, 3], [1, 2, 3])])
    with pytest.raises(UserError, match="at least one part"):
        tests.harmonic_mean([])
    with pytest.raises(UserError, match="resamples must be at least 1, got 0"):
        PairedTests(resamples=0)
