"""The pilot of `sga unlearn`: a few steps at several learning rates, where nobody has measured the recipe's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sga.errors import StoppedError
from sga.evaluation.handover import Tolerances, account
from sga.experiments.configuration import applied
from sga.experiments.engine import Pool, run
from sga.experiments.task import Task
from sga.runs.folder import Run, load_run

_NEVER = 1_000_000
"""More epochs than any run has: a pilot is evaluated at its end alone."""


@dataclass(frozen=True)
class Pilot:
    """Learning rates to try.

    Attributes:
        rates: Learning rates, smallest first.
        steps: Number of optimiser steps at each.
    """

    rates: tuple[float, ...]
    steps: int

    def tasks(self, training: Task) -> list[Task]:
        """A short run for each rate, otherwise like the training; its weights are not kept."""
        short = {
            "trainer.max_steps": self.steps,
            "trainer.check_val_every_n_epoch": _NEVER,
            "export.enabled": False,
        }
        return [
            Task(
                f"pilot-{rate:g}",
                applied(training.config, {**short, "model.optimizer.lr": rate}),
                title=f"tries learning rate {rate:g} for {self.steps} steps",
                keep_weights=False,
            )
            for rate in self.rates
        ]


def piloted_rate(
    pilot: Pilot,
    training: Task,
    before: Run,
    tolerances: Tolerances,
    folder: Path,
    pool: Pool,
    say: Callable[[str], None],
) -> float:
    """The learning rate after whose steps the conditions for handing over are violated least; of equals the smallest.

    A rate that diverges is out.

    Args:
        pilot: Learning rates to try.
        training: Task that the rate is for.
        before: Evaluation of the starting model.
        tolerances: Tolerances of the rule.
        folder: Path of the experiment's folder.
        pool: Place where runs are made.
        say: Function that is called with each line of output.

    Raises:
        StoppedError: training failed at every rate.
    """
    tasks = pilot.tasks(training)
    ended = run(tasks, folder, pool, retry=True, wait=False, total=len(tasks))  # all of the same length
    reasons = {task.key: outcome.reason for task in tasks if (outcome := ended.get(task.key)) is not None}
    rankings: dict[float, list[float]] = {}
    for rate, task in zip(pilot.rates, tasks, strict=True):
        if reasons.get(task.key) is not None:
            say(f"pilot: learning rate {rate:g} is out: {reasons[task.key]}")
            continue
        found = account(load_run(folder / task.name).evaluations[-1], before.chosen, tolerances)
        rankings[rate] = found.ranking
        say(f"pilot: learning rate {rate:g}, largest violation {found.score:.3g}: {found.sentence}")
    if not rankings:
        raise StoppedError(f"the pilot failed at every learning rate: {next(iter(reasons.values()))}")
    best = min(rankings, key=rankings.__getitem__)
    say(f"pilot: going on with learning rate {best:g}")
    return best
