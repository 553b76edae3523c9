"""Unlearning requests one after the other, each starting from the model that the last one left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.experiments.configuration import Values, applied, digest, read_config, set_value
from sga.files import read_json_object, write_json, write_text, yaml_text
from sga.runs.config_files import config_path
from sga.runs.folder import RunFolder
from sga.runs.lock import write_lock

STATE_FILE = "request.json"

CONFIG_FILE = "fit.yaml"

RESULTS_FILE = "results.json"


_KEYS = {"config", "settings", "folds", "requests"}


@dataclass(frozen=True)
class RequestRun:
    """One `sga fit` of a sequence.

    Attributes:
        name: Its run folder within the sequence's, ``request-1`` and so on.
        config: The whole configuration.
        key: Hash of all that the result depends on but the package's source: this configuration and those before it.
    """

    name: str
    config: dict[str, Any]
    key: str


def read_sequence(path: Path, folder: Path, overrides: Values | None = None) -> list[RequestRun]:
    """Reads a sequence file; paths of configurations in it are relative to it.

    Args:
        path: The file: ``config``, what every request is configured by; ``settings`` on top of it; and either
            ``folds: n``, for n requests that each forget one of n parts of the forget split, or ``requests``, a list of
            settings, one for each.
        folder: The sequence's folder.
        overrides: Settings of all requests that win over the file's.

    Raises:
        UserError: the file is missing or not of this form, or it keeps no model that the next request could start from.
    """
    plan = read_config([path])
    unknown = sorted(set(plan) - _KEYS)
    if unknown or "config" not in plan or ("folds" in plan) == ("requests" in plan):
        raise UserError(
            f"{path}: needs config and either folds or requests, and may have settings, got {', '.join(map(str, plan))}"
        )
    names = [plan["config"]] if isinstance(plan["config"], str) else plan["config"]
    settings = plan.get("settings") or {}
    if not isinstance(names, list) or not names or not isinstance(settings, dict):
        raise UserError(f"{path}: config must be a file or a list of files, settings names with values")
    files = [config_path(str(name), path.parent) for name in names]
    base = applied(read_config(files), {**settings, **(overrides or {})})
    if base.get("export", {}).get("enabled") is False:
        raise UserError(f"{path}: export.enabled false keeps no model that the next request could start from")
    requests: list[RequestRun] = []
    for number, values in enumerate(_requests(plan, path), start=1):
        config = applied(base, {**values, **(overrides or {})})
        name = f"request-{number}"
        set_value(config, "run.folder", str(folder / name))
        before = [request.key for request in requests[-1:]]
        if before:
            start = {"class_path": "sga.Pretrained", **_kept(config)}
            start["init_args"] = {**start["init_args"], "name_or_path": str(folder / requests[-1].name)}
            set_value(config, "model.language_model", start)
        # Where the sequence is has no say in what comes out of it.
        said = applied(config, {"run.folder": name, **({"model.language_model": "the last request"} if before else {})})
        requests.append(RequestRun(name, config, digest([said, *before])))
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
    """How the first model is loaded, as far as it holds for those that come out of it too."""
    first = config.get("model", {}).get("language_model", {})
    arguments = first.get("init_args") or {}
    if str(first.get("class_path", "")).endswith("LoRA"):  # each request trains an adapter of its own
        elsewhere = ("name_or_path", "revision", "tokenizer_name_or_path")
        return {**first, "init_args": {name: value for name, value in arguments.items() if name not in elsewhere}}
    return {"init_args": {name: arguments[name] for name in ("dtype", "attention") if name in arguments}}


def check(requests: Sequence[RequestRun], folder: Path) -> None:
    """Refuses to mix two sequences in a folder, before anything runs.

    Raises:
        UserError: a request's folder is of another configuration, or was not made by this verb.
    """
    for request in requests:
        run_folder = folder / request.name
        state = _state(run_folder)
        if run_folder.exists() and state.get("key") != request.key:
            made = "of another sequence or configuration" if state else "that sga sequence did not make"
            raise UserError(f"{run_folder} holds a run {made}: choose another --folder, or delete it")


def run_request(request: RequestRun, folder: Path, title: str) -> int:
    """Makes a request's run folder, or reuses it, or goes on with it; returns the exit code of `sga fit`.

    The run has a process of its own, which may start others on further devices, and which ends together with this one.

    Raises:
        LockedError: another process writes to the folder.
    """
    run_folder = folder / request.name
    with write_lock(run_folder, "--folder"):  # the run takes it itself
        state = _state(run_folder)
        if state.get("finished"):
            print(f"{title}: reused, it is finished", flush=True)
            return 0
        print(f"{title}{': going on where it stopped' if state else ''}", flush=True)
        write_json(run_folder / STATE_FILE, {"key": request.key, "finished": False})
        write_text(run_folder / CONFIG_FILE, yaml_text(request.config))
    code = fit(run_folder / CONFIG_FILE)
    if code == 0:
        write_json(run_folder / STATE_FILE, {"key": request.key, "finished": True})
    return code


def fit(config: Path) -> int:
    """`sga fit` from the last checkpoint, if there is one, in a process of its own; its exit code."""
    command = [sys.executable, "-m", "sga.experiments.sweeps.fit", "--config", str(config), "--ckpt_path", "last"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _state(run_folder: Path) -> dict[str, Any]:
    path = run_folder / STATE_FILE
    return read_json_object(path) if path.is_file() else {}


def sequence_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One entry per request and evaluation, in order: ``request``, its number, and every metric with step and epoch."""
    return [
        {"request": number, **line}
        for number, folder in enumerate(folders, start=1)
        for line in RunFolder(folder).evaluations
    ]
