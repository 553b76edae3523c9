"""Fact recall: does an answer say the fact of its record? ROUGE stays high for a right sentence with a wrong name."""

from __future__ import annotations

import re

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
