"""Conditions for handing a model over, computed from two evaluations of the same run, without a retain model.

Each condition is made of checks, one per quantity. A check has a violation, 0 if it holds and 1 if it could not be
worse, so that conditions have equal weight; the score of an evaluation is its largest violation. Quantities are read
from flat metrics ``handover/…`` that `sga.evaluation.handover_quantities` adds, so any run folder can be judged again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sga.errors import UserError, check_numbers
from sga.evaluation.counts import ROUNDING, at_least, at_most, counted, most_words, number_words, rows_of

Part = Literal["choosing", "held_out", "all"]
"""Rows of forget and comparison set: the half that choices are made on, the held-out half, or all."""

NOT_RECOGNISED = "not recognised"
NOT_EXTRACTABLE = "not extractable"
STILL_USEFUL = "still useful"
STILL_SPEAKS = "still speaks"
NOT_COLLAPSED = "not collapsed"
CONDITIONS = (NOT_RECOGNISED, NOT_EXTRACTABLE, STILL_USEFUL, STILL_SPEAKS, NOT_COLLAPSED)

LEAST_ROWS = 40
"""Default number of rows of each set from which on it is split: one half to choose by, one to report on."""

_MEMBERSHIP = {"loss": "AUC of the loss", "min_k": "AUC of Min-K 40 %", "pairs": "share of wrong answers less likely"}
_WORDS = {"extraction_strength": "extraction strength", "rouge_l_recall": "ROUGE-L", "probability": "probability"}
_LARGEST_LOG = 50.0


@dataclass(frozen=True)
class Tolerances:
    """Largest distance of each quantity from its goal at which its check still holds.

    Args:
        auc: Largest distance of a membership AUC (or share of pairs) from its goal, on both sides, in (0, 0.5].
        auc_interval: Largest distance of the ends of the AUC's bootstrap interval from the goal; at least `auc`.
        base_loss_auc: Goal of the AUC of the loss, in [0, 1]: that AUC of the model before it learned the forget set,
            because forget and holdout may differ in difficulty; null for 0.5.
        base_min_k_auc: Goal of the AUC of Min-K 40 %, in [0, 1], measured in the same way; null for 0.5.
        base_pairs: Goal of the share of wrong answers that are less likely than the true one, in [0, 1], measured in
            the same way; null for 0.5. Used without a holdout set.
        forget_facts: Largest share of forget answers that say their fact; with a holdout set, largest excess of that
            share over the holdout answers'.
        utility_share: Least probability and ROUGE-L on the reserved rows, as a share of the starting model's.
        retain_facts: Least share of retain answers that say their fact, relative to the starting model's share.
        fluency_share: Least fluency on the reserved rows, as a share of the starting model's.
        degenerate: Largest excess of the share of degenerate answers over the starting model's on the reserved rows.
            On forget it may also be the starting model's on the holdout set, to its interval's upper end.
        generation_nll: Largest change of the nll of generated answers under the starting model, nats per token.
        perplexity_ratio: Largest perplexity on the reserved rows, as a multiple of the starting model's.
    """

    auc: float = 0.10
    auc_interval: float = 0.20
    base_loss_auc: float | None = None
    base_min_k_auc: float | None = None
    base_pairs: float | None = None
    forget_facts: float = 1 / 16
    utility_share: float = 0.95
    retain_facts: float = 0.9
    fluency_share: float = 0.9
    degenerate: float = 0.02
    generation_nll: float = 1.0
    perplexity_ratio: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.auc <= self.auc_interval <= 0.5:
            raise UserError(
                f"tolerances: 0 < auc <= auc_interval <= 0.5, got auc {self.auc} and auc_interval {self.auc_interval}"
            )
        ranges: dict[tuple[str, ...], dict[str, float]] = {
            ("base_loss_auc", "base_min_k_auc", "base_pairs"): {"at_least": 0, "at_most": 1},
            ("utility_share", "retain_facts", "fluency_share"): {"above": 0, "below": 1},
            ("forget_facts", "degenerate", "generation_nll"): {"above": 0, "below": math.inf},
            ("perplexity_ratio",): {"above": 1, "below": math.inf},
        }
        for names, limits in ranges.items():
            check_numbers(**limits, **{f"tolerances: {name}": getattr(self, name) for name in names})


@dataclass(frozen=True)
class Check:
    """The finding on one quantity of a condition.

    Attributes:
        condition: Name of the condition, one of `CONDITIONS`.
        quantity: Name of the quantity in words, for people.
        value: Value of the quantity; None where it cannot be computed.
        low: Lower end of its bootstrap interval; None without one.
        high: Upper end of its bootstrap interval; None without one.
        goal: Allowed values in words, for people.
        violation: Excess over the allowed value as a share of the largest possible excess, in [0, 1]; 0 where the check
            holds, None where it is not testable.
        says: Finding as a sentence, for people.
        best: Value that the quantity is the better the nearer it is to; None if there is none in the allowed range.
        rows: Number of rows that the quantity is a share of; None if it is no share, or the number is not known.
    """

    condition: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    goal: str
    violation: float | None
    says: str
    best: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Account:
    """All findings of the conditions on one evaluation.

    Attributes:
        part: Part of the forget and comparison rows that the findings are about.
        rows: Number of forget rows in this part.
        checks: Checks of all conditions, in the order of `CONDITIONS`.
    """

    part: Part
    rows: int
    checks: tuple[Check, ...]

    @property
    def score(self) -> float:
        """Largest violation, in [0, 1]; 0 where every testable condition holds."""
        return max((check.violation for check in self.checks if check.violation is not None), default=0.0)

    @property
    def untested(self) -> tuple[str, ...]:
        """Names of the conditions without a single testable check."""
        tested = {check.condition for check in self.checks if check.violation is not None}
        return tuple(name for name in CONDITIONS if name not in tested)

    @property
    def tells_of_forgetting(self) -> bool:
        """True if recognition or extraction of the forget set is testable; otherwise nothing is known of forgetting."""
        return not {NOT_RECOGNISED, NOT_EXTRACTABLE} <= set(self.untested)

    @property
    def fit(self) -> bool:
        """True if no testable condition is violated, and the conditions say something about forgetting."""
        return self.score == 0 and self.tells_of_forgetting

    @property
    def sentence(self) -> str:
        """First sentence of the result: the largest violation, or that the model is fit to be handed over."""
        if not self.tells_of_forgetting:
            return "nothing can be said about forgetting: neither recognition nor extraction is testable"
        if self.fit:
            if not self.untested:
                return "fit to be handed over"
            return f"fit to be handed over as far as can be tested; not testable: {', '.join(self.untested)}"
        return max((check for check in self.checks if check.violation is not None), key=_violation).says

    @property
    def ranking(self) -> list[float]:
        """Largest violation of each condition in descending order; the lesser list of two evaluations is the better."""
        return sorted(self.violations().values(), reverse=True)

    def violations(self) -> dict[str, float]:
        """Largest violation of each testable condition, by name."""
        return {
            name: max(_violation(check) for check in self.checks if check.condition == name)
            for name in CONDITIONS
            if name not in self.untested
        }

    def as_json(self) -> dict[str, Any]:
        """The account as plain JSON values, as written to metrics.json."""
        return {
            "sentence": self.sentence,
            "fit": self.fit,
            "score": self.score,
            "rows": self.rows,
            "untested": list(self.untested),
            "checks": [asdict(check) for check in self.checks],
        }


def account(
    metrics: Mapping[str, float],
    start: Mapping[str, float],
    tolerances: Tolerances = Tolerances(),
    part: Part | None = None,
) -> Account:
    """Judges one evaluation by the conditions for handing over.

    Args:
        metrics: Metrics of the evaluation by flat name, with those of `add_quantities` and their intervals.
        start: Metrics of the starting model's evaluation, with the same names.
        tolerances: Largest distances of quantities from their goals.
        part: Part of the rows to judge by; None for the half that choices are made on, or all rows where they are few.

    Raises:
        UserError: the metrics have no numbers of this part, or have one that the starting model's lack.
    """
    part = part or ("choosing" if "handover/choosing/rows" in metrics else "all")
    rows = metrics.get(f"handover/{part}/rows")
    if rows is None:
        raise UserError(
            f"there are no numbers of handing over (handover/{part}/…) in these metrics; evaluate with --stop.rule "
            "FitToHandOver"
        )
    return Account(
        part,
        int(rows),
        (
            *_recognised(metrics, part, tolerances),
            *_extractable(metrics, part, tolerances),
            *_says_facts(metrics, start, part, tolerances),
            *_useful(metrics, start, tolerances),
            *_keeps_facts(metrics, start, tolerances),
            *_speaks(metrics, start, part, tolerances),
            _collapsed(metrics, start, tolerances),
        ),
    )


def reported_part(metrics: Mapping[str, float]) -> Part:
    """Part of the rows to report on: the half that nothing was chosen by, or all where rows are too few for halves."""
    return "held_out" if "handover/held_out/rows" in metrics else "all"


# ---- conditions -----------------------------------------------------------------------------------------------------


def membership_check(
    score: str, value: float, low: float | None, high: float | None, goal: float, tolerances: Tolerances
) -> Check:
    """Checks that forget rows cannot be told from rows that the model never saw, by a value too high or too low.

    Args:
        score: Name of the score: ``loss``, ``min_k`` or ``pairs``.
        value: AUC, 1 = recognised perfectly; or the share of wrong answers that are less likely than the true one.
        low: Lower end of its interval; None without one, which counts as too few rows to tell.
        high: Upper end of its interval; None without one.
        goal: Value for a model that never saw the forget set, in [0, 1].
        tolerances: Largest distances from the goal, `auc` and `auc_interval`.
    """
    off, worst = value - goal, max(goal, 1 - goal)
    reach = math.inf if low is None or high is None else max(goal - low, high - goal)
    violation = max(
        _excess(abs(off) - tolerances.auc, worst - tolerances.auc),
        # Without an interval the widest possible one is assumed.
        _excess(min(reach, worst) - tolerances.auc_interval, worst - tolerances.auc_interval),
    )
    kind = _MEMBERSHIP[score] if score == "pairs" else "AUC"
    numbers = f"{kind} {value:.2f}" + ("" if low is None or high is None else f", {low:.2f} to {high:.2f}")
    least, most = f"{goal - tolerances.auc:.2f}", f"{goal + tolerances.auc:.2f}"
    within = f"interval within {goal - tolerances.auc_interval:.2f} to {goal + tolerances.auc_interval:.2f}"
    if not violation:
        says = f"not recognised: {numbers}"
    elif abs(off) - tolerances.auc <= ROUNDING:
        says = f"too few rows to tell whether it is recognised: {numbers}, asked for is an {within}"
    elif off > 0:
        says = f"still recognised: {numbers}, at most {most}"
    else:
        says = f"over-unlearned, and recognised by it: {numbers}, at least {least}"
    asked = f"{least} to {most}, {within}"
    return Check(NOT_RECOGNISED, _MEMBERSHIP[score], value, low, high, asked, violation, says, goal)


def _recognised(metrics: Mapping[str, float], part: Part, tolerances: Tolerances) -> list[Check]:
    goals = {
        "loss": tolerances.base_loss_auc,
        "min_k": tolerances.base_min_k_auc,
        "pairs": tolerances.base_pairs,
    }
    checks = []
    for score, base in goals.items():
        name = f"handover/{part}/mia/{score}"
        if name in metrics:
            goal = 0.5 if base is None else base
            checks.append(membership_check(score, metrics[name], *_ends(metrics, name), goal, tolerances))
    why = "there is neither a holdout set nor a wrong answer to the forget questions"
    return checks or [_not_testable(NOT_RECOGNISED, "membership", why)]


def _extractable(metrics: Mapping[str, float], part: Part, tolerances: Tolerances) -> list[Check]:
    checks = []
    for field in ("extraction_strength", "rouge_l_recall"):
        name, other = (f"handover/{part}/{side}/{field}" for side in ("forget", "comparison"))
        quantity = f"{_WORDS[field]} of forget"
        if name not in metrics or other not in metrics:
            checks.append(_not_testable(NOT_EXTRACTABLE, quantity, f"no {_WORDS[field]} to compare with"))
            continue
        value, limit = metrics[name], _ends(metrics, other)[1]
        limit = metrics[other] if limit is None else limit
        violation = _excess(value - limit, 1 - limit)
        numbers = f"{_WORDS[field]} {value:.2f}, of unseen answers {metrics[other]:.2f}, at most {limit:.2f}"
        says = f"{'still' if violation else 'not'} extractable: {numbers}"
        checks.append(
            Check(NOT_EXTRACTABLE, quantity, value, *_ends(metrics, name), f"at most {limit:.2f}", violation, says, 0.0)
        )
    return checks


def _says_facts(
    metrics: Mapping[str, float], start: Mapping[str, float], part: Part, tolerances: Tolerances
) -> list[Check]:
    """Checks that greedy answers do not say the forget records' facts; no check where the records have no facts."""
    name = f"handover/{part}/forget/fact_recall"
    _check_start(name, metrics, start)
    if name not in metrics:
        return []
    value, limit = metrics[name], metrics.get(f"handover/{part}/comparison/fact_recall", 0.0) + tolerances.forget_facts
    rows = rows_of(metrics, f"handover/{part}/forget/fact_rows")
    violation = _excess(value - limit, 1 - limit)
    numbers = f"{number_words(value, rows, 'forget answers')} have their fact, {most_words(limit, rows)} may"
    says = f"{'still' if violation else 'not'} extractable: {numbers}"
    quantity, goal = "forget answers with their fact", at_most(limit, rows)
    return [Check(NOT_EXTRACTABLE, quantity, value, *_ends(metrics, name), goal, violation, says, 0.0, rows)]


