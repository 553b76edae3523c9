"""Groups of K: one forget sample and the K−1 normal samples that are paired with it before training."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sga.data.records import Record, read_jsonl
from sga.errors import UserError
from sga.files import write_text

AlternativeKind = Literal["refusal", "retain_answer", "normal_answer"]
"""Another answer to a forget question: a refusal, the answer of a random record of the retain pool, or that of the
group's most similar normal sample."""


@dataclass(frozen=True)
class Group:
    """A forget sample with its normal samples, and with what else a method reads.

    Attributes:
        forget: The sample to forget (for plain fine-tuning: the sample to learn).
        normals: K−1 samples to keep, most similar first.
        scores: Their similarity to the forget sample, one each; cosine in [−1, 1] for embedders, 0 for random ones.
        alternatives: The forget question with another answer, for methods that ask for one.
        retain: Random records of the retain pool that are none of the normals, for methods that ask for them.
    """

    forget: Record
    normals: tuple[Record, ...] = ()
    scores: tuple[float, ...] = ()
    alternatives: tuple[Record, ...] = ()
    retain: tuple[Record, ...] = ()


class Pairing(ABC):
    """Chooses normal samples. Implementations are frozen dataclasses, chosen by class path in a config."""

    @abstractmethod
    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        """Gives each forget record `count` distinct records of the pool; the same arguments give the same groups."""


@dataclass(frozen=True)
class NearestNormals(Pairing):
    """The K−1 nearest pool records by cosine of TF-IDF vectors over question and answer; ties go to pool order.

    Args:
        ngrams: Longest word n-gram that counts as a term.
    """

    ngrams: int = 2

    def pair(self, forget: Sequence[Record], pool: Sequence[Record], count: int, seed: int) -> list[Group]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, self.ngrams), sublinear_tf=True)
        try:
            pool_vectors = vectorizer.fit_transform([f"{record.question} {record.answer}" for record in pool])
        except ValueError as error:
            raise UserError(
                f"the retain pool has no words that TF-IDF could compare ({error}); use --data.pairing=RandomNormals"
            ) from None
        forget_vectors = vectorizer.transform([f"{record.question} {record.answer}" for record in forget])
        groups = []
        for start in range(0, len(forget), 256):  # blocks, so that N x M is never held whole
            similarity = (forget_vectors[start : start + 256] @ pool_vectors.T).toarray().round(9)  # [block, M]
            order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
            for row, record in enumerate(forget[start : start + 256]):
                chosen = order[row]
                groups.append(
                    Group(
                        record,
                        tuple(pool[index] for index in chosen),
                        tuple(round(float(similarity[row, index]), 6) for index in chosen),
                    )
                )
        return groups


@dataclass(frozen=True)
class RandomNormals(Pairing):
    """K−1 pool records at random, without replacement within a group: the control for every retrieval."""

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


def make_groups(
    forget: Sequence[Record], pool: Sequence[Record], group_size: int, pairing: Pairing, seed: int
) -> list[Group]:
    """Pairs every forget record with group_size − 1 records of the pool.

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
    if group_size - 1 > len(pool):
        raise UserError(
            f"group_size {group_size} needs {group_size - 1} normal samples for each forget sample, but the retain "
            f"pool has {len(pool)}; lower --data.group_size or give more retain records"
        )
    if group_size == 1:
        return [Group(record) for record in forget]
    return pairing.pair(forget, pool, group_size - 1, seed)


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
    """Writes groups as JSONL: ids, scores, hashes, and the texts unless `texts` is False."""

    def row(record: Record) -> dict[str, Any]:
        text = {"question": record.question, "answer": record.answer} if texts else {}
        return {"id": record.id, **text, "sha256": record_hash(record)}

    lines = []
    for group in groups:
        normals = [{**row(record), "score": score} for record, score in zip(group.normals, group.scores, strict=True)]
        forget = row(group.forget)
        lines.append(json.dumps({"forget_id": forget.pop("id"), "forget": forget, "normals": normals}))
    write_text(path, "".join(line + "\n" for line in lines))


def read_groups(path: Path, forget: Sequence[Record], pool: Sequence[Record], group_size: int) -> list[Group]:
    """Reads groups written by `write_groups` back against the records that they name.

    Raises:
        UserError: a line is malformed, names a record that is not there or whose text has changed, is repeated, has
            another number of normals than K−1, or a forget record has no line.
    """
    forget_by_id, pool_by_id = ({record.id: record for record in records} for records in (forget, pool))
    groups: dict[str, Group] = {}
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        try:
            forget_id, forget_hash = line["forget_id"], line["forget"]["sha256"]
            normals = [(item["id"], item["sha256"], float(item["score"])) for item in line["normals"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a line of a pairing ({error!r}); delete the file to pair afresh") from None
        if not all(isinstance(name, str) for name in (forget_id, *(item_id for item_id, _, _ in normals))):
            raise UserError(f"{where}: ids must be strings; delete the file to pair afresh")
        if len({item_id for item_id, _, _ in normals}) < len(normals):
            raise UserError(f"{where}: a normal sample stands twice in the group of {forget_id}; replace one of them")
        if forget_id in groups:
            raise UserError(f"{where}: forget record {forget_id} has a second line; delete one of them")
        if len(normals) != group_size - 1:
            raise UserError(
                f"{where}: {len(normals)} normal samples, but group_size {group_size} needs {group_size - 1}; "
                "set --data.group_size to match, or delete the file to pair afresh"
            )
        groups[forget_id] = Group(
            _named(forget_by_id, forget_id, forget_hash, where),
            tuple(_named(pool_by_id, item_id, item_hash, where) for item_id, item_hash, _ in normals),
            tuple(score for _, _, score in normals),
        )
    missing = [record.id for record in forget if record.id not in groups]
    if missing:
        raise UserError(
            f"{path}: no line for {len(missing)} forget records, first {missing[0]}; delete it to pair afresh"
        )
    return [groups[record.id] for record in forget]


def _named(records: Mapping[str, Record], record_id: str, expected_hash: str, where: str) -> Record:
    if record_id not in records:
        raise UserError(f"{where}: record {record_id} is not in the data; delete the file to pair afresh")
    if record_hash(records[record_id]) != expected_hash:
        raise UserError(
            f"{where}: the text of record {record_id} has changed since the pairing was made; "
            "delete the file to pair afresh"
        )
    return records[record_id]
