"""`sga report`: finished run folders as one HTML page, or one of them as open-unlearning's log."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga report RUN [RUN …]``."""
    parser = argparse.ArgumentParser(
        "sga report",
        description="Draw run folders as one self-contained HTML page, and print their table. Give the target and the "
        "retain model too, where there are any: the page compares the others with them.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument(
        "--format",
        choices=("html", "open-unlearning"),
        default="html",
        help="html is the page; open-unlearning writes TOFU_EVAL.json and TOFU_SUMMARY.json of one run, for its "
        "leaderboard and its tools (default html)",
    )
    parser.add_argument("--output", type=Path, help="the page (default report.html), or the folder of the log")
    parser.add_argument("--title", default="Unlearning runs", help="heading of the page")
    options = parser.parse_args(list(arguments))

    from sga.errors import UserError
    from sga.runs.folder import load_run

    if options.format == "open-unlearning":
        from sga.runs.open_unlearning import write_open_unlearning

        if len(options.runs) != 1 or options.output is None:
            raise UserError("--format open-unlearning writes the log of one run: name one, and --output FOLDER")
        for path in write_open_unlearning(load_run(options.runs[0]), options.output):
            print(path)
        return 0

    from sga.report import runs_table, write_report

    runs = [load_run(path) for path in options.runs]
    page = write_report(runs, options.output or Path("report.html"), title=options.title)
    print(runs_table(runs))
    print(f"\n{page}")
    return 0