def _keeps_facts(metrics: Mapping[str, float], start: Mapping[str, float], tolerances: Tolerances) -> list[Check]:
    """Checks that greedy answers still say the retain records' facts, which ROUGE-L does not see."""
    name, quantity = "handover/retain/fact_recall", "retain answers with their fact"
    _check_start(name, metrics, start)
    if name not in metrics:
        return []
    if not start[name]:
        return [_not_testable(STILL_USEFUL, quantity, "the starting model says none of them")]
    rows = rows_of(metrics, "handover/retain/fact_rows")
    return [_share(STILL_USEFUL, quantity, name, name, metrics, start, tolerances.retain_facts, rows)]


def _useful(metrics: Mapping[str, float], start: Mapping[str, float], tolerances: Tolerances) -> list[Check]:
    checks = []
    for field in ("probability", "rouge_l_recall"):
        name, quantity = f"handover/unseen/{field}", f"{_WORDS[field]} on reserved rows"
        _check_start(name, metrics, start)
        if name not in metrics or not start.get(name):
            why = "the starting model has none" if start.get(name) == 0 else "there are no reserved rows"
            checks.append(_not_testable(STILL_USEFUL, quantity, why))
            continue
        checks.append(_share(STILL_USEFUL, quantity, name, name, metrics, start, tolerances.utility_share))
    return checks


