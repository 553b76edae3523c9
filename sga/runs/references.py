"""Retain references, read from logs."""

from __future__ import annotations

from pathlib import Path

from sga.errors import UserError
from sga.evaluation.reference import RetainReference
from sga.runs.logs import read_log


def read_retain_reference(path: str | Path, step: int | None = None) -> RetainReference:
    """Reads a retain reference from a log of any of the kinds of `read_log`.

    Args:
        path: Path of one of our run folders, of a file of its rows, or of a foreign log.
        step: Optimiser step of the evaluation to read from our own log; the last one by default.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is damaged: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and the remedy.
    """
    log = read_log(path, step, part="reference")
    ids, rows = log.ids("forget"), log.of_set("forget")
    if not rows:
        raise UserError(f"{log.source}: no row of the set 'forget' at step {log.step}; evaluate the retain model on it")
    reference = RetainReference(**vars(log))
    wrong = reference.wrong_nll
    if wrong is not None and any(wrong) and not all(wrong):
        without = ids[wrong.index(())]
        raise UserError(f"{log.source}: {without!r} has an empty 'perturbed_nll' and other forget rows do not")
    return reference
