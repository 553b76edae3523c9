"""Result of `sga unlearn`: a table, answers before and after, a model card, and what to do next."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sga.data.reserved import RETAIN_UNSEEN
from sga.evaluation.counts import ROUNDING, counted, rows_of
from sga.evaluation.handover import NOT_RECOGNISED, Account, Check, Tolerances, account, reported_part
from sga.evaluation.table import fitted_table
from sga.experiments.task import CONFIG_FILE
from sga.experiments.unlearn_data import UnlearningRecords
from sga.experiments.unlearn_recipe import Recipe
from sga.files import read_json_object, write_text
from sga.report.own_data import AnswerPair, OwnDataReport, token_changes
from sga.runs.folder import Run
from sga.runs.model_card import model_card

_WIDTH = 80
_SHOWN = 5
_RISE, _RISEN = 0.1, 3
"""Rise of a true answer's probability from which on it is told, and number of records that are told at most."""
_TROUBLE = 'docs/troubleshooting.md, section "Not fit to be handed over"'
_RESERVED_FACTS = "reserved answers with their fact"
_FACTS = (
    ("forget answers with their fact", ""),
    ("retain answers with their fact", ", partly trained on"),
    (_RESERVED_FACTS, ", never trained on"),
)
"""Quantity and what to say of training, of the first rows of the table."""
_NAMES = {
    "forget answers": "facts",
    "retain answers": "retain facts",
    "reserved answers": "facts",
    "AUC of the loss": "AUC of the loss",
    "AUC of Min-K": "AUC of Min-K 40 %",
    "share of wrong": "wrong less likely",
    "extraction": "extraction",
    "ROUGE-L": "ROUGE-L",
    "probability": "probability",
    "fluency": "fluency",
    "degenerate": "degenerate",
    "nll": "answer nll",
    "perplexity": "perplexity ratio",
}
"""Names of quantities in the terminal, by the beginning of the whole name."""
_WHOLE = ("retain facts", "AUC of the loss", "AUC of Min-K 40 %", "wrong less likely", "perplexity ratio")
"""Those that need no set before them."""
_LEGEND = """\
Facts: greedy answers that say the fact of their record; reserved records are never trained on, retain ones partly. \
Unclear: the value before lies in the interval now, so that chance may have done it."""
_OF_PAIRS = " Wrong less likely: than the true answer, of the wrong answers; 1.00 is known, 0.50 is chance."
_UNTESTED = """\
Facts in other words than the records', other languages, other attacks on membership, how fast a few steps of training
bring the data back, and everything beyond the records to keep and the tests above."""


