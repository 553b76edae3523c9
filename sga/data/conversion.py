"""Conversion of common forms of records (chat messages, prompts with completions, tables) into our columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sga.data.records import Record, record_from_row, record_to_row
from sga.errors import UserError
from sga.files import read_json_lines

_CONVERT = (
    'each record needs "question" and "answer", or "text"; "prompt" and "completion", or "messages" with one user and '
    "one assistant turn, are read as well. Write such a file as JSON Lines (.jsonl) or CSV"
)


_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?::(?P<split>[^/\s]+))?")
"""Pattern of the name of a data set on the Hub, with or without a split; also matches a folder in the Hub's format."""


def converted_records(data: Any, name: str) -> tuple[Record, ...]:
    """Converts a file, a data set or objects in memory to records; ids are ``name/0``, ``name/1``, … in order.

    Args:
        data: Path of a JSON Lines, JSON (a list) or CSV file; ``organisation/name`` or ``organisation/name:split`` of a
            data set on the Hub; or records, dictionaries, or a data set that yields them.
        name: Name of the set: ``forget``, ``retain`` or ``holdout``.

    Raises:
        UserError: there is no data, or a record has another form; names the record, and how to convert it.
    """
    if isinstance(data, (str, Path)):
        rows = _file_rows(Path(data), name) if Path(data).is_file() else _hub_rows(str(data), name)
    elif isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(f"{name}: must be a file or a list of records, got {type(data).__name__}; {_CONVERT}")
    else:
        rows = [(f"{name}[{index}]", row) for index, row in enumerate(data)]
    if not rows:
        raise UserError(f"{data if isinstance(data, (str, Path)) else name}: holds no record")
    return tuple(_record(row, f"{name}/{index}", where) for index, (where, row) in enumerate(rows))


def _file_rows(path: Path, name: str) -> list[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        return [(f"{path}:{number}", row) for number, row in read_json_lines(path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey=""))
            return [(f"{path}, row {number}", _filled(row)) for number, row in enumerate(rows, start=1)]
        content = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: is no list of records; {_CONVERT}")
    return [(f"{path}[{index}]", row) for index, row in enumerate(content)]


def _hub_rows(place: str, name: str) -> list[tuple[str, Any]]:
    """Rows of a data set on the Hub, or of a folder in its format."""
    found = _HUB_NAME.fullmatch(place)
    if found is None or Path(place).suffix in (".jsonl", ".json", ".csv"):
        raise UserError(
            f"--{name} {place}: no such file, and no name of a data set on the Hub (organisation/name:split)"
        )
    import datasets

    try:
        data = datasets.load_dataset(found["name"], split=found["split"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"--{name} {place}: neither a file, nor a data set that can be read from the Hub ({why}); check the name "
            "and the connection, or give a file (.jsonl, .json, .csv)"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        splits = list(data)
        if len(splits) > 1:
            raise UserError(
                f"--{name} {place}: has the splits {', '.join(splits)}; say which: {found['name']}:{splits[0]}"
            )
        data = data[splits[0]]
    return [(f"{place}[{index}]", _filled(row)) for index, row in enumerate(data)]


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row without its empty cells, which mean that a record lacks the column."""
    return {name: value for name, value in row.items() if name and value not in (None, "")}


def _record(row: Any, record_id: str, where: str) -> Record:
    if isinstance(row, Record):
        row = record_to_row(row)
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: is no record but {type(row).__name__}; {_CONVERT}")
    return record_from_row(_columns(row, where), record_id, where)


def _columns(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Renames the columns of a row to ours."""
    if "text" in row or ("question" in row and "answer" in row):
        return row
    if "messages" in row:
        return _turn(row["messages"], where)
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return _turn([*prompt, *completion], where)
        return {"question": prompt, "answer": completion}
    raise UserError(f"{where}: has {', '.join(map(repr, row)) or 'no columns'}; {_CONVERT}")


def _turn(messages: Any, where: str) -> dict[str, Any]:
    """Question and answer of a conversation of one turn; a system message is left to the template."""
    if not isinstance(messages, Sequence) or not all(isinstance(one, Mapping) for one in messages):
        raise UserError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    said = [(one.get("role"), one.get("content")) for one in messages if one.get("role") != "system"]
    if [role for role, _ in said] != ["user", "assistant"]:
        raise UserError(
            f"{where}: 'messages' must be one user and one assistant turn, got "
            f"{', '.join(str(role) for role, _ in said) or 'none'}; make a record of each question with its answer"
        )
    return {"question": said[0][1], "answer": said[1][1]}
