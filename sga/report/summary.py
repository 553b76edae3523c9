"""The comparison in numbers: its columns, how a number is written, the best value of a column."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sga.evaluation.table import fitted_table
from sga.report.seed_groups import SeedGroup, by_seed_group, read_runs
from sga.runs.folder import Run, plain

NEAR = 0.1
"""Greatest distance from the retain model's value at which the nearest value is marked. Twice the standard error of an
AUC of 60 rows and as many others is 0.11."""

FLOOR = -12.0
"""log10 of forget quality below which differences do not count; the left edge of its charts."""

ABSENT = "–"
"""Sign of an absent value; the reason is given beside the table."""

_WIDTH = 80
_LABEL = 30
"""Greatest number of characters of a run's name."""


def fixed(value: float, digits: int = 2) -> str:
    """A number with `digits` decimals and a real minus sign; never −0.00.

    >>> fixed(-1.234), fixed(-0.001)
    ('−1.23', '0.00')
    """
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def p_value(log10_p: float) -> str:
    """A p-value given by its logarithm, also where it is too small for a float.

    >>> p_value(-1.3), p_value(-239.0)
    ('0.050', '1e−239')
    """
    if log10_p > -3:
        return f"{10**log10_p:.2f}" if log10_p > -1 else f"{10**log10_p:.3f}"
    exponent = math.floor(log10_p)
    digit = round(10 ** (log10_p - exponent))
    return f"{digit}e−{-exponent}" if digit < 10 else f"1e−{-exponent - 1}"


def perplexity_text(log: float) -> str:
    """A perplexity given by its natural logarithm, also where it is too large for a float.

    >>> perplexity_text(math.log(12.34)), perplexity_text(math.log(2.1e18)), perplexity_text(2000.0)
    ('12.3', '2.1e18', '3.9e868')
    """
    decades = log / math.log(10)
    if decades < 4:
        value = math.exp(log)
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    exponent = math.floor(decades)
    mantissa = f"{10 ** (decades - exponent):.1f}"
    return f"{mantissa}e{exponent}" if mantissa != "10.0" else f"1.0e{exponent + 1}"


@dataclass(frozen=True)
class Column:
    """One metric of the table.

    Attributes:
        name: Name of the metric for `Run.value`, or ``frontier_area``.
        head: Heading on the page.
        short: Heading in the terminal.
        best: Value that is marked as the best: the highest, the lowest, or the one closest to the retain model's; None
            if none is.
        number: Function that writes a value.
        meaning: Meaning of the number, in a few words.
    """

    name: str
    head: str
    short: str
    best: Literal["high", "low", "retain"] | None
    number: Callable[[float], str]
    meaning: str


COLUMNS = (
    Column(
        "forget_quality_log10",
        "Forget quality, log₁₀\u00a0p",
        "lg p",
        "high",
        fixed,
        "KS test against the retain model",
    ),
    Column("ks_statistic", "KS D", "KS D", "low", fixed, "KS statistic of that test, 0 to 1"),
    Column("model_utility", "Model utility", "util", "high", fixed, "harmonic mean of nine scores, 0 to 1"),
    Column(
        "model_utility_unseen",
        "Utility, unseen",
        "util unseen",
        "high",
        fixed,
        "model utility over the retain rows that unlearning has not seen, 0 to 1",
    ),
    Column("forget/rouge_l_recall", "Forget ROUGE‑L", "RL f", "retain", fixed, "recall of greedy answers, forget set"),
    Column("retain/rouge_l_recall", "Retain ROUGE‑L", "RL r", "high", fixed, "recall of greedy answers, retain set"),
    Column("mia/loss", "MIA AUC", "AUC", "retain", fixed, "membership inference by loss; 1 = members recognised"),
    Column("perplexity/forget/log", "PPL forget", "ppl f", None, perplexity_text, "perplexity on the forget set"),
    Column("perplexity/retain/log", "PPL retain", "ppl r", "low", perplexity_text, "perplexity on the retain set"),
    Column("perplexity/normal/log", "PPL normal", "ppl n", "low", perplexity_text, "perplexity on normal text"),
    Column(
        "frontier_area",
        "Frontier area",
        "area",
        "high",
        lambda value: fixed(value, 3),
        "area under forget quality (log₁₀, floor −12) and utility over all evaluations, 0 to 1",
    ),
)

