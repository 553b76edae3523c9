"""The retain reference: a retrained model's numbers on the forget set, which it never saw, aligned with our rows.

`reference_for` selects the rows of an evaluation, and refuses a reference made with other settings, before any model is
loaded. `sga.runs.references` reads the reference from a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sga.errors import UserError
from sga.evaluation.log import Log
from sga.evaluation.metrics import Floats, TruthRatioMean, log_truth_ratio

TOFU_ROWS = 300
"""Number of rows of forget and retain that TOFU's own tables are truncated to."""


METRIC_SETTINGS = (
    "max_new_tokens",
    "count_prompt",
    "truth_ratio_mean",
    "verbmem_tokens",
    "knowmem_tokens",
    "rouge_tokenizer",
    "fluency_tokens",
    "fluency_classifier",
)
"""Settings of metrics that the reference's numbers do not depend on; two runs that are compared must agree in them."""


UNSTATED = {"rouge_tokenizer": "published", "fluency_tokens": "32"}
"""Values of settings that a log leaves out: only other values are written to it."""


_ONE_AUC = {"min_k_share": "min_k"}
"""Settings that only one AUC depends on, by name: where one differs, that AUC alone is not used."""


class RetainReference(Log):
    """Numbers of a retain model: a `Log` whose forget rows have losses or ready-made truth ratios.

    Its holdout rows, where there are any, have ids and losses; `sga.runs.references.read_retain_reference` makes one.
    """

    @property
    def forget(self) -> list[Mapping[str, Any]]:
        """The N forget rows, in order."""
        return self.of_set("forget")

    @property
    def forget_ids(self) -> tuple[str, ...] | None:
        """N ids of the forget records; None for a foreign log, whose rows are known by their position."""
        return self.ids("forget") if self.has_ids else None

    @property
    def answer_nll(self) -> Floats | None:
        """avg_nll of the answers, [N], nats per token; None where the log does not have them."""
        return self._column("avg_nll")

    @property
    def right_nll(self) -> Floats | None:
        """avg_nll of the paraphrased answers, [N], nats per token; of the answer itself where there is no paraphrase.

        None where the log has ready-made truth ratios only.
        """
        return self._column("paraphrased_nll")

    @property
    def wrong_nll(self) -> tuple[tuple[float, ...], ...] | None:
        """avg_nll of each row's perturbed answers, N tuples, nats per token; empty where the benchmark has none.

        None where the log has ready-made truth ratios only.
        """
        return None if self.right_nll is None else tuple(tuple(row["perturbed_nll"]) for row in self.forget)

    @property
    def holdout_nll(self) -> dict[str, float] | None:
        """avg_nll of the holdout records by id, nats per token; None where the log has no rows of them."""
        rows = zip(self.ids("holdout"), self.of_set("holdout"), strict=True)
        return {record_id: row["avg_nll"] for record_id, row in rows if "avg_nll" in row} or None

    def _column(self, name: str) -> Floats | None:
        """A field of the forget rows, [N]; None where they do not have it."""
        values = [row[name] for row in self.forget if name in row]
        return np.array(values) if values else None

    def __len__(self) -> int:
        """Number of forget rows."""
        return len(self.forget)

    def losses(self, set_name: str) -> dict[str, float]:
        """avg_nll of the forget or holdout records by id, nats per token; empty where the log does not have them."""
        if set_name == "holdout":
            return self.holdout_nll or {}
        if self.answer_nll is None or self.forget_ids is None:
            return {}
        return {record_id: float(nll) for record_id, nll in zip(self.forget_ids, self.answer_nll, strict=True)}

    def log_truth_ratio(self, mean: TruthRatioMean = "geometric") -> Floats:
        """Log R of each row, [N], any real number; see `sga.evaluation.metrics.log_truth_ratio`.

        Raises:
            UserError: the log has no perturbed answers, or only ready-made truth ratios while `mean` is not geometric.
        """
        right, wrong, ready_made = self.right_nll, self.wrong_nll, self._column("log_truth_ratio")
        if right is None or wrong is None:
            assert ready_made is not None, "a reference has losses or truth ratios"
            if mean != "geometric":
                raise UserError(
                    f"{self.source}: holds ready-made truth ratios of the geometric mean only, so the {mean} mean "
                    "cannot be had from it; use mean 'geometric' or a log with the losses of the single answers"
                )
            return ready_made
        if not any(wrong):
            raise UserError(
                f"{self.source}: its forget rows have no perturbed answers, so they give no truth ratio; "
                "use a reference that was evaluated on records with 'perturbed_answer'"
            )
        return log_truth_ratio(right, wrong, mean)


