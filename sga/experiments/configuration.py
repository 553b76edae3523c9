"""Configurations as dictionaries, merged from files as `sga fit` merges them, with settings applied on top."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.files import read_yaml, yaml_value
from sga.runs.config_files import config_files, config_path, names_model
from sga.runs.folder import RunFolder
from sga.runs.setting_checks import check_class_paths

Values = dict[str, Any]
"""Settings by dotted name, such as ``model.optimizer.lr``; a value may be a whole block."""

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def read_config(files: Sequence[Path], settings: Values | None = None) -> dict[str, Any]:
    """Merges configuration files; the last one wins, and lists named ``key+`` are appended.

    Args:
        files: Paths of the files, in the order in which they apply.
        settings: Settings by dotted name that will be applied later; here they only tell whether a model is named.

    Raises:
        UserError: for the reasons of `config_files`, or a file holds something other than names and values.
    """
    config: dict[str, Any] = {}
    for file in config_files(files, names_model(applied({}, settings or {}))):
        _merge(config, mapping_value(file.content, str(file.path)))
    return config


def named_config(path: Path, names: Any, settings: Values | None = None) -> dict[str, Any]:
    """Merges the configuration files that a file names relative to itself, and applies settings on top.

    Args:
        path: Path of the file that names the others.
        names: Name of one file, or a list of names.
        settings: Settings by dotted name, which win over the files.

    Raises:
        UserError: for the reasons of `read_config`, or `names` is neither; names the file.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: config must be a file or a list of files, got {names!r:.60}")
    try:
        files = [config_path(str(name), path.parent) for name in names]
    except UserError as error:
        raise UserError(f"{path}: names {error}") from None
    return applied(read_config(files, settings), settings or {})


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        plain = key.removesuffix("+")
        if key.endswith("+"):
            into[plain] = [*(into.get(plain) or []), *(value if isinstance(value, list) else [value])]
        elif isinstance(value, dict):
            if not isinstance(into.get(key), dict) or not _same_class(into[key], value):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _same_class(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if a block is merged into another one; a block of another class replaces it, arguments included."""
    return "class_path" not in other or one.get("class_path") == other["class_path"]


def read_settings(path: Path) -> Any:
    """Reads a YAML file and refuses classes of this package that are named by their module.

    Raises:
        UserError: for the reasons of `read_yaml` and `check_class_paths`.
    """
    content = read_yaml(path)
    check_class_paths(content, path)
    return content


def applied(config: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Copies a configuration and applies settings on top, whole blocks before settings within them."""
    result = copy.deepcopy(dict(config))
    for name in sorted(values, key=lambda name: name.count(".")):
        set_value(result, name, values[name])
    return result


def set_value(config: dict[str, Any], name: str, value: Any) -> None:
    """Sets a dotted name in place; ``init_args`` may be left out of the name, and a block replaces the old one.

    >>> config = {"model": {"loss": {"class_path": "sga.SmoothedGradientAscent"}}}
    >>> set_value(config, "model.loss.smoothing_rate", -4.0)
    >>> config["model"]["loss"]
    {'class_path': 'sga.SmoothedGradientAscent', 'init_args': {'smoothing_rate': -4.0}}
    """
    *parents, last = name.split(".")
    node = config
    for part in parents:
        node = _within(node, part)
        found = node.get(part)
        if isinstance(found, str):
            found = {"class_path": found}
        node[part] = node = found if isinstance(found, dict) else {}
    _within(node, last)[last] = copy.deepcopy(value)


def _within(node: dict[str, Any], part: str) -> dict[str, Any]:
    if "class_path" not in node or part in _CLASS_KEYS:
        return node
    arguments: dict[str, Any] = node.setdefault("init_args", {})
    return arguments


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(location: str, rows: bool) -> str:
    """Hash that changes if another model is put at a location: of names, sizes, and the content of small files.

    Args:
        location: Path of a run folder, where only configuration and model count, because verbs write beside them; path
            of another folder or a file, which counts as a whole; or a name on the Hub, where the name alone counts.
        rows: True if the rows of a run's last evaluation count too, for a reference.
    """
    path, run = Path(location), RunFolder(location)
    if not path.exists():
        return location
    if path.is_file():
        found = [path]
    elif run.info_path.is_file():
        found = [run.config_path, *run.model_path.rglob("*")]
        found += [run.rows_file(step) for step in run.row_steps[-1:] if rows]
    else:
        found = list(path.rglob("*"))
    files = sorted(file for file in found if file.is_file())
    shown: list[Any] = []
    for file in files:
        size = file.stat().st_size
        small = hashlib.sha256(file.read_bytes()).hexdigest() if size < 1_000_000 else None
        shown.append([str(file.relative_to(path)), size, small])
    return digest(shown)


def block(config: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """A block of a configuration, for changing in place; an empty one is added if there is none.

    Raises:
        UserError: the name has another value than a block, such as null.
    """
    found = config.setdefault(name, {})
    if not isinstance(found, dict):
        raise UserError(f"{where}: {name} must be names with values, got {found!r:.60}")
    return found


def mapping_value(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where}: expected names with values, got {value!r:.60}")
    return dict(value)


def list_value(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list with something in it, got {value!r:.60}")
    return value


def settings_from(pairs: Sequence[str], option: str = "--set") -> Values:
    """Settings of ``--set NAME=VALUE`` options by dotted name, with values parsed as in a configuration file.

    Raises:
        UserError: an option is not of this form, or its value is not YAML.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"{option} {pair}: must be NAME=VALUE")
        settings[name] = yaml_value(value, f"{option} {name}")
    return settings
