"""All attacks on one unlearned model, one after the other; one that fails does not end the others."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sga.attacks.asking import asking_outcome, compared, divergence
from sga.attacks.findings import Finding, Untried, verdict
from sga.attacks.measurements import Measurements
from sga.attacks.recovery import relearning_outcomes
from sga.attacks.sampling import sampling_outcomes
from sga.attacks.settings import ATTACKS, RELEARNING
from sga.errors import DivergenceError
from sga.files import write_text


@dataclass
class Outcomes:
    """Outcomes of all attacks.

    Attributes:
        findings: One finding for each attack, the one without any attack first.
        untried: Reason why an attack was not made, by attack.
        failed: Error that ended an attack, by attack.
        diverged: Reason why the unlearned model says nothing any more; None where it works.
    """

    findings: list[Finding] = field(default_factory=list)
    untried: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    diverged: str | None = None


def run_attacks(m: Measurements, attacks: Sequence[str]) -> Outcomes:
    """Makes the attacks in the order of their names.

    Raises:
        UserError: a model cannot be loaded.
    """
    found = Outcomes(diverged=divergence(m))
    try:
        found.findings.append(compared(m, "none", "the exported model as it is", m.plain()))
    except DivergenceError as error:
        found.diverged = found.diverged or str(error)
        found.untried |= dict.fromkeys(attacks, "the model has diverged")
    tried = [] if not found.findings else list(attacks)
    for number, attack in enumerate(tried, start=1):
        m.progress.attack(number, len(tried))
        trace = m.folder / f"failed-{attack}.txt"
        trace.unlink(missing_ok=True)
        try:
            for outcome in _outcomes(m, attack):
                if isinstance(outcome, Untried):
                    found.untried[outcome.attack] = outcome.why
                else:
                    found.findings.append(outcome)
        except DivergenceError as error:  # of the attacked model, or of a retained one: says nothing of the other
            found.untried[attack] = f"a model breaks under it: {error}"
        except Exception as error:  # whatever it is, the other attacks are made, and what they found is written
            found.failed[attack] = " ".join(f"{type(error).__name__}: {error}".split())
            write_text(trace, traceback.format_exc())
            m.progress.say(f"  {attack} failed: {found.failed[attack]}")
    if found.diverged is not None:  # that nothing comes back of such a model says nothing
        found.findings = [
            replace(one, word="diverged", share=None, low=None, high=None) if one.word == "clean" else one
            for one in found.findings
        ]
    found.untried |= {name: "not asked for" for name in ATTACKS if name not in attacks}
    return found


def _outcomes(m: Measurements, attack: str) -> Iterator[Finding | Untried]:
    if attack in RELEARNING:
        return relearning_outcomes(m, attack)
    return sampling_outcomes(m) if attack == "sampling" else iter([asking_outcome(m, attack)])


def report_content(m: Measurements, found: Outcomes) -> dict[str, Any]:
    """Content of attacks.json."""
    models = {one.role: one.name for one in (m.unlearned, m.before)}
    return {
        "verdict": verdict(found.findings, found.diverged, found.untried, found.failed),
        "diverged": found.diverged,
        "models": {**models, "retained": [one.name for one in m.retained]},
        "benchmark": m.data.benchmark,
        "rows": len(m.data.forget),
        "max_new_tokens": m.data.max_new_tokens,
        "settings": asdict(m.settings),
        "findings": [one.as_json() for one in found.findings],
        "untried": found.untried,
        "failed": found.failed,
    }
