"""The judge of the experiment on transfer: settings that were chosen on authors, untouched on three other tasks.

    python benchmarks/transfer_judge.py AUTHORS.json.gz TOFU.json.gz NEWS.json.gz BOOK.json.gz --keep FILE.json.gz
    python benchmarks/transfer_judge.py docs/results/transfer.json.gz

Prints tables; keeps what they are computed from. Definitions are those of docs/experiments/transfer.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from hand_over_judge import (
    LEAST_FLUENCY,
    LEAST_LOG10_P,
    LEAST_UTILITY,
    MOST_AUC_GAP,
    UNITS,
    auc_of,
    column,
    read,
    rows_of,
    shortened,
    write,
)
from rates_and_normals_judge import KNOWN, UNKNOWN, probability
from scipy.stats import kendalltau, rankdata

from sga.evaluation.metrics import forget_quality

TASKS = {"authors": "authors", "tofu": "rows of TOFU", "news": "MUSE-News", "book": "the book"}
"""Names of the tasks, in the order of the files, and what the page calls them."""
WORLDS = {"authors": (20, 21, 22), "tofu": (31, 32, 33), "news": (41, 42, 43), "book": (51, 52, 53)}
"""Worlds that the protocol names."""
METHODS = {
    "neighbours": "gradient difference, λ = 2",
    "neighbours-norm": "gradient difference, `NormRatio`",
    "sga": "SGA, r = −4",
    "npo-nll": "NPO + NLL",
    "gd-random": "gradient difference, random",
    "ga": "gradient ascent",
}
"""Recipes that are ranked, and what the page calls them."""
FACTORS = {"neighbours-half": 0.5, "neighbours": 1.0, "neighbours-double": 2.0}
"""Recipes that the regret of a learning rate is told of, and their multiple of it."""
KEPT_ROWS = ("avg_nll", "exact_memorization", "log_truth_ratio", "fluency")
KEPT_METRICS = ("step", "epoch", "model_utility_unseen", "retain_unseen/probability", "retain_unseen/rouge_l_recall")


@dataclass(frozen=True)
class Measure:
    """What a run is measured by besides membership and fluency.

    Attributes:
        excess: How far forget rows are from not being remembered otherwise than by retained models, in units; at most 0
            where they are not.
        utility: Usefulness from an evaluation's metrics.
    """

    excess: Callable[[Any, Sequence[Any]], float]
    utility: Callable[[Mapping[str, float]], float]


def memory_gap(rows: Any, others: Sequence[Any]) -> float:
    """Mean exact memorisation of forget rows less that of the retained models."""
    return memorized(rows) - fmean(map(memorized, others))


def memorized(rows: Any) -> float:
    """Mean exact memorisation of forget rows."""
    return fmean(column(rows, "exact_memorization"))


def quality_excess(rows: Any, others: Sequence[Any]) -> float:
    """The same by forget quality, as in the experiments before."""
    ratios = column(rows, "log_truth_ratio")
    return LEAST_LOG10_P - fmean(forget_quality(ratios, column(one, "log_truth_ratio")).log10_p for one in others)


MOST_MEMORY_GAP = 0.1
COMMON = Measure(
    lambda rows, others: (abs(memory_gap(rows, others)) - MOST_MEMORY_GAP) / MOST_MEMORY_GAP,
    lambda one: harmonic_mean([one[f"retain_unseen/{part}"] for part in ("probability", "rouge_l_recall")]),
)
"""The measure of every task."""
EARLIER = Measure(quality_excess, lambda one: one["model_utility_unseen"])
"""The measure of the experiments before, which needs questions with wrong answers."""


@dataclass(frozen=True)
class Judged:
    """The last evaluation of a run.

    Attributes:
        memory_gap: Exact memorisation of the forget answers less the mean of the retained models'.
        auc_gap: Membership AUC of the loss less the mean of the retained models'.
        utility: Usefulness as a share of the target's.
        fluency: Fluency of the forget answers as a share of the retained models' mean.
        forget_nll: Mean nll of the forget answers, nats per token.
        meets: Number of the four conditions that are met.
        shortfall: Sum of how far the conditions are from being met, 0 where all four are.
    """

    memory_gap: float
    auc_gap: float
    utility: float
    fluency: float
    forget_nll: float
    meets: int
    shortfall: float


Table = Mapping[str, Mapping[int, Mapping[str, Judged]]]
"""Runs by task, world and recipe."""


def judged(run: Any, start: Mapping[str, float], retained: Sequence[Any], measure: Measure, index: int = -1) -> Judged:
    """An evaluation of a run, by default the last, beside those of the retained models."""
    rows, others = rows_of(run, index), [rows_of(one, -1) for one in retained]
    gap = auc_of(rows) - fmean(map(auc_of, others))
    utility = measure.utility(run["evaluations"][index]) / measure.utility(start)
    fluency = fmean(column(rows, "fluency")) / fmean(fmean(column(one, "fluency")) for one in others)
    excesses = (
        measure.excess(rows, others),
        (abs(gap) - MOST_AUC_GAP) / UNITS[1],
        (LEAST_UTILITY - utility) / UNITS[2],
        (LEAST_FLUENCY - fluency) / UNITS[3],
    )
    return Judged(
        memory_gap(rows, others), gap, utility, fluency, fmean(column(rows, "avg_nll")),
        sum(excess <= 0 for excess in excesses), sum(max(0.0, excess) for excess in excesses),
    )  # fmt: skip


def worlds_of(runs: Mapping[str, Any]) -> tuple[dict[int, tuple[dict[str, Any], list[Any]]], dict[int, str]]:
    """Runs and retained models of each world that counts, and why others do not, by seed."""
    by_world: dict[int, dict[str, Any]] = {}
    for name, run in runs.items():
        world, recipe = name.split("/")
        by_world.setdefault(int(world), {})[recipe] = run
    found, refused = {}, {}
    for world, named in sorted(by_world.items()):
        retained = [run for name, run in named.items() if name.startswith("judged-")]
        made = {name: run for name, run in named.items() if not name.startswith("judged-")}
        if len(retained) < 2 or not METHODS.keys() <= made.keys():
            refused[world] = "not finished"
            continue
        knows, most = check(made, retained)
        if knows >= KNOWN and most[1] <= UNKNOWN:
            found[world] = made, retained
        else:
            refused[world] = f"target {knows:.3f}, retained models up to {most[1]:.3f}"
    return found, refused


def check(made: Mapping[str, Any], retained: Sequence[Any]) -> tuple[float, tuple[float, float]]:
    """Probability of the forget answers of the target, and the least and most of the retained models."""
    others = [probability(run, len(run["evaluations"]) - 1) for run in retained]
    return probability(made["neighbours"], 0), (min(others), max(others))


def judge(tasks: Mapping[str, Any], measure: Measure = COMMON) -> dict[str, dict[int, dict[str, Judged]]]:
    """Every run of the worlds that count, and beside them the untouched target and each retained model."""
    return {
        task: {
            world: _world(made, retained, measure) for world, (made, retained) in worlds_of(found["runs"])[0].items()
        }
        for task, found in tasks.items()
    }


def _world(made: Mapping[str, Any], retained: Sequence[Any], measure: Measure) -> dict[str, Judged]:
    first = made["neighbours"]
    start = first["evaluations"][0]
    found = {name: judged(run, start, retained, measure) for name, run in made.items()}
    found["untouched"] = judged(first, start, retained, measure, 0)
    for number, run in enumerate(retained, 1):
        others = [one for one in retained if one is not run]
        found[f"retained {number}"] = judged(run, start, others, measure)
    return found


def means(table: Table, task: str) -> dict[str, float]:
    """Mean shortfall over worlds of each ranked method."""
    return {name: fmean(one[name].shortfall for one in table[task].values()) for name in METHODS}


def ranks(values: Iterable[float]) -> list[float]:
    """Ranks of shortfalls, 1 for the least."""
    return [float(one) for one in rankdata(list(values))]


def agreement(first: Iterable[float], second: Iterable[float]) -> float:
    """Kendall's τ-b of two rankings of the methods."""
    return float(kendalltau(list(first), list(second)).statistic)


