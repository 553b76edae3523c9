"""Rules that choose an evaluation: functions of evaluations, declared before the run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sga.callbacks.model_utility import ModelUtility
from sga.datamodule import EvaluationData
from sga.errors import UserError, check_numbers
from sga.evaluation.aggregation import UTILITY_UNSEEN
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.requests import Answers, Request

FORGET_NLL = "forget_nll"
REFERENCE_NLL = "reference_forget_nll"
UTILITY = UTILITY_UNSEEN
QUALITY = "forget_quality_log10"
NORMAL_PERPLEXITY = "perplexity/normal/log"
PRIVLEAK = "privleak"
OF_REFERENCE = (QUALITY, REFERENCE_NLL)  # PrivLeak can do with an assumed AUC


@dataclass(frozen=True)
class Point:
    """What a rule sees of one evaluation.

    Attributes:
        step: Optimiser steps taken.
        metrics: Value by name, without the benchmark's prefix: ``model_utility_unseen``, ``forget_quality_log10``,
            ``perplexity/normal/log``, ``privleak``, …, with the ends of intervals; also ``forget_nll`` (mean avg_nll of
            the forget set, nats per token) and, where the reference's log has it, ``reference_forget_nll`` over the
            same rows.
    """

    step: int
    metrics: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]


@dataclass(frozen=True)
class Verdict:
    """What a rule says about one evaluation.

    Attributes:
        choose: Whether this evaluation is to be the chosen one from now on.
        because: Why it would be, with its numbers; for people.
        stop: Why the run ends here; None where it goes on.
        metrics: Numbers of the verdict by flat name, which are kept with the evaluation.
    """

    choose: bool
    because: str
    stop: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class StoppingRule(ABC):
    """Says of each evaluation whether it is the one to keep so far, and whether the run ends with it.

    A rule of one's own is a frozen dataclass with three short methods, given by its class path. It must be a function
    of its arguments alone: a resumed run, and each process of several, asks it again and must hear the same.
    """

    needs_intervals: ClassVar[bool] = False
    """True for a rule that decides by bootstrap intervals; a run without resamples is refused."""

    @abstractmethod
    def declaration(self) -> str:
        """What is chosen, in words that need no number of a run; stands in metrics.json and on the report."""

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Names of the metrics that it decides by; a run in which one is absent is refused."""

    def needs_of_start(self) -> tuple[str, ...]:
        """Names of the starting model's metrics that it compares with; a checkpoint that lacks one is refused."""
        return ()

    @abstractmethod
    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        """The verdict on an evaluation.

        Args:
            point: The evaluation.
            start: The first one, of the starting model; `point` itself when it is that one.
            chosen: The one chosen so far; None where none has been yet.
        """

    def check(self, data: EvaluationData) -> None:
        """Raises a UserError, before weights are loaded, where a run that trains has data that it cannot judge by.

        Args:
            data: What may be asked about.
        """
        return

    def requests(self, data: EvaluationData, utility: ModelUtility | None) -> Iterable[Request]:
        """What it asks beyond what metric callbacks do.

        Args:
            data: What may be asked about.
            utility: The callback that generates answers, with its settings; None without one.
        """
        return ()

    def observe(
        self, data: EvaluationData, answers: Answers, evaluation: Evaluation, utility: ModelUtility | None
    ) -> None:
        """Adds numbers of its own to an evaluation, after all metric callbacks have added theirs.

        Args:
            data: What was asked about.
            answers: The answers.
            evaluation: The evaluation so far.
            utility: As in `requests`.
        """
        return

    def result(self, chosen: Point, start: Point) -> dict[str, Any]:
        """What metrics.json says of the choice besides its metrics, by name.

        Args:
            chosen: The chosen evaluation.
            start: The starting model's.
        """
        return {}


@dataclass(frozen=True)
class BestForgetQuality(StoppingRule):
    """Chooses the highest forget quality among evaluations that keep a share of the starting model's utility.

    Args:
        utility_share: Utility budget: least model utility, over the reserved retain rows, as a share of the starting
            model's, above 0 and at most 1.
        stop_below_budget: End the run at the first evaluation below the budget. Off by default: utility can come back
            later in a run.
    """

    utility_share: float = 0.9
    stop_below_budget: bool = False

    def __post_init__(self) -> None:
        check_numbers(above=0, at_most=1, utility_share=self.utility_share)

    def declaration(self) -> str:
        return f"best forget quality with at least {self.utility_share:g} of the starting model's utility"

    def needs(self) -> tuple[str, ...]:
        return QUALITY, UTILITY

    def needs_of_start(self) -> tuple[str, ...]:
        return (UTILITY,)

    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        least = self.utility_share * start[UTILITY]
        affordable = point[UTILITY] >= least
        better = chosen is None or (point[QUALITY], point[UTILITY]) > (chosen[QUALITY], chosen[UTILITY])
        utility = f"model utility {point[UTILITY]:.3f}, of which {least:.3f} was asked"
        stop = None
        if self.stop_below_budget and not affordable:
            stop = f"model utility {point[UTILITY]:.3f} is below the budget of {least:.3f}"
        return Verdict(affordable and better, f"log10 forget quality {point[QUALITY]:.2f} at {utility}", stop)


