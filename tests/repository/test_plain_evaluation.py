"""The plain evaluator that ours is timed against: right numbers on a few rows, and nothing of ours in its way there."""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_TOFU_TEMPLATE, golden_numbers
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from sga.batching.encoding import Encoder
from sga.data.records import Record
from sga.errors import UserError

ROWS = 6
SOURCE = ROOT / "benchmarks" / "plain_evaluation.py"
SHORT = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The benchmark's module; it lies outside the package."""
    specification = importlib.util.spec_from_file_location("plain_evaluation", SOURCE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_models / "retain").eval()


@pytest.fixture(scope="module")
def encoder(tiny_models: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(tiny_models / "retain"), TINY_TOFU_TEMPLATE, max_length=512)


@pytest.fixture(scope="module")
def evaluation(plain: ModuleType, tofu_root: Path) -> dict[str, tuple[Record, ...]]:
    return plain.evaluation_sets(tofu_root, rows=ROWS)


@pytest.fixture(scope="module")
def result(
    plain: ModuleType, model: PreTrainedModel, encoder: Encoder, evaluation: dict[str, tuple[Record, ...]]
) -> Any:
    return plain.plain_evaluation(model, encoder, evaluation)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """open-unlearning's values of each row of the same model."""
    content = golden_numbers("open_unlearning_tiny_retain.json")
    return {name: values[:ROWS] for name, values in content["per_sample"].items()}


# ---- against the published evaluator --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT)
def test_likelihoods_of_each_row_equal_the_published_ones(result: Any, golden: dict[str, Any], name: str) -> None:
    """avg_nll to 1e-4 (float32, another batch shape); log R, a difference of two such, to 2e-4."""
    short = SHORT[name]
    answer = golden[f"{short}_Q_A_Prob/avg_loss"]
    np.testing.assert_allclose(result.avg_nll[name], answer, atol=1e-4, rtol=0)
    right = golden.get(f"{short}_Q_A_PARA_Prob/avg_loss", answer)
    log_ratio = np.array(right) - np.mean(golden[f"{short}_Q_A_PERT_Prob/avg_loss"], axis=1)
    np.testing.assert_allclose(result.log_truth_ratio[name], log_ratio, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SHORT)
