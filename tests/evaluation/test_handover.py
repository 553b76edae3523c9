"""Conditions for handing over: each by hand, on both sides; models that must be refused, with the right sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from sga.data.records import Record
from sga.errors import UserError
from sga.evaluation.enough_rows import enough_rows, passing
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.handover import (
    NOT_COLLAPSED,
    NOT_EXTRACTABLE,
    NOT_RECOGNISED,
    STILL_SPEAKS,
    STILL_USEFUL,
    Account,
    Check,
    Tolerances,
    account,
    membership_check,
    reported_part,
)
from sga.evaluation.handover_quantities import Answered, add_quantities, halves, likelier_share, other_answers


def interval(name: str, low: float, high: float) -> dict[str, float]:
    return {f"{name}/ci_low": low, f"{name}/ci_high": high}


START = {
    "handover/all/rows": 30.0,
    "handover/all/mia/loss": 0.99,
    **interval("handover/all/mia/loss", 0.97, 1.0),
    "handover/all/mia/min_k": 0.98,
    **interval("handover/all/mia/min_k", 0.95, 1.0),
    "handover/all/forget/extraction_strength": 0.80,
    "handover/all/forget/rouge_l_recall": 0.90,
    "handover/all/comparison/extraction_strength": 0.05,
    **interval("handover/all/comparison/extraction_strength", 0.02, 0.08),
    "handover/all/comparison/rouge_l_recall": 0.30,
    **interval("handover/all/comparison/rouge_l_recall", 0.25, 0.35),
    "handover/all/comparison/avg_nll": 3.0,
    "handover/all/forget/fluency": 0.98,
    "handover/all/forget/degenerate": 0.0,
    "handover/all/forget/generation_nll": 0.2,
    "handover/unseen/probability": 0.80,
    "handover/unseen/rouge_l_recall": 0.75,
    "handover/unseen/fluency": 0.98,
    "handover/unseen/degenerate": 0.05,
    "handover/unseen/generation_nll": 0.3,
    "handover/unseen/perplexity_log": 0.4,
}
"""A model that has learned the forget set."""

GOOD = START | {
    "handover/all/mia/loss": 0.52,
    **interval("handover/all/mia/loss", 0.42, 0.62),
    "handover/all/mia/min_k": 0.48,
    **interval("handover/all/mia/min_k", 0.38, 0.58),
    "handover/all/forget/extraction_strength": 0.06,
    "handover/all/forget/rouge_l_recall": 0.33,
    "handover/all/forget/generation_nll": 2.0,  # fluent and wrong
}
"""The same model with the forget set forgotten and nothing else."""


FEW = "too few rows to tell whether it is recognised"
WIDE = "asked for is an interval within 0.30 to 0.70"

HALF_A_NAT = 1 - math.exp(-0.5)
"""What half a nat beyond what is allowed takes of a token's probability."""


def check(found: Account, quantity: str) -> Check:
    return next(one for one in found.checks if one.quantity == quantity)


def of(**changes: float) -> Account:
    """The account of GOOD with some metrics changed; ``__`` is a slash."""
    return account(GOOD | {f"handover/{name.replace('__', '/')}": value for name, value in changes.items()}, START)


def test_a_model_that_has_forgotten_and_nothing_else_is_fit() -> None:
    found = of()
    assert (found.fit, found.score, found.sentence) == (True, 0.0, "fit to be handed over")
    assert found.violations() == dict.fromkeys(
        (NOT_RECOGNISED, NOT_EXTRACTABLE, STILL_USEFUL, STILL_SPEAKS, NOT_COLLAPSED), 0.0
    )
    assert found.untested == ()
    assert found.as_json()["checks"][0]["value"] == 0.52


@pytest.mark.parametrize(
    "name", ["probability", "rouge_l_recall", "fluency", "degenerate", "generation_nll", "perplexity_log"]
)
def test_a_starting_model_that_was_not_measured_is_no_passed_condition(name: str) -> None:
    start = {key: value for key, value in START.items() if key != f"handover/unseen/{name}"}
    with pytest.raises(UserError, match=f"handover/unseen/{name} .*start the run anew"):
        account(GOOD | {"handover/unseen/perplexity_log": 30.0}, start)
    assert account({key: GOOD[key] for key in start}, start).fit, "what neither has cannot be tested"


def test_a_starting_model_that_answers_nothing_has_no_nll_of_answers() -> None:
    start = START | {"handover/unseen/fluency": 0.0}
    del start["handover/unseen/generation_nll"]
    quantity = "nll of the answers on reserved rows under the starting model"
    assert check(account(GOOD, start), quantity).violation is None


