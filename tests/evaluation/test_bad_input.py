"""Data and weights that evaluation cannot digest, through the whole path: a clear error, or a treatment with a note."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_rows, rows_about, write_rows
from transformers import AutoModelForCausalLM

from sga.__main__ import main
from sga.cli import run_verb
from sga.data.own import OwnData
from sga.errors import DivergenceError, UserError

Evaluate = Callable[..., dict[str, Any]]
Rows = list[dict[str, Any]]


@pytest.fixture
def evaluate(own_root: Path, own_options: list[str], own_target: Path, tmp_path: Path) -> Evaluate:
    """Validates the target on data that is like `own_root`'s but for the given sets; metrics.json and the rows."""

    def run(*options: str, model: Path = own_target, **sets: Rows) -> dict[str, Any]:
        data, folder = tmp_path / "data", tmp_path / "run"
        shutil.copytree(own_root, data)
        for name, rows in sets.items():
            write_rows(data / f"{name}.jsonl", rows)
        language_model = ["--model.language_model=sga.Pretrained"]
        language_model += [f"--model.language_model.name_or_path={model}"]
        run_verb(["validate", *own_options, *language_model, f"--data.root={data}", f"--run.folder={folder}", *options])
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return {**found, "rows": all_rows(folder)}

    return run


@pytest.fixture
def no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is run")

    monkeypatch.setattr("sga.evaluation.scoring.logits_at", fail)
    monkeypatch.setattr("sga.evaluation.inference.generate", fail)


def forget_rows() -> Rows:
    return [row for person in range(3) for row in rows_about(person)]


def test_negative_control_good_input_has_no_notes(evaluate: Evaluate) -> None:
    found = evaluate()
    assert found["notes"] == []
    assert not any(math.isnan(value) for value in found.values() if isinstance(value, float))


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("perturbed_answer", ["Oslo", ""], "forget.jsonl:1: 'perturbed_answer' must be a list of non-empty strings"),
        ("perturbed_answer", [" \n"], "forget.jsonl:1: 'perturbed_answer' must be a list of non-empty strings"),
        ("perturbed_answer", "Oslo", "forget.jsonl:1: 'perturbed_answer' must be a list of non-empty strings"),
        ("paraphrased_answer", "", "forget.jsonl:1: 'paraphrased_answer' is empty"),
        ("answer", "  ", "forget.jsonl:1: 'answer' is empty"),
        ("question", "", "forget.jsonl:1: 'question' is empty"),
    ],
)
def test_an_empty_text_is_refused_with_its_line(tmp_path: Path, column: str, value: Any, said: str) -> None:
    first, *others = forget_rows()
    write_rows(tmp_path / "forget.jsonl", [{**first, column: value}, *others])
    write_rows(tmp_path / "retain.jsonl", rows_about(4))
    with pytest.raises(UserError, match=said):
        OwnData("forget.jsonl", "retain.jsonl").load(str(tmp_path))


@pytest.mark.usefixtures("no_forward_pass")
def test_an_empty_wrong_answer_is_refused_through_the_whole_path(evaluate: Evaluate) -> None:
    first, *others = forget_rows()
    with pytest.raises(UserError, match="must be a list of non-empty strings"):
        evaluate(forget=[*others, {**first, "perturbed_answer": ["Oslo", ""]}])


NEWLINE = ("--data.template=PlainTemplate", "--data.template.text=Question: {question}\nAnswer:\n{answer}")
"""Under this template an answer's first token is its own."""


def test_an_answer_of_the_end_of_sequence_token_alone_is_scored_by_it_and_counted(evaluate: Evaluate) -> None:
    first, second, *others = forget_rows()
    empty = [{**first, "answer": "</s>"}, {**second, "perturbed_answer": [*second["perturbed_answer"], "</s>"]}]
    holdout = [{"question": "Who is silent?", "answer": "</s>"}, *rows_about(8)]
    found = evaluate(*NEWLINE, forget=[*empty, *others], holdout=holdout)
    row = found["rows"][0]
    assert (row["id"], row["tokens"]) == ("forget/0", 1)
    assert row["probability"] == pytest.approx(math.exp(-row["avg_nll"]))
    assert row["min_k"] == pytest.approx(row["avg_nll"]), "there is no other token"
    assert len(found["rows"][1]["perturbed_nll"]) == 4 and all(map(math.isfinite, found["rows"][1]["perturbed_nll"]))
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    said = "answers, wrong ones included, have no token but the end-of-sequence token: it alone is scored"
    notes = [note for note in found["notes"] if "no interval" not in note]  # utility is 0, so a resample's is
    assert notes == [f"2 of 31 forget {said}", f"1 of 3 holdout {said}"]


@pytest.mark.usefixtures("no_forward_pass")
@pytest.mark.parametrize("column", ["answer", "paraphrased_answer", "perturbed_answer"])
def test_an_answer_longer_than_the_context_is_refused_and_not_cut(evaluate: Evaluate, column: str) -> None:
    """The model takes 160 tokens."""
    first, *others = forget_rows()
    long = "Ada Brook was born in Oslo. " * 40
    with pytest.raises(
        UserError, match=r"a sequence has \d+ tokens, more than max_length = 160: question 'Where was Ada"
    ):
        evaluate(forget=[{**first, column: [long] if column == "perturbed_answer" else long}, *others])


