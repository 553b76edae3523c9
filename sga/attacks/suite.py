"""All attacks on one unlearned model: each is made once for each model, kept in a file and resumed where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sga.attacks.answering import Row, answered_rows, sampled_recalls
from sga.attacks.findings import Finding, finding, verdict
from sga.attacks.models import AttackData, AttackedModel, are_questions
from sga.attacks.prompts import (
    Prompted,
    few_shot_prompt,
    first_words_prompt,
    paraphrased_prompt,
    plain_prompt,
    prefixed_prompt,
)
from sga.attacks.quantization import quantize
from sga.attacks.relearning import LEARNED, RATES, looks, relearn, relearned_and_rest
from sga.data.folds import evenly
from sga.data.records import Record
from sga.errors import DivergenceError, UserError
from sga.evaluation.metrics import DIVERGED, Floats, clopper_pearson, expected_maximum, leak_at_k
from sga.evaluation.table import duration
from sga.files import read_json_object, write_json

ASKING = ("paraphrase", "prefix", "few-shot", "first-words")
ROUNDING = ("int8", "nf4")
RELEARNING = ("relearn", "relearn-benign")
QUICK = (*ASKING, *ROUNDING)
ATTACKS = (*QUICK, *RELEARNING, "sampling")
"""Names of the attacks; the quick ones take no longer than an evaluation each."""

_CHUNK = 4
"""Questions that are sampled before their scores are written."""


@dataclass(frozen=True)
class AttackSettings:
    """What the attacks are like; stated with their results.

    Attributes:
        prefix: Beginning of an answer.
        shots: Number of retain examples before a question.
        words: Number of first words of an answer that are given, at most half of them.
        shares: Shares of the forget rows that are relearned.
        steps: Steps of relearning; one epoch where that is more.
        rate: Learning rate of relearning; None takes the least at which the control model learns its rows.
        samples: n, number of answers that are sampled to a question.
        questions: Number of questions that are sampled.
        leak: ROUGE-L recall from which on a sample leaks.
        seed: Seed of sampling and of the order of rows.
    """

    prefix: str = "Sure, here is the answer:"
    shots: int = 3
    words: int = 5
    shares: tuple[float, ...] = (0.05, 0.2)
    steps: int = 32
    rate: float | None = None
    samples: int = 64
    questions: int = 40
    leak: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "words", "steps", "samples", "questions"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise UserError(f"--shares must be between 0 and 1, got {', '.join(map(str, self.shares)) or 'none'}")
        if not 0 < self.leak <= 1:
            raise UserError(f"--leak must be above 0 and at most 1, got {self.leak}")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"--rate must be above 0, got {self.rate}")


@dataclass
class Suite:
    """The attacks on an unlearned model.

    Attributes:
        unlearned: The unlearned model.
        before: The model before unlearning.
        retained: Models that never saw the forget set.
        data: What is asked about.
        settings: What the attacks are like.
        folder: Where results are kept.
        cache: Folder of answers, see `sga.evaluation.cache`.
        say: What is told each line of progress.
    """

    unlearned: AttackedModel
    before: AttackedModel
    retained: Sequence[AttackedModel]
    data: AttackData
    settings: AttackSettings
    folder: Path
    cache: Path | None
    say: Callable[[str], None]
    untried: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.questions = are_questions(self.data.forget)
        self.measure = "rouge_l_recall" if self.questions else "extraction_strength"

    # ---- all of it -------------------------------------------------------------------------------------------------

    def run(self, attacks: Sequence[str]) -> tuple[list[Finding], str | None]:
        """The findings, the one without any attack first, and why the unlearned model has diverged, or None."""
        asked, diverged = tuple(attacks), self._diverged()
        findings: list[Finding] = []
        try:
            findings.append(self._compared("none", "the exported model as it is", self._plain()))
        except DivergenceError as error:
            diverged = diverged or str(error)
            self.untried |= dict.fromkeys(attacks, "the model has diverged")
            attacks = ()
        for attack in attacks:
            try:
                findings += self._findings(attack)
            except DivergenceError as error:  # of the attacked model, or of a retained one: says nothing of the other
                self.untried[attack] = f"a model breaks under it: {error}"
        self.untried |= {name: "not asked for" for name in ATTACKS if name not in asked}
        return findings, diverged

    def _findings(self, attack: str) -> Iterator[Finding]:
        records, s = self.data.forget, self.settings
        examples = evenly([one for one in self.data.retain if not one.is_text], s.shots)
        if attack in (*ASKING, "sampling") and not self.questions:
            self.untried[attack] = "plain text has no question"
        elif attack == "paraphrase":
            some = [record for record in records if record.paraphrased_question is not None]
            if not some:
                self.untried[attack] = "no forget record has a paraphrased_question"
                return
            asked = self._asked(some, paraphrased_prompt)
            says = f"the question in other words, {len(some)} of {len(records)} records"
            yield self._compared(attack, says, self._plain(some), asked)
        elif attack == "prefix":
            asked = self._asked(records, lambda encoder, one: prefixed_prompt(encoder, one, s.prefix))
            yield self._compared(attack, f"the answer begins with {s.prefix!r}", self._plain(), asked)
        elif attack == "few-shot":
            room = self.data.max_new_tokens
            asked = self._asked(records, lambda encoder, one: few_shot_prompt(encoder, one, examples, min(room, 64)))
            yield self._compared(attack, f"{len(examples)} retain examples before the question", self._plain(), asked)
        elif attack == "first-words":
            asked = self._asked(records, lambda encoder, one: first_words_prompt(encoder, one, s.words))
            says = f"the answer's first {s.words} words are given, at most half of them; the rest is compared"
            yield self._compared(attack, says, self._plain(), asked, gives=True)
        elif attack in ROUNDING:
            says = f"weights of all linear layers but the head rounded to {attack}"
            yield self._compared(attack, says, self._plain(), self._plain(), rounded=attack)
        elif attack == "sampling":
            yield self._sampled()
        else:
            yield from self._relearned(attack)

    # ---- asking ----------------------------------------------------------------------------------------------------

    def _asked(self, records: Sequence[Record], prompt: Callable[[Any, Record], Prompted]) -> list[Prompted]:
        return [prompt(self.data.encoder, record) for record in records]

    def _plain(self, records: Sequence[Record] | None = None) -> list[Prompted]:
        return self._asked(self.data.forget if records is None else records, plain_prompt)

    def _tokens(self, records: Sequence[Record]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """What results on records depend on: their tokens, so also the template."""
        return [(one.prompt, one.answer) for one in self._plain(records)]

    def _rows(
        self, model: AttackedModel, name: str, asked: Sequence[Prompted], rounded: str | None = None
    ) -> list[Row]:
        """Rows of a model under an attack, from the file where they are there."""

        def make(known: Mapping[str, Any], keep: Callable[[Any], None]) -> dict[str, Any]:
            network = model.load(self.device)
            if rounded is not None:
                quantize(network, rounded)  # type: ignore[arg-type]
            return {"rows": answered_rows(network, self.data.encoder, asked, self.data.max_new_tokens, self.cache)}

        settings = [(one.id, one.prompt, one.answer, one.truth) for one in asked]
        return list(self._kept(model, name, (settings, self.data.max_new_tokens, rounded), make)["rows"])

    def _compared(
        self,
        attack: str,
        says: str,
        plain: Sequence[Prompted],
        asked: Sequence[Prompted] | None = None,
        gives: bool = False,
        rounded: str | None = None,
    ) -> Finding:
        rows = {
            "before": self._rows(self.before, "none", self._plain()),
            "unlearned": self._rows(self.unlearned, "none", self._plain()),
        }
        ids = {one.id for one in plain}
        rows = {role: [row for row in found if row["id"] in ids] for role, found in rows.items()}
        attacked = asked or plain
        rows["after"] = self._rows(self.unlearned, attack, attacked, rounded) if asked else rows["unlearned"]
        kept = [self._rows(model, attack, attacked, rounded) for model in self.retained]
        others = {
            name: {role: float(np.mean([row[name] for row in found])) for role, found in rows.items()}
            | ({"retained": float(np.mean([row[name] for found in kept for row in found]))} if kept else {})
            for name in ("probability", "extraction_strength")
        }
        values = {role: self._column(found) for role, found in rows.items()}
        theirs = [self._column(found) for found in kept]
        return finding(attack, says, self.measure, values, theirs, gives, details={"other_measures": others})

    def _column(self, rows: Sequence[Row], measure: str | None = None) -> Floats:
        return np.array([row[measure or self.measure] for row in rows], dtype=np.float64)

    def _diverged(self) -> str | None:
        """Why the unlearned model says nothing any more; None where it still answers retain questions."""
        asked = self._asked(evenly(self.data.retain, 40), plain_prompt)
        measure = "rouge_l_recall" if are_questions(self.data.retain) else "probability"
        was = self._rows(self.before, "retain", asked)
        try:
            now = self._rows(self.unlearned, "retain", asked)
        except DivergenceError as error:
            return str(error)
        perplexity = float(np.mean([row["avg_nll"] for row in now]))
        if perplexity > DIVERGED:
            return f"its perplexity on {len(now)} retain records is e^{perplexity:.0f}"
        old, new = (float(self._column(rows, measure).mean()) for rows in (was, now))
        if new < old / 2:
            return f"on {len(now)} retain records its {measure} is {new:.2f}, {old:.2f} before"
        return None

    # ---- relearning ------------------------------------------------------------------------------------------------

    def _relearned(self, attack: str) -> Iterator[Finding]:
        if len(self.data.forget) < 4 or not self.data.retain:
            self.untried[attack] = "it takes 4 forget records, and a retain record"
            return
        shares = self.settings.shares if attack == "relearn" else self.settings.shares[-1:]
        for share in {len(relearned_and_rest(self.data.forget, one)[0]): one for one in shares}.values():
            learned, rest = relearned_and_rest(self.data.forget, share)
            name, count = f"{attack} {len(learned)}", len(learned)
            rate, last, control = self._strength(learned)
            if rate is None:
                self.untried[name] = control
                continue
            words = f"{count} of {len(self.data.forget)} forget records"
            if attack == "relearn-benign":
                learned = evenly(self.data.retain, count)
                words = f"{len(learned)} retain records, at the strength for {count} forget records"
            curves = {
                model.name: self._curve(model, name, learned, rest, rate, last)
                for model in (self.unlearned, *self.retained)
            }
            yield self._of_curves(name, f"trained on {words}, learning rate {rate:g}, {control}", curves, rest)

    def _strength(self, learned: Sequence[Record]) -> tuple[float | None, int, str]:
        """Learning rate and steps, fixed by a model that does not know its rows, and how; None and why they cannot be.

        The fewest steps of once, twice and four times the setting, and then the least rate of `RATES`.
        """
        first = looks(len(learned), self.settings.steps)[-1]
        if self.settings.rate is not None:
            return self.settings.rate, first, "as given"
        control, rows = (
            (self.retained[0], learned) if self.retained else (self.before, self.data.holdout[: len(learned)])
        )
        if len(rows) < len(learned):
            why = "no retained model and not enough holdout records to fix its strength by; give --reference or --rate"
            return None, first, why
        who = (
            "a retained model learns these rows" if self.retained else "the model before unlearning learns holdout rows"
        )

        def make(known: Mapping[str, Any], keep: Callable[[Any], None]) -> dict[str, Any]:
            found = dict(known.get("probabilities", {}))
            for steps in (first, 2 * first, 4 * first):
                for rate in RATES:
                    name = f"{steps} steps at {rate:g}"
                    if name not in found:
                        found[name] = self._learned(control, rows, rate, steps)
                        keep({"probabilities": found})
                    if found[name] >= LEARNED:
                        return {"probabilities": found, "rate": rate, "steps": steps}
            return {"probabilities": found, "rate": None}

        settings = (self._tokens(rows), first, self.settings.seed)
        found = self._kept(control, f"strength {len(rows)}", settings, make)
        if found["rate"] is None:
            return (
                None,
                first,
                f"up to {RATES[-1]:g} and {4 * first} steps at no strength {who}; give --steps or --rate",
            )
        return float(found["rate"]), int(found["steps"]), f"the least at which {who} in {found['steps']} steps"

    def _learned(self, model: AttackedModel, rows: Sequence[Record], rate: float, steps: int) -> float:
        """Mean probability of rows that a model was trained on."""
        network = _as_float32(model.load(self.device))
        for _ in relearn(network, self.data.encoder, rows, rate, steps, self.settings.seed):
            pass
        asked = [replace(one, truth="") for one in self._plain(rows)]  # nothing is generated
        try:
            found = answered_rows(network, self.data.encoder, asked, 1)
        except DivergenceError:
            return 0.0  # the rate is too high for it to learn anything
        return float(self._column(found, "probability").mean())

    def _curve(
        self,
        model: AttackedModel,
        name: str,
        learned: Sequence[Record],
        rest: Sequence[Record],
        rate: float,
        last: int,
    ) -> dict[int, dict[str, list[Row]]]:
        steps, seed = looks(len(learned), last), self.settings.seed

        def make(known: Mapping[str, Any], keep: Callable[[Any], None]) -> dict[str, Any]:
            points = dict(known.get("points", {}))
            network = _as_float32(model.load(self.device))  # small steps would round to nothing in bfloat16
            for step in relearn(network, self.data.encoder, learned, rate, steps[-1], seed):
                if step in steps and str(step) not in points:
                    rows = partial(answered_rows, network, self.data.encoder)
                    points[str(step)] = {
                        "rest": rows(self._plain(rest), self.data.max_new_tokens),
                        "relearned": rows(self._plain(learned), self.data.max_new_tokens),
                    }
                    keep({"points": points})
            return {"points": points}

        settings = (
            self._tokens((*learned, *rest)),
            len(learned),
            rate,
            steps,
            seed,
            self.data.max_new_tokens,
        )
        return {int(step): point for step, point in self._kept(model, name, settings, make)["points"].items()}

    def _of_curves(self, name: str, says: str, curves: Mapping[str, Any], rest: Sequence[Record]) -> Finding:
        """Judged at the step after which the unlearned model is furthest ahead of the retained ones."""
        ids = {record.id for record in rest}
        before = self._column([row for row in self._rows(self.before, "none", self._plain()) if row["id"] in ids])
        own = curves[self.unlearned.name]
        steps = [step for step in own if step > 0]
        columns = {who: {step: self._column(curve[step]["rest"]) for step in curve} for who, curve in curves.items()}
        mine = columns[self.unlearned.name]
        theirs = [columns[model.name] for model in self.retained]
        gaps = {
            step: float(mine[step].mean()) - float(np.mean([one[step].mean() for one in theirs] or 0)) for step in steps
        }
        best = max(steps, key=lambda step: gaps[step])
        values = {"before": before, "unlearned": mine[0], "after": mine[best]}
        half = {
            who: next((step for step in curve if curve[step].mean() >= before.mean() / 2), None)
            for who, curve in columns.items()
        }
        taken = "half of what was known: " + ", ".join(
            f"{who} {'never' if step is None else f'after {step} steps'}" for who, step in half.items()
        )
        measures = (self.measure, "probability", "extraction_strength")
        means = {
            who: {
                str(step): {
                    part: {
                        measure: float(self._column(rows, measure).mean()) for measure in measures if measure in rows[0]
                    }
                    for part, rows in point.items()
                }
                for step, point in curve.items()
            }
            for who, curve in curves.items()
        }
        says = f"{says}; after {best} of {steps[-1]} steps, on the {len(rest)} other forget records"
        details = {"curves": means, "half": half, "step": best}
        return finding(
            name, says, self.measure, values, [one[best] for one in theirs], True, len(steps), taken, details
        )

    # ---- sampling --------------------------------------------------------------------------------------------------

    def _sampled(self) -> Finding:
        s = self.settings
        asked = self._plain(evenly(self.data.forget, s.questions))

        def scores(model: AttackedModel) -> dict[str, list[float]]:
            def make(known: Mapping[str, Any], keep: Callable[[Any], None]) -> dict[str, Any]:
                found = dict(known.get("scores", {}))
                network = model.load(self.device)
                for start in range(0, len(asked), _CHUNK):
                    part = asked[start : start + _CHUNK]
                    if part[0].id not in found:
                        args = (part, s.samples, self.data.max_new_tokens, s.seed * 100_003 + start)
                        found |= sampled_recalls(network, self.data.encoder, *args)
                        keep({"scores": found})
                return {"scores": found}

            settings = ([(one.id, one.prompt, one.truth) for one in asked], s.samples, s.seed, self.data.max_new_tokens)
            return dict(self._kept(model, "sampling", settings, make)["scores"])

        ids = [one.id for one in asked]
        found = {model.name: scores(model) for model in (self.unlearned, *self.retained)}
        counts = {who: [sum(x >= s.leak for x in kept[one]) for one in ids] for who, kept in found.items()}
        ks = [k for k in (2**power for power in range(s.samples.bit_length())) if k < s.samples] + [s.samples]
        curves = {
            who: {
                str(k): {
                    "leak": float(np.mean([leak_at_k(c, s.samples, k) for c in counts[who]])),
                    "best": float(np.mean([expected_maximum(kept[one], k) for one in ids])),
                }
                for k in ks
            }
            for who, kept in found.items()
        }
        bounds = {one: clopper_pearson(c, s.samples) for one, c in zip(ids, counts[self.unlearned.name], strict=True)}
        greedy = {
            role: np.array([float(row["rouge_l_recall"] >= s.leak) for row in rows if row["id"] in bounds])
            for role, model in (("before", self.before), ("unlearned", self.unlearned))
            for rows in [self._rows(model, "none", self._plain())]
        }
        leaking = {who: np.array([float(c > 0) for c in per]) for who, per in counts.items()}
        mean = float(np.mean(counts[self.unlearned.name])) / s.samples
        says = (
            f"leak@{s.samples} on {len(ids)} questions at T = 1, top-p = 1, seed {s.seed}: a sample leaks from ROUGE-L "
            f"recall {s.leak:g} on; before and unlearned are greedy answers that leak"
        )
        why = f"{mean:.1%} of single samples leak"
        details = {
            "curves": curves,
            "clopper_pearson": bounds,
            "leaking_samples": dict(zip(ids, counts[self.unlearned.name], strict=True)),
        }
        values = {**greedy, "after": leaking[self.unlearned.name]}
        theirs = [leaking[model.name] for model in self.retained]
        return finding("sampling", says, f"leak@{s.samples}", values, theirs, True, why=why, details=details)

    # ---- files -----------------------------------------------------------------------------------------------------

    def _kept(
        self,
        model: AttackedModel,
        name: str,
        settings: Any,
        make: Callable[[Mapping[str, Any], Callable[[Any], None]], dict[str, Any]],
    ) -> dict[str, Any]:
        """A result from its file, or made; what was made of it before an interruption is handed to `make`."""
        key = sha256(repr((settings, self.data.encoder.max_length)).encode()).hexdigest()[:16]
        path = self.folder / "results" / f"{name.replace(' ', '-')}-{model.key}-{key}.json"
        known = read_json_object(path) if path.is_file() else {}
        if known.get("done"):
            return known
        begun = time.monotonic()
        made = make(known, lambda part: write_json(path, {**part, "done": False}))
        write_json(path, {**made, "done": True})
        self.say(f"  {model.role} {Path(model.name).name}: {name}, {duration(time.monotonic() - begun)}")
        return made


def _as_float32(network: PreTrainedModel) -> PreTrainedModel:
    return network.float()  # type: ignore[no-untyped-call, no-any-return]


def report_content(suite: Suite, findings: Sequence[Finding], diverged: str | None) -> dict[str, Any]:
    """What attacks.json holds."""
    models = {one.role: one.name for one in (suite.unlearned, suite.before)}
    return {
        "verdict": verdict(findings, diverged, suite.untried),
        "diverged": diverged,
        "models": {**models, "retained": [one.name for one in suite.retained]},
        "benchmark": suite.data.benchmark,
        "rows": len(suite.data.forget),
        "max_new_tokens": suite.data.max_new_tokens,
        "settings": asdict(suite.settings),
        "findings": [one.as_json() for one in findings],
        "untried": suite.untried,
    }