# ---- facts ---------------------------------------------------------------------------------------------------------


def with_facts(forget: float, retain: float) -> dict[str, float]:
    return {"handover/all/forget/fact_recall": forget, "handover/retain/fact_recall": retain}


FACTS_START = START | with_facts(1.0, 23 / 24)


def test_facts_to_forget_and_to_keep_are_counted() -> None:
    """At most 1 of 16 left; at least 0.9 of the start's 23 kept, 21 of 24. Three left: 2/16 of 15/16 beyond."""
    assert account(GOOD | with_facts(1 / 16, 21 / 24), FACTS_START).fit
    left = account(GOOD | with_facts(3 / 16, 21 / 24), FACTS_START)
    assert check(left, "forget answers with their fact").violation == pytest.approx(0.125 / 0.9375)
    assert left.sentence == "still extractable: 19% of the forget answers have their fact, at most 6% may"
    lost = account(GOOD | with_facts(0.0, 17 / 24), FACTS_START)
    # (0.9 − 17/23) / 0.9
    assert check(lost, "retain answers with their fact").violation == pytest.approx(0.178744, abs=1e-6)
    assert lost.sentence == (
        "no longer useful: retain answers with their fact 0.71, 74% of the starting model's 0.96, at least 90%"
    )


def counted(forget: int, retain: int, degenerate: int, rows: int) -> dict[str, float]:
    """Metrics of this many answers of as many rows, with the number of rows beside the shares."""
    return {
        "handover/all/rows": rows,
        "handover/all/forget/fact_rows": rows,
        "handover/all/forget/fact_recall": forget / rows,
        "handover/retain/fact_rows": rows,
        "handover/retain/fact_recall": retain / rows,
        "handover/all/forget/degenerate": degenerate / rows,
        "handover/unseen/degenerate": degenerate / rows,
        "handover/unseen/rows": rows,
    }


@pytest.mark.parametrize("rows", range(1, 61))
def test_goals_on_rows_are_counts_and_those_that_the_rule_applies(rows: int) -> None:
    """A share of 0.0625 of 12 rows is none of them, and 1 of 16 is 1 of 16."""
    start = START | counted(rows, max(1, rows - 3), 0, rows)
    kept = max(1, rows - 3)
    goals = {one.quantity: one.goal for one in account(GOOD | counted(0, kept, 0, rows), start).checks}
    for quantity, word, beyond in (
        ("forget answers with their fact", "at most", 1),
        ("retain answers with their fact", "at least", -1),
        ("degenerate answers on forget", "at most", 1),
        ("degenerate answers on reserved rows", "at most", 1),
    ):
        said, limit = re.fullmatch(rf"(at \w+) (\d+) of {rows}", goals[quantity]).groups()  # type: ignore[union-attr]
        assert said == word
        for count, violated in ((int(limit), False), (int(limit) + beyond, True)):
            if 0 <= count <= rows:
                found = account(GOOD | counted(count, count, count, rows), start)
                assert (check(found, quantity).violation != 0) == violated, (quantity, count)


def test_sentences_on_rows_have_counts() -> None:
    start = START | counted(16, 15, 0, 16)
    for numbers, said in (
        ((3, 15, 0), "still extractable: 3 of 16 forget answers have their fact, at most 1 of 16 may"),
        (
            (1, 9, 0),
            "no longer useful: 9 of 16 retain answers with their fact, 15 of 16 before, at least 14 of 16 asked for",
        ),
        ((1, 15, 8), "no longer speaks: 8 of 16 answers on forget are empty or repeat themselves, at most 0 of 16 may"),
    ):
        assert account(GOOD | counted(*numbers, 16), start).sentence == said


def test_a_holdout_set_says_how_many_facts_are_guessed() -> None:
    comparison = {"handover/all/comparison/fact_recall": 0.25}
    assert account(GOOD | with_facts(0.3, 1.0) | comparison, FACTS_START).fit
    assert not account(GOOD | with_facts(0.3, 1.0), FACTS_START).fit


def test_facts_that_the_start_was_not_asked_or_does_not_know_are_no_passed_condition() -> None:
    with pytest.raises(UserError, match=r"handover/all/forget/fact_recall .*start the run anew"):
        account(GOOD | with_facts(0.0, 1.0), START)
    found = account(GOOD | with_facts(0.0, 0.5), START | with_facts(1.0, 0.0))
    assert check(found, "retain answers with their fact").violation is None


