"""`sga demo`: target, retain model, unlearning by several methods and a report, on built-in data."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from sga.experiments.demo import demo_results, read_demo
from sga.experiments.engine import InThisProcess, run
from sga.files import write_json
from sga.runs.config_files import config_path
from sga.runs.folder import load_run


def main(arguments: Sequence[str]) -> int:
    """Runs the demo; see ``sga demo --help``."""
    parser = argparse.ArgumentParser(
        "sga demo",
        description="Train a small model on built-in fictitious authors, make it forget some of them with gradient "
        "ascent, Smoothed Gradient Ascent and gradient difference, and draw a report. Nothing is downloaded. Run again "
        "to reuse what is finished, or to go on after an interruption.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="what to run (default: the packaged configs/demo/demo.yaml)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where it goes (default runs/demo)")
    options = parser.parse_args(list(arguments))
    started = time.monotonic()
    tasks = read_demo(config_path(options.config or "configs/demo/demo.yaml"))
    run(tasks, options.folder, InThisProcess(), replace=True, wait=False)
    runs = [load_run(options.folder / task.name) for task in tasks]

    from sga.report import runs_table, write_report

    write_json(options.folder / "results.json", demo_results(runs))
    folders = [one.path for one in runs]
    report = write_report(folders, options.folder / "report.html", title="Making a small model forget two authors")
    print()
    print(runs_table(runs))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\n{minutes} min {seconds} s. Numbers: {options.folder / 'results.json'}")
    print(f"Report:  {report.resolve().as_uri()}")
    return 0
