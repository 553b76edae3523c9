"""`sga unlearn` and `sga.unlearn` on a model of two layers: a result, or one sentence."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import rows_about, write_rows
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import sga
from sga.__main__ import main as command_line
from sga.commands.unlearn import main
from sga.data.conversion import converted_records
from sga.errors import Interruption, UserError
from sga.evaluation.handover import STILL_USEFUL, Check, Tolerances, membership_check
from sga.experiments import unlearn_recipe
from sga.experiments.task import Task
from sga.experiments.unlearn import Unlearned, _look, base_goals, recipe_lines, unlearn
from sga.experiments.unlearn_data import read_unlearning_records
from sga.experiments.unlearn_knowledge import knowledge, missed_facts
from sga.experiments.unlearn_model import base_template_warning, with_settings
from sga.experiments.unlearn_progress import WholeProgress
from sga.experiments.unlearn_recipe import Plan, chosen_recipe, few_rows, recipe_table
from sga.experiments.unlearn_result import UnlearnResult, _goal_met, _way
from sga.module import UnlearningModule

QUICK: dict[str, Any] = {
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 4,
    "evaluation.resamples": 100,
    "model_utility.max_new_tokens": 12,
    "model.optimizer.lr": 1e-2,
}


def quick(model: Any, folder: Path, forget: Any, retain: Any, holdout: Any = None, **options: Any) -> Unlearned:
    """A short run."""
    settings = {**QUICK, **options.pop("settings", {})}
    tokenizer = options.pop("tokenizer", None)
    return unlearn(model, tokenizer, forget, retain, holdout, folder=folder, settings=settings, **options)


def people(*numbers: int) -> list[dict[str, Any]]:
    """Questions with answers on persons of the tests' model, nothing else."""
    return [{name: row[name] for name in ("question", "answer")} for n in numbers for row in rows_about(n)]


# ---- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlearned(own_root: Path, own_target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Unlearned, str]:
    """What the command leaves, and what it prints."""
    folder = tmp_path_factory.mktemp("unlearn") / "runs"
    files = [own_root / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
    lines: list[str] = []
    found = quick(own_target, folder, *files, say=lines.append, method="sga", lora=4)
    return found, "\n".join(lines)


def test_the_model_was_changed_exported_and_measured_from_disk(unlearned: tuple[Unlearned, str]) -> None:
    found, _ = unlearned
    training, final = (sga.load_run(found.folder / name) for name in ("unlearned", "final"))
    assert training.chosen_step > 0 and found.start_metrics["own/forget/probability"] > 0.9
    assert found.metrics["own/forget/probability"] < found.start_metrics["own/forget/probability"] - 0.05
    assert found.metrics["own/forget/probability"] == pytest.approx(training.value("forget/probability"), abs=1e-4)
    assert final.info["model"] == str(found.model_path)
    assert found.model.num_parameters() > 0 and found.report.stat().st_size > 10_000
    assert training.handover is not None and found.sentence == training.handover["sentence"]


def test_the_terminal_has_all_steps_in_eighty_columns(unlearned: tuple[Unlearned, str]) -> None:
    found, text = unlearned
    for said in (
        "data: 6 forget and 10 retain and 4 holdout records",
        "data: WARNING: 6 forget and 4 holdout records are too few for",
        "template PlainTemplate",
        "6 of 6 greedy answers say the fact",
        "of what it is to keep 10 of 10",
        "[4 of 4] tries attacks (minutes; the result above stands if you end them)\n\nattacks\n",
        "recipe lora-small: sga, LoRA of rank 4, 2 neighbours and 1 alternative,",
        "Where was Ada Brook born?\n  was: Ada Brook was born in Oslo.\n  now: ",
        f"  model   {found.model_path}",
        f"  report  {found.report}",
        "next\n  sga ask ",
    ):
        assert said in text, said
    assert " ".join(text.split()).count("holdout records are too few for a verdict: ") == 2, "beside the verdict, too"
    _, rule, table = text[text.index("before  ") : text.index("answers before and after")].partition("─" * 60)
    rows, _, rest = table.strip("─\n").partition("\n\n")
    assert rule and max(map(len, table.splitlines())) <= 80
    names = [row[:20].strip() for row in rows.splitlines()]
    assert names[:4] == ["forget facts", "retain facts", "reserved facts", "AUC of the loss"], "one line each"
    assert all(names) and len(names) <= 12 and "10 of 10" in rows and "missed" in rows and "at most 0 of 6" in rows
    assert "Met as well: " in rest and "95 % interval" in names and f"{found.report}" in text


def test_the_page_says_the_same_first_and_shows_answers_with_their_tokens(unlearned: tuple[Unlearned, str]) -> None:
    found, text = unlearned
    page = found.report.read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1])))
    sentence = " ".join(text[text.index("NOT fit") :].partition("\n\n")[0].split())
    assert -1 < words.index(sentence) < words.index("one seed cannot tell") < words.index("Answers before and after")
    for line in text[text.index("before  ") : text.index("answers before")].splitlines()[2:]:
        if "probability on" in line or "fluency on" in line:
            assert line.split()[0] in words
    final = sga.load_run(found.folder / "final").row_dicts(0, "forget")[0]
    start = sga.load_run(found.folder / "start").row_dicts(0, "forget")[0]
    assert "".join(final["answer_tokens"]).strip() == final["answer"]
    nll = final["token_nll"]  # without the end-of-sequence token, which the row's mean counts
    assert len(nll) == final["tokens"] - 1 and abs(sum(nll) - final["avg_nll"] * final["tokens"]) < 5
    assert f"{start['token_nll'][0]:.2f} → {nll[0]:.2f}" in words
    assert (
        'href="unlearned/attacks/attacks.html"' in page and (found.folder / "unlearned/attacks/attacks.html").is_file()
    )
    assert json.loads((found.folder / "unlearned/attacks/attacks.json").read_text())["verdict"][0] in words
    assert page.count('<div class="plot small"') == 2 and "forget quality" not in words.split("Configurations")[0]


