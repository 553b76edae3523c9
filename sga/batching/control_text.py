"""Checks for record texts with control meaning: special tokens that are spelled out, and marks of the template."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence

from sga.batching.encoding import Encoder
from sga.data.records import Record
from sga.errors import UserError


def check_control_text(encoder: Encoder, records: Iterable[Record], refuse: bool = False, marks: bool = True) -> None:
    """Warns of records that contain special tokens or marks of the template, once per source file.

    An answer ``</s>``, for instance, is encoded as its own end, and a question with ``<|im_end|>`` ends the user's
    turn.

    Args:
        encoder: Encoder with the tokenizer and template to check for.
        records: Records to check, each once.
        refuse: True to raise an error for special tokens instead of warning.
        marks: True to look for marks of the template (``Answer:``, ``[/INST]``) in questions and answers too.

    Raises:
        UserError: a record contains a special token, and `refuse` is true.
    """
    files: dict[str, list[Record]] = {}
    for record in dict.fromkeys(records):
        file = re.sub(r":\d+$|\[\d+\]$", "", record.where) if record.where else record.id.rpartition("/")[0]
        files.setdefault(file, []).append(record)
    for file, rows in files.items():
        if not encoder.as_text:
            found = _found(rows, encoder.special_tokens_in)
            if found:
                said = (
                    f"{_summary(file, found, len(rows))} special tokens, which are read as those tokens and not as "
                    "text: a turn or the whole sequence may begin or end there. Mend the data, or take them as text "
                    "(--data.special_tokens=text)"
                )
                if refuse:
                    raise UserError(said)
                warnings.warn(f"{said}; --data.special_tokens=refuse makes this an error", stacklevel=2)
        found = _found([row for row in rows if not row.is_text], encoder.marks_in) if marks else []
        if found:
            warnings.warn(
                f"{_summary(file, found, len(rows))} what the template itself tells question and answer apart by: the "
                "model may take it for the template's. Mend the data, or take another template",
                stacklevel=2,
            )


def _found(records: Sequence[Record], look: Callable[[str], list[str]]) -> list[tuple[Record, list[str]]]:
    looked = ((record, [one for text in record.texts for one in look(text)]) for record in records)
    return [(record, found) for record, found in looked if found]


def _summary(file: str, found: Sequence[tuple[Record, list[str]]], records: int) -> str:
    first = found[0][0]
    place = f"{first.id}, {first.where}" if first.where else first.id
    several = list(dict.fromkeys(one for _, some in found for one in some))
    shown = ", ".join(map(repr, several[:5])) + (", …" if len(several) > 5 else "")
    return f"{file or first.id}: {len(found)} of {records} records (first {place}) have in them {shown},"
