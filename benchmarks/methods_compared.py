"""The corrected comparison of methods, from the stored evaluations of the sweep over methods; no model is loaded.

    python benchmarks/methods_compared.py    # writes docs/results/methods-compared.md from docs/results/methods.json.gz

Single values of the three seeds, no intervals: Student's t over three seeds gives ends outside what a metric can be.
"""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from sga.evaluation.metrics import frontier_area
from sga.evaluation.paired import holm

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
NAME = "authors"
NEAR = 0.1
"""Distance of a membership AUC from the reference's that is called neither under- nor over-unlearned."""

Point = Mapping[str, Any]


def chosen_without_reference(evaluations: Sequence[Point]) -> Point:
    """The first evaluation after the start at which the loss tells forget from holdout rows no longer (AUC <= 1/2).

    The last one where there is none. It reads no retrained model: holdout rows are enough.
    """
    later = [point for point in evaluations if point["step"] > 0]
    return next((point for point in later if point[f"{NAME}/mia/loss"] <= 0.5), later[-1])


def side(auc: float, reference: float) -> str:
    """On which side of the retrained model's value a membership AUC lies."""
    if abs(auc - reference) <= NEAR:
        return "near"
    return "over" if auc < reference else "under"


def sides(points: Sequence[Point]) -> str:
    """`side` of Min-K % of each seed, once where all agree."""
    found = [side(point[f"{NAME}/mia/min_k"], point[f"{NAME}/privleak_reference_auc"]) for point in points]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def values(points: Sequence[Point], name: str, digits: int) -> str:
    """A metric of each seed's point."""
    return ", ".join(f"{point[f'{NAME}/{name}']:.{digits}f}".replace("-", "−") for point in points)


def hypervolume(run: Mapping[str, Any], floor: float = -12.0) -> float:
    """The normalised hypervolume indicator of a run, with reference point (`floor`, 0)."""
    keys = f"{NAME}/forget_quality_log10", f"{NAME}/model_utility"
    points = [tuple(point[key] for key in keys) for point in run["evaluations"] if all(key in point for key in keys)]
    return frontier_area(points, floor)  # type: ignore[arg-type]


def reported(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs of each reported configuration, by ascending seed."""
    return {
        row["configuration"]: [row["runs"][seed] for seed in sorted(row["runs"], key=int)]
        for row in content["rows"]
        if row["stage"] == "final"
    }


def pairs_that_stand(content: Mapping[str, Any], level: float = 0.05) -> tuple[int, int, int]:
    """Numbers of pairs of configurations, of those that differ in a paired t-test, and of those left by Holm."""
    areas = [[hypervolume(run) for run in runs] for runs in reported(content).values()]
    p = [float(stats.ttest_rel(one, other).pvalue) for one, other in itertools.combinations(areas, 2)]
    return len(p), sum(one < level for one in p), sum(one < level for one in holm(p))


def table(content: Mapping[str, Any]) -> str:
    """The Markdown table, by the forget quality of the evaluation that the rule chooses, the best first."""
    heads = [
        "configuration", "last: log10 FQ", "last: utility", "last: Min-K AUC", "side",
        "rule: log10 FQ", "rule: utility", "side", "hypervolume, an oracle's choice",
    ]  # fmt: skip
    rows = []
    for name, runs in reported(content).items():
        last = [run["evaluations"][-1] for run in runs]
        ruled = [chosen_without_reference(run["evaluations"]) for run in runs]
        cells = [
            name, values(last, "forget_quality_log10", 1), values(last, "model_utility", 2),
            values(last, "mia/min_k", 2), sides(last),
            values(ruled, "forget_quality_log10", 1), values(ruled, "model_utility", 2), sides(ruled),
            ", ".join(f"{hypervolume(run):.2f}" for run in runs),
        ]  # fmt: skip
        quality = statistics.fmean(point[f"{NAME}/forget_quality_log10"] for point in ruled)
        rows.append((-quality, name, cells))
    lines = [heads, ["---"] * len(heads), *(cells for _, _, cells in sorted(rows))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Writes the table beside the raw results."""
    content = json.loads(gzip.decompress((RESULTS / "methods.json.gz").read_bytes()))
    (RESULTS / "methods-compared.md").write_text(table(content), encoding="utf-8")
    print(table(content), *pairs_that_stand(content))


if __name__ == "__main__":
    main()
