"""`sga ask`, `sga methods`, `sga config`, and what is said of verbs and flags that have another name here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sga
from sga.__main__ import VERBS, main
from sga.batching.encoding import Encoder
from sga.batching.templates import AutoTemplate, PlainTemplate
from sga.commands.ask import run_template
from sga.commands.config import shipped_files
from sga.errors import UserError

QUESTION = "Where was Ada Brook born?"


@pytest.fixture(scope="module")
def chatting(own_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template, as an exported folder."""
    folder = tmp_path_factory.mktemp("chatting") / "model"
    shutil.copytree(own_target / "model", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_one_model_says_what_it_says_greedily(own_target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against transformers' own generate; the tiny model knows the answer."""
    folder = own_target / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoder = Encoder(tokenizer, PlainTemplate(), 160)
    prompt = torch.tensor([encoder.encode_prompt(QUESTION)])
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    expected = encoder.decode(made[0, prompt.shape[1] :].tolist())
    assert main(["ask", str(own_target), QUESTION, "--max-new-tokens=12"]) == 0
    name, _, said = capsys.readouterr().out.partition("─" * 80)
    assert "".join(name.split()) == str(own_target) and " ".join(said.split()) == " ".join(expected.split()) != ""


def test_two_models_stand_side_by_side_with_the_likelihood_of_an_answer(
    own_target: Path, own_reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "Ada Brook was born in Oslo."
    assert main(["ask", str(own_target), str(own_reference), QUESTION, f"--answer={answer}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    ruler = next(line for line in lines if "─" in line)
    assert ruler == f"{'─' * 39}  {'─' * 39}"
    found = []
    for start in (0, 41):
        column = " ".join(" ".join(line[start : start + 39] for line in lines).split())
        [mean] = re.findall(r"([\d.]+) nats per token \(\d+ tokens\)", column)
        tokens = [float(value) for value in re.findall(r'" ?([\d.]+)(?= "|$)', column)]
        assert len(tokens) > 3 and sum(tokens) / len(tokens) == pytest.approx(float(mean), abs=0.01)
        found.append(float(mean))
    encoder = Encoder(AutoTokenizer.from_pretrained(own_target / "model"), PlainTemplate(), 160)
    pair = encoder.encode(QUESTION, answer)
    model = AutoModelForCausalLM.from_pretrained(own_target / "model").eval()
    with torch.no_grad():
        log_probs = model(torch.tensor([pair.ids])).logits[0].log_softmax(-1)
    nll = [-float(log_probs[place - 1, pair.ids[place]]) for place in range(pair.prompt_length, len(pair.ids))]
    assert found[0] == pytest.approx(sum(nll) / len(nll), abs=1e-3)
    assert found[0] < found[1], "the reference has never seen it"


def test_the_template_is_the_run_s_or_the_tokenizer_s(
    own_target: Path, chatting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatting)
    assert run_template(str(chatting)) == AutoTemplate()
    assert "user: " in AutoTemplate().prompt(tokenizer, QUESTION).prefix
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "run.json").write_text("{}")
    stored = {"data": {"template": {"class_path": "sga.PlainTemplate", "init_args": {"text": "{question} {answer}"}}}}
    (run / "config.yaml").write_text(json.dumps(stored))
    assert run_template(str(run)) == run_template(str(run / "model")) == PlainTemplate("{question} {answer}")
    (run / "config.yaml").write_text(json.dumps({"data": {"template": "sga.SmallLlama"}}))
    assert main(["ask", str(run), QUESTION]) == 2
    assert "data.template is SmallLlama, which is no template" in capsys.readouterr().err


def test_a_run_s_template_runs_no_code_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "others_template.py").write_text(
        "import pathlib, sga\npathlib.Path(__file__).with_name('ran').touch()\nclass Mine(sga.PlainTemplate): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for data, said in (
        ({"template": "others_template.Mine"}, "others_template.Mine, which is not of this package: --trust-code"),
        ({"template": {"init_args": {"text": "{question}{answer}"}}}, "data.template names no class_path"),
        ({"template": {"class_path": "sga.PlainTemplate", "init_args": [1]}}, "cannot be made"),
        ({"template": [1]}, "names no class_path"),
    ):
        (tmp_path / "config.yaml").write_text(json.dumps({"data": data}))
        with pytest.raises(UserError, match=said):
            run_template(str(tmp_path))
        assert not (tmp_path / "ran").exists()
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"template": "others_template.Mine"}}))
    assert type(run_template(str(tmp_path), trust_code=True)).__name__ == "Mine"
    (tmp_path / "config.yaml").write_text('{"data": null}')
    assert run_template(str(tmp_path)) == AutoTemplate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/at/all", QUESTION], "no such folder"),
        (["MODEL", " "], "the question is empty"),
        (["MODEL", QUESTION, "--max-new-tokens=0"], "at least 1"),
        (["MODEL", QUESTION * 40], "tokens"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: list[str], said: str, own_target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(own_target) if argument == "MODEL" else argument for argument in arguments]
    assert main(["ask", *given]) == 2
    assert said in capsys.readouterr().err


