"""Fluency of token sequences: by hand, with what each part cannot see as negative control."""

from __future__ import annotations

import math

import pytest

from sga.errors import UserError
from sga.evaluation.metrics import fluency, ngram_entropy, repeats_ngram

SALAD = list(range(40, 0, -1))
"""Forty tokens in no order of a language, none of them twice."""


def test_entropy_by_hand() -> None:
    """[1, 1, 1, 2]: bigrams 11, 11, 12, so H = (2/3)·log(3/2) + (1/3)·log 3 of log 3 at most."""
    entropy = 2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)
    assert ngram_entropy([1, 1, 1, 2], 2) == pytest.approx(entropy / math.log(3), abs=1e-12)
    assert ngram_entropy([1, 1, 1, 2], 3) == pytest.approx(1.0), "trigrams 111 and 112"
    assert fluency([1, 1, 1, 2]) == pytest.approx((entropy / math.log(3) + 1) / 2, abs=1e-12)


def test_equal_lengths_only_the_first_tokens_count() -> None:
    """What follows the 32nd token changes nothing; with a longer limit it does."""
    ends_in_circles = SALAD[:32] + [7] * 100
    assert fluency(ends_in_circles) == fluency(SALAD) == 1.0
    assert fluency(ends_in_circles, length=132) < 0.6


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ([], 0.0),
        ([5], 1.0),  # too short to repeat anything
        ([5, 5, 5], 0.0),  # one bigram, twice
        ([5] * 200, 0.0),  # TheTheThe, which is one word to whoever counts words
        (SALAD, 1.0),  # word salad: not for this metric to see
    ],
)
def test_fluency_of_ends(tokens: list[int], value: float) -> None:
    assert fluency(tokens) == value


def test_a_repeated_four_gram() -> None:
    assert repeats_ngram([1, 2, 3, 4, 5, 1, 2, 3, 4])
    assert not repeats_ngram([1, 2, 3, 4, 5, 1, 2, 3])
    assert repeats_ngram([9] * 5), "two 4-grams that overlap"
    assert not repeats_ngram([9] * 4)
    assert not repeats_ngram([])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="length above n, got n = 3 and length = 3"):
        fluency([1, 2, 3, 4], length=3)
    with pytest.raises(UserError, match="n must be at least 1"):
        ngram_entropy([1, 2], 0)
    with pytest.raises(UserError, match="n must be at least 1"):
        repeats_ngram([1, 2], 0)
