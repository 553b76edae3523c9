"""How `sga unlearn` trains: the recipe for a model's size and kind of training, and the tasks that it makes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.configuration import Values, applied, content_digest, digest, mapping_value, read_config
from sga.experiments.task import Task
from sga.experiments.unlearn_data import UnlearningRecords
from sga.experiments.unlearn_pilot import Pilot
from sga.files import read_yaml

RECIPES = "configs/recipes/unlearn.yaml"
START, UNLEARNED, FINAL = "start", "unlearned", "final"
"""Names of the three runs: the starting model evaluated, the training, the exported model evaluated."""

_SECOND_COPY = 3.0e9
"""Weights up to which the starting model is loaded a second time, to score the answers of the other."""
_OF_TRAINING = ("loss", "optimizer", "schedule")


@dataclass(frozen=True)
class Recipe:
    """What was chosen, before anything of the user's own.

    Attributes:
        name: Its name in the table.
        method: Name of the method.
        rank: Rank of the adapter; 0 for training all weights.
        settings: Flags of `sga fit`.
        notes: What the data did not allow, a sentence each.
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
        method: Name of a file in ``configs/methods/``; None for what the table says.
        lora: Rank of the adapter; 0 to train all weights, None for what the table says.
        weights: Number of the model's weights; None where it is not known, which takes the first that fits otherwise.
        records: The data.

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
    pilot = None
    if not recipe.get("measured"):
        rates = (settings["model.optimizer.lr"] * factor for factor in table["pilot"]["factors"])
        pilot = Pilot(tuple(sorted(rates)), int(table["pilot"]["steps"]))
    return Recipe(recipe["name"], method, rank, *_fitted(settings, records), pilot)


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


def unlearning_tasks(
    recipe: Recipe, start: Mapping[str, Any], files: Mapping[str, str], weights: int | None, own: Values
) -> tuple[Task, Task, Task]:
    """The three runs: the starting model evaluated, the training, the exported model evaluated.

    Args:
        recipe: What to train with.
        start: Arguments of `sga.Pretrained` for the starting model.
        files: Path of each set's records.
        weights: Number of the model's weights, where it is known.
        own: The user's settings, which win.
    """
    config = applied(method_config(recipe.method), recipe.settings)
    config["data"]["source"] = {"class_path": "sga.OwnData", "init_args": dict(files)}
    pretrained = {"class_path": "sga.Pretrained", "init_args": dict(start)}
    config["model"]["language_model"] = pretrained
    if recipe.rank:
        arguments = {**start, "rank": recipe.rank, "alpha": 2 * recipe.rank, "dropout": 0.0}
        config["model"]["language_model"] = {"class_path": "sga.LoRA", "init_args": arguments}
    config = applied(config, own)
    config.get("run", {}).pop("folder", None)

    def evaluated(model: Mapping[str, Any], starting_model: str) -> dict[str, Any]:
        of_model = {name: value for name, value in config["model"].items() if name not in _OF_TRAINING}
        found = {**config, "model": {**of_model, "language_model": dict(model)}}
        second = weights is not None and weights <= _SECOND_COPY
        return applied(found, {"fluency.starting_model": starting_model if second else None})

    place = str(start["name_or_path"])
    first = _task(START, evaluated(pretrained, place), place, {}, "looks at the model", "validate")
    training = _task(UNLEARNED, config, place, {}, f"trains by {recipe.method}", "fit")
    kept = {name: start[name] for name in ("dtype", "attention", "trust_remote_code") if name in start}
    exported = {"class_path": "sga.Pretrained", "init_args": kept}
    needs = {"model.language_model.name_or_path": training}
    last = _task(FINAL, evaluated(exported, place), place, needs, "reads the exported model from disk", "validate")
    return first, training, last


def _task(name: str, config: dict[str, Any], model: str, needs: dict[str, Task], title: str, verb: Any) -> Task:
    key = digest([config, content_digest(model, rows=False), {setting: need.key for setting, need in needs.items()}])
    return Task(name, config, needs, key, title, verb=verb)


def exported_model(folder: Path) -> Path:
    """Path of the model that unlearning leaves."""
    return folder / UNLEARNED / "model"
