"""Sentences of the pages on rates and normals, with their numbers computed from the stored runs; no model is loaded.

    python benchmarks/result_statements.py    # prints them, page by page, and what of a page's numbers is in none

A sentence whose claim does not hold (a rank, a sign, a p-value that is not below 0.05) is not made: it raises an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import dose_and_weight_judge as dosing
import group_size_and_dose_judge as sizing
import rates_and_normals_judge as judging
import transfer_judge as moving
from result_tables import DOCS, RESULTS, Point, areas, numbers, of, pairs_that_stand, reported, retained_models, stored
from scipy import stats

from sga.evaluation.paired import holm
from sga.files import read_yaml
from sga.rates.policies import MarginWeight, NormRatio

ROOT = DOCS.parent
PLANS = ROOT / "benchmarks" / "rates-and-normals"


def joined(values: Sequence[float], digits: int = 2) -> str:
    """Values in a sentence: "0.05, 0.08 and 0.06"."""
    *first, last = numbers(values, digits).split(", ")
    return f"{', '.join(first)} and {last}" if first else last


def claimed(holds: bool, what: str) -> None:
    """Raises an error if what a sentence claims does not hold."""
    if not holds:
        raise ValueError(f"the stored runs do not show: {what}")


def one_of(runs: Mapping[str, Sequence[Point]], part: str) -> list[float]:
    """Hypervolumes of the only configuration whose name has this part."""
    [found] = [some for name, some in runs.items() if part in name]
    return areas(found)


def ahead(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Differences seed by seed."""
    return [a - b for a, b in zip(one, other, strict=True)]


def run_count(content: Mapping[str, Any]) -> int:
    """Number of runs of a sweep, those that learning rates were chosen by included, those added later not."""
    added = tuple(one["configuration"] for one in content.get("added", ()))
    return sum(len(row["runs"]) for row in content["rows"] if not row["configuration"].startswith(added or "nothing"))


def seeds_of(content: Mapping[str, Any]) -> tuple[str, str]:
    """The seed that learning rates were chosen on, and those that are reported, in words."""
    [chosen] = {seed for row in content["rows"] if row["stage"] == "choose" for seed in row["runs"]}
    seeds = sorted({seed for row in content["rows"] if row["stage"] == "final" for seed in row["runs"]})
    return f"seed {chosen}", f"seeds {seeds[0]} to {seeds[-1]}"


# ---- docs/results.md ------------------------------------------------------------------------------------------------


def normals() -> list[str]:
    """The section on choices of normal samples."""
    content, settings = stored("normals"), read_yaml(ROOT / "configs" / "sweeps" / "normals.yaml")["settings"]
    runs, (chosen, kept) = reported(content), seeds_of(content)
    rate = settings["model.loss.smoothing_rate"]["init_args"]["rate"]
    size = read_yaml(ROOT / "configs" / "benchmarks" / "authors.yaml")["data"]["group_size"]
    mini = ahead(one_of(runs, "RandomNormals"), one_of(runs, "SentenceEmbeddings"))
    claimed(min(mini) > 0, "random normals ahead on every seed")
    pairs, _, left = pairs_that_stand(content)
    claimed(
        not [pair for pair in left if "Random" in " ".join(pair) and "Sentence" in " ".join(pair)],
        "random and MiniLM not told apart",
    )
    by_area = sorted(runs.values(), key=lambda some: fmean(areas(some)))
    means = [[fmean(run[f"normals/{part}"] for run in some) for some in by_area] for part in
             ("gradient_cosine", "paper_rate", "similarity")]  # fmt: skip
    bad = sum(cosine <= 0 for cosine in means[0])
    claimed(max(means[0][:bad]) <= 0 and max(map(abs, means[1][:bad])) < 0.005, "a cosine of 0 marks the bad ones")
    claimed(all(one != sorted(one) for one in (means[0], means[2])), "neither similarity nor cosine orders outcomes")
    return [
        f"{run_count(content)} runs,",
        f"commit `{content['commit']}`; built-in authors, r = {numbers([rate], 0)}, K = {size}; learning rates chosen "
        f"on {chosen}, reported are {kept}",
        "have a gradient that has nothing to do with the forget samples', swamp it (r* near 0), and are far behind",
        f"random ones are ahead of MiniLM's nearest on all three seeds (by {joined(mini)}, which does not stand when "
        f"corrected for the {pairs} pairs)",
        "a cosine of 0 or below marks the bad ones",
    ]


