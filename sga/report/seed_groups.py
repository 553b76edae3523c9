"""Runs that differ in nothing but the seed, put together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sga.errors import UserError
from sga.runs.folder import Run, load_run

_SEED_IN_PATH = re.compile(r"[-_]?seed[-_=]?\d+")


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: The runs' label, with their folder's name where two settings would have the same one.
        runs: By ascending seed; never empty.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run of the lowest seed, which stands for the setting where one run is shown."""
        return self.runs[0]

    def values(self, name: str) -> list[float]:
        """The chosen value of each run that has one; ``frontier_area`` is a name too."""
        found = (run.frontier_area if name == "frontier_area" else run.value(name) for run in self.runs)
        return [value for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        """Mean of `values` over the seeds; None without one."""
        values = self.values(name)
        return sum(values) / len(values) if values else None


def read_runs(runs: Iterable[str | Path | Run]) -> list[Run]:
    """Reads several run folders for a comparison; a folder named twice counts once.

    Raises:
        UserError: A run cannot be read (see `load_run`), no run is given, or the benchmarks differ.
    """
    found: dict[Path, Run] = {}
    for item in runs:
        run = item if isinstance(item, Run) else load_run(item)
        found.setdefault(run.path.resolve(), run)
    if not found:
        raise UserError("no run folder given; a report needs at least one")
    benchmarks: dict[str, Path] = {}
    for run in found.values():
        benchmarks.setdefault(run.benchmark, run.path)
    if len(benchmarks) > 1:
        named = "; ".join(f"{path} is of {name!r}" for name, path in benchmarks.items())
        raise UserError(f"runs of different benchmarks cannot be compared: {named}; make one report for each")
    return list(found.values())


def by_seed_group(runs: Sequence[Run]) -> list[SeedGroup]:
    """Puts runs that differ in the seed only together: target, retain, GA, SGA from mild to strong, GD, the rest.

    Two runs belong together where label, group size and path agree once ``seed…`` is taken out of the path, so a
    sweep over anything else never ends up in one mean.
    """
    groups: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        place = _SEED_IN_PATH.sub("", str(run.path.resolve()))
        groups.setdefault((run.label, run.group_size, place), []).append(run)
    settings = []
    for (label, _, place), members in groups.items():
        rivals = [Path(other[2]) for other in groups if other[0] == label]
        if len(rivals) > 1:
            names = [rival.name for rival in rivals]
            short = Path(place).name if len(set(names)) == len(names) else "/".join(Path(place).parts[-2:])
            label = f"{label} ({short})"
        settings.append(SeedGroup(label, tuple(sorted(members, key=lambda run: run.seed))))
    return sorted(settings, key=_order)


def pick(settings: Iterable[SeedGroup], method: str | None = None) -> SeedGroup | None:
    """The unlearning setting, of one method or of any, with the largest mean frontier area; ties go to the first.

    Where no area is known, the first setting; None where there is no setting at all.
    """
    candidates = [s for s in settings if s.first.role == "unlearn" and method in (None, s.first.method)]
    if not candidates:
        return None
    areas = [setting.mean("frontier_area") for setting in candidates]
    return candidates[max(range(len(candidates)), key=lambda i: -1.0 if (area := areas[i]) is None else area)]


def _order(setting: SeedGroup) -> tuple[int, float, float, str]:
    run = setting.first
    kinds = ["target", "retain", "GA", "SGA", "GD"]
    rank = kinds.index(run.method) if run.method in kinds else len(kinds)
    rate = -math.inf if run.smoothing_rate is None else run.smoothing_rate
    return rank, -rate, run.normal_weight or 0.0, setting.label
