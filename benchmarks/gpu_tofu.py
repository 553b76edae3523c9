"""TOFU on one GPU: a small pretrained model learns it, a retained one beside it, and cells of methods make it forget.

    benchmarks/gpu-tofu.sh OUTPUT_FOLDER [MODEL]
    python benchmarks/gpu_tofu.py run --folder FOLDER --model MODEL [--split forget10] [--lr 1e-5 …]
    python benchmarks/gpu_tofu.py collect --folder FOLDER --model MODEL --to OUTPUT_FOLDER [the same options]

The plan is benchmarks/gpu-tofu/plan.yaml. Runs are ordinary `sga fit`s, one after the other in this process, so that
one process is on the card; what is finished is reused, and what was begun is resumed, so that the command can be given
again. `collect` writes gpu-tofu.json and gpu-tofu.md of the runs that have finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hand_over import NAME_OR_PATH, Patient, made
from machine import described

from sga.errors import UserError
from sga.experiments.configuration import Values, settings_from
from sga.experiments.engine import run
from sga.experiments.task import Task, outcome
from sga.files import read_yaml, write_json, write_text
from sga.runs.folder import RunFolder

PLAN = Path(__file__).parent / "gpu-tofu" / "plan.yaml"
REPLAYED = "model.loss.normal_weight.file"
COLUMNS = {
    "log10 forget quality": ("forget_quality_log10", 1),
    "AUC of the loss": ("mia/loss", 2),
    "forget probability": ("forget/probability", 3),
    "forget nll": ("forget/avg_nll", 2),
    "forget ROUGE-L": ("forget/rouge_l_recall", 2),
    "utility": ("model_utility", 2),
    "of unseen rows": ("model_utility_unseen", 2),
    "seconds": ("seconds", 0),
}
"""Columns of the table: the metric of the last evaluation, and its digits."""


def read_plan(model: str, split: str, settings: Values, rates: Sequence[float] | None = None) -> list[Task]:
    """All tasks in the order in which they are wanted.

    Args:
        model: Folder of a pretrained model, or a GGUF file.
        split: Forget split of TOFU.
        settings: Settings on top of the plan's, for all tasks.
        rates: Learning rates of the cells; None for the plan's.

    Raises:
        UserError: there is no such model.
    """
    plan = read_yaml(PLAN)
    if not Path(model).exists():
        raise UserError(f"--model {model}: there is no such folder or file; give a pretrained model's folder")
    file = f"benchmarks/{plan['benchmark']}"
    common = {"data.source.init_args.forget_split": split, **plan["common"]}
    trained = {NAME_OR_PATH: model, **plan["training"]}
    target, retained = (
        made(role, [file, f"methods/{method}"], {**common, **trained, **settings})
        for role, method in (("target", "target"), ("retained", "retain"))
    )
    tasks = [target, retained]
    for lr in rates or plan["learning_rates"]:
        found: dict[str, Task] = {}
        for name, cell in plan["cells"].items():
            needs = {NAME_OR_PATH: target, "evaluation.reference": retained}
            if "replays" in cell:
                needs[REPLAYED] = found[cell["replays"]]
            own = {**common, **plan["unlearning"], "model.optimizer.lr": lr, **cell.get("settings", {}), **settings}
            task = made(f"{lr:g}/{name}", [file, f"methods/{cell['method']}"], own, needs)
            found[name] = replace(task, keep_weights=False)
        tasks += found.values()
    return tasks


def collected(tasks: Sequence[Task], folder: Path) -> dict[str, Any]:
    """Evaluations of the runs that finished, and the reasons of those that failed, by name."""
    runs: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for task in tasks:
        ended = outcome(task, folder)
        if ended is not None and ended.reason is not None:
            failed[task.name] = ended.reason
        elif ended is not None:
            runs[task.name] = {"evaluations": RunFolder(folder / task.name).evaluations}
    return {"runs": runs, "failed": failed, "left": [t.name for t in tasks if t.name not in {*runs, *failed}]}


def table(found: dict[str, Any]) -> str:
    """What was collected, as a page of Markdown."""
    versions = found["versions"]
    about = (
        f"{found['date']}, {found['device']}, commit {found['commit']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {found['model']}, {found['split']}; `benchmarks/gpu-tofu.sh`. One seed, one "
        "retained model, learning rates that nothing was chosen by: no method is shown to be better than another."
    )
    heads = f"| run, last evaluation | {' | '.join(COLUMNS)} |"
    lines = ["# TOFU on one GPU", "", about, "", heads, "|---" * (1 + len(COLUMNS)) + "|"]
    for name, one in found["runs"].items():
        cells = [_cell(one["evaluations"][-1], *column) for column in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"* {name} failed: {reason}" for name, reason in found["failed"].items())]
    if found["left"]:
        lines.append(f"* Not finished: {', '.join(found['left'])}.")
    return "\n".join(lines).rstrip() + "\n"


def _cell(evaluation: dict[str, float], name: str, digits: int) -> str:
    """A metric of an evaluation, whatever the benchmark is called; empty where it was not measured."""
    values = [value for key, value in evaluation.items() if key == name or key.partition("/")[2] == name]
    return f"{values[0]:.{digits}f}".replace("-", "−") if values else ""


def main() -> None:
    """Runs the plan, or collects what it has given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "collect"))
    parser.add_argument("--folder", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", required=True, help="folder of a pretrained model, or a GGUF file")
    parser.add_argument("--split", default="forget10")
    parser.add_argument("--lr", type=float, action="append", help="learning rate of the cells, in place of the plan's")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for all runs")
    parser.add_argument("--to", type=Path, help="folder that is collected into")
    options = parser.parse_args()
    try:
        tasks = read_plan(options.model, options.split, settings_from(options.set), options.lr)
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.verb == "run":
        run(tasks, options.folder, Patient(lambda line: None), retry=False)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {**described(device), "model": Path(options.model).name, "split": options.split, "settings": options.set}
    found = {**about, **collected(tasks, options.folder)}
    write_json(options.to / "gpu-tofu.json", found)
    write_text(options.to / "gpu-tofu.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
