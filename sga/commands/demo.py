"""`sga demo`: target, retain model, unlearning by several methods and a report, on built-in data."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from sga.commands.parsing import verb
from sga.data.records import Record
from sga.experiments.demo import demo_results, read_demo, read_unlearnings, run_facts
from sga.experiments.engine import InThisProcess, run
from sga.files import write_json
from sga.runs.config_files import config_path
from sga.runs.folder import Run, load_run


@verb("demo")
def main(*, config: Path = Path("configs/demo/demo.yaml"), folder: Path = Path("runs/demo")) -> int:
    """Do all of it on built-in data: train a small model, make it forget, and draw a report.

    Trains a small model on built-in fictitious authors and makes it forget some of them with gradient ascent, Smoothed
    Gradient Ascent, gradient difference and sga unlearn. Nothing is downloaded, except SmolLM2 for
    configs/demo/pretrained.yaml. Run again to reuse what is finished, or to resume after an interruption.

    Args:
        config (FILE): Plan of the demo; without a checkout the package's.
        folder (DIR): Folder of everything that is written.
    """
    started = time.monotonic()
    plan = config_path(config)
    tasks = read_demo(plan)
    run(tasks, folder, InThisProcess(), replace=True, wait=False)
    runs = [load_run(folder / task.name) for task in tasks]
    unlearned = _unlearn(plan, folder)
    shown = runs if len(runs) > 1 else unlearned

    from sga.report.page import write_report
    from sga.report.summary import runs_table

    write_json(folder / "results.json", demo_results([*runs, *unlearned]))
    title = "Making a small model forget two authors"
    report = write_report(shown, folder / "report.html", title=title)
    print(f"\n{runs_table(shown)}")
    for one in [*runs, *unlearned]:
        print(textwrap.fill(run_facts(one), 80, subsequent_indent="  ", break_on_hyphens=False))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\n{minutes} min {seconds} s. Numbers: {folder / 'results.json'}")
    print(f"Report:  {report.resolve().as_uri()}")
    return 0


def _unlearn(plan: Path, folder: Path) -> list[Run]:
    """Runs `sga unlearn` on the target by a plan; returns its training runs."""
    found = read_unlearnings(plan)
    if found is None:
        return []
    from sga.callbacks.evaluator import ANSWERS_FOLDER
    from sga.experiments.unlearn import unlearn
    from sga.experiments.unlearn_recipe import UNLEARNED

    authors, runs = found
    sets = dict(authors.load(None).evaluation)
    for name in ("retain", "holdout"):  # paraphrases and wrong answers would take most of the time of an evaluation
        sets[name] = tuple(Record(one.id, one.question, one.answer) for one in sets[name])
    for name, arguments in runs.items():
        print(f"\nsga unlearn, {name}", flush=True)
        # The target's answers are the same for all runs.
        settings = {"evaluation.answers": str((folder / ANSWERS_FOLDER).resolve()), **arguments["settings"]}
        unlearn(
            folder / "target",
            None,
            sets["forget"],
            sets["retain"],
            sets["holdout"],
            folder=folder / name,
            **{**arguments, "settings": settings},
        )
    return [load_run(folder / name / UNLEARNED) for name in runs]
