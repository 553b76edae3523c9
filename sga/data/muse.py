"""MUSE-News: BBC articles to forget, with questions about them (Shi et al., arXiv 2407.06460; dataset, CC BY 4.0)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sga.data.records import Benchmark, Record, Source, TokenCounter
from sga.data.text_blocks import cut_records
from sga.errors import UserError, check_numbers
from sga.files import read_json

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
    **{f"raw/{split}": ("raw", split) for split in ("forget", "retain1", "retain2")},
    **{f"{part}/forget_{fold}": (part, f"forget_{fold}") for part in ("scal", "sust") for fold in (1, 2, 3, 4)},
}
"""Configuration and split on the Hub for each file; the Hub's "retain" is "retain2" in the files' names."""

ForgetSplit = Literal[
    "raw/forget",
    "privleak/forget",
    "scal/forget_1",
    "scal/forget_2",
    "scal/forget_3",
    "scal/forget_4",
    "sust/forget_1",
    "sust/forget_2",
    "sust/forget_3",
    "sust/forget_4",
]
RetainSplit = Literal["raw/retain1", "raw/retain2", "privleak/retain2"]
_PRIVLEAK = ("privleak/forget", "privleak/retain2", "privleak/holdout")


@dataclass(frozen=True)
class MUSENews(Source):
    """MUSE-News, read from a local folder or from the Hub.

    The folder is the data module's `root`, ``muse_news`` in it, or ``$SGA_DATA/muse_news``; without any of them
    ``muse-bench/MUSE-News`` on the Hub is used.

    Evaluation sets: ``forget`` (members), ``retain`` and ``holdout`` (non-members), 100 plain texts each; ``verbmem``,
    beginnings of forget articles (as questions) with their true continuations (as answers); ``knowmem_forget`` and
    ``knowmem_retain``, questions with short answers and ten worked examples each.

    Training splits: the texts of the files `forget` and `retain`, each split into blocks of at most `block_tokens`
    tokens. A block holds whole words of one article, and the blocks of an article are about equally long. Published
    runs instead split a stream of articles into blocks of 2048 tokens, wherever that falls. Articles without text are
    left out.

    Use a subset for models that are small or trained from scratch: with `texts`, PrivLeak's sets are truncated to that
    many texts, and so are training splits that are one of them. If `forget` is not all forget articles, VerbMem uses
    the rows whose true continuation is in it; the questions of KnowMem, which name no text, are all used.

    Args:
        forget: Name of the file with the forget split for training. The published target knows ``raw/forget``;
            ``scal/forget_1`` to ``_4`` are MUSE's growing forget sets, ``sust/forget_1`` to ``_4`` its successive ones.
        retain: Name of the file with the retain split, from which normal samples come. The published target was trained
            on ``raw/retain2``; MUSE regularises with ``raw/retain1`` while unlearning.
        texts: Number of texts to use from the beginning of PrivLeak's files; null for all.
        block_tokens: Largest number of tokens of a block, special tokens included; a shorter context or ``max_length``
            lowers it.
    """

    forget: ForgetSplit = "raw/forget"
    retain: RetainSplit = "privleak/retain2"
    texts: int | None = None
    block_tokens: int = 2048

    def __post_init__(self) -> None:
        check_numbers(2, texts=self.texts)
        check_numbers(16, block_tokens=self.block_tokens)

    def load(self, root: str | None) -> Benchmark:
        """Reads all files of the benchmark.

        Raises:
            UserError: a file is missing or malformed, an entry is empty (names file and index), or the Hub cannot be
                reached.
        """
        folder = _folder(root)
        read = {name: _texts(folder, name)[: self.texts] for name in _PRIVLEAK}
        for name in (self.forget, self.retain):
            if name not in read:
                read[name] = _texts(folder, name, leave_out_empty=True)
        evaluation = {
            "forget": read["privleak/forget"],
            "retain": read["privleak/retain2"],
            "holdout": read["privleak/holdout"],
            "verbmem": _pairs(folder, "verbmem/forget", "prompt", "gt"),
            "knowmem_forget": _pairs(folder, "knowmem/forget_qa"),
            "knowmem_retain": _pairs(folder, "knowmem/retain2_qa"),
        }
        examples = {
            "knowmem_forget": _pairs(folder, "knowmem/forget_qa_icl"),
            "knowmem_retain": _pairs(folder, "knowmem/retain2_qa_icl"),
        }
        training = {"forget": read[self.forget], "retain": read[self.retain]}
        absent = {}
        if self.forget != "raw/forget":
            evaluation["verbmem"] = _standing_in(evaluation["verbmem"], training["forget"])
            if not evaluation["verbmem"]:
                del evaluation["verbmem"]
                absent["verbmem"] = f"no true continuation stands in {self.forget}, as far as it is trained on"
        return Benchmark("muse", training, evaluation, absent, examples)

    def cut(self, benchmark: Benchmark, tokens: TokenCounter) -> Benchmark:
        most = min(self.block_tokens - tokens.special_tokens, tokens.text_room)
        cut = {name: cut_records(records, most, tokens) for name, records in benchmark.training.items()}
        return replace(benchmark, training=cut)


def _standing_in(pairs: tuple[Record, ...], texts: tuple[Record, ...]) -> tuple[Record, ...]:
    """Records whose answer occurs in the texts, up to white space."""
    whole = "\n".join(" ".join(record.answer.split()) for record in texts)
    return tuple(record for record in pairs if " ".join(record.answer.split()) in whole)


def _folder(root: str | None) -> Path | None:
    """Path of the folder with ``privleak/`` and the others; None for the Hub."""
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
        Record(f"{name}/{index}", "", text, where=where)
        for index, where, item in _items(folder, name)
        # The published raw split has an article without text, which cannot be learned or forgotten.
        if (text := _string(item, "the text", where, may_be_empty=leave_out_empty)).strip()
    ]
    if not records:
        raise UserError(f"{_place(folder, name)}: holds no text")
    return tuple(records)


def _pairs(folder: Path | None, name: str, question: str = "question", answer: str = "answer") -> tuple[Record, ...]:
    """Records of questions and answers from the named columns; ids are ``name/0``, ``name/1``, … by index."""
    records = []
    for index, where, item in _items(folder, name):
        if not isinstance(item, Mapping):
            raise UserError(f"{where}: expected an object with {question!r} and {answer!r}, got {type(item).__name__}")
        missing = [column for column in (question, answer) if column not in item]
        if missing:
            raise UserError(f"{where}: missing {' and '.join(map(repr, missing))}")
        asked, answered = (_string(item[column], repr(column), where) for column in (question, answer))
        records.append(Record(f"{name}/{index}", asked, answered, where=where))
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
    import datasets

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
        raise UserError(
            f"{path}: no such file. Every run needs MUSE-News' privleak/, verbmem/ and knowmem/; the splits that "
            "--data.source.forget and --data.source.retain name are files too (without raw/retain1.json and "
            "raw/retain2.json, privleak/retain2 is a retain split that is there)"
        )
    items = read_json(path, "mend that line or copy the file again")
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a JSON array, found {type(items).__name__}")
    return items
