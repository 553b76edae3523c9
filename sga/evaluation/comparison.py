"""Comparison of two evaluations of the same rows: is one better than the other, or is it noise?"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sga.data.records import EVALUATION_SETS, FORGET_PARAPHRASED, Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.errors import UserError
from sga.evaluation.aggregation import (
    ANSWERED_SETS,
    CLASSIFIER_FLUENCY,
    FLUENCY_PARTS,
    KEPT_SETS,
    MEMBERSHIP_SCORES,
    MEMORIZATION_SCORES,
    UTILITY_SETS,
    UTILITY_UNSEEN,
    probabilities,
    truth_ratio_scores,
)
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.log import Log
from sga.evaluation.metrics import Floats
from sga.evaluation.paired import PairedDifference, PairedTests, holm
from sga.evaluation.reference import TOFU_ROWS, UNSTATED
from sga.evaluation.table import fitted_table
from sga.files import is_number
from sga.groups.group import record_hash

SIGNIFICANT = 0.05
"""Holm-adjusted p-value below which two evaluations count as different."""


_LEFT_OUT = (
    "not compared: forget quality, KS D and PrivLeak, which need the retain model's rows as well "
    "(sga score RUN --reference RETAIN gives them for each side); perplexity and frontier areas (sga report)"
)

_UNCLEAR = "unclear"
_LEGEND = "unclear: A and B cannot be told apart on these rows (Holm p of 0.05 or more)"

_PARTS = ("probability", "rouge_l_recall", "truth_ratio")

_NO_METRICS = {
    "step",
    "tokens",
    "probability",
    "log_truth_ratio",
    "paraphrased_nll",
    "gradient_norm",
    "generation_tokens",
    *MEMBERSHIP_SCORES,
}
"""Numbers of a row that are no metric of their own; most of them enter one that is computed from the rows."""


_REMEMBERED = ("avg_nll", "probability", "truth_ratio", "fact_recall", "bleu", *MEMORIZATION_SCORES)
"""Numbers of how well a row is known, besides those of ROUGE."""

Key = tuple[str, str]
"""Evaluation set and record id."""


Rows = Mapping[Key, Mapping[str, Any]]

Columns = dict[str, dict[str, Floats]]
"""[N] numbers by field name, by evaluation set."""


@dataclass(frozen=True)
class Compared:
    """One line of the comparison.

    Attributes:
        name: Name of the metric, without the benchmark's.
        found: Values of both sides, their difference, its interval and p-value.
        direction: Direction in words, ``"higher is better"``, ``"lower = more forgotten"``, …; None where neither can
            be said.
        p_holm: P-value, adjusted by Holm for all lines of the comparison.
    """

    name: str
    found: PairedDifference
    direction: str | None
    p_holm: float

    @property
    def short_verdict(self) -> str:
        """The line in a word or two, for a table that has its p-value."""
        return _UNCLEAR if self.direction is not None and self.p_holm >= SIGNIFICANT else self.verdict

    @property
    def verdict(self) -> str:
        """The line in words."""
        if self.direction is None:
            return "no direction"
        if self.p_holm >= SIGNIFICANT:
            return f"cannot be told apart (p = {_p(self.p_holm)})"
        side = "B" if (self.found.difference > 0) == self.direction.startswith("higher") else "A"
        return f"{side} {'better' if self.direction.endswith('better') else 'forgot more'}"


@dataclass(frozen=True)
class Comparison:
    """All metrics that both sides have.

    Attributes:
        a: Log of the first side, A.
        b: Log of the second side, B.
        resamples: Number of bootstrap resamples and of swaps.
        seed: Seed of resamples and swaps.
        metrics: Lines of the table: model utility, the sets in their usual order, membership inference.
        notes: Sentences that a reader of the numbers should know.
    """

    a: Log
    b: Log
    resamples: int
    seed: int
    metrics: tuple[Compared, ...]
    notes: tuple[str, ...]

    def table(self, width: int = 80) -> str:
        """The comparison as text; the table is at most so many columns wide, by leaving out the plain p if need be."""
        head = ("", "metric", "rows", "A", "B", "B − A", "95 % interval", "p", "Holm p", "verdict")
        body: list[tuple[str, ...]] = []
        above = ""
        for line in self.metrics:
            part, _, name = line.name.rpartition("/")
            if part != above and part:
                body.append(("", part, *[""] * (len(head) - 2)))
            above = part
            body.append(
                (
                    _arrow(line.direction),
                    f"\N{NO-BREAK SPACE}{name}" if part else name,
                    str(line.found.rows),
                    _number(line.found.a),
                    _number(line.found.b),
                    _signed(line.found.difference),
                    _interval(line.found),
                    _p(line.found.p_value),
                    _p(line.p_holm),
                    line.short_verdict,
                )
            )
        lines = fitted_table([head, *body], width, texts=(0, 1, len(head) - 1), spare=head.index("p"))
        sides = [
            f"{name}  {side.source}" + ("" if side.step is None else f", step {side.step}")
            for name, side in (("A", self.a), ("B", self.b))
        ]
        notes = [
            line
            for note in (
                *self.notes,
                *([_LEGEND] if any(line.short_verdict == _UNCLEAR for line in self.metrics) else []),
            )
            for line in textwrap.wrap(f"note: {note}", min(width, 110), subsequent_indent="      ")
        ]
        return "\n".join([*sides, "", *lines, "", *notes])

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        sides = {
            name: {"source": side.source, "step": side.step, "evaluation": side.settings or None}
            for name, side in (("a", self.a), ("b", self.b))
        }
        metrics = {
            line.name: {
                "rows": line.found.rows,
                "a": line.found.a,
                "b": line.found.b,
                "difference": line.found.difference,
                "ci_low": line.found.low,
                "ci_high": line.found.high,
                "p": line.found.p_value,
                "p_holm": line.p_holm,
                "direction": line.direction,
                "verdict": line.verdict,
            }
            for line in self.metrics
        }
        return {**sides, "resamples": self.resamples, "seed": self.seed, "metrics": metrics, "notes": list(self.notes)}


def compare(a: Log, b: Log, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compares all metrics that both sides have, on the rows that both have.

    Rows of our runs come as they were written (`sga.runs.logs.read_log` with part ``"raw"``), because a comparison also
    looks at texts and at whatever other numbers there are.

    Raises:
        UserError: the sides are of different kinds or were evaluated with different settings, have no row in common,
            other texts under one id, or no metric in common.
    """
    tests = PairedTests(resamples, seed)
    notes = [f"{name}: {note}" for name, side in (("A", a), ("B", b)) for note in side.notes]
    if (a.source, a.step) == (b.source, b.step):
        notes.append("A and B are the same evaluation")
    notes += _check_settings(a, b)
    rows_a, rows_b, about_rows = _aligned(a, b)
    columns_a, columns_b, about_columns = _columns(rows_a, rows_b)
    found, about_metrics = _differences(tests, columns_a, columns_b)
    if not found:
        raise UserError(f"{a.source} and {b.source} have no metric in common; evaluate both with the same metrics")
    adjusted = holm([difference.p_value for difference in found.values()])
    metrics = tuple(
        Compared(name, difference, direction(name), p)
        for (name, difference), p in zip(found.items(), adjusted, strict=True)
    )
    notes += about_rows + about_columns + about_metrics + [_LEFT_OUT] + _on_reading(metrics)
    return Comparison(a, b, resamples, seed, metrics, tuple(notes))


