"""Every command that README, pages and notebooks show is one that its verb's own parser takes; nothing is run.

Commands in blocks are parsed whole, those within sentences as far as they go, and every option that is named by itself
is one that there is.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from torch.optim import AdamW

import sga
from sga.__main__ import VERBS, main
from sga.cli import lightning_parser, parsed_config
from sga.commands.completion import verb_parsers
from sga.commands.parsing import Verb
from sga.errors import UserError
from sga.experiments.sequence import read_sequence
from sga.experiments.sweeps.definition import read_sweep

LIGHTNING = ("fit", "validate", "test", "predict")
STAND_IN = ("--config", "configs/benchmarks/authors.yaml", "--config", "configs/methods/sga.yaml")
"""Configurations in place of those that a page leaves open, as ``CONFIG`` or …."""
PLACES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
OTHERS = {
    *("--help", "--help-all", "--version", "--verbose", "--print-completion"),
    *("--private", "--max-restarts", "--nodes", "--ntasks-per-node", "--kill-on-bad-exit"),  # of hf, torchrun, SLURM
    *("--device", "--kinds", "--show"),  # of scripts in benchmarks/
    *("--data.template.arguments.enable_thinking", "--trainer.NAME", "--model.loss.NAME"),  # any name
    *("--model.optimizer.paged", "--trainer.strategy.class_path", "--trainer.strategy.timeout"),  # of others' classes
}
"""Options that pages name and no parser of ours knows."""


def page_commands(page: str) -> Iterator[tuple[str, bool]]:
    """Commands of a page, and whether each stands in a block or within a sentence."""
    prose = FENCE.sub("", page)
    lines = [(text, True) for language, text in FENCE.findall(page) if language in ("", "sh", "bash")]
    lines += [(line, True) for line in re.findall(r"^    (sga .*)$", prose, re.MULTILINE)]
    for text, _ in lines:
        for line in text.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:[A-Z_]+=\S+ |.* -m )*sga (.*)", line)
            if found:
                yield found[1], True
    for text in re.findall(r"`sga ([^`]+)`", prose):
        yield " ".join(text.split()), False


def notebook_page(path: Path) -> str:
    """A notebook's words, and the shell lines of its code as blocks."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(
        "".join(one["source"])
        if one["cell_type"] == "markdown"
        else "".join(
            f"```sh\n{line[1:]}\n```\n" for line in "".join(one["source"]).splitlines() if line.startswith("!")
        )
        for one in cells
    )


def words_of(command: str) -> list[str]:
    """Words of a command up to a redirection, with configurations in place of those that it leaves open."""
    words = [word.strip("[]") for word in shlex.split(command, comments=True)]
    words = words[: next((place for place, word in enumerate(words) if word in (">", "|", "&")), None)]
    found: list[str] = []
    for word in words:
        option = found[-1] if found and found[-1].startswith("--") else None
        if option == "--config" and not (ROOT / word).is_file() and not word.startswith("configs/"):
            found[-1:] = STAND_IN
        elif word == "…" and option is None:  # further options
            found += STAND_IN if takes_fit_options(words[0]) else ()
        else:
            found.append(word)
    return found


