"""Options of the command line that are texts: taken as they stand, and not as YAML reads them."""

from __future__ import annotations

from typing import Any

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from sga import _PUBLIC


class _Raw(str):
    """A value of an option's own option, which jsonargparse, looking into plain strings alone, leaves as it is."""


class _Option(ActionTypeHint):
    """An option that, where it is text, is that text, and not what YAML makes of it; classes go by short names."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 4 and isinstance(args[2], str):
            parser, config, value, name = args
            if value in _PUBLIC and ActionTypeHint.is_subclass_typehint(self._typehint):  # type: ignore[no-untyped-call]
                args = (parser, config, f"sga.{value}", name)  # jsonargparse sees subclasses of imported modules alone
            inner = any(str(name).startswith(f"{option}.") for option in self.option_strings)
            if inner and ActionTypeHint.is_subclass_typehint(self._typehint):  # type: ignore[no-untyped-call]
                args = (parser, config, _Raw(value), name)  # the parser of the class knows its type
        return super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _check_type_(self, value: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = str(value)
            if self._typehint is str:
                return value
            if self._typehint == str | None:
                return None if value == "null" else value
        return super()._check_type_(value, **kwargs)  # type: ignore[no-untyped-call]


class TextOptionParser(LightningArgumentParser):
    """A parser whose options of type str take any text: ``Answer: briefly`` is no mapping, ``# brief`` no comment.

    Where an option may be null, ``null`` is that. jsonargparse makes options itself, and has no setting for this.
    """

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if type(action) is ActionTypeHint:
                action.__class__ = _Option
        return added