def test_the_commands_that_it_prints_work(
    unlearned: tuple[Unlearned, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The first and the last of them; the second is `sga fit` with another seed, see below."""
    found, text = unlearned
    said = text[text.index("next\n") :].replace(" \\\n", " ")  # as a shell reads it
    ask, fit, compared, advice = said.splitlines()[1:5]
    assert "what to change: docs/troubleshooting.md, section" in advice
    for line in (ask, compared):
        _, verb, *arguments = shlex.split(line)
        assert command_line([verb, *arguments]) == 0
    out = capsys.readouterr().out
    assert "Ada Brook was" in out and "probability" in out
    assert shlex.split(fit)[:4] == ["sga", "fit", "--config", str(found.folder / "unlearned" / "fit.yaml")]


def test_the_card_has_numbers_and_no_texts(unlearned: tuple[Unlearned, str]) -> None:
    found, _ = unlearned
    card = (found.model_path / "README.md").read_text(encoding="utf-8")
    assert found.sentence in card and "6 forget, 10 retain, 4 holdout" in card
    assert re.search(r"\| forget answers with their fact \| 6 of 6 \| \d of 6 \| \d to \d \| at most 0 of 6 \|", card)
    assert "too few for" in card and "too few for" in found.report.read_text(encoding="utf-8")
    assert "smoothing_rate: -4" in card and "What was not tested" in card and "torch" in card
    assert not any(row["answer"] in card or row["question"] in card for row in people(0, 1, 2, 3))


def test_every_step_is_a_run_that_fit_repeats(unlearned: tuple[Unlearned, str], tmp_path: Path) -> None:
    from sga.cli import run_verb

    found, _ = unlearned
    run_verb(["fit", "--config", str(found.folder / "unlearned" / "fit.yaml"), f"--run.folder={tmp_path / 'again'}"])
    places = (found.folder / "unlearned", tmp_path / "again")
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in places)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_same_call_reuses_and_another_is_refused(
    unlearned: tuple[Unlearned, str], own_root: Path, own_target: Path
) -> None:
    found, _ = unlearned
    files = [own_root / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
    before = time.monotonic()
    again = quick(own_target, found.folder, *files, method="sga", lora=4)
    assert again.metrics == found.metrics and time.monotonic() - before < 3
    with pytest.raises(UserError, match="holds a run of another configuration"):
        quick(own_target, found.folder, *files, method="sga", lora=2)


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same_result(
    unlearned: tuple[Unlearned, str], own_root: Path, own_target: Path, tmp_path: Path
) -> None:
    found, _ = unlearned
    files = [
        part for name in ("forget", "retain", "holdout") for part in (f"--{name}", str(own_root / f"{name}.jsonl"))
    ]
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    command = [
        sys.executable,
        "-m",
        "sga",
        "unlearn",
        str(own_target),
        "--method=sga",
        "--lora=4",
        *files,
        *settings,
        "--output",
    ]
    folder = tmp_path / "killed"
    # Looking at the data, first evaluation, training, export, evaluation of the exported model, attacks.
    places = ("data-*/forget.jsonl", "start/metrics.jsonl", "unlearned/checkpoints/last.ckpt")
    for place in (*places, "unlearned/model/model.safetensors", "final/task.json", "report.html"):
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not any(folder.glob(place)) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, f"it was killed after {place} was there"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run([*command, str(folder)], check=True, capture_output=True, text=True, timeout=300)
    assert "in all" in done.stdout and "Seed set" not in done.stdout + done.stderr
    ours, theirs = (load_file(one / "unlearned" / "model" / "model.safetensors") for one in (folder, found.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    numbers = {name: value for name, value in sga.load_run(folder / "final").chosen.items() if "/" in name}
    assert {name: numbers[name] for name in found.metrics} == found.metrics


def test_sigterm_ends_it_in_the_last_batch_of_an_evaluation(
    own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning looks for it between batches alone; the runs that followed went on as if nothing had been said."""
    evaluated = UnlearningModule.validation_step

    def stopped(self: UnlearningModule, *arguments: Any) -> Any:
        if self.trainer.validate_loop.batch_progress.is_last_batch:
            signal.raise_signal(signal.SIGTERM)
        return evaluated(self, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(UnlearningModule, "validation_step", stopped)
    with pytest.raises(Interruption, match=r"^stopped by SIGTERM; the same command goes on$") as caught:
        quick(own_target, tmp_path / "runs", people(0), people(3, 4))
    assert caught.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "runs" / "start" / "task.json").read_text())["state"] == "started"
    assert not (tmp_path / "runs" / "unlearned").exists()


def test_one_bar_on_a_terminal_and_lines_elsewhere() -> None:
    """What is left is what training says and, for the exported model, what the first evaluation took."""
    now = [0.0]
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=80)
        now[0] = 0.0
        progress = WholeProgress(console, clock=lambda: now[0])
        with progress:
            progress.phase(Task("one", {}, title="looks at the model", verb="validate"))
            assert progress.left is None
            now[0] = 30.0
            progress.phase(Task("one", {}, title="trains by gd", verb="fit"))
            progress.hear("step 0 of 10, epoch 0: evaluation: x 1, 30 s")
            progress.hear("step 2 of 10, epoch 1: train/loss 1, 60 s of training, about 4 min left")
            now[0] += 20
            progress.hear("step 2 of 10, epoch 1: evaluation: x 1, 20 s, about 4 min left")
            now[0] -= 20
            progress.hear("step 2 of 10, epoch 1: train/loss 1, 60 s of training, about 4 min left")
            assert progress.left == 4 * 60 + 30
            now[0] = 90.0
            assert progress.left == 4 * 60 + 30 - 60
            progress.hear("step 4 of 10, epoch 2: train/loss 1, 60 s of training, about 2 h 5 min left")
            assert progress.left == 125 * 60 + 30
            progress.phase(Task("one", {}, title="reads the exported model from disk", verb="validate"))
            assert progress.left == 30
            print("words between", file=out)
        said = out.getvalue()
        assert ("\x1b[" in said) == terminal
        assert said.count("    step 2 of 10, about 4 min left\n") == (0 if terminal else 1), "after its evaluation too"
        assert said.count("    trains by gd …\n") == (0 if terminal else 1), (
            "before its first evaluation, which takes minutes"
        )


