"""What one evaluation found: rows of per-sample numbers, and the metrics that are made of them."""

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
        name: The benchmark's name, prefix of its metrics.
        metrics: Value by name, such as ``tofu/model_utility``; its bootstrap interval, where it has one, under
            ``…/ci_low`` and ``…/ci_high``. Finite numbers only.
        absent: For each metric that could not be computed, why.
        notes: What a reader of the numbers should know.
        rows: Per-sample values by (evaluation set, record id), in the order of the set.
        texts: The record of each row, for those who write texts beside numbers; empty for a log of numbers.
        bootstrap: Where intervals come from; None leaves them out.
        metric: Function that makes a metric of a kind and the name of its set: by default one that keeps its rows in
            arrays; in a run one that is a `torchmetrics.Metric`.
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
        """The row of a record in an evaluation set, made where it is not there yet."""
        self.texts[set_name, record.id] = record
        return self.rows.setdefault((set_name, record.id), {})

    def of_set(self, set_name: str) -> list[dict[str, Any]]:
        """The rows of an evaluation set, in order."""
        return [row for (name, _), row in self.rows.items() if name == set_name]

    def column(self, set_name: str, field_name: str) -> Floats | None:
        """[N], one number a row; None where the set is empty or a row lacks it."""
        values = [row.get(field_name) for row in self.of_set(set_name)]
        if not values or any(value is None for value in values):
            return None
        return np.array(values, dtype=np.float64)

    def lists(self, set_name: str, field_name: str) -> list[list[float]] | None:
        """One list of numbers a row; None where the set is empty or a row lacks it or has an empty one."""
        values = [row.get(field_name) for row in self.of_set(set_name)]
        return values if values and all(values) else None  # type: ignore[return-value]

    def note(self, text: str) -> None:
        """Adds a note, once: several metrics look at the same rows."""
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
        """Adds a metric with its interval; one that is not finite is absent.

        Args:
            name: Its name.
            value: Its value.
            draws: [resamples], its resampled values, of which the interval is made; None leaves it out.
            sets: Number of rows by the sets that were resampled; a single row leaves the interval out, with a note.
            independent: Number of independent rows, for means of values in `possible_range`: where all of them are at
                one end of it, the interval is Wilson's. Others whose resamples are all alike have none, with a note.
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
        """Adds the mean of per-row values of a set with its interval."""
        mean: MeanRows = self.metric(MeanRows, set_name)
        mean.update(values)
        self.add_metric(mean, mean=name)

    def add_metric(self, metric: RowMetric, **names: str) -> None:
        """Adds values of a metric over rows with their intervals.

        Args:
            metric: The metric, with its rows.
            names: Name of each value that is added, by its name in the metric.
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
    """Whether a value is away from both ends, but for rounding."""
    return min(value - bottom, top - value) > _ROUNDING * (top - bottom)
