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
) -> int:
    """Draw run folders as one self-contained HTML page, and print their table.

    Give the target and the retain model too, where there are any: the page compares the others with them.

    Args:
        runs (RUN): Folders of finished runs.
        format: Form of the output: html is the page; open-unlearning writes TOFU_EVAL.json and TOFU_SUMMARY.json of
            one run, for its leaderboard and its tools.
        output (PATH): Path of the page (default report.html), or folder of the log.
        title (TEXT): Heading of the page.
    """
    from sga.errors import UserError
    from sga.runs.folder import load_run

    if format == "open-unlearning":
        from sga.runs.open_unlearning import write_open_unlearning

        if len(runs) != 1 or output is None:
            raise UserError("--format open-unlearning writes the log of one run: name one, and --output FOLDER")
        for path in write_open_unlearning(load_run(runs[0]), output):
            print(path)
        return 0

    from sga.report.page import write_report
    from sga.report.summary import runs_table

    found = [load_run(path) for path in runs]
    page = write_report(found, output or Path("report.html"), title=title)
    print(runs_table(found))
    print(f"\n{page}")
    return 0