def rates() -> list[str]:
    """The section on rates and rules."""
    both = [stored("rates"), stored("rules")]
    runs, (chosen, kept) = {**reported(both[0]), **reported(both[1])}, seeds_of(both[0])
    claimed(seeds_of(both[1]) == (chosen, kept), "the same seeds in both sweeps")
    means = {name: fmean(areas(some)) for name, some in runs.items()}
    rows = min(len(stored("retained")["models"][seed]["forget_avg_nll"]) for seed in stored("retained")["models"])
    size = read_yaml(ROOT / "configs" / "benchmarks" / "authors.yaml")["data"]["group_size"]
    [added] = [one["commit"].split(",")[0] for one in both[0]["added"]]
    found = [
        f"Two sweeps on the built-in authors ({rows} forget samples, K = {size}); learning rates chosen on {chosen}, "
        f"means over {kept}; commit `{both[0]['commit']}`, {run_count(both[0])} and {run_count(both[1])} runs,",
        f"(gradient difference on random retain samples: `{added}`)",
    ]
    # Over-unlearned
    high = [name for name, mean in means.items() if round(mean, 2) >= 0.5]
    ends = {name: of([run["evaluations"][-1] for run in runs[name]], "mia/min_k") for name in high}
    aucs = sorted((auc, name) for name, values in ends.items() for auc in values)
    claimed("normal_weight=4," in aucs[-1][1], "the exception is λ = 4")
    usual = of(retained_models(), "mia/min_k")
    found.append(
        f"everything with a mean of 0.50 or more ends with a membership AUC of {aucs[-2][0]:.2f} or less on every seed "
        f"but one (λ = 4, {aucs[-1][0]:.2f}), where retained models have {min(usual):.2f} to {max(usual):.2f}"
    )
    # The sign rule
    fixed = {float(rate[1]): name for name in runs if (rate := re.search(r"smoothing_rate=(-?[\d.]+), lr", name))
             and name.startswith("SmoothedGradientAscent")}  # fmt: skip
    ascent = areas(runs[fixed[0.0]])
    lower = {rate: name for rate, name in fixed.items() if rate < 0}
    claimed(all(means[name] > means[fixed[0.0]] for name in lower.values()), "every r < 0 ahead of r = 0")
    p = [float(stats.ttest_rel(areas(runs[name]), ascent).pvalue) for name in lower.values()]
    claimed(min(p) >= 0.05, "no uncorrected p below 0.05")
    mild = [means[lower[rate]] - means[fixed[0.0]] for rate in (-0.2, -0.4, -0.8)]
    claimed(min(means[lower[rate]] for rate in (-2, -4, -8)) > max(mild) + means[fixed[0.0]], "−2 and below help")
    # rounded down to the second digit, as "and more" has it
    found += [
        "Not shown at 95 %: every r < 0 is better than r = 0 in the mean, and no paired t-test against r = 0 has "
        f"p < 0.05, corrected ({int(min(holm(p)) * 100) / 100:.2f} and more) or not",
        f"Rates of −0.2 to −0.8 gain {min(mild):.2f} to {max(mild):.2f} on gradient ascent; what helps lies at −2 and "
        "below, where λ comes near 1",
    ]
    # The paper's rule, and the margin rule
    best = max(fixed, key=lambda rate: means[fixed[rate]])
    claimed(best == min(fixed), "the best fixed rate is the lowest")
    [paper] = [name for name in runs if "PaperRate" in name]
    claimed(means[paper] < means[fixed[best]] - 0.2, "the paper's rule is far behind")
    margin = {m: next(name for name in runs if f"MarginWeight margin={m})" in name) for m in ("0", "1", "2")}
    pattern = re.compile(r"GradientDifference normal_weight=([\d.]+),")
    weights = {float(rate[1]): name for name in runs if (rate := pattern.match(name))}
    claimed(max(means, key=lambda name: means[name]) == margin["1"], "m = 1 has the highest mean")
    swept = max(weights, key=lambda weight: means[weights[weight]])
    claimed(round(means[margin["0"]], 2) == round(means[weights[swept]], 2) and swept == 2, "m = 0 as the best λ")
    claimed(means[margin["2"]] < means[weights[1.0]], "m = 2 is too much")
    lead = ahead(areas(runs[margin["1"]]), areas(runs[weights[swept]]))
    found += [
        f"the best fixed rate is the grid's lowest, {numbers([best], 0)}, and following the rule ended far behind it",
        f"`margin_lambda` with m = 1 has the highest mean of all, {means[margin['1']]:.2f}, and with m = 0 it equals "
        "the best swept λ",
        f"m = 1 is ahead of λ = 2 by {joined(lead)}",
        "and m = 2 is too much",
    ]
    claimed(means[fixed[best]] < min(means[weights[weight]] for weight in (1.0, 1.5, 2.0)), "no fixed r reaches these")
    others = {name: areas(some) for name, some in runs.items() if name != weights[2.0]}
    tests = {name: float(stats.ttest_rel(some, areas(runs[weights[2.0]])).pvalue) for name, some in others.items()}
    better = [p for name, p in tests.items() if means[name] > means[weights[2.0]]]
    claimed(min(better) > 0.05, "nothing ahead of λ = 2 by more than noise")
    by_seed = [fmean(values) for values in zip(*(areas(some) for some in runs.values()), strict=True)]
    claimed(by_seed[0] == max(by_seed) and by_seed[1] == min(by_seed), "seed 1 is easy and seed 2 is hard")
    return [
        *found,
        "No fixed r reaches the mean of λ = 1, 1.5 or 2, and nothing is ahead of λ = 2 by more than noise",
        "Seed 1 is easy and seed 2 hard for all methods alike",
    ]