# ---- what the table says --------------------------------------------------------------------------------------------


def result_of(
    start: list[dict[str, Any]], final: list[dict[str, Any]], more: dict[str, tuple[float, float]] | None = None
) -> UnlearnResult:
    """A result of two evaluations with these rows, and these metrics before and now."""

    def evaluated(rows: list[dict[str, Any]], index: int) -> Any:
        metrics = {"handover/all/rows": 3.0} | {name: values[index] for name, values in (more or {}).items()}
        return SimpleNamespace(
            chosen=metrics,
            chosen_step=0,
            path=Path("x"),
            info={"model": "m"},
            row_dicts=lambda step, name: [row for row in rows if row["set"] == name],
        )

    training: Any = SimpleNamespace(path=Path("x"), model_path=Path("x"))
    return UnlearnResult(Path("x"), evaluated(start, 0), training, evaluated(final, 1))


def forget_row(number: int, probability: float, fact: float) -> dict[str, Any]:
    row = people(*range(8))[number]
    said = row["answer"] if fact else "No."
    known = {"probability": probability, "fact_recall": fact, "generation": said}
    return {"set": "forget", "id": f"forget/{number}", **row, **known}


def test_reserved_facts_stand_in_the_table_without_a_goal() -> None:
    """Two of four before, one now: what was lost where training never looked was in no table."""
    name = "handover/unseen/fact_recall"
    numbers = {name: (0.5, 0.25), f"{name}/ci_low": (0.0, 0.0), f"{name}/ci_high": (1.0, 0.75)}
    numbers["handover/unseen/fact_rows"] = (4, 4)
    found = result_of([], [], numbers).table()
    quantity = "reserved answers with their fact, never trained on"
    assert found[1] == (quantity, "2 of 4", "1 of 4", "0 to 3", "", "unclear")
    assert quantity not in str(result_of([], []).table())


def test_forget_records_that_became_more_likely_are_named_but_not_in_the_card() -> None:
    before = [forget_row(n, probability, 1.0) for n, probability in enumerate((0.38, 0.3, 0.5))]
    now = [forget_row(n, probability, 0.0) for n, probability in enumerate((0.5, 0.8, 0.55))]
    found = result_of(before, now)
    first, second = before[1]["question"], before[0]["question"]
    said = "2 of 3 forget records have become more likely (probability of the whole true answer, fact or not): "
    assert found.likelier() == f'{said}"{first}" 0.30 → 0.80, "{second}" 0.38 → 0.50'
    assert found.likelier(texts=False) == f"{said}0.30 → 0.80, 0.38 → 0.50"
    assert result_of(now, before).likelier() is None and result_of([], []).likelier() is None


def test_facts_to_keep_that_were_lost_are_named_but_not_in_the_card() -> None:
    """20 of 24 retain facts in place of 16 were "met", while both capitals that training never saw were gone."""

    def rows(*facts: float) -> list[dict[str, Any]]:
        kept = [{**forget_row(n, 0.5, fact), "set": "retain", "id": f"retain/{n}"} for n, fact in enumerate(facts)]
        return [*kept, {**kept[1], "set": "retain_unseen"}]

    before, now = rows(1, 1, 0, 1), rows(0, 0, 1, 1)
    first, second = now[0]["question"], now[1]["question"]
    said = (
        "2 facts to keep were lost, 1 of a reserved record; others that are like what is to be forgotten, and that you "
    )
    assert (
        result_of(before, now).lost()
        == f'{said}did not list, are likely lost, too: "{first}" now No.; "{second}" now No.'
    )
    assert result_of(before, now).lost(texts=False) == f"{said}did not list, are likely lost, too"
    assert result_of(before, rows(0, 1, 1, 1)).lost(texts=False) == "1 fact to keep was lost"
    assert result_of(now, now).lost() is None and result_of([], []).lost() is None


def test_answers_are_from_all_over_the_file() -> None:
    """The first lines of a file are often of one kind: five chemical symbols, and none of six authors."""
    rows = [forget_row(number, 0.5, 1.0) for number in range(12)]
    found = result_of(rows, rows)
    assert [one.question for one in found.answers()] == [rows[number]["question"] for number in (0, 2, 4, 7, 9)]
    assert len(list(result_of(rows[:3], rows[:3]).answers())) == 3


