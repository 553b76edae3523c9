"""The judge of the experiment on worse normals, and on the weight of two sources of normals.

    python benchmarks/dose_and_weight_judge.py FILE.json.gz --keep docs/results/dose-and-weight.json.gz
    python benchmarks/dose_and_weight_judge.py docs/results/dose-and-weight.json.gz --figure FILE.svg

Prints tables; keeps what they are computed from. Retained models, and the runs that others are compared with, are those
of docs/results/rates-and-normals.json.gz. Definitions are those of docs/experiments/dose-and-weight.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hand_over_judge import Judged, read, write
from rates_and_normals_judge import (
    LEVEL,
    Contrast,
    Question,
    answers,
    figure,
    interval,
    judge,
    kept_runs,
    means_table,
    paired,
    primary,
    primary_table,
    secondary_table,
)

BASE = Path(__file__).resolve().parents[1] / "docs" / "results" / "rates-and-normals.json.gz"
WEIGHTS = (1.0, 2.0, 4.0)
SOURCES = ("alternatives", "neighbours")
PARTS = {
    "dose": ("corrupted-25", "corrupted-50", "off-topic-50", "off-topic-100"),
    "weight": tuple(f"{source}-{weight}" for source in SOURCES for weight in (1.0, 4.0)),
}
"""Recipes of each of the two questions; a world without one of them does not count in that question."""
DOSES = tuple(
    Question(text, recipe, "neighbours", lower="**no, they are better**", higher="**yes**")
    for recipe, text in zip(
        PARTS["dose"],
        (
            "Are neighbours with 25 % of their words replaced worse than whole ones?",
            "Are neighbours with 50 % of their words replaced worse than whole ones?",
            "Is half of the neighbours off-topic worse than none?",
            "Are off-topic normals alone worse than neighbours?",
        ),
        strict=True,
    )
)
SOURCE = Question("Does the source of normals move the best λ?", *(f"{source}, λ 4 less 1" for source in SOURCES))
QUESTIONS = (*DOSES, SOURCE)
"""The primary ones, over which Holm's correction goes."""
PAIRS = (
    *((one.first, one.second) for one in DOSES),
    ("corrupted-50", "corrupted-25"),
    ("off-topic-100", "off-topic-50"),
)


