"""Parser of `sga fit` and its like: options of type str are taken literally, and its help is short."""

from __future__ import annotations

import argparse
import difflib
import re
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from sga import _PUBLIC

_SHORT: dict[str, str | None] = {
    "help": None,
    "config": "Configuration file; several are laid one over the other, and the last one wins",
    "print_config": "Print the configuration that all files and flags make, and stop",
    "seed_everything": "Seed of all random numbers (default %(default)s)",
    "ckpt_path": "Checkpoint to resume from: last, best, or path of a file",
    **dict.fromkeys(("model.language_model", "model.loss", "model.optimizer", "model.schedule")),
    **dict.fromkeys(("model.gradient_checkpointing", "data.source", "data.pairing", "data.pairs", "data.pool_size")),
    **dict.fromkeys(("data.group_size", "data.alternatives", "data.batch_size", "data.micro_batch_size")),
    **dict.fromkeys(("data.max_length", "data.template", "run.folder", "evaluation.reference", "stop.rule")),
    "export.enabled": None,
    "trainer.max_epochs": "Number of epochs (default %(default)s)",
    "trainer.devices": "Number of devices, or list of their numbers (default %(default)s)",
    "trainer.strategy": "Use of several devices: ddp, fsdp2, or a class (default %(default)s)",
    "trainer.precision": "Precision: 32-true, bf16-mixed, 16-mixed, … (default: bf16-mixed on a GPU that computes in "
    "it, else 32-true)",
    "trainer.gradient_clip_val": "Largest norm of a gradient (default: no limit)",
    "trainer.check_val_every_n_epoch": "Number of epochs between two evaluations (default %(default)s)",
    "trainer.fast_dev_run": "Try everything on one batch, and keep nothing (default %(default)s)",
}
"""Settings that the short help shows, with a text for those of Lightning."""

_LONGER = """\
--help-all lists all settings; --model.loss.help NAME lists those of a class, and
likewise for every setting that takes a class. sga methods and sga config list
show what comes with the package."""
_AS_IT_IS = "_jsonargparse_preexpanded_help"
"""Attribute by which jsonargparse leaves a text without a type and a default."""


class _Raw(str):
    """Value of a nested option; jsonargparse parses only plain strings, so this subclass stays unparsed."""


class _Option(ActionTypeHint):
    """Option that takes text literally if its type is str; the package's classes go by short names."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 4 and isinstance(args[2], str):
            parser, config, value, name = args
            if value in _PUBLIC and ActionTypeHint.is_subclass_typehint(self._typehint):  # type: ignore[no-untyped-call]
                args = (parser, config, f"sga.{value}", name)  # jsonargparse sees subclasses of imported modules alone
            inner = any(str(name).startswith(f"{option}.") for option in self.option_strings)
            if inner and ActionTypeHint.is_subclass_typehint(self._typehint):  # type: ignore[no-untyped-call]
                args = (parser, config, _Raw(value), name)  # the parser of the class knows its type
        return super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def extra_help(self) -> str:
        """List of classes that the option takes, which only the long help has."""
        return str(super().extra_help()) if TextOptionParser.helps_with_all else ""  # type: ignore[no-untyped-call]

    def _check_type_(self, value: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = str(value)
            if self._typehint is str:
                return value
            if self._typehint == str | None:
                return None if value == "null" else value
        return super()._check_type_(value, **kwargs)  # type: ignore[no-untyped-call]


def _int_first(hint: Any) -> Any:
    """The hint with int before float, because the first type of a union that fits is taken, and 1 is not 1.0 there.

    The order that the annotation has is lost where `typing` has made an equal union with another order before.
    """
    parts = get_args(hint)
    if get_origin(hint) not in (Union, UnionType) or not {int, float} <= set(parts):
        return hint
    if parts.index(int) < parts.index(float):
        return hint
    swapped = {int: float, float: int}
    return Union[tuple(swapped.get(part, part) for part in parts)]  # noqa: UP007


class TextOptionParser(LightningArgumentParser):
    """Parser whose options of type str take any text: ``Answer: briefly`` is not a mapping, ``# brief`` not a comment.

    Where an option may be null, ``null`` is that. jsonargparse makes options itself, and has no setting for this.

    Attributes:
        helps_with_all: True if the help lists all settings, and not only those that matter most.
    """

    helps_with_all = False

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help; for as long as it is made, settings have the texts of the short one, or none."""
        if self.helps_with_all:
            return str(super().format_help(*args, **kwargs))
        texts = [(action, action.help) for action in self._actions]
        for action, text in texts:
            action.help = _SHORT.get(action.dest, argparse.SUPPRESS) or text
            setattr(action, _AS_IT_IS, _SHORT.get(action.dest) is not None)
        try:
            return f"{super().format_help(*args, **kwargs)}\n{_LONGER}\n"
        finally:
            for action, text in texts:
                action.help = text
                delattr(action, _AS_IT_IS)

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Ends with a message, which names the closest option where there is none of a name."""
        unknown = re.search(r"(?i)unrecognized arguments: (--[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        super().error(message + (f"; did you mean {near[0]}?" if near else ""), *args, **kwargs)

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if type(action) is ActionTypeHint:
                action.__class__ = _Option
                action._typehint = _int_first(action._typehint)
        return added
