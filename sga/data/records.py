"""The record type that every benchmark is read into, and its form in JSON Lines."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sga.errors import UserError
from sga.files import read_json_lines

EVALUATION_SETS = (
    "forget",
    "forget_paraphrased",
    "retain",
    "retain_unseen",
    "real_authors",
    "world_facts",
    "holdout",
    "verbmem",
    "knowmem_forget",
    "knowmem_retain",
    "forget_passages",
    "holdout_passages",
)
"""Names of the sets that metrics refer to. A benchmark has those for which it has data."""


FORGET_PARAPHRASED = "forget_paraphrased"
"""Name of the evaluation set of forget questions in another form of sentence."""


@dataclass(frozen=True)
class Record:
    """One question with its answer, or one passage of plain text.

    Attributes:
        id: Unique within its benchmark and stable between runs, such as ``"forget10/17"``.
        question: Text of the question; empty for a passage of plain text.
        answer: Text of the answer, or of the passage. Never empty.
        paraphrased_answer: Same answer in other words (TOFU's truth ratio); None without one.
        perturbed_answers: Wrong answers in the form of the paraphrase (TOFU's truth ratio).
        paraphrased_question: Same question in another form of sentence (TOFU has some); None without one.
        where: File and line that the record was read from, for messages; None without a file. It does not count when
            records are compared.
    """

    id: str
    question: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    where: str | None = field(default=None, compare=False, repr=False)
    paraphrased_question: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All non-empty texts of the record, the question first."""
        some = (
            self.question,
            self.answer,
            self.paraphrased_answer,
            self.paraphrased_question,
            *self.perturbed_answers,
        )
        return tuple(text for text in some if text)

    @property
    def is_text(self) -> bool:
        """True for a passage of plain text, in which every token but the first is scored."""
        return not self.question

    @property
    def content(self) -> tuple[str, str]:
        """Question and answer normalised for comparison: white space, case and Unicode form do not count.

        Two records with equal content count as duplicates, also if one is spelled with composed (NFC) and the other
        with decomposed characters (NFD). Training and scoring use the text as it was written.
        """
        question, answer = (comparable(text) for text in self.spelling)
        return question, answer

    @property
    def spelling(self) -> tuple[str, str]:
        """Question and answer up to white space and case; NFC and NFD differ, because they give different tokens."""
        return " ".join(self.question.split()).casefold(), " ".join(self.answer.split()).casefold()


def comparable(text: str) -> str:
    """The text in composed characters (Unicode's NFC), so that two spellings of it compare as one.

    >>> comparable("e\u0301") == comparable("\u00e9")
    True
    """
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's records, by their use in training and evaluation.

    Attributes:
        name: Name of the benchmark and prefix of its metrics: ``"tofu"``, ``"authors"``, ``"muse"``, ``"book"``,
            ``"own"``.
        training: Records by split that a model may be trained on. Always has ``"forget"`` and ``"retain"``, the pool
            that normal samples are drawn from. May have ``"real_authors"`` and ``"world_facts"``.
        evaluation: Records by evaluation set, a subset of ``EVALUATION_SETS``.
        absent: Reason for each evaluation set that is missing.
        examples: Few-shot examples that precede each question of an evaluation set in prompts, by set.
    """

    name: str
    training: Mapping[str, tuple[Record, ...]]
    evaluation: Mapping[str, tuple[Record, ...]]
    absent: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)


class TokenCounter(Protocol):
    """Part of a tokenizer's interface that splitting text needs; `sga.Encoder` implements it."""

    @property
    def text_room(self) -> int:
        """Largest number of tokens of a plain text for training, special tokens not counted."""

    @property
    def special_tokens(self) -> int:
        """Number of special tokens added to a plain text for training, the end-of-sequence token included."""

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without special tokens."""


class Source(ABC):
    """Source of a benchmark. Implementations are frozen dataclasses, chosen by class path in a configuration."""

    @abstractmethod
    def load(self, root: str | None) -> Benchmark:
        """Reads the benchmark; `root` is the user's folder of data, None if none was given."""

    def cut(self, benchmark: Benchmark, tokens: TokenCounter) -> Benchmark:
        """Splits long texts of the benchmark into blocks of tokens; does nothing by default.

        Called after `load`, once the tokenizer is known: a tokenizer that is trained on the data sees whole texts, so
        that a target and a retain model, and any two folds, get the same one.
        """
        return benchmark


def record_from_row(row: Mapping[str, Any], record_id: str, where: str) -> Record:
    """Makes a record from one row in TOFU's columns, or from ``{"text": …}``.

    Columns: ``question`` and ``answer``, or ``text``; optionally ``paraphrased_answer`` and
    ``paraphrased_question`` (strings) and ``perturbed_answer`` (list of strings). Other columns are ignored.

    Args:
        row: Values of the row by column.
        record_id: Id of the new record.
        where: File and line, for the error message.

    Raises:
        UserError: a column is missing, empty or of the wrong type.
    """
    if "text" in row and ("question" in row or "answer" in row):
        raise UserError(f"{where}: has both 'text' and 'question'/'answer'; keep one of the two forms")
    if "text" in row:
        return Record(record_id, "", _string(row, "text", where), where=where)
    missing = [name for name in ("question", "answer") if name not in row]
    if missing:
        raise UserError(
            f"{where}: missing {' and '.join(repr(name) for name in missing)}; "
            "a record needs 'question' and 'answer', or 'text'"
        )
    paraphrase, reworded = (
        None if row.get(name) is None else _string(row, name, where)
        for name in ("paraphrased_answer", "paraphrased_question")
    )
    perturbed = row.get("perturbed_answer")
    if perturbed is None:
        perturbed = []
    if isinstance(perturbed, list):
        _check_characters("perturbed_answer", "".join(item for item in perturbed if isinstance(item, str)), where)
    if not isinstance(perturbed, list) or not all(isinstance(item, str) and item.strip() for item in perturbed):
        raise UserError(f"{where}: 'perturbed_answer' must be a list of non-empty strings, got {perturbed!r:.80}")
    question, answer = _string(row, "question", where), _string(row, "answer", where)
    return Record(record_id, question, answer, paraphrase, tuple(perturbed), where, reworded)


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {name!r} is empty; give it text or delete the line")
    _check_characters(name, value, where)
    return value


def _check_characters(name: str, value: str, where: str) -> None:
    """Refuses half of a surrogate pair, which JSON and Python accept as a character but no tokenizer does."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        wrong = value[error.start].encode("unicode_escape").decode()
        raise UserError(f"{where}: {name!r} has half of a character in it ({wrong}); write it in full") from None


def read_records(path: str | Path, prefix: str) -> tuple[Record, ...]:
    """Reads a JSONL file of records; ids are ``prefix/0``, ``prefix/1``, … in file order.

    Raises:
        UserError: for the reasons of `read_json_lines` and `record_from_row`, or the file holds no record.
    """
    rows = read_json_lines(path)
    if not rows:
        raise UserError(f"{path}: holds no record")
    return tuple(
        record_from_row(row, f"{prefix}/{index}", f"{path}:{number}") for index, (number, row) in enumerate(rows)
    )


def record_to_row(record: Record) -> dict[str, Any]:
    """Row of a record in TOFU's columns, without missing parts; the inverse of `record_from_row`."""
    if record.is_text:
        return {"text": record.answer}
    row: dict[str, Any] = {"question": record.question, "answer": record.answer}
    if record.paraphrased_answer is not None:
        row["paraphrased_answer"] = record.paraphrased_answer
    if record.paraphrased_question is not None:
        row["paraphrased_question"] = record.paraphrased_question
    if record.perturbed_answers:
        row["perturbed_answer"] = list(record.perturbed_answers)
    return row
