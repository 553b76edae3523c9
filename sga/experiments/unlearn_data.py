"""The data of `sga unlearn` before training: read, written in one form, described in sentences."""

from __future__ import annotations

import statistics
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sga.batching.control_text import check_control_text
from sga.batching.encoding import Encoder
from sga.data.builtin import builtin_path
from sga.data.conversion import converted_records
from sga.data.records import Record, record_to_row
from sga.errors import UserError
from sga.experiments.configuration import digest
from sga.files import write_json_lines
from sga.groups.alternatives import spelled
from sga.groups.checks import Checker, Checks

STAND_IN = "world_facts.jsonl"
"""Packaged general questions that are used where no retain data is given."""
_RESERVED = 0.2
_SCRIPT = 0.05
"""Share of the letters from which on a script is named."""


@dataclass(frozen=True)
class UnlearningRecords:
    """Records to forget, to keep, and of the kind to forget that no model has seen.

    Attributes:
        sets: Records by ``forget``, ``retain`` and, where given, ``holdout``; none of them twice.
        notes: Sentences on what was found in them.
        warnings: Sentences on what is likely to be a fault of the data.
    """

    sets: dict[str, tuple[Record, ...]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def has_texts(self) -> bool:
        """True if something to forget is plain text."""
        return any(record.is_text for record in self.sets["forget"])

    @property
    def reserved(self) -> int:
        """Number of retain questions that unlearning never draws from: a fifth, at least one of two or more."""
        questions = sum(not record.is_text for record in self.sets["retain"])
        return max(1, int(_RESERVED * questions)) if questions > 1 else 0

    @property
    def pool(self) -> int:
        """Number of retain records that unlearning may draw from."""
        return len(self.sets["retain"]) - self.reserved

    @property
    def answers(self) -> int:
        """Number of different answers to the retain questions that unlearning may draw from, at least."""
        answers = {spelled(record.answer) for record in self.sets["retain"] if not record.is_text}
        return max(0, len(answers) - self.reserved)

    def write(self, folder: Path) -> dict[str, str]:
        """Writes the records as JSON Lines into a folder that is named after their content.

        Returns:
            Path of each set's file, by set.
        """
        rows = {name: [record_to_row(record) for record in records] for name, records in self.sets.items()}
        place = folder / f"data-{digest(rows)[:8]}"
        for name, lines in rows.items():
            write_json_lines(place / f"{name}.jsonl", lines)
        return {name: str(place / f"{name}.jsonl") for name in rows}


def read_unlearning_records(forget: Any, retain: Any, holdout: Any) -> UnlearningRecords:
    """Reads what to forget and to keep; see `converted_records` for the forms.

    Records of two sets are left to one: forget records are not retained, and records that were trained on are no
    holdout. Without retain data, general questions of the package are used.

    Raises:
        UserError: as `converted_records`, or nothing is left of a set.
    """
    notes: list[str] = []
    faults: list[str] = []
    given = {"forget": forget, "retain": retain, "holdout": holdout}
    sets = {name: converted_records(data, name) for name, data in given.items() if data is not None}
    if retain is None:
        sets["retain"] = converted_records(builtin_path(STAND_IN), "retain")
        faults.append(
            f"no retain data: {len(sets['retain'])} general questions of the package stand in, so that nothing near "
            "what is forgotten is protected; give records of the same kind that are to be kept (--retain)"
        )
    seen: dict[tuple[str, str], str] = {}
    for name in [name for name in given if name in sets]:
        kept: list[Record] = []
        twice: Counter[str] = Counter()
        for record in sets[name]:
            if record.content in seen:
                twice[seen[record.content]] += 1
            else:
                kept.append(record)
            seen.setdefault(record.content, name)
        for other, count in twice.items():
            place = "twice" if other == name else f"in {other} too"
            notes.append(f"{count} of {len(sets[name])} {name} records stand {place}: left out of {name}")
        if not kept:
            raise UserError(
                f"nothing is left of {name}: all {len(sets[name])} records are in {', '.join(twice)} too; give records "
                "of its own"
            )
        sets[name] = tuple(kept)
    records = UnlearningRecords(sets, notes, faults)
    faults += _near_duplicates(records)
    return records


def _near_duplicates(records: UnlearningRecords) -> list[str]:
    """Sentences on retain and holdout records that say nearly the same as a forget record."""
    forget = records.sets["forget"]
    checker = Checker(Checks(facts=False, length=None, language=False, refusal=False), forget, ())
    found = []
    for name in [name for name in ("retain", "holdout") if name in records.sets]:
        twins = {record.id: why for record in records.sets[name] if (why := checker.failures(record, forget[0]))}
        if twins:
            first = next(iter(twins))
            found.append(
                f"{len(twins)} {name} records are nearly what is to be forgotten (first {first}: {twins[first][0]}): "
                f"take them out of {name}, or they work against forgetting and spoil the measures"
            )
    return found


def look(records: UnlearningRecords, encoder: Encoder) -> Iterator[str]:
    """Sentences that describe the data under a model's tokenizer.

    Raises:
        UserError: a record is longer than the model takes.
    """
    counts = " and ".join(f"{len(rows)} {name}" for name, rows in records.sets.items())
    kind = "texts" if records.has_texts else "questions with answers"
    lengths = _lengths(records, encoder)
    yield (
        f"{counts} records, {kind}, {min(lengths)} to {max(lengths)} tokens (median "
        f"{statistics.median(lengths):g}), {_scripts(records)} script"
    )
    yield from records.notes
    yield from (f"WARNING: {said}" for said in records.warnings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_control_text(encoder, [record for rows in records.sets.values() for record in rows])
    yield from (f"WARNING: {one.message}" for one in caught)


def _lengths(records: UnlearningRecords, encoder: Encoder) -> list[int]:
    """Number of tokens of each record; texts are truncated where they are too long, questions are refused."""
    pairs = [(record.question, record.answer) for rows in records.sets.values() for record in rows]
    encoded, _ = encoder.encode_all([pair for pair in pairs if pair[0]])
    texts = encoder.token_counts([answer for question, answer in pairs if not question])
    return [*(len(one.ids) for one in encoded), *texts]


def _scripts(records: UnlearningRecords) -> str:
    """Scripts of the forget data, such as Latin; several with their share of the letters."""
    text = "".join(part for record in records.sets["forget"] for part in record.texts)
    counts = Counter(unicodedata.name(letter, "?").split()[0].title() for letter in text if letter.isalpha())
    shares = {name: count / counts.total() for name, count in counts.most_common() if count >= _SCRIPT * counts.total()}
    if len(shares) < 2:
        return next(iter(shares), "no")
    return " and ".join(f"{name} ({share:.0%})" for name, share in shares.items())
