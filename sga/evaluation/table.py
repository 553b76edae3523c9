"""Tables and paragraphs for the terminal, by rich, and times in words: plain text that fits its width."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sga.evaluation.evaluation import Evaluation


def terminal_width() -> int:
    """Width of the terminal in columns, at most 120; 80 where the output goes to a pipe or file."""
    return min(120, shutil.get_terminal_size((80, 24)).columns) if sys.stdout.isatty() else 80


_NARROWEST = 18
"""Characters of a column of texts at least."""


class _Words:
    """A cell that wraps after ``/``, ``_`` and spaces, and nowhere else if it can be."""

    def __init__(self, text: str) -> None:
        self._pieces = re.findall(r"[^/_ ]*[/_ ]|[^/_ ]+", text)
        self.longest = max((len(piece.rstrip()) for piece in self._pieces), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for piece in self._pieces:
            if lines[-1] and len(lines[-1] + piece.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(line.rstrip() for line in lines), overflow="fold")


def fitted_table(
    lines: Sequence[Sequence[str]], width: int | None = None, texts: Sequence[int] = (0,), spare: int | None = None
) -> list[str]:
    """Lines of a table with a rule below its heading, which wraps where it is too wide; numbers are never truncated.

    Args:
        lines: Cells of the heading and of each row, all of one length.
        width: Largest width of a line, in characters; None takes the terminal's.
        texts: Indices of columns that are aligned to the left and wrap first; the others are aligned to the right.
        spare: Index of the column that is dropped before one of numbers wraps; none of `texts`.
    """
    width = terminal_width() if width is None else width
    columns = range(len(lines[0]))
    cells = [[_Words(cell) for cell in line] for line in lines]
    natural = [max(len(line[i]) for line in lines) for i in columns]
    least = [max(line[i].longest for line in cells) for i in columns]
    rest = [i for i in columns if i != spare]
    for gap, kept, wrapped in ((2, [*columns], texts), (1, [*columns], texts), (1, rest, texts), (1, rest, rest)):
        widths = {i: natural[i] for i in kept}
        excess = sum(widths.values()) + gap * (len(kept) - 1) - width
        while excess > 0 and any(widths[i] > least[i] for i in wrapped):
            widths[max(wrapped, key=lambda i: widths[i] - least[i])] -= 1
            excess -= 1
        if excess <= 0:
            break
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for i in kept:
        table.add_column(cells[0][i], width=widths[i], justify="left" if i in texts else "right")
    for line in cells[1:]:
        table.add_row(*(line[i] for i in kept))
    return _drawn(table, sum(widths.values()) + gap * len(kept))


def side_by_side(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of texts in columns of one width, in parts below each other where there are many; ``─`` is a rule."""
    width = terminal_width() if width is None else width
    count = min(len(rows[0]), max(1, (width + 2) // (_NARROWEST + 2)))
    column = (width + 2) // count - 2
    found: list[str] = []
    for start in range(0, len(rows[0]), count):
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in rows[0][start : start + count]:
            table.add_column(width=column)
        for row in rows:
            shown = row[start : start + count]
            table.add_row(*(Rule(style="none") if cell == "─" else Text(cell, overflow="fold") for cell in shown))
        found += _drawn(table, width + 2)
    return found


def _drawn(table: Table, width: int) -> list[str]:
    # In a notebook rich would display the table and leave the file empty.
    console = Console(file=io.StringIO(), width=width, color_system=None, force_jupyter=False)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def evaluation_table(evaluation: Evaluation, reference: Mapping[str, float] | None = None) -> str:
    """Metrics with their intervals, then what is absent and why, then notes, as text.

    Args:
        evaluation: Evaluation to show, with its metrics, absent metrics and notes.
        reference: Values of the reference by metric, shown as a column; None leaves the column out.
    """
    metrics, values = evaluation.metrics, evaluation.values()
    level = evaluation.bootstrap.level if evaluation.bootstrap is not None else 0.0
    lines = [["metric", "value", f"{100 * level:g} % interval" if level else ""]]
    for name, value in values.items():
        low, high = metrics.get(f"{name}/ci_low"), metrics.get(f"{name}/ci_high")
        lines.append([name, f"{value:.6g}", "" if low is None or high is None else f"{low:.4g} to {high:.4g}"])
    if reference is not None:
        shown = ["reference", *(f"{reference[name]:.6g}" if name in reference else "" for name in values)]
        lines = [[*line, value] for line, value in zip(lines, shown, strict=True)]
    text = fitted_table(lines, texts=(0, 2))
    if evaluation.absent:
        widest = max(map(len, evaluation.absent))
        text += ["", "absent"]
        text += [hanging(f"  {name:<{widest}}  ", reason) for name, reason in evaluation.absent.items()]
    if evaluation.notes:
        text += ["", "notes", *(hanging("  - ", note) for note in evaluation.notes)]
    return "\n".join(text)


def hanging(start: str, text: str) -> str:
    """A wrapped paragraph that begins with `start`, with further lines indented by its length."""
    return textwrap.fill(
        text,
        max(terminal_width(), len(start) + 40),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def duration(seconds: float) -> str:
    """Duration in words, rounded to seconds or minutes.

    >>> duration(41.3), duration(150), duration(7500)
    ('41 s', '3 min', '2 h 5 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
