"""The steps of the demo: target, retain model, and unlearning by several methods on built-in data.

Every step is an ordinary `sga fit`. A step's key is a hash of all that its result depends on: its configuration, this
package's source, and the keys of the steps it builds on. A finished step with the same key is reused, an unfinished one
goes on from its last checkpoint, anything else is made afresh.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sga.data.builtin import source_hash
from sga.errors import UserError
from sga.experiments.configuration import read_config
from sga.files import read_json_object, read_yaml, write_json
from sga.runs.config_files import config_path
from sga.runs.folder import RunFolder
from sga.runs.lock import write_lock

STATE_FILE = "step.json"


@dataclass(frozen=True)
class Step:
    """One `sga fit` of the demo.

    Attributes:
        name: Folder of the step inside the demo's.
        title: What the user reads.
        files: Configuration files, one over the other.
        settings: Flags that are set on top of it.
        needs: Steps whose results it uses.
    """

    name: str
    title: str
    files: tuple[Path, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    needs: tuple[Step, ...] = ()

    def key(self) -> str:
        """Hash of everything that the result depends on."""
        content = [read_config(self.files), self.settings, source_hash()]
        content += [need.key() for need in self.needs]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_steps(config: Path, folder: Path) -> list[Step]:
    """Reads what to run.

    Raises:
        UserError: the file is missing, is not of the expected form, or names a missing configuration.
    """
    plan = read_yaml(config)
    try:
        fixed, runs, seeds = (plan["target"], plan["retain"]), dict(plan["runs"]), [int(seed) for seed in plan["seeds"]]
        files = {name: _files(run["config"], config) for name, run in runs.items()}
        target, retain = (_files(names, config) for names in fixed)
    except UserError as error:
        raise UserError(f"{config}: names {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{config}: needs target, retain, seeds and runs with a config each ({error!r})") from None
    first = Step("target", "target: learns everything", target)
    second = Step("retain", "retain model: never sees what is to be forgotten", retain)
    steps = [first, second]
    for seed in seeds:
        for name, run in runs.items():
            label = name if len(seeds) == 1 else f"{name}-seed{seed}"
            settings = {
                **(run.get("settings") or {}),
                "seed_everything": seed,
                "model.language_model.name_or_path": str(folder / first.name),
                "evaluation.reference": str(folder / second.name),
                "checkpoint.keep_epochs": True,
            }
            steps.append(Step(label, f"unlearn: {label}", files[name], settings, (first, second)))
    return steps


def _files(names: str | list[str], plan: Path) -> tuple[Path, ...]:
    """The file or files that a plan names."""
    return tuple(config_path(name, plan.parent) for name in ([names] if isinstance(names, str) else names))


def run_step(step: Step, folder: Path, title: str) -> None:
    """Makes a step's run folder, or reuses it, or goes on with it.

    Raises:
        UserError: another process writes to the folder, or it is not the demo's.
    """
    run_folder = folder / step.name
    key = step.key()
    with write_lock(run_folder, "--folder"):  # the run takes it itself
        state = _state(run_folder)
        if state.get("key") == key and state.get("finished"):
            print(f"{title}: reused, nothing that it depends on has changed", flush=True)
            return
        resume = state.get("key") == key
        if not resume:
            if run_folder.exists() and not (run_folder / STATE_FILE).exists():
                raise UserError(
                    f"{run_folder} was not made by sga demo, which would replace it: choose another --folder"
                )
            shutil.rmtree(run_folder, ignore_errors=True)
            write_json(run_folder / STATE_FILE, {"key": key, "finished": False})
    print(f"{title}{': going on where it stopped' if resume else ''}", flush=True)

    from sga.cli import run_verb

    arguments = ["fit", *(f"--config={file}" for file in step.files), "--run.folder", str(run_folder)]
    arguments += ["--ckpt_path", "last"]
    arguments += ["--trainer.devices", "1"]  # a second process would start the whole demo again
    for name, value in step.settings.items():
        arguments += [f"--{name}", json.dumps(value) if not isinstance(value, str) else value]
    run_verb(arguments)
    write_json(run_folder / STATE_FILE, {"key": key, "finished": True})


def _state(run_folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(run_folder / STATE_FILE)
    except UserError:
        return {}


def demo_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry per run and evaluation: method, smoothing_rate, seed, epoch, every metric, frontier_area of the run."""
    entries = []
    for folder in folders:
        run = RunFolder(folder)
        info = run.info
        for line in run.evaluations:
            entries.append(
                {
                    "run": info["name"],
                    "role": info["role"],
                    "method": info["method"],
                    "smoothing_rate": info["parameters"].get("smoothing_rate"),
                    **{name: value for name, value in info["parameters"].items() if name != "smoothing_rate"},
                    "seed": info["seed"],
                    **line,
                    "frontier_area": run.chosen.get("frontier_area"),
                }
            )
    return entries