def direction(metric: str) -> str | None:
    """Direction of a metric in words: better, or more forgotten; None where neither can be said.

    On the forget set more forgotten is better only up to what a model gives that never saw the set. Membership AUCs
    have no direction for that reason: both ends are signs of trouble. Neither has the nll of answers under the starting
    model: what repeats itself has a low one, word salad a high one.
    """
    if metric in ("model_utility", UTILITY_UNSEEN):
        return "higher is better"
    set_name, _, name = metric.rpartition("/")
    if name in (*FLUENCY_PARTS, CLASSIFIER_FLUENCY):  # of whatever set: who has forgotten still speaks
        return "higher is better" if name.endswith("fluency") else "lower is better"
    if name not in _REMEMBERED and not name.startswith("rouge"):
        return None
    if set_name in (*KEPT_SETS, "knowmem_retain"):
        return "lower is better" if name == "avg_nll" else "higher is better"
    if set_name in ("forget", FORGET_PARAPHRASED, "verbmem", "knowmem_forget", "forget_passages"):
        return f"{'higher' if name in ('avg_nll', 'truth_ratio') else 'lower'} = more forgotten"
    return None


# ---- two sides, row by row ------------------------------------------------------------------------------------------


def _check_settings(a: Log, b: Log) -> list[str]:
    """Refuses different settings; notes about those that cannot be compared."""
    if a.kind != b.kind:
        raise UserError(
            f"{a.source} is a log of kind {a.kind} and {b.source} one of kind {b.kind}, so nobody knows which of their "
            "rows are the same; compare two logs of one kind"
        )
    unknown = " and ".join(name for name, side in (("A", a), ("B", b)) if not side.settings)
    if unknown:
        return [f"unknown how {unknown} {'were' if 'and' in unknown else 'was'} evaluated: settings not compared"]
    own, other = {**UNSTATED, **a.settings}, {**UNSTATED, **b.settings}
    pairs = {name: (own.get(name), other.get(name)) for name in {**own, **other}}
    differences = [
        f"{name} is {one!r} in A and {other!r} in B"
        for name, (one, other) in pairs.items()
        if one is not None and other is not None and one != other
    ]
    if differences:
        raise UserError(
            f"{a.source} (A) and {b.source} (B) were evaluated with different settings: {'; '.join(differences)}; "
            "evaluate both in the same way"
        )
    single = [name for name, (one, other) in pairs.items() if (one is None) != (other is None)]
    return [f"only one side states {', '.join(single)}: not compared"] if single else []


