"""Settings that the parser lets through and no run can work with: refused before anything is made of them."""

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
    """Reads the files that ``--config`` names, so that what is wrong is said with its file and line.

    Left to itself, the parser says neither, drops settings of unknown names where their block is empty, and lets a
    single value take the place of a whole block, and of all that was set in it before.

    Args:
        arguments: The command line.
        parser: The verb's.

    Raises:
        UserError: a file is not YAML, has other names at its top than the verb has settings, or names a class of this
            package by its module.
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
            continue  # the parser says so itself
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
    """Refuses classes of this package that are named by a module, which may move; ``sga.NAME`` never does.

    Args:
        value: Settings: a mapping, a list or a single value.
        where: Name of the file, for the message.

    Raises:
        UserError: a value is such a path; gives the name to write.
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
"""Settings by the short names that other programs have for them."""


def check_flags(arguments: Sequence[str]) -> None:
    """Says what a flag is called here that other programs have under a shorter name.

    Raises:
        UserError: there is such a flag.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        meant = _SHORT.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        if meant is not None:
            raise UserError(f"there is no flag {flag}; did you mean {meant}?")


def check_nulls(parser: ArgumentParser, config: Any) -> None:
    """Refuses null where a value has to be; the parser takes it everywhere.

    Args:
        parser: The verb's.
        config: Its namespace, parsed.

    Raises:
        UserError: names the setting.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        # The parser's own sign for an option without a default is a string.
        if hint is None or action.default is None or action.default == "==SUPPRESS==":
            continue
        may_be_null = hint is Any or type(None) in typing.get_args(hint)
        if not may_be_null and config.get(action.dest, action.default) is None:
            raise UserError(f"{action.dest} must not be null; leave it out for its default")


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuses trainer settings that Lightning takes and that turn a run upside down, or make no evaluation of one.

    Args:
        trainer: Settings by name; one that is missing or null has its default.

    Raises:
        UserError: the bound of gradient clipping is no number of at least 0 (below 0 it would turn gradients around);
            no step would be trained; only some batches of an evaluation would be run.
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
    """Refuses a seed that the generators of random numbers do not take.

    Raises:
        UserError: it is not within 0 to 2³² − 1.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must be from 0 to {2**32 - 1}, got {seed}")


def check_place(folder: Path) -> None:
    """Refuses a run folder that cannot be made.

    Raises:
        UserError: the path is none, leads through a file, or to a place where nothing may be written.
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
