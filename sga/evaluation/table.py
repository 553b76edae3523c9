"""An evaluation as aligned text, and times in words, for the terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from sga.evaluation.evaluation import Evaluation

_WIDTH = 110


def terminal_width() -> int:
    """Width of the terminal in columns; 80 where the output goes to a file or a pipe."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80


def fitted_table(lines: Sequence[Sequence[str]], width: int, texts: Sequence[int], spare: int) -> list[str]:
    """Lines of a table with a rule below its heading, at most `width` wide if possible.

    Cells are wrapped after ``/``, ``_`` and spaces.

    Args:
        lines: Cells of the heading and of each row, all of one length.
        width: Largest width of a line, in characters.
        texts: Indices of columns that are aligned left; the others are aligned right.
        spare: Index of the column that is dropped if wrapping is not enough.
    """
    columns = range(len(lines[0]))
    pieces = [[re.findall(r"[^/_ ]*[/_ ]|[^/_ ]+", cell) for cell in line] for line in lines]
    natural = [max(len(line[i]) for line in lines) for i in columns]
    least = [max((len(piece.rstrip()) for line in pieces for piece in line[i]), default=0) for i in columns]
    for gap, kept in ((2, [*columns]), (1, [*columns]), (1, [i for i in columns if i != spare])):
        widths = {i: natural[i] for i in kept}
        excess = sum(widths.values()) + gap * (len(kept) - 1) - width
        while excess > 0 and any(widths[i] > least[i] for i in kept):
            widths[max(kept, key=lambda i: widths[i] - least[i])] -= 1
            excess -= 1
        if excess <= 0:
            break
    found: list[str] = []
    heading = 0
    for line in pieces:
        heading = heading or len(found)
        cells = {i: _wrapped(line[i], widths[i]) for i in kept}
        for row in range(max(map(len, cells.values()))):
            parts = [cells[i][row] if row < len(cells[i]) else "" for i in kept]
            found.append(
                (" " * gap)
                .join(
                    part.ljust(widths[i]) if i in texts else part.rjust(widths[i])
                    for i, part in zip(kept, parts, strict=True)
                )
                .rstrip()
            )
    return [*found[:heading], "-" * max(map(len, found)), *found[heading:]]


def _wrapped(pieces: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def evaluation_table(evaluation: Evaluation, reference: Mapping[str, float] | None = None) -> str:
    """Metrics with their intervals, then what is absent and why, then notes, as aligned text.

    Args:
        evaluation: Evaluation to show, with its metrics, absent metrics and notes.
        reference: Values of the reference by metric, shown as a column; None leaves the column out.
    """
    metrics = evaluation.metrics
    level = evaluation.bootstrap.level if evaluation.bootstrap is not None else 0.0
    lines = [("metric", "value", f"{100 * level:g} % interval" if level else "")]
    for name, value in evaluation.values().items():
        low, high = metrics.get(f"{name}/ci_low"), metrics.get(f"{name}/ci_high")
        lines.append((name, f"{value:.6g}", "" if low is None or high is None else f"{low:.4g} to {high:.4g}"))
    first, second, third = (max(len(line[column]) for line in lines) for column in (0, 1, 2))
    text = [f"{name:<{first}}  {value:>{second}}  {interval:<{third}}" for name, value, interval in lines]
    if reference is not None:
        shown = ["reference", *(f"{reference[name]:.6g}" if name in reference else "" for name in evaluation.values())]
        text = [f"{line}  {value:>{max(map(len, shown))}}" for line, value in zip(text, shown, strict=True)]
    text = [line.rstrip() for line in text]
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
        max(_WIDTH, len(start) + 40),
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