def overview() -> list[str]:
    """Rows of the first table that rates and normals are told in."""
    rows = judging.judge(judging.read(RESULTS / "rates-and-normals.json.gz"))
    told = {(one.first, one.second): (one, p) for _, one, p in judging.primary(rows)}
    for first, second in (("alternatives", "neighbours"), ("margin", "mean"), ("margin", "shuffled")):
        one, p = told[first, second]
        claimed(
            p is not None and p < judging.LEVEL and one.better == len(one.differences) == 12, f"{first} ahead in 12"
        )
    one, p = told["pairs", "neighbours"]
    claimed(p is not None and p < judging.LEVEL and one.mean > 0, "K = 2 loses")
    rates()  # whose claims are checked
    return [
        "| the lowest of the grid, −8; no rule is shown to beat a weight found by a sweep |",
        "| by a protocol written before: alternatives beat neighbours on all of twelve worlds, and a rule its own λ "
        "held fixed or shuffled; K = 2 loses to 5; one small base model |",
    ]


def side(rows: Sequence[Any], first: str, second: str, *quantities: str, choice: str = "last") -> list[int]:
    """1 or −1 for each quantity whose contrast has its whole interval on that side of 0, else 0."""
    ones = [judging.contrast(rows, first, second, quantity, choice) for quantity in quantities]
    return [0 if one is None or one.low <= 0 <= one.high else 1 if one.low > 0 else -1 for one in ones]


# ---- docs/results/rates-and-normals.md ------------------------------------------------------------------------------