def test_rouge_of_each_generation_equals_the_published_one(
    result: Any, golden: dict[str, Any], evaluation: dict[str, tuple[Record, ...]], name: str
) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    recalls = [
        scorer.score(record.answer, text)["rougeL"].recall
        for record, text in zip(evaluation[name], result.generations[name], strict=True)
    ]
    assert recalls == pytest.approx(golden[f"{SHORT[name]}_Q_A_ROUGE/rougeL_recall"], abs=1e-9)
    assert result.metrics[f"tofu/{name}/rouge_l_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)


def test_memorisation_equals_the_published_one(
    result: Any,
    golden: dict[str, Any],
    evaluation: dict[str, tuple[Record, ...]],
    model: PreTrainedModel,
    encoder: Encoder,
) -> None:
    """Their extraction strength of T tokens is 1/T both where only the last token is hit and where it is missed.

    In the second case ours is 0, so the last token decides; the rows have one of the second kind at least.
    """
    assert result.metrics["tofu/forget/exact_memorization"] == pytest.approx(
        np.mean(golden["exact_memorization/score"]), abs=1e-6
    )
    expected = []
    for record, theirs in zip(evaluation["forget"], golden["extraction_strength/score"], strict=True):
        chosen, table = exact_log_probs(model, encoder, record)
        missed = chosen[-1] < table[-1].max()
        assert not missed or theirs == pytest.approx(1 / len(chosen))
        expected.append(0.0 if missed else theirs)
    assert 0.0 in expected
    assert result.metrics["tofu/forget/extraction_strength"] == pytest.approx(np.mean(expected), abs=1e-9)


# ---- by hand --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def exact_log_probs(model: PreTrainedModel, encoder: Encoder, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """([T], [T, V]) of one answer without the end-of-sequence token, one row at a time and without padding, float64."""
    row = encoder.encode(record.question, record.answer)
    ids = torch.tensor(row.ids)
    logits = model(input_ids=ids[None]).logits[0, row.prompt_length - 1 : -2].double()
    table = torch.nn.functional.log_softmax(logits, dim=-1)
    targets = ids[row.prompt_length : -1]
    return table[torch.arange(len(targets)), targets].numpy(), table.numpy()


def area(members: list[float], others: list[float]) -> float:
    """Share of pairs in which the member has the lower score, ties half."""
    return float(np.mean([0.5 * (a == b) + (a < b) for a in members for b in others]))


def test_membership_inference_by_hand(
    result: Any, evaluation: dict[str, tuple[Record, ...]], model: PreTrainedModel, encoder: Encoder
) -> None:
    scores: dict[str, dict[str, list[float]]] = {
        kind: {"forget": [], "holdout": []} for kind in ("loss", "zlib", "min_k", "min_k_plus_plus")
    }
    for name in ("forget", "holdout"):
        for record, nll in zip(evaluation[name], result.avg_nll[name], strict=True):
            chosen, table = exact_log_probs(model, encoder, record)
            mean = (np.exp(table) * table).sum(-1)
            deviation = np.sqrt((np.exp(table) * (table - mean[:, None]) ** 2).sum(-1))
            lowest = int(0.4 * len(chosen))
            scores["loss"][name].append(nll)
            scores["zlib"][name].append(nll / len(zlib.compress(record.answer.encode())))
            scores["min_k"][name].append(-np.sort(chosen)[:lowest].mean())
            scores["min_k_plus_plus"][name].append(-np.sort((chosen - mean) / deviation)[:lowest].mean())
    for kind, values in scores.items():
        assert result.metrics[f"tofu/mia/{kind}"] == pytest.approx(area(values["forget"], values["holdout"]), abs=1e-9)


def test_holdout_likelihood_is_hugging_faces_own_loss(
    result: Any, evaluation: dict[str, tuple[Record, ...]], model: PreTrainedModel, encoder: Encoder
) -> None:
    losses = []
    for record in evaluation["holdout"]:
        row = encoder.encode(record.question, record.answer)
        ids = torch.tensor(row.ids)[None]
        labels = ids.clone()
        labels[:, : row.prompt_length] = -100
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    assert result.avg_nll["holdout"] == pytest.approx(losses, abs=1e-5)


def test_model_utility_is_the_harmonic_mean_of_the_nine_parts(result: Any) -> None:
    parts = [
        result.metrics[f"tofu/{name}/{part}"]
        for name in ("retain", "real_authors", "world_facts")
        for part in ("probability", "rouge_l_recall", "truth_ratio")
    ]
    assert result.metrics["tofu/model_utility"] == pytest.approx(9 / math.fsum(1 / part for part in parts), rel=1e-12)


# ---- properties -----------------------------------------------------------------------------------------------------


def test_padding_changes_nothing(
    plain: ModuleType, result: Any, model: PreTrainedModel, encoder: Encoder, evaluation: dict[str, tuple[Record, ...]]
) -> None:
    """Batches of one row, which have no padding; also what is there without generation, and how long it took."""
    alone = plain.plain_evaluation(model, encoder, evaluation, generate=False, batch_size=1)
    for name, values in result.avg_nll.items():
        assert alone.avg_nll[name] == pytest.approx(values, abs=1e-5)
    assert set(result.metrics) - set(alone.metrics) == {
        "tofu/model_utility",
        *(f"tofu/{name}/rouge_l_recall" for name in SHORT),
    }
    assert alone.metrics == pytest.approx({name: result.metrics[name] for name in alone.metrics}, rel=1e-5, abs=1e-5)
    assert (alone.generations, alone.generation_seconds) == ({}, 0)
    assert list(result.seconds) == [item.name for item in plain.PASSES]
    assert result.scoring_seconds + result.generation_seconds == pytest.approx(sum(result.seconds.values()))


def test_left_padding_and_the_models_own_configuration_change_no_generation(
    plain: ModuleType, result: Any, model: PreTrainedModel, encoder: Encoder, evaluation: dict[str, tuple[Record, ...]]
) -> None:
    """With a negative control: `generate` does fill what is left open in a configuration from the model's."""
    short = {name: records[:2] for name, records in evaluation.items()}
    own = model.generation_config
    penalised = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1, eos_token_id=2, pad_token_id=0
    )
    prompt = torch.tensor([encoder.encode_prompt(evaluation["retain"][0].question)])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=40)
    usual = model.generate(prompt, generation_config=greedy)
    model.generation_config = penalised
    try:
        assert not torch.equal(model.generate(prompt, generation_config=greedy), usual)
        again = plain.plain_evaluation(model, encoder, short, batch_size=1)
        assert model.generation_config is penalised
    finally:
        model.generation_config = own
    assert again.generations == {name: texts[:2] for name, texts in result.generations.items()}


def test_what_it_needs_is_said(
    plain: ModuleType, model: PreTrainedModel, encoder: Encoder, evaluation: dict[str, tuple[Record, ...]]
) -> None:
    with pytest.raises(UserError, match="missing or empty: holdout"):
        plain.plain_evaluation(model, encoder, {**evaluation, "holdout": ()})
    unparaphrased = replace(evaluation["retain"][0], paraphrased_answer=None)
    with pytest.raises(UserError, match="retain_perturbed/0 has no paraphrased_answer"):
        plain.plain_evaluation(model, encoder, {**evaluation, "retain": (unparaphrased,)})
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        plain.plain_evaluation(model, encoder, evaluation, batch_size=0)
    model.train()
    try:
        with pytest.raises(UserError, match="training mode"):
            plain.plain_evaluation(model, encoder, evaluation)
    finally:
        model.eval()
    with pytest.raises(UserError, match="rows must be at least 1"):
        plain.evaluation_sets(None, rows=0)


def test_it_runs_none_of_our_inference() -> None:
    """Of the package it takes records, tokens and the last step from numbers to metrics."""
    nodes = ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
    modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith("sga")} == {
        "sga.data.records",
        "sga.data.tofu",
        "sga.batching.encoding",
        "sga.errors",
        "sga.evaluation.metrics",
    }