def min_k_aucs(references: Sequence[RetainReference]) -> tuple[list[float], list[str]]:
    """AUC of Min-K % of each reference, and the sources of those that lack it; no AUC at all if one is lacking."""
    found = [(reference.membership_auc or {}).get("min_k") for reference in references]
    lacking = [reference.source for reference, auc in zip(references, found, strict=True) if auc is None]
    return ([] if lacking else [auc for auc in found if auc is not None]), lacking


def fill_reference_scores(row: dict[str, Any], record_id: str, losses: Sequence[Mapping[str, float]]) -> None:
    """Fills a row's membership score ``reference``: its avg_nll minus the reference model's.

    With several references it is the mean, and ``reference_each`` has the score against each of them.

    Args:
        row: Row with avg_nll, which is changed.
        record_id: Id of the row's record.
        losses: avg_nll by record id under each reference, nats per token; if one lacks the record there is no score.
    """
    if not losses or not all(record_id in one for one in losses):
        return
    scores = [row["avg_nll"] - one[record_id] for one in losses]
    row["reference"] = sum(scores) / len(scores)
    if len(scores) > 1:
        row["reference_each"] = scores


def reference_for(
    reference: RetainReference, ids: Sequence[str], settings: Mapping[str, str | None]
) -> RetainReference:
    """Selects the reference's rows for the forget records of an evaluation, in their order.

    A log of ours is matched by id. A foreign log has positions only: its rows must be as many as ours, or the first 300
    of ours, as in TOFU's tables; then the result has 300 rows, says so in its notes, and belongs to the first
    ``len(result)`` rows of ours: compare ``own[: len(result)]``.

    Args:
        reference: Numbers of the retain model, from `read_retain_reference`.
        ids: Ids of our forget records in the order of the benchmark's file, which foreign rows are matched to.
        settings: Settings of the evaluation. One that the reference does not state goes into the notes. ``min_k_share``
            may differ: then the reference's AUC of Min-K % is not used, which is noted.

    Returns:
        At most ``len(ids)`` rows.

    Raises:
        UserError: a setting that both state differs (every difference is named), ids are missing from the reference, or
            the number of rows of a foreign log fits neither all nor the first 300 of ours.
    """
    reference, notes = _compared(reference, settings)
    if not ids:
        raise UserError("no forget record to compare with the reference")
    reference = _same_rows_for_aucs(reference, len(ids), notes)
    if reference.forget_ids is None:
        rows = _first_rows(reference, len(ids))
        if rows < len(ids):
            notes.append(_cut_note(rows, len(ids)))
        return _take(reference, list(range(rows)), notes)
    position = {record_id: index for index, record_id in enumerate(reference.forget_ids)}
    missing = [record_id for record_id in ids if record_id not in position]
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{reference.source}: {len(missing)} of {len(ids)} forget records are not in the reference ({some}); "
            "evaluate the retain model on the same forget records"
        )
    return _take(reference, [position[record_id] for record_id in ids], notes)