COMPOSITE = (
    Column(
        "composite/overall", "Composite", "comp", "high", fixed, "harmonic mean of the three scores beside it, 0 to 1"
    ),
    Column("composite/memorization", "Memorisation", "mem", "high", fixed, "of four scores; 1 = nothing is left"),
    Column("composite/privacy", "Privacy", "priv", "high", fixed, "of four attacks' AUC; 1 = the retain model's"),
    Column("composite/relative_utility", "Utility, relative", "util rel", "high", fixed, "the full model's is 1"),
)
"""The composite score with its parts, where a run has any of them."""


def columns(settings: Sequence[SeedGroup]) -> list[Column]:
    """`COLUMNS`, with MIA by Min-K % where no run has the loss attack, and the composite score where runs have it."""
    chosen = list(COLUMNS)
    if any(setting.values(column.name) for setting in settings for column in COMPOSITE):
        chosen += COMPOSITE
    if not any(setting.values("model_utility_unseen") for setting in settings):
        chosen = [column for column in chosen if column.name != "model_utility_unseen"]
    has = {name: any(setting.values(name) for setting in settings) for name in ("mia/loss", "mia/min_k")}
    if has["mia/min_k"] and not has["mia/loss"]:
        place = next(i for i, column in enumerate(chosen) if column.name == "mia/loss")
        meaning = "membership inference by Min-K %; 1 = members recognised"
        chosen[place] = Column("mia/min_k", "MIA AUC", "AUC", "retain", fixed, meaning)
    return chosen


def best_groups(column: Column, settings: Sequence[SeedGroup]) -> set[str]:
    """The label of the unlearning setting whose mean, as it is written, is the best of its column, if there is one.

    "Closest to the retain model" needs a retain run (membership inference takes 0.5 without one) and a mean within
    `NEAR` of its value: of two that are far from the goal neither is good. Nothing is marked where two share the best
    value or fewer than two settings have one.
    """
    means = {s.label: mean for s in settings if s.first.role == "unlearn" and (mean := s.mean(column.name)) is not None}
    if len(means) < 2 or column.best is None:
        return set()
    reference = retain_mean(column.name, settings)
    if column.best == "retain":
        if reference is None and column.name.startswith("mia/"):
            reference = 0.5
        if reference is None:
            return set()
        score = {label: -abs(mean - reference) for label, mean in means.items()}
    else:
        score = {label: mean if column.best == "high" else -mean for label, mean in means.items()}
    top = max(score, key=lambda label: score[label])
    if column.best == "retain" and score[top] < -NEAR:
        return set()
    # As it is written: of two equal distances on both sides of the goal neither is nearer.
    shown = column.number if column.best != "retain" else lambda mean: fixed(abs(mean - (reference or 0.0)))
    ties = [label for label in score if shown(means[label]) == shown(means[top])]
    return {top} if len(ties) == 1 else set()


def on_one_seed(settings: Sequence[SeedGroup]) -> str:
    """Caution about marks where a setting has one seed; empty where each has several."""
    if all(len(setting.runs) > 1 for setting in settings if setting.first.role == "unlearn"):
        return ""
    return "a setting of one seed is marked by that seed, and another may change which is best"


def retain_mean(name: str, settings: Iterable[SeedGroup]) -> float | None:
    """A metric of the retain model, mean over the seeds of the first such setting that has it."""
    return next((m for s in settings if s.first.role == "retain" and (m := s.mean(name)) is not None), None)


def span(values: Sequence[float], number: Callable[[float], str]) -> str:
    """The smallest and the largest of several values: ``0.29–0.33``; empty where both are written alike."""
    low, high = number(min(values)), number(max(values))
    return "" if low == high else f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def seeds(setting: SeedGroup) -> str:
    """The seeds of a setting: ``0, 1, 2``."""
    return ", ".join(str(run.seed) for run in setting.runs)