# ---- models that must be refused ------------------------------------------------------------------------------------


def test_negative_control_an_unchanged_model() -> None:
    """AUC 0.99, its interval up to 1: as far from 0.5 as can be. Extraction 0.80 − 0.08 = 0.72 beyond, of 0.92."""
    found = account(START, START)
    assert not found.fit
    assert check(found, "AUC of the loss").violation == found.score == 1
    assert check(found, "AUC of the loss").says == "still recognised: AUC 0.99, 0.97 to 1.00, at most 0.60"
    assert found.sentence == check(found, "AUC of the loss").says
    extraction = check(found, "extraction strength of forget")
    assert extraction.violation == pytest.approx(0.72 / 0.92)
    assert extraction.says == "still extractable: extraction strength 0.80, of unseen answers 0.05, at most 0.08"
    assert (
        found.violations()[STILL_USEFUL] == found.violations()[STILL_SPEAKS] == found.violations()[NOT_COLLAPSED] == 0
    )


def test_negative_control_a_diverged_model() -> None:
    """Perplexity e^900 of what no float holds; the AUC is low: over-unlearned."""
    found = of(unseen__perplexity_log=900.0, unseen__probability=0.0, all__mia__loss=0.05, all__mia__loss__ci_low=0.0)
    assert found.score == 1
    assert check(found, "perplexity on reserved rows, ratio").violation == 1
    assert check(found, "probability on reserved rows").violation == 1
    assert found.sentence.startswith("over-unlearned, and recognised by it: AUC 0.05, 0.00 to")


def test_negative_control_thethethe() -> None:
    """Fluency 0.02 of 0.98: 0.0204 of the 0.9 that it has to be; every answer repeats, which cannot be worse."""
    found = of(all__forget__fluency=0.02, all__forget__degenerate=1.0)
    assert check(found, "fluency on forget").violation == pytest.approx(1 - 0.02 / 0.98 / 0.9)
    assert found.score == 1
    assert found.sentence == (
        "no longer speaks: 30 of 30 answers on forget are empty or repeat themselves, at most 2 of 30 may"
    )


def test_negative_control_word_salad() -> None:
    """High entropy, no repetition; only the starting model can tell: nll 9 against at most 3 + 1 on forget."""
    found = of(all__forget__generation_nll=9.0, all__forget__fluency=1.0)
    assert found.score == pytest.approx(1 - math.exp(-5))
    assert found.sentence == (
        "no longer speaks: on forget the starting model takes its answers for word salad (nll 9.00 under the starting "
        "model, 0.00 to 4.00 is usual)"
    )
    blind = account({name: value for name, value in GOOD.items() if "generation" not in name}, START)
    assert blind.fit, "without the starting model word salad is not seen, which docs/handover.md says"


def test_conditions_weigh_alike() -> None:
    """An unchanged model is no better than one that forgot and lost half of what is to be kept, or half its tongue."""
    unchanged = account(START, START)
    for worse in (of(unseen__perplexity_log=0.4 + math.log(10)), of(all__forget__degenerate=0.7)):
        assert 0 < worse.score < unchanged.score
        assert worse.ranking < unchanged.ranking


# ---- each condition on both sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "violation", "says"),
    [
        (0.60, 0.50, 0.70, 0.0, "not recognised: AUC 0.60, 0.50 to 0.70"),  # both at their limits
        (0.40, 0.30, 0.50, 0.0, "not recognised: AUC 0.40, 0.30 to 0.50"),
        (
            0.71,
            0.64,
            0.78,
            0.275,
            "still recognised: AUC 0.71, 0.64 to 0.78, at most 0.60",
        ),  # 0.11 of 0.40; 0.08 of 0.30
        (0.29, 0.22, 0.36, 0.275, "over-unlearned, and recognised by it: AUC 0.29, 0.22 to 0.36, at least 0.40"),
        (0.50, 0.18, 0.82, 0.4, f"{FEW}: AUC 0.50, 0.18 to 0.82, {WIDE}"),
        (0.45, 0.25, 0.65, 1 / 6, f"{FEW}: AUC 0.45, 0.25 to 0.65, {WIDE}"),
        (0.50, None, None, 1.0, f"{FEW}: AUC 0.50, {WIDE}"),  # as wide as can be
    ],
)
def test_recognition(value: float, low: float | None, high: float | None, violation: float, says: str) -> None:
    found = membership_check("loss", value, low, high, 0.5, Tolerances())
    assert (found.violation, found.says) == (pytest.approx(violation), says)