def repeated(table: Table, task: str, other: str) -> list[float]:
    """τ of each pair of worlds, one of each task, or two of one."""
    first, second = (
        [[runs[name].shortfall for name in METHODS] for runs in table[one].values()] for one in (task, other)
    )
    pairs = combinations(first, 2) if task == other else ((a, b) for a in first for b in second)
    return [agreement(a, b) for a, b in pairs]


def whole(table: Table) -> list[str]:
    """Tasks with a world that counts."""
    return [task for task in TASKS if table.get(task)]


def ranks_table(table: Table) -> str:
    """A Markdown table: mean shortfall and rank of each method in each task."""
    tasks = whole(table)
    heads = [f"{TASKS[task]} (worlds: {len(table[task])})" for task in tasks]
    lines = [f"| setting | {' | '.join(heads)} |", "|" + "---|" * (1 + len(tasks))]
    ranked = {task: dict(zip(METHODS, ranks(means(table, task).values()), strict=True)) for task in tasks}
    for name, title in METHODS.items():
        cells = [f"{means(table, task)[name]:.1f} ({ranked[task][name]:g})" for task in tasks]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement_table(table: Table) -> str:
    """A Markdown table: τ of each task's ranking with the authors', and of pairs of worlds, with its range."""
    lines = ["| task | τ with authors | pairs of worlds: with authors | within the task |", "|---|---|---|---|"]
    for task in whole(table):
        across = "" if task == "authors" else ranged(repeated(table, task, "authors"))
        tau = "" if task == "authors" else signed(with_authors(table, task))
        lines.append(f"| {TASKS[task]} | {tau} | {across} | {ranged(repeated(table, task, task))} |")
    return "\n".join(lines)


