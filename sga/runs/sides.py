"""The two sides of a comparison, read from run folders and logs."""

from __future__ import annotations

import math
from pathlib import Path

from sga.errors import UserError
from sga.evaluation.comparison import Side
from sga.runs.logs import read_log, read_own_rows


def read_side(path: str | Path, step: int | None = None) -> Side:
    """Reads one side.

    The rows of a run of ours are taken as they are and not as `read_log` gives them, because a comparison also wants
    the texts and whatever other numbers they hold.

    Args:
        path: A run folder of ours, a file of its rows, or a foreign log that `read_log` knows.
        step: Which evaluation of a run of ours; the last one by default.

    Raises:
        UserError: as `read_log`.
    """
    own = read_own_rows(Path(path), step)
    if own is None:
        log = read_log(path, step)
        return Side(log.source, log.kind, log.step, log.settings or None, log.rows, log.notes)
    rows = {}
    for key, (where, row) in own.rows.items():
        for name, value in row.items():
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, float) and not math.isfinite(entry):
                    raise UserError(f"{where}: {name!r} must be finite, got {entry}; evaluate again")
        if "avg_nll" in row and row.get("paraphrased_nll") is None:
            row = {**row, "paraphrased_nll": row["avg_nll"]}  # the answer stands in where there is no paraphrase
        rows[key] = row
    return Side(str(own.source), "sga", own.step, own.settings, rows)
