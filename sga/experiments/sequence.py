"""Sequences of unlearning requests, each starting from the model of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.experiments.configuration import Values, applied, block, mapping_value, named_config, read_config, set_value
from sga.experiments.task import Task
from sga.runs.folder import Run

RESULTS_FILE = "results.json"

_KEYS = {"config", "settings", "folds", "requests"}

_START = "model.language_model.name_or_path"


def read_sequence(path: Path, overrides: Values | None = None) -> list[Task]:
    """Reads a sequence file as tasks; paths of configurations in it are relative to the file.

    Args:
        path: Path of the file with ``config``, the configuration files of every request; ``settings`` on top of them;
            and either ``folds: n``, for n requests that each forget one of n parts of the forget split, or
            ``requests``, a list with the settings of each request.
        overrides: Settings by dotted name for all requests, which win over the file's.

    Raises:
        UserError: the file is missing or not of this form, or its runs export no model for the next request to start
            from.
    """
    plan = read_config([path])
    unknown = sorted(set(plan) - _KEYS)
    if unknown or "config" not in plan or ("folds" in plan) == ("requests" in plan):
        raise UserError(
            f"{path}: needs config and either folds or requests, and may have settings, got {', '.join(map(str, plan))}"
        )
    settings = {**mapping_value(plan.get("settings"), f"{path}: settings"), **(overrides or {})}
    base = named_config(path, plan["config"], settings)
    if "export" in base and block(base, "export", str(path)).get("enabled") is False:
        raise UserError(f"{path}: export.enabled false keeps no model that the next request could start from")
    requests: list[Task] = []
    for number, values in enumerate(_requests(plan, path), start=1):
        config = applied(base, {**values, **(overrides or {})})
        if "run" in config:
            block(config, "run", str(path)).pop("folder", None)
        if requests:
            set_value(config, "model.language_model", {"class_path": "sga.Pretrained", **_kept(config)})
        requests.append(Task(f"request-{number}", config, {_START: requests[-1]} if requests else {}))
    return requests


def _requests(plan: dict[str, Any], path: Path) -> list[Values]:
    folds, requests = plan.get("folds"), plan.get("requests")
    if folds is not None:
        if not isinstance(folds, int) or isinstance(folds, bool) or folds < 2:
            raise UserError(f"{path}: folds must be a whole number from 2 on, got {folds!r}")
        return [{"data.folds": folds, "data.forget_folds": [number]} for number in range(1, folds + 1)]
    if not isinstance(requests, list) or not requests or not all(isinstance(one, dict) and one for one in requests):
        raise UserError(f"{path}: requests must be a list of settings, at least one each, got {requests!r:.60}")
    return requests


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of loading the first model that hold for the models of later requests too."""
    first = config.get("model", {}).get("language_model", {})
    arguments = first.get("init_args") or {}
    if str(first.get("class_path", "")).endswith("LoRA"):  # each request trains an adapter of its own
        elsewhere = ("name_or_path", "revision", "tokenizer_name_or_path")
        return {**first, "init_args": {name: value for name, value in arguments.items() if name not in elsewhere}}
    return {"init_args": {name: arguments[name] for name in ("dtype", "attention") if name in arguments}}


def sequence_results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Entries for each request and evaluation, in order: ``request``, its number, and metrics with step and epoch."""
    return [{"request": number, **line} for number, run in enumerate(runs, start=1) for line in run.evaluations]
