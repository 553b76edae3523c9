"""Refusals: answers such as "I do not know"."""

from __future__ import annotations

from pathlib import Path

from sga.data.builtin import builtin_path
from sga.errors import UserError


def read_refusals(path: str | None = None) -> tuple[str, ...]:
    """Reads refusals, one per line; blank lines are skipped.

    Args:
        path: Path of a UTF-8 text file; None reads the refusals that come with the package.

    Raises:
        UserError: there is no such file, it is not UTF-8, or it holds no refusal.
    """
    place = builtin_path("refusals.txt") if path is None else Path(path)
    if not place.is_file():
        raise UserError(f"refusals {place}: no such file; give a text file with one refusal a line (--data.refusals)")
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"refusals {place}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    refusals = tuple(line.strip() for line in lines if line.strip())
    if not refusals:
        raise UserError(f"refusals {place}: the file holds no refusal; write one a line")
    return refusals
