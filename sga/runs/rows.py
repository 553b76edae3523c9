"""Rows of evaluations: per-sample values, one JSON object per line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.files import read_json_lines

Rows = dict[tuple[str, str], tuple[str, dict[str, Any]]]
"""Rows of one evaluation by (evaluation set, record id), in the file's order, each with its place for messages."""


def read_rows(path: Path) -> dict[int, Rows]:
    """Reads rows by optimiser step; the numbers in them are not checked.

    Raises:
        UserError: a row has no step, set and id, or one occurs twice in a step; names file and line.
    """
    found: dict[int, Rows] = {}
    for number, row in read_json_lines(path):
        where, key = f"{path}:{number}", (row.get("set"), row.get("id"))
        if type(row.get("step")) is not int or not all(isinstance(name, str) for name in key):
            raise UserError(f"{where}: needs 'step' (an integer), 'set' and 'id' (strings); are these rows of a run?")
        rows = found.setdefault(row["step"], {})
        if key in rows:
            at = f"in {key[0]!r} at step {row['step']}"
            raise UserError(f"{where}: {key[1]!r} occurs twice {at}; were two runs joined?")
        rows[row["set"], row["id"]] = where, row
    return found
