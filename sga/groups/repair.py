"""Groups checked, and what becomes of normals that fail: replaced, dropped or kept with their reasons."""

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
    """A normal that fails the checks.

    Attributes:
        forget_id: Its group.
        normal_id: Itself.
        reasons: What is wrong with it.
        outcome: What became of it: ``kept``, ``dropped``, or the id of the record that stands in its place.
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
    """Groups whose normals pass the checks, are gone, or carry their reasons.

    Args:
        groups: Groups of any origin.
        checker: Made for their forget records.
        on_failure: ``replace`` takes the nearest retain record that passes and is not in the group; ``drop`` makes the
            group smaller, which `read_groups` refuses where fewer than K−1 are left; ``keep`` notes the reasons.
        pool: The retain records, for replacements.
        nearest: How replacements are found.

    Raises:
        UserError: there are not enough records that pass to replace those that do not.
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
        # As many candidates that pass as a group has members: enough for those that fail, the others being in it.
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
