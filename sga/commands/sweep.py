"""`sga sweep`: a sweep file, a folder, and so many workers."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.evaluation.table import duration
from sga.experiments.configuration import applied, settings_from
from sga.experiments.sweeps.claims import open_storage
from sga.experiments.sweeps.definition import Sweep, Task, label, read_sweep
from sga.experiments.sweeps.fit import end_with_parent
from sga.experiments.sweeps.worker import Worker, forgive, terminable
from sga.files import read_json_object, write_json, yaml_text
from sga.runs.config_files import config_path

SWEEP_FILE = "sweep.json"


def main(arguments: Sequence[str]) -> int:
    """Runs a sweep; see ``sga sweep --help``."""
    parser = argparse.ArgumentParser(
        "sga sweep",
        description="Run many configurations of sga fit, a grid or an Optuna search, times seeds, and write one table "
        "with intervals over seeds, a Pareto plot and the costs. Run again to go on after an interruption, to take "
        "part from another machine, or after a change of the file: finished runs that it still asks for are reused.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the sweep file, such as configs/sweeps/rates.yaml")
    parser.add_argument("--folder", type=Path, help="where it goes (default runs/sweeps/NAME_OF_THE_FILE)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="what workers share the trials through: URL of a database, or path of a journal file (default "
        "journal.log in the folder)",
    )
    parser.add_argument(
        "--stale-after",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="when a worker of another machine that gives no sign of life counts as gone (default 180)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all runs, models included"
    )
    parser.add_argument("--gpus", metavar="LIST", help="such as 0,1,2,3: one for each worker, by turns")
    parser.add_argument("--retry-failed", action="store_true", help="make failed runs again")
    parser.add_argument("--results", action="store_true", help="write the results of what is finished, and run nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(list(arguments))
    if options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    if options.stale_after <= 0:
        raise UserError(f"--stale-after must be positive, got {options.stale_after}")
    sweep = read_sweep(config_path(options.config), settings_from(options.set))
    folder: Path = options.folder or Path("runs/sweeps", options.config.stem)
    worker = Worker(sweep, folder, options.storage, options.stale_after)
    if options.worker:
        end_with_parent()
        worker.run()
        return 0
    open_storage(options.storage, folder)  # said at once if it cannot be
    from sga.experiments.sweeps.results import disk_outcomes

    code = 0
    if not options.results:
        _begin(sweep, folder)
        if options.retry_failed:
            print(f"{forgive(sweep, folder)} failed runs are made again")
            for claims in (worker.claims(), worker.claims(models=True)):
                claims.forgive()
        started = time.monotonic()
        code = _work(options, list(arguments))
        if code and not disk_outcomes(sweep, folder):
            return code
        print(f"\nin {duration(time.monotonic() - started)}")
    missing = _finish(worker)
    return code if missing else 0


def _begin(sweep: Sweep, folder: Path) -> None:
    """Says what changed since the last time, and refuses settings that do not exist before anything runs."""
    from sga.experiments.sweeps.results import disk_outcomes, others

    path = folder / SWEEP_FILE
    before = read_json_object(path) if path.is_file() else None
    outcomes = disk_outcomes(sweep, folder)
    if sweep.search is None:
        tasks = sweep.tasks(outcomes)
        done = sum(task.key in outcomes for task in tasks)
        stages = ""
        if sweep.choose is not None:
            first = len(sweep.combinations()) * len(sweep.choose.seeds)
            stages = f" ({first} to choose by, then {sweep.run_count - first} with what was chosen)"
        print(f"{sweep.run_count} runs{stages}, {done} of them finished", flush=True)
        if before is not None and before["key"] != sweep.key:
            print(
                f"{sweep.path} has changed since {folder} was made: runs that it asked for then and no longer does "
                f"({len(others(tasks, folder))}) stay where they are and do not count",
                flush=True,
            )
    else:
        print(f"{sweep.search.trials} trials of {len(sweep.seeds)} seeds", flush=True)
        if before is not None and before["key"] != sweep.key:
            print(f"{sweep.path} has changed since {folder} was made: this is a new search", flush=True)
    if before is None or before["key"] != sweep.key:
        _check(sweep, folder)
        write_json(path, {"file": sweep.path.name, "key": sweep.key})


def _check(sweep: Sweep, folder: Path) -> None:
    """Parses the configurations: each value of each setting once."""
    from sga.cli import parsed_config

    examples = [("", task.config) for task in sweep.model_tasks]
    examples += [(label(values), applied(sweep.base, values)) for values in sweep.examples()]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "fit.yaml")
        for name, config in examples:
            file.write_text(yaml_text(config), encoding="utf-8")
            said = io.StringIO()
            logging.disable(logging.INFO)  # Lightning's word on seeds
            try:
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    parsed_config(["fit", "--config", str(file)])
            except SystemExit:
                lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
                raise UserError(f"{sweep.path}: {name}: {' '.join(lines[-4:])}") from None
            finally:
                logging.disable(logging.NOTSET)


def _work(options: argparse.Namespace, arguments: list[str]) -> int:
    """Runs the workers, in processes of their own that end with this one.

    They stay small, having parsed no configuration: the peak memory that the system notes for a run begins with its
    parent's.
    """
    gpus = options.gpus.split(",") if options.gpus else []
    processes = []
    for index in range(options.workers):
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // options.workers)))
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        command = [sys.executable, "-m", "sga", "sweep", *arguments, "--worker"]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
    try:
        with terminable():
            codes = [process.wait() for process in processes]
    except KeyboardInterrupt:
        time.sleep(2.0)  # what stops this process may have stopped them too; then they are putting their trials back
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        print("the same command goes on where this was stopped", flush=True)
        raise
    return max((abs(code) for code in codes), default=0)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _finish(worker: Worker) -> int:
    """Writes the results, and says where; the number of runs that are not finished."""
    from sga.experiments.sweeps.page import write_results

    sweep, folder = worker.sweep, worker.folder
    rows = write_results(sweep, known_tasks(worker), folder)
    print(terminal_table(sweep, rows))
    failed = sum(len(row.failed) for row in rows)
    if failed:
        print(f"\n{failed} runs failed, for reasons that the page lists; --retry-failed makes them again")
    missing = sum(len(row.missing) for row in rows)
    if missing:
        print(f"\n{missing} runs are not finished; the same command without --results goes on with them")
    print(f"\nTable:   {folder / 'results.csv'}, with all numbers {folder / 'results.json'}")
    print(f"Page:    {(folder / 'sweep.html').resolve().as_uri()}")
    return missing


def known_tasks(worker: Worker) -> list[Task]:
    """The runs that count: a grid's by the file, a search's by its storage."""
    from sga.experiments.sweeps.results import disk_outcomes

    sweep = worker.sweep
    if sweep.search is None:
        return sweep.tasks(disk_outcomes(sweep, worker.folder))
    drawn = [trial.user_attrs["values"] for trial in worker.claims().trials() if "values" in trial.user_attrs]
    return list(
        {task.key: task for values in drawn for seed in sweep.seeds for task in [sweep.task(values, seed)]}.values()
    )


def terminal_table(sweep: Sweep, rows: Sequence[Any]) -> str:
    """The reported rows with their objectives, best first."""
    from sga.experiments.sweeps.results import CUT, CUT_MEANING

    names = list(sweep.objectives)
    sign = -1.0 if next(iter(sweep.objectives.values())) == "minimize" else 1.0
    lines = []
    for row in rows:
        if row.stage != "final":
            continue
        found = [row.estimate(name) for name in names]
        cells = []
        for one in found:
            ends = "" if one is None else one.interval(lambda end: f"{end:.3f}")
            cells.append("–" if one is None else f"{one.mean:.3f}{ends and f' [{ends}]'}")
        lines.append((-sign * found[0].mean if found[0] else float("inf"), [row.label, *cells]))
    ordered = [["configuration", *names], *(line for _, line in sorted(lines, key=lambda pair: pair[0]))]
    widths = [max(len(line[i]) for line in ordered) for i in range(len(names) + 1)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in ordered]
    shown += ["", CUT_MEANING] if any(CUT in line for line in shown) else []
    return "\n" + "\n".join(line.rstrip() for line in shown)
