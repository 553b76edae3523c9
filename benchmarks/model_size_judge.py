"""The judge of the exploratory look at the best λ of models of three sizes.

    python benchmarks/model_size_judge.py SMALL.json.gz MEDIUM.json.gz LARGE.json.gz [--keep docs/results]

Prints tables; keeps what they are computed from as model-size-SIZE.json.gz. Definitions are those of
docs/experiments/model-size.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hand_over_judge import Judged, read, write
from rates_and_normals_judge import judge, kept_runs, worlds_table

PARAMETERS = {"small": 231_744, "medium": 651_904, "large": 2_106_624}
"""Number of parameters of each size, in the order of the files."""
Cells = Mapping[tuple[float, float], Mapping[int, Judged]]
"""Runs by λ and learning rate, and by world."""


def cells(collected: Mapping[str, Any]) -> dict[tuple[float, float], dict[int, Judged]]:
    """The last evaluation of each run, by what its recipe's name says: ``weight-2-lr4e-4``."""
    found: dict[tuple[float, float], dict[int, Judged]] = {}
    for row in judge(collected):
        if row.choice == "last":
            _, weight, rate = row.recipe.split("-", 2)
            found.setdefault((float(weight), float(rate.removeprefix("lr"))), {})[row.world] = row
    return found


def whole_worlds(sizes: Sequence[Cells]) -> list[int]:
    """Worlds in which every run of every size has finished."""
    return sorted(set.intersection(*(set(runs) for size in sizes for runs in size.values())))


def best_rates(size: Cells, worlds: Sequence[int]) -> dict[float, tuple[float, float]]:
    """The learning rate with the least mean shortfall at each λ, and that mean."""
    found: dict[float, tuple[float, float]] = {}
    for (weight, rate), runs in size.items():
        mean = fmean(runs[world].shortfall for world in worlds)
        if weight not in found or mean < found[weight][1]:
            found[weight] = rate, mean
    return found


def best_weights(size: Cells, worlds: Sequence[int]) -> dict[int, float]:
    """The λ with the least shortfall over the learning rates, world by world."""
    return {world: min(size, key=lambda cell: size[cell][world].shortfall)[0] for world in worlds}


def cells_table(sizes: Sequence[Cells], worlds: Sequence[int]) -> str:
    """A Markdown table: means over worlds, a line for each size, λ and learning rate."""
    lines = ["| parameters | λ | learning rate | shortfall | log10 p | AUC gap | utility | fluency | forget nll |"]
    lines.append("|" + "---|" * 9)
    for count, size in zip(PARAMETERS.values(), sizes, strict=True):
        best = best_rates(size, worlds)
        for (weight, rate), runs in sorted(size.items()):
            means = [
                f"{fmean(getattr(runs[world], name) for world in worlds):.{digits}f}".replace("-", "−")
                for name, digits in (("shortfall", 1), ("log10_p", 1), ("auc_gap", 2), ("utility_share", 2),
                                     ("fluency_share", 2), ("forget_nll", 1))
            ]  # fmt: skip
            if best[weight][0] == rate:
                means[0] = f"**{means[0]}**"
            lines.append(f"| {count:,} | {weight:g} | {rate:g} | {' | '.join(means)} |")
    return "\n".join(lines)


def best_table(sizes: Sequence[Cells], worlds: Sequence[int]) -> str:
    """A Markdown table: mean shortfall at each λ's best learning rate, and in how many worlds each λ is the best."""
    weights = sorted({weight for size in sizes for weight, _ in size})
    lines = ["| parameters | " + " | ".join(f"λ = {weight:g} (best in)" for weight in weights) + " |"]
    lines.append("|" + "---|" * (1 + len(weights)))
    for count, size in zip(PARAMETERS.values(), sizes, strict=True):
        rates, best = best_rates(size, worlds), list(best_weights(size, worlds).values())
        told = [f"{rates[weight][1]:.1f} ({best.count(weight)} of {len(worlds)})" for weight in weights]
        lines.append(f"| {count:,} | {' | '.join(told)} |")
    return "\n".join(lines)


def answer(sizes: Sequence[Cells], worlds: Sequence[int]) -> str:
    """What came out, in two sentences; the second is the same whatever it is, as the protocol says."""
    told = []
    for count, size in zip(PARAMETERS.values(), sizes, strict=True):
        rates = best_rates(size, worlds)
        by_world = ", ".join(f"{weight:g}" for weight in best_weights(size, worlds).values())
        told.append(f"λ = {min(rates, key=lambda weight: rates[weight][1]):g} with {count:,} parameters ({by_world})")
    return (
        f"The mean shortfall is least at {', at '.join(told)}; in brackets the best λ of worlds "
        f"{', '.join(map(str, worlds))}. Whether the best λ moves with size cannot be told at n = {len(worlds)}."
    )


def page_parts(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that the page has of the numbers: the answer and its tables, the check of the worlds by size last."""
    sizes = [cells(found) for found in files]
    worlds = whole_worlds(sizes)
    tables = best_table(sizes, worlds), cells_table(sizes, worlds)
    return [answer(sizes, worlds), *tables, *map(worlds_table, files)]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs=len(PARAMETERS), help="of the small, the medium and the large model")
    parser.add_argument("--keep", type=Path, help="folder for what the tables are computed from")
    options = parser.parse_args()
    files = [kept_runs(read(path)) for path in options.files]
    print(*page_parts(files), sep="\n\n")
    if options.keep is not None:
        for name, found in zip(PARAMETERS, files, strict=True):
            write(found, options.keep / f"model-size-{name}.json.gz")


if __name__ == "__main__":
    main()
