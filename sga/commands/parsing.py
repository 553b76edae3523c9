"""Command lines made of typed functions: parameters are the arguments of a verb, the docstring is its help.

jsonargparse, which parses the options of `sga fit`, cannot keep the options of the other verbs as they are:
docs/architecture.md says why.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import Docstring, DocstringStyle, parse

from sga.errors import UserError

Repeated = Annotated[Sequence[str], "append"]
"""Type of an option that may be given several times; every other list takes its values after one name."""

_METAVARS = {int: "N", float: "X", Path: "PATH"}


class Verb:
    """A verb, which takes the command line that follows its name and returns the exit code.

    Positional parameters of the function are positional arguments (optional ones may be None), keyword parameters are
    options (required without a default), a dataclass stands for an option per field, and ``*rest`` gets what belongs
    to `sga fit`. A name in parentheses after a parameter in the docstring is what the help calls its value.
    """

    def __init__(self, name: str, function: Callable[..., int], aliases: Mapping[str, str]) -> None:
        self._name, self._function, self._aliases = name, function, aliases
        self.__doc__ = function.__doc__

    def __call__(self, arguments: Sequence[str]) -> int:
        parser = self.parser()
        words = parser.joined(arguments)
        rest: list[str] = []
        if self._parameters("rest"):
            given, rest = parser.parse_known_args(words)
            parser.check_rest(rest)
        else:
            given = parser.parse_args(words)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
        hints = get_type_hints(self._function)
        for parameter in self._parameters("options"):
            kind = hints[parameter.name]
            if is_dataclass(kind):
                values[parameter.name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})  # type: ignore[operator]
        positional = [values.pop(parameter.name) for parameter in self._parameters("positional")]
        return self._function(*positional, *rest, **values)

    def parser(self) -> _Parser:
        """The parser of the verb's arguments."""
        said = _documentation(self._function)
        parser = _Parser(
            f"sga {self._name}",
            description=said.description,
            formatter_class=_Formatter,
            allow_abbrev=not self._parameters("rest"),
        )
        hints = get_type_hints(self._function, include_extras=True)
        for parameter in (*self._parameters("positional"), *self._parameters("options")):
            kind, name = hints[parameter.name], parameter.name
            if is_dataclass(kind):
                assert isinstance(kind, type)
                own, texts = get_type_hints(kind, include_extras=True), _documentation(kind)
                for field in inspect.signature(kind).parameters.values():
                    parser.add(field, own[field.name], texts)
            else:
                parser.add(parameter, kind, said, *([self._aliases[name]] if name in self._aliases else []))
        if self._parameters("rest"):
            usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
            parser.usage = f"{usage} [options of sga fit]"
            parser.prog = parser.prog.partition(" [")[0]  # as an error says it
        return parser

    def _parameters(self, kind: Literal["positional", "rest", "options"]) -> list[inspect.Parameter]:
        kinds = {"positional": inspect.Parameter.POSITIONAL_OR_KEYWORD, "rest": inspect.Parameter.VAR_POSITIONAL}
        wanted = kinds.get(kind, inspect.Parameter.KEYWORD_ONLY)
        return [one for one in inspect.signature(self._function).parameters.values() if one.kind is wanted]


def verb(name: str, **aliases: str) -> Callable[[Callable[..., int]], Verb]:
    """Makes a function a `Verb`.

    Args:
        name: Name of the verb on the command line.
        aliases: Second names of options, by parameter.
    """
    return lambda function: Verb(name, function, aliases)


def run_one_of(name: str, about: str, verbs: Mapping[str, Verb], arguments: Sequence[str]) -> int:
    """Runs the second word of a verb of two words, or prints the list of them.

    Raises:
        UserError: there is no such word; names the closest.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, verbs)) + 4
        lines = [
            textwrap.fill(_documentation(one).short_description or "", 80, initial_indent=f"  {word}".ljust(width),
                          subsequent_indent=" " * width)
            for word, one in verbs.items()
        ]  # fmt: skip
        print(f"usage: sga {name} VERB [options]   (sga {name} VERB --help lists options)\n")
        print("\n".join([textwrap.fill(about, 80), "", *lines]))
        return 0 if arguments else 2
    if arguments[0] not in verbs:
        said = f"there is no verb '{name} {arguments[0]}'{_meant(arguments[0], verbs) or ';'}"
        raise UserError(f"{said} choose from {', '.join(verbs)}")
    return verbs[arguments[0]](arguments[1:])


class _Parser(argparse.ArgumentParser):
    """A parser that takes parameters of functions, and says which option was meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse's own takes -1e-3 for an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def joined(self, words: Sequence[str]) -> list[str]:
        """Words of a command line, ``--prefix -x`` as ``--prefix=-x``: argparse takes a value like -x for an option."""
        found: list[str] = []
        for word in words:
            action = self._option_string_actions.get(found[-1]) if found else None
            dashed = re.match("-[^-]", word) and word not in self._option_string_actions
            if dashed and action is not None and action.nargs is None:
                found[-1] += f"={word}"
            else:
                found.append(word)
        return found

    def add(self, parameter: inspect.Parameter, hint: Any, said: Docstring, *aliases: str) -> None:
        """Adds the argument that a parameter stands for."""
        default, optional = parameter.default, type(None) in get_args(hint)
        if optional and get_origin(hint) in (Union, UnionType):
            [hint] = [one for one in get_args(hint) if one is not type(None)]
        described = next(one for one in said.params if one.arg_name == parameter.name)
        text = " ".join((described.description or "").split()).removesuffix(".").replace("``", "").replace("%", "%%")
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        if not any(shown is one for one in (parameter.empty, None, False, "")) and "default" not in text:
            text += f" (default {shown})".replace("%", "%%")
        more: dict[str, Any] = {"help": text}
        kind, place = (get_origin(hint), get_args(hint)) if get_origin(hint) else (hint, ())
        if kind is Annotated:
            more |= {"action": "append", "default": list(default)}
        elif kind is bool:
            more |= {"action": "store_true"}
        elif kind is Literal:
            more |= {"choices": place, "default": default}
        elif place:
            more |= {"nargs": "+", "type": place[0], "default": default}
        else:
            more |= {"type": kind, "default": default}
        if kind not in (bool, Literal):
            metavar = _METAVARS.get(more.get("type"), parameter.name.strip("_").upper())  # type: ignore[arg-type]
            more["metavar"] = described.type_name or metavar
        required = more.get("default") is parameter.empty
        if required:
            del more["default"]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and required:
            more |= {"nargs": "?"} if optional else {}
            self.add_argument(parameter.name, **more)
        else:
            option = f"--{parameter.name.strip('_').replace('_', '-')}"
            self.add_argument(option, *aliases, dest=parameter.name, required=required, **more)

    def check_rest(self, rest: Sequence[str]) -> None:
        """Refuses a misspelt option among those for `sga fit`, most of which have a dot in their names."""
        for flag in (one.partition("=")[0] for one in rest):
            near = difflib.get_close_matches(flag, self._option_string_actions, 1, 0.8)
            if near and "." not in flag and flag.startswith("--"):
                self.error(f"unrecognized arguments: {flag}")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        super().error(message + (_meant(unknown[1], self._option_string_actions) if unknown else ""))


class _Formatter(argparse.HelpFormatter):
    """Fills each paragraph of a description for itself; what is indented stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)


def _documentation(subject: Any) -> Docstring:
    return parse(inspect.getdoc(subject) or "", style=DocstringStyle.GOOGLE)


def _meant(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
