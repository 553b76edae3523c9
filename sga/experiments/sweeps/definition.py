"""Sweep files: the runs that a file defines, each with its whole configuration and a hash of it."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sga.errors import UserError
from sga.experiments.configuration import (
    Values,
    applied,
    block,
    content_digest,
    digest,
    list_value,
    mapping_value,
    named_config,
    read_settings,
    set_value,
)
from sga.experiments.task import Task
from sga.files import is_number

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

Stage = Literal["choose", "final"]
DIRECTIONS = ("maximize", "minimize", "toward_reference")
"""Directions of an objective; toward_reference is nearest to the retain model's value, with both sides worse."""


_KEYS = {"config", "models", "common", "settings", "grid", "search", "seeds", "choose", "objectives", "keep_weights"}

_BINDINGS = {"target": "model.language_model.name_or_path", "retain": "evaluation.reference"}
"""Setting of a trial that gets the location of each shared model, by role."""

_SLUG_LENGTH = 80


@dataclass(frozen=True)
class Trial(Task):
    """A run of a sweep.

    Attributes:
        values: Settings in which its configuration differs from the sweep's others, by dotted name.
        seed: Seed of the run, for data and training.
        stage: Stage of the run: ``choose`` if settings are chosen by it, ``final`` if it is reported.
    """

    values: Values = field(default_factory=dict)
    seed: int = 0
    stage: Stage = "final"


@dataclass(frozen=True)
class Result:
    """Values of the objectives for a run that has ended, or the reason why there are none."""

    values: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Search:
    """An Optuna search: distributions by setting, the number of trials, and the sampler that draws them.

    Optuna's choices are numbers and texts, so configuration blocks are passed to it as JSON.
    """

    space: dict[str, Distribution]
    trials: int
    sampler: Literal["tpe", "random"]
    seed: int

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """Settings by dotted name, decoded from the values that Optuna has drawn."""
        return {name: json.loads(one) if hasattr(self.space[name], "choices") else one for name, one in drawn.items()}