def with_authors(table: Table, task: str) -> float:
    """τ of a task's ranking by mean shortfall with the authors'."""
    return agreement(means(table, "authors").values(), means(table, task).values())


def signed(value: float) -> str:
    """A number with its sign and two digits."""
    return f"{value:+.2f}".replace("-", "−")


def ranged(values: Sequence[float]) -> str:
    """Mean, and least to most; empty without values."""
    return f"{signed(fmean(values))} ({signed(min(values))} to {signed(max(values))})" if values else ""


def means_table(table: Table) -> str:
    """A Markdown table: means over worlds of all quantities, by task and recipe."""
    lines = [
        "| task | recipe | shortfall | least to most | memory gap | AUC gap | utility | fluency | forget nll | meets |",
        "|" + "---|" * 10,
    ]
    for task in whole(table):
        for name in next(iter(table[task].values())):
            runs = [one[name] for one in table[task].values() if name in one]
            short = [run.shortfall for run in runs]
            values = [
                f"{fmean(getattr(run, quantity) for run in runs):.{digits}f}".replace("-", "−")
                for quantity, digits in (("memory_gap", 2), ("auc_gap", 2), ("utility", 2), ("fluency", 2),
                                         ("forget_nll", 1))
            ]  # fmt: skip
            met = ", ".join(str(run.meets) for run in runs)
            span = f"{min(short):.1f} to {max(short):.1f}"
            lines.append(f"| {TASKS[task]} | {name} | {fmean(short):.1f} | {span} | {' | '.join(values)} | {met} |")
    return "\n".join(lines)


def regrets(table: Table) -> dict[str, tuple[dict[float, float], int]]:
    """Mean shortfall of *neighbours* by multiple of its learning rate, and number of worlds, of tasks that have all."""
    found = {}
    for task in whole(table):
        worlds = [one for one in table[task].values() if FACTORS.keys() <= one.keys()]
        if worlds:
            cells = {factor: fmean(one[name].shortfall for one in worlds) for name, factor in FACTORS.items()}
            found[task] = cells, len(worlds)
    return found


def regrets_table(table: Table) -> str:
    """A Markdown table: *neighbours* at half, once and twice the learning rate, and its regret."""
    lines = ["| task | worlds | × ½ | × 1 | × 2 | regret |", "|---|---|---|---|---|---|"]
    for task, (cells, n) in regrets(table).items():
        told = " | ".join(f"{value:.1f}" for value in cells.values())
        lines.append(f"| {TASKS[task]} | {n} | {told} | {cells[1.0] - min(cells.values()):.1f} |")
    return "\n".join(lines) if len(lines) > 2 else "These runs had not finished when time was up."


def earlier(tasks: Mapping[str, Any]) -> str:
    """A sentence on the authors' ranking by the measure of the experiments before."""
    authors = {"authors": tasks["authors"]}
    one, other = (means(judge(authors, measure), "authors") for measure in (COMMON, EARLIER))
    told = ", ".join(f"*{name}* {value:.1f}" for name, value in other.items())
    tau = signed(agreement(one.values(), other.values()))
    return f"By the measure of the experiments before, authors have {told}: τ = {tau} with the ranking by this one."


