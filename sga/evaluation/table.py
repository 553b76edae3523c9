"""An evaluation as aligned text, and times in words, for the terminal."""

from __future__ import annotations

import textwrap

from sga.evaluation.evaluation import Evaluation

_WIDTH = 110


def evaluation_table(evaluation: Evaluation) -> str:
    """Metrics with their intervals, then what is absent and why, then notes, as aligned text."""
    metrics = evaluation.metrics
    level = evaluation.bootstrap.level if evaluation.bootstrap is not None else 0.0
    lines = [("metric", "value", f"{100 * level:g} % interval" if level else "")]
    for name, value in evaluation.values().items():
        low, high = metrics.get(f"{name}/ci_low"), metrics.get(f"{name}/ci_high")
        lines.append((name, f"{value:.6g}", "" if low is None or high is None else f"{low:.4g} to {high:.4g}"))
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    text = [f"{name:<{first}}  {value:>{second}}  {interval}".rstrip() for name, value, interval in lines]
    if evaluation.absent:
        widest = max(map(len, evaluation.absent))
        text += ["", "absent"]
        text += [hanging(f"  {name:<{widest}}  ", reason) for name, reason in evaluation.absent.items()]
    if evaluation.notes:
        text += ["", "notes", *(hanging("  - ", note) for note in evaluation.notes)]
    return "\n".join(text)


def hanging(start: str, text: str) -> str:
    """A paragraph that begins with `start` and whose further lines are indented as far."""
    return textwrap.fill(
        text,
        max(_WIDTH, len(start) + 40),
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def duration(seconds: float) -> str:
    """Seconds in words, to what matters.

    >>> duration(41.3), duration(150), duration(7500)
    ('41 s', '3 min', '2 h 5 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
