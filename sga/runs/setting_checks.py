"""Checks of settings that the parser accepts but no run can work with, before anything is built from them."""

from __future__ import annotations

import os
import re
import sys
import typing
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sga
from sga.errors import UserError
from sga.files import read_yaml


def check_config_files(arguments: Sequence[str], parser: ArgumentParser) -> None:
    """Reads the files that ``--config`` names, so that errors come with file and line.

    The parser by itself names neither, drops settings of unknown names if their block is empty, and lets a single value
    replace a whole block with all settings in it.

    Args:
        arguments: Arguments of the command line, options and values.
        parser: Parser of the verb, which knows the names of its settings.

    Raises:
        UserError: a file is not YAML, has a name at its top level that is not a setting of the verb, or names a class
            of this package by its module.
    """
    check_class_paths(dict(enumerate(argument.rpartition("=")[2] for argument in arguments)), "the command line")
    names = {action.dest.split(".")[0] for action in parser._actions if action.dest not in ("help", "config")}
    blocks = {action.dest.split(".")[0] for action in parser._actions if "." in action.dest}
    for place, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        path = value or next(iter(arguments[place + 1 :]), "")
        if not os.path.isfile(path):
            continue  # the parser reports a missing file itself
        content = read_yaml(path)
        if content is None:
            continue
        if not isinstance(content, dict):
            raise UserError(f"{path}: expected names with values, got {content!r:.60}")
        check_class_paths(content, path)
        for name, inside in content.items():
            first = str(name).removesuffix("+").split(".")[0]
            if first not in names:
                raise UserError(f"{path}: there is no setting {name!r}; there are {', '.join(sorted(names))}")
            if name in blocks and not isinstance(inside, dict | None):
                raise UserError(f"{path}: {name} is a block of settings, got {inside!r:.60}")


def check_class_paths(value: object, where: str | Path) -> None:
    """Refuses class paths that name a module of this package, because modules may move; ``sga.NAME`` never does.

    Args:
        value: Settings to search: a mapping, a list or a single value.
        where: Name of the file, for the message.

    Raises:
        UserError: a value is such a path; gives the name to use instead.
    """
    if isinstance(value, str) and re.fullmatch(r"sga(\.[a-z_]\w*)+\.[A-Za-z]\w*", value):
        name = value.rpartition(".")[2]
        if name in sga.__all__:
            raise UserError(f"{where}: {value} is now called sga.{name}, which is the name to write")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_class_paths(part, where)


_SHORT = {
    "lr": "--model.optimizer.lr",
    "learning_rate": "--model.optimizer.lr",
    "epochs": "--trainer.max_epochs",
    "max_epochs": "--trainer.max_epochs",
    "max_steps": "--trainer.max_steps",
    "method": "--model.loss CLASS, or --config FILE with a method (sga methods lists them)",
    "loss": "--model.loss",
    "batch_size": "--data.batch_size",
    "seed": "--seed_everything",
    "template": "--data.template",
    "output": "--run.folder",
    "output_dir": "--run.folder",
}
"""Our settings by the short names that other programs have for them."""


def check_flags(arguments: Sequence[str]) -> None:
    """Checks for flags under the short names of other programs, and gives their names here.

    Raises:
        UserError: the command line has such a flag.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        meant = _SHORT.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        if meant is not None:
            raise UserError(f"there is no flag {flag}; did you mean {meant}?")


def check_nulls(parser: ArgumentParser, config: Any) -> None:
    """Refuses null for a setting that needs a value; the parser accepts null everywhere.

    Args:
        parser: Parser of the verb, which knows the types of its settings.
        config: Namespace of the parsed settings.

    Raises:
        UserError: a setting that needs a value is null; names the setting.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        # The parser marks an option without a default by this string.
        if hint is None or action.default is None or action.default == "==SUPPRESS==":
            continue
        may_be_null = hint is Any or type(None) in typing.get_args(hint)
        if not may_be_null and config.get(action.dest, action.default) is None:
            raise UserError(f"{action.dest} must not be null; leave it out for its default")


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuses trainer settings that Lightning accepts but that would make a run meaningless, or evaluations incomplete.

    Args:
        trainer: Trainer settings by name; one that is missing or null has its default.

    Raises:
        UserError: the bound of gradient clipping is not a number of at least 0 (a negative one would reverse
            gradients); no step would be trained; or only some batches of an evaluation would be run.
    """
    clip = trainer.get("gradient_clip_val")
    if clip is not None and not (isinstance(clip, int | float) and 0 <= clip <= sys.float_info.max):
        raise UserError(f"trainer.gradient_clip_val must be a finite number of at least 0, got {clip}")
    sanity = trainer.get("num_sanity_val_steps")
    if sanity is not None and sanity < -1:
        raise UserError(f"trainer.num_sanity_val_steps must be -1 (the whole evaluation) or at least 0, got {sanity}")
    if trainer.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches 0 trains nothing; evaluate the model with sga validate")
    for name in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        limit = trainer.get(name)
        none = name == "limit_val_batches" and limit == 0
        if limit is not None and not none and (isinstance(limit, int) or limit < 1):
            raise UserError(
                f"trainer.{name} must be {'0 (no evaluation) or ' * (name == 'limit_val_batches')}1.0 (the whole), got "
                f"{limit}: metrics need every answer; for smaller evaluations set --data.evaluation_rows N"
            )


def check_seed(seed: object) -> None:
    """Refuses a seed that the random number generators do not accept.

    Raises:
        UserError: the seed is not within 0 to 2³² − 1.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must be from 0 to {2**32 - 1}, got {seed}")


def check_place(folder: Path) -> None:
    """Refuses a run folder that cannot be created.

    Raises:
        UserError: the path is invalid, leads through a file, or to a folder without permission to write.
    """
    if not folder.name or "\0" in str(folder):
        raise UserError(f"--run.folder {str(folder)!r}: name a folder of the run's own, such as runs/mine")
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        is_folder = there.is_dir()
    except OSError as error:
        raise UserError(f"--run.folder {str(folder)!r:.80}: not a path ({error.strerror})") from None
    if not is_folder:
        raise UserError(f"--run.folder {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run.folder {folder}: nothing may be written to {there}; choose another folder")