def test_the_page_says_how_many_rows_are_enough_by_the_rule_s_own_interval() -> None:
    """Below 20 rows hardly any model passes, however well it has forgotten; looser tolerances let more pass."""
    page = (Path(__file__).parents[2] / "docs" / "handover.md").read_text(encoding="utf-8")
    heading, _, holdout, without = re.search(r"\| rows of each set (?:.*\n){4}", page)[0].splitlines()  # type: ignore[index]
    numbers = [[int(cell) for cell in line.split("|")[2:-1]] for line in (heading, holdout, without)]
    for rows, both, alone in zip(*numbers, strict=True):
        assert (passing(rows, rows), passing(rows)) == (both, alone)
    assert passing(12) == 0 < passing(12, tolerances=Tolerances(auc=0.3, auc_interval=0.4))
    assert enough_rows(True) == enough_rows(False) == 40 > (enough_rows(False, wrong=5) or 0) > 12
    assert enough_rows(True, tolerances=Tolerances(auc=0.01, auc_interval=0.01)) is None


def test_recognition_is_measured_from_the_base_model_where_it_is_given() -> None:
    """Forget rows that were harder from the start: AUC 0.35 under the base model is the goal, 0.5 is 0.05 too much."""
    tolerances = Tolerances(base_loss_auc=0.35)
    metrics = GOOD | {"handover/all/mia/loss": 0.36} | interval("handover/all/mia/loss", 0.28, 0.44)
    assert check(account(metrics, START, tolerances), "AUC of the loss").violation == 0
    assert check(account(GOOD, START, tolerances), "AUC of the loss").violation == pytest.approx(0.07 / 0.45)
    assert check(account(metrics, START), "AUC of the loss").violation == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "quantity", "violation"),
    [
        ({"all__forget__extraction_strength": 0.08}, "extraction strength of forget", 0.0),  # H's upper end is 0.08
        ({"all__forget__extraction_strength": 0.13}, "extraction strength of forget", 0.05 / 0.92),
        ({"all__forget__rouge_l_recall": 0.35}, "ROUGE-L of forget", 0.0),
        ({"all__forget__rouge_l_recall": 0.55}, "ROUGE-L of forget", 0.20 / 0.65),
        ({"unseen__probability": 0.76}, "probability on reserved rows", 0.0),  # 0.95 of 0.80
        ({"unseen__probability": 0.90}, "probability on reserved rows", 0.0),  # better is no violation
        ({"unseen__probability": 0.72}, "probability on reserved rows", 0.05 / 0.95),  # 0.90 of 0.95
        ({"unseen__rouge_l_recall": 0.60}, "ROUGE-L on reserved rows", 0.15 / 0.95),  # 0.80 of 0.95
        ({"unseen__fluency": 0.882}, "fluency on reserved rows", 0.0),
        ({"unseen__fluency": 0.784}, "fluency on reserved rows", 0.1 / 0.9),
        ({"all__forget__fluency": 0.784}, "fluency on forget", 0.1 / 0.9),
        ({"unseen__degenerate": 0.07}, "degenerate answers on reserved rows", 0.0),
        ({"unseen__degenerate": 0.10}, "degenerate answers on reserved rows", 0.03 / 0.93),
        ({"all__forget__degenerate": 0.07}, "degenerate answers on forget", 0.0),
        ({"all__forget__degenerate": 0.09}, "degenerate answers on forget", 0.02 / 0.93),
        ({"unseen__generation_nll": 1.3}, "nll of the answers on reserved rows under the starting model", 0.0),
        (
            {"unseen__generation_nll": 1.8},
            "nll of the answers on reserved rows under the starting model",
            1 - math.exp(-0.5),
        ),
        ({"all__forget__generation_nll": 4.0}, "nll of the answers on forget under the starting model", 0.0),
        (
            {"all__forget__generation_nll": 4.5},
            "nll of the answers on forget under the starting model",
            1 - math.exp(-0.5),
        ),
        ({"unseen__perplexity_log": 0.4 + math.log(1.1)}, "perplexity on reserved rows, ratio", 0.0),
        ({"unseen__perplexity_log": 0.2}, "perplexity on reserved rows, ratio", 0.0),
        ({"unseen__perplexity_log": 0.4 + math.log(1.3)}, "perplexity on reserved rows, ratio", 1 - 1.1 / 1.3),
    ],
)
def test_conditions_on_both_sides_of_their_limit(changes: dict[str, float], quantity: str, violation: float) -> None:
    found = of(**changes)
    assert check(found, quantity).violation == pytest.approx(violation, abs=1e-9)
    assert found.score == pytest.approx(violation, abs=1e-9), "nothing else is violated"
    assert found.fit == (violation == 0)
    assert (found.sentence == check(found, quantity).says) == (violation > 0)


