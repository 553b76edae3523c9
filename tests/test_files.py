"""Files: whole or not at all and for whom the umask says; JSON read with suspicion, every fault named by its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sga.errors import UserError
from sga.files import (
    json_value,
    read_json,
    read_json_lines,
    read_json_object,
    write_bytes,
    write_json,
    write_json_lines,
    write_text,
)
from sga.groups.generation import Journal

BOM = b"\xef\xbb\xbf"
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters, beside the ends of lines, at which `str.splitlines` cuts."""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def said(path: Path, content: bytes, read: Callable[[Path], Any] = read_json) -> str:
    """The message with which a file of this content is refused."""
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(path)
    return str(refused.value)


# ---- JSON Lines -----------------------------------------------------------------------------------------------------


def test_lines_keep_their_numbers_and_blank_ones_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n\n  \r\n{"b": "ü \u2028 x"}\r\n{"c": 3}'.encode())
    assert read_json_lines(path) == [(1, {"a": 1}), (4, {"b": "ü \u2028 x"}), (5, {"c": 3})]
    path.write_text("")
    assert read_json_lines(path) == []


@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_line_feeds_end_a_line(tmp_path: Path, separator: str) -> None:
    """As the package writes the character, whether raw or escaped, it comes back; negative control: splitlines cuts."""
    path = tmp_path / "a.jsonl"
    rows = [{"generation": f"one{separator}two", f"key{separator}": 1}, {"generation": "three"}]
    write_json_lines(path, rows)
    assert read_json_lines(path) == [(1, rows[0]), (2, rows[1])]
    assert len("".join(row["generation"] for row in rows).splitlines()) == 2
    if separator >= " ":  # JSON has control characters escaped only
        assert len(path.read_text(encoding="utf-8").splitlines()) > 2
        write_json(path, rows)
        assert read_json(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        (b'{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON"),
        (b'{"a": 1}\n\n{"a": 1,}\n', "a.jsonl:3: not JSON"),
        (b'{"a": 1}\r{"a": 1}\n', "a.jsonl:1: not JSON (Extra data, column 10)"),
        ('{"a": 1}\n\u2028\n'.encode(), "a.jsonl:2: not JSON"),
        (b'{"a": 1}\n' + BOM + b'{"a": 1}\n', "a.jsonl:2: not JSON"),
        (b'[{"a": 1}]\n', "a.jsonl:1: expected a JSON object, found list"),
        (b'{"a": 1}\n7\n', "a.jsonl:2: expected a JSON object, found int"),
        (b"null\n", "a.jsonl:1: expected a JSON object, found NoneType"),
        (b'\n{"a": 1, "a": 1}\n', "a.jsonl:2: not JSON ('a' stands twice in one object, column 10)"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    found = said(tmp_path / "a.jsonl", content, read_json_lines)
    assert message in found and found.endswith("the file needs one complete JSON object a line")


# ---- both -----------------------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_no_files(tmp_path: Path) -> None:
    for read in (read_json, read_json_object, read_json_lines):
        for path in (tmp_path / "none.json", tmp_path):
            with pytest.raises(UserError, match=rf"{re.escape(str(path))}: no such file"):
                read(path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(BOM + b'{"a": 1}\n')
    assert read_json(path) == read_json_object(path) == {"a": 1}
    assert read_json_lines(path) == [(1, {"a": 1})]
    path.write_bytes(BOM)
    assert read_json_lines(path) == []
    with pytest.raises(json.JSONDecodeError):  # negative control: Python's reader refuses it
        json.loads((BOM + b"{}").decode())


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('{"a": 1, "a": 1}', 1, "'a'"),
        ('{\n"a": 1,\n"b": {"a": 2},\n"a"\n: 3}', 4, "'a'"),
        ('[{"a": 1},\n{"b": {"c": 1,\n"c": 2}}]', 3, "'c'"),
        ('{"a": 1,\n"\\u0061": 2}', 2, "'a'"),
        ('{"": 1,\n"": 2}', 2, "''"),
        ('{"a": "\\"a\\": {",\n"b": "}",\n"b" :"a"}', 3, "'b'"),
        ('{"a": 1,\n"a": {"b": 1,\n"b": 2}}', 2, "'a'"),
        ('{"a": 1,\n"a": 2}, and no JSON from here: "', 2, "'a'"),
    ],
)
def test_a_duplicate_key_is_named_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    assert f"a.json:{line}: not JSON ({key} stands twice in one object" in said(tmp_path / "a.json", text.encode())
    with pytest.raises(json.JSONDecodeError, match="stands twice"):
        json_value(text)


def test_negative_control_the_same_key_in_two_objects_is_good() -> None:
    text = '{"a": {"a": 1}, "b": [{"a": "a"}, {"a": "\\"a\\": 1, \\"a\\""}], "A": {}}'
    assert json_value(text) == json.loads(text)


@pytest.mark.parametrize(("content", "line"), [(b'["\xff"]', 1), (b'[1,\n"\n', 2), (BOM + b'[1,\n2,\n"\xff"]', 3)])
def test_a_fault_of_a_whole_file_has_its_line(tmp_path: Path, content: bytes, line: int) -> None:
    kind = "UTF-8" if b"\xff" in content else "JSON"
    found = said(tmp_path / "a.json", content)
    assert f"a.json:{line}: not {kind} (" in found and found.endswith("copy the file again or delete it")


def test_what_python_cannot_take_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert "a.json:1: not JSON (Exceeds the limit" in said(path, b"[" + b"1" * 5000 + b"]")
    assert "a.json:1: not JSON (maximum recursion depth" in said(path, b"[" * 100_000)
    assert "a.json:2: not JSON (Exceeds" in said(path, b"{}\n" + b'{"a": ' + b"1" * 5000 + b"}", read_json_lines)
    path.write_bytes(b"[" + b"1" * 4000 + b"]")  # negative control
    assert read_json(path) == [int("1" * 4000)]


def test_nan_is_read_for_others_to_refuse_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [NaN, -Infinity]}')
    assert str(read_json(path)["a"]) == str(read_json_lines(path)[0][1]["a"]) == "[nan, -inf]"
    for write in (write_json, write_json_lines):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, [{"a": float("nan")}])
    assert path.read_text() == '{"a": [NaN, -Infinity]}'


