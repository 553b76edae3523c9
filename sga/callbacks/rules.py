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
OF_REFERENCE = (QUALITY, REFERENCE_NLL)  # PrivLeak can also be computed from an assumed AUC


@dataclass(frozen=True)
class Point:
    """One evaluation as a rule sees it.

    Attributes:
        step: Number of optimiser steps taken.
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
    """Decision of a rule on one evaluation.

    Attributes:
        choose: True if this evaluation becomes the chosen one.
        because: Reason for the choice with its numbers, for people.
        stop: Reason why the run ends here; None to continue training.
        metrics: Numbers of the verdict by flat name, which are written with the evaluation.
    """

    choose: bool
    because: str
    stop: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class StoppingRule(ABC):
    """Decides after each evaluation whether it is the best so far, and whether the run ends.

    For a rule of your own, write a frozen dataclass with three short methods and give its class path. The verdict must
    depend on the arguments alone: a resumed run and each of several processes call it again and must get the same.
    """

    needs_intervals: ClassVar[bool] = False
    """True for a rule that decides by bootstrap intervals; a run without resamples is refused."""

    @abstractmethod
    def declaration(self) -> str:
        """Goal of the choice in words, without numbers of a run; written to metrics.json and shown on the report."""

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Names of the metrics that the rule decides by; a run in which one is absent is refused."""

    def needs_of_start(self) -> tuple[str, ...]:
        """Names of the starting model's metrics that the rule uses; a checkpoint that lacks one is refused."""
        return ()

    @abstractmethod
    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        """Verdict on an evaluation.

        Args:
            point: Evaluation that the verdict is on.
            start: First evaluation of the run, of the starting model; may be `point` itself.
            chosen: Evaluation chosen so far; None if there is none yet.
        """

    def check(self, data: EvaluationData) -> None:
        """Raises a UserError, before weights are loaded, if a training run's data do not suffice for the rule.

        Args:
            data: Evaluation sets and normal samples of the run.
        """
        return

    def requests(self, data: EvaluationData, utility: ModelUtility | None) -> Iterable[Request]:
        """Requests to the model beyond those of metric callbacks.

        Args:
            data: Evaluation sets and normal samples of the run.
            utility: Callback that generates answers, with its settings; None without one.
        """
        return ()

    def observe(
        self, data: EvaluationData, answers: Answers, evaluation: Evaluation, utility: ModelUtility | None
    ) -> None:
        """Adds the rule's own numbers to an evaluation, after all metric callbacks have added theirs.

        Args:
            data: Evaluation sets and normal samples of the run.
            answers: Answers to the requests of this rule and of all metric callbacks.
            evaluation: Evaluation with the metric callbacks' numbers, which is changed.
            utility: Callback that generates answers, with its settings; None without one.
        """
        return

    def result(self, chosen: Point, start: Point) -> dict[str, Any]:
        """Entries of metrics.json on the choice besides its metrics, by name.

        Args:
            chosen: Evaluation that the rule has chosen.
            start: Evaluation of the starting model.
        """
        return {}


@dataclass(frozen=True)
class BestForgetQuality(StoppingRule):
    """Chooses the highest forget quality among evaluations that retain a share of the starting model's utility.

    Args:
        utility_share: Least model utility over the reserved retain rows, as a share of the starting model's (the
            utility budget), above 0 and at most 1.
        stop_below_budget: True to end the run at the first evaluation below the budget. Off by default, because utility
            can recover later in a run.
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
    """Ends the run once the forget nll reaches the reference's, and chooses the evaluation nearest to it."""

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
    """Ends the run at the first evaluation that shows a declared failure, and chooses the last one before it.

    Thresholds are the paper's (arXiv 2510.22376); null switches a signature off. If every evaluation shows a failure,
    the last weights are the result.

    Args:
        normal_perplexity: Perplexity on normal text above which the run counts as diverged.
        model_utility: Model utility over the reserved retain rows below which the run counts as over-unlearned. The
            paper's 0.4 is for TOFU's models; use a share of the starting model's utility for others.
        forget_quality: Forget quality below which the run counts as over-unlearned (the paper: 0.01) while the forget
            nll is above the reference's. Below the reference's nll, a low forget quality means under-unlearned.
        privleak: PrivLeak, in per cent and at least 0, above which the run counts as over-unlearned.
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
        # In logarithms, because the perplexity of a collapsed model can exceed the range of a float.
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
