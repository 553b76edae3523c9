"""Records from files: what comes in, in which number and order, and every fault named by file and line."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from conftest import rows_about, write_rows

from sga.data.own import OwnData
from sga.data.records import (
    EVALUATION_SETS,
    Record,
    read_records,
    record_from_row,
    record_to_row,
)
from sga.data.tofu import TOFU
from sga.errors import UserError

# ---- records --------------------------------------------------------------------------------------------------------

GOOD = {"question": "q?", "answer": "a.", "paraphrased_answer": "p.", "perturbed_answer": ["w1", "w2"], "other": 1}


def test_a_row_becomes_a_record() -> None:
    assert record_from_row(GOOD, "x/0", "f:1") == Record("x/0", "q?", "a.", "p.", ("w1", "w2"))
    assert record_from_row({"question": "q?", "answer": "a."}, "x/0", "f:1") == Record("x/0", "q?", "a.")
    empty = {"question": "q?", "answer": "a.", "paraphrased_answer": None, "perturbed_answer": None}
    assert record_from_row(empty, "x/0", "f:1") == Record("x/0", "q?", "a.")
    text = record_from_row({"text": "A passage."}, "x/0", "f:1")
    assert text == Record("x/0", "", "A passage.") and text.is_text
    assert not record_from_row(GOOD, "x/0", "f:1").is_text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "f:3: 'question' must be a string, got NoneType"),
        ({"answer": 5}, "f:3: 'answer' must be a string, got int"),
        ({"answer": "  \n"}, "f:3: 'answer' is empty"),
        ({"paraphrased_answer": ["p"]}, "f:3: 'paraphrased_answer' must be a string, got list"),
        ({"paraphrased_answer": ""}, "f:3: 'paraphrased_answer' is empty"),
        ({"perturbed_answer": "w"}, "f:3: 'perturbed_answer' must be a list of non-empty strings, got 'w'"),
        ({"perturbed_answer": ["w", ""]}, "f:3: 'perturbed_answer' must be a list of non-empty strings"),
        ({"perturbed_answer": ["w", 3]}, "f:3: 'perturbed_answer' must be a list of non-empty strings"),
        ({"text": "t"}, "f:3: has both 'text' and 'question'/'answer'"),
    ],
)
def test_a_malformed_row_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        record_from_row({**GOOD, **change}, "x/0", "f:3")


@pytest.mark.parametrize(
    ("row", "missing"),
    [({}, "'question' and 'answer'"), ({"question": "q"}, "'answer'"), ({"answer": "a"}, "'question'")],
)
def test_a_row_that_lacks_columns_says_which(row: dict[str, Any], missing: str) -> None:
    with pytest.raises(UserError, match=f"f:3: missing {missing}; a record needs"):
        record_from_row(row, "x/0", "f:3")


def test_records_survive_writing_and_reading(tmp_path: Path) -> None:
    records = (
        Record("x/0", "q?", "a.", "p.", ("w1", "w2")),
        Record("x/1", "Größe?", "zwei\nZeilen \u2028 hier", None, ("w",)),
        Record("x/2", "", "A passage."),
        Record("x/3", "q2?", "a2."),
    )
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record_to_row(r), ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    assert read_records(path, "x") == records
    assert [record_from_row(record_to_row(r), r.id, "f:1") for r in records] == list(records)
    assert len(path.read_bytes().split(b"\n")) == 5


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no record"):
        read_records(tmp_path / "empty.jsonl", "x")


def test_content_ignores_case_and_white_space_and_nothing_else() -> None:
    assert Record("a", "Who  is\nit?", "IT").content == Record("b", "who is it?", " it ").content
    assert Record("a", "Who is it?", "it").content != Record("b", "Who is it", "it").content


def test_two_unicode_spellings_of_one_text_are_one_record() -> None:
    """é in one character (NFC) or in two (NFD); the text itself stays as it was written."""
    composed, decomposed = (
        Record("a", *(unicodedata.normalize(form, text) for text in ("Qui est Zoé Béart ?", "Une poétesse.")))
        for form in ("NFC", "NFD")
    )
    assert composed.question != decomposed.question and composed.content == decomposed.content
    capital = Record("b", unicodedata.normalize("NFD", "QUI EST ZOÉ BÉART ?"), "Une poétesse.")
    assert capital.content == composed.content
    assert composed.content != Record("c", "Qui est Zoe Beart ?", "Une poetesse.").content


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_record_that_repeats_another_in_the_other_spelling_is_refused(form: str, tmp_path: Path) -> None:
    question, answer = "Qui est Zoé Béart ?", "Une poétesse."
    twin = {"question": unicodedata.normalize(form, question), "answer": unicodedata.normalize(form, answer)}
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    row = {"question": unicodedata.normalize(other, question), "answer": unicodedata.normalize(other, answer)}
    write_rows(tmp_path / "forget.jsonl", [row, twin])
    write_rows(tmp_path / "retain.jsonl", rows_about(4))
    with pytest.raises(UserError, match="record forget/1 repeats forget/0"):
        OwnData("forget.jsonl", "retain.jsonl").load(str(tmp_path))


# ---- own data -------------------------------------------------------------------------------------------------------


def test_own_data_needs_forget_and_retain_and_says_what_is_absent_without_the_rest(tmp_path: Path) -> None:
    write_rows(tmp_path / "f.jsonl", rows_about(0))
    write_rows(tmp_path / "r.jsonl", rows_about(1))
    found = OwnData("f.jsonl", "r.jsonl").load(str(tmp_path))
    assert found.name == "own"
    assert {name: len(rows) for name, rows in found.training.items()} == {"forget": 2, "retain": 2}
    assert set(found.evaluation) == {"forget", "retain"}
    assert set(found.absent) == {"holdout", "real_authors", "world_facts"}
    assert found.absent["holdout"] == "no holdout file was given (--data.source.holdout)"
    assert found.training["forget"][1].id == "forget/1"
    assert found.training["forget"][0].perturbed_answers


def test_own_data_with_everything(own_root: Path) -> None:
    found = OwnData(*(f"{name}.jsonl" for name in ("forget", "retain", "holdout", "real_authors", "world_facts"))).load(
        str(own_root)
    )
    counts = {"forget": 6, "retain": 10, "holdout": 4, "real_authors": 2, "world_facts": 2}
    assert {name: len(rows) for name, rows in found.evaluation.items()} == counts
    assert set(found.evaluation) <= set(EVALUATION_SETS) and not found.absent
    assert "holdout" not in found.training, "nothing is ever trained on it"


def test_own_data_takes_plain_text_and_paths_without_a_root(tmp_path: Path) -> None:
    write_rows(tmp_path / "f.jsonl", [{"text": "It was a dark night."}, {"text": "It was a bright day."}])
    write_rows(tmp_path / "r.jsonl", [{"text": "Once upon a time."}])
    found = OwnData(str(tmp_path / "f.jsonl"), str(tmp_path / "r.jsonl")).load(None)
    assert all(record.is_text for record in found.training["forget"])


def test_own_data_refuses_duplicates_missing_files_and_faults_by_line(tmp_path: Path) -> None:
    rows = rows_about(0)
    write_rows(tmp_path / "r.jsonl", rows_about(1))
    write_rows(tmp_path / "twice.jsonl", [*rows, {**rows[0], "question": rows[0]["question"].upper()}])
    with pytest.raises(UserError, match=r"twice.jsonl: record forget/2 repeats forget/0 \('WHERE WAS ADA"):
        OwnData("twice.jsonl", "r.jsonl").load(str(tmp_path))
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        OwnData("none.jsonl", "r.jsonl").load(str(tmp_path))
    write_rows(tmp_path / "bad.jsonl", [rows[0], {"question": "q"}])
    with pytest.raises(UserError, match=r"bad.jsonl:2: missing 'answer'"):
        OwnData("bad.jsonl", "r.jsonl").load(str(tmp_path))


# ---- TOFU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "forget", "retain"), [("forget01", 40, 3960), ("forget05", 200, 3800), ("forget10", 400, 3600)]
)
def test_tofu_s_splits(tofu_root: Path, split: Any, forget: int, retain: int) -> None:
    found = TOFU(split).load(str(tofu_root))
    assert {name: len(rows) for name, rows in found.training.items()} == {
        "forget": forget,
        "retain": retain,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert {name: len(rows) for name, rows in found.evaluation.items()} == {
        "forget": forget,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
        "holdout": forget,
    }
    assert found.name == "tofu" and not found.absent
    perturbed = [record for name in ("forget", "retain") for record in found.evaluation[name]]
    assert all(len(record.perturbed_answers) == 5 and record.paraphrased_answer for record in perturbed)
    assert all(
        record.perturbed_answers and record.paraphrased_answer is None
        for name in ("real_authors", "world_facts")
        for record in found.evaluation[name]
    )
    assert found.training["forget"][0].id == f"{split}/0"
    ids = [record.id for rows in found.evaluation.values() for record in rows]
    assert len(set(ids)) == len(ids)
    kept = {record.content for record in found.training["retain"]}
    assert not kept & {record.content for record in found.training["forget"]}
    assert [r.content for r in found.evaluation["forget"]] == [r.content for r in found.training["forget"]]


def test_tofu_row_ranges_cut_training_and_evaluation_alike(tofu_root: Path) -> None:
    whole = TOFU().load(str(tofu_root))
    part = TOFU(forget_rows=(320, 400), retain_rows=(0, 320)).load(str(tofu_root))
    assert part.training["forget"] == whole.training["forget"][320:]
    assert part.evaluation["forget"] == whole.evaluation["forget"][320:]
    assert part.training["forget"][0].id == "forget10/320", "ids stay those of the split"
    assert part.training["retain"] == whole.training["retain"][:320]
    assert part.evaluation["retain"] == whole.evaluation["retain"][:320]
    assert part.evaluation["holdout"] == whole.evaluation["holdout"]
    with pytest.raises(UserError, match="rows 400 to 500 of forget10_perturbed are none: it has 400 rows"):
        TOFU(forget_rows=(400, 500)).load(str(tofu_root))


def test_tofu_is_found_by_root_by_its_parent_and_by_environment(
    tofu_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TOFU("forget01").load(str(tofu_root))
    assert TOFU("forget01").load(str(tofu_root.parent)) == expected
    monkeypatch.setenv("SGA_DATA", str(tofu_root.parent))
    assert TOFU("forget01").load(None) == expected


TOFU_FILES = {
    "forget01": (2, False),
    "forget01_perturbed": (2, True),
    "forget10": (2, False),  # what a folder of TOFU's is known by
    "retain99": (4, False),
    "retain_perturbed": (4, True),
    "real_authors_perturbed": (2, True),
    "world_facts_perturbed": (2, True),
    "holdout01": (2, False),
}


@pytest.fixture
def small_tofu(tmp_path: Path) -> Path:
    """A folder with TOFU's file names and a few rows each."""
    for number, (name, (count, perturbed)) in enumerate(TOFU_FILES.items()):
        rows = [
            {"question": f"{name} question {index}?", "answer": f"Answer {number}-{index}."}
            | ({"perturbed_answer": ["One.", "Two."]} if perturbed else {})
            for index in range(count)
        ]
        write_rows(tmp_path / f"{name}.json", rows)
    return tmp_path


