"""Normal data degraded on purpose, and built-in text in place of text that a language model writes.

For experiments on how much results depend on the normal samples. Each class is a pairing around another one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sga.data.author_records import author_records
from sga.data.authors import person_number
from sga.data.records import Record, read_records
from sga.errors import UserError, check_numbers
from sga.groups.group import Group, Origin
from sga.groups.pairing import NearestNormals, Pairing

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class MixedNormals(Pairing):
    """Another pairing in which a share of all normals is replaced by random retain records.

    Args:
        share: Share of all normals to replace, in [0, 1]; the seed decides which ones.
        pairing: Pairing whose normals are partly replaced.
    """

    share: float
    pairing: Pairing = NearestNormals()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        check_numbers(0, 1, share=self.share)

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        groups = self.pairing.pair(forget, pool, count, seed)
        return _replaced(groups, self.share, np.random.default_rng([seed, 0x313]), pool, Origin(by="random"))


@dataclass(frozen=True)
class CorruptedNormals(Pairing):
    """Another pairing with a share of its normals' words replaced by words drawn from the retain pool.

    Question and answer are both corrupted. Words are drawn with their frequency in the pool; a record is corrupted in
    the same way in all groups.

    Args:
        rate: Probability that a word is replaced, in [0, 1].
        pairing: Pairing whose normals are corrupted.
    """

    rate: float
    pairing: Pairing = NearestNormals()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        check_numbers(0, 1, rate=self.rate)

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        words = [word for record in pool for word in _WORD.findall(f"{record.question} {record.answer}")]
        groups = self.pairing.pair(forget, pool, count, seed)
        if not self.rate:
            return groups

        def corrupted(record: Record) -> Record:
            rng = random.Random(f"{seed}/corrupted/{record.id}")  # the same in every process, unlike hash()

            def text(value: str) -> str:
                return _WORD.sub(lambda word: rng.choice(words) if rng.random() < self.rate else word[0], value)

            return Record(f"{record.id}/corrupted", text(record.question), text(record.answer))

        origin = Origin("corrupted", f"{self.rate:g} of the words")
        return [
            replace(group, normals=tuple(map(corrupted, group.normals)), origins=(origin,) * len(group.normals))
            for group in groups
        ]


@dataclass(frozen=True)
class OffTopicNormals(Pairing):
    """Another pairing in which a share of all normals is replaced by records of another domain.

    Args:
        share: Share of all normals to replace, in [0, 1]; the seed decides which ones.
        records: Path of a JSONL file of the other domain; null uses sums in words ("What is 12 plus 7?"). If you
            compare utilities, do not use records that model utility is measured on, such as TOFU's ``world_facts``:
            they would be trained on.
        pairing: Pairing whose normals are partly replaced.
    """

    share: float
    records: str | None = None
    pairing: Pairing = NearestNormals()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        check_numbers(0, 1, share=self.share)

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        domain = _sums() if self.records is None else read_records(self.records, "off-topic")
        if len(domain) < count:
            raise UserError(f"{self.records}: {len(domain)} records, but each group may need {count}; give more")
        groups = self.pairing.pair(forget, pool, count, seed)
        origin = Origin("off-topic", self.records or "sums")
        return _replaced(groups, self.share, np.random.default_rng([seed, 0x0FF]), domain, origin)


@dataclass(frozen=True)
class FreshAuthors(Pairing):
    """Normals about fictitious authors who are in no set of the benchmark, in place of text by a language model.

    The built-in generator makes them, so that experiments on generated normals run without a language model, with the
    built-in authors as benchmark. No model was trained on these people. Each forget record gets the nearest records.

    Args:
        authors: Number of authors to generate and choose from.
        seed: Seed of the generated people; the benchmark's own seed would give people who are in it.
        questions_per_author: Number of questions about each author.
        nearest: Pairing by which normals are chosen from their records.
    """

    authors: int = 12
    seed: int = 1000
    questions_per_author: int = 20
    nearest: NearestNormals = NearestNormals()  # noqa: RUF009  (frozen)

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        known = {record.content for record in (*forget, *pool)}
        fresh = []
        for number in range(self.authors):
            rows = author_records(self.seed, person_number("retain", number), self.questions_per_author)
            records = [Record(f"fresh/{number}/{topic}", *row[:2]) for topic, row in enumerate(rows)]
            if known & {record.content for record in records}:
                raise UserError(f"FreshAuthors: seed {self.seed} makes people of the benchmark; give another seed")
            fresh += records
        if len(fresh) < count:
            raise UserError(f"FreshAuthors: {len(fresh)} records for groups with {count} normals; raise authors")
        groups = self.nearest.pair(forget, fresh, count, seed)
        origin = Origin("generated", f"built-in generator, seed {self.seed} (stands in for a language model)")
        return [replace(group, origins=(origin,) * count) for group in groups]


def _replaced(
    groups: Sequence[Group],
    share: float,
    draws: np.random.Generator,
    records: Sequence[Record],
    origin: Origin,
) -> list[Group]:
    """Replaces round(share · number of all normals) of the groups' normals by random records, one after the other."""
    changed = list(groups)
    slots = [(row, place) for row, group in enumerate(changed) for place in range(len(group.normals))]
    for slot in sorted(draws.permutation(len(slots))[: round(share * len(slots))].tolist()):
        row, place = slots[slot]
        group = changed[row]
        taken = {record.content for record in group.normals}
        free = [record for record in records if record.content not in taken]
        if not free:
            raise UserError("no record is left to put in a normal's place; lower the share or --data.pool_size")
        origins = [group.origin(index) for index in range(len(group.normals))]
        normals, scores = list(group.normals), list(group.scores)
        normals[place], scores[place], origins[place] = free[int(draws.integers(len(free)))], None, origin
        changed[row] = replace(group, normals=tuple(normals), scores=tuple(scores), origins=tuple(origins))
    return changed


def _sums() -> tuple[Record, ...]:
    return tuple(
        Record(f"sums/{a}-{b}", f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")
        for a in range(2, 50)
        for b in range(2, 30)
    )
