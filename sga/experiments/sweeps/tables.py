"""Tables of a sweep, each with the retained models in its last row: CSV, Markdown, the terminal's and results.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sga.evaluation.metrics import forget_quality, frontier_area, frontier_area_ks, privleak
from sga.evaluation.table import fitted_table
from sga.experiments.sweeps.definition import Sweep, short_names
from sga.experiments.sweeps.results import (
    COSTS,
    Row,
    SeedMean,
    best_rows,
    finished_run,
    in_order,
    metric_value,
    metrics,
    reference_paths,
    seed_mean,
    shown_metrics,
)
from sga.experiments.task import read_state
from sga.runs.folder import Run, RunFolder
from sga.runs.references import read_retain_reference


def ceiling_label(rows: Sequence[Row]) -> str:
    """Name of the ceiling's row; empty without one."""
    count = len(_retained(rows))
    return "" if not count else "retained model" if count == 1 else f"{count} retained models, each against the others"


def ceiling(names: Sequence[str], rows: Sequence[Row]) -> dict[str, SeedMean]:
    """Metrics of the retain models that the runs are compared with, as a ceiling for the table.

    With several retain models, metrics that need a reference (forget quality, PrivLeak, frontier areas) are computed of
    each against the others and averaged; a frontier area is that of a single point. A single retain model lacks them.

    Args:
        names: Names of the table's metrics, with or without the benchmark's prefix.
        rows: Rows of the sweep; the first finished run names the references.

    Returns:
        Values over the retain models by name, as far as they are known; empty if a reference is not a run folder.
    """
    runs = _retained(rows)
    found = [_own_values(run, names) for run in runs]
    if len(runs) > 1:
        _add_forget_quality(runs, found, _first(rows))
        aucs = [metric_value(run, "mia/min_k") for run in runs]
        for index, values in enumerate(found):
            others = [auc for auc in (*aucs[:index], *aucs[index + 1 :]) if auc is not None and auc < 1]
            own = aucs[index]
            if own is not None and len(others) == len(runs) - 1:
                values["privleak"] = math.fsum(privleak(own, auc) for auc in others) / len(others)
    result = {}
    for name in names:
        known = [one[_last(name)] for one in found if _last(name) in one]
        mean = seed_mean(known) if len(known) == len(runs) else None
        if mean is not None:
            result[name] = mean
    return result


_AGAINST_OTHERS = (
    *("forget_quality_log10", "forget_quality_log10_min", "forget_quality_log10_max", "ks_statistic"),
    *("frontier_area", "frontier_area_ks", "privleak"),
)


def _last(name: str) -> str:
    """Last part of a name that is of a model against references, any other name as it is."""
    last = name.rpartition("/")[2]
    return last if last in _AGAINST_OTHERS else name


def _first(rows: Sequence[Row]) -> Run | None:
    """First finished run; None without one."""
    path = next((path for row in rows for path in row.folders.values()), None)
    return None if path is None else finished_run(path)


def _retained(rows: Sequence[Row]) -> list[Run]:
    first = _first(rows)
    paths = [Path(path) for path in reference_paths(first)] if first else []
    # A log of another program, or a file of rows, has no metrics to show.
    return (
        [finished_run(path) for path in paths] if all(RunFolder(path).chosen_path.is_file() for path in paths) else []
    )


def _own_values(run: Run, names: Sequence[str]) -> dict[str, float]:
    """Metrics of a retained model that need no reference."""
    values = {name: metric_value(run, name) for name in names if _last(name) not in _AGAINST_OTHERS}
    return {name: value for name, value in values.items() if value is not None}


def _add_forget_quality(runs: Sequence[Run], found: Sequence[dict[str, float]], first: Run | None) -> None:
    """Adds forget quality of each against the others, and the frontier areas of that point; nothing on plain text.

    The mean over wrong answers is that of the `first` of the runs that the ceiling is for.
    """
    references = [read_retain_reference(run.path) for run in runs]
    if not all(any(one.wrong_nll or ()) for one in references) or len({one.forget_ids for one in references}) > 1:
        return
    mean = (first.info.get("evaluation") if first else None) or {}
    ratios = [one.log_truth_ratio(mean.get("truth_ratio_mean", "geometric")) for one in references]
    for index, (run, values) in enumerate(zip(runs, found, strict=True)):
        tests = [forget_quality(ratios[index], other) for n, other in enumerate(ratios) if n != index]
        logs = [test.log10_p for test in tests]
        values["forget_quality_log10"] = math.fsum(logs) / len(logs)
        values |= {"forget_quality_log10_min": min(logs), "forget_quality_log10_max": max(logs)}
        values["ks_statistic"] = math.fsum(test.ks_statistic for test in tests) / len(tests)
        utility = run.value("utility")  # on reserved rows where there are such, as of the runs themselves
        if utility is not None:
            values["frontier_area"] = frontier_area([(values["forget_quality_log10"], utility)])
            values["frontier_area_ks"] = frontier_area_ks([(values["ks_statistic"], utility)])


