"""`sga compare`: a paired comparison of two evaluations of the same rows."""

from __future__ import annotations

from pathlib import Path

from sga.commands.parsing import verb
from sga.errors import check_numbers
from sga.evaluation.comparison import compare
from sga.evaluation.table import terminal_width
from sga.files import write_json
from sga.runs.logs import read_log


@verb("compare")
def main(
    a: Path,
    b: Path,
    *,
    step_a: int | None = None,
    step_b: int | None = None,
    output: Path | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> int:
    """Compare two evaluations of the same rows, metric by metric.

    Each line has the difference B − A, its 95 % bootstrap interval, the p-value of a paired permutation test, the same
    adjusted for the number of tests (Holm), and what that means. "A better" or "B better" is said where one direction
    is better and the adjusted p is below 0.05. Nothing is evaluated anew.

    Args:
        a (RUN_A): Run folder, file of its rows, or log of another program.
        b (RUN_B): Another one, of the same rows.
        step_a: Step of the evaluation of A (default: its last).
        step_b: Step of the evaluation of B (default: its last).
        output (FILE): Path of a JSON file to which the comparison is written as well.
        resamples: Number of bootstrap resamples and of swaps.
        seed: Seed of resamples and swaps.
    """
    check_numbers(0, **{"--seed": seed})
    comparison = compare(
        read_log(a, step_a, "raw"),
        read_log(b, step_b, "raw"),
        resamples,
        seed,
    )
    print(comparison.table(terminal_width()))
    if output is not None:
        write_json(output, comparison.to_json())
        print(f"\n{output}")
    return 0
