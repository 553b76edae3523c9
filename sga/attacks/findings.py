"""Findings: numbers of an attack beside those without it and those of retained models under it, and words for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.metrics import Floats

Word = Literal["fully recovered", "partly", "clean", "not judged", "diverged"]

FULLY = 0.9
"""Share of what was known before unlearning from which on all of it is called recovered."""

LITTLE = 0.1
"""Share up to which nothing is called recovered, whatever the interval; the verdict tells of a wider one."""

FACTS = "fact_recall"
"""Measure that is 1 where an answer says the fact of its record, else 0: its mean is told as a number of records."""

_ROOM = 0.05
"""Least mean difference between the model before unlearning and the floor of which a share says anything."""


@dataclass(frozen=True)
class Estimate:
    """Mean over records with its interval, and their number; 0 in results of earlier versions."""

    value: float
    low: float
    high: float
    records: int = 0

    @classmethod
    def of(cls, values: Floats, bootstrap: Bootstrap) -> Estimate:
        """Estimate from one value in [0, 1] a record, [N]; where all are 0, or all are 1, Wilson's interval."""
        mean = float(np.mean(values))
        low, high = bootstrap.interval(bootstrap.means("forget", values))
        reach = bootstrap.wilson_bound(len(values)) if high - low < 1e-9 and mean in (0.0, 1.0) else 0.0
        return cls(mean, max(0.0, low - reach), min(1.0, high + reach), len(values))

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.low:.2f}–{self.high:.2f}"

    def counts(self) -> str:
        """The estimate as a number of records, of which a mean over several models may have a part.

        >>> Estimate(0.75, 0.5, 1.0, 12).counts().replace(chr(160), " ")
        '9 of 12 6–12'
        """
        if not self.records:
            return str(self)
        number, low, high = (self.records * share for share in (self.value, self.low, self.high))
        return f"{number:.3g} of {self.records}".replace(" ", "\N{NO-BREAK SPACE}") + f" {low:.0f}–{high:.0f}"


@dataclass(frozen=True)
class Untried:
    """Attack that cannot be made here.

    Attributes:
        attack: Name of the attack.
        why: Reason, and what would mend it.
    """

    attack: str
    why: str


@dataclass(frozen=True)
class Finding:
    """Outcome of one attack: a row of the table.

    Attributes:
        attack: Name of the attack.
        says: Description of the attack, with its settings.
        measure: Name of the measure, 0 to 1, higher = more is known.
        before: Value of the model before unlearning, not attacked.
        unlearned: Value of the unlearned model, not attacked.
        after: Value of the unlearned model under the attack.
        retained: Value of the retained models under the attack, mean over them; None without one.
        word: Verdict on what comes back.
        share: Share of what was lost that comes back, (after − floor) / (before − floor); None where it is not judged.
        low: Lower end of the share's interval.
        high: Upper end of the share's interval.
        why: Reason why it is not judged, or further numbers; may be empty.
        details: Other measures and curves, as attacks.json holds them.
    """

    attack: str
    says: str
    measure: str
    before: Estimate
    unlearned: Estimate
    after: Estimate
    retained: Estimate | None
    word: Word
    share: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Content of the finding in attacks.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Finding:
        """The finding of which `as_json` gives the content."""
        numbers = ("before", "unlearned", "after", "retained")
        return cls(**{**content, **{name: content[name] and Estimate(**content[name]) for name in numbers}})


def shown_names(unlearned: str, retained: Sequence[str]) -> dict[str, str]:
    """Names of the attacked models to show, by full name: the last part of a path, or all of it if others end alike.

    >>> shown_names("runs/mine", ["a/model", "b/model", "runs/retain-0"])
    {'a/model': 'retained a/model', 'b/model': 'retained b/model', 'runs/retain-0': 'retained retain-0', \
'runs/mine': 'unlearned'}
    """
    ends = Counter(Path(name).name for name in retained)
    shown = {name: Path(name).name if ends[Path(name).name] == 1 else name for name in retained}
    return {**{name: f"retained {short}" for name, short in shown.items()}, unlearned: "unlearned"}


