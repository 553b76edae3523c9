"""The tasks of the demo: target, retain model, and unlearning by several methods on built-in data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sga.data.builtin import source_hash
from sga.errors import UserError
from sga.experiments.configuration import applied, digest, named_config
from sga.experiments.task import Task
from sga.files import read_yaml
from sga.runs.folder import Run


def read_demo(path: Path) -> list[Task]:
    """Reads what to run; each task's key also holds this package's source and data.

    Raises:
        UserError: the file is missing, is not of the expected form, or names a missing configuration.
    """
    plan = read_yaml(path)
    try:
        fixed, runs, seeds = (plan["target"], plan["retain"]), dict(plan["runs"]), [int(seed) for seed in plan["seeds"]]
        configs = {name: named_config(path, run["config"]) for name, run in runs.items()}
        target_config, retain_config = (named_config(path, names) for names in fixed)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: needs target, retain, seeds and runs with a config each ({error!r})") from None
    target = _task("target", "target: learns everything", target_config, {}, {})
    retain = _task("retain", "retain model: never sees what is to be forgotten", retain_config, {}, {})
    needs = {"model.language_model.name_or_path": target, "evaluation.reference": retain}
    tasks = [target, retain]
    for seed in seeds:
        for name, run in runs.items():
            label = name if len(seeds) == 1 else f"{name}-seed{seed}"
            settings = {**(run.get("settings") or {}), "seed_everything": seed, "checkpoint.keep_epochs": True}
            tasks.append(_task(label, f"unlearn: {label}", configs[name], settings, needs))
    return tasks


def _task(name: str, title: str, config: dict[str, Any], settings: dict[str, Any], needs: dict[str, Task]) -> Task:
    # On several devices a second process would start the whole demo again.
    config = applied(config, {**settings, "trainer.devices": 1})
    key = digest([config, {setting: need.key for setting, need in needs.items()}, source_hash()])
    return Task(name, config, needs, key, title)


def demo_results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry per run and evaluation: method, smoothing_rate, seed, epoch, every metric, frontier_area of the run."""
    return [
        {
            "run": run.info["name"],
            "role": run.role,
            "method": run.info["method"],
            "smoothing_rate": run.info["parameters"].get("smoothing_rate"),
            **run.info["parameters"],
            "seed": run.seed,
            **evaluation,
            "frontier_area": run.chosen.get("frontier_area"),
        }
        for run in runs
        for evaluation in run.evaluations
    ]
