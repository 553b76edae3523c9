"""Metrics over rows: add numbers per row batch by batch, then get the value on all rows or on bootstrap resamples.

The arithmetic is in `sga.evaluation.metrics`; this module stores the rows and counts each once. Rows are NumPy arrays,
so that logs are scored without torch. `sga.evaluation.accumulated` has the same classes as `torchmetrics.Metric`, with
rows in tensors that are gathered from all processes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import numpy as np

from sga.errors import UserError
from sga.evaluation import metrics
from sga.evaluation.bootstrap import Bootstrap, harmonic_means
from sga.evaluation.metrics import MODEL_UTILITY_PARTS, Floats

Column = Any
"""One number per row, [N]: a tensor on any device, an array or a list."""

Kind = TypeVar("Kind", bound="RowMetric")

LARGEST_ID = 2**53
"""Largest id: ids are stored as float64, which holds every whole number up to here."""

_ROUNDING = 1e-6
"""Rounding error by which a share may be below 0 or above 1."""


class RowMetric:
    """Base of metrics over rows: stores the rows, and computes values and intervals from them.

    Args:
        set_name: Name of the evaluation set of the rows. Metrics of one set share its bootstrap resamples. A metric of
            several sets has set names of its own.
    """

    columns: ClassVar[tuple[str, ...]]
    """Names of the stored columns; each is a list of arrays [2·N], where a row's value is followed by its id or NaN."""
    counts_rows: ClassVar[bool] = True
    """True for means and AUCs of independent rows, whose interval at an end of their range is Wilson's."""

    def __init__(self, set_name: str = "rows") -> None:
        self.set_name = set_name
        for column in self.columns:
            setattr(self, column, [])

    def values(self) -> dict[str, float]:
        """Values of the metric on all rows, by name."""
        raise NotImplementedError

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        """Values on each resample, [resamples], by the names of `values`; names without an interval are left out."""
        return {}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows by evaluation set."""
        return {self.set_name: len(self._rows(self.columns[0]))}

    def interval(self, bootstrap: Bootstrap) -> dict[str, tuple[float, float]]:
        """Percentile intervals (low, high) by name; for resamples that are all alike see docs/metrics.md."""
        return {name: bootstrap.interval(draws) for name, draws in self.draws(bootstrap).items()}

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _keep(self, ids: Column | None, **columns: Column) -> None:
        """Adds rows; the columns are aligned, and must have one length.

        Raises:
            UserError: the columns differ in length, or ids are not whole numbers.
        """
        arrays = {name: _vector(name, values) for name, values in columns.items()}
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) > 1:
            said = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
            raise UserError(f"an update needs one value a row of each, got {said}")
        marks = _ids(ids, lengths.pop())
        for name, array in arrays.items():
            self._append(name, np.stack([array, marks], axis=1).ravel())

    def _append(self, column: str, pairs: Floats) -> None:
        getattr(self, column).append(pairs)

    def _pairs(self, column: str) -> Floats:
        return np.concatenate([np.zeros(0), *getattr(self, column)])

    def _rows(self, column: str) -> Floats:
        """Values of a column, [N]; the first one of each id.

        Raises:
            UserError: only some rows have ids; or the values of one id are too far apart for one row scored twice, as
                when each process counts its ids from 0. Rows would otherwise be dropped silently.
        """
        pairs = self._pairs(column).reshape(-1, 2)
        values: Floats = pairs[:, 0]
        ids: Floats = pairs[:, 1]
        given = int((~np.isnan(ids)).sum())
        if not given:
            return values
        if given != len(ids):
            raise UserError(f"ids must be given in each update or in none, got {given} ids of {len(ids)} rows")
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        # bfloat16 in another batch moves a value in its third digit; values of two rows differ by about their spread.
        with np.errstate(invalid="ignore"):  # the metric itself refuses values that are not finite
            gap = np.abs(values - values[first][inverse])
            allowed = 0.1 * values.std() + 1e-2 * np.abs(values)
        apart = np.flatnonzero(gap > allowed)
        if len(apart):
            one, other = values[first][inverse][apart[0]], values[apart[0]]
            raise UserError(
                f"ids must tell rows apart, but {column} of id {ids[apart[0]]:.0f} is {one:g} and {other:g}; "
                "number the rows over all processes and batches"
            )
        once: Floats = values[np.sort(first)]
        return once


def plain_metric(kind: type[Kind], set_name: str) -> Kind:
    """A metric whose rows are NumPy arrays in this process."""
    return kind(set_name)


# ---- the metrics ----------------------------------------------------------------------------------------------------


class MeanRows(RowMetric):
    """Mean of one number per row: a probability, ROUGE, memorisation, a loss."""

    columns = ("value",)

    def update(self, value: Column, ids: Column | None = None) -> None:
        """Adds rows.

        Args:
            value: Number of each row, [N], in any unit.
            ids: Whole number that identifies each row, [N]; rows with the same id count once. In each update or none.

        Raises:
            UserError: `ids` has another length than `value`, or ids are not whole numbers.
        """
        self._keep(ids, value=value)

    def values(self) -> dict[str, float]:
        rows = self._rows("value")
        if not len(rows):
            raise UserError("a mean needs at least one row; none was added")
        return {"mean": float(rows.mean())}

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        return {"mean": bootstrap.means(self.set_name, self._rows("value"))}


class PerplexityRows(RowMetric):
    """Token-weighted perplexity, ``exp(sum(total_nll) / sum(tokens))``.

    The values are ``log`` (nats per token) and ``value`` (exp of it, infinite for a log above 709); lower is better.
    """

    columns = ("total_nll", "tokens")

    def update(self, total_nll: Column, tokens: Column, ids: Column | None = None) -> None:
        """Adds sequences.

        Args:
            total_nll: Negative log-likelihood of each sequence, [N], nats, summed over its tokens.
            tokens: Number of scored tokens of each sequence, [N].
            ids: Whole number that identifies each row, [N]; rows with the same id count once. In each update or none.

        Raises:
            UserError: the columns differ in length, a number is not finite, or a sequence has no token.
        """
        nll, count = _vector("total_nll", total_nll), _vector("tokens", tokens)
        if len(nll) == len(count) > 0:
            metrics.perplexity(nll, count)  # checks the batch now, while the error can be traced to it
        self._keep(ids, total_nll=nll, tokens=count)

    def values(self) -> dict[str, float]:
        nll, tokens = self._rows("total_nll"), self._rows("tokens")
        if not len(nll):
            raise UserError("perplexity needs at least one sequence; none was added")
        found = metrics.perplexity(nll, tokens)
        return {"log": found.log, "value": found.value}

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        logs = bootstrap.ratios(self.set_name, self._rows("total_nll"), self._rows("tokens"))
        fits = logs.max() < math.log(np.finfo(np.float64).max)
        return {"log": logs, **({"value": np.exp(logs)} if fits else {})}


class TruthRatioRows(RowMetric):
    """TOFU's two Truth Ratio scores: one for sets to retain, one for the forget set.

    The values are ``retain`` = mean(max(0, 1 - R)) and ``forget`` = mean(min(R, 1/R)) of the same rows, in [0, 1];
    higher is better for both. Read the one that the set is for; the other has no meaning.
    """

    columns = ("log_ratio",)

    def update(self, log_ratio: Column, ids: Column | None = None) -> None:
        """Adds rows of one set.

        Args:
            log_ratio: Log R of each row, [N], from `sga.evaluation.metrics.log_truth_ratio`.
            ids: Whole number that identifies each row, [N]; rows with the same id count once. In each update or none.

        Raises:
            UserError: `ids` has another length than `log_ratio`, or ids are not whole numbers.
        """
        self._keep(ids, log_ratio=log_ratio)

    def values(self) -> dict[str, float]:
        rows = self._rows("log_ratio")
        return {"retain": metrics.truth_ratio_retain(rows), "forget": metrics.truth_ratio_forget(rows)}

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        rows = self._rows("log_ratio")
        scores = {"retain": metrics.truth_ratio_retain, "forget": metrics.truth_ratio_forget}
        return {
            name: bootstrap.means(self.set_name, np.array([score([row]) for row in rows]))
            for name, score in scores.items()
        }


class ForgetQualityRows(RowMetric):
    """TOFU's Forget Quality: the unlearned model's truth ratios against the retain model's on the same rows.

    The values are ``p_value``, ``log10_p``, ``ks_statistic`` and ``n``, as in `ForgetQualityResult`: higher is better
    for the first two, lower for the third; n is the number of rows that counted. For a reference that was scored on
    other rows, or on another number of them, use `sga.evaluation.metrics.forget_quality`.
    """

    columns = ("log_ratio", "reference_log_ratio")

    def update(self, log_ratio: Column, reference_log_ratio: Column, ids: Column | None = None) -> None:
        """Adds rows of the forget set.

        Args:
            log_ratio: Log R of the unlearned model, [N] (`sga.evaluation.metrics.log_truth_ratio`).
            reference_log_ratio: Log R of the retain model on the same rows, [N].
            ids: Whole number that identifies each row, [N]; rows with the same id count once. In each update or none.
                The p-value depends on the number of rows, so a repeated row would change it.

        Raises:
            UserError: the columns differ in length, or ids are not whole numbers.
        """
        self._keep(ids, log_ratio=log_ratio, reference_log_ratio=reference_log_ratio)

    def values(self) -> dict[str, float]:
        found = metrics.forget_quality(self._rows("log_ratio"), self._rows("reference_log_ratio"))
        return {name: getattr(found, name) for name in ("p_value", "log10_p", "ks_statistic", "n")}

    def direction(self, forget_nll: float, reference_forget_nll: float) -> metrics.Direction:
        """Reason of a low value, by the mean avg_nll (nats per token) of the forget answers under both models."""
        rows = self._rows("log_ratio"), self._rows("reference_log_ratio")
        return metrics.forget_quality(*rows, forget_nll, reference_forget_nll).direction


class MembershipRows(RowMetric):
    """AUC with which a score that is low for members (a loss, Min-K %) tells the forget set from the holdout set.

    The value is `sga.evaluation.metrics.membership_auc` of all rows, in [0, 1], 1 = members recognised perfectly.
    """

    columns = ("member", "nonmember")

    def update(self, scores: Column, is_member: Column | bool, ids: Column | None = None) -> None:
        """Adds rows of the forget set, of the holdout set or of both.

        Args:
            scores: Score of each row, [N], low = member.
            is_member: True for each row of the forget set, [N]; or one value for all rows.
            ids: Whole number that identifies each row, [N]; rows with the same id in the same set count once. In each
                update of a set or in none.

        Raises:
            UserError: the columns differ in length, `is_member` has values other than true and false, or ids are not
                whole numbers.
        """
        values = _vector("scores", scores)
        members = np.full(len(values), float(is_member)) if isinstance(is_member, bool) else is_member
        members = _vector("is_member", members)
        if len(members) != len(values):
            raise UserError(
                f"an update needs one value a row of each, got {len(values)} scores, {len(members)} is_member"
            )
        if not np.isin(members, (0, 1)).all():
            raise UserError("is_member must be true or false for each row")
        marks = _ids(ids, len(values))
        for name, mask in (("member", members == 1), ("nonmember", members == 0)):
            self._append(name, np.stack([values[mask], marks[mask]], axis=1).ravel())

    @property
    def sizes(self) -> dict[str, int]:
        return {"forget": len(self._rows("member")), "holdout": len(self._rows("nonmember"))}

    def values(self) -> dict[str, float]:
        return {"auc": metrics.membership_auc(self._rows("member"), self._rows("nonmember"))}

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        return {"auc": bootstrap.aucs("forget", self._rows("member"), "holdout", self._rows("nonmember"))}


class UtilityRows(RowMetric):
    """TOFU's Model Utility: the harmonic mean of nine means.

    The values are ``model_utility`` and its nine parts by the names in `MODEL_UTILITY_PARTS`, all in [0, 1].
    """

    columns = MODEL_UTILITY_PARTS
    counts_rows = False

    def update(
        self,
        set_name: str,
        probability: Column = (),
        rouge: Column = (),
        truth_ratio: Column = (),
        ids: Column | None = None,
    ) -> None:
        """Adds rows of one set; the three parts may be added together or one at a time.

        Args:
            set_name: Name of the rows' set: retain, real_authors or world_facts.
            probability: Probability of each row, [N]: exp(-avg_nll) of the answer on retain; on the other two
                p_right / (p_right + sum of p_wrong), each p = exp(-avg_nll).
            rouge: ROUGE-L recall of each greedy answer, [N], in [0, 1].
            truth_ratio: Truth ratio score of each row, [N], max(0, 1 - R).
            ids: Whole number that identifies each row, [N]; rows with the same id in the same set count once. In each
                update or none.

        Raises:
            UserError: the set is unknown, a value is outside [0, 1], or ids are not whole numbers.
        """
        for part, values in (("probability", probability), ("rouge", rouge), ("truth_ratio", truth_ratio)):
            name = f"{set_name}_{part}"
            if name not in MODEL_UTILITY_PARTS:
                raise UserError(f"set_name must be retain, real_authors or world_facts, got {set_name!r}")
            array = _vector(name, values)
            if not ((array >= -_ROUNDING) & (array <= 1 + _ROUNDING)).all():  # false for NaN too
                raise UserError(f"{name} must be in [0, 1] for each row")
            if len(array):
                self._keep(ids, **{name: array})

    @property
    def _sets(self) -> dict[str, str]:
        """Evaluation set by its name among the parts; retain rows of another set have resamples of their own."""
        retain = "retain" if self.set_name == "rows" else self.set_name
        return {"retain": retain, "real_authors": "real_authors", "world_facts": "world_facts"}

    @property
    def sizes(self) -> dict[str, int]:
        return {set_name: len(self._rows(f"{name}_probability")) for name, set_name in self._sets.items()}

    def values(self) -> dict[str, float]:
        rows = {name: self._rows(name) for name in MODEL_UTILITY_PARTS}
        parts = {name: float(values.mean()) for name, values in rows.items() if len(values)}
        return {"model_utility": metrics.model_utility(parts), **parts}

    def draws(self, bootstrap: Bootstrap) -> dict[str, Floats]:
        parts = {
            part: bootstrap.means(set_name, self._rows(part))
            for name, set_name in self._sets.items()
            for part in MODEL_UTILITY_PARTS
            if part.startswith(name)
        }
        return {"model_utility": harmonic_means(list(parts.values())), **parts}


# ---- what comes in --------------------------------------------------------------------------------------------------


def _vector(name: str, values: Column) -> Floats:
    """Converts a tensor, array or list to float64, [N]."""
    if hasattr(values, "detach"):  # a tensor, perhaps of a type that NumPy does not have (bfloat16)
        values = values.detach().double().cpu().numpy()
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UserError(f"{name} must be one-dimensional, one number a row, got shape {list(array.shape)}")
    return array


def _ids(ids: Column | None, rows: int) -> Floats:
    """Ids as float64, [N]; NaN for each row if there are none."""
    if ids is None:
        return np.full(rows, np.nan)
    given = ids.detach().cpu().numpy() if hasattr(ids, "detach") else np.asarray(ids)
    if len(given) and not np.issubdtype(given.dtype, np.integer):
        raise UserError(f"ids must be whole numbers, got {given.dtype}")
    if len(given) and np.abs(given).max() > LARGEST_ID:
        raise UserError("ids must be within 2**53 of 0; number the rows, or cut hashes to 53 bits")
    column = _vector("ids", given)
    if len(column) != rows:
        raise UserError(f"an update needs one id a row, got {len(column)} ids of {rows} rows")
    return column