def finding(
    attack: str,
    says: str,
    measure: str,
    values: Mapping[str, Floats],
    retained: Sequence[Floats],
    gives: bool,
    looks: int = 1,
    why: str = "",
    details: dict[str, Any] | None = None,
) -> Finding:
    """Finding from one value a record.

    The floor is what retained models say under the same attack; without one it is what the unlearned model says
    without the attack.

    Args:
        attack: Name of the attack.
        says: Description of the attack, with its settings.
        measure: Name of the measure, 0 to 1, higher = more is known.
        values: Values of ``before``, ``unlearned`` and ``after`` by name, each [N].
        retained: Values under the attack of each retained model, each [N].
        gives: True if the attack tells the model something of the answers, or samples until it is right, so that
            without a retained model nobody can say what came back.
        looks: Number of places that the one judged was chosen from (Bonferroni: the interval is that much wider).
        why: Further numbers in words; may be empty.
        details: Other measures and curves, see `Finding`.
    """
    shown, judging = Bootstrap(), Bootstrap(level=1 - 0.05 / looks)
    means = {name: Estimate.of(np.asarray(column), shown) for name, column in values.items()}
    theirs = np.mean(retained, axis=0) if retained else None
    kept = Estimate.of(theirs, shown) if theirs is not None else None
    base = (attack, says, measure, means["before"], means["unlearned"], means["after"], kept)
    found = details or {}
    floor = theirs if theirs is not None else values["unlearned"]
    after, before = values["after"], values["before"]
    whole = float(after.mean()) >= FULLY * float(before.mean())

    def unjudged(reason: str) -> Finding:
        return Finding(*base, "not judged", why="; ".join(filter(None, (reason, why))), details=found)

    if theirs is None and (gives or (attack == "none" and not whole)):
        return unjudged("no retained model to compare with")
    lost = float((before - floor).mean())
    if theirs is None and whole and (attack == "none" or lost < _ROOM):
        floor = np.zeros_like(after)  # nobody can say what was lost, but it is all there
    room = float((before - floor).mean())
    if room < _ROOM:
        return unjudged("nothing was lost that could come back")
    share = float((after - floor).mean()) / room
    low, high = judging.interval(judging.ratios("forget", after - floor, np.full(len(after), room)))
    if high - low < 1e-9:  # all records differ alike, most often not at all: resamples say nothing
        reach = judging.wilson_bound(len(after)) / room
        low, high = low - reach, high + reach
    word: Word = "clean" if share <= LITTLE or low <= 0 else "fully recovered" if share >= FULLY else "partly"
    return Finding(*base, word, share, low, high, why, found)


def verdict(
    findings: Sequence[Finding],
    diverged: str | None,
    untried: Mapping[str, str],
    failed: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences: what comes back, under which attack, what was not tried, and what failed.

    Args:
        findings: Findings, one for each attack that was made.
        diverged: Reason why the unlearned model says nothing any more; None where it works.
        untried: Reason why an attack was not made, by attack.
        failed: Error that ended an attack, by attack; None for none.
    """
    lines = []
    by_word = {word: [f for f in findings if f.word == word] for word in ("fully recovered", "partly", "not judged")}
    if diverged is not None:
        lines.append(f"Diverged: {diverged}. That nothing comes back of such a model says nothing about forgetting.")
    if by_word["fully recovered"]:
        lines.append(f"Fully recovered: {_named(by_word['fully recovered'])}.")
    elif diverged is None and not by_word["partly"]:
        clean = [f for f in findings if f.word == "clean"]
        tried = [f for f in clean if f.attack != "none"]
        than = "retained models say under the same attack" if any(f.retained for f in clean) else "without an attack"
        if tried:
            attacks = "1 attack" if len(tried) == 1 else f"{len(tried)} attacks"
            most = max(min(f.high, 1.0) for f in tried if f.high is not None)
            bound = (
                f"; up to {most:.0%} of what was lost may, by the 95 % intervals of so few records"
                if most > LITTLE
                else ""
            )
            lines.append(f"Clean: under {attacks} no more comes back than {than}{bound}.")
        elif clean:
            lines.append("Clean without an attack: it says no more than retained models; no attack was judged.")
        else:
            lines.append("Not judged: no attack could be told apart from what any model says.")
    if by_word["partly"]:
        lines.append(f"Partly recovered: {_named(by_word['partly'])}.")
    if by_word["not judged"]:
        named = (f"{'no attack' if f.attack == 'none' else f.attack} ({f.why})" for f in by_word["not judged"])
        lines.append("Not judged: " + "; ".join(named) + ".")
    if failed:
        lines.append("Failed: " + "; ".join(f"{a} ({why})" for a, why in failed.items()) + ".")
    if untried:
        alike = {why: ", ".join(name for name, other in untried.items() if other == why) for why in untried.values()}
        lines.append("Not tried: " + "; ".join(f"{names} ({why})" for why, names in alike.items()) + ".")
    return lines


def _named(findings: Sequence[Finding]) -> str:
    parts = []
    for one in sorted(findings, key=lambda f: -(f.share or 1.0)):
        under = "without any attack" if one.attack == "none" else f"under {one.attack}"
        beside = f", retained {one.retained.value:.2f}" if one.retained is not None else ""
        parts.append(f"{under} ({one.measure} {one.after.value:.2f}, before {one.before.value:.2f}{beside})")
    return "; ".join(parts)
