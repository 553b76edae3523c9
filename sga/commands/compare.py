"""`sga compare`: whether two evaluations of the same rows differ, or it is noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sga.errors import check_numbers
from sga.evaluation.comparison import compare
from sga.evaluation.table import terminal_width
from sga.files import write_json
from sga.runs.logs import read_log

_DESCRIPTION = """\
Compare two evaluations of the same rows, metric by metric: the difference B − A, its 95 % bootstrap interval, the
p-value of a paired permutation test, the same adjusted for the number of tests (Holm), and what that means. "A better"
or "B better" is said where one direction is better and the adjusted p is below 0.05. Nothing is evaluated anew.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga compare RUN_A RUN_B``."""
    parser = argparse.ArgumentParser(
        "sga compare", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="RUN_A", help="a run folder, a file of its rows, or a foreign log")
    parser.add_argument("b", type=Path, metavar="RUN_B", help="another one of the same rows")
    parser.add_argument("--step-a", type=int, metavar="N", help="which evaluation of A (default: its last)")
    parser.add_argument("--step-b", type=int, metavar="N", help="which evaluation of B (default: its last)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the comparison as JSON")
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="bootstrap resamples and swaps (default 10000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of both (default 0)")
    options = parser.parse_args(list(arguments))
    check_numbers(0, **{"--seed": options.seed})
    comparison = compare(
        read_log(options.a, options.step_a, "raw"),
        read_log(options.b, options.step_b, "raw"),
        options.resamples,
        options.seed,
    )
    print(comparison.table(terminal_width()))
    if options.output is not None:
        write_json(options.output, comparison.to_json())
        print(f"\n{options.output}")
    return 0
