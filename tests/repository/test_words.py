"""Docstrings in plain English: entries name their noun first, and the field's words are used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sga

PACKAGE = Path(sga.__file__).parent
ROOT = PACKAGE.parent

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
NAMED = ("Args", "Attributes", "Raises")
"""Sections whose entries are ``name: text``; the others have one entry."""

NO_NOUN = re.compile(r"(Whose|Of|As|What|That|Which|How|Whether|Why|Where)\b")
"""Words that no entry begins with: the noun comes first ("Number of …", "Path of …", "True if …")."""

LEAST_WORDS = 4
UNIT = re.compile(r"\[[^\]]*\]|\([^)]*\)")
"""Shape, range or unit in brackets: with one, a shorter entry says enough."""
COUNT = re.compile(r"Number of \w+")
"""A count is its own unit."""

AVOIDED = {
    r"\b(goes|go|going|went|gone) on\b": "resume or continue",
    r"\b(is|are|be|was|were) cut\b": "truncated or split",
    r"\bcuts (it|them|a|the|its|to)\b": "truncates or splits",
    r"\bwhat (is|was|are|were) asked\b": "questions or requests",
    r"\bto be (kept|forgotten)\b": "the retain set, to retain, to forget",
    r"\blikewise\b": "the thing itself, in the same words",
    r"\bas above\b": "the thing itself",
    r"\b[Ww]eights (are |that are )?in parts\b": "sharded",
    r"\bwhole or not at all\b": "atomically",
    r"\bof one's own\b": "your own",
    r"\bstands? (in|at|before|after|beside|below|above|there)\b": "is, is in, is before",
    r"\b([Ww]hoever|[Ss]omebody|[Nn]obody else)\b": "the process, the command, the user",
}
"""Expressions that have to be decoded, each with the words to use in its place."""


class Entry(NamedTuple):
    """One entry of a section of a docstring."""

    where: str
    name: str
    text: str


def entries(doc: str, where: str) -> Iterator[Entry]:
    """Entries of all sections of a docstring; further lines of an entry are joined to it."""
    section, indent = "", -1
    found: list[Entry] = []
    for line in [*doc.splitlines(), "end"]:
        heading = re.fullmatch(r"(\w+):", line.strip())
        depth = len(line) - len(line.lstrip())
        if (heading and heading[1] in SECTIONS) or (section and line.strip() and depth == 0):
            yield from found
            section, indent, found = (heading[1] if heading else ""), -1, []
        elif section and line.strip():
            indent = depth if indent < 0 else indent
            if depth == indent and (section in NAMED or not found):
                name, _, text = line.strip().partition(": ") if section in NAMED else (section, "", line.strip())
                found.append(Entry(where, name, text))
            elif found:
                found[-1] = found[-1]._replace(text=f"{found[-1].text} {line.strip()}")
    yield from found


def fault(entry: Entry) -> str | None:
    """What is wrong with an entry, in words; None if nothing is."""
    if NO_NOUN.match(entry.text):
        return f"begins with {entry.text.split()[0]!r}: name the noun first"
    if len(entry.text.split()) < LEAST_WORDS and not UNIT.search(entry.text) and not COUNT.match(entry.text):
        return "is too short: say what it is, with its unit or shape"
    return None


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every docstring of a file, those below attributes included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno}", _dedented(node.value.value)


def _dedented(text: str) -> str:
    first, *rest = text.expandtabs().splitlines() or [""]
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join([first.strip(), *(line[margin:] for line in rest)])


FILES = sorted(PACKAGE.rglob("*.py"))


def test_entries_name_their_noun_and_say_enough() -> None:
    found = [entry for path in FILES for where, doc in docstrings(path) for entry in entries(doc, where)]
    assert len(found) > 700, "the docstrings were read"
    faults = [f"{one.where}: {one.name}: {one.text[:60]!r} {fault(one)}" for one in found if fault(one)]
    assert not faults, "\n".join(faults)


def test_docstrings_use_the_words_of_the_field() -> None:
    faults = [
        f"{where}: {line.strip()!r}: instead of {word[0]!r} write {better}"
        for path in FILES
        for where, doc in docstrings(path)
        for line in doc.splitlines()
        for pattern, better in AVOIDED.items()
        if (word := re.search(pattern, line))
    ]
    assert not faults, "\n".join(faults)


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    faults = [
        f"{where}: {doc.splitlines()[0]!r}"
        for path in FILES
        for where, doc in docstrings(path)
        if doc and NO_NOUN.match(doc)
    ]
    assert not faults, "\n".join(faults)


def test_no_merge_was_left_unfinished() -> None:
    pages = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
    pages += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    marks = re.compile(r"^\s*(<{7} \S|>{7} \S|={7}$)", re.MULTILINE)  # the formatter indents them in docstrings
    unfinished = [str(path.relative_to(ROOT)) for path in pages if marks.search(path.read_text(encoding="utf-8"))]
    assert len(pages) > 400 and not unfinished, unfinished


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Args:\n    forget: Whose.", True),
        ("Args:\n    batch: What to score.", True),
        ("Args:\n    seed: Its seed.", True),
        ("Args:\n    seed: Seed of the resampling.", False),
        ("Args:\n    ids: Token ids, [N].", False),
        ("Args:\n    lr: Learning rate (per step).", False),
        ("Args:\n    workers: Number of processes.", False),
        ("Raises:\n    UserError: as these two.", True),
        ("Returns:\n    As given, in order\n    of the records.", True),
        ("Attributes:\n    rows: The rows\n        of one evaluation.", False),
    ],
)
def test_faults_are_found(text: str, wrong: bool) -> None:
    (entry,) = entries(f"First line.\n\n{text}\n", "here")
    assert (fault(entry) is not None) is wrong