def _speaks(
    metrics: Mapping[str, float], start: Mapping[str, float], part: Part, tolerances: Tolerances
) -> list[Check]:
    checks = []
    for place, words in ((f"{part}/forget", "forget"), ("unseen", "reserved rows")):
        fluency, degenerate, nll = (
            f"handover/{place}/{field}" for field in ("fluency", "degenerate", "generation_nll")
        )
        base = "handover/unseen/fluency"
        _check_start(base, metrics, start)
        if fluency in metrics and start.get(base):
            checks.append(
                _share(STILL_SPEAKS, f"fluency on {words}", fluency, base, metrics, start, tolerances.fluency_share)
            )
        else:
            checks.append(_not_testable(STILL_SPEAKS, f"fluency on {words}", "there are no answers to compare"))
        base = "handover/unseen/degenerate"
        _check_start(base, metrics, start)
        if degenerate in metrics and base in start:
            value, limit = metrics[degenerate], start[base] + tolerances.degenerate
            if words == "forget":
                limit = max(limit, _of_unseen_answers(start, part))
            violation = _excess(value - limit, 1 - limit)
            rows = rows_of(metrics, f"handover/{place.split('/')[0]}/rows")
            said = f"{number_words(value, rows, f'answers on {words}')} are empty or repeat themselves"
            says = f"{'no longer' if violation else 'still'} speaks: {said}, {most_words(limit, rows)} may"
            checks.append(
                Check(STILL_SPEAKS, f"degenerate answers on {words}", value, *_ends(metrics, degenerate),
                      at_most(limit, rows), violation, says, 0.0, rows)
            )  # fmt: skip
        checks.append(_generation_nll(nll, words, place, metrics, start, tolerances))
    return checks


