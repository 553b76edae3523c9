"""The judge of the experiment on rates and normals: contrasts between runs of the same worlds, beside retained models.

    python benchmarks/rates_and_normals_judge.py FILE.json.gz --keep docs/results/rates-and-normals.json.gz
    python benchmarks/rates_and_normals_judge.py docs/results/rates-and-normals.json.gz --figure docs/images/rates.svg

Prints tables; keeps what they are computed from; draws the differences world by world. Definitions are those of
docs/experiments/rates-and-normals.md, and the four quantities with their shortfall those of the hand-over experiment.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from hand_over_judge import Judged, Rule, World, column, kept, read, rows_of, shortened, write
from scipy.stats import binomtest, wilcoxon

from sga.evaluation.paired import holm


@dataclass(frozen=True)
class Question:
    """A primary question, answered by the shortfall of one recipe less that of another.

    Attributes:
        text: The question.
        first: Name of a recipe.
        second: Name of the recipe that it is compared with.
        lower: Answer where the first recipe is told to have the lower shortfall.
        higher: Answer where it is told to have the higher one.
    """

    text: str
    first: str
    second: str
    lower: str = "**yes**"
    higher: str = "**no, it is worse**"


QUESTIONS = (
    Question("Are two neighbours and two alternatives better than four neighbours?", "alternatives", "neighbours"),
    Question("Does the margin rule beat its own mean λ held fixed?", "margin", "mean"),
    Question("Does the margin rule beat its own λ shuffled in time?", "margin", "shuffled"),
    Question("Is K = 2 better than K = 5 at equal λ and equal forget passes?", "pairs", "neighbours"),
)
"""The primary ones, over which Holm's correction goes."""
PAIRS = tuple((one.first, one.second) for one in QUESTIONS)
LEVEL = 0.05
"""Corrected p-value below which a difference is told."""
LEAST_WORLDS = 6
"""Fewest worlds with which a contrast is tested."""
QUANTITIES: Mapping[str, Callable[[Judged], float]] = {
    "shortfall": lambda one: one.shortfall,
    "log10 p": lambda one: one.log10_p,
    "distance of AUC": lambda one: abs(one.auc_gap),
    "utility": lambda one: one.utility_share,
    "fluency": lambda one: one.fluency_share,
}
LOWER_IS_BETTER = ("shortfall", "distance of AUC")
KNOWN, UNKNOWN = 0.9, 0.1
"""Least probability of the forget answers of a target, and most of a retained model, with which a world counts."""


@dataclass(frozen=True)
class Contrast:
    """Paired differences of two recipes over worlds, in one quantity.

    Attributes:
        first: Name of a recipe.
        second: Name of the recipe that it is compared with.
        quantity: Name of the quantity.
        differences: First less second by world.
        low: Lower end of the 95 % bootstrap interval of the mean, over worlds.
        high: Its upper end.
        p_value: Exact two-sided Wilcoxon signed-rank test; None under `LEAST_WORLDS` worlds.
        sign_p: Exact two-sided sign test; None likewise.
    """

    first: str
    second: str
    quantity: str
    differences: Mapping[int, float]
    low: float
    high: float
    p_value: float | None
    sign_p: float | None

    @property
    def mean(self) -> float:
        """Mean difference over worlds."""
        return fmean(self.differences.values())

    @property
    def better(self) -> int:
        """Number of worlds in which the first recipe is better."""
        sign = -1 if self.quantity in LOWER_IS_BETTER else 1
        return sum(sign * one > 0 for one in self.differences.values())


def worlds_of(collected: Mapping[str, Any]) -> tuple[dict[int, World], dict[int, str]]:
    """Worlds that count, and why others do not, by seed; runs need not be the same in all."""
    runs: dict[int, dict[str, Any]] = {}
    for name, run in collected["runs"].items():
        world, recipe = name.split("/")
        runs.setdefault(int(world), {})[recipe] = run
    found, refused = {}, {}
    for seed, of_world in sorted(runs.items()):
        retained = [run for name, run in of_world.items() if name.startswith("judged-")]
        if len(retained) < 3 or len(of_world) == len(retained):
            refused[seed] = "not finished"
            continue
        world = World(seed, of_world, Rule())
        knows = probability(next(iter(world.runs.values())), 0)
        most = max(probability(run, len(run["evaluations"]) - 1) for run in retained)
        if knows >= KNOWN and most <= UNKNOWN:
            found[seed] = world
        else:
            refused[seed] = f"target {knows:.2f}, retained models up to {most:.2f}"
    return found, refused


