"""`sga report`: finished run folders as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sga.commands.parsing import verb


@verb("report")
def main(runs: Sequence[Path], *, output: Path = Path("report.html"), title: str = "Unlearning runs") -> int:
    """Draw run folders as one self-contained HTML page, and print their table.

    Give the target and the retain model too, where there are any: the page compares the others with them.

    Args:
        runs (RUN): Folders of finished runs.
        output (FILE): Path of the page.
        title (TEXT): Heading of the page.
    """
    from sga.report import runs_table, write_report
    from sga.runs.folder import load_run

    found = [load_run(path) for path in runs]
    page = write_report(found, output, title=title)
    print(runs_table(found))
    print(f"\n{page}")
    return 0