@dataclass(frozen=True)
class UnlearnResult:
    """The three runs of `sga unlearn`, finished.

    Attributes:
        folder: Path of the folder that they are in.
        start: Evaluation of the starting model.
        training: Run of the training.
        final: Evaluation of the exported model, read from disk again.
        tolerances: Tolerances of the conditions for handing over.
    """

    folder: Path
    start: Run
    training: Run
    final: Run
    tolerances: Tolerances = Tolerances()  # noqa: RUF009  (frozen)

    @cached_property
    def account(self) -> Account:
        """Verdict on the exported model by the conditions for handing over."""
        return account(self.final.chosen, self.start.chosen, self.tolerances, reported_part(self.final.chosen))

    @property
    def report(self) -> Path:
        """Path of the page."""
        return self.folder / "report.html"

    @property
    def model(self) -> Path:
        """Path of the exported model."""
        return self.training.model_path

    def write(self, recipe: Recipe, records: UnlearningRecords) -> None:
        """Writes the page and the model card."""
        self.write_page(recipe, records)
        write_text(self.model / "README.md", self.card(records))

    def write_page(self, recipe: Recipe, records: UnlearningRecords) -> None:
        """Writes the page, with what attacks have brought back if they have been made."""
        training = self.training
        attacks = training.path / "attacks" / "attacks.json"
        page = OwnDataReport(
            " ".join(self._first().split()),
            self.account.fit,
            [
                f"starting model {self.start.info['model']}",
                f"method {recipe.method}, {f'LoRA of rank {recipe.rank}' if recipe.rank else 'all weights'}",
                ", ".join(f"{len(rows)} {name}" for name, rows in records.sets.items()) + " records",
                f"seed {training.seed}",
            ],
            self.table(),
            [said for said in (self.lost(), self.likelier()) if said],
            read_json_object(attacks)["verdict"] if attacks.is_file() else [],
            [*(check.says for check in self.account.checks if check.value is None), " ".join(_UNTESTED.split())],
            records.warnings,
            list(self.answers()),
            self.next_commands(),
            self.advice(),
            training,
            [self.start, training, self.final],
        )
        page.write(self.report)

    # ---- the table ---------------------------------------------------------------------------------------------

    def table(self) -> list[tuple[str, ...]]:
        """Heading and rows: quantity, start, the exported model with its interval, goal, verdict."""
        lines: list[tuple[str, ...]] = [("", "before", "now", "95 % interval", "goal", "")]
        for old, new in self._pairs():
            trained = next((words for quantity, words in _FACTS if quantity == new.quantity), "")
            goal = new.goal.replace(" the starting model's", " the start's")
            verdict = ", ".join(part for part in (_way(old, new), _goal_met(new)) if part)
            lines.append((f"{new.quantity}{trained}", _value(old), _value(new), _interval(new), goal, verdict))
        return lines

    def short_table(self) -> tuple[list[tuple[str, ...]], list[str]]:
        """Rows for the terminal: facts, recognition, and goals that are missed; and the names of those that are met.

        The interval stands where the rule has a goal for it, in a row of its own.
        """
        lines: list[tuple[str, ...]] = [("", "before", "now", "goal", "")]
        met = []
        for old, new in self._pairs():
            name, recognition = _short(new.quantity), new.condition == NOT_RECOGNISED
            if not new.violation and not recognition and new.quantity not in dict(_FACTS):
                met.append(name)
                continue
            goal, _, within = new.goal.removesuffix(" times the starting model's").partition(", interval within ")
            verdict = [_way(old, new), _goal_met(new)]
            if recognition and new.best is not None and abs(new.value - new.best) <= self.tolerances.auc + ROUNDING:  # type: ignore[operator]
                verdict[1] = "met"
            lines.append((name, _value(old), _value(new), goal, ", ".join(part for part in verdict if part)))
            if within and new.low is not None and new.high is not None:
                reach, allowed = _reach(new), self.tolerances.auc_interval + ROUNDING
                lines.append(("  95 % interval", "", _interval(new), within, "met" if reach <= allowed else "missed"))
        return lines, met

    def _pairs(self) -> list[tuple[Check, Check]]:
        """Checks of the starting model and of the exported one with a value, facts first."""
        before = account(self.start.chosen, self.start.chosen, self.tolerances, self.account.part)
        pairs = [*zip(before.checks, self.account.checks, strict=True), *self._reserved_facts()]
        order = [quantity for quantity, _ in _FACTS]
        return sorted(
            (pair for pair in pairs if pair[1].value is not None),
            key=lambda pair: order.index(pair[1].quantity) if pair[1].quantity in order else len(order),
        )

    def _reserved_facts(self) -> list[tuple[Check, Check]]:
        """Share of reserved answers that say their fact, before and now; the rule has no goal for it."""
        name, runs = "handover/unseen/fact_recall", (self.start.chosen, self.final.chosen)
        if any(name not in chosen for chosen in runs):
            return []
        rows = rows_of(runs[1], "handover/unseen/fact_rows")
        numbers = [(chosen[name], chosen.get(f"{name}/ci_low"), chosen.get(f"{name}/ci_high")) for chosen in runs]
        old, new = (Check("", _RESERVED_FACTS, *one, "", None, "", best=1.0, rows=rows) for one in numbers)
        return [(old, new)]

    def likelier(self, texts: bool = True) -> str | None:
        """Sentence on the forget records whose true answer has become clearly more likely; None if there are none.

        Args:
            texts: True to name records by their question.
        """
        found = [
            (float(old["probability"]), float(new["probability"]), str(new.get("question") or new["id"]))
            for old, new in self._both()
            if old.get("probability") is not None and new.get("probability") is not None
        ]
        risen = sorted((one for one in found if one[1] - one[0] > _RISE), key=lambda one: one[0] - one[1])
        if not risen:
            return None
        names = [f'"{textwrap.shorten(name, 60, placeholder="…")}" ' if texts else "" for *_, name in risen]
        shown = [f"{name}{old:.2f} → {new:.2f}" for name, (old, new, _) in zip(names, risen, strict=True)]
        more = ", …" if len(shown) > _RISEN else ""
        verb = "has" if len(risen) == 1 else "have"
        said = f"{len(risen)} of {len(found)} forget records {verb} become more likely"
        return f"{said} (probability of the whole true answer, fact or not): {', '.join(shown[:_RISEN])}{more}"

    def lost(self, texts: bool = True) -> str | None:
        """Sentence on the facts to keep that were lost; None if there are none.

        Args:
            texts: True to name records by their question and what is answered now.
        """
        before = self.start.row_dicts(self.start.chosen_step, "retain")
        after = self.final.row_dicts(self.final.chosen_step, "retain")
        said_before = {row["id"] for row in before if row.get("fact_recall") == 1}
        rows = [row for row in after if row.get("fact_recall") == 0 and row["id"] in said_before]
        if not rows:
            return None
        reserved = {row["id"] for row in self.final.row_dicts(self.final.chosen_step, RETAIN_UNSEEN)}
        unseen = sum(row["id"] in reserved for row in rows)
        said = "1 fact to keep was lost" if len(rows) == 1 else f"{len(rows)} facts to keep were lost"
        if unseen:
            said += (
                f", {unseen} of {'a reserved record' if unseen == 1 else 'reserved records'}; others that are like "
                "what is to be forgotten, and that you did not list, are likely lost, too"
            )
        if not texts:
            return said
        named = [
            f'"{textwrap.shorten(str(row.get("question") or row["id"]), 60, placeholder="…")}"'
            + (f" now {textwrap.shorten(str(row['generation']), 60, placeholder='…')}" if "generation" in row else "")
            for row in rows
        ]
        return f"{said}: {'; '.join(named[:_SHOWN])}{'; …' if len(named) > _SHOWN else ''}"

    def lines(self, warnings: Sequence[str] = ()) -> Iterator[str]:
        """Lines that the terminal shows at the end.

        Args:
            warnings: Warnings on the data and the starting model, which the numbers have to be read with.
        """
        yield f"\n{self._first()}"
        yield ""
        lines, met = self.short_table()
        yield from fitted_table(lines, _WIDTH, texts=(0, 3, 4))
        pairs = _OF_PAIRS if any(line[0] == _NAMES["share of wrong"] for line in lines) else ""
        yield f"\n{textwrap.fill(f'{_LEGEND}{pairs}', _WIDTH)}"
        if met:
            yield textwrap.fill(f"Met as well: {', '.join(met)} (numbers and intervals in the report)", _WIDTH)
        for text in (*warnings, self.lost(), self.likelier()):
            if text is not None:
                yield f"\n{textwrap.fill(text, _WIDTH)}"
        for check in self.account.checks:
            if check.value is None:
                yield check.says
        answers = list(self.answers())
        if answers:
            yield "\nanswers before and after"
        for one in answers:
            for label, text in (("", one.question), ("  was: ", one.before), ("  now: ", one.after)):
                yield textwrap.fill(
                    f"{label}{' '.join(text.split())[:300] or '(empty)'}", _WIDTH, subsequent_indent=" " * len(label)
                )
        yield f"\n  model   {self.model}\n  card    {self.model / 'README.md'}\n  report  {self.report}"
        yield "\nnext"
        for command in self.next_commands():
            yield _folded(command)
        if self.advice() is not None:
            yield textwrap.fill(f"  {self.advice()}", _WIDTH, subsequent_indent="  ")

    def _first(self) -> str:
        """First sentence of the result, with the step that was chosen."""
        step, last = self.training.chosen_step, self.training.evaluations[-1]["step"]
        sentence = self.account.sentence
        kind = "" if self.account.fit else "NOT fit to be handed over: "
        if step == 0:
            kind = "NOT fit to be handed over, and no better than the starting model, which is what was exported: "
        return textwrap.fill(f"{kind}{sentence} (step {step} of {last})", _WIDTH)

    def answers(self) -> Iterator[AnswerPair]:
        """A few forget questions with the starting model's answer and the exported one's; none without texts."""
        told = [(old, new) for old, new in self._both() if "generation" in old and "generation" in new]
        # From all over the file, whose neighbouring lines are often alike.
        for old, new in (told[index * len(told) // _SHOWN] for index in range(_SHOWN)) if len(told) > _SHOWN else told:
            yield AnswerPair(
                str(new.get("question", new["id"])),
                str(new.get("answer", "")),
                str(old["generation"]),
                str(new["generation"]),
                token_changes(old, new),
            )

    def _both(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Rows of each forget record, of the starting model and of the exported one."""
        before = {row["id"]: row for row in self.start.row_dicts(self.start.chosen_step, "forget")}
        after = self.final.row_dicts(self.final.chosen_step, "forget")
        return [(before[row["id"]], row) for row in after if row["id"] in before]

    def next_commands(self) -> list[str]:
        """Three commands that one may run next; the first asks for a fact that was lost, if one was."""
        lost = [
            str(new["question"])
            for old, new in self._both()
            if old.get("fact_recall") == 1 and new.get("fact_recall") == 0 and "question" in new
        ]
        known = [*lost, *(one.question for one in self.answers()), "a question of your own"]
        question = known[0].replace('"', "'")
        start = self.start.info["model"]
        return [
            f'sga ask {start} {self.training.path} "{question}"',
            f"sga fit --config {self.training.path / CONFIG_FILE} --run.folder {self.folder / 'seed-1'} "
            "--seed_everything 1",
            f"sga compare {self.start.path} {self.final.path}",
        ]

    def advice(self) -> str | None:
        """Sentence on where to read what to change; None for a model that is fit to be handed over."""
        return None if self.account.fit else f"what to change: {_TROUBLE}"

    # ---- the card ----------------------------------------------------------------------------------------------

    def card(self, records: UnlearningRecords) -> str:
        """The model card: what was forgotten (numbers, no texts), how, with what result, what was not tested."""
        seen = Counter(row["set"] for row in self.final.row_dicts(self.final.chosen_step))
        counts = ", ".join(
            f"{len(rows)} {name}" + (f" ({seen[name]} of them looked at)" if 0 < seen[name] < len(rows) else "")
            for name, rows in records.sets.items()
        )
        heading, *rows = self.table()
        results = [
            f"Of this folder's weights, read from disk again. Records: {counts}; forgetting is measured on "
            f"{self.account.rows} of the first.",
            "",
            "| quantity | " + " | ".join(heading[1:-1]) + " | change |",
            "|" + "---|" * len(heading),
            *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows),
            *(
                line
                for said in (self.lost(texts=False), self.likelier(texts=False))
                if said
                for line in ("", f"{said}.")
            ),
        ]
        untested = [check.says for check in self.account.checks if check.value is None]
        untested += records.warnings
        verdict = f"{'' if self.account.fit else 'Not fit to be handed over: '}{self.account.sentence}."
        return model_card(self.training, verdict, results, untested)


def _folded(command: str) -> str:
    """A command over several lines where it is too long for one, as a shell reads it.

    >>> print(_folded('sga ask a/long/folder/of/a/model runs/mine/unlearned "What is the chemical symbol for gold?"'))
      sga ask a/long/folder/of/a/model runs/mine/unlearned \\
        "What is the chemical symbol for gold?"
    """
    lines = ["  "]
    for word in re.findall(r'"[^"]*"|\S+', command):
        if lines[-1].strip() and len(lines[-1]) + len(word) > _WIDTH - 3:  # room for a space and a backslash
            lines.append("    ")
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return " \\\n".join(lines)


def _short(quantity: str) -> str:
    """Name of a quantity in the terminal, of at most 20 characters.

    >>> _short("degenerate answers on reserved rows"), _short("share of wrong answers less likely")
    ('reserved degenerate', 'wrong less likely')
    """
    for words, name in _NAMES.items():
        if quantity.startswith(words):
            return name if name in _WHOLE else f"{'forget' if 'forget' in quantity else 'reserved'} {name}"
    return quantity


def _value(check: Check) -> str:
    if check.value is None:
        return ""
    return f"{check.value:.2f}" if check.rows is None else counted(check.value, check.rows)


def _interval(check: Check) -> str:
    """The interval, in rows where the quantity is a share of them."""
    if check.low is None or check.high is None:
        return ""
    if check.rows is None:
        return f"{check.low:.2f} to {check.high:.2f}"
    return f"{check.low * check.rows:.0f} to {check.high * check.rows:.0f}"


def _reach(check: Check) -> float:
    """Largest distance of the interval's ends from the best value."""
    assert check.best is not None and check.low is not None and check.high is not None
    return max(check.best - check.low, check.high - check.best)


def _way(old: Check, new: Check) -> str:
    """Word on a quantity: better, worse, the same or unclear.

    It is unclear where the interval holds the value before. Without an interval only its distance to the goal tells.
    """
    violations = [one.violation or 0.0 for one in (old, new)]
    gain, same = violations[0] - violations[1], ""
    if old.value is not None and new.value is not None and new.low is not None and new.high is not None:
        same = "same" if _value(old) == _value(new) else "unclear"
        if new.low <= old.value <= new.high:
            gain = 0.0
        elif new.best is not None:
            gain = abs(old.value - new.best) - abs(new.value - new.best)
    return "better" if gain > 0 else "worse" if gain < 0 else same


def _goal_met(check: Check) -> str:
    return "" if check.violation is None else "missed" if check.violation else "met"