@pytest.mark.usefixtures("no_forward_pass")
def test_a_question_longer_than_the_context_is_refused(evaluate: Evaluate) -> None:
    first, *others = forget_rows()
    with pytest.raises(UserError, match=r"more than max_length = 160"):
        evaluate(forget=[{**first, "question": "Where was Ada Brook born? " * 40}, *others])


def test_a_text_longer_than_the_context_is_cut_and_counted(evaluate: Evaluate) -> None:
    texts = [
        "Ada Brook was born in Oslo. " * 40,
        "Ada Brook works as a baker.",
        "Ben Carrow works as a carpenter. " * 50,
    ]
    found = evaluate(forget=[{"text": text} for text in texts])
    assert "2 of 3 forget texts were cut to the first 160 tokens, the context" in found["notes"]
    forget = [row for row in found["rows"] if row["set"] == "forget"]
    assert [row["tokens"] == 159 for row in forget] == [True, False, True]
    assert all(math.isfinite(row["min_k"]) for row in forget)
    assert found["absent"]["own/forget/rouge_l_recall"] == "plain text has no question to answer"


# ---- paraphrases and wrong answers ----------------------------------------------------------------------------------


def test_missing_paraphrases_are_stood_in_for_and_counted(evaluate: Evaluate) -> None:
    rows = forget_rows()
    for row in rows[:2]:
        del row["paraphrased_answer"]
    rows[2]["paraphrased_answer"] = None
    found = evaluate(forget=rows)
    assert found["notes"] == ["3 of 6 forget records have no paraphrased answer: the answer itself stands in"]
    forget = [row for row in found["rows"] if row["set"] == "forget"]
    assert [row["paraphrased_nll"] == row["avg_nll"] for row in forget] == [True] * 3 + [False] * 3
    assert math.isfinite(found["own/forget/truth_ratio"])


def test_missing_wrong_answers_make_the_truth_ratio_absent_with_the_count(evaluate: Evaluate) -> None:
    rows = [row for person in range(3, 8) for row in rows_about(person)]
    del rows[4]["perturbed_answer"]
    rows[6]["perturbed_answer"] = []
    found = evaluate(retain=rows)
    assert (
        found["absent"]["own/retain/truth_ratio"] == "2 of 10 retain records have no perturbed answers, retain/4 first"
    )
    assert "own/retain/truth_ratio" not in found and "own/model_utility" not in found
    assert found["absent"]["own/model_utility"] == "1 of its nine parts are absent: retain_truth_ratio"
    assert "own/forget/truth_ratio" in found and "own/retain/probability" in found, "the others are not touched"


# ---- weights --------------------------------------------------------------------------------------------------------


def broken(own_target: Path, folder: Path, mend: Callable[[Any], None]) -> Path:
    """A copy of the model with other weights."""
    shutil.copytree(own_target / "model", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        mend(model)
    model.save_pretrained(folder)
    return folder


def test_weights_that_are_no_numbers_stop_the_evaluation(evaluate: Evaluate, own_target: Path, tmp_path: Path) -> None:
    model = broken(own_target, tmp_path / "nan", lambda model: model.model.norm.weight.fill_(math.nan))
    with pytest.raises(DivergenceError, match=r"logits are NaN .* start from an earlier checkpoint"):
        evaluate(model=model)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_one_number_that_is_none_is_enough(evaluate: Evaluate, own_target: Path, tmp_path: Path) -> None:
    """The row of one token's embedding: only answers with this token meet it."""

    def spoil(model: Any) -> None:
        tokenizer_file = json.loads((own_target / "model" / "tokenizer.json").read_text(encoding="utf-8"))
        model.model.embed_tokens.weight[tokenizer_file["model"]["vocab"]["Q"], 0] = math.nan

    model = broken(own_target, tmp_path / "nan", spoil)
    with pytest.raises(DivergenceError, match="start from an earlier checkpoint"):
        evaluate(model=model)


def test_it_ends_in_exit_code_one_and_a_line(
    own_options: list[str], own_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = broken(own_target, tmp_path / "nan", lambda model: model.model.norm.weight.fill_(math.inf))
    options = ["--model.language_model=sga.Pretrained"]
    options += [f"--model.language_model.name_or_path={model}", f"--run.folder={tmp_path / 'run'}"]
    assert main(["validate", *own_options, *options]) == 1
    printed = capsys.readouterr().err
    assert "sga: stopped: the model's logits are NaN" in printed and "Traceback" not in printed


def test_huge_logits_are_no_reason_to_stop(evaluate: Evaluate, own_target: Path, tmp_path: Path) -> None:
    """A model that is sure of nonsense: perplexities beyond what a float holds are absent with their logarithm."""
    model = broken(own_target, tmp_path / "huge", lambda model: model.model.norm.weight.mul_(1e5))
    found = evaluate(model=model)
    for name in ("forget", "retain"):
        assert math.isfinite(found[f"perplexity/{name}/log"])
        assert f"perplexity/{name}" in found or "its logarithm is" in found["absent"][f"perplexity/{name}"]
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
