"""Metrics with state: batches, processes and repeated rows give what the pure function gives on every row once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor
from torchmetrics import Metric

from sga.errors import UserError
from sga.evaluation import metrics
from sga.evaluation.accumulated import (
    ForgetQualityMetric,
    MembershipAUCMetric,
    ModelUtilityMetric,
    PerplexityMetric,
    TruthRatioMetric,
    torch_metric,
)
from sga.evaluation.aggregation import add_forget_quality, add_membership, add_perplexity, add_utility
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import MODEL_UTILITY_PARTS

ROWS = 37
TIGHT = {"rel": 1e-12, "abs": 1e-12}
"""float64; sums run in another order."""

METRICS: dict[str, type[Metric]] = {
    "perplexity": PerplexityMetric,
    "truth ratio": TruthRatioMetric,
    "forget quality": ForgetQualityMetric,
    "membership": MembershipAUCMetric,
    "utility": ModelUtilityMetric,
}
KEEP_ROWS = ("truth ratio", "forget quality", "membership")


def columns() -> dict[str, Tensor]:
    """Per-sample numbers of 37 rows, none alike."""
    rng = np.random.default_rng(0)
    values = {name: torch.from_numpy(rng.normal(size=ROWS)) for name in ("own", "reference", "score")}
    values["score"][::2] -= 0.7  # every other row is a member
    values["total_nll"] = torch.from_numpy(rng.exponential(30, size=ROWS))
    values["tokens"] = torch.from_numpy(rng.integers(1, 60, size=ROWS))
    return values | {name: torch.from_numpy(rng.random(ROWS)) for name in MODEL_UTILITY_PARTS}


def add(metric: Metric, rows: list[int], ids: bool) -> None:
    """One update with these rows of `columns`; for model utility one of each set."""
    values = {name: column[rows] for name, column in columns().items()}
    given: dict[str, Any] = {"ids": torch.tensor(rows, dtype=torch.int64)} if ids else {}
    if isinstance(metric, PerplexityMetric):
        metric.update(values["total_nll"], values["tokens"])
    elif isinstance(metric, TruthRatioMetric):
        metric.update(values["own"], **given)
    elif isinstance(metric, ForgetQualityMetric):
        metric.update(values["own"], values["reference"], **given)
    elif isinstance(metric, MembershipAUCMetric):
        metric.update(values["score"], torch.tensor(rows) % 2 == 0, **given)
    elif isinstance(metric, ModelUtilityMetric):
        for name in ("retain", "real_authors", "world_facts"):
            metric.update(name, **{part: values[f"{name}_{part}"] for part in ("probability", "rouge", "truth_ratio")})


def computed(metric: Metric) -> dict[str, float]:
    value = metric.compute()
    return {name: v.item() for name, v in (value if isinstance(value, dict) else {"auc": value}).items()}


def expected(name: str) -> dict[str, float]:
    """The pure function on every row once."""
    values = {key: column.numpy() for key, column in columns().items()}
    if name == "perplexity":
        return vars(metrics.perplexity(values["total_nll"], values["tokens"]))
    if name == "truth ratio":
        own = values["own"]
        return {"retain": metrics.truth_ratio_retain(own), "forget": metrics.truth_ratio_forget(own)}
    if name == "forget quality":
        quality = metrics.forget_quality(values["own"], values["reference"])
        return {key: getattr(quality, key) for key in ("p_value", "log10_p", "ks_statistic", "n")}
    if name == "membership":
        return {"auc": metrics.membership_auc(values["score"][::2], values["score"][1::2])}
    parts = {part: float(values[part].mean()) for part in MODEL_UTILITY_PARTS}
    return {"model_utility": metrics.model_utility(parts), **parts}


def batches(rows: list[int], size: int = 5) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@pytest.mark.parametrize("name", METRICS)
def test_batches_give_what_the_pure_function_gives_on_everything(name: str) -> None:
    """37 rows in batches of 5: the last one has 2. After a reset again, and half of the rows give another value."""
    metric = METRICS[name]()
    order = np.random.default_rng(1).permutation(ROWS).tolist()
    for rows in batches(order):
        add(metric, rows, ids=False)
    assert computed(metric) == pytest.approx(expected(name), **TIGHT)
    metric.reset()
    for rows in batches(order[:18]):
        add(metric, rows, ids=False)
    assert computed(metric) != pytest.approx(expected(name), rel=1e-3)
    for rows in batches(order[18:]):
        add(metric, rows, ids=False)
    assert computed(metric) == pytest.approx(expected(name), **TIGHT)


@pytest.mark.parametrize("name", KEEP_ROWS)
def test_rows_that_are_given_twice_count_once_with_ids_and_twice_without(name: str) -> None:
    order = [*range(ROWS), 0, 1, 2, 3, 3]
    with_ids, without = METRICS[name](), METRICS[name]()
    for rows in batches(order):
        add(with_ids, rows, ids=True)
        add(without, rows, ids=False)
    assert computed(with_ids) == pytest.approx(expected(name), **TIGHT)
    assert computed(without) != pytest.approx(expected(name), rel=1e-6)


def test_state_is_float64_whatever_comes_in() -> None:
    """0.1 as a list is the double 0.1; bfloat16 is taken as it is; nothing keeps a graph."""
    metric = TruthRatioMetric()
    metric.update([-0.1])
    assert metric.compute()["forget"].item() == math.exp(-0.1)
    metric.update(torch.tensor([-0.5], dtype=torch.bfloat16, requires_grad=True))
    value = metric.compute()["forget"]
    assert (value.dtype, value.requires_grad) == (torch.float64, False)
    assert value.item() == pytest.approx((math.exp(-0.1) + math.exp(-0.5)) / 2, rel=1e-15)
    assert [column.dtype for column in metric.log_ratio] == [torch.float64] * 2
    assert metric.clone().compute() == metric.compute()


def test_an_empty_batch_adds_nothing() -> None:
    for name, kind in METRICS.items():
        metric = kind()
        add(metric, [], ids=name in KEEP_ROWS)
        add(metric, list(range(ROWS)), ids=name in KEEP_ROWS)
        add(metric, [], ids=name in KEEP_ROWS)
        assert computed(metric) == pytest.approx(expected(name), **TIGHT)


def test_members_and_nonmembers_may_come_apart_and_share_ids() -> None:
    """Both sets count their rows from 0. Pairs: 1 < 3, 1 < 2, 2.5 < 3, 2.5 > 2: 3/4."""
    metric = MembershipAUCMetric()
    metric.update([1.0, 2.5], True, ids=[0, 1])
    metric.update([3.0, 2.0], False, ids=[0, 1])
    metric.update([2.0], False, ids=[1])
    assert metric.compute().item() == 0.75


def test_parts_of_model_utility_may_come_one_at_a_time() -> None:
    """Eight parts of 1/2 and one of (0 + 1/2)/2: 9 / (8·2 + 4) = 0.45."""
    metric = ModelUtilityMetric()
    for name in ("retain", "real_authors", "world_facts"):
        metric.update(name, probability=[0.5], truth_ratio=[0.5, 0.5])
        metric.update(name, rouge=[0.0, 0.5] if name == "retain" else [0.5])
    value = metric.compute()
    assert value["model_utility"].item() == pytest.approx(0.45, rel=1e-15)
    assert value["retain_rouge"].item() == 0.25


# Refusals


def test_ids_that_start_again_in_each_process_are_refused_and_a_row_scored_twice_is_not() -> None:
    values = columns()["own"]
    metric = TruthRatioMetric()
    metric.update(values[:18], ids=torch.arange(18))
    metric.update(values[18:36], ids=torch.arange(18))
    with pytest.raises(UserError, match="ids must tell rows apart, but log_ratio of id"):
        metric.compute()
    metric.reset()
    metric.update(values, ids=torch.arange(ROWS))
    metric.update(values[:3].bfloat16(), ids=torch.arange(3))
    assert computed(metric) == pytest.approx(expected("truth ratio"), **TIGHT)


def incomplete(call: Any) -> Any:
    """The call on a new metric; then its value."""

    def run() -> None:
        metric = call()
        metric.compute()

    return run


def utility_of_retain_alone() -> Metric:
    metric = ModelUtilityMetric()
    metric.update("retain", [0.5], [0.5], [0.5])
    return metric


def ids_once() -> Metric:
    metric = TruthRatioMetric()
    metric.update([0.5], ids=[1])
    metric.update([0.5])
    return metric


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: PerplexityMetric().update([1.0, 2.0], [3]), "2 total_nll, 1 tokens"),
        (lambda: PerplexityMetric().update([1.0], [0]), "at least 1"),
        (lambda: PerplexityMetric().update([math.nan], [1]), "finite"),
        (lambda: TruthRatioMetric().update([[1.0]]), "one-dimensional"),
        (lambda: TruthRatioMetric().update([1.0, 2.0], ids=[1]), "1 ids of 2 rows"),
        (lambda: TruthRatioMetric().update([1.0], ids=[0.5]), "whole numbers"),
        (lambda: TruthRatioMetric().update([1.0], ids=[2**53 + 2]), "53 bits"),
        (lambda: ForgetQualityMetric().update([1.0], [1.0, 2.0]), "1 log_ratio, 2 reference_log_ratio"),
        (lambda: MembershipAUCMetric().update([1.0], [0.5]), "true or false"),
        (lambda: ModelUtilityMetric().update("forget", [0.5]), "real_authors"),
        (lambda: ModelUtilityMetric().update("retain", [1.5]), r"retain_probability must be in \[0, 1\]"),
        (lambda: ModelUtilityMetric().update("retain", rouge=[math.nan]), "retain_rouge"),
        (incomplete(utility_of_retain_alone), "missing: real_authors_probability"),
        (incomplete(ids_once), "1 ids of 2 rows"),
    ],
)
def test_wrong_input_is_refused(call: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_without_rows_has_no_value(name: str) -> None:
    with pytest.raises(UserError):
        METRICS[name]().compute()


# The classes of evaluations


def test_an_evaluation_computes_through_torchmetrics_what_a_log_gives() -> None:
    """Values, intervals, absences and notes are equal; every metric of the run is updated and computed as a Metric."""
    computed_by: list[Metric] = []
    rng = np.random.default_rng(0)
    rows = {
        (name, f"{name}/{number}"): {
            "avg_nll": float(rng.exponential()),
            "paraphrased_nll": float(rng.exponential()),
            "perturbed_nll": rng.exponential(2, size=3).tolist(),
            "rouge_l_recall": float(rng.random()),
            "min_k": float(rng.normal()),
        }
        for name in ("forget", "retain", "real_authors", "world_facts", "holdout")
        for number in range(9)
    }

    def made(kind: Any, set_name: str) -> Any:
        metric = torch_metric(kind, set_name)
        computed_by.append(metric)
        return metric

    plain = Evaluation("own", rows={key: dict(row) for key, row in rows.items()})
    run = Evaluation("own", rows={key: dict(row) for key, row in rows.items()}, metric=made)
    for evaluation in (plain, run):
        add_utility(evaluation, {})
        add_forget_quality(evaluation, None, {})
        add_membership(evaluation, 0.5, {})
        add_perplexity(evaluation, "forget", np.arange(1.0, 9.0), np.arange(1.0, 9.0)[::-1])
    assert run.metrics == plain.metrics and run.absent == plain.absent and run.notes == plain.notes
    assert len(run.metrics) > 40
    assert len(computed_by) > 10 and all(isinstance(metric, Metric) for metric in computed_by)


def test_intervals_are_those_of_the_rows_whatever_the_batches() -> None:
    scores = columns()["score"]
    metric = MembershipAUCMetric()
    metric.update(scores[:20], torch.arange(20) % 2 == 0)
    metric.update(scores[20:], torch.arange(20, ROWS) % 2 == 0)
    bootstrap = Bootstrap(resamples=50)
    values = scores.numpy()
    draws = bootstrap.aucs("forget", values[::2], "holdout", values[1::2])
    assert metric.interval(bootstrap) == {"auc": bootstrap.interval(draws)}
    low, high = metric.interval(bootstrap)["auc"]
    assert low < metric.compute().item() < high


# Two processes


def share(rank: int) -> list[int]:
    """25 rows for one process and 12 for the other: five full batches, and two with a last one of 2."""
    return list(range(25)) if rank == 0 else list(range(25, ROWS))


def process(rank: int, folder: str) -> None:
    """What one of two processes computes, every case with its own metric, written to `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, kind in METRICS.items():
        found[name, "unequal"] = run(kind(), share(rank), ids=False)
        # a process without any row, as with fewer rows than processes
        found[name, "none on one"] = run(kind(), list(range(ROWS)) if rank == 0 else [], ids=False)
    for name in KEEP_ROWS:
        # what DistributedSampler does: 37 rows, 19 for each process, the first one twice
        repeated = [*range(ROWS), 0][rank::2]
        found[name, "repeated"] = run(METRICS[name](), repeated, ids=True)
        found[name, "repeated without ids"] = run(METRICS[name](), repeated, ids=False)
        found[name, "ids, none on one"] = run(METRICS[name](), list(range(ROWS)) if rank == 0 else [], ids=True)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def run(metric: Metric, rows: list[int], ids: bool) -> dict[str, float]:
    """The value of all rows. It is computed once before that: gathering leaves each process its own rows, and a process
    that gets no more rows takes part again.
    """
    metric.to(
        "cpu"
    )  # as Lightning moves it, which resets the type that torchmetrics assumes for a process without rows
    for batch in batches(rows[:10]):
        add(metric, batch, ids)
    early = computed(metric)
    for batch in batches(rows[10:]):
        add(metric, batch, ids)
    late = computed(metric)
    assert early != late or not rows
    return late


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, float]]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.start_processes(process, args=(str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", ["unequal", "none on one"])
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.runs
def test_two_processes_give_what_one_gives(two_processes: list[Any], name: str, case: str) -> None:
    for found in two_processes:
        assert found[name, case] == pytest.approx(expected(name), **TIGHT)


@pytest.mark.parametrize("name", KEEP_ROWS)
def test_rows_that_a_distributed_sampler_repeats_count_once_with_ids(two_processes: list[Any], name: str) -> None:
    for found in two_processes:
        assert found[name, "repeated"] == pytest.approx(expected(name), **TIGHT)
        assert found[name, "ids, none on one"] == pytest.approx(expected(name), **TIGHT)
        assert found[name, "repeated without ids"] != pytest.approx(expected(name), rel=1e-6)
