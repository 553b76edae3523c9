"""What the rule `FitToHandOver` and recipes of unlearning are worth, judged by retained models.

    python benchmarks/hand_over.py run PLAN … --folder runs/hand-over
    python benchmarks/hand_over.py run PLAN … --folder FOLDER --only target      # the models to start from alone
    python benchmarks/hand_over.py collect PLAN … --folder FOLDER --to FILE.json.gz

The protocol is docs/experiments/hand-over.md. A plan, as in benchmarks/hand-over/development.yaml, has worlds (seeds
of the built-in authors), retained models and recipes. Every run is an ordinary `sga fit` or `sga validate`; what is
finished is reused, so that the command can be given again, and by several processes at once. `collect` keeps what every
number of the result can be computed from: metrics of each evaluation, the forget rows without texts, but for the
answers, and the losses of the holdout rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.errors import Interruption
from sga.experiments.configuration import applied, read_config
from sga.experiments.demo import installed_model
from sga.experiments.engine import InThisProcess, Job, run
from sga.experiments.task import Outcome, Task, end, outcome
from sga.files import read_json_object, read_yaml
from sga.runs.folder import RunFolder

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAME_OR_PATH = "model.language_model.name_or_path"
REPLAYED = "model.loss.normal_weight.file"
TOGETHER = 3
"""Worlds that are begun together, so that those that were begun first are whole when time is up."""
KEPT = (
    *("id", "avg_nll", "log_truth_ratio", "paraphrased_nll", "perturbed_nll", "rouge_l_recall", "min_k"),
    *("extraction_strength", "exact_memorization", "fluency", "empty", "repeated", "degenerate", "generation_tokens"),
    *("generation_nll", "generation"),
)
"""Fields of a forget row that are collected."""


def read_plan(path: Path, models: Path | None = None) -> list[Task]:
    """All tasks of a plan, `TOGETHER` worlds at a time; of these first the models to start from, then retained ones.

    Args:
        path: The plan.
        models: Folder with ``WORLD`` folders of models to start from; those worlds' are not trained.
    """
    plan = plan_of(path)
    if "model.language_model" in plan["training"]:  # a pretrained model
        started = plan["training"]["model.language_model"]["init_args"]
        started["name_or_path"] = installed_model(started["name_or_path"])
    found: list[tuple[tuple[int, int], Task]] = []
    for place, world in enumerate(plan["worlds"]):
        turn = place // TOGETHER
        common = {**plan["common"], "data.source.init_args.seed": world, "seed_everything": world}
        given = models / str(world) if models is not None else None
        target: Task | None = None
        if given is None or not given.is_dir():
            files = ["benchmarks/authors", "methods/target", "pairs/authors/target"]
            target = made(f"{world}/target", files, {**common, **plan["training"], **plan.get("target", {})})
            found.append(((turn, 0), target))
        for number in plan["retained"]:
            files = ["benchmarks/authors", "methods/retain", "pairs/authors/retain"]
            own = {**plan.get("retain", {}), "seed_everything": 1000 * world + number}
            retained = made(f"{world}/retained-{number}", files, {**common, **plan["training"], **own})
            judged = made(
                f"{world}/judged-{number}",
                ["benchmarks/authors", "methods/evaluate"],
                _from(target, given, "fluency.starting_model", {**common, **plan["rule"], "run.role": "retain"}),
                {NAME_OR_PATH: retained, **({"fluency.starting_model": target} if target else {})},
                "validate",
            )
            found.append(((turn, 1), judged))
        runs: dict[str, Task] = {}
        for name, recipe in plan["recipes"].items():
            settings = {**common, **plan["rule"], **plan["unlearning"], **(recipe.get("settings") or {})}
            files = ["benchmarks/authors", f"methods/{recipe['method']}"]
            needs = {NAME_OR_PATH: target} if target else {}
            if "replays" in recipe:  # takes the λ of that recipe's steps
                needs[REPLAYED] = runs[recipe["replays"]]
                settings["model.loss.normal_weight.seed"] = world
            runs[name] = made(f"{world}/{name}", files, _from(target, given, NAME_OR_PATH, settings), needs)
            found.append(((turn, 2), runs[name]))
    return [task for _, task in sorted(found, key=lambda one: one[0])]


def plan_of(path: Path) -> dict[str, Any]:
    """Parts of a plan by name; those of the plan beside it that it extends hold where it has none of its own."""
    plan = read_yaml(path)
    return {**plan_of(path.parent / plan["extends"]), **plan} if "extends" in plan else plan


def _from(target: Task | None, given: Path | None, setting: str, settings: dict[str, Any]) -> dict[str, Any]:
    return settings if target is not None else {**settings, setting: str(given)}


def made(
    name: str, files: list[str], settings: dict[str, Any], needs: dict[str, Task] | None = None, verb: Any = "fit"
) -> Task:
    """A task of shipped configurations and settings on top of them; only models that others need are kept."""
    config = applied(read_config([CONFIGS / f"{file}.yaml" for file in files]), settings)
    return Task(name, config, needs or {}, keep_weights=verb == "fit" and "fluency" not in config, verb=verb)


@dataclass
class Patient(InThisProcess):
    """Runs tasks in this process; one that ends with an error is noted as failed, and the next one begins."""

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Runs a task."""
        try:
            return super().start(task, folder, lock)
        except Interruption:  # the same command goes on with it
            raise
        except Exception as error:
            failed = Outcome(f"{type(error).__name__}: {error}"[:400], 1)
            end(task, folder, failed, 0)
            return _Failed(failed)


