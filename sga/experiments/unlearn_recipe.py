"""Training of `sga unlearn`: the recipe for a model's size and kind of training, and the tasks that it makes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.evaluation.enough_rows import DRAWS, enough_rows, passing
from sga.evaluation.handover import LEAST_ROWS, Tolerances
from sga.evaluation.handover_quantities import halves, other_answers
from sga.experiments.configuration import Values, applied, content_digest, digest, mapping_value, read_config
from sga.experiments.task import Task
from sga.experiments.unlearn_data import UnlearningRecords
from sga.experiments.unlearn_pilot import Pilot
from sga.files import read_yaml

RECIPES = "configs/recipes/unlearn.yaml"
START, UNLEARNED, FINAL, BASE = "start", "unlearned", "final", "base"
"""Names of the runs: the starting model evaluated, the training, the exported model and the base model evaluated."""

ROWS_NOTE = "evaluations look at"
"""Beginning of the note on rows that evaluations leave out."""
_SECOND_COPY = 3.0e9
"""Weights up to which the starting model is loaded a second time, to score the answers of the other."""
_OF_TRAINING = ("loss", "optimizer", "schedule")
_LIKELIHOODS_ALONE: Values = {"model_utility.generate": False, "fluency.starting_model": None}


@dataclass(frozen=True)
class Recipe:
    """Settings that were chosen for a model and its data, before anything of the user's own.

    Attributes:
        name: Name of the recipe in the table.
        method: Name of the method.
        rank: Rank of the adapter; 0 if all weights are trained.
        settings: Settings of `sga fit` by dotted name.
        notes: Sentences on what the data did not allow, and on what was not measured.
        pilot: Learning rates to try first; None where the recipe was measured.
    """

    name: str
    method: str
    rank: int
    settings: Values
    notes: tuple[str, ...] = ()
    pilot: Pilot | None = None


def chosen_recipe(method: str | None, lora: int | None, weights: int | None, records: UnlearningRecords) -> Recipe:
    """The recipe of the packaged table (`RECIPES`) for a model, made to fit the data.

    Args:
        method: Name of a file in ``configs/methods/``; None takes the table's.
        lora: Rank of the adapter; 0 to train all weights, None takes the table's.
        weights: Number of the model's weights; None if it is not known, which takes the first fitting recipe.
        records: Records to forget and to keep.

    Raises:
        UserError: the rank is negative, or retain data is too little for any group.
    """
    if lora is not None and lora < 0:
        raise UserError(f"--lora must be at least 1, or 0 to train all weights, got {lora}")
    table = recipe_table()
    method = method or str(table["method"])
    kinds = {None: ("lora", "full"), 0: ("full",)}.get(lora, ("lora",))
    fitting = [
        one
        for one in table["recipes"]
        if one["training"] in kinds and (weights is None or weights <= one.get("up_to", math.inf))
    ]
    recipe = next(one for one in fitting if lora is not None or one.get("default"))
    settings = {**table["every"], **table["settings"][recipe["name"]], **table["methods"].get(method, {})}
    rank = lora if lora is not None else int(recipe.get("rank", 0))
    settings["data.reserved"] = records.reserved
    if not rank:
        settings["fluency.starting_model"] = "own" if weights is not None and weights <= _SECOND_COPY else None
    settings["data.evaluation_rows"], notes = _evaluated_rows(int(table["evaluation_rows"]), records)
    pilot = None
    if not recipe.get("measured"):
        notes.append(
            "not measured: no model of this size was tried with it, so that a pilot tries learning rates unless --lr "
            "gives one"
        )
        rates = (settings["model.optimizer.lr"] * factor for factor in table["pilot"]["factors"])
        pilot = Pilot(tuple(sorted(rates)), int(table["pilot"]["steps"]))
    elif method != table["method"]:
        notes.append(f"measured with {table['method']} alone, not with {method}: try several learning rates (--lr)")
    settings, of_data = _fitted(settings, records)
    return Recipe(recipe["name"], method, rank, settings, (*notes, *of_data), pilot)


def _evaluated_rows(least: int, records: UnlearningRecords) -> tuple[int | None, list[str]]:
    """Most rows of a set that evaluations look at, all forget records among them; None for all. And a note on it."""
    limit = max(least, len(records.sets["forget"]))
    more = [f"{len(rows)} {name}" for name, rows in records.sets.items() if len(rows) > limit]
    if not more:
        return None, []
    said = f"{ROWS_NOTE} {limit} of the {' and '.join(more)} records, evenly spaced"
    return limit, [f"{said} (--set data.evaluation_rows=null: at all)"]


def recipe_table() -> dict[str, Any]:
    """The packaged table."""
    return mapping_value(read_yaml(packaged_path(RECIPES)), RECIPES)


def _fitted(settings: Values, records: UnlearningRecords) -> tuple[Values, tuple[str, ...]]:
    """Settings of groups that the data has enough of, and what was changed for that."""
    notes = []
    settings = dict(settings)
    alternatives = settings.get("data.alternatives")
    count = int(alternatives["init_args"].get("count", 1)) if alternatives else 0
    size = int(settings.get("data.group_size", 4))
    why = "plain text has no other answers" if records.has_texts else None
    if why is None and (not records.reserved or records.answers <= 2 * count):
        why = f"{len(records.sets['retain'])} retain records are too few to take other answers from"
    if count and why is not None:
        settings["data.alternatives"], size, count = None, size - count, 0
        settings.pop("model.loss.alternative_weight", None)
        notes.append(f"no alternatives: {why}")
    elif count and alternatives and alternatives["init_args"].get("pool"):
        most = max(count, min(alternatives["init_args"]["pool"], records.answers // 2))
        arguments = {**alternatives["init_args"], "pool": most}
        settings["data.alternatives"] = {**alternatives, "init_args": arguments}
    if size - 1 - count > records.pool:
        size = records.pool + 1 + count
        notes.append(f"K = {size}: there are no more retain records")
    settings["data.group_size"] = size
    if settings.get("data.pool_size"):
        settings["data.pool_size"] = min(settings["data.pool_size"], records.pool)
    return settings, tuple(notes)


def method_config(method: str) -> dict[str, Any]:
    """The packaged configuration of own data with a method.

    Raises:
        UserError: there is no such method, or it does not unlearn by training.
    """
    folder = packaged_path("configs/methods")
    path = folder / f"{method}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(method, sorted(one.stem for one in folder.glob("*.yaml")), 3, 0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"--method {method}: no such method; {hint}(sga methods lists them)")
    config = read_config([packaged_path("configs/benchmarks/own.yaml"), path])
    role = config.get("run", {}).get("role", "unlearn")
    if "loss" not in config["model"] or role != "unlearn" or config["data"].get("train_on", ["forget"]) != ["forget"]:
        raise UserError(f"--method {method} does not train on what is to be forgotten; take another (sga methods)")
    return config


@dataclass(frozen=True)
class Plan:
    """The runs of `sga unlearn`, from which its tasks are made.

    Attributes:
        recipe: Recipe of the training.
        start: Arguments of `sga.Pretrained` for the starting model.
        files: Path of each set's records, by set.
        weights: Number of the model's weights; None where it is not known.
        own: The user's settings of `sga fit` by dotted name, which win over the recipe's.
    """

    recipe: Recipe
    start: Mapping[str, Any]
    files: Mapping[str, str]
    weights: int | None
    own: Values

    def tasks(self, found: Values | None = None) -> tuple[Task, Task, Task]:
        """The three runs: the starting model evaluated, the training, the exported model evaluated.

        Args:
            found: Settings of the training that earlier runs told, such as a pilot's learning rate.
        """
        config, place = self._config(), str(self.start["name_or_path"])
        first = _task(START, self._evaluated(config, self.start), place, {}, "looks at the model", "validate")
        # What the user has set wins, and is in the configuration already.
        told = {name: value for name, value in (found or {}).items() if name not in self.own}
        title = f"trains by {self.recipe.method}"
        training = _task(UNLEARNED, applied(config, told), place, {}, title, "fit")
        kept = {**self._loading, **{name: self.start[name] for name in ("trust_remote_code",) if name in self.start}}
        needs = {"model.language_model.name_or_path": training}
        title = "reads the exported model from disk"
        last = _task(FINAL, self._evaluated(config, kept), place, needs, title, "validate")
        return first, training, last

    def base_task(self, model: str) -> Task:
        """The evaluation of a model that never saw the forget records, by likelihoods alone."""
        evaluated = self._evaluated(self._config(), {**self._loading, "name_or_path": model})
        config = applied(evaluated, _LIKELIHOODS_ALONE)
        return _task(BASE, config, model, {}, "looks at the base model", "validate")

    @property
    def _loading(self) -> dict[str, Any]:
        """Arguments of `sga.Pretrained` that say how weights are loaded, for whichever model."""
        return {name: self.start[name] for name in ("dtype", "attention") if name in self.start}

    def _config(self) -> dict[str, Any]:
        """Configuration of the training."""
        config = applied(method_config(self.recipe.method), self.recipe.settings)
        config["data"]["source"] = {"class_path": "sga.OwnData", "init_args": dict(self.files)}
        language_model = {"class_path": "sga.Pretrained", "init_args": dict(self.start)}
        if self.recipe.rank:
            rank = self.recipe.rank
            arguments = {**self.start, "rank": rank, "alpha": 2 * rank, "dropout": 0.0}
            language_model = {"class_path": "sga.LoRA", "init_args": arguments}
        config["model"]["language_model"] = language_model
        config = applied(config, self.own)
        config.get("run", {}).pop("folder", None)
        return config

    def _evaluated(self, config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration of the evaluation of a model, by its arguments of `sga.Pretrained`."""
        of_model = {name: value for name, value in config["model"].items() if name not in _OF_TRAINING}
        language_model = {"class_path": "sga.Pretrained", "init_args": dict(model)}
        found = {**config, "model": {**of_model, "language_model": language_model}}
        # It is loaded by its place alone.
        plain = not {"revision", "trust_remote_code"} & set(self.start)
        second = plain and self.weights is not None and self.weights <= _SECOND_COPY
        return applied(found, {"fluency.starting_model": str(self.start["name_or_path"]) if second else None})


