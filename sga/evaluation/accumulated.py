"""The metrics as `torchmetrics.Metric`, for a loop of one's own: state here, arithmetic in `sga.evaluation.metrics`.

Each class takes per-sample numbers batch by batch (`update`), gathers the processes of a distributed run, and gives
what the pure function gives on everything (`compute`). Call `update`, not the metric itself: one batch alone often has
no value. State is float64 whatever the model's type, so the metrics need a device that has float64.

A distributed sampler repeats rows so that every process gets equally many. Metrics that keep their rows drop repeats if
they are told which rows are the same (`ids`); metrics that keep sums cannot: leave repeated rows out of `update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from sga.errors import UserError
from sga.evaluation import metrics
from sga.evaluation.metrics import MODEL_UTILITY_PARTS, Floats

Column = Tensor | npt.NDArray[Any] | Sequence[float]
"""[N] numbers, one a row: a tensor on any device, an array or a list."""

LARGEST_ID = 2**53
"""ids travel as float64, which holds every whole number up to here."""


def _gather(result: Tensor, group: Any = None) -> list[Tensor]:
    """All processes' tensors, as float64.

    torchmetrics takes an empty float32 tensor for the rows of a process that has none; gathered with the others'
    float64, the bytes would not fit.
    """
    gathered: list[Tensor] = gather_all_tensors(result.double(), group)
    return gathered


# Without the cache, which holds until the next update: a process that got no row since the last `compute` would answer
# from it while the others wait for its part.
_SYNC: dict[str, Any] = {"dist_sync_fn": _gather, "compute_with_cache": False}


class PerplexityMetric(Metric):
    """Token-weighted perplexity, ``exp(sum(total_nll) / sum(tokens))``; a row that is given twice counts twice.

    >>> perplexity = PerplexityMetric()
    >>> perplexity.update([2.0], [2])
    >>> perplexity.update([24.0], [8])
    >>> round(perplexity.compute()["log"].item(), 12)  # (2 + 24) / (2 + 8)
    2.6
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    total_nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__(**_SYNC)
        for name in ("total_nll", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total_nll: Column, tokens: Column) -> None:
        """Adds sequences.

        Args:
            total_nll: [N], nats, summed over the tokens of a sequence.
            tokens: [N], number of scored tokens.

        Raises:
            UserError: misaligned or not finite, or a sequence without a token.
        """
        nll, count = _columns(self.device, total_nll=total_nll, tokens=tokens)
        if len(nll):
            metrics.perplexity(nll.cpu().numpy(), count.cpu().numpy())  # a sum would hide what this refuses
        self.total_nll = self.total_nll + nll.sum()
        self.tokens = self.tokens + count.sum()

    def compute(self) -> dict[str, Tensor]:
        """``log`` (nats per token) and ``value`` (exp of it, infinite for a log above 709): scalars, lower is better.

        Raises:
            UserError: no sequence was added.
        """
        if not self.tokens:
            raise UserError("perplexity needs at least one sequence; none was added")
        found = metrics.perplexity(self.total_nll.item(), self.tokens.item())
        return _scalars(self.device, log=found.log, value=found.value)


