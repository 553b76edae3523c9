"""The numbers of one run in another one: as they came, shuffled in time, or their mean.

A rule that follows the gradients does two things at once: it finds a level, and it moves at certain times. Its own
numbers shuffled keep level and spread and lose the timing; their mean keeps the level alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sga.errors import UserError, check_finite, check_numbers
from sga.files import read_json_object, write_json
from sga.rates.geometry import Geometry
from sga.rates.policies import RatePolicy, RateState

RATES_FILE = "rates.json"
"""Name of the file in a run folder that has the number of each optimiser step."""


def write_rates(path: Path, parameter: str, values: Sequence[float]) -> None:
    """Writes the numbers that were in force at each optimiser step of a run.

    Args:
        path: Path of the file to write.
        parameter: Argument of the loss that they are for, ``smoothing_rate`` or ``normal_weight``.
        values: The numbers, in order.
    """
    write_json(path, {"parameter": parameter, "values": list(values)})


@dataclass(frozen=True)
class ReplayedRate(RatePolicy):
    """Takes the numbers that another run left in ``rates.json``, one for each optimiser step.

    Args:
        file: Path of that file, or of the run folder that has it.
        order: Order of the numbers: ``same``; ``shuffled``, which keeps their level and spread and loses their timing;
            or ``mean``, their mean at every step.
        seed: Seed of the shuffle.
    """

    file: str
    order: Literal["same", "shuffled", "mean"] = "same"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ("same", "shuffled", "mean"):
            raise UserError(f"order must be same, shuffled or mean, got {self.order!r}")
        check_numbers(0, seed=self.seed)

    @cached_property
    def path(self) -> Path:
        """Path of the file."""
        path = Path(self.file)
        return path / RATES_FILE if path.is_dir() else path

    @cached_property
    def _content(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise UserError(
                f"{self.path}: there is no such file; a finished run whose rate a policy set has one in its folder"
            )
        content = read_json_object(self.path)
        values = content.get("values")
        if not isinstance(values, list) or not values or not all(type(one) in (int, float) for one in values):
            raise UserError(f"{self.path}: 'values' must be numbers, one for each optimiser step of a run")
        if content.get("parameter") not in ("smoothing_rate", "normal_weight"):
            raise UserError(f"{self.path}: 'parameter' must be smoothing_rate or normal_weight, as the numbers are for")
        return content

    @property
    def parameter(self) -> str:  # type: ignore[override]
        """Argument of a loss that the numbers are for."""
        return str(self._content["parameter"])

    @cached_property
    def values(self) -> list[float]:
        """The numbers in their new order."""
        found = [float(value) for value in self._content["values"]]
        for value in found:
            check_finite(**{f"{self.path}: values": value})
        if self.order == "mean":
            return [float(np.mean(found))] * len(found)
        return (
            [found[i] for i in np.random.default_rng(self.seed).permutation(len(found))]
            if self.order == "shuffled"
            else found
        )

    @property
    def bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def check_steps(self, total_steps: int) -> None:
        if total_steps != len(self.values):
            raise UserError(
                f"{self.path} has the numbers of {len(self.values)} optimiser steps, and this run takes {total_steps}: "
                "give it the batch size and the epochs of the run that they are from"
            )

    def decide(self, state: RateState, step: int, total_steps: int, geometry: Geometry | None) -> RateState:
        return replace(state, value=self.values[step])
