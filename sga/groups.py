"""Groups of K: one forget sample and the K−1 normal samples that are paired with it before training."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sga.data.records import Record, read_jsonl, record_from_row
from sga.errors import UserError
from sga.files import write_text
from sga.normals.checks import Checker, Checks
from sga.normals.embedders import TFIDF, Embedder, ModelStates
from sga.normals.search import Embedding, nearest, similarities
from sga.normals.selection import select


@dataclass(frozen=True)
class Origin:
    """Where a normal sample comes from.

    Attributes:
        source: ``retain`` for a record of the retain pool, which a file need only name; any other word (``generated``,
            ``edited``, ``corrupted``, …) for text that stands in the file.
        by: The embedder that found it, or the model that wrote it.
        prompt: Hash of the prompt template that it was written by.
        checks: Reasons for which it would have been refused, had it not been kept by choice.
    """

    source: str = "retain"
    by: str | None = None
    prompt: str | None = None
    checks: tuple[str, ...] = ()


AlternativeKind = Literal["refusal", "retain_answer", "normal_answer"]
"""Another answer to a forget question: a refusal, the answer of a random record of the retain pool, or that of the
group's most similar normal sample."""


@dataclass(frozen=True)
class Group:
    """A forget sample with its normal samples, and with what else a method reads.

    Attributes:
        forget: The sample to forget (for plain fine-tuning: the sample to learn).
        normals: K−1 samples to keep, or a larger pool from which each epoch draws K−1; most similar first.
        scores: Their similarity to the forget sample, one each; cosine in [−1, 1] for embedders, 0 for random ones,
            None where nobody has computed one.
        origins: Where they come from, one each; empty where all are plain records of the retain pool.
        alternatives: The forget question with another answer, for methods that ask for one.
        retain: Random records of the retain pool that are none of the normals, for methods that ask for them.
    """

    forget: Record
    normals: tuple[Record, ...] = ()
    scores: tuple[float | None, ...] = ()
    origins: tuple[Origin, ...] = ()
    alternatives: tuple[Record, ...] = ()
    retain: tuple[Record, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.normals) == len(self.scores) and len(self.origins) in (0, len(self.normals)), "one each"

    def origin(self, index: int) -> Origin:
        """Where a normal comes from."""
        return self.origins[index] if self.origins else Origin()


class Pairing(ABC):
    """Chooses normal samples. Implementations are frozen dataclasses, chosen by class path in a config."""

    @abstractmethod
    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        """Gives each forget record `count` distinct normals; the same arguments give the same groups."""


@dataclass(frozen=True)
class NearestNormals(Pairing):
    """The nearest pool records by cosine of embedded question and answer; ties go to pool order.

    Args:
        embedder: What makes vectors of texts.
        diversity: d of maximal marginal relevance, (1 − d)·similarity to the forget sample − d·largest similarity to a
            normal chosen before; 0 takes the nearest.
        answer_ceiling: Largest cosine that a normal's answer may have to the forget answer, so that a normal does not
            teach back what is to be forgotten; null for no ceiling.
        max_reuse: How many forget samples may share a retain record; null for any number.
        checks: What each normal must satisfy, else the next candidate takes its place; null checks nothing.
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
            scores, found = nearest(queries, vectors, examined, decimals)
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
        """Whether the ceiling and the checks let a forget record (by index) have a pool record."""
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
    """Pool records at random, without replacement within a group: the control for every retrieval."""

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
    """A pairing whose embedders by model states, at whatever depth, read the states of `model` unless they name one."""

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
) -> list[Group]:
    """Pairs every forget record with group_size − 1 records of the pool, or with `pool_size` to draw those from.

    Raises:
        UserError: K is below 1 or larger than the pool allows, or a forget record also stands in the pool (same
            question and answer, white space and case apart): descending on it would undo the forgetting.
    """
    if group_size < 1:
        raise UserError(f"group_size must be at least 1, got {group_size} (1 is gradient ascent without normal data)")
    kept = {record.content: record for record in pool}
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
        raise UserError(
            f"{asked} needs {count} normal samples for each forget sample, but the retain pool has {len(pool)}; lower "
            f"--data.{asked.split()[0]} or give more retain records"
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
    """Groups with another answer to each forget question and with random retain samples, where these are asked for.

    Each draw follows from (seed, forget record) alone, so that it is the same in every process, epoch and resumed run.

    Raises:
        UserError: a forget record is plain text, which has no question to answer otherwise; there is no normal sample
            whose answer could be taken; or the pool is too small.
    """
    found = []
    for group in groups:
        draws = np.random.default_rng([seed, 0xA17E, int(record_hash(group.forget), 16)])
        if alternative is not None:
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


def record_hash(record: Record) -> str:
    """First 16 hex digits of the SHA-256 of a record's question and answer."""
    return hashlib.sha256(json.dumps([record.question, record.answer]).encode()).hexdigest()[:16]