class TruthRatioMetric(Metric):
    """TOFU's two Truth Ratio scores: the one of sets to be kept and the one of the forget set."""

    full_state_update = False
    is_differentiable = False
    log_ratio: list[Tensor] | Tensor
    ids: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(**_SYNC)
        for name in ("log_ratio", "ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, log_ratio: Column, ids: Column | None = None) -> None:
        """Adds rows of one set.

        Args:
            log_ratio: [N], log R of `sga.evaluation.metrics.log_truth_ratio`.
            ids: [N], whole numbers; rows with the same id count once. In each update or in none.

        Raises:
            UserError: misaligned, or ids that are no whole numbers.
        """
        [values] = _columns(self.device, log_ratio=log_ratio)
        _append(self, log_ratio=values, ids=_id_column(ids, len(values), self.device))

    def compute(self) -> dict[str, Tensor]:
        """``retain`` = mean(max(0, 1 - R)) and ``forget`` = mean(min(R, 1/R)) of the same rows: scalars in [0, 1].

        Only the one that the set is for has a meaning; higher is better for both.

        Raises:
            UserError: no row, one that is not finite, or ids that do not tell rows apart.
        """
        [values] = _rows(self.ids, log_ratio=self.log_ratio)
        return _scalars(
            self.device, retain=metrics.truth_ratio_retain(values), forget=metrics.truth_ratio_forget(values)
        )


class ForgetQualityMetric(Metric):
    """TOFU's Forget Quality, the unlearned model's truth ratios against the retain model's on the same rows.

    For a reference that was scored on other rows, or on another number of them, use
    `sga.evaluation.metrics.forget_quality`, which also says which way a low value is low.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    log_ratio: list[Tensor] | Tensor
    reference_log_ratio: list[Tensor] | Tensor
    ids: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(**_SYNC)
        for name in ("log_ratio", "reference_log_ratio", "ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, log_ratio: Column, reference_log_ratio: Column, ids: Column | None = None) -> None:
        """Adds rows of the forget set.

        Args:
            log_ratio: [N], log R of the unlearned model (`sga.evaluation.metrics.log_truth_ratio`).
            reference_log_ratio: [N], log R of the retain model on the same rows.
            ids: [N], whole numbers; rows with the same id count once. In each update or in none. The p-value depends
                on the number of rows, so a repeated row would change it.

        Raises:
            UserError: misaligned, or ids that are no whole numbers.
        """
        own, reference = _columns(self.device, log_ratio=log_ratio, reference_log_ratio=reference_log_ratio)
        _append(self, log_ratio=own, reference_log_ratio=reference, ids=_id_column(ids, len(own), self.device))

    def compute(self) -> dict[str, Tensor]:
        """``p_value``, ``log10_p``, ``ks_statistic`` and ``n``: scalars, as in `ForgetQualityResult`.

        Higher is better for the first two, lower for the third; n is the number of rows that counted.

        Raises:
            UserError: no row, one that is not finite, or ids that do not tell rows apart.
        """
        own, reference = _rows(self.ids, log_ratio=self.log_ratio, reference_log_ratio=self.reference_log_ratio)
        found = metrics.forget_quality(own, reference)
        return _scalars(
            self.device, p_value=found.p_value, log10_p=found.log10_p, ks_statistic=found.ks_statistic, n=found.n
        )


class MembershipAUCMetric(Metric):
    """How well a score that is low for members (a loss, Min-K %) tells the forget set from the holdout set."""

    full_state_update = False
    is_differentiable = False
    member: list[Tensor] | Tensor
    member_ids: list[Tensor] | Tensor
    nonmember: list[Tensor] | Tensor
    nonmember_ids: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__(**_SYNC)
        for name in ("member", "member_ids", "nonmember", "nonmember_ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Column, is_member: Column | bool, ids: Column | None = None) -> None:
        """Adds rows of the forget set, of the holdout set or of both.

        Args:
            scores: [N], low = member.
            is_member: [N], true for rows of the forget set; or one value for all of them.
            ids: [N], whole numbers; rows with the same id in the same set count once. In each update of a set or in
                none.

        Raises:
            UserError: misaligned, `is_member` neither true nor false, or ids that are no whole numbers.
        """
        members = [float(is_member)] * len(scores) if isinstance(is_member, bool) else is_member
        values, members = _columns(self.device, scores=scores, is_member=members)
        if not ((members == 0) | (members == 1)).all():
            raise UserError("is_member must be true or false for each row")
        kept_ids = _id_column(ids, len(values), self.device)
        for name, mask in (("member", members == 1), ("nonmember", members == 0)):
            _append(self, **{name: values[mask], f"{name}_ids": None if kept_ids is None else kept_ids[mask]})

    def compute(self) -> Tensor:
        """`sga.evaluation.metrics.membership_auc` of all rows: a scalar in [0, 1], 1 = members recognised perfectly.

        Raises:
            UserError: one of the sets has no row, a score is not finite, or ids that do not tell rows apart.
        """
        [members] = _rows(self.member_ids, member=self.member)
        [nonmembers] = _rows(self.nonmember_ids, nonmember=self.nonmember)
        auc = metrics.membership_auc(members, nonmembers)
        return torch.tensor(auc, dtype=torch.float64, device=self.device)


class ModelUtilityMetric(Metric):
    """TOFU's Model Utility, the harmonic mean of nine means; a row that is given twice counts twice."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__(**_SYNC)
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(len(MODEL_UTILITY_PARTS), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        set_name: Literal["retain", "real_authors", "world_facts"],
        probability: Column = (),
        rouge: Column = (),
        truth_ratio: Column = (),
    ) -> None:
        """Adds rows of one set; the three parts may come together or one at a time.

        Args:
            set_name: The set that the rows are from.
            probability: [N], exp(-avg_nll) of the answer on retain; on the other two
                p_right / (p_right + sum of p_wrong), each p = exp(-avg_nll).
            rouge: [N], ROUGE-L recall of the greedy answer.
            truth_ratio: [N], max(0, 1 - R).

        Raises:
            UserError: an unknown set, or a value outside [0, 1].
        """
        for part, values in (("probability", probability), ("rouge", rouge), ("truth_ratio", truth_ratio)):
            name = f"{set_name}_{part}"
            if name not in MODEL_UTILITY_PARTS:
                raise UserError(f"set_name must be retain, real_authors or world_facts, got {set_name!r}")
            [column] = _columns(self.device, **{name: values})
            if not ((column >= 0) & (column <= 1)).all():  # false for NaN too
                raise UserError(f"{name} must be in [0, 1] for each row")
            index = MODEL_UTILITY_PARTS.index(name)
            self.sums[index] += column.sum()
            self.counts[index] += len(column)

    def compute(self) -> dict[str, Tensor]:
        """``model_utility`` and beside it its nine parts by the names in `MODEL_UTILITY_PARTS`: scalars in [0, 1].

        Raises:
            UserError: parts without a row (all of them are named).
        """
        parts = {
            name: total / count
            for name, total, count in zip(MODEL_UTILITY_PARTS, self.sums.tolist(), self.counts.tolist(), strict=True)
            if count
        }
        return _scalars(self.device, model_utility=metrics.model_utility(parts), **parts)


def _columns(device: torch.device, **columns: Column) -> list[Tensor]:
    """The columns as float64 [N] on the device, all of the same length."""
    tensors = [torch.as_tensor(values, dtype=torch.float64, device=device).detach() for values in columns.values()]
    for name, tensor in zip(columns, tensors, strict=True):
        if tensor.ndim != 1:
            raise UserError(f"{name} must be one-dimensional, one number a row, got shape {list(tensor.shape)}")
    if len({len(tensor) for tensor in tensors}) > 1:
        lengths = ", ".join(f"{len(tensor)} {name}" for name, tensor in zip(columns, tensors, strict=True))
        raise UserError(f"an update needs one value a row of each, got {lengths}")
    return tensors


def _id_column(ids: Column | None, rows: int, device: torch.device) -> Tensor | None:
    if ids is None:
        return None
    given = torch.as_tensor(ids)
    if len(given) and given.is_floating_point():
        raise UserError(f"ids must be whole numbers, got {given.dtype}")
    if len(given) and given.abs().max() > LARGEST_ID:
        raise UserError("ids must be within 2**53 of 0; number the rows, or cut hashes to 53 bits")
    [column] = _columns(device, ids=given)
    if len(column) != rows:
        raise UserError(f"an update needs one id a row, got {len(column)} ids of {rows} rows")
    return column


def _append(metric: Metric, **states: Tensor | None) -> None:
    for name, column in states.items():
        if column is not None:
            getattr(metric, name).append(column)


def _rows(ids: list[Tensor] | Tensor, **columns: list[Tensor] | Tensor) -> list[Floats]:
    """The kept columns, each [N]; of rows with the same id the first one.

    Raises:
        UserError: ids for some rows only; or values of one id that are too far apart for one row scored twice, as when
            each process counts its ids from 0. Half of the rows would otherwise be dropped without a word.
    """
    values = [_array(column) for column in columns.values()]
    given = _array(ids)
    if not len(given):
        return values
    if len(given) != len(values[0]):
        raise UserError(f"ids must be given in each update or in none, got {len(given)} ids of {len(values[0])} rows")
    _, first, inverse = np.unique(given, return_index=True, return_inverse=True)
    for name, column in zip(columns, values, strict=True):
        # bfloat16 in another batch moves a value in its third digit; values of two rows differ by about their spread.
        with np.errstate(invalid="ignore"):  # what is not finite is refused by the metric
            gap = np.abs(column - column[first][inverse])
            allowed = 0.1 * column.std() + 1e-2 * np.abs(column)
        apart = np.flatnonzero(gap > allowed)
        if len(apart):
            one, other = column[first][inverse][apart[0]], column[apart[0]]
            raise UserError(
                f"ids must tell rows apart, but {name} of id {given[apart[0]]:.0f} is {one:g} and {other:g}; "
                "number the rows over all processes and batches"
            )
    return [column[np.sort(first)] for column in values]


def _array(state: list[Tensor] | Tensor) -> Floats:
    """[N]; a state is a list before processes were gathered and a tensor after that."""
    if isinstance(state, list) and not state:
        return np.zeros(0)
    array: Floats = dim_zero_cat(state).cpu().numpy()
    return array


def _scalars(device: torch.device, **values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in values.items()}
