"""Properties of records: what a file says is what is scored, or one message names the file and the line."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyNetwork
from hypothesis import given, settings
from hypothesis import strategies as st

from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.data.records import read_records
from sga.errors import UserError

SPECIAL = re.compile("<pad>|<s>|</s>")
"""The tiny tokenizer's special tokens: in a text they mean what they say to it, as with any Hugging Face tokenizer."""

some = settings(max_examples=100, deadline=None, derandomize=True)
plain = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not SPECIAL.search(text))
hostile = st.text(st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\ufeff\r\n\t \\\"{}'e\u0301\U0001f600"))
huge = st.builds(lambda text, times: text * times, plain, st.integers(100, 500))
texts = st.one_of(plain, hostile, huge).filter(lambda text: bool(text.strip()))
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
other_values = st.one_of(
    numbers, st.sampled_from(["null", "true", '"\\ud800"', "[{}, [1]]", "1e999", "-0", '{"a": 1}'])
)
NAMES = ("question", "answer", "text", "paraphrased_question", "paraphrased_answer", "perturbed_answer")
others = st.dictionaries(plain.filter(lambda name: name not in NAMES), other_values, max_size=4)


def row_of(fields: dict[str, Any]) -> st.SearchStrategy[tuple[dict[str, Any], str]]:
    """Fields, and a line that says them: with other fields, in any order, escaped or not."""

    def line(fields: dict[str, Any], more: dict[str, str], escaped: bool, order: Any) -> tuple[dict[str, Any], str]:
        parts = [(name, json.dumps(value, ensure_ascii=escaped)) for name, value in fields.items()]
        parts += list(more.items())
        order.shuffle(parts)
        return fields, "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in parts) + "}"

    return st.builds(line, st.just(fields), others, st.booleans(), st.randoms())


pairs = st.fixed_dictionaries(
    {"question": texts, "answer": texts},
    optional={"paraphrased_answer": texts, "perturbed_answer": st.lists(texts, max_size=3)},
)
good_rows = st.one_of(pairs, st.fixed_dictionaries({"text": texts})).flatmap(row_of)
wrong = st.one_of(
    st.sampled_from(["", " \n\u2028", "a\ud800b", "\udfff"]), st.integers(), st.none(), st.just(["a"]), st.booleans()
)
wrong_rows = st.one_of(
    st.fixed_dictionaries({"question": texts, "answer": wrong}),
    st.fixed_dictionaries({"question": wrong, "answer": texts}),
    st.fixed_dictionaries({"text": wrong}),
    st.fixed_dictionaries({"text": texts, "answer": texts}),
    st.fixed_dictionaries({"question": texts}),
    st.fixed_dictionaries({"question": texts, "answer": texts, "perturbed_answer": st.lists(wrong, min_size=1)}),
).flatmap(row_of)
no_json = st.sampled_from(
    ["{", "[]", "7", '{"text": "a", "text": "b"}', f'{{"text": "a", "n": {"9" * 5000}}}', "\u2028"]
)


@pytest.fixture(scope="module")
def encoder(tiny_network: TinyNetwork) -> Encoder:
    """The tiny tokenizer without a limit on length."""
    return Encoder(tiny_network.encoder.tokenizer, PlainTemplate(), max_length=10**9)


def read(lines: list[str]) -> tuple[Any, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "forget.jsonl")
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
        return read_records(path, "forget")


@some
@given(rows=st.lists(good_rows, min_size=1, max_size=4))
def test_what_a_file_says_is_what_is_scored(rows: list[tuple[dict[str, Any], str]], encoder: Encoder) -> None:
    records = read([line for _, line in rows])
    assert len(records) == len(rows)
    for number, (record, (fields, _)) in enumerate(zip(records, rows, strict=True)):
        assert record.id == f"forget/{number}"
        assert (record.question, record.answer) == (
            fields.get("question", ""),
            fields.get("answer", fields.get("text")),
        )
        assert record.paraphrased_answer == fields.get("paraphrased_answer")
        assert record.perturbed_answers == tuple(fields.get("perturbed_answer", ()))
        answers = [record.answer, *filter(None, [record.paraphrased_answer]), *record.perturbed_answers]
        encoded, _ = encoder.encode_all([(record.question, answer) for answer in answers])
        for sequence, answer in zip(encoded, answers, strict=True):
            assert sequence.ids[-1] == encoder.tokenizer.eos_token_id
            scored = encoder.tokenizer.decode(list(sequence.ids[sequence.prompt_length : -1]))
            # The template's space before an answer is part of its first token.
            assert scored == (answer if record.is_text else f" {answer}")


@some
@given(
    before=st.lists(good_rows.map(lambda row: row[1]), max_size=3),
    wrong_line=st.one_of(wrong_rows.map(lambda row: row[1]), no_json),
    after=st.lists(good_rows.map(lambda row: row[1]), max_size=2),
)
@pytest.mark.runs
def test_what_cannot_be_a_record_is_named_by_file_and_line(
    before: list[str], wrong_line: str, after: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        read([*before, wrong_line, *after])
    said = str(refused.value)
    assert re.search(rf"forget\.jsonl:{len(before) + 1}: ", said) and len(said) < 1000
    said.encode()  # it can be printed
