"""Early stopping by a declared rule: it chooses the evaluation a run is judged by, saves its weights, and may end it.

Differs from early stopping on a validation loss: unlearning passes *through* its best trade-off, so the last weights
are seldom the best, and which ones are best depends on the goal. The rule states the goal before the run and in its
files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from sga.callbacks.checkpoints import save
from sga.callbacks.evaluator import EvaluationCallback, Evaluator, callback_of, evaluation_of
from sga.callbacks.export import HuggingFaceExport
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.rules import (
    FORGET_NLL,
    NORMAL_PERPLEXITY,
    OF_REFERENCE,
    REFERENCE_NLL,
    UTILITY,
    Point,
    StoppingRule,
)
from sga.data.reserved import RETAIN_UNSEEN
from sga.datamodule import EvaluationData
from sga.errors import DivergenceError, UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.reference import reference_for
from sga.evaluation.requests import Answers, Request
from sga.models.sharding import load_whole_weights
from sga.runs.folder import RunFolder
from sga.runs.references import read_retain_reference
from sga.runs.weights import is_whole


@dataclass(frozen=True)
class Choice:
    """The evaluation that a rule has chosen.

    Attributes:
        step: Number of optimiser steps taken at the evaluation.
        because: Reason of the rule for choosing it, with its numbers.
        metrics: Metrics without the benchmark's prefix, as in `Point`.
        absent: Reason by name for each absent metric.
        notes: Sentences on limits of its numbers, shown with them.
    """

    step: int
    because: str
    metrics: dict[str, float]
    absent: dict[str, str]
    notes: list[str]


class Stopping(EvaluationCallback):
    """Calls a rule after each evaluation to choose one and perhaps end the run; the chosen weights are the result.

    The chosen weights are in ``checkpoints/best.ckpt`` (weights only), written atomically and only when the choice
    changes. When the run ends they are exported, and metrics.json has their evaluation with the rule, its reason, and
    the reason why the run ended. The evaluation before the first step counts, so a run can be rolled back to the
    starting model.

    Without a rule the run trains to its end and the last evaluation is the result, as in published comparisons of
    methods at equal length.
    """

    def __init__(self, rule: StoppingRule | None = None) -> None:
        """Notes the rule.

        Args:
            rule: Rule that chooses the evaluation the run is judged by, and may end the run; null takes the last one
                and never ends early. BestForgetQuality, ForgetNLLReached, FailureSignatures, or your own class path.
                The chosen weights take a third of the disk space of a checkpoint to resume from, and for a moment
                twice that when they change.
        """
        self.rule = rule
        self.choice: Choice | None = None
        """Chosen evaluation so far; None without a rule, or while no evaluation qualifies."""
        self.stopped: str | None = None
        """Reason why the rule ended the run; None if no rule ended it."""
        self._start: Point | None = None
        self._reference_nll: float | None = None
        self._reference_rows: int | None = None
        self._settled = False
        self._utility: ModelUtility | None = None

    # ---- the rule's requests -----------------------------------------------------------------------------------

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return () if self.rule is None else self.rule.requests(data, self._utility)

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        if self.rule is not None:
            self.rule.observe(data, answers, evaluation, self._utility)

    def result(self) -> dict[str, Any]:
        """Entries of metrics.json on the choice besides its metrics; empty while nothing is chosen."""
        if self.rule is None or self.choice is None or self._start is None:
            return {}
        return self.rule.result(Point(self.choice.step, self.choice.metrics), self._start)

    # ---- checks before training --------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._settled = False
        self._utility = callback_of(trainer, ModelUtility)
        if self.rule is None or stage != "fit":
            return
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        place = callbacks.index(self)
        evaluators = [callback for callback in callbacks[:place] if isinstance(callback, Evaluator)]
        if not evaluators or any(isinstance(callback, HuggingFaceExport) for callback in callbacks[:place]):
            raise UserError(
                "among the trainer's callbacks Stopping stands after Evaluator and before HuggingFaceExport"
            )
        if self.rule.needs_intervals and not evaluators[0].resamples:
            raise UserError(
                f"--stop.rule {self._name} decides by intervals, which --evaluation.resamples 0 leaves out; give 1000"
            )
        data = pl_module.data.evaluation_data()  # type: ignore[operator, union-attr]
        self.rule.check(data)
        needs = self.rule.needs()
        if any(name in needs for name in OF_REFERENCE):
            paths = evaluators[0].reference_paths
            if not paths:
                raise self._lacks(
                    next(name for name in needs if name in OF_REFERENCE),
                    "there is no reference: give the run folder of a model trained without the forget data "
                    "(--evaluation.reference)",
                )
            ids = [record.id for record in data.sets.get("forget", ())]
            found = [reference_for(read_retain_reference(path), ids, data.settings) for path in paths]
            losses = [one.answer_nll for one in found if one.answer_nll is not None]
            if len(losses) == len(found):
                self._reference_rows = min(len(one) for one in losses)
                means = [float(one[: self._reference_rows].mean()) for one in losses]
                self._reference_nll = sum(means) / len(means)
            elif REFERENCE_NLL in needs:
                source = next(one.source for one in found if one.answer_nll is None)
                raise self._lacks(REFERENCE_NLL, f"{source} has ready-made truth ratios only; use a log with losses")
        if UTILITY in needs and any(isinstance(c, ModelUtility) and not c.generate for c in callbacks):
            raise self._lacks(UTILITY, "generation is switched off (--model_utility.generate)")
        if UTILITY in needs and RETAIN_UNSEEN in data.absent:
            raise self._lacks(UTILITY, data.absent[RETAIN_UNSEEN])
        if NORMAL_PERPLEXITY in needs and not data.normals:
            raise self._lacks(NORMAL_PERPLEXITY, "these groups have no normal samples")

    @property
    def _name(self) -> str:
        return type(self.rule).__name__

    def _lacks(self, metric: str, reason: str) -> UserError:
        return UserError(f"--stop.rule {self._name} decides by {metric}, which is absent: {reason}")

    # ---- resuming ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.rule is None:
            return {}
        return {
            "rule": repr(self.rule),
            "start": None if self._start is None else asdict(self._start),
            "choice": None if self.choice is None else asdict(self.choice),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.rule is None:
            return
        self._start = None if state_dict["start"] is None else Point(**state_dict["start"])
        for name in self.rule.needs_of_start():
            if self._start is not None and name not in self._start.metrics:
                raise UserError(
                    f"--stop.rule {self._name} compares with {name} of the starting model, which the run did not "
                    f"measure under {state_dict['rule']}: go on under that rule, or start the run anew"
                )
        if state_dict["rule"] == repr(self.rule):  # in another folder a checkpoint may be resumed under another rule
            self.choice = None if state_dict["choice"] is None else Choice(**state_dict["choice"])
            self.stopped = state_dict["stopped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopped is not None:  # killed between the decision and the end
            trainer.should_stop = True

    def _settle(self, trainer: pl.Trainer) -> None:
        """Makes sure, once per run, that the choice and the weights on disk belong to the same step.

        A run that was killed between an evaluation and the next checkpoint has newer weights on disk than its state.
        Where a run repeats bit for bit, it chooses them again; where it does not (on a GPU), weights and numbers of
        different runs must not be mixed up.
        """
        if self._settled:
            return
        self._settled = True
        path = _best(trainer)
        found = (path.is_file(), _step_of(path)) if trainer.is_global_zero else (False, None)
        there, kept = trainer.strategy.broadcast(found)
        if self.choice is not None and there and kept is None:
            raise UserError(
                f"{path} is damaged, and with it the weights that the rule has chosen, of step {self.choice.step}: "
                "start the run anew, or delete the file to have the rule choose among the evaluations to come"
            )
        if self.choice is not None and kept != self.choice.step:
            self.choice = None
        if self.choice is None and trainer.is_global_zero:
            path.unlink(missing_ok=True)

    # ---- after each evaluation ---------------------------------------------------------------------------------

    # Before any callback's on_validation_end, where the run folder's files are written.
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rule is None or trainer.state.fn != "fit":
            return
        self._settle(trainer)
        evaluation = evaluation_of(trainer)
        assert evaluation is not None, "the evaluator stands before"
        point = self._point(trainer.global_step, evaluation)
        for name in self.rule.needs():
            if name not in point.metrics:
                raise self._lacks(name, _why_absent(evaluation, name))
        if self._start is None:
            if point.step > 0:
                raise UserError(
                    f"--stop.rule {self._name} needs the evaluation before the first step, which this checkpoint does "
                    "not have; start the run anew"
                )
            self._start = point
        chosen = None if self.choice is None else Point(self.choice.step, self.choice.metrics)
        verdict = self.rule.judge(point, self._start, chosen)
        evaluation.metrics |= verdict.metrics
        if verdict.choose:
            self.choice = Choice(
                point.step, verdict.because, dict(point.metrics), dict(evaluation.absent), list(evaluation.notes)
            )
            save(trainer, "best", weights_only=True)
        if verdict.stop is not None:
            trainer.should_stop = True
            if self.stopped is None:
                self.stopped = f"at step {point.step}: {verdict.stop}"
                if trainer.is_global_zero:
                    print(f"stopped {self.stopped}")

    def _point(self, step: int, evaluation: Evaluation) -> Point:
        metrics = {name.removeprefix(f"{evaluation.name}/"): value for name, value in evaluation.metrics.items()}
        nll = evaluation.column("forget", "avg_nll")
        if nll is not None:
            metrics[FORGET_NLL] = float(nll[: self._reference_rows].mean())
        if self._reference_nll is not None:
            metrics[REFERENCE_NLL] = self._reference_nll
        return Point(step, metrics)

    # ---- the end -----------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the chosen weights into the module, from which they are exported."""
        if self.rule is None:
            return
        say = rank_zero_only(print)
        if self.choice is None:
            say(f"no evaluation qualifies as {self.rule.declaration()}: the last weights are the result")
            return
        path = _best(trainer)
        if self.choice.step != trainer.global_step:
            best = _read(path) if trainer.is_global_zero and is_whole(path) else {}
            kept = trainer.strategy.broadcast(best.get("global_step"))
            if kept != self.choice.step:
                raise UserError(
                    f"{path} {'is damaged or gone' if kept is None else f'holds the weights of step {kept}'}, and the "
                    f"weights of the chosen step {self.choice.step} are nowhere else: go on from a checkpoint before "
                    "that step, or start the run anew"
                )
            load_whole_weights(pl_module, best.get("state_dict", {}))
        say(f"the result is step {self.choice.step} of {trainer.global_step}, by the rule: {self.rule.declaration()}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, DivergenceError) and self.choice is not None and trainer.is_global_zero:
            print(f"{_best(trainer)} holds the weights that the rule chose, of step {self.choice.step}")


def _best(trainer: pl.Trainer) -> Path:
    return RunFolder(trainer.default_root_dir).checkpoint("best")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return content


def _step_of(path: Path) -> int | None:
    return int(_read(path)["global_step"]) if is_whole(path) else None


def _why_absent(evaluation: Evaluation, metric: str) -> str:
    name = metric.removesuffix("_log10").removesuffix("/log")
    candidates = (metric, name, f"{evaluation.name}/{metric}", f"{evaluation.name}/{name}")
    return next((evaluation.absent[key] for key in candidates if key in evaluation.absent), "no callback gives it")