def reference_for_positions(
    reference: RetainReference, rows: int, settings: Mapping[str, str | None]
) -> RetainReference:
    """Selects the reference's rows for a foreign log, whose rows are known by position only; see `reference_for`.

    Position i there must be position i here, so a reference of ours must hold the forget set in its order from the
    first row on. The numbers of rows must be equal, or one of the two must be a foreign log of 300 rows: then the first
    300 rows of the longer one are used.

    Args:
        reference: Numbers of the retain model, from `read_retain_reference`.
        rows: Number of forget rows of the log.
        settings: Settings that the log was made with, as far as it states them.

    Returns:
        At most `rows` rows, for the first ``len(result)`` of the log's.

    Raises:
        UserError: a setting differs, the numbers of rows do not fit, or the reference's rows are not the first ones.
    """
    reference, notes = _compared(reference, settings)
    if reference.forget_ids is not None and not are_first_rows(reference.forget_ids):
        raise UserError(
            f"{reference.source}: its forget rows are not the first rows of the forget set in order "
            f"({reference.forget_ids[0]} first), and a log without ids can be matched by position only; evaluate the "
            "retain model on every row (sga test)"
        )
    reference = _same_rows_for_aucs(reference, rows, notes)
    if rows == TOFU_ROWS < len(reference):
        kept = rows
        notes.append(
            f"the log has {rows} rows: compared with the first {rows} of the reference's {len(reference)} only"
        )
    elif rows == len(reference):
        kept = rows
    elif reference.forget_ids is None:
        kept = _first_rows(reference, rows)
        notes.append(_cut_note(kept, rows))
    else:  # only other programs truncate their logs to 300 rows
        raise _wrong_number(reference, rows)
    return _take(reference, list(range(kept)), notes)


def are_first_rows(ids: Sequence[str]) -> bool:
    """True if ids such as ``"forget10/0"`` number rows from 0 without a gap, as positions in a foreign log do."""
    return [record_id.rsplit("/", 1)[-1] for record_id in ids] == [str(index) for index in range(len(ids))]


def _compared(reference: RetainReference, settings: Mapping[str, str | None]) -> tuple[RetainReference, list[str]]:
    """The reference without numbers that its settings make incomparable, and its notes with those about settings."""
    notes = list(reference.notes)
    differences = []
    for name, value in settings.items():
        theirs = reference.settings.get(name)
        if value is None or theirs is None or theirs == value or name in METRIC_SETTINGS:
            continue
        if name not in _ONE_AUC:
            differences.append(f"{name} is {theirs!r} there and {value!r} here")
        elif reference.membership_auc is not None and _ONE_AUC[name] in reference.membership_auc:
            aucs = {key: auc for key, auc in reference.membership_auc.items() if key != _ONE_AUC[name]}
            reference = replace(reference, membership_auc=aucs or None)
            notes.append(
                f"{name} is {theirs} in the reference and {value} here: the reference's AUC of {_ONE_AUC[name]} is "
                "not used"
            )
    if differences:
        raise UserError(
            f"{reference.source}: made with other settings: {'; '.join(differences)}; "
            "evaluate the retain model with these settings, or this model with those"
        )
    stated = {**UNSTATED, **reference.settings}
    unknown = [name for name, value in settings.items() if value is not None and stated.get(name) is None]
    if unknown:
        notes.append(f"the reference does not state {', '.join(unknown)}: not checked")
    return reference, notes


def _same_rows_for_aucs(reference: RetainReference, rows: int, notes: list[str]) -> RetainReference:
    if rows == len(reference) or reference.membership_auc is None:
        return reference
    notes.append(f"the reference's AUCs are of {len(reference)} forget records, not of {rows}: not used")
    return replace(reference, membership_auc=None)


def _first_rows(reference: RetainReference, n: int) -> int:
    if len(reference) == n or (len(reference) == TOFU_ROWS < n):
        return len(reference)
    raise _wrong_number(reference, n)


def _cut_note(rows: int, n: int) -> str:
    return f"the reference has {rows} rows: compared with the first {rows} of {n} forget records only"


def _wrong_number(reference: RetainReference, n: int) -> UserError:
    return UserError(
        f"{reference.source}: {len(reference)} rows against our {n} forget records; a log without ids must have as "
        f"many rows, or TOFU's first {TOFU_ROWS}. Use the log of the same forget split, and evaluate all of its records"
    )


def _take(reference: RetainReference, rows: list[int], notes: Sequence[str]) -> RetainReference:
    """The reference with the forget rows at these positions only."""
    forget = [(key, row) for key, row in reference.rows.items() if key[0] == "forget"]
    others = [(key, row) for key, row in reference.rows.items() if key[0] != "forget"]
    return replace(reference, rows=dict([*(forget[row] for row in rows), *others]), notes=tuple(notes))
