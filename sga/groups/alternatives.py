"""Alternatives: other answers to the forget question, trained on as a second kind of normal samples.

A neighbour preserves knowledge near the forget sample; an alternative teaches what to answer instead. Alternatives
never use answers that metrics measure with: training on TOFU's perturbed answers would make truth ratio and forget
quality look forgotten.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from sga.data.records import FORGET_PARAPHRASED, Benchmark, Record, comparable
from sga.data.refusals import read_refusals
from sga.errors import UserError
from sga.files import read_json_lines
from sga.groups.embedders import TFIDF, Embedder
from sga.groups.group import Group, Origin, record_hash
from sga.groups.search import nearest
from sga.groups.ties import tie_order

_WORD = re.compile(r"\w+(?:['’.,-]\w+)*")
"""Pattern of a word, including apostrophes, hyphens, points and commas within it ("O'Neill", "3.14")."""

MeasuredAnswers = Mapping[str, Set[str]]
"""Answers that metrics measure with, by question; both normalised by `spelled`."""


def spelled(text: str) -> str:
    """Text normalised for comparison: white space, case and Unicode form do not count."""
    return " ".join(comparable(text).split()).casefold()


def measured_answers(benchmark: Benchmark) -> MeasuredAnswers:
    """Perturbed, paraphrased and true answers of all evaluation sets and forget records, by question."""
    found: dict[str, set[str]] = {}
    for record in (*benchmark.training["forget"], *(r for rows in benchmark.evaluation.values() for r in rows)):
        answers = (record.answer, record.paraphrased_answer, *record.perturbed_answers)
        found.setdefault(spelled(record.question), set()).update(spelled(answer) for answer in answers if answer)
    return found


@dataclass(frozen=True)
class Alternatives(ABC):
    """Source of other answers to the forget questions. Implementations are frozen dataclasses, chosen by class path.

    Args:
        count: Number of alternatives in a group. ``group_size`` counts them: a group has K − 1 − count neighbours.
        pool: Number of answers per forget question, from which each epoch draws `count`; null for exactly `count`, the
            same in every epoch.
    """

    count: int = 1
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"alternatives: count must be at least 1, got {self.count} (leave alternatives out)")
        if self.pool is not None and self.pool < self.count:
            raise UserError(f"alternatives: pool must be at least count = {self.count}, got {self.pool}")

    @property
    def size(self) -> int:
        """Number of answers per forget question."""
        return self.pool or self.count

    @abstractmethod
    def answers(
        self, forget: Sequence[Record], pool: Sequence[Record], taken: MeasuredAnswers, seed: int
    ) -> list[list[tuple[str, Origin]]]:
        """At least `size` different answers to each forget question, with their origins; the first `size` are used.

        Args:
            forget: Records to forget, with a question each.
            pool: Retain records that answers may be drawn from.
            taken: Answers that are not allowed, by question, from `measured_answers`.
            seed: Seed of random choices.

        Raises:
            UserError: a forget question has too few allowed answers.
        """


@dataclass(frozen=True)
class NeighborAnswers(Alternatives):
    """Answers of the retain questions most similar in form, by cosine of the embedded questions.

    They have the form of a right answer with another content. Ties are ordered differently for each forget question;
    otherwise all would be taught the same few answers.

    Args:
        embedder: Embedder that turns questions into unit vectors.
    """

    embedder: Embedder = TFIDF()  # noqa: RUF009  (frozen)

    _source: ClassVar[str] = "neighbor_answer"

    def answer(self, forget: Record, neighbor: Record) -> str | None:
        """Alternative answer to a forget question made from a retain record; None if it gives none."""
        return neighbor.answer

    def answers(
        self, forget: Sequence[Record], pool: Sequence[Record], taken: MeasuredAnswers, seed: int
    ) -> list[list[tuple[str, Origin]]]:
        pool = [record for record in pool if not record.is_text]
        if not pool:
            raise UserError(
                f"alternatives: {type(self).__name__} takes answers of retain questions, and there are none"
            )
        questions = [(record.question, "") for record in pool]
        embed = self.embedder.fitted(questions)
        decimals = 9 if isinstance(self.embedder, TFIDF) else 6  # float64 and float32
        queries, vectors = embed([(record.question, "") for record in forget]), embed(questions)
        ties = tie_order(forget, pool)
        origin = Origin(self._source, by=repr(self.embedder))
        examined = min(len(pool), 4 * self.size + 8)
        while True:
            _, found = nearest(queries, vectors, examined, decimals, ties=ties)
            chosen = []
            for record, indices in zip(forget, found.tolist(), strict=True):
                refused = taken.get(spelled(record.question), set())
                made = [answer for i in indices if (answer := self.answer(record, pool[i])) is not None]
                answers: dict[str, str] = {}
                for answer in made:
                    answers.setdefault(spelled(answer), answer)
                chosen.append([answer for key, answer in answers.items() if key not in refused][: self.size])
            short = next((row for row, answers in enumerate(chosen) if len(answers) < self.size), None)
            if short is None:
                return [[(answer, origin) for answer in answers] for answers in chosen]
            if examined == len(pool):
                raise UserError(
                    f"alternatives: forget record {forget[short].id} finds {len(chosen[short])} of {self.size} answers "
                    f"of {len(pool)} retain questions that are none of its own or of those that metrics measure with"
                )
            examined = min(len(pool), 4 * examined)


@dataclass(frozen=True)
class SubstitutedAnswers(NeighborAnswers):
    """The forget answer with its fact replaced by the fact of a similar retain answer.

    With "The capital of Norway is Oslo." as the neighbour of "The capital of France is Paris.", the alternative is "The
    capital of France is Oslo.": words that question and answer share stay unchanged, so that ascent on the forget
    answer and descent on the alternative differ only in the fact, as found by `fact_span`. If the forget answer has no
    fact, the alternative is the neighbour's answer.
    """

    _source: ClassVar[str] = "substituted_answer"

    def answer(self, forget: Record, neighbor: Record) -> str | None:
        return substituted(forget, neighbor)


def substituted(record: Record, other: Record) -> str | None:
    """Answer of a record with the other's fact in place of its own; None if that cannot be made.

    Without a fact of its own it is the other's answer.
    """
    own, taken = fact_span(record), fact_span(other)
    if own is None:
        return other.answer
    if taken is None:
        return None
    fact = other.answer[slice(*taken)]
    if spelled(fact) in spelled(record.question):
        return None  # "The currency of Japan is Japan."
    return record.answer[: own[0]] + fact + record.answer[own[1] :]


def fact_span(record: Record) -> tuple[int, int] | None:
    """Start and end of an answer's fact, the words that its question lacks; None if the question has all its words.

    Among the runs of such words, the one with most names and numbers is chosen, and trimmed to span from the first to
    the last of them; without any, the run with most words. Ties go to the last run. A name has a capital; the answer's
    first word counts only before another name. Words are compared case-insensitively.

    >>> answer = "The telephone was invented by Alexander Graham Bell."
    >>> answer[slice(*fact_span(Record("r", "Who invented the telephone?", answer)))]
    'Alexander Graham Bell'
    """
    asked = {spelled(word) for word in _WORD.findall(record.question)}
    runs: list[list[re.Match[str]]] = [[]]
    for word in _WORD.finditer(record.answer):
        if spelled(word.group()) in asked:
            runs.append([])
        else:
            runs[-1].append(word)
    found = [(0, len(run), run[0].start(), run[-1].end()) for run in runs if run]
    for run in runs:
        named = [word for word in run if any(letter.isupper() or letter.isdigit() for letter in word.group())]
        if named and not record.answer[: named[0].start()].strip() and not (len(named) > 1 and named[1] is run[1]):
            named = named[1:]  # the first word of a sentence always has a capital
        if named:
            found.append((len(named), 0, named[0].start(), named[-1].end()))
    return max(found)[2:] if found else None


@dataclass(frozen=True)
class RefusalAnswers(Alternatives):
    """Refusals as alternatives, drawn at random for each forget question.

    Args:
        file: Path of a text file with one refusal per line; null uses the package's own refusals.
    """

    file: str | None = None

    def answers(
        self, forget: Sequence[Record], pool: Sequence[Record], taken: MeasuredAnswers, seed: int
    ) -> list[list[tuple[str, Origin]]]:
        refusals = read_refusals(self.file)
        if len(refusals) < self.size:
            raise UserError(f"alternatives: {self.size} refusals are asked for, and there are {len(refusals)}")
        found = []
        for record in forget:
            draws = np.random.default_rng([seed, 0x4EF5, int(record_hash(record), 16)])
            places = draws.choice(len(refusals), size=self.size, replace=False)
            found.append([(refusals[place], Origin("refusal", by=self.file)) for place in places.tolist()])
        return found


@dataclass(frozen=True)
class FileAnswers(Alternatives):
    """Answers from a file of your own, or one that ``sga normals generate --prompt alternative`` wrote.

    JSON Lines, one answer per line: ``{"question": …, "answer": …}`` with a forget question, spelled as in the data;
    optionally ``source`` and ``by``, which go to the group file. The first `count` lines (or `pool`) of each question
    are used.

    Args:
        file: Path of the file, in JSON Lines.
    """

    file: str = ""

    def answers(
        self, forget: Sequence[Record], pool: Sequence[Record], taken: MeasuredAnswers, seed: int
    ) -> list[list[tuple[str, Origin]]]:
        if not self.file:
            raise UserError("alternatives: FileAnswers needs the name of its file (--data.alternatives.file)")
        found: dict[str, dict[str, tuple[str, Origin]]] = {spelled(record.question): {} for record in forget}
        for number, line in read_json_lines(Path(self.file)):
            where = f"{self.file}:{number}"
            question, answer = line.get("question"), line.get("answer")
            words = {name: line.get(name) for name in ("source", "by", "prompt")}
            if not (isinstance(question, str) and isinstance(answer, str) and answer.strip()):
                raise UserError(f"{where}: needs 'question' and 'answer', both text")
            if not all(word is None or isinstance(word, str) for word in words.values()):
                raise UserError(f"{where}: source, by and prompt must be strings")
            if spelled(question) not in found:
                continue  # a question that this run does not forget
            if spelled(answer) in taken.get(spelled(question), set()):
                raise UserError(
                    f"{where}: {answer[:60]!r} is the true answer to {question[:50]!r}, or metrics measure with it "
                    "(perturbed_answer, paraphrased_answer); training on it would make them say forgotten. Give other "
                    "answers"
                )
            origin = Origin(words["source"] or "file", words["by"] or Path(self.file).name, words["prompt"])
            found[spelled(question)].setdefault(spelled(answer), (answer, origin))
        chosen = [list(found[spelled(record.question)].values())[: self.size] for record in forget]
        short = next((row for row, answers in enumerate(chosen) if len(answers) < self.size), None)
        if short is not None:
            raise UserError(
                f"{self.file}: {len(chosen[short])} of {self.size} answers to the question of forget record "
                f"{forget[short].id} ({forget[short].question[:60]!r}); add some, or lower alternatives.count or pool"
            )
        return chosen


def with_alternatives(
    groups: Sequence[Group], alternatives: Alternatives, pool: Sequence[Record], measured: MeasuredAnswers, seed: int
) -> list[Group]:
    """Adds alternatives of each forget question to the groups; the same arguments give the same groups.

    Raises:
        UserError: a forget record is plain text, there are too few answers, or metrics measure with one of them.
    """
    forget = [group.forget for group in groups]
    text = next((record.id for record in forget if record.is_text), None)
    if text is not None:
        raise UserError(f"alternatives: forget record {text} is plain text, which has no question to answer otherwise")
    found = []
    for group, answers in zip(groups, alternatives.answers(forget, pool, measured, seed), strict=True):
        records = tuple(
            Record(f"{group.forget.id}/alternative-{number}", group.forget.question, answer)
            for number, (answer, _) in enumerate(answers[: alternatives.size], start=1)
        )
        origins = tuple(origin for _, origin in answers[: alternatives.size])
        found.append(replace(group, alternatives=records, alternative_origins=origins))
    check_alternatives(found, measured)
    return found


def with_paraphrased_questions(benchmark: Benchmark) -> Benchmark:
    """Adds the evaluation set ``forget_paraphrased``: forget questions in another form of sentence.

    A model that was taught another answer to a question may still give the true one to a rephrased question.
    """
    asked = tuple(
        Record(record.id, record.paraphrased_question, record.answer)
        for record in benchmark.evaluation.get("forget", ())
        if record.paraphrased_question is not None
    )
    if asked:
        return replace(benchmark, evaluation={**benchmark.evaluation, FORGET_PARAPHRASED: asked})
    why = "no forget record has a paraphrased_question"
    return replace(benchmark, absent={**benchmark.absent, FORGET_PARAPHRASED: why})


def check_alternatives(groups: Sequence[Group], measured: MeasuredAnswers) -> None:
    """Raises a UserError if an alternative is the true answer, or an answer that metrics measure with."""
    for group in groups:
        for record in group.alternatives:
            if spelled(record.answer) in measured.get(spelled(record.question), set()):
                raise UserError(
                    f"alternative {record.id} ({record.answer[:60]!r}) is the true answer of {group.forget.id} or one "
                    "that metrics measure with (perturbed_answer, paraphrased_answer); training on it would make them "
                    "say forgotten. Take alternatives of another source"
                )
