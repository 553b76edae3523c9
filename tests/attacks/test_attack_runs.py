"""`sga attack` on a model of two layers: a table, a page, a card; interrupted it goes on to the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sga.__main__ import main
from sga.attacks import measurements, recovery
from sga.attacks.attack import AttackResult, attack_run, quick_attack_lines
from sga.attacks.findings import FACTS, Estimate, Finding
from sga.attacks.models import AttackedModel
from sga.attacks.recovery import benign_names
from sga.attacks.relearning import looks
from sga.attacks.settings import ATTACKS, AttackSettings
from sga.errors import UserError

SETTINGS = AttackSettings(steps=16, samples=4, questions=6, shares=(0.2, 0.5), leak=0.6)


@pytest.fixture(scope="module", autouse=True)
def few_rates() -> Iterator[None]:
    """Leaves out the learning rates at which a model this small learns nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "RATES", recovery.RATES[-2:])
        yield


@pytest.fixture(scope="module")
def unlearned_run(unlearn_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short unlearning run with its exported model."""
    from sga.cli import run_verb

    folder = tmp_path_factory.mktemp("attacked") / "run"
    run_verb(["fit", *unlearn_options, f"--run.folder={folder}"])
    return folder


def attacked(run: Path, reference: Path, output: Path, **options: Any) -> tuple[AttackResult, list[str]]:
    """A whole attack in a folder of its own, and what it says on the way."""
    said: list[str] = []
    found = attack_run(run, [str(reference)], settings=SETTINGS, output=output, say=said.append, **options)
    return found, said


@pytest.fixture(scope="module")
def whole(unlearned_run: Path, own_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> AttackResult:
    """All attacks at little strength."""
    return attacked(unlearned_run, own_reference, tmp_path_factory.mktemp("attacks"))[0]


def test_every_attack_has_a_row_or_a_reason(whole: AttackResult) -> None:
    names = [one.attack.split()[0] for one in whole.findings]
    assert {*names, *whole.content["untried"]} == {"none", *ATTACKS}
    assert "paraphrase" in whole.content["untried"] and names[0] == "none"
    for one in whole.findings:
        assert one.retained is not None and one.after.low <= one.after.value <= one.after.high
        assert one.word in ("fully recovered", "partly", "clean", "not judged")
    assert "Not tried: paraphrase" in " ".join(whole.verdict)


def shown(one: Finding, found: Estimate) -> str:
    """Cell of the table, of a number of facts or a mean."""
    return found.counts() if one.measure == FACTS else str(found)


def test_the_table_fits_and_page_and_card_quote_no_record(whole: AttackResult, own_root: Path) -> None:
    lines = "\n".join(whole.lines()).split("\n")
    assert max(map(len, lines)) <= 80 and any(line.startswith("sampling") for line in lines)
    words = " ".join(lines).split()
    for one in whole.findings:
        assert one.retained is not None
        for found in (one.before, one.unlearned, one.after, one.retained):
            assert {*shown(one, found).split()} <= {*words}
    assert whole.card is not None
    page, card = (path.read_text(encoding="utf-8") for path in (whole.page, whole.card))
    assert "<svg" in page and "## Attacks" in card and whole.verdict[0] in card
    content = json.loads(whole.page.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["verdict"] == whole.verdict and content["settings"]["samples"] == 4
    for line in (own_root / "forget.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["answer"] not in page + card + json.dumps(content)


def test_a_second_call_makes_nothing_and_the_card_has_one_section(
    whole: AttackResult, unlearned_run: Path, own_reference: Path
) -> None:
    again, said = attacked(unlearned_run, own_reference, whole.page.parent)
    assert len(said) == 1 and again.content == whole.content
    assert again.card is not None and again.card.read_text(encoding="utf-8").count("## Attacks") == 1


def test_interrupted_it_goes_on_to_the_same_numbers(
    whole: AttackResult, unlearned_run: Path, own_reference: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Interrupted after some writes, in the middle of curves and of sampling; nothing that is there is made again."""
    wanted = ("relearn", "sampling")
    write, left, calls = measurements.write_json, [0], 12

    def writes(path: Path, content: Any) -> None:
        write(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "write_json", writes)
    for _ in range(40):
        left[0] = calls
        try:
            found, _ = attacked(unlearned_run, own_reference, tmp_path, attacks=wanted)
        except KeyboardInterrupt:
            continue
        break
    expected = [one for one in whole.content["findings"] if one["attack"].split()[0] in ("none", *wanted)]
    assert found.content["findings"] == expected


def test_the_retained_model_is_clean_against_itself_and_the_target_is_all_there(
    own_target: Path, own_reference: Path, tmp_path: Path
) -> None:
    some = ("first-words", "nf4")
    options: dict[str, Any] = {"attacks": some, "target": str(own_target)}
    target, _ = attacked(own_target, own_reference, tmp_path / "target", **options)
    assert target.findings[0].word == "fully recovered" and "without any attack" in target.verdict[0]
    retained, _ = attacked(own_reference, own_reference, tmp_path / "retained", **options)
    assert {one.word for one in retained.findings} == {"clean"} and retained.verdict[0].startswith("Clean")


def test_without_a_retained_model_what_gives_answers_away_is_not_judged(unlearned_run: Path, tmp_path: Path) -> None:
    found = attack_run(
        unlearned_run,
        attacks=("prefix", "first-words", "relearn"),
        settings=SETTINGS,
        output=tmp_path,
        say=lambda _: None,
    )
    words = {one.attack.split()[0]: one.word for one in found.findings}
    reasons = {one.attack.split()[0]: one.why for one in found.findings}
    assert words["first-words"] == words["relearn"] == "not judged"
    assert "no retained model" in reasons["first-words"] and "no retained model" in reasons["relearn"]
    assert "no retained model" not in reasons["prefix"]
    assert any("holdout rows" in one.says for one in found.findings), "the strength is fixed by holdout rows"


def test_a_model_that_an_attack_breaks_has_not_diverged_by_itself(
    unlearned_run: Path, own_reference: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Rounding that gives NaN is said of that attack; the others are made and judged all the same."""

    def rounded(network: Any, precision: str) -> None:
        if precision == "int8":
            torch.nn.init.constant_(network.model.norm.weight, float("nan"))

    monkeypatch.setattr(measurements, "quantize", rounded)
    found, _ = attacked(unlearned_run, own_reference, tmp_path, attacks=("int8", "nf4"))
    assert found.content["diverged"] is None and [one.attack for one in found.findings] == ["none", "nf4"]
    assert "NaN" in found.content["untried"]["int8"]


def test_an_attack_that_fails_is_named_and_the_others_are_made(
    unlearned_run: Path, own_reference: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def rounded(network: Any, precision: str) -> None:
        if precision == "int8":
            raise RuntimeError("no room for\nanother 3 GiB")

    monkeypatch.setattr(measurements, "quantize", rounded)
    output = tmp_path / "attacks"
    options = ["--attacks", "int8", "nf4", "--reference", str(own_reference), "--output", str(output)]
    assert main(["attack", str(unlearned_run), *options]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Failed: int8 (RuntimeError: no room for another 3 GiB)." in said
    content = json.loads((output / "attacks.json").read_text(encoding="utf-8"))
    assert [one["attack"] for one in content["findings"]] == ["none", "nf4"]
    assert "Traceback" in (output / "failed-int8.txt").read_text(encoding="utf-8")
    monkeypatch.undo()
    assert main(["attack", str(unlearned_run), *options]) == 0
    assert "Failed" not in capsys.readouterr().out and not (output / "failed-int8.txt").exists()


def test_an_unlearned_model_stays_whatever_happens_to_its_attacks(unlearned_run: Path, tmp_path: Path) -> None:
    """`sga unlearn` prints these lines last: that attacks cannot be made is one of them."""
    assert quick_attack_lines(unlearned_run)[0].startswith(("Clean", "Fully", "Partly", "Not judged", "Diverged"))
    lines = quick_attack_lines(tmp_path)
    assert len(lines) == 1 and "no run folder" in lines[0] and f"again: sga attack {tmp_path}" in lines[0]


def test_what_a_fuller_attack_found_stays_when_quick_ones_are_made(
    unlearned_run: Path, own_reference: Path, tmp_path: Path
) -> None:
    """`sga unlearn` run again: numbers, page and card are those of `sga attack`, until the weights are others."""
    run = tmp_path / "run"
    shutil.copytree(unlearned_run, run, ignore=shutil.ignore_patterns("attacks", "checkpoints"))
    quick = quick_attack_lines(run)
    stored = run / "attacks" / "attacks.json"
    assert json.loads(stored.read_text("utf-8"))["untried"]["sampling"] == "not asked for"
    assert quick_attack_lines(run) == quick
    asked = ("first-words", "sampling")
    full = attack_run(run, [str(own_reference)], asked, SETTINGS, say=lambda _: None)
    written, page = stored.read_bytes(), full.page.read_bytes()
    (run / "model" / "README.md").write_text("# Written anew", encoding="utf-8")
    lines = quick_attack_lines(run)
    assert (stored.read_bytes(), full.page.read_bytes()) == (written, page)
    assert lines[1:] == full.lines() and str(stored) in lines[0]
    assert full.verdict[0] in (run / "model" / "README.md").read_text("utf-8")
    weights = run / "model" / "model.safetensors"
    os.utime(weights, (time.time() + 10,) * 2)
    assert quick_attack_lines(run)[0] == quick[0] and stored.read_bytes() != written


def test_two_benign_files_of_one_stem_have_names_of_their_own(
    unlearned_run: Path, own_reference: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / place for place in ("a/notes.txt", "b/notes.txt", "general.txt")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"The tide comes in {number} times a day. " * 40, encoding="utf-8")
    settings = AttackSettings(steps=1, rate=1e-3, shares=(0.3,), benign=("general", *map(str, paths)))
    some: dict[str, Any] = {"attacks": ("relearn-benign",), "settings": settings, "say": lambda _: None}
    found = attack_run(unlearned_run, [str(own_reference)], output=tmp_path / "attacks", **some)
    names = [one.attack.split()[2] for one in found.findings[1:]]
    assert names[:3] == ["general", "a/notes.txt", "b/notes.txt"] and names[3].endswith("/general.txt")
    assert found.card is not None and str(tmp_path) not in found.card.read_text("utf-8")


def test_names_of_benign_texts() -> None:
    assert benign_names(["retain", "x/a.txt", "b.jsonl"]) == {"retain": "retain", "x/a.txt": "a", "b.jsonl": "b"}
    assert [*benign_names(["x/a.txt", "a.jsonl"]).values()] == ["a.txt", "a.jsonl"]
    assert [*benign_names(["a.txt", "./a.txt", "x/a.txt"]).values()] == ["a.txt", "a.txt", "x/a.txt"]


def test_benign_relearning_is_on_retain_records_general_questions_or_own_text(
    unlearned_run: Path, own_reference: Path, own_root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    learned, relearn = [], recovery.relearn

    def noted(network: Any, encoder: Any, rows: Any, *arguments: Any) -> Any:
        learned.append([record.answer for record in rows])
        return relearn(network, encoder, rows, *arguments)

    monkeypatch.setattr(recovery, "relearn", noted)
    prose = tmp_path / "prose.txt"
    prose.write_text("The tide comes in twice a day. " * 40, encoding="utf-8")
    settings = AttackSettings(steps=1, rate=1e-3, shares=(0.3,), benign=("retain", "general", str(prose)))
    some: dict[str, Any] = {"attacks": ("relearn-benign",), "settings": settings, "say": lambda _: None}
    found = attack_run(unlearned_run, [str(own_reference)], output=tmp_path / "attacks", **some)
    names = [one.attack for one in found.findings[1:]]
    assert [name.split()[2:] for name in names] == [[], ["general"], ["prose"]]
    retain, general, text = learned[::2]
    answers = {json.loads(line)["answer"] for line in (own_root / "retain.jsonl").read_text("utf-8").splitlines()}
    assert {*retain} <= answers and not {*general} & answers and len(general) == len(retain)
    assert all("tide comes in" in block for block in text) and "records of prose.txt" in found.findings[3].says
    assert "built-in general questions" in found.findings[2].says


def test_benign_text_that_is_not_there_or_is_to_be_forgotten_is_refused_first(
    unlearned_run: Path, own_root: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" ", encoding="utf-8")
    wrong = ((tmp_path / "none.txt", "cannot be read"), (empty, "is empty"), (own_root / "forget.jsonl", "forget rec"))
    for path, said in wrong:
        settings = AttackSettings(benign=(str(path),))
        with pytest.raises(UserError, match=said):
            attack_run(unlearned_run, attacks=("relearn-benign",), settings=settings, output=tmp_path / "attacks")
    assert not (tmp_path / "attacks").exists()


def test_relearning_is_in_float32_and_a_share_that_stands_twice_is_made_once(
    unlearned_run: Path, own_reference: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Weights in pure bfloat16 would hardly learn, and the control with them."""
    kinds, relearn = set(), recovery.relearn

    def noted(network: Any, *arguments: Any) -> Any:
        kinds.add(network.dtype)
        return relearn(network, *arguments)

    monkeypatch.setattr(recovery, "relearn", noted)
    load = AttackedModel.load
    monkeypatch.setattr(AttackedModel, "load", lambda model, device: load(model, device).to(torch.bfloat16))
    settings = AttackSettings(steps=1, rate=1e-3, shares=(0.2, 0.2))
    some = {"attacks": ("relearn",), "settings": settings, "output": tmp_path, "say": lambda _: None}
    found = attack_run(unlearned_run, [str(own_reference)], **some)
    assert kinds == {torch.float32} and len(found.findings) == 2


def test_the_page_has_intervals_of_all_four_columns(whole: AttackResult) -> None:
    table = whole.page.read_text(encoding="utf-8")
    for one in whole.findings:
        assert all(shown(one, found) in table for found in (one.before, one.unlearned, one.after, one.retained))


def test_looks() -> None:
    assert looks(4, 32) == [0, 1, 2, 4, 8, 16, 32] and looks(400, 32)[-1] == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no run folder"),
        (["RUN", "--attacks", "magic"], "no such attack; choose from"),
        (["RUN", "--samples", "0"], "--samples must be at least 1"),
        (["RUN", "--shares", "1.5"], "--shares must be between 0 and 1"),
        (["RUN", "--leak", "0"], "--leak must be above 0"),
        (["RUN", "--rows", "1"], "--rows must be at least 2"),
        (["RUN", "--nli", "nowhere"], "--nli nowhere: no model can be loaded"),
        (["RUN", "--reference", "x/y/z"], "no such folder"),
        (["RUN", "--reference", "RUN", "RUN"], "names a model twice"),
    ],
)
def test_wrong_input_is_said_first(
    unlearned_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["attack", *(str(unlearned_run) if one == "RUN" else one for one in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_an_exported_model_is_refused(unlearned_run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "config.yaml"):
        (tmp_path / name).write_bytes((unlearned_run / name).read_bytes())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="holds no exported model"):
        attack_run(tmp_path)