@dataclass(frozen=True)
class Choose:
    """First stage of a sweep: `settings` are chosen on `seeds`, separately for each combination of other values."""

    settings: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep file as read.

    Attributes:
        path: Path of the sweep file.
        base: Configuration that all trials share, with common and own settings applied.
        models: Shared models by role: tasks for those that are trained here (several for retained models), a location
            for each existing one.
        grid: Values of each setting to combine, by dotted name; empty for a search.
        search: Optuna search that draws the trials; None for a grid.
        seeds: Seeds of the reported runs.
        choose: First stage in which settings are chosen; None without one.
        objectives: Direction by metric, one of `DIRECTIONS`; choices are made by the first metric.
        keep_weights: True to keep checkpoints and exported models of finished trials.
    """

    path: Path
    base: dict[str, Any]
    models: dict[str, tuple[Task, ...] | str]
    grid: dict[str, list[Any]]
    search: Search | None
    seeds: tuple[int, ...]
    choose: Choose | None
    objectives: dict[str, str]
    keep_weights: bool

    @property
    def key(self) -> str:
        """Hash of the sweep's definition; sweeps with different hashes share only runs that both define."""
        search = self.search and [repr(self.search.space), self.search.sampler, self.search.seed]  # trials may grow
        parts = [self.base, self.model_keys, self.grid, search, self.seeds, self.choose and vars(self.choose)]
        return digest([*parts, self.objectives])

    @cached_property
    def model_keys(self) -> dict[str, str]:
        """Hash of the shared models by role; an existing one is hashed as it was when the sweep file was read."""
        return {
            role: content_digest(models, rows=role == "retain")
            if isinstance(models, str)
            else " ".join(one.key for one in models)
            for role, models in self.models.items()
        }

    @property
    def model_tasks(self) -> list[Task]:
        """Tasks of the shared models that have to be trained first."""
        return [one for models in self.models.values() if not isinstance(models, str) for one in models]

    def task(self, values: Values, seed: int, stage: Stage = "final") -> Trial:
        """Task for one combination of values and one seed."""
        config = applied(self.base, values)
        key = digest([config, self.model_keys])
        taken = {_BINDINGS[role]: one for role, one in self.models.items() if isinstance(one, str)}
        return Trial(
            f"trials/{slug(values)}-{key[:8]}-seed{seed}",  # the report groups runs whose names differ in the seed
            applied(config, {"seed_everything": seed, **taken}),
            {
                _BINDINGS[role]: models if len(models) > 1 else models[0]
                for role, models in self.models.items()
                if not isinstance(models, str)
            },
            digest([key, seed]),
            f"{label(values)}, seed {seed}",
            self.keep_weights,
            values,
            seed,
            stage,
        )

    def combinations(self) -> list[Values]:
        """Combinations of the grid's values, with the first setting varying slowest.

        >>> sweep = Sweep(Path("s"), {}, {}, {"a": [1, 2], "b": [3]}, None, (0,), None, {}, False)
        >>> sweep.combinations()
        [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
        """
        return [dict(zip(self.grid, row, strict=True)) for row in itertools.product(*self.grid.values())]

    def tasks(self, results: Mapping[str, Result]) -> list[Trial]:
        """Runs of the grid that are known so far: all but those whose settings are still to be chosen.

        Args:
            results: Results of runs that have ended, by key.
        """
        if self.choose is None:
            return [self.task(values, seed) for values in self.combinations() for seed in self.seeds]
        first, second = [], []
        for group in self.groups():
            tasks = {i: [self.task(v, seed, "choose") for seed in self.choose.seeds] for i, v in enumerate(group)}
            first += [task for several in tasks.values() for task in several]
            chosen = self.chosen(group, results)
            second += [self.task(chosen, seed) for seed in self.seeds] if chosen is not None else []
        # A seed that is in both stages is one run, which counts as reported.
        final = {task.key for task in second}
        return [task for task in first if task.key not in final] + second

    @property
    def run_count(self) -> int:
        """Number of runs of a grid, including those whose settings are still to be chosen."""
        if self.choose is None:
            return len(self.combinations()) * len(self.seeds)
        more = len(set(self.seeds) - set(self.choose.seeds))
        return len(self.combinations()) * len(self.choose.seeds) + len(self.groups()) * more

    def groups(self) -> list[list[Values]]:
        """Groups of combinations that differ only in the settings to be chosen."""
        assert self.choose is not None, "there is something to choose"
        groups: dict[str, list[Values]] = {}
        for values in self.combinations():
            rest = {name: value for name, value in values.items() if name not in self.choose.settings}
            groups.setdefault(digest(rest), []).append(values)
        return list(groups.values())

    def chosen(self, group: Sequence[Values], results: Mapping[str, Result]) -> Values | None:
        """Best values of a group by the mean first objective over the choosing seeds; ties go to the earlier one.

        None while a run is unfinished, and also in the end if no combination has finished on every seed.
        """
        assert self.choose is not None, "there is something to choose"
        sign = 1.0 if next(iter(self.objectives.values())) == "maximize" else -1.0
        scores: list[tuple[float, int]] = []
        for number, values in enumerate(group):
            found = [results.get(self.task(values, seed, "choose").key) for seed in self.choose.seeds]
            ended = [result for result in found if result is not None]
            if len(ended) < len(found):
                return None
            if all(result.reason is None for result in ended):
                scores.append((sign * sum(result.values[0] for result in ended) / len(ended), -number))
        return group[-max(scores)[1]] if scores else None

    def at_edges(self, values: Values) -> list[str]:
        """Chosen numbers at either end of the values tried, in words: better ones may lie beyond."""
        found = []
        for name in self.choose.settings if self.choose is not None else ():
            tried = self.grid[name]
            numbers = all(map(is_number, tried))
            if numbers and values[name] in (min(tried), max(tried)):
                found.append(f"{name} = {value_text(values[name])}, of {value_text(sorted(tried))}")
        return found

    def examples(self) -> Iterator[Values]:
        """Combinations in which each value of each setting occurs, for checks before anything runs."""
        if self.search is not None:
            options = {
                name: [one.low] if hasattr(one, "low") else one.choices for name, one in self.search.space.items()
            }
            yield from (self.search.values(drawn) for drawn in _examples(options))
        else:
            yield from _examples(self.grid)


def _examples(options: Mapping[str, Sequence[Any]]) -> Iterator[Values]:
    first = {name: values[0] for name, values in options.items()}
    yield first
    yield from ({**first, name: value} for name, values in options.items() for value in values[1:])