def tolerances_of(config: Mapping[str, Any]) -> Tolerances:
    """Tolerances of the stopping rule in a configuration; the defaults where it sets none."""
    return Tolerances(**(_of_rule(config).get("tolerances") or {}))


def _of_rule(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the stopping rule in a configuration."""
    rule = (config.get("stop") or {}).get("rule")
    return (rule.get("init_args") or {}) if isinstance(rule, dict) else {}


def few_rows(records: UnlearningRecords, config: Mapping[str, Any]) -> str | None:
    """Sentence on records that are too few for most models that have forgotten to pass; None if they are enough.

    Args:
        records: Records to forget, to keep and, where given, of the holdout set.
        config: Configuration of the training, with the stopping rule.
    """
    tolerances, holdout = tolerances_of(config), records.sets.get("holdout")
    forget, retain = records.sets["forget"], records.sets["retain"]
    wrong = min(len(record.perturbed_answers) for record in forget) or 1
    if not holdout and not all(record.perturbed_answers for record in forget) and not other_answers(forget, retain):
        return None  # nothing to recognise them by
    sizes = [len(forget), *([len(holdout)] if holdout else [])]
    halved = "held_out" in halves(sizes, int(_of_rule(config).get("least_rows", LEAST_ROWS)))
    judged = [size // 2 if halved else size for size in sizes]
    passed = passing(judged[0], judged[1] if holdout else None, wrong, tolerances)
    if 2 * passed >= DRAWS:
        return None
    enough = enough_rows(bool(holdout), wrong, tolerances)
    words = f"{sizes[0]} forget" + (f" and {sizes[1]} holdout" if holdout else "")
    parts = f", judged in halves of {min(judged)}," if halved else ""
    more = ""
    if enough is not None:
        more = f"; with {enough * (2 if halved else 1)}{' of each' if holdout else ''} it passes half"
    return (
        f"{words} records{parts} are too few for a verdict: of {DRAWS} simulated models that never saw them the rule "
        f"passes {passed or 'none'}, because its 95 % interval is too wide with so few{more}. Give more records, or go "
        "by the counts and answers (docs/handover.md)"
    )


def _task(name: str, config: dict[str, Any], model: str, needs: dict[str, Task], title: str, verb: Any) -> Task:
    key = digest([config, content_digest(model, rows=False), {setting: need.key for setting, need in needs.items()}])
    return Task(name, config, needs, key, title, verb=verb)


def exported_model(folder: Path) -> Path:
    """Path of the model that unlearning leaves."""
    return folder / UNLEARNED / "model"
