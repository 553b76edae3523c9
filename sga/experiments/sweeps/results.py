"""Results of a sweep: one row per configuration, with the seeds' values, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from sga.errors import UserError
from sga.evaluation.ranges import possible_range
from sga.experiments.configuration import Values
from sga.experiments.sweeps.definition import Result, Stage, Sweep, Trial, label
from sga.experiments.task import read_state
from sga.files import is_number
from sga.runs.folder import NO_METRIC, Run, RunFolder, load_run

METRICS = (
    *("frontier_area", "frontier_area_ks", "forget_quality_log10", "forget_quality_log10_min"),
    *("forget_quality_log10_max", "model_utility", "model_utility_unseen"),
)
"""Shown beside the objectives; frontier areas are of whole runs, the others of the chosen evaluation. With several
references, ``_min`` and ``_max`` are the range over them."""
NORMAL_DATA = ("normals/similarity", "normals/gradient_cosine", "normals/paper_rate")
"""Shown where the normal data is what varies: mean TF-IDF cosine to the forget sample, and of the first epoch's looks
at gradients the mean cosine and r*."""
COSTS = ("seconds", "tokens", "peak_memory_bytes", "peak_gpu_memory_bytes")
WRITTEN_DIGITS = 3
"""Number of decimals of a mean on the page; means that are written alike count as equal."""
_REFERENCE_IS_BEST = ("privleak", "verbmem", "knowmem_forget")
_FORGET_SHARES = ("probability", "rouge_l_recall", "exact_memorization", "extraction_strength", "bleu")
_PER_CENT = (*_REFERENCE_IS_BEST, "bleu")


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds, without an interval: a few seeds do not suffice for one.

    Attributes:
        mean: Arithmetic mean of the values.
        values: Value of each seed that has one.
    """

    mean: float
    values: tuple[float, ...]

    def single(self, number: Callable[[float], str]) -> str:
        """Values of the seeds as text; empty for a single seed, and if all values are equal."""
        return ", ".join(map(number, self.values)) if min(self.values) < max(self.values) else ""


def seed_mean(values: Sequence[float]) -> SeedMean | None:
    """Mean of values of different seeds; None without a value.

    >>> seed_mean([1.0, 2.0, 3.0])
    SeedMean(mean=2.0, values=(1.0, 2.0, 3.0))

    Args:
        values: Value of each seed.
    """
    return SeedMean(math.fsum(values) / len(values), tuple(values)) if values else None


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Indices of the Pareto-optimal points: no other point is at least as good in all and better in one.

    >>> pareto_front([(1, 5), (2, 4), (1, 4), (3, 1)], ["maximize", "maximize"])
    [0, 1, 3]
    """
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    scored = [tuple(sign * value for sign, value in zip(signs, point, strict=True)) for point in points]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in scored)

    return [index for index, mine in enumerate(scored) if not beaten(mine)]


@dataclass(frozen=True)
class Row:
    """Runs of one configuration over its seeds.

    Attributes:
        values: Settings in which it differs from the other configurations, by dotted name.
        stage: Stage of its runs: ``final`` if they are reported, ``choose`` if settings are chosen by them.
        folders: Run folders of finished runs, by seed.
        failed: Reason of each failed run, by seed.
        missing: Seeds of runs that are not finished.
    """

    values: Values
    stage: Stage
    folders: dict[int, Path]
    failed: dict[int, str]
    missing: list[int]

    @property
    def label(self) -> str:
        """The configuration in words."""
        return label(self.values)

    def single(self, name: str) -> dict[int, float]:
        """A metric or cost by seed, for runs that have it."""
        found = {seed: objective(folder, name) for seed, folder in self.folders.items()}
        return {seed: value for seed, value in found.items() if isinstance(value, float)}

    def score(self, name: str, direction: str) -> float | None:
        """Score that rows are ranked by: mean over seeds of a metric, or of its distance from the reference's value."""
        found = [ranking_value(folder, name, direction) for folder in self.folders.values()]
        known = [value for value in found if isinstance(value, float)]
        return math.fsum(known) / len(known) if known else None

    def side(self, name: str) -> str:
        """``over-unlearned`` or ``under-unlearned`` if all seeds lie on that side of the reference, else empty."""
        sides = {side_of_reference(folder, name) for folder in self.folders.values()}
        return sides.pop() if len(sides) == 1 else ""

    def estimate(self, name: str) -> SeedMean | None:
        """Mean of a metric or cost over the seeds; None without a value."""
        return seed_mean(list(self.single(name).values()))

    def cost(self, name: str) -> float | None:
        """Cost of a run: for memory the largest over seeds, otherwise the mean."""
        found = list(self.single(name).values())
        return None if not found else max(found) if "memory" in name else math.fsum(found) / len(found)