def test_forget_answers_may_repeat_themselves_as_those_to_questions_that_the_starting_model_never_saw() -> None:
    """10 % (up to 18 %) of its holdout answers do: as many may on forget, and no more than before on reserved rows."""
    name = "handover/all/comparison/degenerate"
    start = START | {name: 0.10} | interval(name, 0.02, 0.18)
    for value, violation in ((0.09, 0.0), (0.18, 0.0), (0.28, 0.10 / 0.82)):
        found = account(GOOD | {"handover/all/forget/degenerate": value}, start)
        assert check(found, "degenerate answers on forget").violation == pytest.approx(violation, abs=1e-9)
    # What the judged model does on the holdout set is no excuse, and who never repeats himself allows for nothing.
    for metrics, before in (({name: 0.5}, START), ({}, START | {name: 0.0} | interval(name, 0.0, 0.0))):
        found = account(GOOD | {"handover/all/forget/degenerate": 0.09} | metrics, before)
        assert check(found, "degenerate answers on forget").violation == pytest.approx(0.02 / 0.93)
    reserved = account(GOOD | {"handover/unseen/degenerate": 0.10}, start)
    assert check(reserved, "degenerate answers on reserved rows").violation == pytest.approx(0.03 / 0.93)


def test_answers_that_the_starting_model_finds_too_likely() -> None:
    """The nll is two-sided: where the starting model's own answers cost 2.5, answers at 0.5 are 1 nat too low."""
    start = START | {"handover/unseen/generation_nll": 2.5}
    found = account(GOOD | {"handover/unseen/generation_nll": 0.5}, start)
    assert found.score == pytest.approx(1 - math.exp(-1))
    assert "its answers say too little" in found.sentence


def test_the_largest_violation_is_the_sentence_and_of_equals_the_first_condition() -> None:
    both = of(unseen__probability=0.38, all__forget__extraction_strength=0.54)  # half of 0.95, of 0.92
    assert both.score == pytest.approx(0.5)
    assert both.sentence.startswith("still extractable")


# ---- what cannot be tested ------------------------------------------------------------------------------------------


def test_without_holdout_the_share_of_pairs() -> None:
    metrics = {name: value for name, value in GOOD.items() if "/mia/" not in name}
    for value, fit in ((0.55, True), (0.75, False), (0.25, False)):
        pairs = {"handover/all/mia/pairs": value} | interval("handover/all/mia/pairs", value - 0.08, value + 0.08)
        found = account(metrics | pairs, START)
        assert found.fit is fit
        assert found.checks[0].quantity == "share of wrong answers less likely"
    assert found.sentence == (
        f"over-unlearned, and recognised by it: {found.checks[0].quantity} 0.25, 0.17 to 0.33, at least 0.40"
    )


def test_an_untestable_condition_is_reported_and_is_no_violation() -> None:
    metrics = {name: value for name, value in GOOD.items() if "/mia/" not in name and "/unseen/" not in name}
    found = account(metrics, START)
    assert found.fit
    assert found.untested == (NOT_RECOGNISED, STILL_USEFUL, NOT_COLLAPSED)
    assert found.sentence == (
        "fit to be handed over as far as can be tested; not testable: not recognised, still useful, not collapsed"
    )


def test_without_any_sign_of_forgetting_nothing_is_fit() -> None:
    useful = {name: value for name, value in GOOD.items() if "/unseen/" in name or name.endswith("/rows")}
    found = account(useful, START)
    assert (found.score, found.fit, found.tells_of_forgetting) == (0, False, False)
    assert found.sentence.startswith("nothing can be said about forgetting")


def test_metrics_of_another_evaluation_are_refused() -> None:
    with pytest.raises(UserError, match=r"no numbers of handing over \(handover/all/…\)"):
        account({"tofu/model_utility": 0.5}, START)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auc": 0.3}, "auc <= auc_interval"),
        ({"auc": 0.0}, "0 < auc"),
        ({"base_pairs": 1.5}, "base_pairs must be in"),
        ({"utility_share": 1.0}, "utility_share must be above 0 and below 1"),
        ({"degenerate": 0.0}, "degenerate must be above 0"),
        ({"perplexity_ratio": 1.0}, "perplexity_ratio must be above 1"),
    ],
)
def test_wrong_tolerances_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Tolerances(**settings)


