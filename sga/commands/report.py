"""`sga report`: finished run folders as one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

FigureFormat = Literal["svg", "png", "pdf"]


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga report RUN [RUN …]``."""
    parser = argparse.ArgumentParser(
        "sga report",
        description="Draw run folders as one self-contained HTML page, and print their table. Give the target and the "
        "retain model too, where there are any: the page compares the others with them. Its charts and its table are "
        "written to files of their own where you ask for them.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    parser.add_argument("--title", default="Unlearning runs", help="heading of the page")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write each chart into this folder as well")
    parser.add_argument(
        "--figure-format", choices=get_args(FigureFormat), default="svg", help="format of these charts (default svg)"
    )
    parser.add_argument(
        "--tables", type=Path, metavar="FOLDER", help="write the table into this folder as CSV, Markdown and LaTeX"
    )
    options = parser.parse_args(list(arguments))

    from sga.report.figures import run_figures, write_figures
    from sga.report.page import write_report
    from sga.report.summary import runs_table
    from sga.report.tables import write_tables
    from sga.runs.folder import load_run

    runs = [load_run(path) for path in options.runs]
    page = write_report(runs, options.output, title=options.title)
    print(runs_table(runs))
    written = [page]
    if options.figures is not None:
        written += write_figures(run_figures(runs), options.figures, options.figure_format)
    if options.tables is not None:
        written += write_tables(runs, options.tables)
    print("", *written, sep="\n")
    return 0