def read_sweep(path: Path, overrides: Values | None = None) -> Sweep:
    """Reads a sweep file; paths in it are relative to it.

    Args:
        path: Path of the sweep file.
        overrides: Settings by dotted name for every run, models included, which win over the file's.

    Raises:
        UserError: the file is missing or not of the expected form; names the place.
    """
    plan = mapping_value(read_settings(path), str(path))
    unknown = sorted(set(plan) - _KEYS)
    if unknown:
        raise UserError(f"{path}: there is no {', '.join(map(repr, unknown))}; choose from {', '.join(sorted(_KEYS))}")
    if ("grid" in plan) == ("search" in plan):
        raise UserError(f"{path}: needs either grid or search")
    common = {**mapping_value(plan.get("common"), f"{path}: common"), **(overrides or {})}
    models = {
        role: _model(path, role, wanted, common)
        for role, wanted in mapping_value(plan.get("models"), f"{path}: models").items()
    }
    settings = {**common, **mapping_value(plan.get("settings"), f"{path}: settings")}
    keep = plan.get("keep_weights", False)
    if not isinstance(keep, bool):
        raise UserError(f"{path}: keep_weights must be true or false, got {keep!r}")
    base = _quiet(named_config(path, plan.get("config"), settings), keep, path)
    for role in models:  # their paths are set once the sweep folder is known, and do not count in the hash
        set_value(base, _BINDINGS[role], f"<{role}>")
    grid = mapping_value(plan.get("grid"), f"{path}: grid")
    grid = {name: list_value(values, f"{path}: grid: {name}") for name, values in grid.items()}
    if "grid" in plan and not grid:
        raise UserError(f"{path}: grid must name at least one setting with its values")
    sweep = Sweep(
        path,
        base,
        models,
        grid,
        _search(path, plan["search"]) if "search" in plan else None,
        _seeds(plan.get("seeds", [0]), f"{path}: seeds"),
        _choose(path, plan["choose"], grid) if "choose" in plan else None,
        _objectives(plan.get("objectives", ["frontier_area"]), f"{path}: objectives"),
        keep,
    )
    _ = sweep.model_keys  # hashed now: later files in an existing model's folder must not change the sweep's key
    return sweep


def _model(path: Path, role: str, wanted: Any, common: Values) -> tuple[Task, ...] | str:
    """Tasks of the models of one role to be trained, or the location of an existing model."""
    if role not in _BINDINGS:
        raise UserError(f"{path}: models: there is no {role!r}; choose from {', '.join(_BINDINGS)}")
    where = f"{path}: models: {role}"
    wanted = {"config": wanted} if isinstance(wanted, str | list) else mapping_value(wanted, where)
    if set(wanted) == {"folder"}:
        location = str(wanted["folder"])
        if not Path(location).exists():
            _check_elsewhere(role, location, where)
        return location
    if not {"config"} <= set(wanted) <= {"config", "settings", "seeds"}:
        raise UserError(f"{where}: needs a config, with settings or without, or the folder of a model that is there")
    if "seeds" in wanted and role != "retain":
        raise UserError(f"{where}: there is one {role}; several seeds are for the retained models")
    seeds = (
        [{"seed_everything": seed} for seed in _seeds(wanted["seeds"], f"{where}: seeds")]
        if "seeds" in wanted
        else [{}]
    )
    tasks = []
    for seed in seeds:
        settings = {**common, **mapping_value(wanted.get("settings"), where), **seed}
        config = _quiet(named_config(path, wanted["config"], settings), True, path)
        key = digest(config)
        tasks.append(Task(f"models/{role}-{key[:8]}", config, key=key))
    return tuple(tasks)


def _check_elsewhere(role: str, location: str, where: str) -> None:
    """Refuses a model's location that is no file or folder, unless it may be a name on the Hub or several models."""
    from sga.models.pretrained import Pretrained  # takes seconds to import

    if location.startswith("["):
        return
    if role == "retain":
        raise UserError(f"{where}: folder: {location}: no such file or folder")
    try:
        Pretrained(location)
    except UserError as error:
        raise UserError(f"{where}: folder: {error}") from None


def _quiet(config: dict[str, Any], keep_weights: bool, path: Path) -> dict[str, Any]:
    """Adapts a configuration to a sweep: no progress bar, no own run folder, no export unless weights are kept."""
    if "run" in config:
        block(config, "run", str(path)).pop("folder", None)
    block(config, "trainer", str(path)).setdefault("enable_progress_bar", False)
    if not keep_weights:
        block(config, "export", str(path)).setdefault("enabled", False)
    return config


def _search(path: Path, wanted: Any) -> Search:
    where = f"{path}: search"
    wanted = mapping_value(wanted, where)
    unknown = set(wanted) - {"space", "trials", "sampler", "seed"}
    trials, sampler, seed = wanted.get("trials"), wanted.get("sampler", "tpe"), wanted.get("seed", 0)
    if unknown or not isinstance(trials, int) or trials < 1 or not isinstance(seed, int):
        raise UserError(f"{where}: needs space and trials (at least 1), and may have sampler and seed, got {wanted!r}")
    if sampler not in ("tpe", "random"):
        raise UserError(f"{where}: sampler must be tpe or random, got {sampler!r}")
    space = mapping_value(wanted.get("space"), f"{where}: space")
    if not space:
        raise UserError(f"{where}: space must name at least one setting")
    return Search({name: _distribution(one, f"{where}: {name}") for name, one in space.items()}, trials, sampler, seed)