def rates_and_normals() -> list[str]:
    """The page on kinds of normals, moving rates and group size."""
    plan, collected = read_yaml(PLANS / "reported.yaml"), judging.read(RESULTS / "rates-and-normals.json.gz")
    rows = judging.judge(collected)

    pair = ("alternatives", "neighbours")
    claimed(side(rows, *pair, "log10 p", "distance of AUC", "utility", "fluency") == [1, 1, 0, 1], "as told")
    claimed(side(rows, *pair, "shortfall", choice="rule") == [0], "alternatives at the chosen evaluation: not told")
    gap = fmean(row.auc_gap for row in rows if row.recipe == "alternatives" and row.choice == "last")
    claimed(gap < 0, "over-unlearned")
    pair = ("pairs", "neighbours")
    claimed(side(rows, *pair, "log10 p", "distance of AUC", "utility", "fluency") == [-1, 1, 1, 1], "K = 2")
    met = sum(row.meets == 4 for row in rows)
    claimed(met == 0 and {row.choice for row in rows} == {"last", "rule"}, "no run meets all")
    by_name = plan["recipes"]
    lr = {
        name: f"{by_name[name]['settings']['model.optimizer.lr'] * 1e4:g}e-4" for name in ("neighbours", "alternatives")
    }
    of_margin = [values for name, values in judging.rates_of(collected).items() if name.endswith("/margin") and values]
    steps = len(of_margin[0]) // plan["unlearning"]["trainer.max_epochs"]
    epochs = [fmean(fmean(one[at : at + steps]) for one in of_margin) for at in range(0, len(of_margin[0]), steps)]
    highest = max(max(one) for one in of_margin)
    claimed(highest == MarginWeight().highest, "the clamp holds the rule at times")
    sizes = {one["settings"].get("data.group_size", plan["unlearning"]["data.group_size"]) for one in by_name.values()}
    weights = {w for one in by_name.values() if not isinstance(w := one["settings"]["model.loss.normal_weight"], dict)}
    left = read_yaml(PLANS / "exploratory.yaml")["stages"][0]["worlds"]
    [weight], (least, most) = weights, sorted(sizes)
    return [
        f"Each kind had a learning rate of its own, chosen on other worlds: {lr['neighbours']} for neighbours, "
        f"{lr['alternatives']} for alternatives.",
        f"Its λ is {epochs[0]:.1f} in the first epoch and {min(epochs[2:]):.1f} to {max(epochs[2:]):.1f} from the "
        f"third on, where its clamp of {highest:g} holds it at times",
        f"At its chosen learning rate, which is that of K = {most}, K = {least} forgets less and keeps more: forget "
        "quality and AUC are worse, utility and fluency better, and by the sum of shortfalls it loses",
        f"whether K = {least} at a learning rate between the tried ones catches up is not told",
        f"Worlds {left[0]} to {left[-1]}, each setting at one learning rate of development",
        f"K other than {least} and {most}, and at equal tokens (now [measured]). One base model, one size, one "
        f"optimiser, one λ ({weight:g}) for what is no rule, {len(of_margin[0])} optimiser steps",
        "it is 0 where a run forgets, is not recognised, stays useful and speaks as the three retained models of its "
        "world do",
        "Intervals are 95 % bootstrap intervals of the mean over worlds",
    ]


def last_means(rows: Sequence[Any], quantity: str) -> dict[str, float]:
    """Mean of a quantity over worlds at the last evaluation, by recipe."""
    last: dict[str, list[float]] = {}
    for row in rows:
        if row.choice == "last":
            last.setdefault(row.recipe, []).append(getattr(row, quantity))
    return {recipe: fmean(values) for recipe, values in last.items()}


# ---- docs/results/dose-and-weight.md --------------------------------------------------------------------------------


