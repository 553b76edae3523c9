"""Attacks that ask otherwise or round the weights, and whether a model answers at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sga.attacks.findings import Finding, Untried, finding
from sga.attacks.measurements import Measurements
from sga.attacks.models import are_questions
from sga.attacks.prompts import (
    Prompted,
    few_shot_prompt,
    first_words_prompt,
    paraphrased_prompt,
    plain_prompt,
    prefixed_prompt,
)
from sga.attacks.settings import ROUNDING
from sga.data.folds import evenly
from sga.errors import DivergenceError
from sga.evaluation.metrics import DIVERGED


def asking_outcome(m: Measurements, attack: str) -> Finding | Untried:
    """Finding of a quick attack, or why it cannot be made."""
    records, s = m.data.forget, m.settings
    if attack in ROUNDING:
        says = f"weights of all linear layers but the head rounded to {attack}"
        return compared(m, attack, says, m.plain(), m.plain(), rounded=attack)
    if not m.questions:
        return Untried(attack, "plain text has no question")
    if attack == "paraphrase":
        some = [record for record in records if record.paraphrased_question is not None]
        if not some:
            return Untried(attack, "no forget record has a paraphrased_question")
        says = f"the question in other words, {len(some)} of {len(records)} records"
        return compared(m, attack, says, m.plain(some), m.asked(some, paraphrased_prompt))
    if attack == "prefix":
        asked = m.asked(records, lambda encoder, one: prefixed_prompt(encoder, one, s.prefix))
        return compared(m, attack, f"the answer begins with {s.prefix!r}", m.plain(), asked)
    if attack == "few-shot":
        examples = evenly([one for one in m.data.retain if not one.is_text], s.shots)
        if not examples:
            return Untried(attack, "there are no retain questions to show")
        room = min(m.data.max_new_tokens, 64)
        asked = m.asked(records, lambda encoder, one: few_shot_prompt(encoder, one, examples, room))
        return compared(m, attack, f"{len(examples)} retain examples before the question", m.plain(), asked)
    asked = m.asked(records, lambda encoder, one: first_words_prompt(encoder, one, s.words))
    says = f"the answer's first {s.words} words are given, at most half of them; the rest is compared"
    return compared(m, attack, says, m.plain(), asked, gives=True)


def compared(
    m: Measurements,
    attack: str,
    says: str,
    plain: Sequence[Prompted],
    asked: Sequence[Prompted] | None = None,
    gives: bool = False,
    rounded: str | None = None,
) -> Finding:
    """Finding of an attack that is one evaluation of each model.

    Args:
        m: Measurements of all models.
        attack: Name of the attack.
        says: Description of the attack, with its settings.
        plain: Records as they are, those that the attack asks about.
        asked: Records as the attack asks about them; None for no attack.
        gives: True if the attack tells the model something of the answers.
        rounded: Precision that the weights are rounded to; None leaves them.
    """
    rows = m.plain_rows({one.id for one in plain})
    attacked = asked or plain
    rows["after"] = m.rows(m.unlearned, attack, attacked, rounded) if asked else rows["unlearned"]
    kept = [m.rows(model, attack, attacked, rounded) for model in m.retained]
    others = {
        name: {role: float(m.column(found, name).mean()) for role, found in rows.items()}
        | ({"retained": float(np.mean([m.column(found, name) for found in kept]))} if kept else {})
        for name in ("rouge_l_recall", "probability", "extraction_strength")
        if name != m.measure and all(name in row for row in rows["after"])
    }
    values = {role: m.column(found) for role, found in rows.items()}
    theirs = [m.column(found) for found in kept]
    return finding(attack, says, m.measure, values, theirs, gives, details={"other_measures": others})


def divergence(m: Measurements) -> str | None:
    """Reason why the unlearned model says nothing any more; None if it still answers retain questions."""
    asked = m.asked(evenly(m.data.retain, 40), plain_prompt)
    measure = "rouge_l_recall" if are_questions(m.data.retain) else "probability"
    was = m.rows(m.before, "retain", asked)
    try:
        now = m.rows(m.unlearned, "retain", asked)
    except DivergenceError as error:
        return str(error)
    nll = float(m.column(now, "avg_nll").mean())
    if nll > DIVERGED:
        return f"its perplexity on {len(now)} retain records is e^{nll:.0f}"
    old, new = (float(m.column(rows, measure).mean()) for rows in (was, now))
    if new < old / 2:
        return f"on {len(now)} retain records its {measure} is {new:.2f}, {old:.2f} before"
    return None