@dataclass(frozen=True)
class _Failed:
    outcome: Outcome

    def poll(self) -> Outcome:
        """How it ended."""
        return self.outcome

    def stop(self) -> None:
        """Nothing is left to stop."""


def collected(tasks: list[Task], folder: Path) -> dict[str, Any]:
    """Metrics, forget rows and rates by step of the runs that finished, and the reasons of those that failed."""
    runs, failed = {}, {}
    for task in tasks:
        ended = outcome(task, folder)
        path = RunFolder(folder / task.name)
        if ended is not None and ended.reason is not None:
            failed[task.name] = ended.reason
        if ended is None or ended.reason is not None or not path.chosen_path.is_file():
            continue
        rows = {}
        for step in path.row_steps:
            forget, holdout = (path.row_dicts(step, name) for name in ("forget", "holdout"))
            rows[step] = {
                "forget": [{key: row[key] for key in KEPT if key in row} for row in forget],
                "holdout": [row["avg_nll"] for row in holdout],
            }
        rates = read_json_object(path.rates_path)["values"] if path.rates_path.is_file() else None
        runs[task.name] = {"evaluations": path.evaluations, "chosen": path.chosen, "rows": rows, "rates": rates}
    return {"runs": runs, "failed": failed}


def main() -> None:
    """Runs a plan, or collects what it has given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "collect"))
    parser.add_argument("plans", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder with a model to start from for some worlds")
    parser.add_argument("--only", help="end of the names of the tasks to run")
    parser.add_argument("--known", type=Path, help="collected file; what it has is not run, and is collected again")
    parser.add_argument("--to", type=Path, help="file that is collected into")
    options = parser.parse_args()
    tasks = [task for plan in options.plans for task in read_plan(plan, options.models)]
    known: dict[str, Any] = {"runs": {}}
    if options.known is not None:
        with gzip.open(options.known, "rt", encoding="utf-8") as file:
            known = json.load(file)
        tasks = [task for task in tasks if task.name not in known["runs"]]
    tasks = [task for task in tasks if task.name.endswith(options.only or "")]
    if options.verb == "collect":
        found = collected(tasks, options.folder)
        with gzip.open(options.to, "wt", encoding="utf-8") as file:
            json.dump({**found, "runs": {**known["runs"], **found["runs"]}}, file)
        return
    run(tasks, options.folder, Patient(lambda line: None), retry=False)


if __name__ == "__main__":
    main()
