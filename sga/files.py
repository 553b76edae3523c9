"""Files that are written whole or not at all, and files of others, read with suspicion."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sga.errors import UserError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file by way of a temporary one beside it, so that a killed process leaves the old or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented JSON; NaN and infinity are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_value(text: str) -> Any:
    """`json.loads`, all of whose refusals are of one kind.

    Raises:
        json.JSONDecodeError: also for nesting and numbers beyond what Python takes.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is not JSON, or not UTF-8.
    """
    try:
        return json_value(Path(path).read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); copy the file again or delete it") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); copy the file again or delete it"
        ) from None


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file of plain values.

    Differs from `yaml.safe_load` in what it refuses: a key that stands twice in a block, of which one would be
    dropped without a word; a block that contains itself; and one that grows beyond a million values by its aliases.

    Raises:
        UserError: the file is missing or is not such a file; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        node = yaml.compose(path.read_bytes().decode("utf-8"), Loader=yaml.SafeLoader)
        if node is not None:
            _check_block(node, {}, set())
        return None if node is None else yaml.SafeLoader("").construct_document(node)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: blocks are nested too deeply; write them flat") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{line}: not YAML ({error.problem}); mend that line") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({error})") from None


def _check_block(node: yaml.Node, sizes: dict[int, int], within: set[int]) -> int:
    """Number of values in a YAML node with all its aliases written out; refuses what `read_yaml` says."""
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
