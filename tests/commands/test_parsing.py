"""Command lines made of functions: every kind of parameter, and every option that was there before."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from sga.__main__ import VERBS
from sga.commands import normals
from sga.commands.parsing import Repeated, Verb, verb

seen: dict[str, Any] = {}


@dataclass(frozen=True)
class Options:
    """Options of their own.

    Attributes:
        rate (RATE): Rate of 5 % or so.
        job (NAME=VALUE): Parameter of a job.
    """

    rate: float = 0.5
    job: Repeated = ()


@verb("try", output="--folder")
def tried(
    log: Path,
    other: str | None,
    *rest: str,
    needed: int,
    output: Path = Path("runs"),
    kind: Literal["a", "b"] = "a",
    many: Sequence[float] = (1.0, 2.0),
    set_: Repeated = (),
    options: Options,
    dry_run: bool = False,
    seed: int = 0,
) -> int:
    """Try it.

    Args:
        log (LOG): Log to read.
        other: Another one.
        needed: Number that is needed.
        output (DIR): Folder.
        kind: Kind of it.
        many: Numbers.
        set_ (NAME=VALUE): Setting.
        dry_run: Do nothing.
        seed: Seed.
    """
    seen.update(locals())
    return 3


def test_every_kind_of_parameter_is_an_argument() -> None:
    line = [
        "x",
        "--needed",
        "3",
        "--folder",
        "y",
        "--kind",
        "b",
        "--many",
        "3",
        "4",
        "--set",
        "a=1",
        "--set",
        "b:",
        "--rate",
        ".1",
        "--job",
        "c=2",
        "--dry-run",
    ]
    assert tried([*line, "--data.group_size=4"]) == 3
    assert seen == {
        "log": Path("x"), "other": None, "rest": ("--data.group_size=4",), "needed": 3, "output": Path("y"),
        "kind": "b", "many": (3.0, 4.0), "set_": ("a=1", "b:"), "options": Options(0.1, ("c=2",)), "dry_run": True,
        "seed": 0,
    }  # fmt: skip
    assert tried(["x", "--needed=3"]) == 3
    assert seen["output"] == Path("runs") and seen["options"] == Options() and seen["many"] == (1.0, 2.0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "the following arguments are required: --needed"),
        ("--needed 3", "the following arguments are required: LOG"),
        ("x --needed three", "argument --needed: invalid int value: 'three'"),
        ("x --needed 3 --kind c", "argument --kind: invalid choice: 'c'"),
        ("x --needed 3 --mnay 4", "unrecognized arguments: --mnay; did you mean --many?"),
    ],
)
def test_what_is_wrong_is_said(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tried(line.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_docstring_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tried(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Try it." in said and "--output DIR, --folder DIR Folder (default runs)" in said
    assert (
        "--rate RATE Rate of 5 % or so (default 0.5)" in said and "--many X [X ...] Numbers (default 1.0 2.0)" in said
    )
    assert "[options of sga fit]" in said and "--seed N Seed (default 0)" in said and "(default False)" not in said


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--rate -1e-3", "options", Options(rate=-1e-3)),
        ("--rate -.5", "options", Options(rate=-0.5)),
        ("--job -c=2 --job -d", "options", Options(job=("-c=2", "-d"))),
        ("--folder -x", "output", Path("-x")),
        ("--many -1e-3 -2E+1 3", "many", (-1e-3, -20.0, 3.0)),
    ],
)
def test_a_value_may_begin_with_a_dash(line: str, name: str, value: Any) -> None:
    assert tried(["x", "--needed", "-3", *line.split()]) == 3
    assert seen[name] == value and seen["needed"] == -3


@pytest.mark.parametrize("line", ["--folder --seed 1", "--folder --data.group_size=4", "--folder"])
def test_negative_control_an_option_is_not_the_value_of_another(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tried(["x", "--needed", "3", *line.split()])
    assert "--folder: expected one argument" in capsys.readouterr().err


def test_no_help_speaks_of_python_s_none() -> None:
    modules = [importlib.import_module(f"sga.commands.{name}") for name in VERBS if name not in LIGHTNING]
    verbs = {id(one): one for module in modules for one in vars(module).values() if isinstance(one, Verb)}
    assert len(verbs) > 15
    assert [one for one in verbs.values() if re.search(r"\bNone\b", one.parser().format_help())] == []


LIGHTNING = ("fit", "validate", "test", "predict")

BEFORE = {
    "attack": "reference attacks target output rows max-new-tokens steps rate samples questions leak nli words shots "
    "prefix seed shares benign",
    "ask": "answer max-new-tokens trust-code",
    "compare": "step-a step-b output resamples seed",
    "demo": "config folder",
    "methods": "",
    "plan": "length answer gpu memory flops",
    "rate": "groups chunks held margins output",
    "report": "output title",
    "score": "reference step reference-step truth-ratio-mean reference-auc full output no-intervals",
    "sequence": "config folder set",
    "sweep": "folder workers set gpus cluster job retry-failed results",
    "unlearn": "forget retain holdout method lora output folder epochs lr group-size set anyway",
    "_retrieve": "output overwrite on-failure",
    "_generate": "output overwrite on-failure url local name key-variable prompt temperature max-tokens concurrency "
    "requests-per-minute timeout tries backoff attempts price-read price-written dry-run",
    "_check": "output overwrite on-failure",
    "_show": "groups forget width",
}
"""Options of verbs before they were made of functions, by verb or by function of `sga normals`."""


@pytest.mark.parametrize("name", BEFORE)
def test_options_stay_what_they_are(name: str) -> None:
    module = normals if name.startswith("_") else importlib.import_module(f"sga.commands.{name}")
    found = getattr(module, name if name.startswith("_") else {"plan": "_plan"}.get(name, "main"))
    assert isinstance(found, Verb)
    have = {word for word in found.parser()._option_string_actions if word.startswith("--")}
    assert {f"--{word}" for word in BEFORE[name].split()} <= have


def test_every_verb_has_a_module() -> None:
    for name in VERBS:
        if name not in LIGHTNING[1:]:
            assert inspect.getdoc(importlib.import_module(f"sga.commands.{name}"))