def finished_run(folder: Path) -> Run:
    """Opens a finished run; the result is cached until the run changes.

    Raises:
        UserError: the run is not finished, or its files are damaged.
    """
    path = RunFolder(folder).chosen_path
    return _loaded(folder, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4096)
def _loaded(folder: Path, written: int) -> Run:
    return load_run(folder)


def metric_value(run: Run, name: str) -> float | None:
    """A metric of the chosen evaluation, with or without the benchmark's prefix."""
    for found in (run.chosen.get(name), run.chosen.get(f"{run.benchmark}/{name}")):
        if is_number(found):
            return float(found)
    return None


def objective(folder: Path, name: str) -> float | str:
    """Value of a metric of a finished run (the name with or without the benchmark's prefix), or why it is absent."""
    if name == "peak_memory_bytes":  # seen from outside, not by the run
        return float(read_state(folder)[name])
    try:
        run = finished_run(folder)
    except UserError as error:
        return str(error)
    if name == "seconds":  # of the whole run; the chosen evaluation may be an earlier one
        return float(run.evaluations[-1]["seconds"])
    value = metric_value(run, name)
    return run.why_absent(name.removeprefix(f"{run.benchmark}/")) if value is None else value


def reference_paths(run: Run) -> list[str]:
    """Paths of the retained models' runs or logs that a run was compared with.

    Raises:
        UserError: its configuration is damaged.
    """
    given = run.config.get("evaluation", {}).get("reference")
    return [given] if isinstance(given, str) else list(given or ())


def reference_value(run: Run, name: str) -> float | str:
    """The retain model's value of a metric (the mean over several retain models), or why it is not known.

    PrivLeak's is 0 by definition, and the AUC of Min-K % is in the run's own metrics. All others come from the chosen
    evaluation of the run folders that the run names as its reference.
    """
    if name.rpartition("/")[2] == "privleak":
        return 0.0
    stated = run.chosen.get(f"{run.benchmark}/privleak_reference_auc")
    if name.endswith("mia/min_k") and isinstance(stated, float):
        return stated
    try:
        paths = reference_paths(run)
    except UserError as error:
        return f"{name} has no reference: {error}"
    if not paths:
        return f"{name} has no reference: the run names none (evaluation.reference)"
    found = []
    for path in paths:
        try:
            value = metric_value(finished_run(Path(path)), name)
        except UserError as error:
            return f"{name} has no reference: {error}"
        if value is None:
            return f"{name} has no reference: {path} does not have it"
        found.append(value)
    return math.fsum(found) / len(found)


def ranking_value(folder: Path, name: str, direction: str) -> float | str:
    """Value that a run is ranked by: a metric, or its distance from the reference's value; or why there is none."""
    value = objective(folder, name)
    if direction != "toward_reference" or isinstance(value, str):
        return value
    reference = reference_value(finished_run(folder), name)
    return reference if isinstance(reference, str) else abs(value - reference)


def side_of_reference(folder: Path, name: str) -> str:
    """Side of the reference's value on which a run's metric lies, for metrics with both sides worse than that value.

    Empty within a tenth of the metric's range (ten of PrivLeak's per cent), without a reference, and for metrics that
    have a direction.
    """
    last = name.rpartition("/")[2]
    if "mia/" not in name and last not in _REFERENCE_IS_BEST and not _of_forget_set(name):
        return ""
    value = objective(folder, name)
    if isinstance(value, str):
        return ""
    reference = reference_value(finished_run(folder), name)
    near = 10.0 if last in _PER_CENT else 0.1
    if isinstance(reference, str) or abs(value - reference) <= near:
        return ""
    return "over-unlearned" if (value > reference) == (last == "privleak") else "under-unlearned"


def _of_forget_set(name: str) -> bool:
    set_name, _, last = name.removesuffix("/").rpartition("/")
    return set_name.rpartition("/")[2] == "forget" and last in _FORGET_SHARES