@dataclass(frozen=True)
class ForgetNLLReached(StoppingRule):
    """Ends the run once the forget nll is the reference's or above, and chooses the evaluation nearest to it."""

    def declaration(self) -> str:
        return "forget nll nearest to the reference's"

    def needs(self) -> tuple[str, ...]:
        return FORGET_NLL, REFERENCE_NLL

    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        nll, goal = point[FORGET_NLL], point[REFERENCE_NLL]
        nearer = chosen is None or abs(nll - goal) < abs(chosen[FORGET_NLL] - goal)
        numbers = f"forget nll {nll:.3f}, the reference's {goal:.3f}"
        return Verdict(
            nearer, numbers, f"the forget nll has reached the reference's ({numbers})" if nll >= goal else None
        )


@dataclass(frozen=True)
class FailureSignatures(StoppingRule):
    """Ends the run at the first evaluation that shows a declared failure, and chooses the last one that shows none.

    Thresholds are those of the paper (arXiv 2510.22376); null does not look at a signature. Without an evaluation that
    shows none, the last one stays the result.

    Args:
        normal_perplexity: Divergence: perplexity on normal text above this.
        model_utility: Over-unlearning: model utility, over the reserved retain rows, below this. The paper's 0.4 is of
            TOFU's models; take a share of the starting model's utility for others.
        forget_quality: Over-unlearning: forget quality below this (the paper: 0.01) while the forget nll is above the
            reference's. Below the reference's, a low forget quality means that there is more to unlearn.
        privleak: Over-unlearning: PrivLeak above this, which is at least 0 (a percentage).
    """

    normal_perplexity: float | None = 1e10
    model_utility: float | None = 0.4
    forget_quality: float | None = None
    privleak: float | None = None

    def __post_init__(self) -> None:
        if {self.normal_perplexity, self.model_utility, self.forget_quality, self.privleak} == {None}:
            raise UserError("FailureSignatures looks at no signature; set at least one threshold")
        check_numbers(above=1, normal_perplexity=self.normal_perplexity)
        check_numbers(above=0, below=1, model_utility=self.model_utility, forget_quality=self.forget_quality)
        check_numbers(0, privleak=self.privleak)

    def declaration(self) -> str:
        looked_at = [
            f"{name} {side} {value:g}"
            for name, side, value in (
                ("perplexity on normal text", "above", self.normal_perplexity),
                ("model utility", "below", self.model_utility),
                ("forget quality on the over-unlearned side", "below", self.forget_quality),
                ("PrivLeak", "above", self.privleak),
            )
            if value is not None
        ]
        return f"last evaluation without a failure ({', '.join(looked_at)})"

    def needs(self) -> tuple[str, ...]:
        quality = (QUALITY, FORGET_NLL, REFERENCE_NLL)
        return (
            *((NORMAL_PERPLEXITY,) if self.normal_perplexity is not None else ()),
            *((UTILITY,) if self.model_utility is not None else ()),
            *(quality if self.forget_quality is not None else ()),
            *((PRIVLEAK,) if self.privleak is not None else ()),
        )

    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        found = []
        # In logarithms: the perplexity of a collapsed model is beyond what a float holds.
        if self.normal_perplexity is not None and point[NORMAL_PERPLEXITY] > math.log(self.normal_perplexity):
            found.append(
                f"perplexity on normal text is e^{point[NORMAL_PERPLEXITY]:.1f}, above {self.normal_perplexity:g}"
            )
        if self.model_utility is not None and point[UTILITY] < self.model_utility:
            found.append(f"model utility {point[UTILITY]:.3f} is below {self.model_utility:g}")
        if self.forget_quality is not None:
            low = point[QUALITY] < math.log10(self.forget_quality)
            if low and point[FORGET_NLL] > point[REFERENCE_NLL]:
                found.append(
                    f"log10 forget quality {point[QUALITY]:.2f} is below that of {self.forget_quality:g} and the model "
                    f"over-unlearned (forget nll {point[FORGET_NLL]:.3f}, the reference's {point[REFERENCE_NLL]:.3f})"
                )
        if self.privleak is not None and point[PRIVLEAK] > self.privleak:
            found.append(f"PrivLeak {point[PRIVLEAK]:.1f} is above {self.privleak:g}")
        return Verdict(not found, "no sign of failure", "; ".join(found) or None)
