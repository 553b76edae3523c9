"""MUSE-News: BBC articles to forget, with questions about them (Shi et al., arXiv 2407.06460; dataset, CC BY 4.0)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sga.data.records import Benchmark, Record, Source
from sga.errors import UserError

HUB_NAME = "muse-bench/MUSE-News"
_ON_THE_HUB = {
    "privleak/forget": ("privleak", "forget"),
    "privleak/retain2": ("privleak", "retain"),
    "privleak/holdout": ("privleak", "holdout"),
    "verbmem/forget": ("verbmem", "forget"),
    "knowmem/forget_qa": ("knowmem", "forget_qa"),
    "knowmem/forget_qa_icl": ("knowmem", "forget_qa_icl"),
    "knowmem/retain2_qa": ("knowmem", "retain_qa"),
    "knowmem/retain2_qa_icl": ("knowmem", "retain_qa_icl"),
    "raw/forget": ("raw", "forget"),
}
"""Configuration and split of each file: the Hub calls retain what the files call retain2."""


@dataclass(frozen=True)
class MUSENews(Source):
    """MUSE-News from a local folder or from the Hub.

    The folder is the data module's `root`, ``muse_news`` in it, or ``$SGA_DATA/muse_news``; without any of them the
    Hub's ``muse-bench/MUSE-News``.

    Evaluation sets: ``forget`` (members), ``retain`` and ``holdout`` (non-members), 100 plain texts each; ``verbmem``,
    beginnings of forget articles (as questions) with their true continuations (as answers); ``knowmem_forget`` and
    ``knowmem_retain``, questions with short answers and ten worked examples each.

    Training splits: ``forget``, the 889 forget articles but one that is empty; ``retain``, the 100 retain texts of the
    evaluation. MUSE's own retain split is larger; the one here is the same wherever the benchmark is read from.
    """

    def load(self, root: str | None) -> Benchmark:
        """Reads the files.

        Raises:
            UserError: a file is missing or malformed, an entry is empty (names file and index), or the Hub cannot be
                reached.
        """
        folder = _folder(root)
        evaluation = {
            "forget": _texts(folder, "privleak/forget"),
            "retain": _texts(folder, "privleak/retain2"),
            "holdout": _texts(folder, "privleak/holdout"),
            "verbmem": _pairs(folder, "verbmem/forget", "prompt", "gt"),
            "knowmem_forget": _pairs(folder, "knowmem/forget_qa"),
            "knowmem_retain": _pairs(folder, "knowmem/retain2_qa"),
        }
        examples = {
            "knowmem_forget": _pairs(folder, "knowmem/forget_qa_icl"),
            "knowmem_retain": _pairs(folder, "knowmem/retain2_qa_icl"),
        }
        training = {
            "forget": _texts(folder, "raw/forget", leave_out_empty=True),
            "retain": evaluation["retain"],
        }
        return Benchmark("muse", training, evaluation, examples=examples)


def _folder(root: str | None) -> Path | None:
    """The folder with ``privleak/`` and the others, None for the Hub."""
    if root is None:
        shared = os.environ.get("SGA_DATA")
        return Path(shared) / "muse_news" if shared and (Path(shared) / "muse_news").is_dir() else None
    for folder in (Path(root), Path(root) / "muse_news"):
        if (folder / "privleak").is_dir():
            return folder
    raise UserError(f"--data.root {root}: no MUSE-News files there (expected privleak/forget.json and the others)")


def _texts(folder: Path | None, name: str, leave_out_empty: bool = False) -> tuple[Record, ...]:
    """Plain text records; ids are ``name/0``, ``name/1``, … by index in the file."""
    records = [
        Record(f"{name}/{index}", "", text)
        for index, where, item in _items(folder, name)
        # The published raw split has an article without text, from which there is nothing to learn or to forget.
        if (text := _string(item, "the text", where, may_be_empty=leave_out_empty)).strip()
    ]
    if not records:
        raise UserError(f"{_place(folder, name)}: holds no text")
    return tuple(records)


def _pairs(folder: Path | None, name: str, question: str = "question", answer: str = "answer") -> tuple[Record, ...]:
    """Records of a question and its answer, which stand in the named columns; ids as of `_texts`."""
    records = []
    for index, where, item in _items(folder, name):
        if not isinstance(item, Mapping):
            raise UserError(f"{where}: expected an object with {question!r} and {answer!r}, got {type(item).__name__}")
        missing = [column for column in (question, answer) if column not in item]
        if missing:
            raise UserError(f"{where}: missing {' and '.join(map(repr, missing))}")
        asked, answered = (_string(item[column], repr(column), where) for column in (question, answer))
        records.append(Record(f"{name}/{index}", asked, answered))
    if not records:
        raise UserError(f"{_place(folder, name)}: holds no record")
    return tuple(records)


def _string(value: Any, what: str, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} must be a string, got {type(value).__name__}")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: {what} is empty; give it text or take the item out")
    return value


def _place(folder: Path | None, name: str) -> str:
    return f"{HUB_NAME}/{name}" if folder is None else str(folder / f"{name}.json")


def _items(folder: Path | None, name: str) -> Iterator[tuple[int, str, Any]]:
    """Index, place for messages, and content of each item."""
    place = _place(folder, name)
    items = _from_hub(name) if folder is None else _read_array(folder / f"{name}.json")
    for index, item in enumerate(items):
        yield index, f"{place}[{index}]", item


def _from_hub(name: str) -> list[Any]:
    configuration, split = _ON_THE_HUB[name]
    try:
        rows = [dict(row) for row in datasets.load_dataset(HUB_NAME, configuration, split=split)]
    except Exception as error:  # datasets and the Hub client raise a dozen types for "not reachable"
        raise UserError(
            f"the split {split} of MUSE-News' {configuration} could not be taken from the Hub ({HUB_NAME}): {error}. "
            "Without a network, give a folder with its files: --data.root FOLDER, or SGA_DATA"
        ) from error
    return [row["text"] if set(row) == {"text"} else row for row in rows]  # texts are plain strings in the files


def _read_array(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; MUSE-News needs {', '.join(f'{name}.json' for name in _ON_THE_HUB)}")
    try:
        items = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a JSON array, found {type(items).__name__}")
    return items
