"""Fictitious authors in TOFU's shape, generated here, so that everything runs with nothing to download.

An author is a life first and text second: `author_facts` draws facts that hang together (a birthplace, a name that fits
it, a debut as an adult, a prize after the book it is for), and `author_records` says them. The words and the sentence
forms are in ``data/authors/*.json``. Two notations occur there:

* ``[a|b|]`` stands for one of its alternatives, of which the last may be empty;
* ``{slot}`` is filled with a fact; ``{a slot}`` adds the article, ``{slot's}`` the possessive, and a capital letter in
  ``{Slot}`` or ``{A slot}`` begins a sentence.

The paraphrase of an answer, or of a question, is another sentence form of its topic, filled with the same facts. The
perturbed answers are the paraphrase, filled with facts drawn in the same way that belong to nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sga.data.author_facts import seeded_random
from sga.data.author_records import author_records
from sga.data.author_words import author_words
from sga.data.builtin import builtin_path
from sga.data.records import Benchmark, Record, Source, read_records
from sga.errors import UserError


@dataclass(frozen=True)
class Authors(Source):
    """Makes a benchmark of fictitious authors; needs no download and no folder.

    Author number i of a role and seed is always the same person, so a benchmark with more authors of a role contains
    the one with fewer. Every author has other books and another name.

    Args:
        forget_authors: Number of authors to forget.
        retain_authors: Number of authors to retain; normal samples are drawn from their records.
        holdout_authors: Number of authors that no model is trained on, the non-members of membership inference.
        questions_per_author: Number of questions on each author, at most 22; a smaller number uses a subset of the
            topics, which differs from author to author but always includes the author's name.
        seed: Seed of the people; another seed gives other people.
        evaluation_retain: Number of retain records to evaluate, taken evenly from all retain authors; null for all.
    """

    forget_authors: int = 4
    retain_authors: int = 16
    holdout_authors: int = 4
    questions_per_author: int = 20
    seed: int = 0
    evaluation_retain: int | None = None

    def __post_init__(self) -> None:
        for name in ("forget_authors", "retain_authors", "holdout_authors", "questions_per_author"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}; every set of the benchmark needs a record")
        words = author_words()
        if self.questions_per_author > len(words.topics):
            raise UserError(
                f"questions_per_author must be at most {len(words.topics)}, got {self.questions_per_author} "
                "(there is one question per topic); ask for more authors instead"
            )
        for role, places in AUTHOR_ROLES.items():
            value = getattr(self, f"{role}_authors")
            limit = words.people // PEOPLE_PER_BLOCK * len(places)
            if value > limit:
                raise UserError(
                    f"{role}_authors must be at most {limit}, got {value} "
                    "(the word lists have no more distinct names and titles); ask for fewer authors"
                )
        retain_records = self.retain_authors * self.questions_per_author
        if self.evaluation_retain is not None and not 1 <= self.evaluation_retain <= retain_records:
            raise UserError(
                f"evaluation_retain must be from 1 to {retain_records} (retain_authors × questions_per_author), "
                f"got {self.evaluation_retain}; leave it out to evaluate all of them"
            )

    def load(self, root: str | None) -> Benchmark:
        """Makes the benchmark. `root` is not needed, whether given or not: nothing of the user's is read."""
        forget = self._records("forget")
        retain = self._records("retain")
        holdout = self._records("holdout")
        kept = {name: read_records(builtin_path(f"{name}.jsonl"), name) for name in ("real_authors", "world_facts")}
        return Benchmark(
            name="authors",
            training={"forget": forget, "retain": retain, **kept},
            evaluation={"forget": forget, "retain": self._evaluated(retain), **kept, "holdout": holdout},
        )

    def _records(self, role: str) -> tuple[Record, ...]:
        records: list[Record] = []
        for index in range(getattr(self, f"{role}_authors")):
            for row in author_records(self.seed, person_number(role, index), self.questions_per_author):
                records.append(Record(f"{role}/{len(records)}", *row[:4], paraphrased_question=row[4]))
        return tuple(records)

    def _evaluated(self, retain: tuple[Record, ...]) -> tuple[Record, ...]:
        if self.evaluation_retain is None:
            return retain
        share, rest = divmod(self.evaluation_retain, self.retain_authors)
        rng = seeded_random(self.seed, "evaluation_retain")
        one_more = set(rng.sample(range(self.retain_authors), rest))
        picked: list[Record] = []
        for index in range(self.retain_authors):
            first = index * self.questions_per_author
            count = share + (index in one_more)
            picked += [retain[i] for i in sorted(rng.sample(range(first, first + self.questions_per_author), count))]
        return tuple(picked)


PEOPLE_PER_BLOCK = 6

AUTHOR_ROLES: Mapping[str, Sequence[int]] = {"forget": (0,), "retain": (1, 2, 3, 4), "holdout": (5,)}
"""Places of each role in every block of six people, so that a person's number does not depend on the number of authors
in other roles. The default numbers, 4 + 16 + 4, fill whole blocks."""


def person_number(role: str, index: int) -> int:
    """Number of the person with this index in a role; no two roles share a person.

    >>> [person_number("forget", i) for i in range(3)], [person_number("retain", i) for i in range(5)]
    ([0, 6, 12], [1, 2, 3, 4, 7])
    """
    places = AUTHOR_ROLES[role]
    return index // len(places) * PEOPLE_PER_BLOCK + places[index % len(places)]
