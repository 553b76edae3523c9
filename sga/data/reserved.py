"""Reserved rows: retain questions that unlearning never uses, so that utility is measured on unseen rows.

The starting model has learned them like all retain records; they are held out from unlearning only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sga.data.records import Benchmark, Record
from sga.errors import UserError

RETAIN_UNSEEN = "retain_unseen"
"""Name of the evaluation set of the reserved rows."""


def check_reserved(amount: float) -> None:
    """Raises a UserError unless `amount` is a share below 1, or a whole number of rows."""
    if not (math.isfinite(amount) and amount >= 0 and (amount < 1 or amount == int(amount))):
        raise UserError(
            f"reserved must be a share from 0 to below 1 of the evaluated retain questions, or their whole number, got "
            f"{amount}"
        )


def with_reserved(benchmark: Benchmark, amount: float, seed: int) -> Benchmark:
    """Adds the evaluation set ``retain_unseen``, drawn from the retain questions by the seed alone.

    Only questions that are both evaluated and in the retain pool can be reserved. If none are, the set is absent, with
    the reason.

    Args:
        benchmark: Benchmark whose retain questions are reserved.
        amount: Share of those questions, below 1, or their number; see `check_reserved`.
        seed: Seed of the draw.

    Raises:
        UserError: fewer questions can be reserved than the given number.
    """
    pool = {record.content for record in benchmark.training["retain"]}
    retain = benchmark.evaluation.get("retain", ())
    candidates = [record for record in retain if not record.is_text and record.content in pool]
    count = int(amount) if amount >= 1 else int(amount * len(candidates))
    if count > len(candidates):
        raise UserError(
            f"--data.reserved {count}: of the evaluated retain questions only {len(candidates)} are in the retain pool"
        )
    if count:
        rows = np.random.default_rng([seed, 0x4E5E]).choice(len(candidates), size=count, replace=False)
        reserved = tuple(candidates[row] for row in sorted(rows.tolist()))
        return replace(benchmark, evaluation={**benchmark.evaluation, RETAIN_UNSEEN: reserved})
    why = "no retain row is reserved (--data.reserved 0)"
    if retain and all(record.is_text for record in retain):
        why = "plain text has no question to answer"
    elif amount:
        why = f"no retain row is reserved: {amount:g} of {len(candidates)} retain questions is less than one"
        warnings.warn(
            f"{why}; utility cannot be measured on rows that unlearning has not seen. Give more retain records, or a "
            "number (--data.reserved 1)",
            stacklevel=2,
        )
    return replace(benchmark, absent={**benchmark.absent, RETAIN_UNSEEN: why})


def reserved_and_pool(benchmark: Benchmark) -> tuple[Sequence[Record], Sequence[Record]]:
    """Splits the retain pool into records with the content of a reserved row, and records that unlearning may use."""
    contents = {record.content for record in benchmark.evaluation.get(RETAIN_UNSEEN, ())}
    pool = benchmark.training["retain"]
    return (
        tuple(record for record in pool if record.content in contents),
        tuple(record for record in pool if record.content not in contents),
    )
