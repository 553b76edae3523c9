"""Pairing: the choice of K−1 normal samples for each forget sample from the retain split, before training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from sga.data.records import Record
from sga.errors import UserError
from sga.groups.checks import Checker, Checks
from sga.groups.embedders import TFIDF, Embedder, ModelStates
from sga.groups.group import AlternativeKind, Group, Origin, record_hash
from sga.groups.search import Embedding, nearest, similarities
from sga.groups.selection import select
from sga.groups.ties import tie_order


class Pairing(ABC):
    """Choice of normal samples. Implementations are frozen dataclasses, chosen by class path in a configuration."""

    @abstractmethod
    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        """Groups of each forget record with `count` distinct normals; the same arguments give the same groups."""


@dataclass(frozen=True)
class NearestNormals(Pairing):
    """The nearest pool records by cosine of embedded question and answer, with ties ordered by `tie_order`.

    Args:
        embedder: Embedder that turns question and answer into a unit vector.
        diversity: Weight d of maximal marginal relevance, in [0, 1]: (1 − d)·similarity to the forget sample −
            d·largest similarity to a normal chosen before; 0 takes the nearest records.
        answer_ceiling: Largest cosine of a normal's answer to the forget answer, so that a normal does not teach the
            forget answer again; null for no ceiling.
        max_reuse: Largest number of forget samples that may share a retain record; null for any number.
        checks: Rules that each normal must satisfy; if it fails, the next candidate replaces it. Null checks nothing.
    """

    embedder: Embedder = TFIDF()  # noqa: RUF009  (frozen)
    diversity: float = 0.0
    answer_ceiling: float | None = None
    max_reuse: int | None = None
    checks: Checks | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise UserError(f"diversity must be from 0 (nearest) to 1, got {self.diversity}")
        if self.max_reuse is not None and self.max_reuse < 1:
            raise UserError(f"max_reuse must be at least 1, or null for any number, got {self.max_reuse}")

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        if self.max_reuse is not None and self.max_reuse * len(pool) < count * len(forget):
            raise UserError(
                f"max_reuse {self.max_reuse} allows {self.max_reuse * len(pool)} uses of {len(pool)} retain records, "
                f"but {len(forget)} forget records need {count} normals each; raise max_reuse"
            )
        texts = [(record.question, record.answer) for record in pool]
        embed = self.embedder.fitted(texts)
        vectors, queries = embed(texts), embed([(record.question, record.answer) for record in forget])
        decimals = 9 if isinstance(self.embedder, TFIDF) else 6  # float64 and float32
        ties = tie_order(forget, pool)
        checker = None if self.checks is None else Checker(self.checks, forget, pool)
        fits = self._filter(forget, pool, embed, checker)

        def similarity(index: int, others: Sequence[int]) -> Any:
            return similarities(vectors[[index]], vectors[list(others)], decimals)[0]

        def apart(index: int, others: Sequence[int]) -> Any:
            assert checker is not None, "given to select only then"
            return np.array([not checker.repeats(pool[index], pool[other]) for other in others])

        plain = not self.diversity and self.max_reuse is None and self.answer_ceiling is None and self.checks is None
        examined = min(len(pool), count if plain else max(4 * count, 32))
        while True:
            scores, found = nearest(queries, vectors, examined, decimals, ties=ties)
            places = [
                [place for place, index in enumerate(indices) if fits(row, int(index))]
                for row, indices in enumerate(found.tolist())
            ]
            candidates = [[int(found[row, place]) for place in kept] for row, kept in enumerate(places)]
            values = [[float(scores[row, place]) for place in kept] for row, kept in enumerate(places)]
            chosen = select(
                candidates, values, count, self.diversity, self.max_reuse, similarity, apart if checker else None
            )
            short = next((row for row, taken in enumerate(chosen) if len(taken) < count), None)
            if short is None:
                break
            if examined == len(pool):
                raise UserError(
                    f"forget record {forget[short].id} finds {len(chosen[short])} of {count} normals: of {len(pool)} "
                    f"retain records {len(candidates[short])} pass answer_ceiling and checks"
                    + (f", at most {self.max_reuse} uses each" if self.max_reuse is not None else "")
                    + "; loosen what refuses them (answer_ceiling, max_reuse, checks)"
                )
            examined = min(len(pool), 4 * examined)
        origin = Origin(by=repr(self.embedder))
        return [
            Group(
                record,
                tuple(pool[candidates[row][place]] for place in chosen[row]),
                tuple(round(values[row][place], 6) for place in chosen[row]),
                (origin,) * count,
            )
            for row, record in enumerate(forget)
        ]

    def _filter(
        self, forget: Sequence[Record], pool: Sequence[Record], embed: Embedding, checker: Checker | None
    ) -> Callable[[int, int], bool]:
        """Function (forget index, pool index) → True if ceiling and checks allow the pool record as a normal."""
        ceiling, answers = self.answer_ceiling, None
        if ceiling is not None:
            answers = tuple(embed([("", record.answer) for record in records]) for records in (forget, pool))
        known: dict[tuple[int, int], bool] = {}

        def fits(row: int, index: int) -> bool:
            if (row, index) not in known:
                low = answers is None or similarities(answers[0][[row]], answers[1][[index]])[0, 0] <= ceiling
                known[row, index] = bool(low and (checker is None or not checker.failures(pool[index], forget[row])))
            return known[row, index]

        return fits


@dataclass(frozen=True)
class RandomNormals(Pairing):
    """Random pool records, without replacement within a group: the baseline for every retrieval."""

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        draws = np.random.default_rng([seed, 0x5EED])
        return [
            Group(
                record,
                tuple(pool[index] for index in draws.choice(len(pool), size=count, replace=False)),
                (0.0,) * count,
            )
            for record in forget
        ]


def with_model(pairing: Pairing, model: str | None) -> Pairing:
    """Sets `model` in all `ModelStates` embedders of a pairing, nested ones too, that do not name a model."""

    def bound(value: Any) -> Any:
        if isinstance(value, ModelStates):
            return replace(value, name_or_path=value.name_or_path or model)
        if isinstance(value, Pairing) and is_dataclass(value):
            return replace(value, **{one.name: bound(getattr(value, one.name)) for one in fields(value)})
        return value

    found: Pairing = bound(pairing)
    return found


def make_groups(
    forget: Sequence[Record],
    pool: Sequence[Record],
    group_size: int,
    pairing: Pairing,
    seed: int,
    pool_size: int | None = None,
    reserved: Sequence[Record] = (),
) -> list[Group]:
    """Pairs every forget record with group_size − 1 records of the pool, or with `pool_size` records to draw from.

    Args:
        forget: Records to forget, in the order of the groups.
        pool: Retain records that normals are drawn from, without the reserved ones.
        group_size: Size K of a group, at least 1; 1 means gradient ascent without normals.
        pairing: Pairing that chooses the normals.
        seed: Seed of random pairings.
        pool_size: Number of normals of each forget record, from which each epoch draws K−1; None for K−1.
        reserved: Retain records that are set aside, for messages and the check of duplicates.

    Raises:
        UserError: K is below 1 or larger than the pool allows, or a forget record is also in the retain data (same
            question and answer up to white space and case): descending on it would undo the forgetting.
    """
    if group_size < 1:
        raise UserError(f"group_size must be at least 1, got {group_size} (1 is gradient ascent without normal data)")
    kept = {record.content: record for record in (*pool, *reserved)}
    for record in forget:
        if record.content in kept:
            raise UserError(
                f"forget record {record.id} also stands in the retain pool, as {kept[record.content].id}: "
                f"{(record.question or record.answer)[:80]!r}; remove it from one of the two"
            )
    if pool_size is not None and pool_size < group_size - 1:
        raise UserError(f"pool_size must be at least group_size − 1 = {group_size - 1}, got {pool_size}")
    count = group_size - 1 if pool_size is None else pool_size
    if count > len(pool):
        asked = f"group_size {group_size}" if pool_size is None else f"pool_size {pool_size}"
        aside = f" beside {len(reserved)} reserved rows" if reserved else ""
        cure = ", or reserve fewer (--data.reserved)" if reserved else ""
        raise UserError(
            f"{asked} needs {count} normal samples for each forget sample, but the retain pool has {len(pool)}{aside}; "
            f"lower --data.{asked.split()[0]} or give more retain records{cure}"
        )
    if group_size == 1:
        return [Group(record) for record in forget]
    return pairing.pair(forget, pool, count, seed)


def extended(
    groups: Sequence[Group],
    alternative: AlternativeKind | None,
    retain: int,
    pool: Sequence[Record],
    refusals: Sequence[str],
    seed: int,
) -> list[Group]:
    """Adds an alternative answer and random retain samples to each group, as far as the method needs them.

    Each draw depends on (seed, forget record) alone, so it is the same in every process, epoch and resumed run.

    Raises:
        UserError: a forget record is plain text, which has no question to answer differently; there is no normal
            sample whose answer could be used; or the pool is too small.
    """
    found = []
    for group in groups:
        draws = np.random.default_rng([seed, 0xA17E, int(record_hash(group.forget), 16)])
        if alternative not in (None, "data"):
            answer = _alternative_answer(group, alternative, pool, refusals, draws)
            record = Record(f"{group.forget.id}/{alternative}", group.forget.question, answer)
            group = replace(group, alternatives=(record,))
        if retain:
            normals = {record.id for record in group.normals}
            others = [record for record in pool if record.id not in normals]
            if len(others) < retain:
                raise UserError(
                    f"the loss asks for {retain} random retain samples beside {len(normals)} normal samples, but the "
                    f"retain pool has {len(pool)} records; ask for fewer or give more retain records"
                )
            places = draws.choice(len(others), size=retain, replace=False)
            group = replace(group, retain=tuple(others[place] for place in places))
        found.append(group)
    return found


def _alternative_answer(
    group: Group,
    kind: AlternativeKind,
    pool: Sequence[Record],
    refusals: Sequence[str],
    draws: np.random.Generator,
) -> str:
    forget = group.forget
    if forget.is_text:
        raise UserError(
            f"forget record {forget.id} is plain text: it has no question that a {kind.replace('_', ' ')} could be "
            "given to; take a method without other answers"
        )
    if kind == "refusal":
        return refusals[int(draws.integers(len(refusals)))]
    if kind == "normal_answer":
        if not group.normals:
            raise UserError(
                "alternative normal_answer takes the answer of a normal sample: group_size must be at least 2 "
                "(set --data.group_size)"
            )
        return group.normals[0].answer
    for place in draws.permutation(len(pool)):
        other = pool[int(place)]
        if other.content[1] != forget.content[1]:
            return other.answer
    raise UserError(f"the retain pool has no answer other than that of forget record {forget.id}; give more records")