def dose_and_weight() -> list[str]:
    """The page on worse normals and on λ of two sources."""
    base, plan = judging.read(dosing.BASE), read_yaml(PLANS / "reported.yaml")["recipes"]
    collected, left = dosing.merged(base, judging.read(RESULTS / "dose-and-weight.json.gz"))
    rows = dosing.judged(collected)
    nll = last_means(rows, "forget_nll")
    doses = [nll[recipe] for recipe in dosing.PARTS["dose"]]
    claimed(
        all(one.low > 0 for recipe in dosing.PARTS["dose"]
            if (one := judging.contrast(rows, recipe, "neighbours", "utility"))), "utility is higher for it"
    )  # fmt: skip
    claimed(max(doses) < nll["neighbours"] / 10, "what it costs is the forgetting, alike in all four")
    weights = {plan[source]["settings"]["model.loss.normal_weight"] for source in dosing.SOURCES}
    [weight] = weights
    return [
        f"and so are the runs *neighbours* and *alternatives* at λ = {weight:g}; source of commit `{SOURCE}`",
        f"after as many steps forget nll is {min(doses):.1f} to {max(doses):.1f} where it is {nll['neighbours']:.1f} "
        "with whole neighbours, and utility is higher for it",
        dosing.left_out(left, len({row.world for row in rows})),
        "Intervals are 95 % bootstrap intervals of the mean over worlds",
    ]


# ---- docs/results/group-size-and-dose.md ----------------------------------------------------------------------------


def signed(value: float) -> str:
    """A value with its sign and one digit: "−0.3"."""
    return f"{value:+.1f}".replace("-", "−")


Told = Mapping[tuple[str, str], tuple[judging.Contrast, float | None]]
"""Primary contrasts and their corrected p-values, by names of the two recipes."""


def is_told(told: Told, first: str, second: str) -> bool:
    """True if a primary contrast has a corrected p-value below the level."""
    p_value = told[first, second][1]
    return p_value is not None and p_value < judging.LEVEL


def group_sizes(rows: Sequence[Any], told: Told) -> list[str]:
    """What the page on group size and dose says of K."""
    reported, plan = read_yaml(PLANS / "reported.yaml"), read_yaml(PLANS / "group-size-and-dose.yaml")["recipes"]
    few, many = (plan[name]["settings"] for name in ("k2-tokens", "k8-tokens"))
    k, low, high = reported["unlearning"]["data.group_size"], few["data.group_size"], many["data.group_size"]
    forget_rows = 20 * reported["common"]["data.source.init_args"]["forget_authors"]
    passes = few["trainer.max_epochs"], many["trainer.max_steps"] * many["data.batch_size"] / forget_rows
    claimed(not any(is_told(told, recipe, "neighbours") for recipe in sizing.PARTS["size"]), "no K is told from 5")
    kinds = ("log10 p", "utility", "fluency")
    claimed(side(rows, "k2-tokens", "neighbours", *kinds) == [1, -1, -1], "K = 2 forgets more and keeps less")
    claimed(side(rows, "k8-tokens", "neighbours", *kinds) == [-1, 1, 1], "K = 8 forgets less and keeps more")
    equal, more = told["k8-passes", "neighbours"][0], judging.contrast(rows, "k2-tokens", "pairs", "shortfall")
    claimed(more is not None and more.high < 0, "K = 2 gains by more tokens")
    assert more is not None
    nll = last_means(rows, "forget_nll")
    return [
        f"At equal tokens neither K = {low} nor K = {high} is told from K = {k} by the sum of shortfalls",
        f"K = {low} reads each forget row {passes[0]} times, forgets more (forget nll {nll['k2-tokens']:.1f}, where "
        f"K = {k} has {nll['neighbours']:.1f}) and loses utility and fluency; K = {high} reads it {passes[1]:g} times, "
        f"forgets less ({nll['k8-tokens']:.1f}) and keeps more",
        f"At equal forget passes K = {high} ends where K = {k} does ({nll['k8-passes']:.1f}; its shortfall lies within "
        f"{signed(equal.low)} and {signed(equal.high)} of that of K = {k}), for {high / k:.1f} times the sequences",
        f"The loss of *pairs*, K = {low} at equal forget passes",
        f"*k2-tokens* less *pairs* is {signed(more.mean)}, 95 % {signed(more.low)} to {signed(more.high)}",
    ]


