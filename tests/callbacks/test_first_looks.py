"""The template that a run takes, what it says of it first, and the warning where a model does not answer in it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from sga.batching.templates import ChatTemplate, PlainTemplate
from sga.callbacks import first_looks
from sga.callbacks.first_looks import FirstLooks
from sga.cli import run_verb
from sga.evaluation.metrics import repeats_ngram
from sga.files import read_json_object

QUICK = ("--evaluation.answers=null", "--export.enabled=false", "--trainer.max_epochs=1")


@pytest.fixture(scope="module")
def chatting(own_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which has learned a plain template, with a chat template."""
    folder = tmp_path_factory.mktemp("chatting") / "model"
    shutil.copytree(own_target / "model", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def run(verb: str, options: list[str], *more: str) -> tuple[str, list[str]]:
    """Settings of a verb's results, and warnings on templates and answers."""
    if verb == "validate":
        options = [one for one in options if not one.startswith(("--model.loss", "--model.optimizer"))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_verb([verb, *options, *QUICK, *more])
    folder = next(one.partition("=")[2] for one in more if one.startswith("--run.folder="))
    said = [str(one.message) for one in caught]
    template = read_json_object(Path(folder) / "run.json")["evaluation"]["template"]
    return template, [one for one in said if "chat template" in one or "greedy answers" in one]


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_the_tokenizer_s_own_template_is_taken_and_shown(
    verb: str, unlearn_options: list[str], chatting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"--model.language_model.name_or_path={chatting}"
    template, said = run(verb, unlearn_options, model, f"--run.folder={tmp_path / 'run'}")
    printed = capsys.readouterr().out
    assert template == repr(ChatTemplate()) and not [one for one in said if "chat template of its own" in one]
    assert printed.count("template: ChatTemplate(") == printed.count("first prompt: 'user: ") == 1
    assert "?assistant: '" in printed


def test_a_tokenizer_without_a_chat_template_gets_the_plain_one_as_before(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words in the results as where PlainTemplate is named, and no warning: the model knows this form."""
    texts = ("--run.texts=false",)
    template, said = run("fit", unlearn_options, f"--run.folder={tmp_path / 'run'}", *texts)
    assert template == repr(PlainTemplate()) and said == []
    printed = capsys.readouterr().out
    assert "template: PlainTemplate(" in printed and "first prompt" not in printed, "texts stay out of log files too"
    named, _ = run("validate", unlearn_options, f"--run.folder={tmp_path / 'named'}", "--data.template=PlainTemplate")
    assert named == template
    ours, theirs = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("run", "named")
    )
    assert {name: ours[name] for name in theirs if "/" in name} == {
        name: value for name, value in theirs.items() if "/" in name
    }


def test_a_plain_template_beside_a_chat_template_is_said(
    unlearn_options: list[str], chatting: Path, tmp_path: Path
) -> None:
    model = (f"--model.language_model.name_or_path={chatting}", "--data.template=PlainTemplate")
    template, said = run("validate", unlearn_options, *model, f"--run.folder={tmp_path / 'run'}")
    assert template == repr(PlainTemplate())
    assert len(said) == 1 and "has a chat template of its own" in said[0] and "Leave out --data.template" in said[0]


def test_a_run_resumes_with_its_template(unlearn_options: list[str], chatting: Path, tmp_path: Path) -> None:
    options = (f"--model.language_model.name_or_path={chatting}", f"--run.folder={tmp_path / 'run'}")
    run("fit", unlearn_options, *options)
    template, _ = run("fit", unlearn_options, *options, "--ckpt_path=last", "--trainer.max_epochs=2")
    assert template == repr(ChatTemplate())


def test_max_time_and_the_schedule(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flags in (("timed", ["--trainer.max_time=00:01:00:00"]), ("plain", [])):
        run("fit", unlearn_options, f"--run.folder={tmp_path / name}", "--trainer.num_sanity_val_steps=0", *flags)
        assert ("may end in the middle of its schedule" in capsys.readouterr().out) == bool(flags)


# ---- answers --------------------------------------------------------------------------------------------------------


def shares(answer: str) -> dict[str, float]:
    """What `Fluency` writes into the row of an answer of one token a word."""
    empty, repeated = not answer, repeats_ngram([hash(word) for word in answer.split()])
    return {"empty": float(empty), "repeated": float(repeated), "degenerate": float(empty or repeated)}


def looked_at(
    answers: list[str], monkeypatch: pytest.MonkeyPatch, verb: str = "fit", chat: str | None = None
) -> list[str]:
    """Warnings after a first evaluation with these greedy answers."""
    rows: dict[tuple[str, str], dict[str, Any]] = {
        ("forget", f"forget/{number}"): {"generation": answer, **shares(answer)}
        for number, answer in enumerate(answers)
    }
    rows["retain", "retain/0"] = {"generation": "Of rows that fluency does not look at, nothing is known."}
    rows["forget", "forget/text"] = {"nll": 1.0}
    evaluation = SimpleNamespace(rows=rows)
    monkeypatch.setattr(first_looks, "evaluation_of", lambda trainer: evaluation)
    tokenizer = SimpleNamespace(chat_template=chat, decode=lambda ids: "</s>")
    data = SimpleNamespace(template=PlainTemplate(), tokenizer=tokenizer, train_on=("forget",))
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn=verb), is_global_zero=True, global_step=0)
    callback, module = FirstLooks(), SimpleNamespace(data=data, stop_ids=[2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
        callback.on_validation_end(trainer, module)  # type: ignore[arg-type]
    return [str(one.message) for one in caught]


def test_a_model_that_says_nothing_is_said_once_with_the_likely_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    [said] = looked_at([""] * 16, monkeypatch)
    assert said.startswith("16 of 16 greedy answers are empty before unlearning (first forget forget/0)")
    assert "not the one that the model was trained on" in said and "'</s>'" in said
    [said] = looked_at([""] * 16, monkeypatch, chat="{{ messages }}")
    assert "the tokenizer has a chat template of its own" in said
    [said] = looked_at(["in " * 20] * 9 + ["Oslo."], monkeypatch, verb="validate")
    assert said.startswith("9 of 10 greedy answers repeat themselves (first forget forget/0)")
    assert "</s>" not in said


def test_negative_control_answers_are_said_nothing_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_at(["Oslo."] * 16, monkeypatch) == looked_at([], monkeypatch) == []
    assert looked_at([""] * 8 + ["Oslo."] * 8, monkeypatch) == []
