"""The judge of the hand-over experiment: what the rule chose, the last and the best evaluation beside retained models.

    python benchmarks/hand_over_judge.py FILE.json.gz --keep docs/results/hand-over.json.gz

Prints tables, and keeps what they are computed from. Reads what `hand_over.py collect` wrote, or what was kept. Forget
quality and membership are computed from the rows, the rule is asked again of each evaluation's quantities; definitions
are those of docs/experiments/hand-over.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from sga.evaluation.handover import Account, Part, Tolerances, account
from sga.evaluation.metrics import forget_quality, membership_auc

LEAST_LOG10_P = math.log10(0.05)
MOST_AUC_GAP = 0.15
LEAST_UTILITY = 0.9
LEAST_FLUENCY = 0.8
UNITS = (1.0, 0.15, 0.1, 0.2)
"""What counts as a shortfall of 1 in each condition, in the order of `Judged.short`."""


@dataclass(frozen=True)
class Judged:
    """One evaluation of one run, judged.

    Attributes:
        world: Seed of the authors and of the run.
        recipe: Name of the recipe; ``retained`` for a retained model, against the two others.
        choice: ``rule``, ``last`` or ``oracle``; the number of the model for a retained one.
        epoch: Epoch of the evaluation.
        log10_p: Mean over the retained models of log10 p of forget quality.
        log10_p_low: The lowest of these.
        log10_p_high: The highest of these.
        auc: Membership AUC of the loss.
        auc_gap: The same less the mean of the retained models'.
        utility: model_utility_unseen.
        utility_share: The same as a share of the target's; that of the reserved rows alone where these are asked for.
        reserved_share: Harmonic mean of the three parts on the reserved rows, as a share of the target's.
        fluency: Fluency of the forget answers.
        fluency_share: The same as a share of the retained models' mean.
        degenerate: Share of forget answers that are empty or repeat themselves.
        extraction: Extraction strength of the forget answers.
        rouge: ROUGE-L recall of the forget answers.
        forget_nll: Mean nll of the forget answers, nats per token.
        meets: Conditions that are met, of four.
        reserved_meets: The same with `reserved_share` in the place of `utility_share`.
        shortfall: Sum of how far the conditions are from being met, 0 where all four are.
        score: The rule's score of the evaluation.
        says: The rule's first sentence about it.
    """

    world: int
    recipe: str
    choice: str
    epoch: float
    log10_p: float
    log10_p_low: float
    log10_p_high: float
    auc: float
    auc_gap: float
    utility: float
    utility_share: float
    reserved_share: float
    fluency: float
    fluency_share: float
    degenerate: float
    extraction: float
    rouge: float
    forget_nll: float
    meets: int
    reserved_meets: int
    shortfall: float
    score: float
    says: str


@dataclass(frozen=True)
class Rule:
    """How the rule is asked again.

    Attributes:
        tolerances: Its tolerances.
        part: Rows that it chooses on.
    """

    tolerances: Tolerances = Tolerances()  # noqa: RUF009  (frozen)
    part: Part = "all"

    def account(self, metrics: Mapping[str, float], start: Mapping[str, float]) -> Account:
        """What it says of an evaluation."""
        return account(metrics, start, self.tolerances, self.part)

    def chosen(self, evaluations: Sequence[Mapping[str, float]]) -> int:
        """Index of the evaluation that it chooses: the first of those with the least ranking."""
        rankings = [self.account(one, evaluations[0]).ranking for one in evaluations]
        return rankings.index(min(rankings))


class World:
    """The runs of one seed.

    Args:
        world: The seed.
        runs: Collected runs by name within the world.
        rule: How the rule is asked.
        reserved: True to measure utility on the reserved rows alone, where a target's of nine parts can be 0.
    """

    def __init__(self, world: int, runs: Mapping[str, Any], rule: Rule, reserved: bool = False) -> None:
        self.world, self.rule, self.reserved = world, rule, reserved
        self.retained = {name: run for name, run in runs.items() if name.startswith("judged-")}
        self.runs = {
            name: run for name, run in runs.items() if name not in self.retained and len(run["evaluations"]) > 1
        }
        self.start = next(iter(self.runs.values()))["evaluations"][0]

    def judged(self, recipe: str, choice: str, run: Any, index: int, others: Sequence[Any]) -> Judged:
        """One evaluation against retained models."""
        metrics = run["evaluations"][index]
        rows, references = rows_of(run, index), [rows_of(one, 0) for one in others]
        ratios = column(rows, "log_truth_ratio")
        logs = [forget_quality(ratios, column(one, "log_truth_ratio")).log10_p for one in references]
        auc, usual = auc_of(rows), fmean(auc_of(one) for one in references)
        fluency, fluent = fmean(column(rows, "fluency")), fmean(fmean(column(one, "fluency")) for one in references)
        utility, reserved = metrics["authors/model_utility_unseen"], reserved_utility(metrics)
        reserved_share = reserved / reserved_utility(self.start)
        share = reserved_share if self.reserved else utility / self.start["authors/model_utility_unseen"]
        excesses = [
            LEAST_LOG10_P - fmean(logs),
            abs(auc - usual) - MOST_AUC_GAP,
            LEAST_UTILITY - share,
            LEAST_FLUENCY - fluency / fluent,
        ]
        met = [excess <= 0 for excess in excesses]
        said = self.rule.account(metrics, self.start)
        return Judged(
            self.world, recipe, choice, metrics["epoch"], fmean(logs), min(logs), max(logs), auc, auc - usual, utility,
            share, reserved_share, fluency, fluency / fluent, metrics["authors/forget/degenerate"],
            metrics["authors/forget/extraction_strength"], metrics["authors/forget/rouge_l_recall"],
            fmean(column(rows, "avg_nll")), sum(met), sum(met) - met[2] + (reserved_share >= LEAST_UTILITY),
            sum(max(0.0, excess) / unit for excess, unit in zip(excesses, UNITS, strict=True)),
            said.score, said.sentence,
        )  # fmt: skip

    def all(self) -> list[Judged]:
        """Every run's three choices, and the retained models against each other."""
        found = []
        for recipe, run in self.runs.items():
            every = [self.judged(recipe, "", run, i, [*self.retained.values()]) for i in range(len(run["evaluations"]))]
            best = min(range(len(every)), key=lambda i: every[i].shortfall)
            choices = {"rule": self.rule.chosen(run["evaluations"]), "last": len(every) - 1, "oracle": best}
            found += [Judged(**{**asdict(every[i]), "choice": choice}) for choice, i in choices.items()]
        for name, run in self.retained.items():
            others = [one for other, one in self.retained.items() if other != name]
            found.append(self.judged("retained", name.removeprefix("judged-"), run, 0, others))
        return found