def probability(run: Any, index: int) -> float:
    """Mean probability of the forget answers in an evaluation."""
    return fmean(math.exp(-nll) for nll in column(rows_of(run, index), "avg_nll"))


def judge(collected: Mapping[str, Any]) -> list[Judged]:
    """The evaluation that the rule chose and the last one of every run, in the worlds that count.

    A run that failed is judged as its world's worst, by all quantities.
    """
    found = []
    for seed, world in worlds_of(collected)[0].items():
        retained = list(world.retained.values())
        of_world = []
        for recipe, run in world.runs.items():
            choices = {"last": len(run["evaluations"]) - 1, "rule": world.rule.chosen(run["evaluations"])}
            of_world += [world.judged(recipe, choice, run, index, retained) for choice, index in choices.items()]
        found += of_world
        for name in collected["failed"]:
            if name.startswith(f"{seed}/"):
                for choice in ("last", "rule"):
                    worst = max((one for one in of_world if one.choice == choice), key=lambda one: one.shortfall)
                    found.append(Judged(**{**vars(worst), "recipe": name.split("/")[1]}))
    return found


def contrast(rows: Sequence[Judged], first: str, second: str, quantity: str, choice: str = "last") -> Contrast | None:
    """Differences in the worlds in which both recipes have finished; None where there is none."""
    value = QUANTITIES[quantity]
    by_recipe: dict[str, dict[int, float]] = {first: {}, second: {}}
    for row in rows:
        if row.choice == choice and row.recipe in by_recipe:
            by_recipe[row.recipe][row.world] = value(row)
    worlds = sorted(by_recipe[first].keys() & by_recipe[second].keys())
    if not worlds:
        return None
    differences = {world: by_recipe[first][world] - by_recipe[second][world] for world in worlds}
    return paired(first, second, quantity, differences)


def paired(first: str, second: str, quantity: str, differences: Mapping[int, float]) -> Contrast:
    """A contrast of given differences, with its interval and tests."""
    values = np.array(list(differences.values()))
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    tested = values[values != 0]
    p_value = sign_p = None
    if len(values) >= LEAST_WORLDS:
        p_value = float(wilcoxon(tested, method="exact").pvalue) if len(tested) else 1.0
        sign_p = float(binomtest(int((tested > 0).sum()), len(tested)).pvalue) if len(tested) else 1.0
    return Contrast(first, second, quantity, differences, float(low), float(high), p_value, sign_p)


def primary(
    rows: Sequence[Judged], questions: Sequence[Question] = QUESTIONS
) -> list[tuple[Question, Contrast, float | None]]:
    """Primary contrasts that have runs, with p-values after Holm over all questions; those not tested count as 1."""
    found = [contrast(rows, one.first, one.second, "shortfall") for one in questions]
    p_values = [1.0 if one is None or one.p_value is None else one.p_value for one in found]
    return [
        (question, one, None if one.p_value is None else adjusted)
        for question, one, adjusted in zip(questions, found, holm(p_values), strict=True)
        if one is not None
    ]


def primary_table(rows: Sequence[Judged], questions: Sequence[Question] = QUESTIONS) -> str:
    """A Markdown table of the primary contrasts."""
    lines = [
        "| contrast | worlds | mean difference in shortfall | first is better in | Wilcoxon p | Holm p | sign test p |"
    ]
    lines.append("|" + "---|" * 7)
    for _, one, holm_p in primary(rows, questions):
        ps = ["not tested" if p is None else f"{p:.4f}" for p in (one.p_value, holm_p, one.sign_p)]
        n = len(one.differences)
        name = f"{one.first} − {one.second}"
        lines.append(f"| {name} | {n} | {interval(one)} | {one.better} of {n} | {' | '.join(ps)} |")
    return "\n".join(lines)