def test_the_question_to_ask_is_one_whose_fact_was_lost() -> None:
    before = [forget_row(0, 0.5, 0.0), forget_row(1, 0.5, 1.0)]
    now = [forget_row(0, 0.5, 0.0), forget_row(1, 0.5, 0.0)]
    assert before[1]["question"] in result_of(before, now).next_commands()[0]
    assert before[0]["question"] in result_of(now, now).next_commands()[0], "none was lost"


@pytest.mark.parametrize(
    ("was", "now", "low", "high", "word"),
    [
        (0.45, 0.85, 0.65, 1.0, "better, met"),  # both meet the goal
        (0.45, 0.60, 0.40, 0.80, "unclear, met"),
        (0.95, 0.60, 0.50, 0.70, "worse, met"),
        (0.95, 0.20, 0.10, 0.30, "worse, missed"),
        (0.10, 0.20, 0.15, 0.30, "better, missed"),
        (0.25, 0.20, 0.10, 0.30, "unclear, missed"),
        (0.95, 0.20, None, None, "worse, missed"),
        (0.95, 0.60, None, None, "met"),  # nothing tells that from chance
    ],
)
def test_change_and_goal_are_told_apart(
    was: float, now: float, low: float | None, high: float | None, word: str
) -> None:
    """A share that is to be at least 0.41."""
    old, new = (Check(STILL_USEFUL, "facts", x, low, high, "", max(0.0, 0.41 - x), "", 1.0) for x in (was, now))
    assert ", ".join(part for part in (_way(old, new), _goal_met(new)) if part) == word


def test_an_auc_is_better_the_nearer_it_is_to_its_goal_from_both_sides() -> None:
    checks = [membership_check("loss", x, x - 0.05, x + 0.05, 0.5, Tolerances()) for x in (0.45, 0.52, 0.41, 0.0)]
    assert [_way(checks[0], one) for one in checks[1:]] == ["better", "unclear", "worse"]
    assert [_goal_met(one) for one in checks] == ["met", "met", "met", "missed"]


