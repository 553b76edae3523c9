"""The rule that needs no retained model, in whole runs of a tiny model: what it chooses, writes, asks and refuses."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import all_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sga.batching.encoding import Encoded
from sga.callbacks import fluency as fluency_callback
from sga.callbacks.fluency import Fluency
from sga.callbacks.handover import FitToHandOver
from sga.callbacks.rules import Point
from sga.cli import run_verb
from sga.errors import UserError
from sga.evaluation.handover import Tolerances, account
from sga.evaluation.metrics import fluency, repeats_ngram
from sga.runs.folder import load_run

RULE = ("--stop.rule=FitToHandOver",)
LENIENT = tuple(
    f"--stop.rule.tolerances.{name}={value}"
    for name, value in {
        "auc": 0.5, "auc_interval": 0.5, "utility_share": 0.001, "retain_facts": 0.001, "fluency_share": 0.001,
        "degenerate": 1, "generation_nll": 1000, "perplexity_ratio": 1e9,
    }.items()
)  # fmt: skip
"""All but extraction is allowed, so that a run ends once nothing can be extracted."""


def unlearn(options: list[str], folder: Path, *more: str) -> Any:
    return run_verb(
        [
            "fit", *options, f"--run.folder={folder}", "--model.schedule=ConstantSchedule", "--model.optimizer.lr=2e-3",
            "--trainer.max_epochs=5", "--evaluation.resamples=200", "--data.reserved=0.3", *RULE, *more,
        ]
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def judged(*extractions: float, ends: bool = True) -> list[tuple[bool, str | None]]:
    """Verdicts on evaluations that differ in what can be extracted: whether chosen, and why the run ends."""
    rule, chosen, verdicts = FitToHandOver(ends=ends), None, []
    fixed = {"handover/all/rows": 9.0, "handover/all/comparison/extraction_strength": 0.1}
    points = [
        Point(step, fixed | {"handover/all/forget/extraction_strength": value})
        for step, value in enumerate(extractions)
    ]
    for point in points:
        verdict = rule.judge(point, points[0], chosen)
        chosen = point if verdict.choose else chosen
        verdicts.append((verdict.choose, verdict.stop))
    return verdicts


def test_the_least_violation_and_of_equals_the_earliest() -> None:
    assert judged(0.9, 0.4, 0.6, 0.4, 0.3) == [(True, None), (True, None), (False, None), (False, None), (True, None)]


def test_of_equal_scores_the_next_largest_violation_decides() -> None:
    """Every true answer stays likelier than the wrong ones, which is the largest violation throughout."""
    rule = FitToHandOver()
    fixed = {
        "handover/all/rows": 9.0,
        "handover/all/mia/pairs": 1.0,
        "handover/all/comparison/extraction_strength": 0.1,
    }
    start, better, worse = (
        Point(step, fixed | {"handover/all/forget/extraction_strength": value})
        for step, value in enumerate((0.45, 0.3, 0.4))
    )
    assert rule.account_of(start, start).score == rule.account_of(better, start).score == 1
    assert rule.judge(better, start, start).choose
    assert not rule.judge(worse, start, better).choose
    assert not rule.judge(better, start, better).choose


def test_the_run_ends_with_the_first_score_of_zero_only() -> None:
    *before, (chosen, stop) = judged(0.9, 0.2, 0.1)
    assert before == [(True, None)] * 2
    assert chosen
    assert stop is not None
    assert stop.startswith("fit to be handed over as far as can be tested; not testable: not recognised")


def test_a_rule_that_does_not_end_the_run_chooses_alike() -> None:
    assert judged(0.9, 0.1, 0.4, 0.1, ends=False) == [(True, None), (True, None), (False, None), (False, None)]


def test_a_run_of_which_nothing_can_be_told_is_refused() -> None:
    point = Point(0, {"handover/all/rows": 9.0, "handover/unseen/probability": 0.5})
    with pytest.raises(UserError, match="neither recognition nor extraction is testable"):
        FitToHandOver().judge(point, point, None)


@pytest.fixture(scope="module")
def run(unlearn_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with full weights and the starting model beside it; too few rows to be told fit."""
    folder = tmp_path_factory.mktemp("handover") / "run"
    unlearn(unlearn_options, folder, "--fluency.starting_model=own")
    return folder