def worse_normals(rows: Sequence[Any], told: Told, rates: Mapping[str, Sequence[float] | None]) -> list[str]:
    """What the page on group size and dose says of worse normals under the rule."""
    nll, utility = (last_means(rows, quantity) for quantity in ("forget_nll", "utility_share"))
    doses, whole = list(sizing.WORSE), "neighbours-norm"
    for dose in doses:
        rule = f"{dose}-norm"
        nearer = abs(nll[rule] - nll[whole]) < abs(nll[rule] - nll[dose])
        claimed(
            is_told(told, rule, dose) and told[rule, dose][0].mean < 0 and nearer, "the rule restores the forgetting"
        )
    claimed([is_told(told, f"{dose}-norm", whole) for dose in doses] == [True, False], "one cost is told, one is not")
    claimed(side(rows, "off-topic-50-norm", whole, "utility") == [-1], "half off-topic costs utility")

    def by_epoch(recipe: str, steps: int = 5) -> list[float]:
        runs = [values for name, values in rates.items() if name.endswith(f"/{recipe}") and values]
        return [fmean(fmean(one[at : at + steps]) for one in runs) for at in range(0, len(runs[0]), steps)]

    good, ruled = by_epoch(whole), [by_epoch(f"{dose}-norm") for dose in doses]
    fixed, clamp = [fmean(by_epoch(f"{dose}-mean")) for dose in doses], NormRatio().highest
    claimed(min(good[2:]) > clamp - 0.15 > good[1], "held by its clamp from the third epoch on")
    claimed(all(one == sorted(one) for one in ruled), "starts low and rises")
    return [
        f"forget nll is {joined([nll[f'{dose}-norm'] for dose in doses], 1)}, where whole neighbours under the same "
        f"rule have {nll[whole]:.1f} and the same doses at λ = 2 have {joined([nll[dose] for dose in doses], 1)}",
        f"A quarter of the words replaced still costs a shortfall of {told[f'{doses[0]}-norm', whole][0].mean:.1f}; "
        f"half of the normals off-topic costs utility, {utility['off-topic-50-norm']:.2f} of the target's where whole "
        f"neighbours keep {utility[whole]:.2f}, and its sum is not told",
        f"its λ, the ratio of the two gradients' lengths, is {max(one[0] for one in ruled):.1f} or less in the first "
        f"epoch, and rises to {joined([one[-1] for one in ruled], 1)} by the last; with whole neighbours it begins at "
        f"{good[0]:.1f} and is held by its clamp of {clamp:g} from the third epoch on",
        f"*Held fixed at its mean*, {joined(fixed, 1)}, it does nothing: forget nll is "
        f"{joined([nll[f'{dose}-mean'] for dose in doses], 1)}",
    ]


