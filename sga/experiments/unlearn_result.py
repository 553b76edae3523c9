"""Result of `sga unlearn`: a table, answers before and after, a model card, and what to do next."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sga.data.records import Record
from sga.data.reserved import RETAIN_UNSEEN
from sga.evaluation.handover import Account, Check, Tolerances, account, reported_part
from sga.evaluation.table import fitted_table
from sga.experiments.task import CONFIG_FILE
from sga.experiments.unlearn_data import UnlearningRecords, spoken_facts
from sga.experiments.unlearn_recipe import Recipe
from sga.files import write_text
from sga.report.own_data import AnswerPair, OwnDataReport, token_changes
from sga.runs.folder import Run
from sga.runs.model_card import model_card

_WIDTH = 80
_SHOWN = 5
_RISE, _RISEN = 0.1, 3
"""Rise of a true answer's probability from which on it is told, and number of records that are told at most."""
_TROUBLE = 'docs/troubleshooting.md, section "Not fit to be handed over"'
_FACTS = (
    (RETAIN_UNSEEN, "reserved answers with their fact", ", never trained on"),
    ("retain", "retain answers with their fact", ", partly trained on"),
    ("forget", "forget answers with their fact", ""),
)
"""Set, quantity and what to say of training, of facts in the table, from the third row to the first."""
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

    @staticmethod
    def facts(run: Run, name: str = "forget") -> tuple[int, int] | None:
        """Number of a run's greedy answers that say the fact of their record, and of records that have one.

        None without answers or texts.
        """
        rows = [row for row in run.row_dicts(run.chosen_step, name) if "generation" in row and "answer" in row]
        if not rows:
            return None
        records = [Record(str(row["id"]), str(row["question"]), str(row["answer"])) for row in rows]
        return spoken_facts(records, [str(row["generation"]) for row in rows])

    def write(self, recipe: Recipe, records: UnlearningRecords) -> None:
        """Writes the page and the model card."""
        training = self.training
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
            self.likelier(),
            [*(check.says for check in self.account.checks if check.value is None), " ".join(_UNTESTED.split())],
            records.warnings,
            list(self.answers()),
            self.next_commands(),
            self.advice(),
            training,
            [self.start, training, self.final],
        )
        page.write(self.report)
        write_text(self.model / "README.md", self.card(records))

    # ---- the table ---------------------------------------------------------------------------------------------

    def table(self) -> list[tuple[str, ...]]:
        """Heading and rows: quantity, start, the exported model with its interval, goal, verdict."""
        before = account(self.start.chosen, self.start.chosen, self.tolerances, self.account.part)
        lines: list[tuple[str, ...]] = [("", "before", "now", "95 % interval", "goal", "")]
        for old, new in (*zip(before.checks, self.account.checks, strict=True), *self._reserved_facts()):
            if new.value is not None:
                lines.append(_row(old, new))
        # Facts come first, and as numbers of answers, unless those of a half are told.
        for name, quantity, trained in _FACTS[: None if self.account.part == "all" else -1]:
            was, now = self.facts(self.start, name), self.facts(self.final, name)
            at = next((index for index, line in enumerate(lines) if line[0] == quantity), None)
            if at is not None:
                _, *numbers = lines.pop(at)
                if was is not None and now is not None:
                    numbers[:2] = [f"{count} of {rows}" for count, rows in (was, now)]
                lines.insert(1, (f"{quantity}{trained}", *numbers))
        return lines

    def _reserved_facts(self) -> list[tuple[Check, Check]]:
        """Share of reserved answers that say their fact, before and now; the rule has no goal for it."""
        name, runs = "handover/unseen/fact_recall", (self.start.chosen, self.final.chosen)
        if any(name not in chosen for chosen in runs):
            return []
        numbers = [(chosen[name], chosen.get(f"{name}/ci_low"), chosen.get(f"{name}/ci_high")) for chosen in runs]
        old, new = (Check("", _FACTS[0][1], *one, "", None, "", best=1.0) for one in numbers)
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
        return f"{said} (probability of the true answer): {', '.join(shown[:_RISEN])}{more}"

    def lines(self) -> Iterator[str]:
        """Lines that the terminal shows at the end."""
        yield f"\n{self._first()}"
        yield ""
        yield from fitted_table(self.table(), _WIDTH, texts=(0, 4, 5), spare=3)
        likelier = self.likelier()
        if likelier is not None:
            yield f"\n{textwrap.fill(likelier, _WIDTH)}"
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
            yield f"  {command}"
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
        for old, new in told[:_SHOWN]:
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
            f"Of this folder's weights, read from disk again; forgetting on {self.account.rows} records of {counts}.",
            "",
            "| quantity | " + " | ".join(heading[1:-1]) + " | change |",
            "|" + "---|" * len(heading),
            *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows),
            *([] if self.likelier() is None else ["", f"{self.likelier(texts=False)}."]),
        ]
        untested = [check.says for check in self.account.checks if check.value is None]
        untested += records.warnings
        verdict = f"{'' if self.account.fit else 'Not fit to be handed over: '}{self.account.sentence}."
        return model_card(self.training, verdict, results, untested)


def _row(old: Check, new: Check) -> tuple[str, ...]:
    interval = "" if new.low is None or new.high is None else f"{new.low:.2f} to {new.high:.2f}"
    goal = new.goal.replace(" the starting model's", " the start's")
    was = "" if old.value is None else f"{old.value:.2f}"
    return (new.quantity, was, f"{new.value:.2f}", interval, goal, _change(old, new))


def _change(old: Check, new: Check) -> str:
    """Words on a quantity: better, worse or unchanged, and its goal met or missed.

    It is unchanged where the interval holds the value before. Without an interval only its distance to the goal tells.
    """
    violations = [one.violation or 0.0 for one in (old, new)]
    gain, same = violations[0] - violations[1], ""
    if old.value is not None and new.value is not None and new.low is not None and new.high is not None:
        same = "unchanged"
        if new.low <= old.value <= new.high:
            gain = 0.0
        elif new.best is not None:
            gain = abs(old.value - new.best) - abs(new.value - new.best)
    way = "better" if gain > 0 else "worse" if gain < 0 else same
    goal = "" if new.violation is None else "missed" if new.violation else "met"
    return ", ".join(part for part in (way, goal) if part)