def merged(
    base: Mapping[str, Any], found: Mapping[str, Any], parts: Mapping[str, Sequence[str]] = PARTS
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Runs of both files, and the worlds that were left out of each question because one of its runs is lacking."""
    runs, failed = dict(found["runs"]), dict(found["failed"])
    worlds = sorted({int(name.split("/")[0]) for name in (*base["runs"], *runs, *failed)})
    left: dict[str, list[int]] = {part: [] for part in parts}
    for part, recipes in parts.items():
        for world in worlds:
            names = [f"{world}/{recipe}" for recipe in recipes]
            if not all(name in runs or name in failed for name in names):
                left[part].append(world)
                for name in names:
                    runs.pop(name, None)
                    failed.pop(name, None)
    return {"runs": {**base["runs"], **runs}, "failed": {**base["failed"], **failed}}, left


def judged(collected: Mapping[str, Any]) -> list[Judged]:
    """Runs that this experiment is about, judged; as runs of two more recipes, what λ = 4 costs over λ = 1.

    The latter, one for each source, have a shortfall that is a difference, and nothing else that means anything.
    """
    wanted = {*PARTS["dose"], *PARTS["weight"], *SOURCES}
    rows = [row for row in judge(collected) if row.recipe in wanted]
    last = {(row.recipe, row.world): row for row in rows if row.choice == "last"}
    for source in SOURCES:
        for (recipe, world), row in list(last.items()):
            low = last.get((f"{source}-1.0", world))
            if recipe == f"{source}-4.0" and low is not None:
                rows.append(replace(row, recipe=f"{source}, λ 4 less 1", shortfall=row.shortfall - low.shortfall))
    return rows


def by_weight(rows: Sequence[Judged]) -> dict[str, dict[int, dict[float, float]]]:
    """Shortfall at the last evaluation by source, world and λ, of the worlds that have all three λ."""
    found: dict[str, dict[int, dict[float, float]]] = {}
    for source in SOURCES:
        names = {f"{source}-{weight}": weight for weight in WEIGHTS} | {source: 2.0}
        worlds: dict[int, dict[float, float]] = {}
        for row in rows:
            if row.choice == "last" and row.recipe in names:
                worlds.setdefault(row.world, {})[names[row.recipe]] = row.shortfall
        found[source] = {world: dict(sorted(one.items())) for world, one in worlds.items() if len(one) == len(WEIGHTS)}
    return found


def best_of_means(rows: Sequence[Judged]) -> dict[str, float]:
    """The λ with the least mean shortfall, by source."""
    return {
        source: min(WEIGHTS, key=lambda weight: fmean(one[weight] for one in worlds.values()))
        for source, worlds in by_weight(rows).items()
        if worlds
    }


def weights_table(rows: Sequence[Judged]) -> str:
    """A Markdown table: mean shortfall at each λ and in how many worlds it is the best, by source."""
    cells = " | ".join(f"λ = {weight:g}" for weight in WEIGHTS)
    lines = [f"| mean shortfall (best in) | worlds | {cells} |", "|" + "---|" * (2 + len(WEIGHTS))]
    for source, worlds in by_weight(rows).items():
        best = [min(one, key=lambda weight: one[weight]) for one in worlds.values()]
        if worlds:
            cells = " | ".join(
                f"{fmean(one[weight] for one in worlds.values()):.1f} ({best.count(weight)})" for weight in WEIGHTS
            )
            lines.append(f"| {source} | {len(worlds)} | {cells} |")
    return "\n".join(lines)


def best_difference(rows: Sequence[Judged]) -> Contrast | None:
    """Difference of log2 of the best λ, world by world; None without worlds. Described, not tested."""
    best = {
        source: {world: WEIGHTS.index(min(one, key=lambda weight: one[weight])) for world, one in worlds.items()}
        for source, worlds in by_weight(rows).items()
    }
    first, second = (best[source] for source in SOURCES)
    differences = {world: float(first[world] - second[world]) for world in first.keys() & second.keys()}
    return paired(*SOURCES, "log2 of the best λ", differences) if differences else None


def source_answer(rows: Sequence[Judged]) -> str:
    """The row of the table of answers on the source of normals and the best λ; empty without worlds."""
    told = [(one, p) for question, one, p in primary(rows, QUESTIONS) if question is SOURCE]
    moved = best_difference(rows)
    if not told or moved is None:
        return ""
    [(one, p_value)], best, n = told, best_of_means(rows), len(told[0][0].differences)
    span = f"{one.mean:+.1f}, 95 % {one.low:+.1f} to {one.high:+.1f}".replace("-", "−")
    tested = "too few for a test" if p_value is None else f"Holm p = {p_value:.4f}"
    quoted = (
        f"λ = 4 less λ = 1 in shortfall, with alternatives less with neighbours, on {n} worlds: {span}, {tested}; the "
        f"mean shortfall is least at λ = {best['alternatives']:g} with alternatives and at λ = {best['neighbours']:g} "
        f"with neighbours (log2 of the best λ, difference by world: {interval(moved)})"
    )
    yes = p_value is not None and p_value < LEVEL and best["alternatives"] != best["neighbours"]
    answer = "**yes**" if yes else f"cannot be told at n = {n}"
    beyond = "which λ between the tried ones is best" if yes else "that both sources have the same best λ"
    return f"| {SOURCE.text} | {answer} | {quoted} | {beyond} |"


def answers_table(rows: Sequence[Judged]) -> str:
    """A Markdown table: each question's answer, what may be quoted of it and what may not be said."""
    lines = [line for line in answers(rows, QUESTIONS).splitlines() if not line.startswith(f"| {SOURCE.text} ")]
    return "\n".join([*lines, *filter(None, [source_answer(rows)])])


def left_out(left: Mapping[str, Sequence[int]], worlds: int) -> str:
    """Sentence on worlds that do not count."""
    said = "; ".join(
        f"of question {number} " + (f"world{'s' * (len(found) > 1)} {', '.join(map(str, found))}" if found else "none")
        for number, found in enumerate(left.values(), 1)
    )
    return f"Worlds left out, of {worlds}: {said}."


def page_parts(found: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """All that the page has of the numbers: its tables, and the sentence on worlds left out."""
    collected, left = merged(base, found)
    rows = judged(collected)
    real = [row for row in rows if row.recipe not in (SOURCE.first, SOURCE.second)]
    doses = [row for row in real if row.recipe in (*PARTS["dose"], "neighbours")]
    return [
        answers_table(rows),
        primary_table(rows, QUESTIONS),
        secondary_table(doses, "last", PAIRS),
        secondary_table(doses, "rule", PAIRS),
        weights_table(rows),
        means_table(real, {}),
        left_out(left, len({row.world for row in real})),
    ]


def tell(
    description: str | None,
    base: Mapping[str, Any],
    parts_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]],
    draw: Callable[[Mapping[str, Any], Path], None],
) -> None:
    """Prints the parts of a page, of a file that is named on the command line; keeps its runs, and draws, where asked.

    Args:
        description: Text of the command's help.
        base: Runs of the experiments before, which are not kept again.
        parts_of: Makes the page's parts of the kept runs and the base.
        draw: Draws the kept runs' contrasts into a file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--keep", type=Path, help="file that is made of what the tables are computed from")
    parser.add_argument("--figure", type=Path, help="SVG of the primary contrasts")
    options = parser.parse_args()
    found = kept_runs(read(options.file))
    found["runs"] = {name: run for name, run in found["runs"].items() if name not in base["runs"]}
    print(*parts_of(found, base), sep="\n\n")
    if options.keep is not None:
        write(found, options.keep)
    if options.figure is not None:
        draw(found, options.figure)


def main() -> None:
    """Prints the tables."""
    base = read(BASE)
    tell(__doc__, base, page_parts, lambda found, path: figure(judged(merged(base, found)[0]), path, QUESTIONS))


if __name__ == "__main__":
    main()