def _distribution(wanted: Any, where: str) -> Distribution:
    from sga.experiments.sweeps.search import optuna

    made: Distribution
    make = optuna().distributions
    wanted = mapping_value(wanted, where)
    step = wanted.pop("step", None)
    kinds = ("uniform", "log_uniform", "int", "log_int", "choice")
    if len(wanted) != 1 or next(iter(wanted)) not in kinds:
        raise UserError(f"{where}: must be one of {', '.join(kinds)} with its values, and a step or none")
    kind, values = next(iter(wanted.items()))
    values = list_value(values, where)
    if kind == "choice":
        made = make.CategoricalDistribution([json.dumps(value) for value in values])
        return made
    log, whole = kind.startswith("log"), kind.endswith("int")
    if len(values) != 2 or not all(_is_number(value, whole) for value in values) or values[0] >= values[1]:
        raise UserError(f"{where}: {kind} needs its lowest and its highest value, got {values}")
    if log and (values[0] <= 0 or step is not None):
        raise UserError(f"{where}: {kind} needs positive values and no step, got {values}")
    if not (step is None or (_is_number(step, whole) and step > 0)):
        raise UserError(f"{where}: step must be a positive number, got {step!r:.60}")
    numbers = make.IntDistribution if whole else make.FloatDistribution
    made = numbers(*values, log=log, step=step or (1 if whole else None))
    return made


def _is_number(value: Any, whole: bool) -> bool:
    return is_number(value) and (isinstance(value, int) or not whole) and abs(value) <= sys.float_info.max


def _choose(path: Path, wanted: Any, grid: Mapping[str, Any]) -> Choose:
    where = f"{path}: choose"
    wanted = mapping_value(wanted, where)
    if set(wanted) != {"settings", "seeds"} or not grid:
        raise UserError(f"{where}: needs settings (names of the grid) and seeds, and a grid to choose from")
    settings = tuple(str(name) for name in list_value(wanted["settings"], f"{where}: settings"))
    if not set(settings) <= set(grid):
        raise UserError(f"{where}: settings must be among the grid's ({', '.join(grid)}), got {', '.join(settings)}")
    return Choose(settings, _seeds(wanted["seeds"], f"{where}: seeds"))


def _objectives(wanted: Any, where: str) -> dict[str, str]:
    objectives: dict[str, str] = {}
    for one in list_value(wanted, where):
        named = one if isinstance(one, dict) and len(one) == 1 else {str(one): "maximize"}
        objectives |= {str(name): str(direction) for name, direction in named.items()}
    wrong = {direction for direction in objectives.values()} - set(DIRECTIONS)
    if wrong:
        raise UserError(
            f"{where}: a direction is maximize or minimize or toward_reference, got {', '.join(sorted(wrong))}"
        )
    return objectives


def _seeds(wanted: Any, where: str) -> tuple[int, ...]:
    seeds = list_value(wanted, where)
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: must be different whole numbers, got {seeds}")
    return tuple(seeds)


def label(values: Values) -> str:
    """Label of a configuration in words, by the settings that are varied.

    >>> label({"model.loss": {"class_path": "sga.GradientDifference", "init_args": {"normal_weight": 1.5}},
    ...        "model.optimizer.lr": 0.0002})
    'GradientDifference normal_weight=1.5, lr=0.0002'
    """
    short = short_names(list(values))
    return ", ".join(
        value_text(value) if isinstance(value, dict) and "class_path" in value else f"{short[name]}={value_text(value)}"
        for name, value in values.items()
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Shortest unique ending of each dotted name, by full name."""
    shown = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        shown[name] = next(
            tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in names) == 1 or tail == name
        )
    return shown


def value_text(value: Any) -> str:
    """A value in words; for a block its class and arguments."""
    if isinstance(value, dict) and "class_path" in value:
        name = str(value["class_path"]).rpartition(".")[2]
        arguments = value.get("init_args") or {}
        return " ".join([name, *(f"{key}={_nested(one)}" for key, one in arguments.items())])
    if isinstance(value, dict):
        return " ".join(f"{key}={_nested(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(value_text(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def _nested(value: Any) -> str:
    words = value_text(value)
    return f"({words})" if isinstance(value, dict) and " " in words else words


def slug(values: Values) -> str:
    """`label` in the form of a folder name."""
    name = re.sub(r"(?:[^A-Za-z0-9.+-]|\.{2,})+-?", "-", label(values).replace("=", "")).strip("-.")
    return name[:_SLUG_LENGTH].strip("-.") or "trial"
