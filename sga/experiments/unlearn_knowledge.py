"""Knowledge that the starting model of `sga unlearn` has of the records to forget and to keep, in sentences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from sga.callbacks.first_looks import silent_answers
from sga.errors import UserError
from sga.evaluation.handover import NOT_EXTRACTABLE, NOT_RECOGNISED, Tolerances, account
from sga.experiments.task import LOG_FILE
from sga.runs.folder import Run

_UNRECOGNISED = 0.6
"""Membership AUC, or share of pairs, up to which a model does not know the data, where 0.5 is the goal."""
_KNOWN = 0.8
"""Share of facts that a model says from which on it counts as knowing the records."""
_KNOWLEDGE = {
    "forget/probability": "mean probability of a token of the true answer",
    "forget/rouge_l_recall": "words of the true answer in the greedy one (ROUGE-L)",
}
_SHOWN = 5
_WIDTH = 80


def check_answers(before: Run) -> None:
    """Refuses a model that answers nothing, of which no metric could tell what it knows.

    Raises:
        UserError: nearly all answers are empty, or repeat themselves.
    """
    said = silent_answers(before.row_dicts(before.chosen_step))
    if said is not None:
        raise UserError(
            f"{said} before unlearning: no metric can tell what such a model knows. Likely the form of the prompts is "
            "not the one that it was trained on (--set data.template=…), or it is no model that answers questions; "
            f"see {before.path / LOG_FILE}"
        )


def knowledge(before: Run, tolerances: Tolerances, anyway: bool) -> str:
    """Sentence on how much the starting model knows of the forget records.

    Args:
        before: Evaluation of the starting model.
        tolerances: Tolerances of the conditions for handing over, with a base model's numbers where there is one.
        anyway: True if a model that does not know the records is accepted.

    Raises:
        UserError: it does not know them.
    """
    checks = account(before.chosen, before.chosen, tolerances).checks
    facts, kept = (_facts(before, name) for name in ("forget", "retain"))
    said_facts = sum(map(_says, facts))
    shown = [f"{said_facts} of {len(facts)} greedy answers say the fact"] if facts else []
    for name, words in _KNOWLEDGE.items():
        value = before.value(name)
        shown += [] if value is None else [f"{words} {value:.2f}"]
    shown += [
        f"{one.quantity} {one.value:.2f} (0.50 is chance)"
        for one in checks
        if one.condition == NOT_RECOGNISED and one.value is not None
    ]
    tested = [one for one in checks if one.condition in (NOT_RECOGNISED, NOT_EXTRACTABLE) and one.value is not None]
    # A base model's numbers are goals of their own, which the starting model's have been compared with already.
    based = any(
        goal is not None for goal in (tolerances.base_loss_auc, tolerances.base_min_k_auc, tolerances.base_pairs)
    )
    unknown = all(
        one.violation == 0 or (not based and one.condition == NOT_RECOGNISED and (one.value or 0) <= _UNRECOGNISED)
        for one in tested
    )
    if tested and unknown and not said_facts:
        said = f"the model does not know what it is to forget ({', '.join(shown)}): there is nothing to forget"
        if not anyway:
            raise UserError(f"{said}. Is it the model that was trained on the data? (--anyway goes on)")
        return said
    keeps = f"; of what it is to keep {sum(map(_says, kept))} of {len(kept)}" if kept else ""
    return f"it knows what it is to forget: {', '.join(shown)}{keeps}"


def missed_facts(before: Run) -> tuple[list[str], list[str]]:
    """Lines on the facts that the starting model does not say, and sentences for the report, which quote no text.

    Args:
        before: Evaluation of the starting model.
    """
    lines, warnings = [], []
    for name, purpose, poor in (("forget", "forget", _POOR_FORGET), ("retain", "keep", _POOR_RETAIN)):
        facts = _facts(before, name)
        missed = [row for row in facts if not _says(row)]
        if not missed:
            continue
        said = len(facts) - len(missed)
        if said < _KNOWN * len(facts):
            sentence = f"it says {said} of the {len(facts)} facts that it is to {purpose}: {poor}"
            warnings.append(f"the starting model: {sentence}")
            lines.append(f"model: WARNING: {sentence}")
        else:
            lines.append(f"model: it misses {len(missed)} of the {len(facts)} facts that it is to {purpose}")
        lines += [line for row in missed[:_SHOWN] for line in _question_and_answer(row)]
        lines += [f"    … and {len(missed) - _SHOWN} more"] if len(missed) > _SHOWN else []
    return [*lines, *([_CURE] if warnings else [])], warnings


_POOR_FORGET = (
    "the others it does not say before, so that not saying them afterwards shows nothing, and the count looks good"
)
_POOR_RETAIN = "what it does not know cannot be kept, and whether it keeps the rest is measured on few"
_CURE = (
    "model: what to do: take out the records that it misses, or give their answers in its own words (a fact is the "
    "words of the answer that the question lacks); if it should know them, it may be asked in another form than it was "
    "trained on (--set data.template=…)"
)


def _facts(run: Run, name: str) -> list[Mapping[str, Any]]:
    """Rows of a set with a greedy answer and a fact."""
    return [row for row in run.row_dicts(run.chosen_step, name) if row.get("fact_recall") is not None]


def _says(row: Mapping[str, Any]) -> bool:
    return bool(row["fact_recall"])


def _question_and_answer(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines with a question and what the model says to it; with the record's id where texts are not saved."""
    for label, text in (
        ("    ", row.get("question", row["id"])),
        ("      said: ", row.get("generation", "(not saved)")),
    ):
        yield label + (textwrap.shorten(str(text), _WIDTH - len(label), placeholder=" …") or "(nothing)")