def _aligned(a: Log, b: Log) -> tuple[Rows, Rows, list[str]]:
    """The rows that both sides have, in the order of A; notes about the others.

    Raises:
        UserError: no row in common, or other texts under the same id.
    """
    common = [key for key in a.rows if key in b.rows]
    if not common:
        raise UserError(
            f"{a.source} and {b.source} have no row in common (A has {_first(a.rows)}, B has {_first(b.rows)}); "
            "compare evaluations of the same data"
        )
    notes = []
    for set_name in dict.fromkeys(name for name, _ in [*a.rows, *b.rows]):
        own, other = ({record_id for name, record_id in side.rows if name == set_name} for side in (a, b))
        if not own or not other:
            notes.append(f"only {'A' if own else 'B'} has the set {set_name}")
            continue
        if a.kind != "sga" and len(own) != len(other) and min(len(own), len(other)) != TOFU_ROWS:
            raise UserError(
                f"{a.source} has {len(own)} rows of {set_name} and {b.source} has {len(other)}; rows of such logs are "
                f"known by position, so both need as many, or one of them TOFU's first {TOFU_ROWS}; compare logs of "
                "the same data"
            )
        left_out = " and ".join(
            f"{len(ids - others)} of {len(ids)} rows of {name} are not in {'B' if name == 'A' else 'A'}"
            for name, ids, others in (("A", own, other), ("B", other, own))
            if ids - others
        )
        if left_out:
            notes.append(f"{set_name}: {left_out}; compared are the {len(own & other)} that both have")
    hashes = {key: (_text_hash(a.rows[key]), _text_hash(b.rows[key])) for key in common}
    different = [key for key, (one, other) in hashes.items() if None not in (one, other) and one != other]
    if different:
        raise UserError(
            f"{a.source} and {b.source}: {len(different)} of {len(common)} rows have other texts under the same id, "
            f"{_first(different)} first; compare evaluations of the same data"
        )
    unknown = sum(None in pair for pair in hashes.values())
    if a.kind != "sga":
        notes.append("rows are matched by their position alone")
    elif unknown:
        notes.append(f"{unknown} of {len(common)} rows hold neither texts nor a hash of them: matched by id alone")
    return {key: a.rows[key] for key in common}, {key: b.rows[key] for key in common}, notes


def _text_hash(row: Mapping[str, Any]) -> str | None:
    """The hash of a row's question and answer, which the row has in their place where texts are not saved."""
    if isinstance(row.get("sha256"), str):
        return str(row["sha256"])
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        return record_hash(Record("", row["question"], row["answer"]))
    return None


def _first(keys: Rows | Sequence[Key]) -> str:
    set_name, record_id = next(iter(keys))
    return f"{record_id!r} of {set_name}"


# ---- from rows to metrics -------------------------------------------------------------------------------------------


def _columns(rows_a: Rows, rows_b: Rows) -> tuple[Columns, Columns, list[str]]:
    """The columns of numbers that both sides have on every row, and notes about those that only one has."""
    sides = [
        Evaluation("", rows={key: dict(row) for key, row in rows.items()}, bootstrap=None) for rows in (rows_a, rows_b)
    ]
    found: tuple[Columns, Columns] = ({}, {})
    notes = []
    names = list(dict.fromkeys(name for name, _ in rows_a))
    for set_name in sorted(names, key=lambda name: (*EVALUATION_SETS, name).index(name)):
        columns = [_set_columns(side, set_name) for side in sides]
        for side, own in zip(found, columns, strict=True):
            side[set_name] = {name: own[name] for name in columns[0] if name in columns[1]}
        for name, one, other in (("A", columns[0], columns[1]), ("B", columns[1], columns[0])):
            single = [field for field in one if field not in other]
            if single:
                notes.append(f"{set_name}: only {name} has {', '.join(single)} on every compared row")
    return *found, notes


def _set_columns(side: Evaluation, set_name: str) -> dict[str, Floats]:
    """[N] by name: what the metrics of a set are means of, and the membership scores."""
    rows = side.of_set(set_name)
    numbers = [name for name in rows[0] if all(is_number(row.get(name)) for row in rows)]
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in numbers}
    found: dict[str, Floats] = {}
    if "avg_nll" in columns:
        found["avg_nll"] = columns["avg_nll"]
        columns.setdefault("loss", columns["avg_nll"])  # the membership score of that name
    if set_name in ANSWERED_SETS:
        for part, values in (
            ("probability", probabilities(side, set_name)),
            ("truth_ratio", None if set_name == FORGET_PARAPHRASED else truth_ratio_scores(side, set_name)),
        ):
            if values is not None:
                found[part] = values
    found |= {name: values for name, values in columns.items() if name not in _NO_METRICS and name not in found}
    return found | {score: columns[score] for score in MEMBERSHIP_SCORES if score in columns}