def test_what_to_change_is_on_the_page_that_the_result_names() -> None:
    page = (Path(sga.__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    advice = result_of([], []).advice()
    assert advice is not None and f"## {advice.split(chr(34))[1]}\n" in page
    for value, low, high in ((0.9, 0.8, 1.0), (0.1, 0.0, 0.2), (0.5, 0.1, 0.9)):
        said = membership_check("loss", value, low, high, 0.5, Tolerances()).says
        assert f"*{said.partition(':')[0]}*" in page


# ---- what is not as usual -------------------------------------------------------------------------------------------


def test_objects_and_a_full_training(own_target: Path, tmp_path: Path) -> None:
    """Model and tokenizer as objects, records as dictionaries, without holdout, by the recipe; then evaluated alone."""
    model, tokenizer = sga.load_run(own_target).load_model()
    forget, retain = people(0, 1), people(3, 4, 5, 6)
    found = quick(model, tmp_path / "runs", forget, retain, tokenizer=tokenizer)
    checks = json.loads((found.folder / "unlearned" / "metrics.json").read_text())["handover"]["parts"]["all"]["checks"]
    assert checks[0]["quantity"] == "share of wrong answers less likely"
    settings = {"trainer.accelerator": "cpu", "evaluation.resamples": 100, "model_utility.max_new_tokens": 12}
    data = {"forget": forget, "retain": retain}
    alone = sga.evaluate(found.model_path, None, data, folder=tmp_path / "alone", settings=settings)
    assert alone["own/forget/probability"] == pytest.approx(found.metrics["own/forget/probability"], abs=1e-5)


def test_where_nobody_measured_the_recipe_a_pilot_picks_the_learning_rate(
    own_root: Path, own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that changes nothing leaves every fact; ten thousand times as much forgets some. A given rate wins."""
    table = recipe_table()
    unsure = [{**one, "measured": False} for one in table["recipes"]]
    changed = {**table, "recipes": unsure, "pilot": {"factors": [10, 1e-3], "steps": 3}}
    monkeypatch.setattr(unlearn_recipe, "recipe_table", lambda: changed)
    files = [own_root / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
    settings = {name: value for name, value in QUICK.items() if name != "model.optimizer.lr"}
    lines: list[str] = []
    found = unlearn(own_target, None, *files, folder=tmp_path / "a", settings=settings, lora=4, say=lines.append)
    said = "\n".join(lines)
    tried = [line for line in lines if line.startswith("pilot: learning rate")]
    assert [line.partition(",")[0] for line in tried] == ["pilot: learning rate 1e-06", "pilot: learning rate 0.01"]
    assert "pilot: going on with learning rate 0.01" in said
    assert sga.load_run(found.folder / "unlearned").config["model"]["optimizer"]["init_args"]["lr"] == 0.01
    pilots = [found.folder / name for name in ("pilot-1e-06", "pilot-0.01")]
    assert {sga.load_run(one).evaluations[-1]["step"] for one in pilots} == {3}
    assert not [path for one in pilots for path in one.rglob("*.ckpt")], "no weights are kept"
    again: list[str] = []
    unlearn(own_target, None, *files, folder=tmp_path / "a", settings=settings, lora=4, say=again.append)
    assert [line for line in again if line.startswith("pilot")] == [line for line in lines if line.startswith("pilot")]
    with pytest.raises(NotImplementedError):
        quick(own_target, tmp_path / "b", *files, lora=4, say=until_the_recipe)
    assert (tmp_path / "b" / "start" / "metrics.json").is_file() and not list((tmp_path / "b").glob("pilot*"))


def until_the_recipe(line: str) -> None:
    """Ends `sga unlearn` where its training would begin."""
    if line.startswith("recipe "):
        raise NotImplementedError


def test_settings_of_the_model_are_those_of_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file that was set was the training's alone: the starting model's evaluation did not find it."""
    monkeypatch.setattr("sga.models.pretrained.find_spec", lambda name: object())
    (tmp_path / "a.gguf").touch()
    own = {
        "model.language_model.gguf_file": "a.gguf",
        "model.language_model.dtype": "bfloat16",
        "trainer.max_epochs": 1,
    }
    start = with_settings({"name_or_path": str(tmp_path)}, own)
    assert own == {"trainer.max_epochs": 1}, "the others are left"
    place = str(tmp_path / "a.gguf")
    assert start == {"name_or_path": place, "dtype": "bfloat16"}
    records = read_unlearning_records(people(0, 1), people(3, 4, 5), None)
    for lora in (0, 4):
        plan = Plan(chosen_recipe(None, lora, 1, records), start, records.write(tmp_path), 1, own)
        first, training, final = (task.config for task in plan.tasks())
        for config in (first, training):
            arguments = config["model"]["language_model"]["init_args"]
            assert (arguments["name_or_path"], arguments["dtype"]) == (place, "bfloat16")
        base = plan.base_task("other").config["model"]["language_model"]["init_args"]
        assert base == {"name_or_path": "other", "dtype": "bfloat16"}, "loaded in the same way"
        assert first["fluency"]["starting_model"] == final["fluency"]["starting_model"] == place
        assert final["model"]["language_model"]["init_args"] == {"dtype": "bfloat16"}, "what is exported is no GGUF"


def test_a_base_model_and_tolerances_are_goals_of_the_rule_and_of_the_result(
    own_root: Path, own_target: Path, own_reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model's AUC takes the place of 0.5, and half of the utility is enough; the target is no base."""
    files = [own_root / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
    settings = {"stop.rule.tolerances.utility_share": 0.5, "trainer.max_epochs": 2, "data.evaluation_rows": 8}
    lines: list[str] = []
    found = quick(own_target, tmp_path / "a", *files, base=own_reference, settings=settings, say=lines.append)
    base = sga.load_run(tmp_path / "a" / "base").chosen
    text = "\n".join(lines)
    tolerances = sga.load_run(tmp_path / "a" / "unlearned").config["stop"]["rule"]["init_args"]["tolerances"]
    assert tolerances["utility_share"] == 0.5
    printed = re.findall(r"^\[(\d) of 5(.*)\] (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert printed == [("1", "", "looks"), ("2", "", "looks"), ("3", "", "trains"), ("4", "", "reads")]
    for field, name in (("base_loss_auc", "loss"), ("base_min_k_auc", "min_k")):
        goal = base[f"handover/all/mia/{name}"]
        assert tolerances[field] == pytest.approx(goal) and f"base: {field} {goal:.2f} is the goal" in text
        assert f"{goal - 0.1:.2f} to {goal + 0.1:.2f}" in text
    assert "own/forget/rouge_l_recall" not in base, "likelihoods are enough"
    start = found.start_metrics["handover/unseen/probability"]
    card = (found.model_path / "README.md").read_text()
    assert re.search(rf"\| probability on reserved rows \| {start:.2f} \| .*at least {start / 2:.2f}", card)
    assert "6 forget, 10 retain (8 of them looked at), 4 holdout" in card
    run = sga.load_run(tmp_path / "a" / "start")
    with pytest.raises(UserError, match=r"--base recognises what is to be forgotten \(1\.00\) as well as the model"):
        base_goals(run, run, anyway=False)
    assert base_goals(run, run, anyway=True)["stop.rule.tolerances.base_loss_auc"] == 1


@pytest.mark.parametrize(
    ("model", "base", "template", "said"),
    [
        ("chat", None, None, "the base model has no chat template: it is asked in the plain template"),
        (None, "chat", None, "the base model has a chat template, which the model has not"),
        ("chat", "other", None, "the base model's chat template is not the model's"),
        ("chat", "chat", None, None),
        (None, None, None, None),
        ("chat", None, "PlainTemplate", None),
        ("chat", None, {"class_path": "sga.PlainTemplate"}, None),
    ],
)
def test_a_base_model_that_is_asked_in_another_form_is_said_loudly(
    model: str | None, base: str | None, template: Any, said: str | None, own_target: Path
) -> None:
    """The membership AUC of a base model that is asked in the plain template was the goal without a word."""
    tokenizers = []
    for word in (model, base):
        _, tokenizer = sga.load_run(own_target).load_model()
        turns = "{% for one in messages %}" + f"<{word}>" + "{{ one.content }}{% endfor %}"
        tokenizer.chat_template = None if word is None else turns
        tokenizers.append(tokenizer)
    found = base_template_warning(*tokenizers, template)
    assert (found is None) if said is None else (found or "").startswith(said) and "--set data.template=" in str(found)


def test_the_look_before_training_warns_of_the_base_model_s_template(own_target: Path, tmp_path: Path) -> None:
    """With the tokenizer's own chat template; report and card say it as well, as all warnings of the data."""
    shutil.copytree(own_target / "model", tmp_path / "chat")
    _, tokenizer = sga.load_run(own_target).load_model()
    tokenizer.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    lines: list[str] = []
    records = read_unlearning_records(people(0, 1), people(3, 4, 5), None)
    _look(records, {"name_or_path": str(tmp_path / "chat")}, {}, lines.append, own_target)
    assert any("WARNING: the base model has no chat template" in line for line in lines) and len(records.warnings) == 1
    _look(records, {"name_or_path": str(own_target)}, {}, lines.append, own_target)
    assert len(records.warnings) == 1
    texts = read_unlearning_records([{"text": "A text."}], people(3), [{"text": "Another."}])
    _look(texts, {"name_or_path": str(tmp_path / "chat")}, {}, lines.append, own_target)
    assert texts.warnings == [], "texts are asked without a template"


@pytest.mark.parametrize("lora", [0, 16])
@pytest.mark.parametrize("weights", [135_000_000, 7_000_000_000])
def test_a_forward_pass_of_the_recipes_has_at_most_16_sequences(lora: int, weights: int) -> None:
    """Activations take most of the memory: 4.6 GB for 64 sequences of 50 tokens in a model of 135 M weights."""
    retain = [{"question": f"What is in box {n}?", "answer": f"A {n}."} for n in range(30)]
    recipe = chosen_recipe(None, lora, weights, read_unlearning_records(people(0), retain, None))
    data = {name.removeprefix("data."): value for name, value in recipe.settings.items()}
    assert data["batch_size"] * data["group_size"] >= 64
    assert data["micro_batch_size"] * data["group_size"] <= 16


def test_what_is_not_measured_and_what_is_not_evaluated_is_said() -> None:
    def notes(*arguments: Any, retain: int = 30) -> str:
        asked = [{"question": f"What is in box {n}?", "answer": f"A {n}."} for n in range(retain)]
        return "; ".join(chosen_recipe(*arguments, read_unlearning_records(people(0), asked, None)).notes)

    assert notes(None, None, 1000) == notes("gd", 16, 1000) == ""
    assert "measured with gd alone, not with sga" in notes("sga", None, 1000)
    for lora in (None, 0):
        assert "not measured: no model of this size" in notes(None, lora, 7_000_000_000)
    records = read_unlearning_records(people(0), [{"question": f"{n}?", "answer": "A."} for n in range(201)], None)
    recipe = chosen_recipe(None, None, 1000, records)
    assert recipe.settings["data.evaluation_rows"] == 200 and "200 of the 201 retain records" in recipe.notes[0]
    assert notes(None, None, 1000, retain=200) == "", "all of them"


def test_a_group_size_of_the_users_is_not_told_as_one_that_the_data_made(tmp_path: Path) -> None:
    records = read_unlearning_records(people(0), people(3, 4), None)
    recipe, files = chosen_recipe(None, None, 1, records), records.write(tmp_path)
    for own, told in (({}, True), ({"data.group_size": 2}, False)):
        _, training, _ = Plan(recipe, {"name_or_path": str(tmp_path)}, files, 1, own).tasks()
        assert any("no more retain records" in line for line in recipe_lines(recipe, training)) == told


@pytest.mark.parametrize("rows", [None, 8, 200])
def test_rows_of_evaluations_are_told_as_they_are(rows: int | None, tmp_path: Path) -> None:
    records = read_unlearning_records(people(0), [{"question": f"{n}?", "answer": "A."} for n in range(201)], None)
    recipe, files = chosen_recipe(None, None, 1, records), records.write(tmp_path)
    _, training, _ = Plan(recipe, {"name_or_path": str(tmp_path)}, files, 1, {"data.evaluation_rows": rows}).tasks()
    assert any("200 of the 201 retain" in line for line in recipe_lines(recipe, training)) == (rows == 200)


def test_what_a_model_knows_badly_is_said_loudly_with_what_it_said() -> None:
    """11 of 20 facts to keep were counted and no more; whoever saw a poor result had no idea why."""
    rows = [{**forget_row(n % 2, 0.5, float(n < 11)), "set": "retain", "id": str(n)} for n in range(20)]
    rows += [{**forget_row(0, 0.5, 1.0), "id": str(n)} for n in range(5)]
    start: Any = result_of(rows, []).start
    lines, warned = missed_facts(start)
    assert lines[0].startswith("model: WARNING: it says 11 of the 20 facts that it is to keep")
    assert "--set data.template=" in lines[-1] and "take out the records that it misses" in lines[-1]
    assert lines[1:3] == [f"    {rows[11]['question']}", "      said: No."]
    assert len(lines) == 1 + 2 * 5 + 2 and lines[-2].strip() == "… and 4 more" and max(map(len, lines[1:-1])) <= 80
    [sentence] = warned
    assert "11 of the 20 facts" in sentence and not any(row["question"] in sentence for row in rows)
    few = [{**row, "fact_recall": float(n != 3), "generation": " "} for n, row in enumerate(rows[:20])]
    lines, warned = missed_facts(result_of(few, []).start)
    assert lines == [
        "model: it misses 1 of the 20 facts that it is to keep",
        f"    {few[3]['question']}",
        "      said: (nothing)",
    ]
    assert not warned and missed_facts(result_of(rows[20:], []).start) == ([], [])


def test_how_few_records_can_pass_is_said_before_anything_is_computed(own_target: Path) -> None:
    def said(forget: int, holdout: int | None = None, **settings: Any) -> str | None:
        asked = [[{"question": f"Where is {word} {n}?", "answer": f"In {n}."} for n in range(count)]
                 for word, count in (("a", forget), ("b", 40), ("c", holdout or 0))]  # fmt: skip
        records = read_unlearning_records(*asked[:2], asked[2] if holdout else None)
        own = {name.replace("__", "."): value for name, value in settings.items()}
        files = {name: "x" for name in records.sets}
        plan = Plan(chosen_recipe(None, None, 1, records), {"name_or_path": str(own_target)}, files, 1, own)
        return few_rows(records, plan.tasks()[1].config)

    few = said(12) or ""
    assert "12 forget records are too few for a verdict: of 200 simulated models" in few
    assert "the rule passes none" in few and "with 40 it passes half" in few
    assert "12 forget and 50 holdout records are too few" in (said(12, 50) or "")
    assert said(60) is None and said(50, 50) is None
    assert said(12, stop__rule__tolerances__auc=0.5, stop__rule__tolerances__auc_interval=0.5) is None
    assert "halves of 30" in (said(60, stop__rule__least_rows=40) or "")


@pytest.mark.parametrize(("goal", "known"), [(0.3, True), (0.5, False), (None, False)])
def test_what_a_model_knows_is_judged_by_the_base_model(goal: float | None, known: bool) -> None:
    """An AUC of 0.55 is recognition where a model that never saw the data has 0.30."""
    interval = {"handover/all/mia/loss/ci_low": 0.5, "handover/all/mia/loss/ci_high": 0.6}
    metrics = {"handover/all/rows": 200, "handover/all/mia/loss": 0.55, **interval}
    before: Any = SimpleNamespace(
        chosen=metrics, chosen_step=0, value=lambda name: None, row_dicts=lambda step, name: []
    )
    tolerances = Tolerances(base_loss_auc=goal)
    if known:
        assert knowledge(before, tolerances, False).startswith("it knows")
    else:
        with pytest.raises(UserError, match="there is nothing to forget"):
            knowledge(before, tolerances, False)


def test_without_retain_general_questions_stand_in(own_target: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    settings = {"data.max_length": 96, "trainer.max_epochs": 1}
    found = quick(own_target, tmp_path / "runs", people(0), None, say=lines.append, settings=settings)
    assert any("WARNING: no retain data: 75 general questions" in line for line in lines)
    assert "no retain data" in (found.model_path / "README.md").read_text()


def test_one_record_ends_in_a_result_that_says_how_little_it_tells(own_target: Path, tmp_path: Path) -> None:
    found = quick(own_target, tmp_path / "runs", people(0)[:1], people(3, 4))
    assert not found.fit and found.sentence


def test_forget_and_retain_that_overlap_end_in_a_result(own_target: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    found = quick(own_target, tmp_path / "runs", people(0, 1), people(1, 3, 4), say=lines.append)
    assert any("2 of 6 retain records stand in forget too: left out of retain" in line for line in lines)
    assert found.sentence and len(sga.load_run(found.folder / "final").row_dicts(0, "retain")) == 4


def test_two_retain_records_make_smaller_groups(own_target: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    quick(own_target, tmp_path / "runs", people(0), people(3), say=lines.append, settings={"trainer.max_epochs": 1})
    assert any("no alternatives: 2 retain records are too few" in line for line in lines)
    assert any("K = 2: there are no more retain records" in line for line in lines)


def test_texts_need_a_holdout_and_end_in_a_result(own_target: Path, tmp_path: Path) -> None:
    texts = [{"text": f"{row['answer']} {row['question']}"} for row in people(0, 1, 3, 4, 8, 9)]
    forget, retain, holdout = texts[:4], texts[4:8], texts[8:]
    with pytest.raises(UserError, match=r"plain text .*: give --holdout, or make questions"):
        quick(own_target, tmp_path / "none", forget, retain)
    assert not (tmp_path / "none").exists()
    found = quick(own_target, tmp_path / "runs", forget, retain, holdout, anyway=True)
    assert found.sentence


def test_a_model_that_does_not_know_the_data_is_said(own_target: Path, own_root: Path, tmp_path: Path) -> None:
    unknown = [
        {
            "question": f"Which fish lives in pond {n}?",
            "answer": f"Only {fish} live there, as the guide of {year} says.",
        }
        for n, (fish, year) in enumerate((("perch", 1871), ("roach", 1902), ("tench", 1933), ("zander", 1954)))
    ]
    with pytest.raises(UserError, match=r"does not know what it is to forget \(0 of 4 greedy answers .*--anyway"):
        quick(own_target, tmp_path / "runs", unknown, people(3, 4, 5))


def test_a_model_that_answers_nothing_ends_it(own_target: Path, tmp_path: Path) -> None:
    """One whose end-of-sequence token is the likeliest everywhere."""
    model, tokenizer = sga.load_run(own_target).load_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0.0
    model.generation_config.suppress_tokens = None
    with pytest.raises(UserError, match=r"greedy answers (are empty|repeat themselves).*before unlearning"):
        quick(model, tmp_path / "runs", people(0, 1), people(3, 4), tokenizer=tokenizer)


# ---- data -----------------------------------------------------------------------------------------------------------


def test_overlaps_are_left_to_one_set_and_near_duplicates_are_said() -> None:
    forget = [*people(0, 1), people(0)[0]]
    near = {"question": "Where was Ada Brook born?", "answer": "Ada Brook was born in Oslo!!"}
    long = {
        "question": "Who is it that was born in the old town of Oslo in the spring of 1921?",
        "answer": "It was Ada.",
    }
    twin = {**long, "answer": "It was Eva."}
    found = read_unlearning_records([*forget, long], [*people(1, 3, 4), near, twin], people(4, 5))
    assert [len(found.sets[name]) for name in ("forget", "retain", "holdout")] == [5, 6, 2]
    assert found.notes == [
        "1 of 6 forget records stand twice: left out of forget",
        "2 of 8 retain records stand in forget too: left out of retain",
        "2 of 4 holdout records stand in retain too: left out of holdout",
    ]
    assert len(found.warnings) == 1 and "2 retain records are nearly what is to be forgotten" in found.warnings[0]
    with pytest.raises(UserError, match="nothing is left of retain: all 2 records are in forget too"):
        read_unlearning_records(people(0), people(0), None)


def test_forms_of_other_people_are_read(tmp_path: Path) -> None:
    question, answer = "Who?", 'Ada, of\n"Oslo".'
    expected = [("Who?", answer)]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    system = {"role": "system", "content": "Be brief."}
    forms: list[dict[str, Any]] = [
        {"question": question, "answer": answer},
        {"prompt": question, "completion": answer},
        {"messages": [system, *turns]},
        {"prompt": turns[:1], "completion": turns[1:]},
    ]
    for form in forms:
        assert [(one.question, one.answer) for one in converted_records([form], "forget")] == expected
        write_rows(tmp_path / "a.jsonl", [form])
        assert [(one.question, one.answer) for one in converted_records(tmp_path / "a.jsonl", "forget")] == expected
        (tmp_path / "a.json").write_text(json.dumps([form]))
        assert [(one.question, one.answer) for one in converted_records(str(tmp_path / "a.json"), "x")] == expected
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer", "paraphrased_answer"), (question, answer, "")])
    assert [(one.question, one.answer) for one in converted_records(tmp_path / "a.csv", "forget")] == expected
    assert converted_records([{"text": "A text."}], "forget")[0].is_text
    import datasets

    rows = datasets.Dataset.from_list([{"question": question, "answer": answer}])
    assert [(one.question, one.answer) for one in converted_records(rows, "forget")] == expected


def test_data_sets_of_the_hub_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the Hub's format has the same form of name; without a connection another name is one sentence."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for place in ("facts/data", "one"):
        (tmp_path / "org" / place).mkdir(parents=True)
    write_rows(tmp_path / "org" / "facts" / "data" / "train.jsonl", people(0))
    write_rows(tmp_path / "org" / "facts" / "data" / "test.jsonl", people(3, 4))
    found = converted_records("org/facts:test", "retain")
    assert [one.answer for one in found] == [row["answer"] for row in people(3, 4)] and found[0].id == "retain/0"
    with pytest.raises(UserError, match="--forget org/facts: has the splits train, test; say which: org/facts:train"):
        converted_records("org/facts", "forget")
    with pytest.raises(UserError, match=r"org/facts:dev: neither a file, nor a data set .*dev"):
        converted_records("org/facts:dev", "forget")
    with pytest.raises(UserError, match=r"--forget no-such-org/nothing:train: neither a file, nor .*check the name"):
        converted_records("no-such-org/nothing:train", "forget")
    write_rows(tmp_path / "org" / "one" / "train.jsonl", people(1))
    assert len(converted_records("org/one", "forget")) == 2, "a data set of one split needs none named"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"instruction": "a", "output": "b"}], r"forget\[0\]: has 'instruction', 'output'; each record needs"),
        (
            [{"messages": [{"role": "user", "content": "a"}] * 2}],
            "must be one user and one assistant turn, got user, user",
        ),
        ([{"messages": "hello"}], "'messages' must be a list of objects"),
        ([{"question": "a", "answer": " "}], "'answer' is empty"),
        ([3], r"forget\[0\]: is no record but int"),
        ([], "forget: holds no record"),
        ({"question": "a", "answer": "b"}, "forget: must be a file or a list of records, got dict"),
        ("nowhere.jsonl", r"--forget nowhere.jsonl: no such file, and no name of a data set on the Hub"),
        ("data/nowhere.jsonl", r"--forget data/nowhere.jsonl: no such file, and no name"),
    ],
)
def test_anything_else_is_told_how_to_convert(data: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        converted_records(data, "forget")


def test_a_wrong_method_and_nothing_to_forget_are_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--method sgaa: no such method; did you mean sga"):
        main(["nowhere", "--forget", "nowhere.jsonl", "--method", "sgaa"])
    for method in ("target", "evaluate", "retain"):
        with pytest.raises(UserError, match=f"--method {method} does not train on what is to be forgotten"):
            main(["nowhere", "--forget", "nowhere.jsonl", "--method", method])
    with pytest.raises(UserError, match="needs what to forget"):
        unlearn("nowhere")
    with pytest.raises(UserError, match="a model object needs its tokenizer"):
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        unlearn(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=8)), None, people(0), people(3))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("optimizer.lr", r"^settings \(--set\): there is no setting 'optimizer'"),
        ("stop.rule.tolerances.utility", "does not accept option 'utility'"),
        ("model.loss.smooting_rate", "'smooting_rate' is not accepted"),
    ],
)
def test_a_wrong_setting_is_said_before_anything_is_computed(
    name: str, said: str, own_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser's words went to the log of a run, after the starting model's evaluation, and the command said none."""
    with pytest.raises(UserError, match=said):
        quick(own_target, tmp_path / "runs", people(0), people(3, 4), settings={name: 1})
    assert not (tmp_path / "runs" / "start").exists() and "usage" not in capsys.readouterr().err
