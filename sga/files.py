"""Atomic writing of files, and strict reading of JSON, JSON Lines and YAML."""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from sga.errors import UserError


def is_unfinished(name: str) -> bool:
    """True if a name is that of a temporary file or folder, of this module or of checkpoints and exports.

    >>> is_unfinished(".metrics.json.0a1b2c3d"), is_unfinished(".last.ckpt.unfinished"), is_unfinished("metrics.json")
    (True, True, False)
    """
    return re.fullmatch(r"\..+\.([0-9a-f]{8}|unfinished)", name) is not None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically through a temporary file beside it: a killed process leaves the old or the new one.

    Permissions follow the umask, so that you can protect rows, which contain the forget data.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically; refuses NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, atomically; refuses NaN and infinity."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder atomically, in place of an old one: it is complete, or it does not exist.

    Args:
        path: Path of the folder.
        write: Function that writes the content into the folder that it is given.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write(unfinished)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)


def is_number(value: object) -> TypeGuard[int | float]:
    """True if a value of a file is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_value(text: str) -> Any:
    """Parses a JSON text; NaN and infinity are accepted, as in `json.loads`.

    Raises:
        json.JSONDecodeError: the text is not JSON, an object has a key twice (one value would be dropped silently), or
            nesting or numbers exceed Python's limits.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise _repeated_key(text)
        return values

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def _repeated_key(text: str) -> json.JSONDecodeError:
    """Error for the first repeated key of an object in a text that is known to be JSON up to there."""
    objects: list[set[str]] = []
    for token in re.finditer(r'[{}]|("(?:[^"\\]|\\.)*")(\s*:)?', text):
        if token[0] == "{":
            objects.append(set())
        elif token[0] == "}":
            objects.pop()
        elif token[2]:
            key = json.loads(token[1])
            if key in objects[-1]:
                return json.JSONDecodeError(f"{key!r:.60} stands twice in one object", text, token.start())
            objects[-1].add(key)
    raise AssertionError("there is one")


def read_json(path: str | Path, cure: str = "copy the file again or delete it") -> Any:
    """Reads a JSON file in UTF-8, with or without a byte order mark.

    Args:
        path: Path of the file.
        cure: Advice on how to mend a refused file, for the end of the message.

    Raises:
        UserError: the file is missing or is not JSON; names file and line.
    """
    return _json(_content(path), path, 1, cure)


def read_json_object(path: str | Path, cure: str = "copy the file again or delete it") -> dict[str, Any]:
    """Reads a JSON file with an object at its top; see `read_json`."""
    return _object(read_json(path, cure), str(path), cure)


def read_json_lines(
    path: str | Path, cure: str = "mend that line: the file needs one complete JSON object a line"
) -> list[tuple[int, dict[str, Any]]]:
    r"""Reads one JSON object per line, with the line numbers (from 1); blank lines are allowed.

    Differs from `str.splitlines` in that only ``\n`` and ``\r\n`` end a line: U+2028 and the like are content.

    Args:
        path: Path of the file.
        cure: Advice on how to mend a refused file, for the end of the message.

    Raises:
        UserError: the file is missing, not UTF-8, or a line is not a JSON object; names file and line.
    """
    return [
        (number, _object(_json(line, path, number, cure), f"{path}:{number}", cure))
        for number, line in enumerate(_content(path).split(b"\n"), start=1)
        if line.strip()
    ]


def _content(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)


def _json(content: bytes, path: str | Path, line: int, cure: str) -> Any:
    """Parses a part of a file that begins at `line`, for the line numbers of messages."""
    try:
        return json_value(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8, or {cure}") from None
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise UserError(f"{path}:{line}: not JSON ({error.msg}, column {error.colno}); {cure}") from None


def _object(value: Any, where: str, cure: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}; {cure}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML loader of plain values; 1e-4 is a number and a date a text, as for the parser of `sga fit`."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # more digits than Python accepts
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """YAML dumper whose output `_Loader` and the parser of `sga fit` read back: texts like 1e-4 are quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
    for first, forms in _Loader.yaml_implicit_resolvers.items()
}


def yaml_text(value: Any) -> str:
    """YAML of a value, with keys in their order; `yaml_value` and the parser of `sga fit` read the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file of plain values; see `yaml_value`.

    Raises:
        UserError: the file is missing or is refused by `yaml_value`; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    return yaml_value(text, str(path))


def yaml_value(text: str, where: str) -> Any:
    """Parses a YAML text of plain values.

    Differs from `yaml.safe_load`: 1e-4 is a number and a date is a text. It also refuses a repeated key in a block (one
    value would be dropped silently), a block that contains itself, and one that grows beyond a million values by its
    aliases.

    Args:
        text: YAML text to parse.
        where: Name of the file or option, for the message.

    Raises:
        UserError: the text is not YAML, or has a refused block; names place and line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _check_block(node, {}, set())
        return None if node is None else _Loader("").construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: blocks are nested too deeply; write them flat") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{where}{line}: not YAML ({error.problem}); mend that line") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({error})") from None


def _check_block(node: yaml.Node, sizes: dict[int, int], within: set[int]) -> int:
    """Number of values in a YAML node with its aliases expanded; refuses the blocks that `yaml_value` names."""
    if id(node) in within:
        raise yaml.MarkedYAMLError(problem="a block contains itself", problem_mark=node.start_mark)
    if id(node) not in sizes:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
                parts += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        inside = within | {id(node)} if parts else within
        sizes[id(node)] = 1 + sum(_check_block(part, sizes, inside) for part in parts)
        if sizes[id(node)] > 1_000_000:
            raise yaml.MarkedYAMLError(problem="aliases make it too large", problem_mark=node.start_mark)
    return sizes[id(node)]
