"""The command line: quick help, exit codes, and one readable message for everything that a user can get wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import rows_about, shipped, write_rows
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForCausalLM

from sga import __main__ as command_line
from sga import __version__
from sga.errors import DivergenceError, UserError
from sga.runs.folder import RunFolder
from sga.runs.provenance import commit

main = command_line.main


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sga", *arguments], capture_output=True, text=True, timeout=120)


# ---- help -----------------------------------------------------------------------------------------------------------


def test_help_is_there_at_once_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "lightning", "transformers", "datasets", "sklearn", "numpy", "yaml")
    code = (
        "import sys; from sga.__main__ import main; assert main(['--help']) == 0; "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        seconds.append(time.monotonic() - began)
        assert done.returncode == 0
        assert done.stderr.strip() == "[]"
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2
    for verb in ("fit", "validate", "test", "predict", "data show", "report", "demo"):
        assert f"\n  {verb}" in done.stdout


def test_negative_control_a_verb_does_import_them() -> None:
    assert "torch" in sys.modules


def test_exit_codes_without_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    menu = capsys.readouterr().out
    assert len(re.findall("^  sga ", menu, re.MULTILINE)) == 5 and max(map(len, menu.splitlines())) <= 80
    assert main(["--version"]) == 0
    known = commit()
    assert capsys.readouterr().out.endswith(f"sga {__version__}{f' ({known})' if known else ''}\n")
    assert main(["help"]) == main(["-h"]) == 0
    capsys.readouterr()
    assert main(["fitt"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sga: error: there is no verb 'fitt'; did you mean sga fit? choose from fit, validate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "--titel", "x", "run"], "unrecognized arguments: --titel; did you mean --title?"),
        (["plan", "model", "--lenght", "5"], "unrecognized arguments: --lenght; did you mean --length?"),
        (["fit", "--data.grup_size", "4"], "did you mean --data.group_size?"),
        (["score", "log", "--truth-ratio-mean", "x"], "invalid choice: 'x'"),
        (["sweep", "x.yaml", "--workers", "two"], "invalid int value: 'two'"),
    ],
)
def test_a_misspelt_option_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_misspelt_second_word_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["normals", "retreive"]) == 2
    assert "there is no verb 'normals retreive'; did you mean retrieve? choose from" in capsys.readouterr().err
    assert main(["config"]) == 2 and main(["normals", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "  copy " in printed and "  generate  " in printed and max(map(len, printed.splitlines())) <= 80


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("fit", "validate", "test", "predict"):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        short = capsys.readouterr().out
        assert "--data.micro_batch_size" in short and "--trainer.barebones" not in short
        assert len(short.splitlines()) < 150
    with pytest.raises(SystemExit):
        main(["fit", "--help-all"])
    everything = capsys.readouterr().out
    assert "--trainer.barebones" in everything and "known subclasses" in everything
    assert main(["data", "--help"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["data", "show", "--help"])
    assert stopped.value.code == 0
    assert "answer tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("mend it"), 2), (DivergenceError("nan"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_is_raised_becomes_an_exit_code_and_a_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.delenv("SGA_TRACEBACK", raising=False)
    monkeypatch.setattr(command_line, "_run", lambda verb, arguments: fail(arguments))
    assert main(["fit"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("sga: ") and printed.count("\n") == 1
    if code == 2:
        monkeypatch.setenv("SGA_TRACEBACK", "1")
        with pytest.raises(UserError):
            main(["fit"])


def test_a_defect_is_not_passed_off_as_the_user_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise ValueError("a defect")

    monkeypatch.setattr(command_line, "_run", lambda verb, arguments: fail(arguments))
    with pytest.raises(ValueError, match="a defect"):
        main(["fit"])


def while_handling(first: BaseException, then: BaseException, **chain: Any) -> None:
    """Raises an exception while another is being handled."""
    try:
        raise first
    except BaseException as error:
        if chain.get("of"):
            raise then from error
        if chain.get("alone"):
            raise then from None
        raise then  # noqa: B904  (as a defect does)


@pytest.mark.parametrize("chain", [{}, {"alone": True}])
@pytest.mark.parametrize("first", [UserError("mend it"), KeyboardInterrupt()])
def test_a_defect_while_a_user_error_is_handled_is_a_defect(
    first: BaseException, chain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "_run", lambda *_: while_handling(first, TypeError("a defect"), **chain))
    with pytest.raises(TypeError, match="a defect"):
        main(["fit"])


@pytest.mark.parametrize(
    ("then", "chain", "said"),
    [
        (ValueError("does not validate"), {"of": True}, "mend it"),  # as jsonargparse
        (ArgumentError(None, "wrapped"), {}, "mend it"),
        (MisconfigurationException("wrapped"), {}, "mend it"),
        (MisconfigurationException("wrapped"), {"alone": True}, None),
    ],
)
def test_what_wraps_a_user_error_shows_it(
    then: BaseException,
    chain: dict[str, Any],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SGA_TRACEBACK", raising=False)
    monkeypatch.setattr(command_line, "_run", lambda *_: while_handling(UserError("mend it"), then, **chain))
    if said is None:
        with pytest.raises(type(then)):
            main(["fit"])
    else:
        assert main(["fit"]) == 2
        assert capsys.readouterr().err == f"sga: error: {said}\n"


def test_lightnings_exit_after_an_interrupt_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_run", lambda *_: while_handling(KeyboardInterrupt(), SystemExit(1)))
    assert main(["fit"]) == 130


# ---- wrong input ----------------------------------------------------------------------------------------------------


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that ends in exit code 2; any other exception is a failure of the test."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        code = stopped.code
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert "Traceback" not in printed
    return printed


SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "rate above 1": (["--model.loss.smoothing_rate=1.5"], ["smoothing_rate must be at most 1, got 1.5"]),
    "rate is nan": (["--model.loss.smoothing_rate=.nan"], ["smoothing_rate must be a finite number"]),
    "rate is a word": (["--model.loss.smoothing_rate=mild"], ["smoothing_rate", "mild"]),
    "negative normal weight": (
        ["--model.loss=sga.GradientDifference", "--model.loss.normal_weight=-1"],
        ["normal_weight must be a finite number of at least 0, got -1"],
    ),
    "unknown loss": (["--model.loss=sga.NoSuchLoss"], ["NoSuchLoss"]),
    "model folder missing": (
        ["--model.language_model.name_or_path=./no/such/model"],
        ["model './no/such/model': no such folder"],
    ),
    "variable not set": (
        ["--model.language_model.name_or_path=$SGA_NOT_SET/model"],
        ["model '$SGA_NOT_SET/model': an environment variable in it is not set"],
    ),
    "no model given": (["--model.language_model=null"], ["language_model"]),
    "TOFU folder missing": (
        ["--data.source=TOFU", "--data.root=no/such/folder"],
        ["--data.root no/such/folder: no TOFU files there"],
    ),
    "unknown TOFU split": (["--data.source=TOFU", "--data.source.forget_split=forget07"], ["forget_split", "forget07"]),
    "own file missing": (["--data.source.retain=none.jsonl"], ["none.jsonl: no such file"]),
    "group too large": (
        ["--data.group_size=12"],
        ["group_size 12 needs 11 normal samples", "pool has 8 beside 2 reserved rows"],
    ),
    "group of none": (["--data.group_size=0"], ["group_size must be at least 1, got 0"]),
    "plain fine-tuning with normals": (["--data.train_on=[forget,retain]"], ["set --data.group_size 1 (got 4)"]),
    "unknown split to train on": (
        ["--data.train_on=[holdout]", "--data.group_size=1"],
        ["train_on names holdout, which own does not have", "forget, retain"],
    ),
    "no split to train on": (["--data.train_on=[]"], ["train_on must name at least one split"]),
    "gradient difference without normals": (
        ["--model.loss=sga.GradientDifference", "--data.group_size=1"],
        ["GradientDifference needs normal samples"],
    ),
    "batch of none": (["--data.batch_size=0"], ["batch_size must be at least 1, got 0"]),
    "micro-batch of none": (["--data.micro_batch_size=0"], ["micro_batch_size must be at least 1, got 0"]),
    "accumulation that contradicts": (
        ["--trainer.accumulate_grad_batches=3"],
        ["trainer.accumulate_grad_batches = 3 contradicts batch_size 4", "leave it out"],
    ),
    "one evaluation row": (["--data.evaluation_rows=1"], ["evaluation_rows must be at least 2, got 1"]),
    "sequence too long": (["--data.max_length=20"], ["more than max_length = 20", "raise --data.max_length"]),
    "template without answer": (
        ["--data.template=PlainTemplate", "--data.template.text=Q {question}"],
        ["must contain {question} once and end with {answer}", "Q {question}"],
    ),
    "no chat template": (["--data.template=ChatTemplate"], ["has no chat template; use --data.template=PlainTemplate"]),
    "date that is none": (
        ["--data.template=ChatTemplate", "--data.template.date=today"],
        ["template date must be an ISO date such as 2024-07-26, got 'today'"],
    ),
    "no token to generate": (["--model_utility.max_new_tokens=0"], ["max_new_tokens must be at least 1, got 0"]),
    "share above 1": (["--membership_inference.min_k_share=2"], ["min_k_share must be above 0 and at most 1, got 2"]),
    "checkpoint every 0 steps": (["--checkpoint.every_n_steps=0"], ["every_n_steps must be at least 1, got 0"]),
    "warm-up below 0": (
        ["--model.schedule=LinearSchedule", "--model.schedule.warmup_epochs=-1"],
        ["warmup_epochs must be at least 0, got -1"],
    ),
    "endless run": (["--trainer.max_epochs=-1"], ["set --trainer.max_epochs or --trainer.max_steps"]),
    "reference missing": (["--evaluation.reference=no/such/run"], ["no/such/run: no such file or folder"]),
    "checkpoint missing": (["--ckpt_path=no/such.ckpt"], ["--ckpt_path no/such.ckpt: no such file"]),
    "unknown option": (["--data.groupsize=4"], ["groupsize"]),
    "configuration missing": (["--config=no/such.yaml"], ["no/such.yaml"]),
    "role that is none": (["--run.role=teacher"], ["role", "teacher"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_said_in_one_message(
    name: str, unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, said = SETTINGS[name]
    printed = refused(["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", *options], capsys)
    assert all(part in printed for part in said), printed
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_negative_control_the_command_without_a_wrong_setting_runs(unlearn_options: list[str], tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=1", "--model_utility.generate=false", "--export.enabled=false"]
    assert main(["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", *options]) == 0


def fit_on(root: Path, unlearn_options: list[str], folder: Path) -> list[str]:
    return ["fit", *unlearn_options, f"--data.root={root}", f"--run.folder={folder}"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "Who?", "answer": ', "forget.jsonl:2: not JSON"),
        ('{"question": "Who?"}', "forget.jsonl:2: missing 'answer'"),
        ('["Who?"]', "forget.jsonl:2: expected a JSON object, found list"),
        ('{"question": "Who?", "answer": 3}', "forget.jsonl:2: 'answer' must be a string, got int"),
        (json.dumps(rows_about(4)[0]), "forget record forget/1 also stands in the retain pool, as retain/2"),
    ],
)
def test_a_wrong_line_of_data_is_named(
    line: str,
    said: str,
    own_root: Path,
    unlearn_options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(own_root, tmp_path / "data")
    path = tmp_path / "data" / "forget.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], line, *rows[2:]]))
    assert said in refused(fit_on(tmp_path / "data", unlearn_options, tmp_path / "run"), capsys)


def test_wrong_pairs_folders_and_checkpoints_are_named(
    own_target: Path, unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--trainer.max_epochs=1", "--model_utility.generate=false"]
    fit = ["fit", *unlearn_options, *short, f"--run.folder={tmp_path / 'run'}"]
    assert main(fit) == 0
    assert "already holds a run: go on with it (--ckpt_path last)" in refused(fit, capsys)
    pairs = [f"--data.pairs={tmp_path / 'run' / 'pairs.jsonl'}", f"--run.folder={tmp_path / 'other'}"]
    printed = refused([*fit, *pairs, "--data.group_size=3"], capsys)
    assert "pairs.jsonl:1: 3 normal samples, but group_size 3 needs 2" in printed
    assert "batch_size: 4 before, 2 now" in refused([*fit, "--ckpt_path=last", "--data.batch_size=2"], capsys)
    folder = [f"--run.folder={tmp_path / 'third'}"]
    no_model = [*fit, *folder, f"--model.language_model.name_or_path={tmp_path}"]
    assert "has no config.json (nor a model/ folder with one)" in refused(no_model, capsys)
    no_tokenizer = tmp_path / "model"
    shutil.copytree(own_target / "model", no_tokenizer, ignore=shutil.ignore_patterns("tokenizer*"))
    printed = refused([*fit, *folder, f"--model.language_model.name_or_path={no_tokenizer}"], capsys)
    assert "no tokenizer could be loaded from" in printed


def test_a_file_that_is_no_checkpoint_is_named(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    fit = ["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", f"--ckpt_path={broken}"]
    assert "broken.ckpt" in refused(fit, capsys)


def test_training_without_a_loss_is_refused(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option for option in unlearn_options if "model.loss" not in option]
    printed = refused(["fit", *options, f"--run.folder={tmp_path / 'run'}"], capsys)
    assert "training needs a loss: set model.loss" in printed


def test_evaluation_verbs_name_a_missing_last_checkpoint(
    own_options: list[str], own_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model.language_model=sga.Pretrained"]
    model += [f"--model.language_model.name_or_path={own_target}", f"--run.folder={tmp_path}", "--ckpt_path=last"]
    for verb in ("validate", "test", "predict"):
        assert "--ckpt_path last: no such file" in refused([verb, *own_options, *model], capsys)


@pytest.mark.runs
def test_through_the_shell(own_options: list[str], tmp_path: Path) -> None:
    """Twice from end to end: the process's own exit code, and its standard error as a whole.

    Classes go by their short names there too, though their modules have not been imported.
    """
    done = shell("report", str(tmp_path / "no-such-run"))
    assert done.returncode == 2 and done.stderr.startswith("sga: error: ") and done.stderr.count("\n") == 1
    model = [
        "--model.language_model=Pretrained",
        "--model.language_model.name_or_path=./no/model",
        "--model.loss=NPO",
        "--stop.rule=FitToHandOver",
    ]
    done = shell("fit", *own_options, *model, f"--run.folder={tmp_path / 'run'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "sga: error: model './no/model': no such folder"


# ---- data show ------------------------------------------------------------------------------------------------------


def test_data_show_prints_tokens_and_the_end_of_sequence_and_loads_no_weights(
    unlearn_options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    assert main(["data", "show", "--groups", "1", *unlearn_options]) == 0
    printed = capsys.readouterr().out
    row = rows_about(0)[0]
    assert "training    forget 6, retain 10, real_authors 2, world_facts 2 records; trained on: forget" in printed
    assert "groups      6 of 4" in printed
    assert "end of sequence '</s>'" in printed
    assert printed.count(" group 1 ") == 1 and " group 2 " not in printed
    group = printed[printed.index(" group 1 ") : printed.index("tokens of the forget sample")]
    assert group.count("forget/0") == 1 and len(set(re.findall(r"retain/\d", group))) == 3
    assert set(row["answer"].split()) <= set(group.split())
    shown = printed[printed.index("tokens of the forget sample") :]
    assert "[</s>]" in shown and "|[</s>]|" not in shown, "the end of sequence is the last token"
    inside = "".join(part[1:-1] for part in shown.replace("\n  ", "").split("|") if part.startswith("["))
    assert inside.startswith(f" {row['answer']}</s>"), "answer tokens, and they alone, stand in brackets"
    assert "prompt tokens" in shown


def test_data_show_prints_evaluation_records(unlearn_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "--set", "forget", "--groups", "2", *unlearn_options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("paraphrase ") == 2 and printed.count("perturbed  ") == 6
    assert "there is no evaluation set 'nonsense'" in refused(
        ["data", "show", "--set", "nonsense", *unlearn_options], capsys
    )
    assert "there is no verb 'data shew'" in refused(["data", "shew"], capsys)
    assert main(["data"]) == 2


def test_data_show_says_what_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "f.jsonl", [{"text": "It was a dark and stormy night."}])
    write_rows(tmp_path / "r.jsonl", [{"text": "It was a bright day."}, {"text": "Rain fell on the town."}])
    options = ["--data.source=OwnData", f"--data.root={tmp_path}", "--data.source.forget=f.jsonl"]
    options += [
        "--data.source.retain=r.jsonl",
        "--data.group_size=2",
        "--model.language_model=sga.SmallLlama",
    ]
    assert main(["data", "show", *options]) == 0
    printed = capsys.readouterr().out
    assert "absent      holdout: no holdout file was given (--data.source.holdout)" in printed
    assert "(1 prompt tokens" in printed, "plain text is scored from its second token on"


# ---- options that are text ------------------------------------------------------------------------------------------

TARGET = shipped("authors", "target")
PLAIN_TEXT = (*TARGET, "--data.template=PlainTemplate")
CHAT = (*TARGET, "--data.template=ChatTemplate")
TEXTS = [
    "Answer: briefly",
    "User: {question}\nAssistant: {answer}",
    "- one\n- two",
    "[INST] be brief [/INST]",
    "{brief}",
    "# brief",
    "~",
    "Null",
    "yes",
    "'quoted'",
    '"quoted"',
    " spaces ",
    "&a *b !c @d `e",
    "a: b: c",
    "configs/methods/target.yaml",  # the name of a file is a name
    "-1",
    "",
]


def parsed(*options: str) -> Any:
    from sga.cli import parsed_config

    return parsed_config(["fit", *options])["fit"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.runs
def test_text_is_taken_verbatim(text: str, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of options of the verb, and of options of a class that an option names; written back it is the same."""
    import yaml

    from sga.cli import _cli, _ParsingCLI, plain_config

    monkeypatch.chdir(Path(__file__).parents[1])  # where a file has the name of one of the texts

    def option(name: str, value: str) -> list[str]:
        return [f"--{name}", value] if apart and not value.startswith("-") else [f"--{name}={value}"]

    arguments = [*CHAT, *option("data.template.system", text), *option("data.root", text)]
    cli = _cli(_ParsingCLI, ["fit", *arguments])
    config = cli.config["fit"]
    assert config.data.template.init_args.system == config.data.root == text
    assert type(config.data.root) is type(config.data.template.init_args.system) is str
    again = yaml.safe_load(yaml.safe_dump(plain_config(cli._parser("fit"), config)))
    assert again["data"]["root"] == again["data"]["template"]["init_args"]["system"] == text


