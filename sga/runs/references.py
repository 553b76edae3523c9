"""Retain references, read from logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sga.errors import UserError
from sga.evaluation.reference import RetainReference
from sga.runs.logs import read_log


def read_retain_reference(path: str | Path, step: int | None = None) -> RetainReference:
    """Reads a retain reference of any of the three kinds; a foreign log is known by its content, not by its name.

    Args:
        path: A run folder of ours, a file of its rows, or a foreign log.
        step: Which evaluation step of a log of ours; the last one by default.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is not whole: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and what to do.
    """
    log = read_log(path, step, part="reference")
    ids, rows = log.ids("forget"), log.of_set("forget")
    if not rows:
        raise UserError(f"{log.source}: no row of the set 'forget' at step {log.step}; evaluate the retain model on it")
    answer = [row["avg_nll"] for row in rows if "avg_nll" in row]
    right, wrong, ready = None, None, None
    if "log_truth_ratio" in rows[0]:
        ready = np.array([row["log_truth_ratio"] for row in rows])
    else:
        right = np.array([row["paraphrased_nll"] for row in rows])
        wrong = tuple(tuple(row["perturbed_nll"]) for row in rows)
        if any(wrong) and not all(wrong):
            without = ids[wrong.index(())]
            raise UserError(f"{log.source}: {without!r} has an empty 'perturbed_nll' and other forget rows do not")
    holdout = {
        record_id: row["avg_nll"]
        for record_id, row in zip(log.ids("holdout"), log.of_set("holdout"), strict=True)
        if "avg_nll" in row
    }
    return RetainReference(
        source=log.source,
        kind=log.kind,
        settings=log.settings,
        answer_nll=np.array(answer) if answer else None,
        right_nll=right,
        wrong_nll=wrong,
        ready_log_ratio=ready,
        ids=ids if log.has_ids else None,
        membership_auc=log.membership_auc,
        holdout_nll=holdout or None,
        notes=log.notes,
        step=log.step,
    )