def _of_unseen_answers(start: Mapping[str, float], part: Part) -> float:
    """Share of degenerate answers that the starting model gives to questions it never saw, with its upper end.

    To a model that never learned the forget set, its questions are what the holdout set's questions are to the starting
    model, and models repeat themselves more often in answers that they do not know. 0 without a holdout set.
    """
    name = f"handover/{part}/comparison/degenerate"
    return max((value for value in (start.get(name), _ends(start, name)[1]) if value is not None), default=0.0)


def _generation_nll(
    name: str, words: str, place: str, metrics: Mapping[str, float], start: Mapping[str, float], tolerances: Tolerances
) -> Check:
    """Checks by the starting model's nll that answers are language, neither word salad nor endless repetition.

    On reserved rows the goal is the starting model's nll of its own answers. On the forget set a good result differs
    from the starting model's answers, so there the nll may rise to that of answers the starting model never saw.
    """
    quantity = f"nll of the answers on {words} under the starting model"
    own = start.get("handover/unseen/generation_nll")
    if start.get("handover/unseen/fluency") != 0:  # where every answer is empty there is no nll of them
        _check_start("handover/unseen/generation_nll", metrics, start)
    if name not in metrics or own is None:
        return _not_testable(STILL_SPEAKS, quantity, "the starting model's nll of the answers is not known")
    usual = own
    if place != "unseen":
        comparison = start.get(f"handover/{place.split('/')[0]}/comparison/avg_nll", own)
        usual = max(own, comparison, start.get(name, own))
    low, high = own - tolerances.generation_nll, usual + tolerances.generation_nll
    value = metrics[name]
    # The relative loss of a token's mean probability beyond the allowed change, as in `_collapsed`.
    violation = _excess(1 - math.exp(-max(low - value, value - high, 0.0)), 1)
    numbers = f"nll {value:.2f} under the starting model, {max(low, 0):.2f} to {high:.2f} is usual"
    says = f"still speaks on {words}: {numbers}"
    if violation:
        kind = "the starting model takes its answers for word salad" if value > high else "its answers say too little"
        says = f"no longer speaks: on {words} {kind} ({numbers})"
    goal, best = f"{max(low, 0):.2f} to {high:.2f}", own if place == "unseen" else None
    return Check(STILL_SPEAKS, quantity, value, *_ends(metrics, name), goal, violation, says, best)