def answers(rows: Sequence[Judged], questions: Sequence[Question] = QUESTIONS) -> str:
    """A Markdown table: each primary question's answer, what may be quoted of it and what may not be said."""
    lines = ["| question | answer | may be quoted | may not be said |", "|---|---|---|---|"]
    for question, one, p_value in primary(rows, questions):
        n, first, second = len(one.differences), one.first, one.second
        span = f"{one.mean:+.1f}, 95 % {one.low:+.1f} to {one.high:+.1f}".replace("-", "−")
        quoted = f"shortfall of *{first}* less that of *{second}* on {n} worlds: {span}"
        if p_value is None:
            told = f"cannot be told at n = {n}: too few for a test", quoted, "which of the two is better"
        elif p_value >= LEVEL:
            told = f"cannot be told at n = {n}", f"{quoted}, Holm p = {p_value:.2f}", "that the two are equal"
        else:
            counted = f"{one.better} of {n} worlds are better with *{first}*; {quoted}, Holm p = {p_value:.4f}"
            beyond = "that it holds for pretrained models, or at other λ and learning rates"
            told = question.lower if one.mean < 0 else question.higher, counted, beyond
        lines.append(f"| {question.text} | {' | '.join(told)} |")
    return "\n".join(lines)


def secondary_table(rows: Sequence[Judged], choice: str, pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """A Markdown table of contrasts in every quantity, of one choice of the evaluation."""
    lines = ["| contrast | worlds | " + " | ".join(QUANTITIES) + " |", "|" + "---|" * (len(QUANTITIES) + 2)]
    for first, second in pairs:
        found = [contrast(rows, first, second, quantity, choice) for quantity in QUANTITIES]
        if found[0] is not None:
            cells = [interval(one) for one in found if one is not None]
            lines.append(f"| {first} − {second} | {len(found[0].differences)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(one: Contrast) -> str:
    """Mean difference with its interval."""
    return f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]".replace("-", "−")


def means_table(rows: Sequence[Judged], rates: Mapping[str, Sequence[float] | None]) -> str:
    """A Markdown table, a line for each recipe and choice: means over its worlds, and λ over worlds and steps."""
    lines = [
        "| recipe | choice | worlds | shortfall | log10 p | AUC gap | utility | fluency | forget nll | meet all | λ |",
        "|" + "---|" * 11,
    ]
    groups: dict[tuple[str, str], list[Judged]] = {}
    for row in rows:
        groups.setdefault((row.recipe, row.choice), []).append(row)
    for (recipe, choice), found in groups.items():
        values = [
            f"{fmean(getattr(row, name) for row in found):.{digits}f}".replace("-", "−")
            for name, digits in (("shortfall", 1), ("log10_p", 1), ("auc_gap", 2), ("utility_share", 2),
                                 ("fluency_share", 2), ("forget_nll", 1))
        ]  # fmt: skip
        every = [one for row in found for one in rates.get(f"{row.world}/{recipe}") or ()]
        moved = f"{fmean(every):.2f} ({min(every):.2f} to {max(every):.2f})" if every else ""
        met = f"{sum(row.meets == 4 for row in found)} of {len(found)}"
        lines.append(f"| {recipe} | {choice} | {len(found)} | {' | '.join(values)} | {met} | {moved} |")
    return "\n".join(lines)


def worlds_table(collected: Mapping[str, Any]) -> str:
    """A Markdown table of the check of each world."""
    lines = ["| world | target's probability of forget answers | retained models' | counts |", "|---|---|---|---|"]
    found, refused = worlds_of(collected)
    for seed, world in found.items():
        knows = probability(next(iter(world.runs.values())), 0)
        others = [probability(run, len(run["evaluations"]) - 1) for run in world.retained.values()]
        lines.append(f"| {seed} | {knows:.3f} | {min(others):.3f} to {max(others):.3f} | yes |")
    lines += [f"| {seed} | | | no: {why} |" for seed, why in refused.items()]
    return "\n".join(lines)


def rates_table(rates: Mapping[str, Sequence[float] | None], steps: int = 5) -> str:
    """A Markdown table of λ by epoch, mean over worlds and its steps, of the recipes whose rate a policy set."""
    recipes: dict[str, list[Sequence[float]]] = {}
    for name, values in rates.items():
        if values:
            recipes.setdefault(name.split("/")[1], []).append(values)
    epochs = max((len(values) for found in recipes.values() for values in found), default=0) // steps
    head = " | ".join(str(epoch + 1) for epoch in range(epochs))
    lines = [f"| λ in epoch | {head} |", "|" + "---|" * (epochs + 1)]
    for recipe, found in recipes.items():
        means = [fmean(fmean(one[epoch * steps : (epoch + 1) * steps]) for one in found) for epoch in range(epochs)]
        lines.append(f"| {recipe} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def rates_of(collected: Mapping[str, Any]) -> dict[str, Sequence[float] | None]:
    """λ at each step of the runs whose rate a policy set, by name."""
    return {name: run.get("rates") for name, run in collected["runs"].items()}


def kept_runs(collected: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables are computed from, in five digits and without texts.

    Rows are those of the last evaluation, of the one that the rule chose and, once a world, of the starting model.
    """
    found = kept(collected)
    begun = set()
    for name, run in found["runs"].items():
        world, steps = name.split("/")[0], [str(int(one["step"])) for one in run["evaluations"]]
        if "/judged-" not in name:
            wanted = {steps[-1], steps[Rule().chosen(run["evaluations"])], *([] if world in begun else steps[:1])}
            run["rows"] = {step: rows for step, rows in run["rows"].items() if str(int(step)) in wanted}
            begun.add(world)
        rates = collected["runs"][name].get("rates")
        run |= {} if rates is None else {"rates": [shortened(rate) for rate in rates]}
    return found


def figure(rows: Sequence[Judged], path: Path, questions: Sequence[Question] = QUESTIONS) -> None:
    """Draws the primary contrasts as SVG: a point for each world, the mean and its interval."""
    import altair as alt

    from sga.report.figures import write_figures

    found = [
        (f"{one.first} − {one.second} (n = {len(one.differences)})", one) for _, one, _ in primary(rows, questions)
    ]
    points = [{"row": name, "x": round(x, 4)} for name, one in found for x in one.differences.values()]
    means = [
        {"row": name, "x": round(one.mean, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
        for name, one in found
    ]
    title = "difference in shortfall at the last evaluation (left: the first is better)"
    x = alt.X("x:Q", title=title, axis=alt.Axis(format="~f"))
    y = alt.Y("row:N", title=None, sort=[name for name, _ in found], axis=alt.Axis(labelLimit=0))
    base = alt.Chart(alt.Data(values=means))
    chart = alt.layer(
        alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule().encode(x),
        alt.Chart(alt.Data(values=points)).mark_circle(color="#888888", opacity=0.6, size=50).encode(x, y),
        base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), y, x2="high:Q"),
        base.mark_point(shape="diamond", filled=True, color="black", opacity=1, size=80).encode(x, y),
    ).properties(width=460, height=40 * len(found))
    write_figures({path.stem: chart.configure(background="#ffffff")}, path.parent)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--keep", type=Path, help="file that is made of what the tables are computed from")
    parser.add_argument("--figure", type=Path, help="SVG of the primary contrasts")
    options = parser.parse_args()
    found = kept_runs(read(options.file))
    rows = judge(found)
    tables = [answers(rows), primary_table(rows), secondary_table(rows, "last"), secondary_table(rows, "rule")]
    print(*tables, means_table(rows, rates_of(found)), rates_table(rates_of(found)), worlds_table(found), sep="\n\n")
    if options.keep is not None:
        write(found, options.keep)
    if options.figure is not None:
        figure(rows, options.figure)


if __name__ == "__main__":
    main()