def test_an_object_is_one_and_the_callers_cure_ends_every_message(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, what in ((b"[1]", "a.json: expected a JSON object, found list"), (b"{", "a.json:1: not JSON")):
        found = said(path, content, lambda path: read_json_object(path, "make it anew"))
        assert what in found and found.endswith("; make it anew")
    assert said(path, b"\xff", lambda path: read_json_lines(path, "make it anew")).endswith("or make it anew")


# ---- writing --------------------------------------------------------------------------------------------------------


def write_journal(path: Path, content: bytes) -> None:
    with closing(Journal(path)) as journal:
        journal.append({"text": content.decode()})


WRITERS: dict[str, Callable[[Path, bytes], None]] = {
    "bytes": write_bytes,
    "text": lambda path, content: write_text(path, content.decode()),
    "JSON": lambda path, content: write_json(path, content.decode()),
    "JSON Lines": lambda path, content: write_json_lines(path, [{"text": content.decode()}]),
    "journal": write_journal,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path: Path, name: str, mask: int, mode: int) -> None:
    with umask(mask):
        WRITERS[name](tmp_path / "a", b"secret")
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_file_that_is_replaced_follows_it_too(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        with umask(mask):
            write_text(tmp_path / "a", "secret")
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_threads_that_write_one_file_leave_it_whole(tmp_path: Path) -> None:
    with umask(0o077), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: write_text(tmp_path / "a", f"{number}" * 1000), range(8)))
    assert (tmp_path / "a").read_text() in {f"{number}" * 1000 for number in range(8)}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "new" / "a", "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "new" / "a", "half")
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["old"]