def _differences(tests: PairedTests, a: Columns, b: Columns) -> tuple[dict[str, PairedDifference], list[str]]:
    """All differences by the metric's name, and why model utility is not there where it is not."""
    found: dict[str, PairedDifference] = {}
    notes = []
    parts = [(set_name, part) for set_name in UTILITY_SETS for part in _PARTS]
    missing = [f"{set_name}/{part}" for set_name, part in parts if part not in a.get(set_name, {})]
    if missing:
        notes.append(f"model utility is absent: both sides need its nine parts, and lack {', '.join(missing)}")
    else:
        found["model_utility"] = tests.harmonic_mean(
            [(set_name, a[set_name][part], b[set_name][part]) for set_name, part in parts]
        )
    unseen = [(RETAIN_UNSEEN if set_name == "retain" else set_name, part) for set_name, part in parts]
    if all(part in a.get(set_name, {}) for set_name, part in unseen):
        found[UTILITY_UNSEEN] = tests.harmonic_mean(
            [(set_name, a[set_name][part], b[set_name][part]) for set_name, part in unseen]
        )
    for set_name, columns in a.items():
        for name, values in columns.items():
            if name not in MEMBERSHIP_SCORES:
                found[f"{set_name}/{name}"] = tests.mean(set_name, values, b[set_name][name])
    members, others = (a.get("forget", {}), b.get("forget", {})), (a.get("holdout", {}), b.get("holdout", {}))
    for name in MEMBERSHIP_SCORES:
        if name in members[0] and name in others[0]:
            if name == "reference" and not (_same_reference(*members) and _same_reference(*others)):
                notes.append("mia/reference is left out: A and B were evaluated against different reference models")
                continue
            found[f"mia/{name}"] = tests.auc(
                "forget", members[0][name], members[1][name], "holdout", others[0][name], others[1][name]
            )
    return found, notes


def _same_reference(a: Mapping[str, Floats], b: Mapping[str, Floats]) -> bool:
    """True if the reference model's losses, avg_nll minus the score, are the same on both sides."""
    if "avg_nll" not in a:
        return True
    return np.allclose(a["avg_nll"] - a["reference"], b["avg_nll"] - b["reference"], rtol=0, atol=1e-6)


# ---- words ----------------------------------------------------------------------------------------------------------


def _on_reading(metrics: Sequence[Compared]) -> list[str]:
    """Notes on what the numbers cannot tell."""
    notes = []
    tests = len(metrics)
    few_rows = [line.name for line in metrics if 2 * 0.5**line.found.rows * tests >= SIGNIFICANT]
    few_swaps = [line for line in metrics if line.found.smallest_p * tests >= SIGNIFICANT and line.name not in few_rows]
    if few_rows:
        some = ", ".join(few_rows[:3]) + (", …" if len(few_rows) > 3 else "")
        notes.append(f"too few rows for Holm p < {SIGNIFICANT}, whatever they hold, in {len(few_rows)} metrics: {some}")
    if few_swaps:
        notes.append(
            f"too few resamples for Holm p < {SIGNIFICANT} with {tests} tests: "
            f"use --resamples {math.ceil(tests / SIGNIFICANT)} or more"
        )
    directions = [line.direction or "" for line in metrics]
    if any(one.endswith("better") for one in directions):
        notes.append("↑ higher is better, ↓ lower is better")
    if any(one.endswith("forgotten") for one in directions):
        notes.append(
            "on the forget set the arrow points to more forgotten, which is better only as far as a model goes that "
            "never saw the set"
        )
    notes.append(
        f"p: by swapping A and B within rows; Holm p: adjusted for the {tests} tests of this table; intervals are not "
        "adjusted. Rows count as independent, and none of this says what another seed of the same training would give"
    )
    return notes


def _arrow(direction: str | None) -> str:
    return " " if direction is None else "↑" if direction.startswith("higher") else "↓"


def _p(value: float) -> str:
    return f"{value:.2g}"


def _number(value: float, sign: str = "") -> str:
    if value == 0:
        return "0"
    return f"{value:{sign}.4f}" if 0.001 <= abs(value) < 1000 else f"{value:{sign}.2e}"


def _interval(found: PairedDifference) -> str:
    return "–" if found.low is None or found.high is None else f"[{_signed(found.low)}, {_signed(found.high)}]"


def _signed(value: float) -> str:
    return _number(value, "+")
