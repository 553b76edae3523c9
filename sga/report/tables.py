"""The table of a report as data, for the page and for files of CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sga.files import write_text
from sga.report.seed_groups import SeedGroup, by_seed_group, read_runs
from sga.report.summary import ABSENT, Column, best_groups, columns, epochs, seeds, span
from sga.runs.folder import Run, plain

_LATEX = str.maketrans(
    {one: f"\\{one}" for one in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u00a0": "~", "\u2011": "-"}
    | {"−": "$-$", "–": "--", "λ": "$\\lambda$", "→": "$\\to$", "∞": "$\\infty$", "₁": "$_1$", "₀": "$_0$"}
)


@dataclass(frozen=True)
class TableCell:
    """A value of the table as it is written.

    Attributes:
        text: Mean over the seeds.
        best: True if it is marked as the best of its column.
        between: Range over the seeds, and the number of seeds with a value if some have none; empty for one seed.
        reason: Reason why the value is absent; empty where it is not.
    """

    text: str
    best: bool = False
    between: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ResultsTable:
    """Settings in lines, metrics in columns.

    Attributes:
        heads: Heading and meaning of each column.
        lines: Label, role (``before`` for a starting model) and cells of each setting.
        left_out: Headings of the columns without any value, by the reason.
    """

    heads: Sequence[tuple[str, str]]
    lines: Sequence[tuple[str, str, Sequence[TableCell]]]
    left_out: dict[str, list[str]]

    @property
    def reasons(self) -> list[str]:
        """Reasons why values are absent, each once, in the order of the table."""
        return list(dict.fromkeys(cell.reason for *_, cells in self.lines for cell in cells if cell.reason))

    def markdown(self) -> str:
        """The table in Markdown; the best values are bold."""
        rows = [[head for head, _ in self.heads], ["---"] * len(self.heads)]
        for label, _, cells in self.lines:
            rows.append([label, *(f"**{_joined(cell)}**" if cell.best else _joined(cell) for cell in cells)])
        lines = (" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows)
        return "".join(f"| {line} |\n" for line in lines)

    def latex(self) -> str:
        """A ``tabular`` for a paper, with the rules of the package booktabs; the best values are bold."""
        rows = [[head.translate(_LATEX) for head, _ in self.heads]]
        for label, _, cells in self.lines:
            texts = [_joined(cell).translate(_LATEX) for cell in cells]
            bold = [f"\\textbf{{{text}}}" if cell.best else text for text, cell in zip(texts, cells, strict=True)]
            rows.append([label.translate(_LATEX), *bold])
        first, *others = [f"{' & '.join(row)} \\\\\n" for row in rows]
        places = "l" + "r" * (len(self.heads) - 1)
        return (
            f"\\begin{{tabular}}{{{places}}}\n\\toprule\n{first}\\midrule\n{''.join(others)}\\bottomrule\n"
            "\\end{tabular}\n"
        )


def results_table(settings: Sequence[SeedGroup]) -> ResultsTable:
    """The table of a report on these settings."""
    everything = columns(settings)
    chosen = [column for column in everything if any(setting.values(column.name) for setting in settings)]
    best = {column.name: best_groups(column, settings) for column in chosen}
    lines = [] if any(s.first.role == "target" for s in settings) else _before(settings, chosen)
    for setting in settings:
        run = setting.first
        rate = "→ −∞" if run.method == "GD" and run.normal_weight == 1 else _plain(run.smoothing_rate)
        weight = None if run.normal_weight is None else round(run.normal_weight, 3)
        known = [TableCell(text) for text in (rate, _plain(weight), seeds(setting), epochs(setting))]
        cells = [_cell(setting, column, setting.label in best[column.name]) for column in chosen]
        lines.append((setting.label, run.role, [*known, *cells]))
    heads = [("Run", "method"), ("r", "smoothing rate"), ("λ", "weight of the normal samples, forget sample = 1")]
    heads += [("Seed", "seeds of the runs"), ("Epoch", "epoch of the chosen evaluation")]
    heads += [(column.head, column.meaning) for column in chosen]
    first = next((s.first for s in settings if s.first.role == "unlearn"), settings[0].first)
    left_out: dict[str, list[str]] = {}
    for column in everything if first.role == "unlearn" else ():
        if column not in chosen:
            left_out.setdefault(first.why_absent(column.name), []).append(column.head)
    return ResultsTable(heads, lines, left_out)


def write_tables(runs: Iterable[str | Path | Run], folder: Path) -> list[Path]:
    """Writes results.csv (a line for each run, numbers in full), results.md and results.tex (a line for each setting).

    Args:
        runs: Run folders of one benchmark, or what `load_run` read of them.
        folder: Folder of the files, which is made.

    Returns:
        Paths of the files.

    Raises:
        UserError: A run folder cannot be read, or the runs are of different benchmarks.
    """
    settings = by_seed_group(read_runs(runs))
    table = results_table(settings)
    texts = {"results.csv": _csv(settings), "results.md": table.markdown(), "results.tex": table.latex()}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _csv(settings: Sequence[SeedGroup]) -> str:
    names = [column.name for column in columns(settings)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "run", "method", "smoothing_rate", "normal_weight", "seed", "step", "epoch", *names])
    for setting in settings:
        for run in setting.runs:
            values = [run.frontier_area if name == "frontier_area" else run.value(name) for name in names]
            known = [setting.label, run.name, run.method, run.smoothing_rate, run.normal_weight, run.seed]
            writer.writerow([*known, run.chosen_step, run.chosen.get("epoch"), *values])
    return text.getvalue()


def _cell(setting: SeedGroup, column: Column, best: bool) -> TableCell:
    values, mean = setting.values(column.name), setting.mean(column.name)
    if mean is None:
        known = column.name == "frontier_area" and setting.first.role != "unlearn"
        return TableCell("") if known else TableCell(ABSENT, reason=setting.first.why_absent(column.name))
    between = span(values, column.number) if len(setting.runs) > 1 else ""
    missing = f"{len(values)} of {len(setting.runs)}" if len(values) < len(setting.runs) else ""
    return TableCell(column.number(mean), best, ", ".join(filter(None, [between, missing])))


def _before(settings: Sequence[SeedGroup], chosen: Sequence[Column]) -> list[tuple[str, str, list[TableCell]]]:
    """A line of the starting model for each one that a run was evaluated from, as far as it was evaluated."""
    runs = [s.first for s in settings if s.first.role == "unlearn" and s.first.chosen_step > 0]
    starts = {str(run.info.get("model")): run for run in runs if run.evaluations[0]["step"] == 0}
    lines = []
    for run in starts.values():
        values = [run.value(column.name, run.evaluations[0]) for column in chosen]
        texts = [ABSENT if v is None else column.number(v) for column, v in zip(chosen, values, strict=True)]
        if any(value is not None for value in values):
            lines.append(("before", "before", [TableCell(text) for text in ("", "", "", "0", *texts)]))
    return lines


def _joined(cell: TableCell) -> str:
    return f"{cell.text} ({cell.between})" if cell.between else cell.text


def _plain(value: float | None) -> str:
    return "" if value is None else plain(value)
