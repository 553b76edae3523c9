"""`sga report`: finished run folders as one HTML page, or one of them as open-unlearning's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sga.commands.parsing import verb


@verb("report")
def main(
    runs: Sequence[Path],
    *,
    format: Literal["html", "open-unlearning"] = "html",
    output: Path | None = None,
    title: str = "Unlearning runs",
    figures: Path | None = None,
    figure_format: Literal["svg", "png", "pdf"] = "svg",
    tables: Path | None = None,
) -> int:
    """Draw run folders as one self-contained HTML page, and print their table.

    Give the target and the retain model too, where there are any: the page compares the others with them.

    Args:
        runs (RUN): Folders of finished runs.
        format: Form of the output: html is the page; open-unlearning writes TOFU_EVAL.json and TOFU_SUMMARY.json of
            one run, for its leaderboard and its tools.
        output (PATH): Path of the page (default report.html), or folder of the log.
        title (TEXT): Heading of the page.
        figures (FOLDER): Folder that gets each chart of the page as a file of its own.
        figure_format: Format of these files.
        tables (FOLDER): Folder that gets the table of the page as CSV, Markdown and LaTeX.
    """
    from sga.errors import UserError
    from sga.runs.folder import load_run

    if format == "open-unlearning":
        from sga.runs.open_unlearning import write_open_unlearning

        if len(runs) != 1 or output is None:
            raise UserError("--format open-unlearning writes the log of one run: name one, and --output FOLDER")
        if figures is not None or tables is not None:
            raise UserError("--figures and --tables belong to the page: leave out --format open-unlearning")
        for path in write_open_unlearning(load_run(runs[0]), output):
            print(path)
        return 0

    from sga.report.figures import run_figures, write_figures
    from sga.report.page import write_report
    from sga.report.summary import runs_table
    from sga.report.tables import write_tables

    found = [load_run(path) for path in runs]
    written = [write_report(found, output or Path("report.html"), title=title)]
    if figures is not None:
        written += write_figures(run_figures(found), figures, figure_format)
    if tables is not None:
        written += write_tables(found, tables)
    print(runs_table(found))
    print("", *written, sep="\n")
    return 0
