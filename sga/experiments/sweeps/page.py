"""sweep.html: the table, and the Pareto plot of forget quality against utility, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sga.experiments.sweeps.definition import Sweep, Trial
from sga.experiments.sweeps.results import (
    COSTS,
    CUT_MEANING,
    LEVEL,
    WRITTEN_DIGITS,
    Row,
    best_rows,
    collect,
    finished_run,
    in_order,
    markdown,
    metrics,
    others,
    pareto_front,
    summary,
    sweep_table,
)
from sga.experiments.task import Task, read_state
from sga.files import write_json, write_text
from sga.report.charts import FLOOR, Curve, ReferenceLine, Style, pareto_chart, style_of, swatch
from sga.report.conclusions import FORGET_QUALITY_LEVEL
from sga.report.style import document
from sga.report.summary import ABSENT, fixed, p_value
from sga.runs.folder import Run, load_run

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
    """The whole page as text; it quotes nothing of the data."""
    runs = {path: finished_run(path) for row in rows for path in row.folders.values()}
    styles = _styles(rows, runs)
    final = [row for row in rows if row.stage == "final"]
    first = [row for row in rows if row.stage == "choose"]
    body = [
        _head(sweep, rows),
        _pareto(final or rows, runs, styles, _retain_utility(sweep, folder)),
        _table(sweep, final, styles, "Configurations"),
        _table(sweep, first, styles, "Runs that settings were chosen by") if first else "",
        _notes(sweep, rows, left_over),
    ]
    return document(f"Sweep {sweep.path.stem}", body)


def mean_points(runs: Sequence[Run]) -> dict[int, Point]:
    """Mean (log10 forget quality, model utility) over runs at each step that all of them evaluated.

    The logarithm is raised to the floor first, below which differences do not count.
    """
    found: list[dict[int, Point]] = []
    for run in runs:
        points = {}
        for evaluation in run.evaluations:
            quality, utility = run.value("forget_quality_log10", evaluation), run.value("model_utility", evaluation)
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


def _styles(rows: Sequence[Row], runs: dict[Path, Run]) -> dict[str, Style]:
    """One for each configuration, the same in both stages."""
    styles: dict[str, Style] = {}
    counts: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.stage != "final"):  # those of the plot differ from each other
        if row.label in styles:
            continue
        methods = [runs[path].method for path in row.folders.values()]
        kind = methods[0] if methods and methods[0] in ("GA", "GD", "SGA") else "other"
        styles[row.label] = style_of(kind, counts.get(kind, 0))
        counts[kind] = counts.get(kind, 0) + 1
    return styles


def _retain_utility(sweep: Sweep, folder: Path) -> float | None:
    retain = sweep.models.get("retain")
    if retain is None:
        return None
    place = folder / retain.name if isinstance(retain, Task) else Path(retain)
    return load_run(place).value("model_utility") if (place / "metrics.json").is_file() else None


def _head(sweep: Sweep, rows: Sequence[Row]) -> str:
    asked = ", ".join(f"{name} ({'lower' if way == 'minimize' else 'higher'} is better)" for name, way in
                      sweep.objectives.items())  # fmt: skip
    finished = sum(len(row.folders) for row in rows)
    failed, missing = sum(len(row.failed) for row in rows), sum(len(row.missing) for row in rows)
    state = f"{finished} runs, {failed} failed" + (f", {missing} not finished" if missing else "")
    kind = f"{sweep.search.sampler} search" if sweep.search else "grid"
    return (
        f"<header><h1>Sweep {escape(sweep.path.stem)}</h1>"
        f'<p class="small">{kind}, {state}. Objectives: {escape(asked)}.</p></header>'
    )


def _pareto(rows: Sequence[Row], runs: dict[Path, Run], styles: dict[str, Style], utility: float | None) -> str:
    heading = '<section aria-labelledby="pareto"><h2 id="pareto">Forget quality against utility</h2>'
    clouds, owners = [], []
    for row in rows:
        points = mean_points([runs[path] for path in row.folders.values()])
        if not points:
            continue
        seeds = len(row.folders)
        notes = [
            f"{row.label}, step {step}: p = {p_value(x)}, utility {fixed(y)} (mean of {seeds})"
            for step, (x, y) in points.items()
        ]
        clouds.append(Curve(row.label, styles[row.label], list(points.values()), notes))
        owners += [(point, row.label, step) for step, point in points.items()]
    if not clouds:
        return f'{heading}<p class="note">No run has both numbers.</p></section>'
    front = sorted({owners[i][0] for i in pareto_front([point for point, _, _ in owners], ["maximize"] * 2)})
    line = None if utility is None else ReferenceLine(f"retain model {fixed(utility)}", utility, style_of("retain", 0))
    chart = pareto_chart(clouds, front, line, FORGET_QUALITY_LEVEL, "pareto-chart")
    legend = "".join(f"<li>{swatch(cloud.style)} {escape(cloud.label)}</li>" for cloud in clouds)
    named: dict[str, list[str]] = {}
    for place in front:
        for point, name, step in owners:
            if point == place and step > 0:
                named.setdefault(name, []).append(f"step {step}")
    best = [f"{name} ({', '.join(steps)})" for name, steps in named.items()]
    if any(step == 0 and point in front for point, _, step in owners):
        best.insert(0, "the starting model")
    return (
        f'{heading}<figure><ul class="legend">{legend}</ul>{chart}<figcaption>Each mark is one evaluation of one '
        "configuration, mean over its seeds (log₁₀ p raised to −12 first); up and to the right is better. The line "
        f"joins the marks that no other beats in both: {escape('; '.join(best))}. One configuration's end is not its "
        "best trade-off: the frontier area counts all its evaluations.</figcaption></figure></section>"
    )


def _table(sweep: Sweep, rows: Sequence[Row], styles: dict[str, Style], title: str) -> str:
    shown = metrics(sweep)
    best = {rows[index].label for index in best_rows(sweep, rows)}
    costs = [name for name in COSTS if any(row.single(name) for row in rows)]
    lines = []
    for row in in_order(sweep, rows):
        mark = f'<strong class="best">{escape(row.label)}</strong>' if row.label in best else escape(row.label)
        cells = [f'<th scope="row">{swatch(styles[row.label])} {mark}</th>', f"<td>{_seeds(row)}</td>"]
        for name in shown:
            found = row.estimate(name)
            if found is None:
                cells.append(f"<td>{ABSENT}</td>")
                continue
            interval = found.interval(lambda end: fixed(end, 3), " to ")
            each = ", ".join(fixed(value, 3) for value in found.values) if len(found.values) > 1 else ""
            cells.append(
                f'<td>{fixed(found.mean, WRITTEN_DIGITS)}<br><span class="range">{interval}</span><br>'
                f'<span class="range">{each}</span></td>'
            )
        for name in costs:
            found = row.estimate(name)
            unit = _COST_HEADS[name][1]
            number = None if found is None else max(found.values) if "memory" in name else found.mean
            cells.append(f"<td>{ABSENT if number is None else fixed(number / unit, 2 if 'memory' in name else 0)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["Configuration", "Seeds", *shown, *(_COST_HEADS[name][0] for name in costs)]
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f"<section><h2>{escape(title)}</h2>"
        '<div class="scroll" tabindex="0"><table class="numbers">'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="small">Mean over seeds, below it the {LEVEL:.0%} interval of the mean (Student\'s t; wide with few '
        f"seeds; none where all give the same) and the single values. {CUT_MEANING} Frontier areas are of whole runs, "
        "the other metrics of the chosen evaluation. "
        "Seconds and tokens: mean of a run; the seconds with evaluations, without start-up. Peak memory: the "
        "largest of the runs. "
        f"{_mark_note(sweep, rows, bool(best))}</p>"
        "</section>"
    )


def _mark_note(sweep: Sweep, rows: Sequence[Row], marked: bool) -> str:
    """What the mark means, or why there is none; nothing of runs that settings were chosen by."""
    reported = [row for row in rows if row.stage == "final" and row.folders]
    if not reported:
        return ""
    by = f"by the means of {escape(', '.join(sweep.objectives))}"
    single = " A row of one seed is not marked: another seed may change which is best." * any(
        len(row.folders) == 1 for row in reported
    )
    if marked:
        return f'<strong class="best">Marked</strong>: no other is better {by}, or written alike.{single}'
    return f"Nothing is marked.{single or f' The best are written alike {by}.'}"


def _seeds(row: Row) -> str:
    parts = [", ".join(map(str, row.folders))]
    parts += [f"{len(row.failed)} failed"] if row.failed else []
    parts += [f"{len(row.missing)} not finished"] if row.missing else []
    return "<br>".join(part for part in parts if part)


def _notes(sweep: Sweep, rows: Sequence[Row], left_over: Sequence[str]) -> str:
    failed = [f"{row.label}, seed {seed} ({row.stage}): {why}" for row in rows for seed, why in row.failed.items()]
    missing = [f"{row.label}, seed {seed} ({row.stage})" for row in rows for seed in row.missing]
    sources = {str(read_state(path).get("source")) for row in rows for path in row.folders.values()}
    edges = [f"{row.label}: {edge}" for row in rows if row.stage == "final" for edge in sweep.at_edges(row.values)]
    parts = []
    for title, lines in (
        ("Failed", failed),
        ("Not finished", missing),
        ("Chosen at the end of what was tried; beyond may be better", edges),
        ("In the folder, but not counted", left_over),
    ):
        if lines:
            parts.append(f"<h3>{title}</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")
    if len(sources) > 1:
        parts.append(
            f'<p class="warning">These runs were made by {len(sources)} different versions of the source code.</p>'
        )
    return f'<section class="small"><h2>What to know</h2>{"".join(parts) or "<p>Every run came through.</p>"}</section>'
