"""The group file, groups as JSON Lines: `pairs.jsonl` of a run, and the files that `sga normals` writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from sga.data.records import Record, record_from_row
from sga.errors import UserError
from sga.files import read_json_lines, write_json_lines
from sga.groups.group import Group, Origin, record_hash


def write_groups(path: Path, groups: Sequence[Group], texts: bool = True) -> None:
    """Writes a group file: JSON Lines, one forget record with its normals per line.

    Each normal has id, hash, score and origin, and its text unless `texts` is False. Alternatives that are trained on
    as normals have the same without a score.
    """

    def row(record: Record) -> dict[str, Any]:
        text = {"question": record.question, "answer": record.answer} if texts else {}
        return {"id": record.id, **text, "sha256": record_hash(record)}

    lines = []
    for group in groups:
        normals = [
            {**row(record), "score": group.scores[index], **described(group.origin(index))}
            for index, record in enumerate(group.normals)
        ]
        forget = row(group.forget)
        line = {"forget_id": forget.pop("id"), "forget": forget, "normals": normals}
        if group.alternative_origins:
            pairs = zip(group.alternatives, group.alternative_origins, strict=True)
            line["alternatives"] = [{**row(record), **described(origin)} for record, origin in pairs]
        lines.append(line)
    write_json_lines(path, lines)


def described(origin: Origin) -> dict[str, Any]:
    """Origin as a JSON object, without unknown fields."""
    found = {"by": origin.by, "prompt": origin.prompt, "checks": list(origin.checks)}
    return {"source": origin.source} | {name: value for name, value in found.items() if value}


def read_groups(
    path: Path,
    forget: Sequence[Record],
    pool: Sequence[Record],
    group_size: int,
    pool_size: int | None = None,
    remade: Callable[[], Sequence[Group]] | None = None,
    reserved: Sequence[Record] = (),
    alternatives: int = 0,
) -> list[Group]:
    """Reads a group file and looks up the records that it names.

    A normal with ``source`` ``retain`` is the record of that id, with the hash from the time of pairing. Any other
    normal has its text in the file, and so has one whose text was edited there, whatever its hash.

    Args:
        path: Path of the file, in JSON Lines.
        forget: Records to forget; each needs a line.
        pool: Retain records, without the reserved ones.
        group_size: Size K of a group; a line has K−1 normals.
        pool_size: Largest number of normals of a line, which then has at least K−1; None for exactly K−1.
        remade: Function that makes the same groups again, for files without texts whose normals are not all retain
            records; None without it.
        reserved: Retain records that utility is measured on, which no line may have.
        alternatives: Number of alternatives of a line; a file without any alternatives is also accepted.

    Raises:
        UserError: a line is malformed, names a record that does not exist or whose text has changed, is repeated, has
            a wrong number of normals, or has a forget or reserved record among them; or a forget record has no line.
    """
    forget_by_id, pool_by_id = ({record.id: record for record in records} for records in (forget, pool))
    contents = {record.content: record.id for record in forget}
    set_aside = {record.id for record in reserved}, {record.content for record in reserved}
    own: dict[str, Record] = {}
    groups: dict[str, Group] = {}

    @cache  # once for all normals of the file
    def made() -> dict[str, Record]:
        groups = remade() if remade is not None else ()
        return {record.id: record for group in groups for record in (*group.normals, *group.alternatives)}

    def normal(item: Mapping[str, Any], where: str) -> tuple[Record, Origin]:
        origin = Origin(
            item.get("source", "retain"), item.get("by"), item.get("prompt"), tuple(item.get("checks") or ())
        )
        record_id, record_hash_ = item["id"], item.get("sha256")
        if not isinstance(item.get("answer"), str):  # given by name only
            if origin.source != "retain" and remade is not None:
                return _named(made(), record_id, item["sha256"], where), origin
            return _named(pool_by_id, record_id, item["sha256"], where), origin
        text = record_from_row({"question": item.get("question") or "", "answer": item["answer"]}, record_id, where)
        named = pool_by_id.get(record_id)
        if named is not None and origin.source == "retain" and record_hash(text) == record_hash(named):
            return named, origin
        if origin.source == "retain":
            # The hash is from the time of pairing: if it matches the text, the data has changed, or is other data.
            if record_hash_ is not None and record_hash_ == record_hash(text):
                return _named(pool_by_id, record_id, record_hash_, where), origin
            if named is not None and record_hash_ is not None and record_hash_ != record_hash(named):
                return _named(pool_by_id, record_id, record_hash_, where), origin
            text = replace(text, id=f"{record_id}/edited-{record_hash(text)[:6]}")
            origin = replace(origin, source="edited", by=None, checks=())
        return only(text, origin, where), origin

    def only(text: Record, origin: Origin, where: str) -> Record:
        """The single record with this id in the file, because sequences are encoded by id."""
        if text.id in pool_by_id or text.id in forget_by_id:
            raise UserError(f"{where}: {text.id} is the id of another record; give the {origin.source} text its own")
        if own.setdefault(text.id, text).content != text.content:
            raise UserError(f"{where}: {text.id} stands for two different texts in this file; give each its own id")
        return own[text.id]

    for number, line in read_json_lines(path):
        where = f"{path}:{number}"
        try:
            forget_id, forget_hash = line["forget_id"], line["forget"]["sha256"]
            items = [dict(item) for item in line["normals"]]
            scores = tuple(None if _unscored(item) else float(item["score"]) for item in items)
            ids = [item["id"] for item in items]
            named_only = [item["sha256"] for item in items if "answer" not in item]
            words = [item.get(name) for item in items for name in ("source", "by", "prompt")]
            words += [reason for item in items for reason in item.get("checks") or ()]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: not a line of a pairing ({error!r}); delete the file to pair afresh") from None
        if not all(isinstance(name, str) for name in (forget_id, forget_hash, *ids, *named_only)):
            raise UserError(f"{where}: ids and hashes must be strings; delete the file to pair afresh")
        if not all(score is None or math.isfinite(score) for score in scores):
            raise UserError(f"{where}: scores must be finite numbers; delete the file to pair afresh")
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
        for item in items:
            _refuse_reserved(item["id"] in set_aside[0] and item.get("source", "retain") == "retain", item, where)
        found = [normal(item, where) for item in items]
        records = [record for record, _ in found]
        for item, record in zip(items, records, strict=True):
            _refuse_reserved(record.content in set_aside[1], item, where)
        if len({record.id for record in records}) < len(records):
            raise UserError(f"{where}: a normal sample stands twice in the group of {forget_id}; replace one of them")
        for record in records:
            if record.content in contents:
                raise UserError(
                    f"{where}: normal {record.id} says what {contents[record.content]} says, which is to be forgotten; "
                    "replace it"
                )
        origins = tuple(origin for _, origin in found)
        others = [
            (only(record, origin, where), origin)
            for record, origin in _read_alternatives(line.get("alternatives") or [], forgotten, made, where)
        ]
        groups[forget_id] = Group(
            forgotten,
            tuple(records),
            scores,
            origins if any(one != Origin() for one in origins) else (),
            tuple(record for record, _ in others),
            tuple(origin for _, origin in others),
        )
    missing = [record.id for record in forget if record.id not in groups]
    if missing:
        raise UserError(
            f"{path}: no line for {len(missing)} forget records, first {missing[0]}; delete it to pair afresh"
        )
    found_groups = [groups[record.id] for record in forget]
    counts = {len(group.alternatives) for group in found_groups}
    if counts not in ({0}, {alternatives}):
        raise UserError(
            f"{path}: the groups have {' or '.join(map(str, sorted(counts)))} alternatives, and {alternatives} are "
            "asked for; set --data.alternatives, its count and pool as the file has them, or pair afresh"
        )
    return found_groups


def _read_alternatives(
    items: Any, forget: Record, made: Callable[[], Mapping[str, Record]], where: str
) -> list[tuple[Record, Origin]]:
    """Alternatives of a line with their origins; a text that does not match its hash was edited by hand."""
    found: list[tuple[Record, Origin]] = []
    try:
        for item in items:
            origin = Origin(item["source"], item.get("by"), item.get("prompt"))
            if "answer" not in item:  # the file of a run that writes no texts
                record = _named(made(), item["id"], item["sha256"], where)
            else:
                row = {"question": forget.question, "answer": item["answer"]}
                record = record_from_row(row, item["id"], where)
                if item.get("sha256") not in (None, record_hash(record)):
                    origin = Origin("edited")
            found.append((record, origin))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: each of 'alternatives' needs id, source and answer ({error!r})") from None
    if not all(isinstance(record.id, str) for record, _ in found):
        raise UserError(f"{where}: ids of 'alternatives' must be strings")
    if len({record.id for record, _ in found}) < len(found):
        raise UserError(f"{where}: two alternatives have one id; give each its own")
    return found


def _refuse_reserved(reserved: bool, item: Mapping[str, Any], where: str) -> None:
    if reserved:
        raise UserError(
            f"{where}: normal {item['id']} is one of the reserved rows, on which utility is measured; pair afresh, or "
            "reserve none, as before there were reserved rows (--data.reserved 0)"
        )


def _unscored(item: Mapping[str, Any]) -> bool:
    """True for a normal without a score, which is allowed only if its text is in the file."""
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