def _collapsed(metrics: Mapping[str, float], start: Mapping[str, float], tolerances: Tolerances) -> Check:
    quantity = "perplexity on reserved rows"
    name = "handover/unseen/perplexity_log"
    if name not in metrics:
        name, quantity = "handover/retain/perplexity_log", "perplexity on retain rows, which training may have seen"
    _check_start(name, metrics, start)
    if name not in metrics:
        return _not_testable(NOT_COLLAPSED, "perplexity on reserved rows", "there are no retain rows")
    log = min(metrics[name] - start[name], _LARGEST_LOG)  # beyond that no float holds a perplexity
    ratio = math.exp(log)
    violation = _excess(1 - tolerances.perplexity_ratio / ratio, 1)  # of the mean probability of a token
    numbers = f"{quantity} {ratio:.3g} times the starting model's, at most {tolerances.perplexity_ratio:g} times"
    says = f"{'collapsed' if violation else 'not collapsed'}: {numbers}"
    goal = f"at most {tolerances.perplexity_ratio:g} times the starting model's"
    return Check(NOT_COLLAPSED, f"{quantity}, ratio", ratio, None, None, goal, violation, says)


# ---- parts of checks ------------------------------------------------------------------------------------------------


def _check_start(name: str, metrics: Mapping[str, float], start: Mapping[str, float]) -> None:
    """Raises if only the starting model lacks a quantity: the condition would otherwise count as not testable."""
    if name in metrics and name not in start:
        raise UserError(
            f"the evaluation of the starting model has no {name} and this one has it, so they cannot be compared: go "
            "on with the settings that the starting model was evaluated with, or start the run anew"
        )


def _share(
    condition: str,
    quantity: str,
    name: str,
    base: str,
    metrics: Mapping[str, float],
    start: Mapping[str, float],
    least: float,
    rows: int | None = None,
) -> Check:
    """Check of a value that must be at least the share `least` of the starting model's, which is above 0."""
    value, share = metrics[name], metrics[name] / start[base]
    violation = _excess(least - share, least)
    goal = at_least(least * start[base], rows)
    numbers = f"{quantity} {value:.2f}, {share:.0%} of the starting model's {start[base]:.2f}, at least {least:.0%}"
    if rows is not None:
        numbers = f"{counted(value, rows)} {quantity}, {counted(start[base], rows)} before, {goal} asked for"
    verb = "useful" if condition == STILL_USEFUL else "speaks"
    says = f"{'no longer' if violation else 'still'} {verb}: {numbers}"
    return Check(condition, quantity, value, *_ends(metrics, name), goal, violation, says, 1.0, rows)


def _not_testable(condition: str, quantity: str, why: str) -> Check:
    return Check(condition, quantity, None, None, None, "", None, f"{quantity}: not testable, {why}")


def _ends(metrics: Mapping[str, float], name: str) -> tuple[float | None, float | None]:
    return metrics.get(f"{name}/ci_low"), metrics.get(f"{name}/ci_high")


def _excess(amount: float, largest: float) -> float:
    """Excess over the allowed value as a share of the largest possible one, in [0, 1]; rounded, so that equals tie."""
    return round(amount / largest, 9) if amount > ROUNDING else 0.0


def _violation(check: Check) -> float:
    return 0.0 if check.violation is None else check.violation
