"""One evaluation of one model, row by row, whichever program wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["sga", "tofu", "open-unlearning"]

Part = Literal["all", "reference", "raw"]


@dataclass(frozen=True, eq=False)
class Log:
    """One evaluation of one model, row by row.

    Attributes:
        source: Path of the file that was read.
        kind: Program that wrote the log: this package, TOFU's own code or open-unlearning.
        benchmark: Name of the benchmark, the prefix of its metrics; None where a run folder does not say.
        settings: Settings that the log was made with (template, split, dtype, …); unstated ones are missing or None.
        rows: Per-sample numbers by (evaluation set, record id), in the log's order, with those fields of
            `sga.evaluation.aggregation` that the log has, and ``tokens``, the number of scored tokens of the answer. A
            ready-made truth ratio is there only where the losses are missing.
        has_ids: False for a foreign log, where the ids are positions ``"0"``, ``"1"``, …
        step: Optimiser step of the evaluation that was read; None for a foreign log.
        membership_auc: AUC by score (``"min_k"``, ``"loss"``, …) that the log states, in [0, 1], 1 = members
            recognised perfectly; None where it states none.
        stated: Other aggregates that a foreign log states, by our metric names without prefix.
        notes: Sentences on limits of this log's numbers, shown with them.
    """

    source: str
    kind: Kind
    benchmark: str | None
    settings: Mapping[str, str | None]
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    has_ids: bool
    step: int | None = None
    membership_auc: Mapping[str, float] | None = None
    stated: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> dict[str, int]:
        """Number of rows by evaluation set."""
        counts: dict[str, int] = {}
        for name, _ in self.rows:
            counts[name] = counts.get(name, 0) + 1
        return counts

    def ids(self, set_name: str) -> tuple[str, ...]:
        """Ids of the rows of an evaluation set, in order."""
        return tuple(record_id for name, record_id in self.rows if name == set_name)

    def of_set(self, set_name: str) -> list[Mapping[str, Any]]:
        """The rows of an evaluation set, in order."""
        return [row for (name, _), row in self.rows.items() if name == set_name]