def check_objectives(sweep: Sweep, folder: Path) -> None:
    """Refuses objectives that a finished run does not have and that are no metric's name, before other runs are made.

    Raises:
        UserError: there is such an objective; suggests similar names.
    """
    for name in sweep.objectives:
        if objective(folder, name) != NO_METRIC or name in NORMAL_DATA or possible_range(name) != (None, None):
            continue
        run = finished_run(folder)
        known = [one.removeprefix(f"{run.benchmark}/") for one, value in run.chosen.items() if isinstance(value, float)]
        near = get_close_matches(name, [*METRICS, *known], 3)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UserError(
            f"{sweep.path}: objectives: {folder.name} has no metric {name!r}{meant}; mend it, and finished "
            "runs are reused"
        )


def disk_results(sweep: Sweep, folder: Path) -> dict[str, Result]:
    """Results of all runs in a sweep folder that have ended, by key, also of runs from an earlier sweep file."""
    found = {}
    for place in sorted(folder.glob("trials/*")):
        state = read_state(place)
        if state.get("state") == "failed":
            found[str(state["key"])] = Result(reason=str(state["reason"]))
        elif state.get("state") == "finished":
            numbers = {name: ranking_value(place, name, way) for name, way in sweep.objectives.items()}
            absent = [f"{name} is absent: {number}" for name, number in numbers.items() if isinstance(number, str)]
            known = tuple(number for number in numbers.values() if isinstance(number, float))
            found[str(state["key"])] = Result(reason=absent[0]) if absent else Result(known)
    return found


def collect(sweep: Sweep, tasks: Iterable[Trial], folder: Path) -> list[Row]:
    """Rows of these tasks, in their order; other runs in the folder do not count."""
    results = disk_results(sweep, folder)
    rows: dict[tuple[str, str], Row] = {}
    for task in tasks:
        group = (task.stage, task.name.rpartition("-seed")[0])
        row = rows.setdefault(group, Row(task.values, task.stage, {}, {}, []))
        result = results.get(task.key)
        if result is None:
            row.missing.append(task.seed)
        elif result.reason is not None:
            row.failed[task.seed] = result.reason
        else:
            row.folders[task.seed] = folder / task.name
    return list(rows.values())


def others(tasks: Iterable[Trial], folder: Path) -> list[str]:
    """Names of run folders under ``trials`` of no present task: they come from an earlier version of the sweep file."""
    mine = {task.name for task in tasks}
    found = sorted(place.name for place in folder.glob("trials/*") if read_state(place))
    return [name for name in found if f"trials/{name}" not in mine]


def metrics(sweep: Sweep) -> list[str]:
    """Names of the metrics in the table, objectives first."""
    varied = [*sweep.grid, *(sweep.search.space if sweep.search is not None else ())]
    about_normals = any(name.startswith(("data.pairing", "data.pairs", "data.pool_size")) for name in varied)
    names = [*METRICS, *(NORMAL_DATA if about_normals else ())]
    return [*sweep.objectives, *(name for name in names if name not in sweep.objectives)]


def shown_metrics(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Columns of a table: objectives, and of the other metrics those that a row has."""
    return [name for name in metrics(sweep) if name in sweep.objectives or any(row.single(name) for row in rows)]


def best_rows(sweep: Sweep, rows: Sequence[Row]) -> list[int]:
    """Indices of the reported rows on the Pareto front of the objectives, by their means as written on the page.

    Rows that tie are left out, and so are rows of a single seed, which says nothing about other seeds.
    """
    known = {}
    for index, row in enumerate(rows):
        found = [one for name, way in sweep.objectives.items() if (one := row.score(name, way)) is not None]
        if row.stage == "final" and len(found) == len(sweep.objectives):
            known[index] = tuple(round(one, WRITTEN_DIGITS) for one in found)
    means = list(known.values())
    front = [list(known)[number] for number in pareto_front(means, list(sweep.objectives.values()))]
    return [index for index in front if means.count(known[index]) == 1 and len(rows[index].folders) > 1]


def in_order(sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """The rows sorted by the mean of the first objective, best first; rows without a value last."""
    name, direction = next(iter(sweep.objectives.items()))
    sign = -1.0 if direction == "maximize" else 1.0
    found = {index: row.score(name, direction) for index, row in enumerate(rows)}
    means = {index: math.inf if one is None else sign * one for index, one in found.items()}
    return [rows[index] for index in sorted(means, key=means.__getitem__)]
