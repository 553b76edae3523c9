"""`sga sweep`: a sweep file, a folder, and so many workers."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sga.commands.parsing import Repeated, verb
from sga.errors import UserError, check_numbers
from sga.evaluation.table import duration
from sga.experiments.configuration import applied, settings_from
from sga.experiments.engine import Pool, Processes, run, terminable
from sga.experiments.sweeps.definition import Sweep, Trial, label, read_sweep
from sga.experiments.task import LOG_FILE, Task, held, outcome
from sga.files import read_json_object, write_json, yaml_text
from sga.runs.config_files import config_path
from sga.runs.lock import LockedError

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class _Options:
    """Options that say where and how the runs are made.

    Attributes:
        workers: Number of runs or jobs at a time.
        gpus (LIST): Numbers of GPUs, such as 0,1,2,3: one for each worker, by turns.
        cluster: Submit each run as a job of slurm; local runs processes in place of jobs.
        job (NAME=VALUE): A parameter of the jobs, such as timeout_min=480, gpus_per_node=1, slurm_partition=gpu.
    """

    workers: int = 1
    gpus: str | None = None
    cluster: Literal["slurm", "local"] | None = None
    job: Repeated = ()

    def __post_init__(self) -> None:
        check_numbers(1, **{"--workers": self.workers})
        if self.job and not self.cluster:
            raise UserError("--job sets a parameter of a cluster's jobs: give --cluster too")
        if self.gpus and self.cluster:
            raise UserError("--gpus is for this machine: jobs get theirs by --job gpus_per_node=1")


@verb("sweep")
def main(
    config: Path,
    *,
    folder: Path | None = None,
    set_: Repeated = (),
    options: _Options,
    retry_failed: bool = False,
    results: bool = False,
) -> int:
    """Run many configurations of sga fit, a grid or an Optuna search, times seeds, and write one table.

    The table has the seeds' single values, a Pareto plot and the costs. Run again to resume after an interruption, to
    take part from another machine, or after a change of the file: finished runs that it still asks for are reused.

    Args:
        config: Sweep file, such as configs/sweeps/rates.yaml.
        folder (DIR): Folder of the runs (default: runs/sweeps/NAME_OF_THE_FILE).
        set_ (NAME=VALUE): A setting of all runs, models included.
        retry_failed: Make failed runs again.
        results: Write the results of what is finished, and run nothing.
    """
    sweep = read_sweep(config_path(config), settings_from(set_))
    place = folder or Path("runs/sweeps", config.stem)
    if results and not (place / SWEEP_FILE).is_file():
        raise UserError(f"{place} holds no sweep ({SWEEP_FILE} is not there): --results needs the --folder of one")
    tasks = known_tasks(sweep, place)
    if not results:
        _begin(sweep, place, tasks(0))
        if retry_failed:
            print(f"{forget_failed([*sweep.model_tasks, *tasks(0)], place)} failed runs are made again")
        started = time.monotonic()
        work(sweep, place, tasks, _pool(options, sweep, place))
        print(f"\nin {duration(time.monotonic() - started)}")
    missing = _finish(sweep, place, tasks(0))
    return 1 if missing and not results else 0


def _pool(options: _Options, sweep: Sweep, folder: Path) -> Pool:
    if options.cluster:
        from sga.experiments.cluster import Cluster

        parameters = settings_from(options.job, "--job")
        return Cluster(options.cluster, folder, options.workers, parameters, ahead=sweep.search is None)
    gpus = options.gpus.split(",") if options.gpus else []
    if options.workers > 1 and sweep.base["trainer"].get("accelerator") != "cpu":
        _say_if_shared(options.workers, gpus)
    return Processes(options.workers, gpus)


def _say_if_shared(workers: int, gpus: Sequence[str]) -> None:
    """Warns of the cost of several runs on one GPU."""
    from torch import cuda

    count = len(set(gpus)) or cuda.device_count()
    if cuda.device_count() and workers > len(set(gpus)):
        listed = ",".join(dict.fromkeys(gpus) or map(str, range(count)))
        print(
            f"{workers} workers share {count} GPU{'s' * (count > 1)}: runs on one GPU wait for each other and add up "
            "their memory (of ten small runs on one H200, none had finished its first evaluation after 400 s). "
            f"One worker a GPU: --workers {count} --gpus {listed}",
            flush=True,
        )


def known_tasks(sweep: Sweep, folder: Path) -> Callable[[int], list[Trial]]:
    """Function of the runs that count so far: a grid's by its file and its choice, a search's by its journal."""
    from sga.experiments.sweeps.results import disk_results
    from sga.experiments.sweeps.search import Draws

    if sweep.search is not None:
        return Draws(sweep, folder).tasks
    return lambda room: sweep.tasks(disk_results(sweep, folder))


def work(sweep: Sweep, folder: Path, tasks: Callable[[int], list[Trial]], pool: Pool) -> None:
    """Runs the fits of the shared models, and then all others.

    Raises:
        UserError: a shared model could not be made, or a finished run shows that an objective is no metric.
    """
    from sga.experiments.sweeps.results import check_objectives, objective

    def words(task: Task) -> str:
        if isinstance(task, Trial):
            check_objectives(sweep, folder / task.name)
        values = (
            {name: objective(folder / task.name, name) for name in sweep.objectives} if isinstance(task, Trial) else {}
        )
        said = [f"{n} is absent: {v}" if isinstance(v, str) else f"{n} {v:.4g}" for n, v in values.items()]
        return ", ".join(said) or "done"

    models = sweep.model_tasks
    count = sweep.run_count if sweep.search is None else sweep.search.trials * len(sweep.seeds)
    try:
        with terminable():
            run(models, folder, pool, words=words)
            for task in models:
                found = outcome(task, folder)
                if found is None or found.reason is not None:
                    why = (
                        "was stopped"
                        if found is None
                        else f"failed ({found.reason}; see {folder / task.name / LOG_FILE})"
                    )
                    raise UserError(f"the {task.name} {why}: mend it, and start again with --retry-failed")
            run(tasks, folder, pool, total=len(models) + count, words=words)
    except KeyboardInterrupt:
        print("the same command goes on where this was stopped", flush=True)
        raise


def forget_failed(tasks: Sequence[Task], folder: Path) -> int:
    """Deletes the run folders of failed tasks, so that they are made again; returns their number."""
    return sum(_forget(task, folder) for task in tasks if _has_failed(task, folder))


def _has_failed(task: Task, folder: Path) -> bool:
    found = outcome(task, folder)
    return found is not None and found.reason is not None


def _forget(task: Task, folder: Path) -> bool:
    with contextlib.suppress(LockedError), held(task, folder):
        if _has_failed(task, folder):  # nobody has begun to make it again since it was looked at
            shutil.rmtree(folder / task.name)
            return True
    return False


def _begin(sweep: Sweep, folder: Path, tasks: Sequence[Trial]) -> None:
    """Prints the changes since the last time, and refuses settings that do not exist before anything runs."""
    from sga.experiments.sweeps.results import disk_results, others

    path = folder / SWEEP_FILE
    before = read_json_object(path)["key"] if path.is_file() else None
    if sweep.search is None:
        done = len(disk_results(sweep, folder).keys() & {task.key for task in tasks})
        first = len(sweep.combinations()) * len(sweep.choose.seeds) if sweep.choose is not None else 0
        stages = f" ({first} to choose by, then {sweep.run_count - first} with what was chosen)" if first else ""
        said = f"{sweep.run_count} runs{stages}, {done} of them finished"
        left = len(others(tasks, folder))
        means = f"runs that it asked for then and no longer does ({left}) stay where they are and do not count"
    else:
        said, means = f"{sweep.search.trials} trials of {len(sweep.seeds)} seeds", "this is a new search"
    print(said, flush=True)
    if before not in (None, sweep.key):
        print(f"{sweep.path} has changed since {folder} was made: {means}", flush=True)
    if before != sweep.key:
        _check(sweep)
        write_json(path, {"file": sweep.path.name, "key": sweep.key})


def _check(sweep: Sweep) -> None:
    """Parses the configurations: each value of each setting once."""
    from sga.cli import parsed_config

    examples = [("", task.config) for task in sweep.model_tasks]
    examples += [(label(values), applied(sweep.base, values)) for values in sweep.examples()]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "fit.yaml")
        for name, config in examples:
            file.write_text(yaml_text(config), encoding="utf-8")
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    parsed_config(["fit", "--config", str(file)])
            except SystemExit:
                lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
                raise UserError(f"{sweep.path}: {name}: {' '.join(lines[-4:])}") from None


def _finish(sweep: Sweep, folder: Path, tasks: Sequence[Trial]) -> int:
    """Writes the results and prints their paths; returns the number of unfinished runs."""
    from sga.experiments.sweeps.page import write_results
    from sga.experiments.sweeps.tables import terminal_table

    rows = write_results(sweep, tasks, folder)
    print(terminal_table(sweep, rows))
    failed = sum(_has_failed(task, folder) for task in tasks)
    if failed:
        print(f"\n{failed} runs failed, for reasons that the page lists; --retry-failed makes them again")
    absent = sum(len(row.failed) for row in rows) - failed
    if absent:
        print(f"\n{absent} finished runs are without an objective, for reasons that the page lists: mend objectives")
    missing = sum(len(row.missing) for row in rows)
    if missing:
        print(f"\n{missing} runs are not finished; the same command without --results goes on with them")
    print(f"\nTable:   {folder / 'results.csv'}, with all numbers {folder / 'results.json'}")
    print(f"Page:    {(folder / 'sweep.html').resolve().as_uri()}")
    return missing
