"""Sampling as an attack: leak@k of arXiv 2511.04934, by ROUGE-L and by a model of natural-language inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sga.attacks.answering import greedy_answers, sampled_answers
from sga.attacks.entailment import EntailmentJudge
from sga.attacks.findings import FACTS, Estimate, Finding, Untried, finding
from sga.attacks.measurements import Keep, Measurements
from sga.attacks.models import AttackedModel
from sga.attacks.prompts import Prompted
from sga.data.folds import evenly
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.facts import says_fact
from sga.evaluation.metrics import clopper_pearson, expected_maximum, leak_at_k, rouge

_CHUNK = 4
"""Number of questions that are sampled before their scores are written."""

Scores = Mapping[str, Sequence[float]]
"""Numbers of all samples of a question, by record id."""


def sampling_outcomes(m: Measurements) -> Iterator[Finding | Untried]:
    """Finding by ROUGE-L, and one by the NLI model where one is named."""
    if not m.questions:
        yield Untried("sampling", "plain text has no question")
        return
    s = m.settings
    asked = m.plain(evenly(m.data.forget, s.questions))
    drawn = {model.name: _drawn(m, model, asked) for model in m.models}
    rows = m.plain_rows({one.id for one in asked})
    recalls = {who: found["scores"] for who, found in drawn.items()}
    if m.measure == FACTS:
        says, least = "it says the fact", 1.0
        leaks = {who: found["facts"] for who, found in drawn.items()}
    else:
        says, least = f"ROUGE-L recall is at least {s.leak:g}", s.leak
        leaks = {
            who: {name: [score >= s.leak for score in scores] for name, scores in found.items()}
            for who, found in recalls.items()
        }
    greedy = {role: {row["id"]: row[m.measure] >= least for row in found} for role, found in rows.items()}
    yield _finding(m, "sampling", says, asked, leaks, greedy, recalls)
    if m.judge is not None:
        greedy = {
            role: _entailed(m, model, asked, m.judge)
            for role, model in (("before", m.before), ("unlearned", m.unlearned))
        }
        leaks = {who: one["entailed"] for who, one in drawn.items()}
        says = f"the NLI model {m.judge.name} says that it entails the answer"
        yield _finding(m, "sampling NLI", says, asked, leaks, greedy)


def _finding(
    m: Measurements,
    name: str,
    leaks_if: str,
    asked: Sequence[Prompted],
    leaks: Mapping[str, Mapping[str, Sequence[bool]]],
    greedy: Mapping[str, Mapping[str, bool]],
    scores: Mapping[str, Scores] | None = None,
) -> Finding:
    n, ids = m.settings.samples, [one.id for one in asked]
    counts = {who: [sum(found[one]) for one in ids] for who, found in leaks.items()}
    ks = [k for k in (2**power for power in range(n.bit_length())) if k < n] + [n]
    shown = Bootstrap()

    def points(who: str) -> dict[str, dict[str, float]]:
        found = {}
        for k in ks:
            leak = Estimate.of(np.array([leak_at_k(c, n, k) for c in counts[who]]), shown)
            found[str(k)] = {"leak": leak.value, "leak_low": leak.low, "leak_high": leak.high}
            if scores is not None:
                best = Estimate.of(np.array([expected_maximum(scores[who][one], k) for one in ids]), shown)
                found[str(k)] |= {"best": best.value, "best_low": best.low, "best_high": best.high}
        return found

    curves = {who: points(who) for who in counts}
    own = counts[m.unlearned.name]
    one = curves[m.unlearned.name]["1"]
    why = f"{one['leak']:.1%} ({one['leak_low']:.1%} to {one['leak_high']:.1%}) of single samples leak"
    if scores is not None:
        why += f"; their mean recall is {one['best']:.2f} ({one['best_low']:.2f} to {one['best_high']:.2f})"
    says = (
        f"leak@{n} on {len(ids)} questions at T = 1, top-p = 1, seed {m.settings.seed}: a sample leaks if {leaks_if}; "
        "before and unlearned are greedy answers that leak"
    )
    details = {
        "curves": curves,
        "clopper_pearson": {one: clopper_pearson(c, n) for one, c in zip(ids, own, strict=True)},
        "leaking_samples": dict(zip(ids, own, strict=True)),
    }
    leaking = {who: np.array([float(c > 0) for c in per]) for who, per in counts.items()}
    values = {role: np.array([float(found[one]) for one in ids]) for role, found in greedy.items()}
    values["after"] = leaking[m.unlearned.name]
    theirs = [leaking[model.name] for model in m.retained]
    return finding(name, says, f"leak@{n}", values, theirs, True, why=why, details=details)


def _drawn(m: Measurements, model: AttackedModel, asked: Sequence[Prompted]) -> dict[str, Any]:
    """ROUGE-L recall of each sample, whether it says the fact, and with a judge whether it entails the answer.

    The texts are not kept.
    """
    s = m.settings

    def make(known: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
        scores, facts = dict(known.get("scores", {})), dict(known.get("facts", {}))
        entailed = dict(known.get("entailed", {}))
        network = model.load(m.device)
        for start in range(0, len(asked), _CHUNK):
            part = asked[start : start + _CHUNK]
            if part[0].id in scores:
                continue
            args = (part, s.samples, m.data.max_new_tokens, s.seed * 100_003 + start)
            said = sampled_answers(network, m.data.encoder, *args)
            truths = [one.truth for one in part for _ in range(s.samples)]
            recalls = rouge(said, truths)["rougeL_recall"]
            judged = [] if m.judge is None else m.judge.entails(said, truths, recalls)
            for place, one in enumerate(part):
                own = slice(place * s.samples, (place + 1) * s.samples)
                scores[one.id] = recalls[own]
                facts[one.id] = [bool(says_fact(one.record, text)) for text in said[own]]
                entailed |= {one.id: judged[own]} if judged else {}
            keep({"scores": scores, "facts": facts, "entailed": entailed}, len(scores), len(asked))
        return {"scores": scores, "facts": facts, "entailed": entailed}

    settings: tuple[Any, ...] = (
        [(one.id, one.prompt, one.truth) for one in asked], s.samples, s.seed, m.data.max_new_tokens, "facts"
    )  # fmt: skip
    if m.judge is not None:
        settings = (*settings, m.judge.key)
    return m.kept(model, "sampling", settings, make)


def _entailed(
    m: Measurements, model: AttackedModel, asked: Sequence[Prompted], judge: EntailmentJudge
) -> dict[str, bool]:
    """True by record id if a model's greedy answer entails the true one."""

    def make(known: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
        said = greedy_answers(model.load(m.device), m.data.encoder, asked, m.data.max_new_tokens, m.cache)
        truths = [one.truth for one in asked]
        judged = judge.entails(said, truths, rouge(said, truths)["rougeL_recall"])
        return {"entailed": {one.id: found for one, found in zip(asked, judged, strict=True)}}

    settings = ([(one.id, one.prompt, one.truth) for one in asked], m.data.max_new_tokens, judge.key)
    return dict(m.kept(model, "greedy NLI", settings, make)["entailed"])