def development_table(found: Mapping[str, Any]) -> str:
    """A Markdown table: shortfall by the earlier measure in the development world, by method and learning rate."""
    runs = {name.partition("/")[2]: run for name, run in found["runs"].items()}
    retained = [run for name, run in runs.items() if name.startswith("judged-")]
    rates = ("2e-4", "4e-4", "8e-4")
    lines = [f"| name | {' | '.join(rates)} |", "|---|---|---|---|"]
    for name in METHODS:
        made = [runs[f"{name}-lr{rate}"] for rate in rates]
        told = [judged(run, run["evaluations"][0], retained, EARLIER).shortfall for run in made]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in told)} |")
    return "\n".join(lines)


def worlds_table(tasks: Mapping[str, Any]) -> str:
    """A Markdown table of the check of each world."""
    lines = ["| task | world | target's probability of forget answers | retained models' | counts |", "|" + "---|" * 5]
    for task, found in tasks.items():
        counted, refused = worlds_of(found["runs"])
        for world, (made, retained) in counted.items():
            knows, (least, most) = check(made, retained)
            lines.append(f"| {TASKS[task]} | {world} | {knows:.3f} | {least:.3f} to {most:.3f} | yes |")
        lines += [f"| {TASKS[task]} | {world} | | | no: {why} |" for world, why in refused.items()]
    return "\n".join(lines)


def left_out(tasks: Mapping[str, Any]) -> str:
    """A sentence on the runs that the protocol names and that did not finish."""
    lacking = [
        f"*{name}* of {TASKS[task]}, {world}"
        for task, found in tasks.items()
        for world in WORLDS[task]
        for name in dict.fromkeys((*METHODS, *FACTORS))
        if f"{world}/{name}" not in found["runs"]
    ]
    return f"Runs that did not finish: {'; '.join(lacking)}." if lacking else "All runs have finished."


def answer(table: Table) -> str:
    """What came out, in two sentences; the second is the same whatever it is, as the protocol says."""
    others = [task for task in whole(table) if task != "authors"]
    taus = ", ".join(f"{signed(with_authors(table, task))} on {TASKS[task]}" for task in others)
    best = {task: min(means(table, task), key=means(table, task).__getitem__) for task in whole(table)}
    first = METHODS[best["authors"]]
    same = [TASKS[task] for task in others if best[task] == best["authors"]]
    n = min(len(table[task]) for task in whole(table))
    return (
        f"Six settings chosen on authors and used untouched elsewhere: Kendall's τ of their ranking with that on "
        f"authors is {taus}; the best on authors ({first}) is the best on {', '.join(same) or 'none of the others'}. "
        f"Whether one setting transfers cannot be told at n = {n} worlds a task."
    )


def page_parts(tasks: Mapping[str, Any]) -> list[str]:
    """All that the page has of the numbers: the answer and its tables."""
    table = judge(tasks)
    tables = ranks_table, agreement_table, regrets_table, means_table
    return [answer(table), *(one(table) for one in tables), earlier(tasks), worlds_table(tasks), left_out(tasks)]


def kept(collected: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables are computed from, in five digits and without texts: each run's first and last evaluation."""
    runs = {}
    for name, run in collected["runs"].items():
        ends = [run["evaluations"][0], run["evaluations"][-1]][-len(run["evaluations"]) :]
        evaluations = [
            {part: shortened(one[key]) for key in one if (part := key.partition("/")[2] or key) in KEPT_METRICS}
            for one in ends
        ]
        rows = {
            step: {
                "forget": [{key: shortened(row[key]) for key in KEPT_ROWS if key in row} for row in found["forget"]],
                "holdout": [shortened(value) for value in found["holdout"]],
            }
            for step in (str(int(one["step"])) for one in ends)
            for found in [next(rows for at, rows in run["rows"].items() if int(at) == int(step))]
        }
        runs[name] = {"evaluations": evaluations, "rows": rows}
    return {"runs": runs, "failed": collected["failed"]}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="of each task, or the one that was kept")
    parser.add_argument("--keep", type=Path, help="file for what the tables are computed from")
    options = parser.parse_args()
    if len(options.files) == 1:
        tasks = read(options.files[0])
    else:
        tasks = {task: kept(read(path)) for task, path in zip(TASKS, options.files, strict=True)}
    print(*page_parts(tasks), sep="\n\n")
    if options.keep is not None:
        write(tasks, options.keep)


if __name__ == "__main__":
    main()