def write_groups(path: Path, groups: Sequence[Group], texts: bool = True) -> None:
    """Writes a normal-data file: JSONL, one forget record with its normals a line.

    Each normal has id, hash, score and origin, and its text unless `texts` is False.
    """

    def row(record: Record) -> dict[str, Any]:
        text = {"question": record.question, "answer": record.answer} if texts else {}
        return {"id": record.id, **text, "sha256": record_hash(record)}

    lines = []
    for group in groups:
        normals = [
            {**row(record), "score": group.scores[index], **_described(group.origin(index))}
            for index, record in enumerate(group.normals)
        ]
        forget = row(group.forget)
        lines.append(
            json.dumps({"forget_id": forget.pop("id"), "forget": forget, "normals": normals}, ensure_ascii=False)
        )
    write_text(path, "".join(line + "\n" for line in lines))


def _described(origin: Origin) -> dict[str, Any]:
    found = {"by": origin.by, "prompt": origin.prompt, "checks": list(origin.checks)}
    return {"source": origin.source} | {name: value for name, value in found.items() if value}


def read_groups(
    path: Path,
    forget: Sequence[Record],
    pool: Sequence[Record],
    group_size: int,
    pool_size: int | None = None,
    remade: Callable[[], Sequence[Group]] | None = None,
) -> list[Group]:
    """Reads a normal-data file back against the records that it names.

    A normal with ``source`` ``retain`` is the record of that id, with the hash of the time of pairing. Any other
    stands in the file with its text; so does one whose text was edited there, whatever its hash says.

    Args:
        path: The file.
        forget: The records to forget; each needs a line.
        pool: The retain records.
        group_size: K; a line has K−1 normals.
        pool_size: With it a line has from K−1 to so many.
        remade: The same groups made again, for files without texts whose normals are not all of the pool.

    Raises:
        UserError: a line is malformed, names a record that is not there or whose text has changed, is repeated, has
            another number of normals, a forget sample among them, or a forget record has no line.
    """
    forget_by_id, pool_by_id = ({record.id: record for record in records} for records in (forget, pool))
    contents = {record.content: record.id for record in forget}
    own: dict[str, Record] = {}
    groups: dict[str, Group] = {}

    def normal(item: Mapping[str, Any], where: str) -> tuple[Record, Origin]:
        origin = Origin(
            item.get("source", "retain"), item.get("by"), item.get("prompt"), tuple(item.get("checks") or ())
        )
        record_id, record_hash_ = item["id"], item.get("sha256")
        if not isinstance(item.get("answer"), str):  # nothing but a name
            if origin.source != "retain" and remade is not None:
                made = {one.id: one for group in remade() for one in group.normals}
                return _named(made, record_id, item["sha256"], where), origin
            return _named(pool_by_id, record_id, item["sha256"], where), origin
        text = record_from_row({"question": item.get("question") or "", "answer": item["answer"]}, record_id, where)
        named = pool_by_id.get(record_id)
        if named is not None and origin.source == "retain" and record_hash(text) == record_hash(named):
            return named, origin
        if origin.source == "retain":
            # The hash is of the time of pairing: if it fits the text, then it is the data that changed, or is another.
            if record_hash_ is not None and record_hash_ == record_hash(text):
                return _named(pool_by_id, record_id, record_hash_, where), origin
            if named is not None and record_hash_ is not None and record_hash_ != record_hash(named):
                return _named(pool_by_id, record_id, record_hash_, where), origin
            text = replace(text, id=f"{record_id}/edited-{record_hash(text)[:6]}")
            origin = replace(origin, source="edited", by=None, checks=())
        if text.id in pool_by_id or text.id in forget_by_id:
            raise UserError(f"{where}: {text.id} is the id of another record; give the {origin.source} text its own")
        if own.setdefault(text.id, text).content != text.content:
            raise UserError(f"{where}: {text.id} stands for two different texts in this file; give each its own id")
        return own[text.id], origin

    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        try:
            forget_id, forget_hash = line["forget_id"], line["forget"]["sha256"]
            items = [dict(item) for item in line["normals"]]
            scores = tuple(None if _unscored(item) else float(item["score"]) for item in items)
            ids = [item["id"] for item in items]
            named_only = [item["sha256"] for item in items if "answer" not in item]
            words = [item.get(name) for item in items for name in ("source", "by", "prompt")]
            words += [reason for item in items for reason in item.get("checks") or ()]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a line of a pairing ({error!r}); delete the file to pair afresh") from None
        if not all(isinstance(name, str) for name in (forget_id, forget_hash, *ids, *named_only)):
            raise UserError(f"{where}: ids and hashes must be strings; delete the file to pair afresh")
        if not all(word is None or isinstance(word, str) for word in words):
            raise UserError(f"{where}: source, by, prompt and each of checks must be strings")
        if forget_id in groups:
            raise UserError(f"{where}: forget record {forget_id} has a second line; delete one of them")
        low, high = group_size - 1, group_size - 1 if pool_size is None else pool_size
        if not low <= len(items) <= high:
            needed = f"{low}" if low == high else f"{low} to {high}"
            raise UserError(
                f"{where}: {len(items)} normal samples, but group_size {group_size} needs {needed}; "
                "set --data.group_size or --data.pool_size to match, or delete the file to pair afresh"
            )
        forgotten = _named(forget_by_id, forget_id, forget_hash, where)
        found = [normal(item, where) for item in items]
        records = [record for record, _ in found]
        if len({record.id for record in records}) < len(records):
            raise UserError(f"{where}: a normal sample stands twice in the group of {forget_id}; replace one of them")
        for record in records:
            if record.content in contents:
                raise UserError(
                    f"{where}: normal {record.id} says what {contents[record.content]} says, which is to be forgotten; "
                    "replace it"
                )
        origins = tuple(origin for _, origin in found)
        groups[forget_id] = Group(
            forgotten, tuple(records), scores, origins if any(one != Origin() for one in origins) else ()
        )
    missing = [record.id for record in forget if record.id not in groups]
    if missing:
        raise UserError(
            f"{path}: no line for {len(missing)} forget records, first {missing[0]}; delete it to pair afresh"
        )
    return [groups[record.id] for record in forget]


def _unscored(item: Mapping[str, Any]) -> bool:
    """Only text that stands in the file need not have a score."""
    return item.get("score") is None and "answer" in item


def _named(records: Mapping[str, Record], record_id: str, expected_hash: str, where: str) -> Record:
    if record_id not in records:
        raise UserError(f"{where}: record {record_id} is not in the data; delete the file to pair afresh")
    if record_hash(records[record_id]) != expected_hash:
        raise UserError(
            f"{where}: the text of record {record_id} has changed since the pairing was made; "
            "delete the file to pair afresh"
        )
    return records[record_id]
