"""`sga demo`: target, retain model, unlearning by several methods and a report, on built-in data."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from sga.data.records import Record
from sga.experiments.demo import demo_results, read_demo, read_unlearnings, run_facts
from sga.experiments.engine import InThisProcess, run
from sga.files import write_json
from sga.runs.config_files import config_path
from sga.runs.folder import Run, load_run


def main(arguments: Sequence[str]) -> int:
    """Runs the demo; see ``sga demo --help``."""
    parser = argparse.ArgumentParser(
        "sga demo",
        description="Train a small model on built-in fictitious authors, make it forget some of them with gradient "
        "ascent, Smoothed Gradient Ascent, gradient difference and sga unlearn, and draw a report. Nothing is "
        "downloaded, except SmolLM2 for configs/demo/pretrained.yaml. "
        "Run again to reuse what is finished, or to go on after an interruption.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="what to run (default: the packaged configs/demo/demo.yaml)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where it goes (default runs/demo)")
    options = parser.parse_args(list(arguments))
    started = time.monotonic()
    plan = config_path(options.config or "configs/demo/demo.yaml")
    tasks = read_demo(plan)
    run(tasks, options.folder, InThisProcess(), replace=True, wait=False)
    runs = [load_run(options.folder / task.name) for task in tasks]
    unlearned = _unlearn(plan, options.folder)
    shown = runs if len(runs) > 1 else unlearned

    from sga.report import runs_table, write_report

    write_json(options.folder / "results.json", demo_results([*runs, *unlearned]))
    title = "Making a small model forget two authors"
    report = write_report(shown, options.folder / "report.html", title=title)
    print(f"\n{runs_table(shown)}")
    for one in [*runs, *unlearned]:
        print(textwrap.fill(run_facts(one), 80, subsequent_indent="  ", break_on_hyphens=False))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\n{minutes} min {seconds} s. Numbers: {options.folder / 'results.json'}")
    print(f"Report:  {report.resolve().as_uri()}")
    return 0


def _unlearn(plan: Path, folder: Path) -> list[Run]:
    """Runs `sga unlearn` on the target as a plan says; the trainings."""
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