def test_the_least_violation_is_chosen_exported_and_said(run: Path) -> None:
    points, found = lines(run / "metrics.jsonl"), summary(run)
    scores = {point["step"]: point["handover/score"] for point in points}
    ranks = {p["step"]: sorted((p[k] for k in p if k.startswith("handover/violation/")), reverse=True) for p in points}
    chosen = min(ranks, key=lambda step: (ranks[step], step))
    assert chosen > 0, "the starting model is the worst of all"
    assert ranks[chosen] < ranks[0], "the largest may stay what it is, with so few rows"
    assert len(set(map(tuple, ranks.values()))) > 2, "there is something to choose"
    assert found["step"] == chosen
    assert found["chosen"] == "least violation of the conditions for handing over"
    told = found["handover"]
    assert load_run(run).handover == told
    assert (told["step"], told["fit"], told["score"]) == (chosen, False, scores[chosen])
    assert told["rows"] == "chosen and reported on all 6 forget rows: halves take 40 of each set"
    assert list(told["parts"]) == ["all"]
    assert found["because"] == told["sentence"] == told["parts"]["all"]["sentence"]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == chosen
    exported = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], best["state_dict"][f"model.{name}"]) for name in exported)


def test_an_account_can_be_given_again_from_the_run_folder(run: Path) -> None:
    points, found = lines(run / "metrics.jsonl"), summary(run)
    for point in points:
        assert account(point, points[0]).score == point["handover/score"]
    assert account(found, points[0]).as_json() == found["handover"]["parts"]["all"]
    strict = account(found, points[0], Tolerances(utility_share=0.999))
    assert strict.score >= account(found, points[0]).score