@pytest.mark.runs
def test_a_template_s_text_is_taken_verbatim() -> None:
    for text in (
        "User: {question}\nAssistant: {answer}",
        "[{question}, {answer}",
        "{question}: {answer}",
        "# {question}\n{answer}",
    ):
        template = parsed(*PLAIN_TEXT, "--data.template.text", text).data.template.init_args
        assert template.text == text and template.answer_tag == ""
    tagged = ("--data.template.text=Q: {question}\nA: {answer}", "--data.template.answer_tag=A: ")
    assert parsed(*PLAIN_TEXT, *tagged).data.template.init_args.answer_tag == "A: "


def test_negative_control_what_is_no_text_is_still_read_as_yaml() -> None:
    config = parsed(
        *CHAT,
        "--data.template.system=null",
        "--data.root=null",
        "--data.template.arguments.enable_thinking=false",
        "--data.template.arguments.effort",
        "low",
        "--data.train_on=[forget, retain]",
        "--data.batch_size=3",
        "--model.optimizer.betas=[0.5, 0.9]",
        "--data.source={class_path: sga.OwnData, init_args: {forget: 'a: b', retain: c, holdout: null}}",
        "--data.source.world_facts=w: 1",
    )
    assert config.data.template.init_args.system is None and config.data.root is None
    assert config.data.template.init_args.arguments == {"enable_thinking": False, "effort": "low"}
    assert config.data.train_on == ["forget", "retain"] and config.data.batch_size == 3
    assert list(config.model.optimizer.init_args.betas) == [0.5, 0.9]
    source = config.data.source.init_args
    assert (source.forget, source.holdout, source.world_facts) == ("a: b", None, "w: 1")
    arguments = parsed(*CHAT, "--data.template.arguments={enable_thinking: false}").data.template.init_args.arguments
    assert arguments == {"enable_thinking": False}
    with pytest.raises(SystemExit):
        parsed(*CHAT, "--data.template.system=a", "--data.batch_size=three")


# ---- folders of an earlier version ----------------------------------------------------------------------------------


def test_a_run_older_than_an_option_resumes_by_its_default_only(tmp_path: Path) -> None:
    """A stored configuration without data.special_tokens was run as its default says."""
    import yaml

    from sga.cli import _check_folder, _cli, _ParsingCLI, plain_config

    def check(*options: str) -> None:
        cli = _cli(_ParsingCLI, ["fit", *PLAIN_TEXT, *options])
        _check_folder(RunFolder(tmp_path), "last.ckpt", cli._parser("fit"), cli.config["fit"])

    cli = _cli(_ParsingCLI, ["fit", *PLAIN_TEXT])
    stored = plain_config(cli._parser("fit"), cli.config["fit"])
    assert stored["data"].pop("special_tokens") == "warn"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    check()
    with pytest.raises(UserError, match=r"data\.special_tokens: 'warn' before, 'text' now"):
        check("--data.special_tokens=text")
    with pytest.raises(UserError, match=r"data\.batch_size: "):
        check("--data.batch_size=7")