def takes_fit_options(verb: str) -> bool:
    """True if a verb takes options of `sga fit`."""
    return verb in LIGHTNING or verb in ("rate", "plan", "data", "normals")


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, bool], str | None]]:
    """Function that says why a command is refused, or None; the verbs' functions are not called."""
    monkeypatch.chdir(ROOT)
    for path in PLACES:  # modules that readers are told to write
        for source, name in re.findall(
            r"```python\n(# (my_\w+\.py)\n.*?)```", path.read_text(encoding="utf-8"), re.DOTALL
        ):
            (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    rest: list[str] = []

    def replaced(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def noted(*arguments: Any, **_: Any) -> int:
            rest[:] = [word for word in arguments if isinstance(word, str)]
            return 0

        return noted

    for name in VERBS:
        if name not in LIGHTNING:
            for one in vars(importlib.import_module(f"sga.commands.{name}")).values():
                if isinstance(one, Verb):
                    monkeypatch.setattr(one, "_function", replaced(one._function))
    whole_parser = Verb.parser

    def lenient(self: Verb) -> Any:
        parser = whole_parser(self)
        for action in parser._actions:
            action.required = False
        return parser

    def refusal(command: str, whole: bool = True) -> str | None:
        words, said = words_of(command), io.StringIO()
        words = words[:-1] if not whole and words[-1].startswith("--") else words  # see `page_options`
        if len(words) < 2 and words != ["VERB"]:
            return None if {*words} <= {*VERBS} else f"there is no verb {words[0]}"
        if words[0] == "VERB" or "--help" in words or words[0] == "--print-completion":
            return None
        options, rest[:] = words, []
        if words[0] not in LIGHTNING:
            with monkeypatch.context() as patched, redirect_stderr(said), redirect_stdout(io.StringIO()):
                patched.setattr(Verb, "parser", whole_parser if whole else lenient)
                try:
                    ended = main(words)
                except SystemExit:
                    ended = 2
            if ended:
                return said.getvalue()
            options = ["fit", *rest]
        if len(options) == 1 or not takes_fit_options(words[0]):
            return None
        if (not whole or words[0] == "plan") and "--config" not in options:
            options[1:1] = STAND_IN
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()):
                parsed_config(options)
        except UserError as error:
            return str(error)
        except SystemExit:
            return said.getvalue()
        return None

    yield refusal
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def all_commands() -> dict[str, bool]:
    """Commands of all pages and notebooks; True for those that stand in a block somewhere."""
    pages = [*(path.read_text(encoding="utf-8") for path in PLACES), *map(notebook_page, NOTEBOOKS)]
    found: dict[str, bool] = {}
    for command, whole in (one for page in pages for one in page_commands(page)):
        found[command] = whole or found.get(command, False)
    return found


COMMANDS = all_commands()


def test_there_are_commands_of_every_kind() -> None:
    verbs = {command.split()[0] for command in COMMANDS}
    assert set(VERBS) <= verbs and sum(COMMANDS.values()) > 45 and len(COMMANDS) > 100
    assert any("run.folder runs/unlearn" in command for command in COMMANDS), "srun python -m sga"


@pytest.mark.runs  # a parser of Lightning's verbs takes a second
def test_every_command_is_taken(parse: Callable[[str, bool], str | None]) -> None:
    refused = {command: why for command, whole in COMMANDS.items() if (why := parse(command, whole))}
    assert refused == {}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("attack RUN --refrence OTHER", "did you mean --reference?"),
        ("attack --rate 1", "the following arguments are required: RUN"),
        ("attack RUN --leak 2", "--leak must be above 0 and at most 1"),
        ("compare A B --resamples many", "invalid int value: 'many'"),
        ("atack RUN", "there is no verb 'atack'"),
        ("normals make", "there is no verb 'normals make'"),
        ("rate --config configs/methods/sga.yaml --data.grup_size 4", "grup_size"),
        ("fit --config CONFIG --trainer.max_epochz 3", "max_epochz"),
        ("fit --config configs/benchmarks/nowhere.yaml", "nowhere.yaml"),
    ],
)
@pytest.mark.runs
def test_negative_control_wrong_commands_are_refused(
    command: str, said: str, parse: Callable[[str, bool], str | None]
) -> None:
    assert said in (parse(command, True) or "")


def test_negative_control_within_a_sentence_required_ones_may_be_missing(
    parse: Callable[[str, bool], str | None],
) -> None:
    assert parse("unlearn --base MODEL", False) is None and "required" in (parse("unlearn --base MODEL", True) or "")
    assert "did you mean --base?" in (parse("unlearn --bass MODEL", False) or "")


def test_files_of_commands_are_there() -> None:
    named = {
        word for command in COMMANDS for word in command.split() if re.match(r"(configs|data)/[\w/.-]+\.\w+$", word)
    }
    assert len(named) > 20 and [name for name in named if not (ROOT / name).is_file()] == []