def test_the_small_folder_is_read(small_tofu: Path) -> None:
    found = TOFU("forget01").load(str(small_tofu))
    assert len(found.training["retain"]) == 4
    (small_tofu / "retain99.json").rename(small_tofu / "retain99.jsonl")
    assert TOFU("forget01").load(str(small_tofu)) == found


def test_a_missing_tofu_file_or_folder_is_named(small_tofu: Path) -> None:
    (small_tofu / "holdout01.json").unlink()
    with pytest.raises(UserError, match=r"the TOFU split holdout01 is missing \(no holdout01.json\)"):
        TOFU("forget01").load(str(small_tofu))
    with pytest.raises(UserError, match="no TOFU files there"):
        TOFU("forget01").load(str(small_tofu / "none"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": ', "retain99.json:3: not JSON"),
        ('{"question": "q"}', "retain99.json:3: .*'answer'"),
        ('{"question": "q", "answer": 7}', "retain99.json:3: 'answer' must be a string, got int"),
        ('{"question": "q", "answer": ""}', "retain99.json:3: 'answer' is empty"),
        ("[1]", "retain99.json:3: "),
    ],
)
def test_a_malformed_tofu_line_is_named(small_tofu: Path, line: str, message: str) -> None:
    path = small_tofu / "retain99.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(UserError, match=message):
        TOFU("forget01").load(str(small_tofu))


