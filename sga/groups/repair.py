"""Repair of groups: normals that fail the checks are replaced, dropped, or kept with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sga.data.records import Record
from sga.groups.checks import Checker
from sga.groups.group import Group, Origin
from sga.groups.pairing import NearestNormals

OnFailure = Literal["replace", "drop", "keep"]


@dataclass(frozen=True)
class Failure:
    """A normal sample that fails the checks.

    Attributes:
        forget_id: Id of its group's forget record.
        normal_id: Id of the normal sample.
        reasons: Reasons of the failed checks, in words.
        outcome: Outcome of the repair: ``kept``, ``dropped``, or the id of the record that replaces it.
    """

    forget_id: str
    normal_id: str
    reasons: tuple[str, ...]
    outcome: str


def mended(
    groups: Sequence[Group],
    checker: Checker,
    on_failure: OnFailure,
    pool: Sequence[Record] = (),
    nearest: NearestNormals = NearestNormals(),  # noqa: B008  (frozen)
) -> tuple[list[Group], list[Failure]]:
    """Checks all normals of groups, and replaces, drops or marks those that fail; also returns the failures.

    Args:
        groups: Groups with normals of any origin.
        checker: Checker that was made for the groups' forget records.
        on_failure: Action for a failed normal: ``replace`` uses the nearest retain record that passes and is not in the
            group; ``drop`` makes the group smaller, which `read_groups` refuses below K−1; ``keep`` records the
            reasons.
        pool: Retain records that replacements are chosen from.
        nearest: Pairing that finds the replacements.

    Raises:
        UserError: too few retain records pass to replace all failed normals.
    """
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    for row, group in enumerate(groups):
        passed: list[Record] = []
        for place, normal in enumerate(group.normals):
            reasons = checker.failures(normal, group.forget, passed)
            if reasons:
                found[row, place] = tuple(reasons)
            else:
                passed.append(normal)
    substitutes: dict[int, list[tuple[Record, float | None, Origin]]] = {}
    if on_failure == "replace" and found:
        rows = sorted({row for row, _ in found})
        # As many passing candidates as a group has members suffice, because those that pass are in it already.
        count = min(len(pool), max(len(groups[row].normals) for row in rows))
        found_groups = replace(nearest, checks=checker.checks).pair(
            [groups[row].forget for row in rows], pool, count, 0
        )
        for row, candidates in zip(rows, found_groups, strict=True):
            in_it = {normal.content for normal in groups[row].normals}
            substitutes[row] = [
                (normal, candidates.scores[place], candidates.origin(place))
                for place, normal in enumerate(candidates.normals)
                if normal.content not in in_it
            ]
    mended_groups, failures = [], []
    for row, group in enumerate(groups):
        kept: list[tuple[Record, float | None, Origin]] = []
        for place, normal in enumerate(group.normals):
            member = (normal, group.scores[place], replace(group.origin(place), checks=found.get((row, place), ())))
            if (row, place) not in found:
                kept.append(member)
                continue
            outcome = "kept" if on_failure == "keep" else "dropped"
            if on_failure == "keep":
                kept.append(member)
            elif substitutes.get(row):
                kept.append(substitutes[row].pop(0))
                outcome = kept[-1][0].id
            failures.append(Failure(group.forget.id, normal.id, found[row, place], outcome))
        records, scores, origins = zip(*kept, strict=True) if kept else ((), (), ())
        mended_groups.append(replace(group, normals=tuple(records), scores=tuple(scores), origins=tuple(origins)))
    return mended_groups, failures