KEPT_ROWS = ("avg_nll", "log_truth_ratio", "fluency")
KEPT_METRICS = (
    *("step", "epoch", "authors/model_utility_unseen", "authors/forget/degenerate", "authors/forget/rouge_l_recall"),
    *("authors/forget/extraction_strength", "authors/retain_unseen/probability"),
    *("authors/retain_unseen/rouge_l_recall", "authors/retain_unseen/truth_ratio"),
)

KEPT_GROUPS = ("handover/all/", "handover/unseen/")


def kept(collected: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables are computed from, in five digits and without texts."""
    runs = {}
    for name, run in collected["runs"].items():
        evaluations = [
            {key: shortened(value) for key, value in one.items() if key in KEPT_METRICS or key.startswith(KEPT_GROUPS)}
            for one in run["evaluations"]
        ]
        rows = {
            step: {
                "forget": [{key: shortened(row[key]) for key in KEPT_ROWS} for row in found["forget"]],
                "holdout": [shortened(value) for value in found["holdout"]],
            }
            for step, found in run["rows"].items()
        }
        runs[name] = {"evaluations": evaluations, "rows": rows}
    return {"runs": runs, "failed": collected["failed"]}


def shortened(value: float) -> float:
    """The number in five digits."""
    return float(f"{value:.5g}")


def rows_of(run: Any, index: int) -> Any:
    """Rows of an evaluation, of the forget and the holdout set."""
    return run["rows"][str(int(run["evaluations"][index]["step"]))]


def column(rows: Any, name: str) -> list[float]:
    """One number of each forget row."""
    return [float(row[name]) for row in rows["forget"]]


def auc_of(rows: Any) -> float:
    """Membership AUC of the loss, 1 = forget rows recognised perfectly."""
    return membership_auc(column(rows, "avg_nll"), rows["holdout"])


def reserved_utility(metrics: Mapping[str, float]) -> float:
    """Harmonic mean of probability, ROUGE-L and truth ratio on the reserved rows alone."""
    return harmonic_mean(
        [metrics[f"authors/retain_unseen/{part}"] for part in ("probability", "rouge_l_recall", "truth_ratio")]
    )


def read(path: Path) -> dict[str, Any]:
    """What was collected."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def write(found: Mapping[str, Any], path: Path) -> None:
    """Writes what the tables are computed from; the same content gives the same bytes."""
    path.write_bytes(gzip.compress(json.dumps(found, separators=(",", ":")).encode(), mtime=0))


def judge(collected: Mapping[str, Any], rule: Rule = Rule(), reserved: bool = False) -> list[Judged]:
    """All that was collected, judged, by world; a world in which a model or a run is lacking is left out whole.

    Args:
        collected: What was collected.
        rule: How the rule is asked.
        reserved: True to measure utility on the reserved rows alone.
    """
    worlds: dict[int, dict[str, Any]] = {}
    for name, run in collected["runs"].items():
        world, recipe = name.split("/")
        worlds.setdefault(int(world), {})[recipe] = run
    names = {name for runs in worlds.values() for name in runs}
    found = []
    for world, runs in sorted(worlds.items()):
        if names <= runs.keys():
            found += World(world, runs, rule, reserved).all()
    return found


def table(rows: Sequence[Judged]) -> str:
    """A Markdown table, a line for each recipe and choice: how many seeds meet what, and means."""
    lines = [
        "| recipe | choice | meet all four | forgotten | not recognised | useful | speaks | log10 p | AUC gap | "
        "utility | fluency | extraction | degenerate | shortfall | epochs |",
        "|" + "---|" * 15,
    ]
    groups: dict[tuple[str, str], list[Judged]] = {}
    for row in rows:
        groups.setdefault((row.recipe, "each" if row.recipe == "retained" else row.choice), []).append(row)
    for (recipe, choice), found in groups.items():
        n = len(found)
        counts = [
            sum(row.meets == 4 for row in found),
            sum(row.log10_p >= LEAST_LOG10_P for row in found),
            sum(abs(row.auc_gap) <= MOST_AUC_GAP for row in found),
            sum(row.utility_share >= LEAST_UTILITY for row in found),
            sum(row.fluency_share >= LEAST_FLUENCY for row in found),
        ]
        means = [
            f"{fmean(getattr(row, name) for row in found):.{digits}f}"
            for name, digits in (("log10_p", 1), ("auc_gap", 2), ("utility_share", 2), ("fluency_share", 2),
                                 ("extraction", 2), ("degenerate", 2), ("shortfall", 1))
        ]  # fmt: skip
        epochs = ", ".join(f"{row.epoch:g}" for row in found)
        cells = [recipe, choice, *(f"{count} of {n}" for count in counts), *means, epochs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds(rows: Sequence[Judged]) -> str:
    """A Markdown table, a line for each run and choice of a rule or the last epoch."""
    lines = [
        "| seed | recipe | choice | epoch | meets | log10 p (range) | AUC gap | utility | of reserved rows | fluency | "
        "shortfall | the rule says |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        if row.choice != "oracle":
            numbers = (
                f"{row.log10_p:.1f} ({row.log10_p_low:.1f} to {row.log10_p_high:.1f})",
                *(f"{value:.2f}" for value in (row.auc_gap, row.utility_share, row.reserved_share, row.fluency_share)),
                f"{row.shortfall:.1f}",
            )
            cells = [row.world, row.recipe, row.choice, f"{row.epoch:g}", row.meets, *numbers, row.says]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--keep", type=Path, help="file that is made of what the tables are computed from")
    parser.add_argument("--reserved", action="store_true", help="utility of the reserved rows alone")
    options = parser.parse_args()
    found = kept(read(options.file))
    rows = judge(found, reserved=options.reserved)
    print(table(rows), seeds(rows), sep="\n\n")
    if options.keep is not None:
        write(found, options.keep)


if __name__ == "__main__":
    main()
