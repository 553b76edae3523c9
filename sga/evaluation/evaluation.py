"""One evaluation's result: rows of per-sample numbers, and the metrics computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sga.data.records import Record
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.metrics import Floats
from sga.evaluation.ranges import possible_range
from sga.evaluation.row_metrics import MeanRows, RowMetric, plain_metric

_ROUNDING = 1e-12
"""Relative difference of sums of the same numbers in another order."""


@dataclass
class Evaluation:
    """Rows by evaluation set, and metrics by flat name.

    Attributes:
        name: Name of the benchmark, the prefix of its metrics.
        metrics: Value by name, such as ``tofu/model_utility``; its bootstrap interval, where it has one, under
            ``…/ci_low`` and ``…/ci_high``. Finite numbers only.
        absent: Reason by name, for each metric that could not be computed.
        notes: Sentences on limits of the numbers, shown with them.
        rows: Per-sample values by (evaluation set, record id), in the order of the set.
        texts: Record of each row, for writers of texts beside numbers; empty for a log of numbers.
        bootstrap: Resampling that intervals are computed with; None leaves them out.
        metric: Function from a class of metric and the name of a set to a metric: by default one with its rows in NumPy
            arrays; in a run a `torchmetrics.Metric`, which gathers the rows of all processes.
    """

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    texts: dict[tuple[str, str], Record] = field(default_factory=dict)
    bootstrap: Bootstrap | None = field(default_factory=Bootstrap)
    metric: Callable[[type[Any], str], Any] = plain_metric

    def row(self, set_name: str, record: Record) -> dict[str, Any]:
        """The row of a record in an evaluation set; a new empty one where there is none yet."""
        self.texts[set_name, record.id] = record
        return self.rows.setdefault((set_name, record.id), {})

    def of_set(self, set_name: str) -> list[dict[str, Any]]:
        """The rows of an evaluation set, in order."""
        return [row for (name, _), row in self.rows.items() if name == set_name]

    def column(self, set_name: str, field_name: str) -> Floats | None:
        """A field of a set's rows, [N]; None where the set is empty or a row lacks the field."""
        values = [row.get(field_name) for row in self.of_set(set_name)]
        if not values or any(value is None for value in values):
            return None
        return np.array(values, dtype=np.float64)

    def lists(self, set_name: str, field_name: str) -> list[list[float]] | None:
        """A field of a set's rows that holds a list of numbers per row; None where a row has none, or an empty list."""
        values = [row.get(field_name) for row in self.of_set(set_name)]
        return values if values and all(values) else None  # type: ignore[return-value]

    def note(self, text: str) -> None:
        """Adds a note unless it is there already: several metrics look at the same rows."""
        if text not in self.notes:
            self.notes.append(text)

    def values(self) -> dict[str, float]:
        """The metrics without the ends of their intervals."""
        return {name: value for name, value in self.metrics.items() if not name.endswith(("/ci_low", "/ci_high"))}

    def add(
        self,
        name: str,
        value: float,
        draws: Floats | None = None,
        sets: Mapping[str, int] | None = None,
        independent: int | None = None,
    ) -> None:
        """Adds a metric with its interval; a value that is not finite makes it absent.

        Args:
            name: Flat name of the metric, with the benchmark's prefix.
            value: Value of the metric on all rows.
            draws: Values of the metric on each resample, [resamples]; None leaves the interval out.
            sets: Number of rows of each set that was resampled; a set of one row leaves the interval out, with a note.
            independent: Number of independent rows, for means of values in `possible_range`: where all are at one end
                of the range, the interval is Wilson's. A metric without this number whose resamples are all alike has
                no interval, and a note.
        """
        if not math.isfinite(value):
            self.absent[name] = f"not a finite number: {value}"
            return
        self.metrics[name] = float(value)
        if draws is None or self.bootstrap is None:
            return
        single = [set_name for set_name, rows in (sets or {}).items() if rows == 1]
        if single:
            self.note(f"no interval for what is computed from one row: {' and '.join(single)}")
            return
        if not np.isfinite(draws).all():
            self.note(f"{name} has no interval: some resamples give no finite number")
            return
        low, high = self.bootstrap.interval(draws)
        if high - low <= _ROUNDING * max(1.0, abs(value)):
            bottom, top = possible_range(name)
            if independent is None or bottom is None or top is None or _inside(value, bottom, top):
                self.note(f"{name} has no interval: every resample gives the same")
                return
            reach = (top - bottom) * self.bootstrap.wilson_bound(independent)
            low, high = (bottom, bottom + reach) if value - bottom < top - value else (top - reach, top)
        self.metrics[f"{name}/ci_low"], self.metrics[f"{name}/ci_high"] = low, high

    def add_mean(self, name: str, set_name: str, values: Sequence[float] | Floats) -> None:
        """Adds the mean of per-row values of a set, [N], with its interval."""
        mean: MeanRows = self.metric(MeanRows, set_name)
        mean.update(values)
        self.add_metric(mean, mean=name)

    def add_metric(self, metric: RowMetric, **names: str) -> None:
        """Adds values of a metric over rows with their intervals.

        Args:
            metric: The metric, after `update` with its rows.
            names: Flat name for each value to add, by the value's name in the metric.
        """
        values, sizes = metric.values(), metric.sizes
        draws = {} if self.bootstrap is None else metric.draws(self.bootstrap)
        independent = min(sizes.values()) if metric.counts_rows else None
        for value, name in names.items():
            self.add(name, values[value], draws.get(value), sizes, independent)

    def leave_out_non_finite(self) -> None:
        """Makes metrics that are not finite absent and such numbers of rows None: JSON has neither NaN nor infinity."""
        for name, value in list(self.metrics.items()):
            if not math.isfinite(value):
                del self.metrics[name]
                self.absent[name] = f"not a finite number: {value}"
        for (set_name, _), row in self.rows.items():
            for field_name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    row[field_name] = None
                    self.note(f"{set_name}: some rows have no {field_name}, which was not a finite number")


def _inside(value: float, bottom: float, top: float) -> bool:
    """True if a value is away from both ends of its range by more than rounding."""
    return min(value - bottom, top - value) > _ROUNDING * (top - bottom)
