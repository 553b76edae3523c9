"""Relearning as an attack: its strength, the curves of all models, and what is recovered faster than it is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from sga.attacks.answering import Row, answered_rows
from sga.attacks.findings import Finding, Untried, finding, shown_names
from sga.attacks.measurements import Keep, Measurements
from sga.attacks.models import AttackData, AttackedModel
from sga.attacks.relearning import LEARNED, RATES, looks, relearn, relearned_and_rest
from sga.data.builtin import builtin_path
from sga.data.folds import evenly
from sga.data.records import Record, read_records
from sga.data.text_blocks import cut_records
from sga.errors import DivergenceError, UserError

GENERAL = "world_facts.jsonl"
"""Built-in questions of benign relearning where ``general`` is asked for, or a run has no retain records."""

Curve = Mapping[int, Mapping[str, list[Row]]]
"""Rows by step and by part: ``rest``, the records that are scored, and ``relearned``."""


@dataclass(frozen=True)
class Strength:
    """Strength of relearning, fixed before the unlearned model is looked at.

    Attributes:
        rate: Learning rate of AdamW.
        steps: Number of optimiser steps.
        control: Words on how both were fixed.
    """

    rate: float
    steps: int
    control: str


def relearning_outcomes(m: Measurements, attack: str) -> Iterator[Finding | Untried]:
    """Findings of ``relearn``, one for each share, or of ``relearn-benign``, one for each text."""
    if len(m.data.forget) < 4:
        yield Untried(attack, "it takes 4 forget records")
        return
    s = m.settings
    if attack == "relearn":
        sizes = dict.fromkeys(len(relearned_and_rest(m.data.forget, share)[0]) for share in s.shares)
        parts: list[tuple[str, int, str | None]] = [(f"relearn {size}", size, None) for size in sizes]
    else:
        size = len(relearned_and_rest(m.data.forget, s.shares[-1])[0])
        parts = [
            (f"relearn-benign {size}" + ("" if text == "retain" else f" {name}"), size, text)
            for name, text in {name: text for text, name in benign_names(s.benign).items()}.items()
        ]
    for name, size, text in parts:
        yield _outcome(m, name, size, text)


def _outcome(m: Measurements, name: str, size: int, benign: str | None) -> Finding | Untried:
    learned, rest = relearned_and_rest(m.data.forget, size / len(m.data.forget))
    strength = _strength(m, learned)
    if isinstance(strength, str):
        return Untried(name, strength)
    words = f"{size} of {len(m.data.forget)} forget records"
    if benign is not None:
        learned, kind = benign_records(benign, m.data)
        learned = evenly(learned, size)
        words = f"{len(learned)} {kind}, at the strength for {size} forget records"
    curves = {model.name: _curve(m, model, name, learned, rest, strength) for model in m.models}
    says = f"trained on {words}, learning rate {strength.rate:g}, {strength.control}"
    return _of_curves(m, name, says, curves, rest)


def benign_names(texts: Sequence[str]) -> dict[str, str]:
    """Names of texts of benign relearning: files' stems, or as much of their paths' ends as tells all of them apart."""
    paths = {text: Path(text) for text in texts}
    for depth in count():
        names = [str(Path(*path.parts[-depth:])) if depth else path.stem for path in paths.values()]
        if len({*names}) == len({*paths.values()}):
            break
    return dict(zip(paths, names, strict=True))


def benign_records(text: str, data: AttackData) -> tuple[tuple[Record, ...], str]:
    """Records of benign relearning, and words for them.

    Args:
        text: One of `AttackSettings.benign`. A plain-text file is split into blocks that fit the longest sequence.
        data: Records of the run.

    Raises:
        UserError: the file cannot be read, or has a forget record in it.
    """
    if text == "retain" and data.retain:
        return data.retain, "retain records"
    if text in ("retain", "general"):
        return read_records(builtin_path(GENERAL), "general"), "built-in general questions"
    path = Path(text)
    if path.suffix in (".jsonl", ".json"):
        records = read_records(path, "benign")
    else:
        try:
            whole = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--benign {text}: cannot be read ({error}); give retain, general, a JSON Lines file or a UTF-8 text"
            ) from None
        if not whole.strip():
            raise UserError(f"--benign {text}: is empty; give text to train on")
        records = (Record("benign/0", "", whole, where=text),)
    records = cut_records(records, data.encoder.text_room, data.encoder)
    forget = {record.content for record in data.forget}
    found = next((record for record in records if record.content in forget), None)
    if found is not None:
        raise UserError(
            f"--benign {found.where or text}: is a forget record, of which relearning would be no benign one; remove it"
        )
    return records, f"records of {path.name}"


def _strength(m: Measurements, learned: Sequence[Record]) -> Strength | str:
    """Strength at which a model that does not know its records learns them, or why there is none.

    The fewest steps of once, twice and four times the setting, and then the least rate of `RATES`.
    """
    first = looks(len(learned), m.settings.steps)[-1]
    if m.settings.rate is not None:
        return Strength(m.settings.rate, first, "as given")
    control, rows = (m.retained[0], learned) if m.retained else (m.before, m.data.holdout[: len(learned)])
    if len(rows) < len(learned):
        return "no retained model and not enough holdout records to fix its strength by; give --reference or --rate"
    who = "a retained model learns these rows" if m.retained else "the model before unlearning learns holdout rows"

    def make(known: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
        found = dict(known.get("probabilities", {}))
        for steps in (first, 2 * first, 4 * first):
            for rate in RATES:
                name = f"{steps} steps at {rate:g}"
                if name not in found:
                    found[name] = _learned(m, control, rows, rate, steps)
                    keep({"probabilities": found}, len(found), None)
                if found[name] >= LEARNED:
                    return {"probabilities": found, "rate": rate, "steps": steps}
        return {"probabilities": found, "rate": None}

    settings = (m.tokens(rows), first, m.settings.seed)
    found = m.kept(control, f"strength {len(rows)}", settings, make)
    if found["rate"] is None:
        return f"up to {RATES[-1]:g} and {4 * first} steps at no strength {who}; give --steps or --rate"
    return Strength(float(found["rate"]), int(found["steps"]), f"the least at which {who} in {found['steps']} steps")


def _learned(m: Measurements, model: AttackedModel, rows: Sequence[Record], rate: float, steps: int) -> float:
    """Mean probability of the answers that a model was trained on."""
    network = _as_float32(model.load(m.device))
    for _ in relearn(network, m.data.encoder, rows, rate, steps, m.settings.seed):
        pass
    asked = [replace(one, truth="") for one in m.plain(rows)]  # nothing is generated
    try:
        found = answered_rows(network, m.data.encoder, asked, 1)
    except DivergenceError:
        return 0.0  # the rate is too high for it to learn anything
    return float(m.column(found, "probability").mean())


def _curve(
    m: Measurements,
    model: AttackedModel,
    name: str,
    learned: Sequence[Record],
    rest: Sequence[Record],
    strength: Strength,
) -> Curve:
    seed, tokens = m.settings.seed, m.data.max_new_tokens
    steps = looks(len(learned), strength.steps)

    def make(known: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
        points = dict(known.get("points", {}))
        network = _as_float32(model.load(m.device))  # small steps would round to nothing in bfloat16
        rows = partial(answered_rows, network, m.data.encoder)
        for step in relearn(network, m.data.encoder, learned, strength.rate, steps[-1], seed):
            if step in steps and str(step) not in points:
                points[str(step)] = {
                    "rest": rows(m.plain(rest), tokens),
                    "relearned": rows(m.plain(learned), tokens),
                }
                keep({"points": points}, len(points), len(steps))
        return {"points": points}

    settings = (m.tokens((*learned, *rest)), len(learned), strength.rate, steps, seed, tokens, "fact_recall")
    return {int(step): point for step, point in m.kept(model, name, settings, make)["points"].items()}


def _of_curves(m: Measurements, name: str, says: str, curves: Mapping[str, Curve], rest: Sequence[Record]) -> Finding:
    """Finding at the step after which the unlearned model is furthest ahead of the retained ones."""
    ids = {record.id for record in rest}
    before = m.column([row for row in m.rows(m.before, "none", m.plain()) if row["id"] in ids])
    columns = {who: {step: m.column(point["rest"]) for step, point in curve.items()} for who, curve in curves.items()}
    mine, theirs = columns[m.unlearned.name], [columns[model.name] for model in m.retained]
    steps = [step for step in mine if step > 0]
    best = max(
        steps, key=lambda step: float(mine[step].mean()) - float(np.mean([one[step].mean() for one in theirs] or 0))
    )
    half = {
        who: next((step for step, values in column.items() if values.mean() >= before.mean() / 2), None)
        for who, column in columns.items()
    }
    names = shown_names(m.unlearned.name, [model.name for model in m.retained])
    taken = "half of what was known: " + ", ".join(
        f"{names[who]} " + ("never" if step is None else f"after {step} steps") for who, step in half.items()
    )
    measures = (m.measure, "probability", "extraction_strength")
    means = {
        who: {
            str(step): {
                part: {measure: float(m.column(rows, measure).mean()) for measure in measures if measure in rows[0]}
                for part, rows in point.items()
            }
            for step, point in curve.items()
        }
        for who, curve in curves.items()
    }
    says = f"{says}; after {best} of {steps[-1]} steps, on the {len(rest)} other forget records"
    values = {"before": before, "unlearned": mine[0], "after": mine[best]}
    details = {"curves": means, "half": half, "step": best}
    return finding(name, says, m.measure, values, [one[best] for one in theirs], True, len(steps), taken, details)


def _as_float32(network: PreTrainedModel) -> PreTrainedModel:
    return network.float()  # type: ignore[no-untyped-call, no-any-return]
