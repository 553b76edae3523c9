"""The judge of the experiment on group size at equal tokens, and on worse normals under a normalised weight.

    python benchmarks/group_size_and_dose_judge.py FILE.json.gz --keep docs/results/group-size-and-dose.json.gz
    python benchmarks/group_size_and_dose_judge.py docs/results/group-size-and-dose.json.gz --figure FILE.svg

Prints tables; keeps what they are computed from. Retained models, and the runs that others are compared with, are those
of the two experiments before. Definitions are those of docs/experiments/group-size-and-dose.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dose_and_weight_judge import BASE, left_out, merged, tell
from hand_over_judge import Judged, read
from rates_and_normals_judge import (
    Question,
    answers,
    figure,
    judge,
    means_table,
    primary_table,
    rates_of,
    rates_table,
    secondary_table,
)

EXPLORATORY = BASE.with_name("group-size-and-dose-exploratory.json.gz")
BASES = (BASE, BASE.with_name("dose-and-weight.json.gz"))
PARTS = {
    "size": ("k2-tokens", "k8-tokens", "k8-passes"),
    "dose": ("neighbours-norm", "corrupted-25-norm", "off-topic-50-norm"),
}
"""Recipes of each of the two questions; a world without one of them does not count in that question."""
BESIDE = ("neighbours", "pairs", "corrupted-25", "off-topic-50", "corrupted-25-mean", "off-topic-50-mean")
"""Recipes that they are compared with."""
WORSE = {"corrupted-25": "25 % of their words replaced", "off-topic-50": "half of them off-topic"}
QUESTIONS = (
    Question("Is K = 2 better than K = 5 at equal tokens?", "k2-tokens", "neighbours"),
    Question("Is K = 8 better than K = 5 at equal tokens?", "k8-tokens", "neighbours"),
    Question("Is K = 8 better than K = 5 at equal forget passes?", "k8-passes", "neighbours"),
    *(
        Question(f"Neighbours with {what}: is `NormRatio` better than λ = 2?", f"{dose}-norm", dose)
        for dose, what in WORSE.items()
    ),
    *(
        Question(
            f"With `NormRatio`: are neighbours with {what} worse than whole ones?",
            *(f"{dose}-norm", "neighbours-norm"),
            lower="**no, they are better**",
            higher="**yes**",
        )
        for dose, what in WORSE.items()
    ),
)
"""The primary ones, over which Holm's correction goes."""
PAIRS = (
    *((one.first, one.second) for one in QUESTIONS),
    ("k2-tokens", "pairs"),
    ("k8-tokens", "k8-passes"),
    ("k2-tokens", "k8-tokens"),
    ("neighbours-norm", "neighbours"),
    *((f"{dose}-mean", other) for dose in WORSE for other in (f"{dose}-norm", dose)),
)


def base_runs() -> dict[str, Any]:
    """Runs of the two experiments before."""
    found: dict[str, Any] = {"runs": {}, "failed": {}}
    for content in map(read, BASES):
        for part, values in found.items():
            values |= content[part]
    return found


def judged(collected: Mapping[str, Any]) -> list[Judged]:
    """Runs that this experiment is about, judged."""
    wanted = {*PARTS["size"], *PARTS["dose"], *BESIDE}
    return [row for row in judge(collected) if row.recipe in wanted]


def page_parts(found: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """All that the page has of the numbers: its tables, and the sentence on worlds left out."""
    collected, left = merged(base, found, PARTS)
    rows, rates = judged(collected), rates_of(found)
    return [
        answers(rows, QUESTIONS),
        primary_table(rows, QUESTIONS),
        secondary_table(rows, "last", PAIRS),
        secondary_table(rows, "rule", PAIRS),
        means_table(rows, rates),
        rates_table(rates),
        left_out(left, len({row.world for row in rows})),
    ]


def small_weights(found: Mapping[str, Any], base: Mapping[str, Any], extra: Mapping[str, Any]) -> list[Judged]:
    """Last evaluations of both doses in the worlds of the exploratory runs: at a small λ, at 2 and under the rule."""
    runs = {**base["runs"], **found["runs"], **extra["runs"]}
    recipes = [f"{dose}{weight}" for dose in WORSE for weight in ("-0.25", "-0.5", "", "-norm")]
    worlds = {int(name.split("/")[0]) for name in extra["runs"]}
    rows = [row for row in judge({"runs": runs, "failed": {}}) if row.recipe in recipes and row.world in worlds]
    return sorted((row for row in rows if row.choice == "last"), key=lambda row: recipes.index(row.recipe))


def main() -> None:
    """Prints the tables."""
    base = base_runs()
    tell(__doc__, base, page_parts, lambda found, path: figure(judged(merged(base, found, PARTS)[0]), path, QUESTIONS))


if __name__ == "__main__":
    main()