def sweep_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The rows as CSV, with full numbers and the values of all seeds in one cell."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    short = short_names(names)
    shown = shown_metrics(sweep, rows)
    best = set(best_rows(sweep, rows))
    head = ["stage", "configuration", *(short[name] for name in names), "seeds", "failed", "missing", "best"]
    for name in shown:
        head += [name, f"{name}/values"]
    head += COSTS
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for index, row in enumerate(rows):
        line: list[Any] = [row.stage, row.label, *(_cell(row.values.get(name, "")) for name in names)]
        line += [_joined(row.folders), _joined(row.failed), _joined(row.missing), int(index in best)]
        for name in shown:
            one = row.estimate(name)
            line += [one.mean, _joined(one.values)] if one else [None] * 2
        writer.writerow([*line, *map(row.cost, COSTS)])
    top = ceiling(shown, rows)
    if top:
        line = ["ceiling", ceiling_label(rows), *([""] * (len(names) + 4))]
        for name in shown:
            line += [top[name].mean, _joined(top[name].values)] if name in top else [None] * 2
        writer.writerow([*line, *([None] * len(COSTS))])
    return out.getvalue()


def markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The reported rows as a Markdown table, best first: means with the seeds' values, and costs per run."""
    final = in_order(sweep, [row for row in rows if row.stage == "final"])
    shown = shown_metrics(sweep, final)
    heads = ["configuration", "seeds", *shown, "seconds", "tokens"]
    lines = [heads, ["---"] * len(heads)]
    for row in final:
        seeds = [", ".join(map(str, row.folders))]
        seeds += [f"{len(part)} {what}" for part, what in ((row.failed, "failed"), (row.missing, "missing")) if part]
        costs = [row.estimate(name) for name in ("seconds", "tokens")]
        cells = [", ".join(filter(None, [_with_seeds(row.estimate(name), 2), row.side(name)])) for name in shown]
        cells += ["" if cost is None else f"{cost.mean:,.0f}" for cost in costs]
        lines.append([row.label, ", ".join(filter(None, seeds)), *cells])
    top = ceiling(shown, final)
    if top:
        lines.append([ceiling_label(final), "", *(_with_seeds(top.get(name), 2) for name in shown), "", ""])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _with_seeds(found: SeedMean | None, digits: int, absent: str = "") -> str:
    if found is None:
        return absent
    single = found.single(lambda value: f"{value:.{digits}f}")
    return f"{found.mean:.{digits}f}{single and f' ({single})'}"


def terminal_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The reported rows with their objectives, best first."""
    final = in_order(sweep, [row for row in rows if row.stage == "final"])
    lines = [["configuration", *sweep.objectives]]
    lines += [[row.label, *(_with_seeds(row.estimate(name), 3, "–") for name in sweep.objectives)] for row in final]
    top = ceiling(list(sweep.objectives), final)
    lines += [[ceiling_label(final), *(_with_seeds(top.get(name), 3, "–") for name in sweep.objectives)]] if top else []
    return "\n".join(["", *fitted_table(lines)])


def summary(sweep: Sweep, rows: Sequence[Row], left_over: Sequence[str]) -> dict[str, Any]:
    """Content of results.json: the sweep, its rows, and every run's metrics."""
    best = set(best_rows(sweep, rows))
    paths = [path for row in rows for path in row.folders.values()]
    sources = {read_state(path).get("source") for path in paths}
    info = finished_run(paths[0]).info if paths else {}
    return {
        "sweep": sweep.path.name,
        "key": sweep.key,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": info.get("device"),
        "versions": info.get("versions"),
        "objectives": sweep.objectives,
        "sources": sorted(str(source) for source in sources),
        "not_counted": list(left_over),
        "ceiling": {name: vars(found) for name, found in ceiling(metrics(sweep), rows).items()},
        "rows": [
            {
                "configuration": row.label,
                "stage": row.stage,
                "values": row.values,
                "best": index in best,
                "failed": row.failed,
                "missing": row.missing,
                "metrics": {name: vars(found) for name in metrics(sweep) if (found := row.estimate(name))},
                "cost": {name: vars(found) for name in COSTS if (found := row.estimate(name))},
                "runs": {seed: _run(path) for seed, path in row.folders.items()},
            }
            for index, row in enumerate(rows)
        ],
    }


def _run(path: Path) -> dict[str, Any]:
    run = finished_run(path)
    # Intervals of every evaluation would be most of the file, so only the chosen one has them.
    points = [{name: value for name, value in line.items() if "/ci_" not in name} for line in run.evaluations]
    return {"folder": path.name, **run.chosen, "evaluations": points}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _joined(values: Iterable[Any]) -> str:
    return " ".join(str(value) for value in values)
