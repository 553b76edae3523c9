"""sweep.html: the table, and the Pareto plot of forget quality against utility, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sga.experiments.sweeps.definition import Sweep, Trial
from sga.experiments.sweeps.results import (
    COSTS,
    WRITTEN_DIGITS,
    Row,
    best_rows,
    collect,
    finished_run,
    in_order,
    metrics,
    others,
    pareto_front,
    shown_metrics,
)
from sga.experiments.sweeps.tables import ceiling, ceiling_label, markdown, summary, sweep_table
from sga.experiments.task import read_state
from sga.files import write_json, write_text
from sga.report.charts import Curve, CurvePoint, pareto_chart
from sga.report.conclusions import FORGET_QUALITY_LEVEL
from sga.report.pages import render
from sga.report.styles import Style, distinct_styles
from sga.report.summary import ABSENT, FLOOR, fixed, p_value
from sga.runs.folder import Run, RunFolder, load_run

if TYPE_CHECKING:
    import altair as alt

Point = tuple[float, float]

_COST_HEADS = {
    "seconds": ("Seconds", 1.0),
    "tokens": ("Tokens, thousands", 1e3),
    "peak_memory_bytes": ("Peak memory, GiB", 2.0**30),
    "peak_gpu_memory_bytes": ("Peak GPU memory, GiB", 2.0**30),
}


def write_results(sweep: Sweep, tasks: Sequence[Trial], folder: Path) -> list[Row]:
    """Writes results.csv, results.md, results.json and sweep.html into the sweep folder."""
    rows = collect(sweep, tasks, folder)
    left_over = others(tasks, folder)
    write_text(folder / "results.csv", sweep_table(sweep, rows))
    write_text(folder / "results.md", markdown(sweep, rows))
    write_json(folder / "results.json", summary(sweep, rows, left_over))
    write_text(folder / "sweep.html", sweep_page(sweep, rows, folder, left_over))
    return rows


def sweep_page(sweep: Sweep, rows: Sequence[Row], folder: Path, left_over: Sequence[str]) -> str:
    """HTML of the whole page; it quotes nothing of the data."""
    styles = _styles(rows)
    final = [row for row in rows if row.stage == "final"]
    plot = _pareto(final or rows, styles, _retain_utility(sweep, folder))
    return render(
        "sweep.html.j2",
        f"Sweep {sweep.path.stem}",
        {} if plot is None else {"pareto": plot[0]},
        sweep=sweep,
        final=final,
        chosen_by=[row for row in rows if row.stage == "choose"],
        marked=[rows[index] for index in best_rows(sweep, rows)],
        finished=sum(len(row.folders) for row in rows),
        failed=[f"{row.label}, seed {seed} ({row.stage}): {why}" for row in rows for seed, why in row.failed.items()],
        missing=[f"{row.label}, seed {seed} ({row.stage})" for row in rows for seed in row.missing],
        edges=[f"{row.label}: {edge}" for row in final for edge in sweep.at_edges(row.values)],
        left_over=left_over,
        sources=len({str(read_state(path).get("source")) for row in rows for path in row.folders.values()}),
        shown=shown_metrics(sweep, rows),
        ceiling=ceiling(metrics(sweep), rows),
        ceiling_label=ceiling_label(rows),
        cost_heads=_COST_HEADS,
        measured=lambda rows: [name for name in COSTS if any(row.single(name) for row in rows)],
        in_order=lambda rows: in_order(sweep, rows),
        styles=styles,
        fixed=fixed,
        number=lambda end: fixed(end, 3),
        digits=WRITTEN_DIGITS,
        absent=ABSENT,
        charted={} if plot is None else plot[1],
        front=[] if plot is None else plot[2],
    )


def mean_points(runs: Sequence[Run]) -> dict[int, Point]:
    """Mean (log10 forget quality, utility) over runs at each step that all of them evaluated.

    The logarithm is raised to the floor first, below which differences do not count.
    """
    found: list[dict[int, Point]] = []
    for run in runs:
        points = {}
        for evaluation in run.evaluations:
            quality, utility = run.value("forget_quality_log10", evaluation), run.value("utility", evaluation)
            if quality is not None and utility is not None:
                points[int(evaluation["step"])] = (max(quality, FLOOR), utility)
        found.append(points)
    if not found:
        return {}
    steps = sorted(set.intersection(*(set(points) for points in found)))
    return {
        step: (sum(p[step][0] for p in found) / len(found), sum(p[step][1] for p in found) / len(found))
        for step in steps
    }


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    """One for each configuration, the same in both stages."""
    kinds: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.stage != "final"):  # those of the plot come first
        methods = [finished_run(path).method for path in row.folders.values()]
        kinds.setdefault(row.label, methods[0] if methods else "")
    return distinct_styles(kinds)


def _retain_utility(sweep: Sweep, folder: Path) -> float | None:
    retain = sweep.models.get("retain", ())
    places = [Path(retain)] if isinstance(retain, str) else [folder / one.name for one in retain]
    runs = [load_run(place) for place in places if RunFolder(place).chosen_path.is_file()]
    found = [value for run in runs if (value := run.value("utility")) is not None]
    return sum(found) / len(found) if found else None


def _pareto(
    rows: Sequence[Row], styles: dict[str, Style], utility: float | None
) -> tuple[alt.LayerChart, dict[str, Style], list[str]] | None:
    """The plot, the looks of what is in it, and the evaluations on its front in words; None without a point."""
    clouds, owners = [], []
    for row in rows:
        found = mean_points([finished_run(path) for path in row.folders.values()])
        named = {"run": row.label, "seeds": ", ".join(map(str, row.folders))}
        points = [
            CurvePoint(x, y, named | {"step": str(step), "p": p_value(x), "utility": fixed(y)})
            for step, (x, y) in found.items()
        ]
        if points:
            clouds.append(Curve(row.label, row.label, points))
            owners += [(point, row.label, step) for step, point in found.items()]
    if not clouds:
        return None
    front = sorted({owners[i][0] for i in pareto_front([point for point, _, _ in owners], ["maximize"] * 2)})
    reached: dict[str, list[str]] = {}
    for place in front:
        for point, name, step in owners:
            if point == place and step > 0:
                reached.setdefault(name, []).append(f"step {step}")
    best = [f"{name} ({', '.join(steps)})" for name, steps in reached.items()]
    if any(step == 0 and point in front for point, _, step in owners):
        best.insert(0, "the starting model")
    chart = pareto_chart(clouds, front, styles, utility, FORGET_QUALITY_LEVEL)
    return chart, {cloud.setting: styles[cloud.setting] for cloud in clouds}, best