@pytest.mark.parametrize("line", ['{"question": "q", "answer": 7}', '{"question": "q", "answer": ""}'])
def test_a_blank_line_before_a_malformed_tofu_line_does_not_shift_its_number(small_tofu: Path, line: str) -> None:
    path = small_tofu / "retain99.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", line, *lines[3:]]))
    with pytest.raises(UserError, match=r"retain99\.json:3: "):
        TOFU("forget01").load(str(small_tofu))


def test_a_tofu_file_that_changes_is_read_afresh(small_tofu: Path) -> None:
    """The library that reads the files keeps a cache."""
    before = TOFU("forget01").load(str(small_tofu))
    path = small_tofu / "retain99.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [{**row, "answer": row["answer"].replace("Answer", "ANSWER")} for row in rows])
    after = TOFU("forget01").load(str(small_tofu))
    assert before.training["retain"] != after.training["retain"]
    assert after.training["retain"][0].answer.startswith("ANSWER")


def test_answers_that_look_like_dates_stay_text(small_tofu: Path) -> None:
    write_rows(
        small_tofu / "holdout01.json",
        [{"question": f"When was {name} born?", "answer": f"1990-01-0{day}"} for day, name in enumerate("AB", start=1)],
    )
    found = TOFU("forget01").load(str(small_tofu))
    assert [record.answer for record in found.evaluation["holdout"]] == ["1990-01-01", "1990-01-02"]
