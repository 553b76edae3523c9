"""Groups: the nearest by a second, slow computation; what is refused; and a pairing written and read back."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rows_about

from sga.data.records import Record, record_from_row
from sga.data.tofu import TOFU
from sga.errors import UserError
from sga.groups.embedders import TFIDF
from sga.groups.group import Group, record_hash
from sga.groups.group_file import read_groups, write_groups
from sga.groups.pairing import NearestNormals, Pairing, RandomNormals, make_groups


def records(name: str, people: Sequence[int]) -> list[Record]:
    rows = [row for person in people for row in rows_about(person)]
    return [record_from_row(row, f"{name}/{index}", "test") for index, row in enumerate(rows)]


FORGET = records("forget", range(3))
POOL = records("retain", range(3, 10))


def slow_similarity(forget: Sequence[Record], pool: Sequence[Record], ngrams: int) -> np.ndarray:
    """Cosine of TF-IDF vectors written out: tf = 1 + ln n, idf = 1 + ln((1 + N)/(1 + df)) over the pool's terms."""

    def terms(record: Record) -> Counter[str]:
        words = re.findall(r"\b\w\w+\b", f"{record.question} {record.answer}".lower())
        return Counter(" ".join(words[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(words) - n + 1))

    counts = [terms(record) for record in pool]
    vocabulary = sorted(set().union(*counts))
    idf = {term: 1 + math.log((1 + len(pool)) / (1 + sum(term in count for count in counts))) for term in vocabulary}

    def vector(count: Counter[str]) -> np.ndarray:
        raw = np.array([(1 + math.log(count[term])) * idf[term] if term in count else 0.0 for term in vocabulary])
        return raw / np.linalg.norm(raw)

    return np.array([vector(terms(record)) for record in forget]) @ np.array([vector(count) for count in counts]).T


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_the_nearest_normals_are_those_of_the_slow_computation(ngrams: int) -> None:
    similarity = slow_similarity(FORGET, POOL, ngrams)
    groups = make_groups(FORGET, POOL, 5, NearestNormals(TFIDF(ngrams)), seed=0)
    assert [group.forget for group in groups] == FORGET
    for row, group in zip(similarity, groups, strict=True):
        best = np.argsort(-np.round(row, 9), kind="stable")[:4]
        place = {record.id: index for index, record in enumerate(POOL)}
        found = [place[normal.id] for normal in group.normals]
        untied = [index for index in best if (np.round(row, 9) == np.round(row[index], 9)).sum() == 1]
        assert [index for index in found if index in untied] == untied
        np.testing.assert_allclose(row[found], row[best], rtol=0, atol=1e-9)  # of equals whichever
        np.testing.assert_allclose(group.scores, row[best], rtol=0, atol=1e-6)  # they are rounded to six digits
        assert list(group.scores) == sorted(group.scores, reverse=True)


def test_nearest_normals_are_about_the_same_thing_and_not_just_the_first() -> None:
    """A question on a birthplace is nearest to such questions, one on a trade to those."""
    for group in make_groups(FORGET, POOL, 4, NearestNormals(), seed=0):
        assert {normal.question.split()[0] for normal in group.normals} == {group.forget.question.split()[0]}


def test_equals_are_ordered_for_each_forget_record_whatever_the_order_of_the_files() -> None:
    """Of ten equally near records, 40 forget records take each about 40·3/10 = 12 times; in pool order 40 or 0."""
    pool = [Record(f"p/{index}", "Which town?", f"Town {index}") for index in range(10)]  # digits alone are no terms
    forget = [Record(f"f/{index}", "Which town?", f"Oslo {index}") for index in range(40)]
    groups = make_groups(forget, pool, 4, NearestNormals(), seed=0)
    assert {score for group in groups for score in group.scores} == {groups[0].scores[0]}
    uses = Counter(normal.id for group in groups for normal in group.normals)
    assert len(uses) == 10 and max(uses.values()) <= 20
    assert make_groups(forget, pool[::-1], 4, NearestNormals(), seed=0) == groups
    assert make_groups(forget[7:8], pool, 4, NearestNormals(), seed=0) == [groups[7]], "others do not count"
    assert make_groups(forget, pool, 4, NearestNormals(), seed=1) == groups


def test_more_forget_records_than_a_block_are_paired_one_by_one() -> None:
    """Similarities are computed in blocks of 256; the groups of 300 records are those of each record alone."""
    forget = [Record(f"f/{index}", f"Where was person{index % 7} born?", f"In place{index}.") for index in range(300)]
    groups = make_groups(forget, POOL, 3, NearestNormals(), seed=0)
    assert len(groups) == 300
    for index in (0, 255, 256, 299):
        assert make_groups([forget[index]], POOL, 3, NearestNormals(), seed=0) == [groups[index]]


def test_the_nearest_normal_may_be_in_the_other_unicode_spelling() -> None:
    """Words with accents are the same terms in composed (NFC) and in decomposed characters (NFD)."""
    pool = [Record("p/0", "Qui est Béla ?", "Un juge."), Record("p/1", "Où naquit Zoé Béart ?", "À Orléans.")]
    for form in ("NFC", "NFD"):
        question = unicodedata.normalize(form, "Où vécut Zoé Béart ?")
        [group] = make_groups([Record("f/0", question, "À Tours.")], pool, 2, NearestNormals(), seed=0)
        assert [normal.id for normal in group.normals] == ["p/1"] and group.scores[0] > 0.3
    twin = Record("f/0", *(unicodedata.normalize("NFD", text) for text in (pool[1].question, pool[1].answer)))
    with pytest.raises(UserError, match="f/0 also stands in the retain pool, as p/1"):
        make_groups([twin], pool, 2, NearestNormals(), seed=0)


@pytest.mark.parametrize("pairing", [NearestNormals(), RandomNormals()])
def test_groups_have_distinct_normals_of_the_pool_and_the_same_arguments_give_the_same(pairing: Pairing) -> None:
    groups = make_groups(FORGET, POOL, 6, pairing, seed=4)
    assert groups == make_groups(FORGET, POOL, 6, pairing, seed=4)
    forget = {record.content for record in FORGET}
    for group in groups:
        assert len({normal.id for normal in group.normals}) == len(group.normals) == len(group.scores) == 5
        assert set(group.normals) <= set(POOL)
        assert not {normal.content for normal in group.normals} & forget


def test_random_pairing_depends_on_the_seed_and_nearest_does_not() -> None:
    assert make_groups(FORGET, POOL, 4, RandomNormals(), 1) != make_groups(FORGET, POOL, 4, RandomNormals(), 2)
    assert make_groups(FORGET, POOL, 4, NearestNormals(), 1) == make_groups(FORGET, POOL, 4, NearestNormals(), 2)


def test_random_pairing_takes_every_pool_record_about_as_often() -> None:
    """2000 groups of 4 from 14 records: 3/14 of 2000, about 429 each, with a deviation of 18."""
    forget = [Record(f"f/{index}", f"q{index}", "a") for index in range(2000)]
    counts = Counter(
        normal.id for group in make_groups(forget, POOL, 4, RandomNormals(), 0) for normal in group.normals
    )
    assert len(counts) == len(POOL)
    assert all(abs(count - 2000 * 3 / 14) < 5 * 18 for count in counts.values())


def test_a_group_of_one_is_the_forget_sample_alone() -> None:
    assert make_groups(FORGET, POOL, 1, NearestNormals(), 0) == [Group(record) for record in FORGET]


def test_sizes_that_cannot_be_are_refused() -> None:
    assert len(make_groups(FORGET, POOL, len(POOL) + 1, NearestNormals(), 0)[0].normals) == len(POOL)
    with pytest.raises(UserError, match=r"group_size 16 needs 15 normal samples .* pool has 14"):
        make_groups(FORGET, POOL, 16, NearestNormals(), 0)
    with pytest.raises(UserError, match="group_size must be at least 1, got 0"):
        make_groups(FORGET, POOL, 0, NearestNormals(), 0)


@pytest.mark.parametrize("group_size", [1, 4])
def test_a_forget_record_in_the_pool_is_named_also_with_other_case_and_white_space(group_size: int) -> None:
    twin = Record("retain/x", f"  {FORGET[2].question.upper()} ", FORGET[2].answer.replace(" ", "\n "))
    with pytest.raises(UserError, match="forget record forget/2 also stands in the retain pool, as retain/x"):
        make_groups(FORGET, [*POOL, twin], group_size, NearestNormals(), 0)
    other_answer = Record("retain/y", FORGET[2].question, "Another answer.")
    make_groups(FORGET, [*POOL, other_answer], group_size, NearestNormals(), 0)


def test_a_pool_without_a_single_word_of_two_letters_is_paired_or_refused_readably() -> None:
    pool = [Record(f"p/{index}", f"{index} + 1 = ?", str(index + 1)) for index in range(5)]
    try:
        groups = make_groups([Record("f/0", "7 + 2 = ?", "9")], pool, 3, NearestNormals(), 0)
    except UserError:
        return
    assert len(groups[0].normals) == 2


def test_tofu_pairs_by_the_slow_computation(tofu_root: Path) -> None:
    benchmark = TOFU("forget01", forget_rows=(0, 10), retain_rows=(0, 120)).load(str(tofu_root))
    forget, pool = benchmark.training["forget"], benchmark.training["retain"]
    similarity = slow_similarity(forget, pool, 2)
    for row, group in zip(similarity, make_groups(forget, pool, 4, NearestNormals(), 0), strict=True):
        np.testing.assert_allclose(group.scores, np.sort(row)[::-1][:3], rtol=0, atol=1e-6)


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("group_size", [1, 4])
def test_a_pairing_reads_back_as_it_was_written(tmp_path: Path, texts: bool, group_size: int) -> None:
    groups = make_groups(FORGET, POOL, group_size, NearestNormals(), 0)
    path = tmp_path / "pairs.jsonl"
    write_groups(path, groups, texts)
    assert read_groups(path, FORGET, POOL, group_size) == groups
    assert read_groups(path, FORGET[::-1], POOL, group_size) == groups[::-1], "in the order of the forget records"
    content = path.read_text()
    shown = [record for group in groups for record in (group.forget, *group.normals)]
    for record in shown:
        assert (record.question in content) == texts
        assert (record.answer in content) == texts
        assert record_hash(record) in content
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"], "no temporary file is left"


def test_the_hash_is_of_question_and_answer() -> None:
    base = Record("a", "question", "answer")
    assert record_hash(base) == record_hash(Record("b", "question", "answer", "paraphrase"))
    assert (
        len({record_hash(r) for r in (base, Record("a", "questiona", "nswer"), Record("a", "question", "other"))}) == 3
    )
    assert re.fullmatch("[0-9a-f]{16}", record_hash(base))


def changed(change: Callable[[list[dict[str, Any]]], Any]) -> list[str]:
    """Lines of a good pairing after a change to them; a change may give lines of its own."""
    lines = [
        {
            "forget_id": group.forget.id,
            "forget": {"sha256": record_hash(group.forget)},
            "normals": [
                {"id": normal.id, "sha256": record_hash(normal), "score": score}
                for normal, score in zip(group.normals, group.scores, strict=True)
            ],
        }
        for group in make_groups(FORGET, POOL, 3, NearestNormals(), 0)
    ]
    change(lines)
    return [json.dumps(line) for line in lines]


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "no forget_id": (lambda lines: lines[2].pop("forget_id"), "pairs.jsonl:3: not a line of a pairing"),
    "no forget": (lambda lines: lines[2].pop("forget"), "pairs.jsonl:3: not a line of a pairing"),
    "forget is a string": (lambda lines: lines[2].update(forget="x"), "pairs.jsonl:3: not a line of a pairing"),
    "no hash": (lambda lines: lines[0]["forget"].pop("sha256"), "pairs.jsonl:1: not a line of a pairing"),
    "no normals": (lambda lines: lines[5].pop("normals"), "pairs.jsonl:6: not a line of a pairing"),
    "normals are null": (lambda lines: lines[5].update(normals=None), "pairs.jsonl:6: not a line of a pairing"),
    "normals are ids": (lambda lines: lines[5].update(normals=["a", "b"]), "pairs.jsonl:6: not a line of a pairing"),
    "no score": (lambda lines: lines[1]["normals"][1].pop("score"), "pairs.jsonl:2: not a line of a pairing"),
    "score is a word": (
        lambda lines: lines[1]["normals"][1].update(score="near"),
        "pairs.jsonl:2: not a line of a pairing",
    ),
    "score is not finite": (
        lambda lines: lines[1]["normals"][1].update(score=float("nan")),
        "pairs.jsonl:2: scores must be finite numbers",
    ),
    "forget_id is a list": (lambda lines: lines[2].update(forget_id=[1]), "pairs.jsonl:3"),
    "normal id is a list": (lambda lines: lines[2]["normals"][0].update(id=[1]), "pairs.jsonl:3"),
    "one normal too few": (
        lambda lines: lines[3]["normals"].pop(),
        "pairs.jsonl:4: 1 normal samples, but group_size 3 needs 2",
    ),
    "one normal too many": (
        lambda lines: lines[3]["normals"].append(lines[0]["normals"][0]),
        "pairs.jsonl:4: 3 normal samples, but group_size 3 needs 2",
    ),
    "the same normal twice": (
        lambda lines: lines[3]["normals"].__setitem__(1, lines[3]["normals"][0]),
        "pairs.jsonl:4",
    ),
    "unknown forget record": (
        lambda lines: lines[0].update(forget_id="forget/99"),
        "pairs.jsonl:1: record forget/99 is not in the data",
    ),
    "unknown normal": (
        lambda lines: lines[0]["normals"][0].update(id="retain/99"),
        "pairs.jsonl:1: record retain/99 is not in the data",
    ),
    "a forget record among the normals": (
        lambda lines: lines[0]["normals"][0].update(id="forget/1"),
        "pairs.jsonl:1: record forget/1 is not in the data",
    ),
    "text of a forget record changed": (
        lambda lines: lines[4]["forget"].update(sha256="0" * 16),
        "pairs.jsonl:5: the text of record forget/4 has changed",
    ),
    "text of a normal changed": (
        lambda lines: lines[4]["normals"][1].update(sha256="0" * 16),
        "pairs.jsonl:5: the text of record retain/",
    ),
    "a second line": (
        lambda lines: lines.append(lines[0]),
        "pairs.jsonl:7: forget record forget/0 has a second line",
    ),
    "a line lacks": (lambda lines: lines.pop(2), "pairs.jsonl: no line for 1 forget records, first forget/2"),
    "no line at all": (lambda lines: lines.clear(), "pairs.jsonl: no line for 6 forget records, first forget/0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_pairing_is_refused_by_file_and_line(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(changed(change)))
    with pytest.raises(UserError, match=re.escape(message)):
        read_groups(path, FORGET, POOL, 3)


def test_negative_control_the_unchanged_pairing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(changed(lambda lines: None)))
    assert len(read_groups(path, FORGET, POOL, 3)) == 6


def test_a_truncated_line_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    lines = changed(lambda lines: None)
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*lines[:3], lines[3][:40]]))
    with pytest.raises(UserError, match=r"pairs.jsonl:4: not JSON"):
        read_groups(path, FORGET, POOL, 3)
    with pytest.raises(UserError, match="no such file"):
        read_groups(tmp_path / "none.jsonl", FORGET, POOL, 3)


def test_a_record_whose_text_changed_after_pairing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_groups(path, make_groups(FORGET, POOL, 3, NearestNormals(), 0), texts=False)
    edited = [Record(FORGET[0].id, FORGET[0].question, "Edited."), *FORGET[1:]]
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: the text of record forget/0 has changed"):
        read_groups(path, edited, POOL, 3)