def epochs(setting: SeedGroup) -> str:
    """Epoch of the chosen evaluation, with its range over the seeds; absent where the run does not say."""
    found = [float(epoch) for run in setting.runs if (epoch := run.chosen.get("epoch")) is not None]
    if not found:
        return ABSENT
    return span(found, lambda value: plain(round(value, 2))) or plain(round(found[0], 2))


def runs_table(runs: Iterable[str | Path | Run]) -> str:
    """The runs' chosen evaluations as a table for the terminal, at most 80 columns wide, in parts below each other.

    Several seeds of one setting are one line of means. A star marks the best unlearning run of a column.

    Raises:
        UserError: a run folder cannot be read, or the runs are of different benchmarks.
    """
    settings = by_seed_group(read_runs(runs))
    everything = columns(settings)
    # A column without a value is in the notes below, with the reason.
    chosen = [column for column in everything if any(setting.values(column.name) for setting in settings)]
    head = ["run", "λ", "seed", "epoch", *(column.short for column in chosen)]
    body = []
    for setting in settings:
        weight = setting.first.normal_weight
        seed_count = seeds(setting).replace(" ", "") if len(setting.runs) < 3 else f"{len(setting.runs)}×"
        body.append([setting.label, ABSENT if weight is None else plain(round(weight, 3)), seed_count, epochs(setting)])
    for column in chosen:
        best = best_groups(column, settings)
        for line, setting in zip(body, settings, strict=True):
            mean = setting.mean(column.name)
            line.append(ABSENT if mean is None else column.number(mean) + ("*" if setting.label in best else " "))
    starred = [i for i in range(4, len(head)) if any(line[i].endswith("*") for line in body)]
    parts = []
    for places in _parts(head, body, starred):
        lines = [_line([line[i] for i in places], [i in starred for i in places]) for line in (head, *body)]
        parts.append(fitted_table(lines, _WIDTH, texts=(0,), spare=len(places)))
    return "\n".join([*(line for part in parts for line in (*part, "")), *_legend(everything, chosen, settings)]) + "\n"


def _parts(head: Sequence[str], body: Sequence[Sequence[str]], starred: Sequence[int]) -> list[list[int]]:
    """Columns of each part of a table that is too wide: the run's name is in all of them."""
    widths = [max(len(line[i].rstrip()) for line in (head, *body)) + (i in starred) for i in range(len(head))]
    label = min(widths[0], _LABEL)
    parts: list[list[int]] = [[0]]
    for i in range(1, len(head)):
        if label + sum(widths[j] + 2 for j in (*parts[-1][1:], i)) > _WIDTH:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _line(cells: Sequence[str], starred: Sequence[bool]) -> list[str]:
    """Cells of a line: a long name is truncated, and numbers with and without a star are aligned."""
    name = cells[0] if len(cells[0]) <= _LABEL else cells[0][: _LABEL - 1] + "…"
    values = [cell.rstrip() for cell in cells[1:]]
    # The no-break space keeps the place of a star.
    return [name, *(v + "\u00a0" if s and not v.endswith("*") else v for v, s in zip(values, starred[1:], strict=True))]


def _legend(everything: Sequence[Column], chosen: Sequence[Column], settings: Sequence[SeedGroup]) -> list[str]:
    """Meanings of the headings and reasons of absent values, wrapped to the table's width."""
    meanings = "; ".join(
        ["λ: weight of the normal samples, forget sample = 1", *(f"{one.short}: {one.meaning}" for one in chosen)]
    )
    seeds_note = on_one_seed(settings)
    notes = [
        f"{meanings}. * best of the unlearning runs, if no other has the same (RL f and AUC: closest to the retain "
        f"model, if within {NEAR}){seeds_note and f'; {seeds_note}'}."
    ]
    reasons: dict[str, list[str]] = {}
    for setting in settings:
        for column in everything:
            if setting.mean(column.name) is None and (
                setting.first.role == "unlearn" or column.name != "frontier_area"
            ):
                reasons.setdefault(setting.first.why_absent(column.name), []).append(
                    f"{column.short} of {setting.label}"
                )
    notes += [f"{ABSENT} {', '.join(cells)}: {reason}" for reason, cells in reasons.items()]
    return [line for note in notes for line in textwrap.wrap(note, _WIDTH, subsequent_indent="  ")]