# ---- configurations and data ----------------------------------------------------------------------------------------


def test_blocks_of_configurations_are_read_by_their_readers(parse: Any, tmp_path: Path) -> None:
    """Settings of a run by the parser of `sga fit`, those of a sweep and of a sequence by their own readers."""
    for folder in ("benchmarks", "methods", "pairs"):
        (tmp_path / folder).symlink_to(ROOT / "configs" / folder)
    (tmp_path / "plans").mkdir()
    read = []
    for path in PLACES:
        page = path.read_text(encoding="utf-8")
        for number, (language, text) in enumerate(FENCE.findall(page)):
            assert language in ("", "sh", "bash", "python", "yaml", "json"), f"{path}: nothing reads {language}"
            if language == "json":
                one_line = "\n{" in text  # JSON Lines
                assert all(map(json.loads, text.splitlines() if one_line else [text]))
            elif language == "yaml":
                file = tmp_path / "plans" / f"{path.stem}-{number}.yaml"
                content = yaml.safe_load(text)
                file.write_text(text if "loss" not in content else yaml.safe_dump({"model": content}), encoding="utf-8")
                read.append(path.name)
                if {"folds", "requests"} & {*content}:
                    assert len(read_sequence(file)) == 4
                elif {"grid", "search"} & {*content}:
                    more = "" if "config" in content else f"config: {[*STAND_IN[1::2]]}\n".replace("configs/", "../")
                    file.write_text(more + text, encoding="utf-8")
                    assert read_sweep(file).objectives
                else:
                    parsed_config(["fit", *STAND_IN[:2], "--config", str(file)])
    assert sorted(set(read)) == ["benchmarks.md", "normals.md", "smoothing-rate.md", "sweeps.md"] and len(read) == 6


# ---- options by themselves ------------------------------------------------------------------------------------------


def page_options(page: str) -> set[str]:
    """Options that a page names within its sentences, in code of their own or at the end of a command."""
    return set(re.findall(r"`(?:sga [^`]*)?(--[a-z][\w.-]*)(?=[ =][^`]*`|`)", FENCE.sub("", page)))


def unknown_options(options: Sequence[str]) -> list[str]:
    """Options that no verb has, and that are no argument of a class that an option of `sga fit` takes."""
    fit = lightning_parser("fit")._option_string_actions
    parsers = [parser for verb in VERBS if verb not in LIGHTNING for parser in verb_parsers(verb)]
    known = {flag for parser in parsers for flag in parser._option_string_actions} | {*fit} | OTHERS
    classes = [AdamW, *(one for name in sga._PUBLIC if inspect.isclass(one := getattr(sga, name)))]
    arguments = {name for one in classes for name in inspect.signature(one.__init__).parameters}

    def is_argument(option: str) -> bool:
        """True for an argument of a class, or of a class within its arguments."""
        parts = option.split(".")
        for length in range(2, len(parts)):
            flag = ".".join(parts[:length])
            if flag == "--model.optimizer" or "sga." in str(getattr(fit.get(flag), "_typehint", "")):
                return {*parts[length:]} <= arguments
        return False

    return [one for one in options if one not in known and not is_argument(one)]


@pytest.mark.runs
def test_every_option_that_is_named_is_there() -> None:
    found = {option for path in PLACES for option in page_options(path.read_text(encoding="utf-8"))}
    assert len(found) > 100
    assert unknown_options(sorted(found)) == []


@pytest.mark.runs
def test_negative_control_options_that_are_not_there_are_seen() -> None:
    page = "`--data.group_size 4`, `--model.loss.beta`, `sga attack --rate`"
    page += " `--data.grup_size`, `--model.loss.bta`, `--refrence A`, `--trainer.max_epoch=3`, `sga report --figure`"
    wrong = ["--data.grup_size", "--figure", "--model.loss.bta", "--refrence", "--trainer.max_epoch"]
    assert unknown_options(sorted(page_options(page))) == wrong
