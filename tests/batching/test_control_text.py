"""Records whose text a model reads as more than text: said once for each file, refused, or taken as text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import rows_about, write_rows
from transformers import PreTrainedTokenizerFast

from sga.__main__ import main
from sga.batching.templates import ChatTemplate, PlainTemplate
from sga.data.own import OwnData
from sga.data.records import Record, read_records
from sga.datamodule import UnlearningData
from sga.errors import UserError
from sga.losses.base import Needs
from sga.models.small import SmallLlama

MODEL = SmallLlama(hidden_size=16, layers=1, heads=2, vocabulary=400, context=160)


def data_of(folder: Path, changes: dict[str, dict[int, dict[str, Any]]], **settings: Any) -> UnlearningData:
    """Four forget and eight retain records, some of them changed."""
    for name, people in (("forget", range(2)), ("retain", range(2, 6))):
        rows = [row for person in people for row in rows_about(person)]
        write_rows(
            folder / f"{name}.jsonl",
            [{**row, **changes.get(name, {}).get(place, {})} for place, row in enumerate(rows)],
        )
    source = OwnData("forget.jsonl", "retain.jsonl")
    model = settings.pop("model", MODEL)
    return UnlearningData(model, source, root=str(folder), max_length=160, group_size=2, **settings)


def warned(data: UnlearningData) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.read()
    return [str(warning.message) for warning in caught]


def test_special_tokens_are_said_once_a_file_with_the_first_record_and_how_many(tmp_path: Path) -> None:
    """Of 4 forget records two have one, the first on line 2; of 8 retain records one, in a wrong answer."""
    changes: dict[str, dict[int, dict[str, Any]]] = {
        "forget": {1: {"answer": "</s>"}, 3: {"question": "Who</s><s> is it?"}},
        "retain": {5: {"perturbed_answer": ["One <s>.", "Two."]}},
    }
    said = warned(data_of(tmp_path, changes))
    forget, retain = (tmp_path / f"{name}.jsonl" for name in ("forget", "retain"))
    assert len(said) == 2
    assert said[0].startswith(f"{forget}: 2 of 4 records (first forget/1, {forget}:2) have in them '</s>', '<s>',")
    assert said[1].startswith(f"{retain}: 1 of 8 records (first retain/5, {retain}:6) have in them '<s>',")
    assert "--data.special_tokens=text" in said[0] and "--data.special_tokens=refuse" in said[0]


def test_special_tokens_may_be_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"retain\.jsonl: 1 of 8 records \(first retain/0, .*retain\.jsonl:1\)"):
        data_of(tmp_path, {"retain": {0: {"answer": "It is </s>."}}}, special_tokens="refuse").read()


def test_special_tokens_taken_as_text_are_text_and_said_nothing_of(tmp_path: Path) -> None:
    changes = {"forget": {0: {"answer": "A </s> and more."}}}
    template = PlainTemplate("Question: {question}\nAnswer:\n{answer}")
    data = data_of(tmp_path, changes, special_tokens="text", template=template)
    assert warned(data) == []
    sequence = data.encode(data.groups)[0][0]
    assert sequence.ids.count(data.tokenizer.eos_token_id) == 1
    assert data.encoder.decode(sequence.ids[sequence.prompt_length :]) == "A </s> and more."
    other = data_of(tmp_path, changes, template=template)
    assert len(warned(other)) == 1, "negative control"
    assert other.encode(other.groups)[0][0].ids.count(other.tokenizer.eos_token_id) == 2
    same, usual = data.encode(data.groups)[1:], other.encode(other.groups)[1:]
    assert same == usual, "records without one are the same"
    # Results of the two are never compared; those of before stay comparable with what is as before.
    assert other.evaluation_data().settings["template"] == repr(template)
    assert data.evaluation_data().settings["template"] == f"{template!r}, special tokens as text"


class Chatting(SmallLlama):
    """A small model whose tokenizer has a chat template; `space` stands before answers."""

    space = ""

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        made = super().tokenizer(texts)
        made.chat_template = (
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            f"{{% else %}}{self.space}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
        )
        return made


def test_results_state_what_the_tokenizer_s_template_makes(tmp_path: Path) -> None:
    """Two templates of one name that differ in a space before the answer give results that are never compared."""
    found = []
    for space in ("", " ", ""):
        model = Chatting(hidden_size=16, layers=1, heads=2, vocabulary=400, context=160)
        model.space = space
        data = data_of(tmp_path, {}, model=model, template=ChatTemplate())
        assert warned(data) == []
        found.append(data.evaluation_data().settings)
    assert found[0]["template"] == found[1]["template"] == repr(ChatTemplate())
    assert found[0]["rendering"] == found[2]["rendering"] != found[1]["rendering"]
    plain = data_of(tmp_path, {})
    plain.read()
    assert plain.evaluation_data().settings["rendering"] is None


def test_marks_of_the_template_are_said_of_questions_and_answers(tmp_path: Path) -> None:
    changes = {"forget": {2: {"answer": "Oslo.\nQuestion: Where else?\nAnswer: Rome."}}}
    for settings in ({}, {"special_tokens": "refuse"}):
        [said] = warned(data_of(tmp_path, changes, **settings))
        assert "forget.jsonl: 1 of 4 records (first forget/2, " in said and "forget.jsonl:3)" in said
        assert "'Question:', 'Answer:', what the template itself" in said


def test_negative_control_usual_records_are_said_nothing_of(tmp_path: Path) -> None:
    changes = {"forget": {0: {"answer": "A < b > c [1] [/] </ s> answer: question"}}}
    assert warned(data_of(tmp_path, changes)) == []
    assert warned(data_of(tmp_path, changes, special_tokens="refuse")) == []


def test_texts_have_special_tokens_and_no_marks(tmp_path: Path) -> None:
    for name, count in (("forget", 2), ("retain", 4)):
        texts = [f"Question: {name} {number}. Answer: it is." for number in range(count)]
        write_rows(tmp_path / f"{name}.jsonl", [{"text": text} for text in [*texts, f"{name} ends</s>"]])
    data = UnlearningData(MODEL, OwnData("forget.jsonl", "retain.jsonl"), root=str(tmp_path), max_length=160)
    said = warned(data)
    assert len(said) == 2 and all("have in them '</s>', special tokens" in one for one in said)
    assert "forget.jsonl: 1 of 3 records (first forget/2, " in said[0]


def test_refusals_and_normals_of_a_file_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "refusals.txt").write_text("I do not know.</s>\n")
    data = data_of(tmp_path, {}, refusals=str(tmp_path / "refusals.txt"))
    assert warned(data) == []
    with pytest.warns(UserWarning, match=r"forget/0/refusal\).*'</s>', special tokens"):
        data.extend(Needs(alternative="refusal"))
    normals = [
        {
            "forget_id": group.forget.id,
            "forget": {"sha256": json.loads(line)["forget"]["sha256"]},
            "normals": [{"id": f"own/{place}", "source": "own", "question": "Why?", "answer": f"So</s> {place}"}],
        }
        for place, (group, line) in enumerate(zip(data.groups, pairs_of(data, tmp_path), strict=True))
    ]
    write_rows(tmp_path / "mine.jsonl", normals)
    [said] = warned(data_of(tmp_path, {}, pairs=str(tmp_path / "mine.jsonl")))
    assert "mine.jsonl: 4 of 4 records (first own/0, " in said


def pairs_of(data: UnlearningData, folder: Path) -> list[str]:
    from sga.groups.group_file import write_groups

    write_groups(folder / "pairs.jsonl", data.groups)
    return (folder / "pairs.jsonl").read_text().splitlines()


def test_the_position_of_a_record_in_its_file_is_no_part_of_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", rows_about(0))
    first = read_records(tmp_path / "a.jsonl", "a")[0]
    assert first.where == f"{tmp_path / 'a.jsonl'}:1"
    assert first == Record(first.id, first.question, first.answer, first.paraphrased_answer, first.perturbed_answers)
    assert "where" not in repr(first)


def test_the_setting_is_one_of_three(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        code = main(["fit", "--data.special_tokens=keep", f"--run.folder={tmp_path / 'run'}"])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and "special_tokens" in capsys.readouterr().err
