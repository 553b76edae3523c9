"""The metrics over rows as `torchmetrics.Metric`, for the callbacks and for your own loop.

Each class takes per-sample numbers batch by batch (`update`), gathers the rows of all processes, and returns the pure
function's value on all rows (`compute`) and its bootstrap interval (`interval`). Call `update`, not the metric itself:
a single batch often has no value. State is float64 whatever the model's type, so the metrics need a device that has
float64.

A distributed sampler repeats rows so that every process gets equally many; give `ids`, and repeated rows count once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.metrics import Floats
from sga.evaluation.row_metrics import (
    ForgetQualityRows,
    Kind,
    MeanRows,
    MembershipRows,
    PerplexityRows,
    RowMetric,
    TruthRatioRows,
    UtilityRows,
)


def _gather(result: Tensor, group: Any = None) -> list[Tensor]:
    """Gathers the tensors of all processes as float64.

    torchmetrics uses an empty float32 tensor for a process without rows; gathered with the others' float64, the sizes
    in bytes would not match.
    """
    gathered: list[Tensor] = gather_all_tensors(result.double(), group)
    return gathered


class _Gathered(RowMetric, Metric):
    """Rows in tensors, a list for each column, which torchmetrics gathers, resets, moves and saves.

    Args:
        set_name: Name of the evaluation set of the rows; metrics of one set share the resamples of `interval`.
        settings: Settings of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, set_name: str = "rows", **settings: Any) -> None:
        # No cache of the last `compute`: a process without a new row would answer from it, while the others wait for
        # its part of the gathering.
        Metric.__init__(self, dist_sync_fn=_gather, compute_with_cache=False, **settings)
        self.set_name = set_name
        for column in self.columns:
            self.add_state(column, [], dist_reduce_fx="cat")

    def _append(self, column: str, pairs: Floats) -> None:
        getattr(self, column).append(torch.from_numpy(pairs).to(self.device))

    def _pairs(self, column: str) -> Floats:
        # A list, perhaps empty, before processes are gathered, and a tensor after it.
        state = getattr(self, column)
        pairs: Floats = (dim_zero_cat(state) if len(state) else torch.zeros(0)).double().cpu().numpy()
        return pairs

    def compute(self) -> dict[str, Tensor] | Tensor:
        """Values by name as float64 scalars on the metric's device; where there is a single value, that scalar alone.

        Raises:
            UserError: there is no row, a value is not finite, or ids do not tell rows apart.
        """
        values = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in self.values().items()
        }
        return values if len(values) > 1 else next(iter(values.values()))

    def interval(self, bootstrap: Bootstrap) -> dict[str, tuple[float, float]]:
        """Percentile intervals (low, high) by name, over the rows of all processes."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return super().interval(bootstrap)


class RowMeanMetric(_Gathered, MeanRows):
    __doc__ = MeanRows.__doc__


class PerplexityMetric(_Gathered, PerplexityRows):
    """Token-weighted perplexity, ``exp(sum(total_nll) / sum(tokens))``.

    >>> perplexity = PerplexityMetric()
    >>> perplexity.update([2.0], [2])
    >>> perplexity.update([24.0], [8])
    >>> round(perplexity.compute()["log"].item(), 12)  # (2 + 24) / (2 + 8)
    2.6
    """

    higher_is_better = False


class TruthRatioMetric(_Gathered, TruthRatioRows):
    __doc__ = TruthRatioRows.__doc__


class ForgetQualityMetric(_Gathered, ForgetQualityRows):
    __doc__ = ForgetQualityRows.__doc__
    higher_is_better = True


class MembershipAUCMetric(_Gathered, MembershipRows):
    __doc__ = MembershipRows.__doc__


class ModelUtilityMetric(_Gathered, UtilityRows):
    __doc__ = UtilityRows.__doc__
    higher_is_better = True


_METRICS = {kind.__bases__[1]: kind for kind in _Gathered.__subclasses__()}


def torch_metric(kind: type[Kind], set_name: str) -> Kind:
    """The `torchmetrics.Metric` of a class of `RowMetric`, for rows that every process has in full (no gathering)."""
    return cast(Kind, _METRICS[kind](set_name, sync_on_compute=False))
