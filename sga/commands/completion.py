"""`sga --print-completion SHELL`: a script by which a shell completes verbs and their options, made of the parsers."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from importlib.util import find_spec

from sga.commands.parsing import Verb
from sga.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")


def verb_parsers(verb: str) -> list[argparse.ArgumentParser]:
    """Parsers of a verb: one, or those of its second words."""
    if verb in ("fit", "validate", "test", "predict"):
        from sga.cli import lightning_parser

        return [lightning_parser(verb)]
    found = vars(importlib.import_module(f"sga.commands.{verb}"))
    return [one.parser() for one in found.values() if isinstance(one, Verb)]


def completion_script(shell: str, verbs: Iterable[str]) -> str:
    """The script for a shell.

    Args:
        shell: Name of the shell, one of `SHELLS`.
        verbs: Names of all verbs.

    Raises:
        UserError: there is no such shell, or the package shtab is missing.
    """
    if shell not in SHELLS:
        raise UserError(f"--print-completion {shell}: no such shell; choose from {', '.join(SHELLS)}")
    if find_spec("shtab") is None:
        raise UserError("--print-completion needs the package shtab: pip install shtab")
    import shtab

    whole = argparse.ArgumentParser("sga")
    words = whole.add_subparsers(dest="verb")
    for verb in verbs:
        parsers = verb_parsers(verb)
        one = words.add_parser(verb, help=verb)
        names = [word for parser in parsers for word in parser.prog.split()[2:3] if word[0].isalpha()]
        if not names:
            _copy(parsers[0]._actions, one)
            continue
        seconds = one.add_subparsers(dest="second")
        for name, parser in zip(names, parsers, strict=True):
            _copy(parser._actions, seconds.add_parser(name, help=name))
    return str(shtab.complete(whole, shell=shell))


def _copy(actions: Iterable[argparse.Action], parser: argparse.ArgumentParser) -> None:
    """Names of options, and that everything else is a file; help and types are left out."""
    parser.add_argument("files", nargs="*").complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    known = set(parser._option_string_actions)
    for action in actions:
        flags = [flag for flag in action.option_strings if flag not in known]
        if not flags or action.help == argparse.SUPPRESS:
            continue
        known.update(flags)
        if action.nargs == 0:
            parser.add_argument(*flags, action="store_true")
        else:
            added = parser.add_argument(*flags, choices=action.choices if isinstance(action.choices, tuple) else None)
            added.complete = parser._actions[1].complete  # type: ignore[attr-defined]
