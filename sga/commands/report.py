"""`sga report`: finished run folders as one HTML page."""

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
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    parser.add_argument("--title", default="Unlearning runs", help="heading of the page")
    options = parser.parse_args(list(arguments))

    from sga.report.page import write_report
    from sga.report.summary import runs_table
    from sga.runs.folder import load_run

    runs = [load_run(path) for path in options.runs]
    page = write_report(runs, options.output, title=options.title)
    print(runs_table(runs))
    print(f"\n{page}")
    return 0