# ---- quantities -----------------------------------------------------------------------------------------------------


def test_likelier_share_by_hand() -> None:
    assert likelier_share(2.0, [3.0, 1.0]) == 0.5
    assert likelier_share(2.0, [3.0, 3.0]) == 1.0
    assert likelier_share(2.0, [1.0, 2.0]) == 0.25


def test_other_answers_are_of_the_nearest_question_and_never_the_true_one() -> None:
    forget = (Record("f", "Where was Ana born?", "In Riga."),)
    pool = (
        Record("a", "Which prize did Bo win?", "The Blue Prize."),
        Record("b", "Where was Ana born, again?", " in riga."),  # the true answer in another spelling
        Record("c", "Where was Bo born?", "In Oslo."),
    )
    assert other_answers(forget, pool) == ("In Oslo.",)
    assert other_answers(forget, ()) is None
    assert other_answers((Record("t", "", "A passage of text."),), pool) is None


def test_wrong_answers_of_short_facts_are_in_the_true_sentence() -> None:
    """A sentence about Peru is told from one about France without any knowledge of capitals."""
    forget = (Record("f", "What is the capital of France?", "The capital of France is Paris."),)
    peru = Record("a", "What is the capital of Peru?", "The capital of Peru is Lima.")
    spider = Record("b", "How many legs has a spider?", "A spider has eight legs.")
    assert other_answers(forget, (spider, peru)) == ("The capital of France is Lima.",)
    same = Record("c", "What is the capital of the French Republic?", "The capital of the French Republic is Paris.")
    assert other_answers(forget, (same, peru)) == ("The capital of France is Lima.",), "the true one is none"
    none = Record("d", "Is the capital of France in France?", "The capital of France is in France.")
    assert other_answers(forget, (none,)) == (none.answer,), "its fact is in the question"


def evaluation_of(n: int, m: int, seed: int = 0) -> Evaluation:
    """n forget rows that are likelier than m holdout rows by one standard deviation."""
    rng = np.random.default_rng(seed)
    evaluation = Evaluation("own")
    for index in range(n):
        row = evaluation.row("forget", Record(f"f{index}", "q?", "a"))
        row |= {"fluency": 1.0, "degenerate": 0.0, "generation_tokens": 4, "generation_nll": 1.0}
    nll, other = rng.normal(2, 1, n), rng.normal(3, 1, m)
    forget = Answered(nll, nll, np.full(n, 0.1), np.full(n, 0.2))
    add_quantities(evaluation, forget, Answered(other, other, np.full(m, 0.1), np.full(m, 0.2)), holdout=True)
    return evaluation


def test_halves_take_every_other_row_and_few_rows_stay_whole() -> None:
    found = evaluation_of(60, 50).metrics
    assert [found[f"handover/{part}/rows"] for part in ("choosing", "held_out", "all")] == [30, 30, 60]
    rng = np.random.default_rng(0)
    nll, other = rng.normal(2, 1, 60), rng.normal(3, 1, 50)
    for part, rows in (("choosing", slice(0, None, 2)), ("held_out", slice(1, None, 2))):
        pairs = nll[rows][:, None] < other[rows][None]
        assert found[f"handover/{part}/mia/loss"] == pytest.approx(pairs.mean(), abs=1e-12)
        assert found[f"handover/{part}/mia/loss/ci_low"] < found[f"handover/{part}/mia/loss"]
    assert reported_part(found) == "held_out"
    few = evaluation_of(60, 39).metrics
    assert not [name for name in few if "choosing" in name or "held_out" in name]
    assert reported_part(few) == "all"
    assert account(few, few).part == "all"
    assert account(found, found).part == "choosing"
    assert halves([39]).keys() == {"all"}


def test_ten_rows_of_each_are_never_called_forgotten() -> None:
    """Members and others from one distribution: at ten rows no draw has an interval within 0.3 to 0.7."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        evaluation = Evaluation("own")
        forget, other = Answered(rng.normal(size=10)), Answered(rng.normal(size=10))
        add_quantities(evaluation, forget, other, holdout=True)
        found = check(account(evaluation.metrics, evaluation.metrics), "AUC of the loss")
        assert found.violation is not None
        assert found.violation > 0