def test_what_it_waits_for_is_said_apart_from_the_answers(own_target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(own_target), str(own_target / "model"), QUESTION]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "loading libraries",
        f"loading {own_target}",
        "answering",
        f"loading {own_target / 'model'}",
        "answering",
    ]
    assert "loading" not in said.out


def test_a_run_without_a_model_yet_is_said_to_be_unfinished(
    own_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was "no such folder", or "has no config.json", while the run was at work."""

    def said(place: Path) -> str:
        assert main(["ask", str(own_target), str(place), QUESTION]) == 2
        error = capsys.readouterr().err
        assert "loading" not in error, "before anything is loaded"
        return error

    mine = tmp_path / "mine"
    (mine / "start").mkdir(parents=True)
    (mine / "start" / "run.json").write_text('{"verb": "validate"}')
    for place in (mine, mine / "unlearned", mine / "unlearned" / "model"):
        assert "mine/unlearned: the run has not finished: its model/ is written at its end" in said(place)
    assert "mine/start is an evaluation, which leaves no model" in said(mine / "start")
    (mine / "unlearned").mkdir()
    (mine / "unlearned" / "task.json").write_text('{"state": "started"}')
    for place in (mine, mine / "unlearned", mine / "unlearned" / "model"):
        assert "mine/unlearned: the run has not finished: its model/ is written at its end" in said(place)
    (mine / "unlearned" / "model").mkdir()
    (mine / "unlearned" / "model" / "config.json").write_text("{}")
    assert f"give the run with the model, {mine / 'unlearned'}" in said(mine)
    (tmp_path / "other").mkdir()
    assert main(["ask", str(tmp_path / "other"), QUESTION]) == 2
    assert "has no config.json" in capsys.readouterr().err, "no run at all"


# ---- methods and configurations -------------------------------------------------------------------------------------


def test_every_loss_that_a_configuration_names_is_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    named = {
        found
        for path in shipped_files().values()
        for found in re.findall(r"loss:\s+class_path: sga\.(\w+)", path.read_text(encoding="utf-8"))
    }
    blocks = re.findall(r"^(\w+): ((?:.*\n {4})*?.*?\(arXiv[^)]*\))$", printed, re.MULTILINE)
    listed = {name: " ".join(block.split()) for name, block in blocks}
    assert set(listed) == named >= {"SmoothedGradientAscent", "NPO", "RMU"}
    assert listed["NPO"].startswith("npo, npo-kl, npo-nll (arXiv 2404.05868")
    assert "arXiv 2510.22376" in listed["SmoothedGradientAscent"] and "phi-1.5" not in listed["RMU"]
    assert all(getattr(sga, name) for name in listed)


def test_configurations_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(shipped_files())
    assert len(names) > 20 and main(["config", "list"]) == 0
    assert capsys.readouterr().out.split() == names
    assert main(["config", "copy", "prompts", "demo/demo", f"--to={tmp_path}"]) == 0
    copied = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml"))
    assert copied == [
        "demo/demo.yaml",
        "prompts/alternative.yaml",
        "prompts/book.yaml",
        "prompts/news.yaml",
        "prompts/qa.yaml",
    ]
    assert (tmp_path / "demo/demo.yaml").read_bytes() == shipped_files()["demo/demo"].read_bytes()
    capsys.readouterr()
    for name, said in (
        ("demo/demo", "is there already"),
        ("demo/dmeo", "did you mean demo/demo"),
        ("sga", "may be any of"),
    ):
        assert main(["config", "copy", name, f"--to={tmp_path}"]) == 2
        assert said in capsys.readouterr().err


# ---- other names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "did you mean sga fit?"),
        (["eval", "--config", "x"], "did you mean sga validate?"),
        (["compar"], "did you mean sga compare?"),
        (["fit", "--lr", "1e-4"], "there is no flag --lr; did you mean --model.optimizer.lr?"),
        (["fit", "--epochs=3"], "there is no flag --epochs; did you mean --trainer.max_epochs?"),
        (["fit", "--method=npo"], "sga methods lists them"),
        (["validate", "--batch-size", "3"], "did you mean --data.batch_size?"),
    ],
)
def test_what_has_another_name_here_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_negative_control_an_unknown_verb_is_like_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    said = capsys.readouterr().err
    assert "did you mean" not in said and all(verb in said for verb in VERBS)
