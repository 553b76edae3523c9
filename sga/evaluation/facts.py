"""Whether an answer says the fact of its record: what ROUGE does not see of a right sentence with a wrong name."""

from __future__ import annotations

import re

from sga.data.records import Record
from sga.groups.alternatives import fact_span, spelled


def says_fact(record: Record, answer: str) -> bool | None:
    """True if an answer has the fact of a record, word for word and as whole words; None if the record has none.

    The fact is what the record's answer says that its question does not; see `fact_span`.

    >>> gold = Record("r", "What is the chemical symbol for gold?", "The chemical symbol for gold is Au.")
    >>> says_fact(gold, "It is Au, from aurum."), says_fact(gold, "It is gold, because it is heavy: aurum.")
    (True, False)
    """
    span = fact_span(record)
    if span is None:
        return None
    fact = re.escape(spelled(record.answer[slice(*span)]))
    return re.search(rf"(?<!\w){fact}(?!\w)", spelled(answer)) is not None