def test_its_quantities_are_those_of_the_metric_callbacks(run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for point in lines(run / "metrics.jsonl"):
        rows = load_run(run).row_dicts(point["step"])
        for name, place in (("forget", "all/forget"), ("retain", "retain"), ("retain_unseen", "unseen")):
            said = [row["fact_recall"] for row in rows if row["set"] == name and "fact_recall" in row]
            assert point[f"handover/{place}/fact_recall"] == pytest.approx(sum(said) / len(said))
        for score in ("loss", "min_k"):
            assert point[f"handover/all/mia/{score}"] == point[f"own/mia/{score}"]
        for field in ("extraction_strength", "rouge_l_recall", "fluency", "degenerate", "generation_nll"):
            assert point[f"handover/all/forget/{field}"] == pytest.approx(point[f"own/forget/{field}"], abs=1e-12)
        spoken = [row["generation"] for row in rows if row["set"] == "holdout"]
        faulty = [not text.strip() or repeats_ngram(tokenizer(text)["input_ids"]) for text in spoken]
        assert point["handover/all/comparison/degenerate"] == pytest.approx(sum(faulty) / len(faulty))
        for field in ("probability", "rouge_l_recall", "fluency"):
            assert point[f"handover/unseen/{field}"] == point[f"own/retain_unseen/{field}"]
        assert point["handover/unseen/perplexity_log"] == point["perplexity/retain_unseen/log"]


def assert_rows_are_of(folder: Path, step: int, speaker: Path, target: Path) -> None:
    """The forget rows of a step have the numbers of what `speaker` says, decoded here, scored by `target`."""
    tokenizer = AutoTokenizer.from_pretrained(target / "model")
    speaks, scores = (AutoModelForCausalLM.from_pretrained(path / "model") for path in (speaker, target))
    rows = [row for row in all_rows(folder) if row["step"] == step and row["set"] == "forget"]
    assert len(rows) == 6
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt")["input_ids"][0].tolist()
        spoken: list[int] = []
        total = 0.0
        while len(spoken) < 12:
            tokens = torch.tensor([[*prompt, *spoken]])
            with torch.no_grad():
                said, scored = (model(tokens).logits[0, -1].float() for model in (speaks, scores))
            token = int(said.argmax())
            if token == tokenizer.eos_token_id:
                break
            total -= float(torch.log_softmax(scored, -1)[token])
            spoken.append(token)
        assert row["generation_tokens"] == len(spoken)
        assert row["fluency"] == pytest.approx(fluency(spoken))
        assert row["repeated"] == float(repeats_ngram(spoken))
        assert row["empty"] == float(not tokenizer.decode(spoken).strip())
        if spoken:
            assert row["generation_nll"] == pytest.approx(total / len(spoken), abs=1e-4)


def test_rows_are_of_the_generated_tokens_and_their_nll_is_the_starting_models(run: Path, own_target: Path) -> None:
    """Before the first step both are the starting model; at the chosen step what it says is another's."""
    assert_rows_are_of(run, 0, own_target, own_target)
    assert_rows_are_of(run, summary(run)["step"], run, own_target)
    with pytest.raises(AssertionError):  # negative control: not the trained model's own nll
        assert_rows_are_of(run, summary(run)["step"], run, run)


def test_with_lora_the_adapter_is_switched_off_and_with_full_weights_the_nll_is_absent(
    unlearn_options: list[str], tmp_path: Path, own_target: Path
) -> None:
    options = [option.replace("=sga.Pretrained", "=sga.LoRA") for option in unlearn_options]
    options += ["--model.language_model.rank=4", "--model.language_model.dropout=0"]
    unlearn(options, tmp_path / "lora", "--trainer.max_epochs=3", "--model.optimizer.lr=5e-3")
    step = summary(tmp_path / "lora")["step"]
    assert step > 0
    assert_rows_are_of(tmp_path / "lora", step, tmp_path / "lora", own_target)
    unlearn(unlearn_options, tmp_path / "full", "--trainer.max_epochs=1")
    found = summary(tmp_path / "full")
    assert "own/forget/generation_nll" not in found
    assert "--fluency.starting_model own" in found["absent"]["own/forget/generation_nll"]
    checks = found["handover"]["parts"]["all"]["checks"]
    unknown = [one for one in checks if one["violation"] is None]
    assert [one["quantity"] for one in unknown] == [
        f"nll of the answers on {words} under the starting model" for words in ("forget", "reserved rows")
    ]


def test_the_run_ends_at_the_first_evaluation_that_violates_nothing(unlearn_options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    unlearn(unlearn_options, folder, *LENIENT, "--model.optimizer.lr=1e-2", "--trainer.max_epochs=12")
    *before, last = lines(folder / "metrics.jsonl")
    assert last["handover/score"] == 0 < min(point["handover/score"] for point in before)
    assert last["step"] < 24
    found = summary(folder)
    assert found["step"] == last["step"]
    assert found["stopped"] == f"at step {last['step']}: fit to be handed over"
    assert found["handover"]["fit"] is True


def test_a_run_killed_in_between_chooses_the_same(unlearn_options: list[str], tmp_path: Path) -> None:
    """Two epochs, and on from there to the fifth: the same evaluations, choice and weights as in one go."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    load = "--fluency.starting_model=own"
    unlearn(unlearn_options, whole, load)
    unlearn(unlearn_options, part, load, "--trainer.max_epochs=2")
    unlearn(unlearn_options, part, load, "--ckpt_path=last")
    ours, theirs = ([p | {"seconds": 0} for p in lines(folder / "metrics.jsonl")] for folder in (part, whole))
    assert ours == theirs
    assert len(ours) == 6
    here, there = (summary(folder) for folder in (part, whole))
    assert here["handover"] == there["handover"]
    assert here["step"] == there["step"]
    models = [load_file(folder / "model" / "model.safetensors") for folder in (part, whole)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def test_without_holdout_pairs_and_other_answers_are_compared(unlearn_options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    unlearn(unlearn_options, folder, "--data.source.holdout=null", "--trainer.max_epochs=1")
    first, *_ = lines(folder / "metrics.jsonl")
    assert "handover/all/mia/loss" not in first
    assert first["handover/all/mia/pairs"] > 0.9, "true answers are likelier before unlearning"
    assert first["handover/all/comparison/extraction_strength"] < first["handover/all/forget/extraction_strength"]
    assert first["handover/all/comparison/rouge_l_recall"] < 1
    assert math.isfinite(first["handover/score"])
    assert summary(folder)["handover"]["parts"]["all"]["checks"][0]["quantity"] == "share of wrong answers less likely"


def test_without_generation_the_likelihoods_still_decide(unlearn_options: list[str], tmp_path: Path) -> None:
    unlearn(unlearn_options, tmp_path / "run", "--model_utility.generate=false", "--trainer.max_epochs=1")
    assert summary(tmp_path / "run")["handover"]["untested"] == ["still speaks"]


def test_intervals_are_needed(unlearn_options: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decides by intervals"):
        unlearn(unlearn_options, tmp_path / "run", "--evaluation.resamples=0")


def test_the_exported_model_is_judged_from_disk_with_the_same_numbers(
    run: Path, own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """`sga validate` of what was exported: every quantity of the choice; the starting model is a folder."""
    again = tmp_path / "again"
    options = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={run}"]
    settings = ["--evaluation.resamples=200", "--data.reserved=0.3", f"--fluency.starting_model={own_target}"]
    run_verb(["validate", *own_options, *options, *settings, *RULE, f"--run.folder={again}"])
    found, chosen = summary(again), summary(run)
    names = [name for name in chosen if name.startswith("handover/") and name in found]
    assert len(names) > 30
    assert {name: found[name] for name in names} == pytest.approx({name: chosen[name] for name in names}, abs=1e-5)
    start = lines(run / "metrics.jsonl")[0]
    assert account(found, start).sentence == chosen["handover"]["sentence"]


def test_halves_choose_and_tell_apart(unlearn_options: list[str], tmp_path: Path) -> None:
    """With four rows of each set as the least: the result is of the half that nothing was chosen on."""
    unlearn(unlearn_options, tmp_path / "run", "--stop.rule.least_rows=4", "--trainer.max_epochs=2")
    points, told = lines(tmp_path / "run" / "metrics.jsonl"), summary(tmp_path / "run")["handover"]
    assert list(told["parts"]) == ["choosing", "held_out", "all"]
    assert [told["parts"][part]["rows"] for part in told["parts"]] == [3, 3, 6]
    assert told["rows"] == "chosen on one half of the forget rows, reported on the 3 of the other half"
    assert told["sentence"] == told["parts"]["held_out"]["sentence"]
    chosen = next(point for point in points if point["step"] == told["step"])
    assert chosen["handover/score"] == told["parts"]["choosing"]["score"] == min(p["handover/score"] for p in points)
    with pytest.raises(UserError, match="least_rows must be at least 4"):
        FitToHandOver(least_rows=3)


def test_trained_answers_are_no_decoys(unlearn_options: list[str], tmp_path: Path) -> None:
    """Alternatives are the nearest retain answers, and so were the decoys without holdout and reserved rows."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += ["--model.loss=GradientDifference", "--data.alternatives=NeighborAnswers"]
    options += ["--data.source.holdout=null", "--trainer.max_epochs=1"]
    with pytest.raises(UserError, match=r"training learns other answers .*--data.reserved 0\.2"):
        unlearn(options, tmp_path / "run", "--data.reserved=0")
    assert not (tmp_path / "run" / "config.yaml").exists()
    unlearn(options, tmp_path / "reserved", "--export.enabled=false")  # decoys that no training draws from
    assert "handover" in summary(tmp_path / "reserved")


# ---- the nll of answers under the starting model --------------------------------------------------------------------


def test_a_named_starting_model_is_the_one_asked_beside_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    named, trained = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    monkeypatch.setattr(fluency_callback, "has_adapter", lambda model: model is trained)
    monkeypatch.setattr(fluency_callback, "Pretrained", lambda name: SimpleNamespace(network=lambda tokenizer: named))
    trainer, data = SimpleNamespace(callbacks=[], precision="32-true"), SimpleNamespace(tokenizer=None)
    module = SimpleNamespace(model=trained, data=data, trainer=trainer, device="cpu")
    for name, expected in ((None, trained), ("own", trained), ("some/model", named)):
        callback = Fluency(starting_model=name)
        callback.setup(trainer, module, "fit")  # type: ignore[arg-type]
        assert callback._starting_network() == (expected, "")


def test_all_processes_take_the_first_ones_nll(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule decides by it, and what it chooses is saved by all processes together: none may differ in a last bit."""
    said: list[list[float]] = []

    def broadcast(found: list[float]) -> list[float]:
        said.append(found)
        return [1.25, 2.5]

    scored = SimpleNamespace(total_nll=torch.tensor([[2.0], [3.0]]))  # the shorter one first
    monkeypatch.setattr(
        fluency_callback, "StartingModel", lambda network: SimpleNamespace(answers=lambda batch, options: scored)
    )
    plugin = SimpleNamespace(forward_context=nullcontext)
    trainer = SimpleNamespace(callbacks=[], precision_plugin=plugin, strategy=SimpleNamespace(broadcast=broadcast))
    module = SimpleNamespace(
        data=SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)),
        trainer=trainer,
        device="cpu",
        forward_options=None,
        transfer_batch_to_device=lambda batch, device, index: batch,
    )
    callback = Fluency()
    callback.setup(trainer, module, "fit")  # type: ignore[arg-type]
    found = callback._total_nll(torch.nn.Linear(1, 1), [Encoded((1, 2, 3), 1), Encoded((1, 2), 1)])
    assert (said, found) == ([[3.0, 2.0]], [1.25, 2.5])