def small_weights(found: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """What the page on group size and dose says of small fixed weights."""
    rows = sizing.small_weights(found, base, judging.read(sizing.EXPLORATORY))
    claimed(len({row.world for row in rows}) == 6, "six worlds")
    nll, utility = (last_means(rows, quantity) for quantity in ("forget_nll", "utility_share"))
    kept = {
        weight: joined([utility[f"{dose}-{weight}"] for dose in sizing.WORSE]) for weight in ("0.5", "0.25", "norm")
    }
    claimed(min(nll[f"{dose}-{weight}"] for dose in sizing.WORSE for weight in ("0.5", "0.25")) > 3, "it forgets")
    return [
        f"λ = 0.5 ends at a utility of {kept['0.5']}, and λ = 0.25 at {kept['0.25']}, where the rule keeps "
        f"{kept['norm']}",
        "on worlds 11 to 16, named",
        "same worlds at λ = 2 and",
    ]


def group_size_and_dose() -> list[str]:
    """The page on group size at equal tokens and on worse normals under a rule."""
    base, found = sizing.base_runs(), judging.read(RESULTS / "group-size-and-dose.json.gz")
    collected, left = dosing.merged(base, found, sizing.PARTS)
    rows = sizing.judged(collected)
    told = {(one.first, one.second): (one, p) for _, one, p in judging.primary(rows, sizing.QUESTIONS)}
    claimed(not any(row.meets == 4 for row in rows), "no run meets all")
    return [
        f"*corrupted-25* and *off-topic-50* are those of [dose-and-weight.md], at λ = 2; source of commit `{SOURCE}`",
        *group_sizes(rows, told),
        *worse_normals(rows, told, judging.rates_of(found)),
        *small_weights(found, base),
        dosing.left_out(left, len({row.world for row in rows})),
        "Intervals are 95 % bootstrap intervals of the mean over worlds",
    ]


# ---- docs/results/transfer.md ---------------------------------------------------------------------------------------


def transfer() -> list[str]:
    """The page on settings chosen on authors on other tasks."""
    tasks = moving.read(RESULTS / "transfer.json.gz")
    return [
        moving.answer(moving.judge(tasks)),
        moving.earlier(tasks),
        moving.left_out(tasks),
        f"commit `{SOURCE}`",
        "and in brackets the rank, 1 for",
    ]


SOURCE = "aa359a5"
"""Commit of the package's source in all runs of the worlds."""
RECORDED = (
    "30 minutes on 2 CPU cores",
    "two a minute on 2 free cores",
    "Its rate, in logs that were not kept, lay between −0.2 and −1.7 (median −1.3, λ = 0.5)",
    "log10 p",
)
"""Numbers that no stored run has: times on the machine, and what was read from logs; and a quantity's name."""

SECTIONS: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
    ("results.md", "## Normal samples", normals),
    ("results.md", "## Rates and rules", rates),
    ("results.md", "## Alternatives, moving rates, group size", lambda: ["0 is best"]),
    ("results/rates-and-normals.md", "# What sets the rate, and which normals: what came out", rates_and_normals),
    (
        "results/dose-and-weight.md",
        "# How good normal samples must be, and whether their source moves the best λ: what came out",
        dose_and_weight,
    ),
    (
        "results/group-size-and-dose.md",
        "# Group size at equal tokens, and worse normals under a normalised weight: what came out",
        group_size_and_dose,
    ),
    ("results/transfer.md", "# Does a setting chosen on authors transfer to other tasks? What came out", transfer),
)
"""Page below docs/, heading of the section, and its sentences with numbers."""


def prose(page: str, heading: str) -> str:
    """Text of a section without tables, code blocks, headings and the targets of links, in one line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    begin = text.index(f"{heading}\n") + len(heading)
    level = heading.partition(" ")[0]
    end = re.search(rf"^{level} ", text[begin:], re.MULTILINE)
    text = text[begin : begin + end.start()] if end else text[begin:]
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#+ |!\[).*$", "", text, flags=re.MULTILINE)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def left_over(text: str, sentences: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sentences that a text lacks, and what surrounds each of its digits that is in none of them."""
    lacking = [one for one in sentences if one not in text]
    for one in sorted((*sentences, *RECORDED), key=len, reverse=True):
        text = text.replace(one, "…")
    return lacking, [text[max(0, one.start() - 30) : one.end() + 30] for one in re.finditer(r"\d+", text)]


def main() -> None:
    """Prints sentences, and what is amiss."""
    for page, heading, made in SECTIONS:
        lacking, left = left_over(prose(page, heading), sentences := made())
        print(f"{Path(page).name}, {heading}", *sentences, "", sep="\n")
        print(*(f"LACKING: {one}" for one in lacking), *(f"IN NONE: {one}" for one in left), sep="\n")


if __name__ == "__main__":
    main()
