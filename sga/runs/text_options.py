"""Command-line options of type str, taken literally instead of being parsed as YAML."""

from __future__ import annotations

from typing import Any

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from sga import _PUBLIC


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

    def _check_type_(self, value: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            value = str(value)
            if self._typehint is str:
                return value
            if self._typehint == str | None:
                return None if value == "null" else value
        return super()._check_type_(value, **kwargs)  # type: ignore[no-untyped-call]


class TextOptionParser(LightningArgumentParser):
    """Parser whose options of type str take any text: ``Answer: briefly`` is not a mapping, ``# brief`` not a comment.

    For an option that may be null, the text ``null`` means null. jsonargparse has no setting for this, and creates its
    options itself.
    """

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if type(action) is ActionTypeHint:
                action.__class__ = _Option
        return added
