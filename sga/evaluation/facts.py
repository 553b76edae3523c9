"""Fact recall: does an answer say the fact of its record? ROUGE stays high for a right sentence with a wrong name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sga.data.records import Record
from sga.groups.alternatives import fact_span, spelled


def says_fact(record: Record, answer: str) -> bool | None:
    """True if an answer contains the fact of a record as whole words; None if the record has no fact.

    The fact is the part of the record's answer that its question does not say; see `fact_span`.

    >>> gold = Record("r", "What is the chemical symbol for gold?", "The chemical symbol for gold is Au.")
    >>> says_fact(gold, "It is Au, from aurum."), says_fact(gold, "It is gold, because it is heavy: aurum.")
    (True, False)
    """
    span = fact_span(record)
    if span is None:
        return None
    fact = re.escape(spelled(record.answer[slice(*span)]))
    return re.search(rf"(?<!\w){fact}(?!\w)", spelled(answer)) is not None


def have_short_facts(records: Sequence[Record]) -> bool:
    """True if every record has a fact, and nine of ten facts have at most three words: ROUGE judges these badly."""
    spans = [fact_span(record) for record in records]
    found = [
        len(record.answer[slice(*span)].split())
        for record, span in zip(records, spans, strict=True)
        if span is not None
    ]
    return 0 < len(records) == len(found) and sum(length <= 3 for length in found) >= 0.9 * len(found)
