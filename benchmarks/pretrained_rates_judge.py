"""The judge of the look at rates and more baselines on a pretrained model.

    python benchmarks/hand_over.py collect benchmarks/hand-over/pretrained{,-rates}.yaml --folder FOLDER --to FILE
    python benchmarks/pretrained_rates_judge.py FILE [--keep docs/results/pretrained-rates.json.gz]

Prints the parts of the page, and keeps what they are computed from. Definitions: docs/experiments/pretrained-rates.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hand_over_judge import Judged, judge, kept, read, seeds, shortened, table, write

CONTRASTS = (("margin", "mean"), ("margin", "shuffled"), ("gd-2-alternatives", "gd-2"), ("norm", "gd-2"))
"""Pairs of recipes whose shortfall is compared."""


def kept_runs(collected: Mapping[str, Any]) -> dict[str, Any]:
    """What the page is computed from."""
    found = kept(collected)
    for name, run in found["runs"].items():
        rates = collected["runs"][name].get("rates")
        run["rates"] = rates and [shortened(rate) for rate in rates]
    return found


def answer(rows: Sequence[Judged]) -> str:
    """What came out, in two sentences; the second is the same whatever it is, as the protocol says."""
    worlds = sorted({row.world for row in rows})
    found = {(row.recipe, row.world): row.shortfall for row in rows if row.choice == "last"}
    told = []
    for one, other in CONTRASTS:
        gaps = [f"{found[one, world] - found[other, world]:+.1f}".replace("-", "−") for world in worlds]
        told.append(f"{one} less {other} {' and '.join(gaps)}")
    return (
        f"Shortfall at the last evaluation on seed {' and '.join(map(str, worlds))}: {'; '.join(told)} (below 0 the "
        "first is better). Whether the findings on small models hold for a pretrained one cannot be told at "
        f"n = {len(worlds)}."
    )


def contrasts(rows: Sequence[Judged]) -> str:
    """A Markdown table: differences of the shortfall, seed by seed, at the last evaluation and at the rule's choice."""
    worlds = sorted({row.world for row in rows})
    found = {(row.recipe, row.choice, row.world): row.shortfall for row in rows}
    lines = ["| less than 0: the first is better | " + " | ".join(f"seed {world}" for world in worlds) + " | sign |"]
    lines.append("|" + "---|" * (2 + len(worlds)))
    for choice, words in (("last", "last evaluation"), ("rule", "rule's choice")):
        for one, other in CONTRASTS:
            gaps = [found[one, choice, world] - found[other, choice, world] for world in worlds]
            sign = "zero" if not any(gaps) else "one" if min(gaps) > 0 or max(gaps) < 0 else "two"
            told = " | ".join(f"{gap:+.1f}".replace("-", "−") for gap in gaps)
            lines.append(f"| {one} − {other}, {words} | {told} | {sign} |")
    return "\n".join(lines)


def rates(found: Mapping[str, Any]) -> str:
    """A Markdown table: λ as it was in force, a line for each run with one that moves."""
    lines = ["| run | steps | λ, mean | lowest | highest |", "|" + "---|" * 5]
    for name, run in sorted(found["runs"].items()):
        if run["rates"]:
            told = " | ".join(f"{value:.2f}" for value in (fmean(run["rates"]), min(run["rates"]), max(run["rates"])))
            lines.append(f"| {name} | {len(run['rates'])} | {told} |")
    return "\n".join(lines)


def page_parts(found: Mapping[str, Any]) -> list[str]:
    """All that the page has of the numbers."""
    rows = judge(found, reserved=True)
    return [
        answer(rows),
        contrasts(rows),
        table([row for row in rows if row.choice != "oracle"]),
        rates(found),
        seeds(rows),
    ]


def main() -> None:
    """Prints the parts of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--keep", type=Path, help="file that is made of what the page is computed from")
    options = parser.parse_args()
    found = kept_runs(read(options.file))
    print(*page_parts(found), sep="\n\n")
    if options.keep is not None:
        write(found, options.keep)


if __name__ == "__main__":
    main()
