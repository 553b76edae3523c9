"""Every metric by hand, by limit, and against an independent reference; numbers are derived in the docstrings."""

from __future__ import annotations

import itertools
import math
import zlib
from fractions import Fraction

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, sentence_bleu
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from sga.errors import UserError
from sga.evaluation.metrics import (
    MODEL_UTILITY_PARTS,
    bleu,
    exact_memorization,
    extraction_strength,
    forget_quality,
    frontier_area,
    frontier_area_ks,
    log_truth_ratio,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    model_utility,
    normalized_probability,
    perplexity,
    privleak,
    probability,
    rouge,
    rouge_l_recall,
    truth_ratio_forget,
    truth_ratio_retain,
    zlib_score,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # no overflow passes silently


# Probability


def test_probability_by_hand():
    """p = 1/2 and 1/4: mean 3/8."""
    assert probability([math.log(2), math.log(4)]) == pytest.approx(3 / 8, rel=1e-15)


def test_normalized_probability_by_hand_with_ragged_options():
    """(1/2)/(1/2 + 1/4 + 1/4) = 1/2 and (1/4)/(1/4 + 1/2) = 1/3: mean 5/12."""
    right, wrong = [math.log(2), math.log(4)], [[math.log(4), math.log(4)], [math.log(2)]]
    assert normalized_probability(right, wrong) == pytest.approx(5 / 12, rel=1e-15)


def test_normalized_probability_keeps_its_value_where_every_probability_underflows():
    """Only differences of nll count: + 5000 on all makes each p zero in float64, and the ratio stays."""
    right, wrong = np.array([1.0, 2.0]), np.array([[2.0, 3.0], [1.0, 0.5]])
    assert normalized_probability(right + 5000, wrong + 5000) == pytest.approx(
        normalized_probability(right, wrong), rel=1e-12
    )


# Truth ratio


def test_geometric_truth_ratio_by_hand():
    """p_wrong = 1/2 and 1/8: geometric mean sqrt(1/16) = 1/4; p_right = 1/2: R = 1/2."""
    log_ratio = log_truth_ratio([math.log(2)], [[math.log(2), math.log(8)]])
    assert log_ratio == pytest.approx([math.log(1 / 2)], rel=1e-14)


def test_arithmetic_truth_ratio_by_hand():
    """p_wrong = 1/2 and 1/8: arithmetic mean 5/16; p_right = 1/2: R = 5/8."""
    log_ratio = log_truth_ratio([math.log(2)], [[math.log(2), math.log(8)]], mean="arithmetic")
    assert log_ratio == pytest.approx([math.log(5 / 8)], rel=1e-14)


def test_truth_ratio_takes_a_different_number_of_wrong_answers_for_each_sample():
    assert log_truth_ratio([1.0, 1.0], [[2.0], [1.0, 2.0, 6.0]]) == pytest.approx([-1.0, -2.0])
    assert log_truth_ratio([1.0, 1.0], [[2.0], [3.0, 3.0]], "arithmetic") == pytest.approx([-1.0, -2.0])


def test_the_two_means_agree_exactly_where_the_wrong_answers_are_equally_likely_and_only_there():
    right = np.array([0.5, 3.0])
    equal, unequal = np.array([[2.0, 2.0], [7.0, 7.0]]), np.array([[1.0, 3.0], [6.0, 8.0]])
    assert log_truth_ratio(right, equal, "arithmetic") == pytest.approx(log_truth_ratio(right, equal))
    # AM > GM: the arithmetic mean of e^1 and e^-1 times the geometric mean is cosh(1)
    gap = log_truth_ratio(right, unequal, "arithmetic") - log_truth_ratio(right, unequal)
    assert gap == pytest.approx([math.log(math.cosh(1))] * 2)


def test_truth_ratio_scores_by_hand():
    """R = 1/2, 4: max(0, 1 - R) = 1/2, 0 -> 1/4; min(R, 1/R) = 1/2, 1/4 -> 3/8."""
    log_ratio = np.log([0.5, 4.0])
    assert truth_ratio_retain(log_ratio) == pytest.approx(1 / 4, rel=1e-14)
    assert truth_ratio_forget(log_ratio) == pytest.approx(3 / 8, rel=1e-14)


@pytest.mark.parametrize(("log_ratio", "retain", "forget"), [(1e5, 0.0, 0.0), (-1e5, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_truth_ratio_scores_reach_their_limits_without_overflow(log_ratio, retain, forget):
    assert truth_ratio_retain([log_ratio]) == retain
    assert truth_ratio_forget([log_ratio]) == forget


# Forget quality


def exact_log10_p(n: int, m: int, distance: int) -> float:
    """log10 P(D·n·m >= distance) by counting lattice paths inside the band in integers, nothing shared with ours."""
    inside = [0] * (m + 1)
    for x in range(n + 1):
        for y in range(m + 1):
            if abs(x * m - y * n) >= distance:
                inside[y] = 0
            elif x == 0 and y == 0:
                inside[y] = 1
            else:
                inside[y] = (inside[y] if x else 0) + (inside[y - 1] if y else 0)
    total = math.comb(n + m, n)
    outside = total - inside[m]
    return math.log10(outside) - math.log10(total)


def reflection_log10_p(n: int, h: int) -> float:
    """Equal sizes, D = h/n: p = 2·sum_{k>=1} (-1)^(k+1)·C(2n, n - kh) / C(2n, n) (Gnedenko, Korolyuk), in integers."""
    paths = 2 * sum((-1) ** (k + 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1))
    return math.log10(paths) - math.log10(math.comb(2 * n, n))


def samples_with_distance(n: int, h: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of n whose empirical distributions are h/n apart: h values pushed above all others."""
    first = np.arange(n, dtype=float)
    second = first - 0.5
    second[:h] += 10 * n  # from the h-th value of `first` on the distance is h/n
    return first, second


def test_p_of_tiny_samples_by_enumeration():
    """n = 4, m = 3: each of the C(7, 3) = 35 orders is equally likely; counts those at least as far apart."""
    n, m = 4, 3
    orders = [set(chosen) for chosen in itertools.combinations(range(n + m), m)]

    def distance(order: set[int]) -> Fraction:
        steps = range(n + m)
        return max(
            abs(
                Fraction(sum(i in order for i in range(s + 1)), m)
                - Fraction(sum(i not in order for i in range(s + 1)), n)
            )
            for s in steps
        )

    for order in orders:
        first = [i for i in range(n + m) if i not in order]
        quality = forget_quality(first, sorted(order))
        expected = Fraction(sum(distance(other) >= distance(order) for other in orders), len(orders))
        assert quality.p_value == pytest.approx(float(expected), rel=1e-13)
        assert quality.ks_statistic == pytest.approx(float(distance(order)), rel=1e-15)


@pytest.mark.parametrize("h", [1, 2, 3, 20, 39, 40])
def test_log10_p_at_equal_sizes_against_exact_integers(h):
    quality = forget_quality(*samples_with_distance(40, h))
    assert quality.ks_statistic == pytest.approx(h / 40)
    assert quality.log10_p == pytest.approx(reflection_log10_p(40, h), abs=1e-10)
    assert quality.log10_p == pytest.approx(exact_log10_p(40, 40, h * 40), abs=1e-10)


@pytest.mark.parametrize("h", [1, 10, 40, 159, 300, 399, 400])
def test_log10_p_at_400_rows_against_exact_integers(h):
    assert forget_quality(*samples_with_distance(400, h)).log10_p == pytest.approx(reflection_log10_p(400, h), abs=1e-9)


@pytest.mark.parametrize(("n", "m", "shift"), [(7, 5, 2.5), (300, 400, 0.2), (300, 400, 1.5), (40, 400, 9), (1, 3, 9)])
def test_log10_p_at_unequal_sizes_against_exact_integers(n, m, shift):
    rng = np.random.default_rng(n + m)
    first, second = rng.normal(size=n), rng.normal(size=m) + shift
    quality = forget_quality(first, second)
    distance = round(quality.ks_statistic * n * m)
    assert quality.log10_p == pytest.approx(exact_log10_p(n, m, distance), abs=1e-9)
    # two-sided and symmetric
    assert forget_quality(second, first).log10_p == pytest.approx(quality.log10_p, abs=1e-9)


@pytest.mark.parametrize(("n", "floor"), [(40, 1.9e-23), (200, 1.9e-119), (400, 1.1e-239)])
def test_the_floor_of_p_depends_on_the_number_of_rows_alone(n, floor):
    """D = 1: the two orders "all of one first" among C(2n, n): p = 2 / C(2n, n)."""
    quality = forget_quality(np.arange(n), np.arange(n) + 1000)
    assert quality.ks_statistic == 1.0
    assert quality.p_value == pytest.approx(floor, rel=0.05)
    assert quality.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2 * n, n)), abs=1e-9)
    assert quality.log10_floor == pytest.approx(quality.log10_p, abs=1e-9)


def test_log10_p_stays_exact_where_p_is_below_the_smallest_float():
    """n = 1000, D = 1: 2 / C(2000, 1000) is about 1e-600."""
    quality = forget_quality(np.arange(1000), np.arange(1000) + 5000)
    assert quality.p_value == 0.0
    assert quality.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2000, 1000)), abs=1e-8)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (20, 20), (20, 35), (300, 300), (300, 400)])
def test_forget_quality_equals_scipy_where_scipy_does_not_underflow(n, m, ties):
    rng = np.random.default_rng(n * m)
    for shift in (0.0, 0.3, 1.0):
        first, second = rng.normal(size=n), rng.normal(size=m) + shift
        if ties:
            first, second = first.round(), second.round()
        expected = ks_2samp(first, second)
        quality = forget_quality(first, second)
        assert quality.ks_statistic == pytest.approx(expected.statistic, abs=1e-14)
        assert quality.p_value == pytest.approx(expected.pvalue, rel=1e-11)


def test_identical_samples_give_one_and_a_shift_does_not():
    sample = np.random.default_rng(0).normal(size=100)
    same = forget_quality(sample, sample)
    assert (same.p_value, same.log10_p, same.ks_statistic, same.direction) == (1.0, 0.0, 0.0, "none")
    assert forget_quality(sample, sample + 1).p_value < 1e-6


def test_forget_quality_sees_neither_the_order_of_rows_nor_a_monotone_change_of_scale():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=50), rng.normal(size=60) + 0.5
    base = forget_quality(first, second)
    assert forget_quality(rng.permutation(first), rng.permutation(second)) == base
    assert forget_quality(np.exp(first), np.exp(second)) == base


def test_a_collapsed_model_with_the_references_ratios_scores_high_in_log_space_and_the_floor_by_division():
    """avg_nll about 30: P_right + 1e-10 is 1e-10 whatever P_right is, so open-unlearning's R is about e^-30 / 1e-10
    = 1e-3, left of every ratio of the reference (D = 1, p = 2 / C(800, 400)), although log R has the same distribution.
    """
    rng = np.random.default_rng(0)
    own_ratio, reference_ratio = rng.normal(size=400) * 0.5, rng.normal(size=400) * 0.5  # log R
    wrong = 30 + rng.normal(size=(400, 5)) * 0.1
    right = wrong.mean(axis=1) + own_ratio

    def by_division(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        return np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + 1e-10)

    reference_wrong = np.full((400, 5), 3.0)
    reference_right = 3.0 + reference_ratio
    ours = forget_quality(log_truth_ratio(right, wrong), log_truth_ratio(reference_right, reference_wrong))
    theirs = forget_quality(by_division(right, wrong), by_division(reference_right, reference_wrong))
    assert ours.p_value > 0.05
    assert theirs.log10_p == pytest.approx(theirs.log10_floor, abs=1e-6)
    # negative control: before the collapse the two agree
    healthy = forget_quality(by_division(right - 27, wrong - 27), by_division(reference_right, reference_wrong))
    assert healthy.log10_p == pytest.approx(ours.log10_p, abs=0.2)


@pytest.mark.parametrize(("nll", "direction"), [(0.1, "under-unlearned"), (9.0, "over-unlearned"), (2.0, "none")])
def test_a_low_forget_quality_says_which_way(nll, direction):
    first, second = np.arange(100), np.arange(100) + 1000
    assert forget_quality(first, second, nll, 2.0).direction == direction
    assert forget_quality(first, second).direction == "unknown"
    assert forget_quality(first, first, nll, 2.0).direction == "none"


# Model utility


def utility_parts(value: float = 0.5) -> dict[str, float]:
    return dict.fromkeys(MODEL_UTILITY_PARTS, value)


def test_model_utility_by_hand():
    """Eight parts of 1/2 and one of 1/4: 9 / (8·2 + 4) = 0.45; other keys do not count."""
    parts = utility_parts() | {"retain_rouge": 0.25, "forget_rouge": 0.0}
    assert len(MODEL_UTILITY_PARTS) == 9
    assert model_utility(parts) == pytest.approx(0.45, rel=1e-15)
    assert model_utility(utility_parts()) == pytest.approx(0.5)


def test_model_utility_is_zero_where_a_part_is_zero():
    assert model_utility(utility_parts() | {"world_facts_truth_ratio": 0.0}) == 0.0


def test_model_utility_names_every_missing_part():
    parts = utility_parts()
    del parts["retain_rouge"], parts["world_facts_probability"]
    with pytest.raises(UserError, match=r"retain_rouge, world_facts_probability"):
        model_utility(parts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_model_utility_refuses_what_is_no_score(value):
    with pytest.raises(UserError, match="retain_rouge"):
        model_utility(utility_parts() | {"retain_rouge": value})


# ROUGE


def test_rouge_by_hand():
    """Truth a b c d, generation a c b: common words 3 -> recall 3/4, precision 1, F 6/7; longest common subsequence
    (a b or a c) 2 -> recall 1/2, precision 2/3, F 4/7.
    """
    scores = rouge(["a c b"], ["a b c d"])
    expected = {"rouge1_recall": 3 / 4, "rouge1_fmeasure": 6 / 7, "rougeL_recall": 1 / 2, "rougeL_fmeasure": 4 / 7}
    assert {name: values[0] for name, values in scores.items()} == pytest.approx(expected)


def test_rouge_stems_unless_told_not_to():
    assert rouge(["writing"], ["writes"])["rougeL_recall"] == [1.0]
    assert rouge(["writing"], ["writes"], stemmer=False)["rougeL_recall"] == [0.0]


def test_rouge_equals_the_package_for_each_pair():
    pairs = [("The authors wrote books.", "An author writes a book"), ("", "something"), ("x y z", "z y x")]
    for stemmer in (True, False):
        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
        scores = rouge([pair[0] for pair in pairs], [pair[1] for pair in pairs], stemmer)
        for index, (generated, truth) in enumerate(pairs):
            expected = scorer.score(truth, generated)
            assert scores["rouge1_recall"][index] == expected["rouge1"].recall
            assert scores["rougeL_fmeasure"][index] == expected["rougeL"].fmeasure


@pytest.mark.parametrize(("generated", "truth"), [("", "a b"), ("a b", ""), ("", ""), ("…", "?!"), ("猫", "猫")])
def test_rouge_of_a_text_without_words_is_zero(generated, truth):
    assert rouge_l_recall(generated, truth) == 0.0
    assert all(values == [0.0] for values in rouge([generated], [truth]).values())


def test_rouge_refuses_misaligned_lists_and_single_texts():
    with pytest.raises(UserError, match="got 2 and 1"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(UserError, match="list"):
        rouge("ab", "ab")


# BLEU


def test_bleu_by_hand():
    """Truth a b c d e f, generation a b x d. precision_1 = 3/4, precision_2 = 1/3 (a b), no common n-gram from 3 on:
    smoothed to 1/(2·2) and 1/(4·1). brevity = exp(1 - 6/4). 100·exp(-1/2)·(3/4 · 1/3 · 1/4 · 1/4)^(1/4).
    """
    expected = 100 * math.exp(-1 / 2) * (1 / 64) ** (1 / 4)
    assert bleu(["a b x d"], ["a b c d e f"]) == pytest.approx([expected], rel=1e-12)


def test_bleu_of_a_true_beginning_is_the_brevity_penalty_alone():
    """All n-grams of a b c d are in a b c d e f: 100·exp(1 - 6/4) = 60.65; too long a text is penalised by precision:
    a b c d e f against a b c d: (4/6 · 3/5 · 2/4 · 1/3)^(1/4) = (1/15)^(1/4).
    """
    assert bleu(["a b c d"], ["a b c d e f"]) == pytest.approx([100 * math.exp(-0.5)], rel=1e-12)
    assert bleu(["a b c d e f"], ["a b c d"]) == pytest.approx([100 * (1 / 15) ** (1 / 4)], rel=1e-12)


@pytest.mark.parametrize("text", ["He waved his wand, and it was gone.", "He waved his wand", "Yes.", "a"])
def test_bleu_of_identical_texts_is_100_and_of_disjoint_ones_0(text):
    assert bleu([text], [text]) == pytest.approx([100.0], rel=1e-12)
    assert bleu([text], ["nothing of this kind there"]) == [0.0]


@pytest.mark.parametrize(("generated", "truth"), [("", "a b"), ("a b", ""), ("", "")])
def test_bleu_of_an_empty_text_is_zero(generated, truth):
    assert bleu([generated], [truth]) == [0.0]


BLEU_PAIRS = [
    ("He waved his wand, and the cat was gone.", "He waved his wand and, at once, the cat was gone."),
    ("the the the the the", "the cat sat on the mat"),
    ("It is blue", "The sky is blue."),
    ("blue.", "The sky is blue."),
    ("", "The sky is blue."),
    ("A text of its own that runs on for quite a while", "The sky is blue."),
]


def test_bleu_equals_sacrebleu_item_by_item():
    expected = [sentence_bleu(generated, [truth]).score for generated, truth in BLEU_PAIRS]
    assert bleu(*zip(*BLEU_PAIRS, strict=True)) == expected
    assert any(0 < value < 100 for value in expected)


def test_bleu_without_effective_order_is_the_corpus_bleu_of_one_item_and_differs_below_four_words_only(caplog):
    expected = [corpus_bleu([generated], [[truth]]).score for generated, truth in BLEU_PAIRS]
    off = bleu(*zip(*BLEU_PAIRS, strict=True), effective_order=False)
    assert off == expected
    on = bleu(*zip(*BLEU_PAIRS, strict=True))
    assert [a == b for a, b in zip(on, off, strict=True)] == [True, True, False, False, True, True]
    assert not caplog.records  # sacrebleu's sentence_score warns once an item


def test_bleu_refuses_misaligned_lists_and_single_texts():
    with pytest.raises(UserError, match="bleu needs as many generations as true texts, got 2 and 1"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(UserError, match="list"):
        bleu("ab", "ab")


# Membership inference


def test_auc_is_one_where_members_score_low_and_zero_the_other_way():
    assert membership_auc([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert membership_auc([3.0, 4.0], [1.0, 2.0]) == 0.0
    assert membership_auc([1.0, 1.0], [1.0]) == 0.5


def test_auc_counts_pairs():
    """P(member < non-member) + P(equal)/2 over all pairs."""
    rng = np.random.default_rng(3)
    members, others = rng.integers(0, 9, 30), rng.integers(2, 11, 40)
    expected = np.mean([(a < b) + 0.5 * (a == b) for a in members for b in others])
    assert membership_auc(members, others) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 300), (300, 7), (400, 400)])
@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_auc_is_scikit_learn_s(n, m, decimals):
    """With many ties, some, and none; scores of any size and sign."""
    rng = np.random.default_rng([n, m])
    for scale in (1e-200, 1.0, 1e200):
        members = scale * np.round(rng.normal(-1, 3, n), decimals)
        others = scale * np.round(rng.normal(0, 3, m), decimals)
        expected = roc_auc_score([1] * n + [0] * m, -np.append(members, others))
        assert membership_auc(members, others) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ([-1.0, -4.0, -2.0, -8.0, -3.0], 6.0),  # int(0.4·5) = 2 lowest: -8, -4
        ([-1.0, -4.0], 4.0),  # int(0.8) = 0: at least one token
        ([-7.0], 7.0),
        ([-5.0, -1.0, -1.0, -1.0, -3.0, -1.0, -1.0], 4.0),  # int(2.8) = 2: cut off, not rounded
    ],
)
def test_min_k_by_hand(logprobs, expected):
    assert min_k_score(logprobs) == expected


def test_min_k_of_all_tokens_is_the_loss():
    logprobs = -np.random.default_rng(0).exponential(size=17)
    assert min_k_score(logprobs, share=1.0) == pytest.approx(-logprobs.mean())


def test_min_k_plus_plus_by_hand():
    """z = (-1+2)/1, (-6+2)/2, (-3+2)/0.001 (variance clamped to 1e-6): 1, -2, -1000; int(0.4·3) = 1 lowest."""
    args = ([-1.0, -6.0, -3.0], [-2.0, -2.0, -2.0], [1.0, 4.0, 0.0])
    assert min_k_plus_plus_score(*args) == pytest.approx(1000.0)
    assert min_k_plus_plus_score(*args, share=0.7) == pytest.approx(501.0)


def test_min_k_plus_plus_with_standard_moments_is_min_k():
    logprobs = -np.random.default_rng(0).exponential(size=17)
    assert min_k_plus_plus_score(logprobs, np.zeros(17), np.ones(17)) == pytest.approx(min_k_score(logprobs))


def test_zlib_divides_by_the_compressed_bytes_of_the_utf8_text():
    assert zlib_score(3.0, "naïve") == 3.0 / len(zlib.compress("naïve".encode()))
    assert zlib_score(1.0, "ab" * 500) > zlib_score(1.0, "".join(map(chr, range(40, 120))) * 2)


def test_privleak_by_hand_and_in_its_orientation():
    """AUC' = 1 - AUC. All leaked, AUC 1: -100. AUC 0.25 against 0.5: 100·(0.75 - 0.5)/0.5 = +50: over-unlearned."""
    assert privleak(1.0, 0.4) == -100.0
    assert privleak(0.25, 0.5) == 50.0
    assert privleak(0.47, 0.47) == 0.0
    # A small AUC' of the reference makes the percentage explode
    assert privleak(0.5, 0.99) == pytest.approx(4900.0)


@pytest.mark.parametrize(("auc", "reference"), [(1.2, 0.5), (0.5, -0.1), (math.nan, 0.5), (0.5, 1.0)])
def test_privleak_refuses_what_is_no_auc(auc, reference):
    with pytest.raises(UserError, match="auc"):
        privleak(auc, reference)


# Memorisation, perplexity


@pytest.mark.parametrize(
    ("hits", "memorized", "strength"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 0, 1, 1], 0.75, 0.5),
        ([1, 1, 1, 0], 0.75, 0.0),
        ([0, 0, 0, 1], 0.25, 0.25),
        ([0, 0, 0, 0], 0.0, 0.0),
        ([1], 1.0, 1.0),
    ],
)
def test_memorization_by_hand(hits, memorized, strength):
    assert exact_memorization([bool(hit) for hit in hits]) == memorized
    assert extraction_strength([bool(hit) for hit in hits]) == strength
    assert extraction_strength(np.array(hits)) == strength


def open_unlearning_extraction_strength(hits: list[bool]) -> float:
    """Its loop: k runs over 0..T-1 and stops at the first suffix that is all hits, or else stays at T - 1."""
    for k in range(len(hits)):
        if all(hits[k:]):
            break
    return 1 - k / len(hits)


def test_extraction_strength_differs_from_open_unlearning_only_by_its_floor():
    """All 2^T sequences up to T = 7: equal, but for a last token that is no hit: 0 here and 1/T there."""
    for length in range(1, 8):
        for hits in itertools.product([False, True], repeat=length):
            theirs = open_unlearning_extraction_strength(list(hits))
            if hits[-1]:
                assert extraction_strength(hits) == pytest.approx(theirs, rel=1e-15)
            else:
                assert (extraction_strength(hits), theirs) == (0.0, pytest.approx(1 / length))


def test_perplexity_weights_tokens_not_sequences():
    """2 tokens at 1 nat and 8 tokens at 3 nats: (2 + 24)/10 = 2.6, not (1 + 3)/2."""
    result = perplexity([2.0, 24.0], [2, 8])
    assert result.log == pytest.approx(2.6, rel=1e-15)
    assert result.value == pytest.approx(math.exp(2.6), rel=1e-15)
    assert perplexity(26.0, 10) == result


def test_perplexity_is_infinite_where_exp_overflows_and_its_logarithm_is_kept():
    result = perplexity([8000.0], [10])
    assert (result.log, result.value) == (800.0, math.inf)
    assert perplexity([7000.0], [10]).value < math.inf


# Frontier area


def test_frontier_area_of_one_point():
    """(-3, 0.5): 9 · 0.5 / 12 = 0.375."""
    assert frontier_area([(-3.0, 0.5)]) == pytest.approx(0.375, rel=1e-15)
    assert frontier_area([(0.0, 1.0)]) == 1.0


def test_frontier_area_of_several_points_by_hand():
    """[-12, -9] at height 0.8, [-9, -6] at 0.6, [-6, 0] at 0.1: 2.4 + 1.8 + 0.6 = 4.8 of 12; any order."""
    points = [(-9.0, 0.8), (-6.0, 0.6), (0.0, 0.1)]
    for order in itertools.permutations(points):
        assert frontier_area(order) == pytest.approx(0.4, rel=1e-14)


def test_dominated_and_repeated_points_and_points_at_the_floor_add_nothing():
    points = [(-9.0, 0.8), (-6.0, 0.6), (0.0, 0.1)]
    useless = [(-7.0, 0.6), (-6.0, 0.2), (-9.0, 0.8), (-10.0, 0.79), (-40.0, 1.0), (-12.0, 1.0), (-math.inf, 0.9)]
    assert frontier_area(points + useless) == pytest.approx(frontier_area(points), rel=1e-14)
    # negative control: a point that is not dominated adds
    assert frontier_area([*points, (-6.0, 0.7)]) > frontier_area(points)


def test_points_under_the_floor_alone_have_no_area():
    assert frontier_area([(-239.0, 0.6), (-13.0, 0.9)]) == 0.0
    assert frontier_area([(-13.0, 0.9)], floor=-26.0) == pytest.approx(0.45)


def test_frontier_area_against_a_fine_grid():
    rng = np.random.default_rng(5)
    points = list(zip(-15 * rng.random(12), rng.random(12), strict=True))
    xs = np.linspace(-12, 0, 120_001)
    heights = np.max([np.where(xs <= x, y, 0) for x, y in points], axis=0)
    assert frontier_area(points) == pytest.approx(heights.mean(), abs=1e-4)


def test_frontier_area_over_the_ks_statistic_by_hand():
    """[0, 0.5] at height 0.8, [0.5, 1] at 0.4: 0.6; (0.4, 0.7) is dominated."""
    assert frontier_area_ks([(1.0, 0.4), (0.5, 0.8), (0.4, 0.7)]) == pytest.approx(0.6, rel=1e-14)
    assert frontier_area_ks([(0.25, 0.5)]) == 0.125


@pytest.mark.parametrize(
    ("function", "points"),
    [
        (frontier_area, []),
        (frontier_area, [(math.nan, 0.5)]),
        (frontier_area, [(0.3, 0.5)]),  # a p-value where its logarithm belongs
        (frontier_area, [(-1.0, 1.5)]),
        (frontier_area, [(-1.0, math.nan)]),
        (frontier_area_ks, []),
        (frontier_area_ks, [(-1.0, 0.5)]),
        (frontier_area_ks, [(math.nan, 0.5)]),
    ],
)
def test_frontier_area_refuses_what_is_no_point(function, points):
    with pytest.raises(UserError):
        function(points)


def test_frontier_area_refuses_a_floor_that_is_not_negative():
    with pytest.raises(UserError, match="floor"):
        frontier_area([(-1.0, 0.5)], floor=0.0)


# What every function refuses


GOOD = [0.5, 1.0]
CALLS = {
    "probability": lambda bad: probability(bad),
    "normalized_probability right": lambda bad: normalized_probability(bad, [GOOD, GOOD]),
    "normalized_probability wrong": lambda bad: normalized_probability([0.5], [bad]),
    "log_truth_ratio right": lambda bad: log_truth_ratio(bad, [GOOD, GOOD]),
    "log_truth_ratio wrong": lambda bad: log_truth_ratio([0.5], [bad]),
    "truth_ratio_retain": truth_ratio_retain,
    "truth_ratio_forget": truth_ratio_forget,
    "forget_quality": lambda bad: forget_quality(bad, GOOD),
    "forget_quality reference": lambda bad: forget_quality(GOOD, bad),
    "membership_auc": lambda bad: membership_auc(bad, GOOD),
    "membership_auc nonmember": lambda bad: membership_auc(GOOD, bad),
    "min_k_score": min_k_score,
    "min_k_plus_plus_score": lambda bad: min_k_plus_plus_score(GOOD, bad, GOOD),
    "exact_memorization": exact_memorization,
    "extraction_strength": extraction_strength,
    "perplexity": lambda bad: perplexity(bad, [1, 2]),
}


@pytest.mark.parametrize("bad", [[], [0.5, math.nan], [math.inf, 0.5]], ids=["empty", "nan", "inf"])
@pytest.mark.parametrize("name", CALLS)
def test_empty_and_non_finite_input_is_refused(name, bad):
    with pytest.raises(UserError, match=r"empty|finite"):
        CALLS[name](bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: log_truth_ratio([0.5], [GOOD, GOOD]),
        lambda: normalized_probability(GOOD, [GOOD]),
        lambda: min_k_plus_plus_score(GOOD, [0.5], GOOD),
        lambda: perplexity(GOOD, [3]),
        lambda: perplexity(GOOD, [3, 0]),
        lambda: log_truth_ratio(GOOD, [GOOD, GOOD], mean="harmonic"),
        lambda: min_k_score(GOOD, share=0.0),
        lambda: exact_memorization([0.5, 1.0]),
        lambda: probability([[0.5]]),
        lambda: probability(["a"]),
        lambda: zlib_score(math.nan, "text"),
        lambda: forget_quality(np.arange(99), np.arange(99) + 100, math.nan, 1.0),
    ],
)
def test_misaligned_or_meaningless_input_is_refused(call):
    with pytest.raises(UserError):
        call()
