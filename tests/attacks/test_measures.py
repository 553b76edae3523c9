"""Estimators of leaks, rounding of weights, prompts and findings: by hand, by brute force, against bitsandbytes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNetwork
from scipy.stats import binomtest

from sga.attacks.answering import answered_rows, greedy_answers, sampled_answers
from sga.attacks.findings import FACTS, Estimate, finding, verdict
from sga.attacks.prompts import few_shot_prompt, first_words_prompt, plain_prompt, prefixed_prompt
from sga.attacks.quantization import NF4, quantize, rounded_int8, rounded_nf4
from sga.data.records import Record
from sga.errors import DivergenceError, UserError
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.decoding import DecodingWay, generate
from sga.evaluation.facts import have_short_facts
from sga.evaluation.metrics import clopper_pearson, expected_maximum, leak_at_k, rouge
from sga.evaluation.request_batches import GenerateBatch, GenerateJob

# ---- leak@k ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_leak_at_k_and_the_expected_maximum_are_what_all_subsets_give(n: int) -> None:
    rng = random.Random(n)
    for k in range(1, n + 1):
        for leaks in range(n + 1):
            samples = [1.0] * leaks + [0.0] * (n - leaks)
            counted = [max(subset) for subset in combinations(samples, k)]
            assert leak_at_k(leaks, n, k) == pytest.approx(sum(counted) / len(counted), abs=1e-12)
            assert expected_maximum(samples, k) == pytest.approx(leak_at_k(leaks, n, k), abs=1e-12)
        scores = [rng.choice([0.0, 0.25, rng.random()]) for _ in range(n)]
        best = [max(subset) for subset in combinations(scores, k)]
        assert expected_maximum(scores, k) == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_the_interval_of_a_share_is_scipys() -> None:
    for count, total in ((0, 64), (1, 64), (30, 64), (64, 64)):
        low, high = clopper_pearson(count, total)
        theirs = binomtest(count, total).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_impossible_counts_are_refused() -> None:
    for function, arguments in ((leak_at_k, (3, 2, 1)), (leak_at_k, (0, 2, 3)), (clopper_pearson, (2, 1))):
        with pytest.raises(UserError):
            function(*arguments)  # type: ignore[operator]
    with pytest.raises(UserError):
        expected_maximum([0.5], 2)


# ---- rounding -------------------------------------------------------------------------------------------------------


def test_rounding_is_bitsandbytes_own() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)) * torch.rand(96, 1)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    assert torch.equal(functional.dequantize_4bit(packed, state), rounded_nf4(weight))
    levels, scales, _ = functional.int8_vectorwise_quant(weight)
    torch.testing.assert_close(functional.int8_vectorwise_dequant(levels, scales), rounded_int8(weight))


def test_bitsandbytes_layer_of_four_bits_says_what_the_rounded_weights_say() -> None:
    """Its own linear layer, on whatever device it runs, against an ordinary one with weights that were rounded here."""
    modules = pytest.importorskip("bitsandbytes.nn")
    draws = torch.Generator().manual_seed(0)
    plain, inputs = torch.nn.Linear(128, 32, bias=False), torch.randn(5, 128, generator=draws)
    plain.weight.data = torch.randn(32, 128, generator=draws)
    layer = modules.Linear4bit(128, 32, False, torch.float32, compress_statistics=False, quant_type="nf4")
    layer.weight = modules.Params4bit(plain.weight.data, False, compress_statistics=False, quant_type="nf4")
    with torch.no_grad():
        theirs, exact = layer.to(inputs.device)(inputs), plain(inputs)
        plain.weight.copy_(rounded_nf4(plain.weight))
        torch.testing.assert_close(plain(inputs), theirs)
    assert (exact - theirs).abs().max() > 0.1, "four bits are not nothing"


def test_nf4_by_hand_with_a_block_that_is_not_full() -> None:
    """The largest of each block of two is kept; 0.5 of it lies nearest to 0.4407, and a block of zeros stays."""
    weight = torch.tensor([[2.0, 1.0, 0.0], [0.0, -4.0, 4 * NF4[3]]])
    expected = torch.tensor([[2.0, 2 * NF4[12], 0.0], [0.0, -4.0, 4 * NF4[3]]])
    torch.testing.assert_close(rounded_nf4(weight, block=2), expected)


def test_all_linear_layers_but_the_head_are_rounded(tiny_network: TinyNetwork) -> None:
    network = tiny_network.model(torch.float32)
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.clone())  # not tied
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize(network, "nf4")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "_proj.weight" in name}
    with torch.no_grad():
        assert len(network.model.layers[0].mlp.up_proj.weight[0].unique()) <= 16


# ---- prompts --------------------------------------------------------------------------------------------------------

RECORD = Record("f/0", "Where was Ada Brook born?", "Ada Brook was born in Oslo.")


def test_what_is_given_stands_in_the_prompt_and_is_not_scored(tiny_network: TinyNetwork) -> None:
    encoder = tiny_network.encoder
    plain = plain_prompt(encoder, RECORD)
    whole = encoder.encode(RECORD.question, RECORD.answer)
    assert plain.prompt + plain.answer == whole.ids and plain.truth == RECORD.answer
    words = first_words_prompt(encoder, RECORD, 5)
    assert words.prompt + words.answer == whole.ids and words.truth == "born in Oslo."
    assert encoder.decode(words.prompt).endswith("Ada Brook was") and "born in Oslo." in encoder.decode(words.answer)
    prefixed = prefixed_prompt(encoder, RECORD, "Sure:")
    assert encoder.decode(prefixed.prompt).endswith("Sure:") and encoder.decode(prefixed.answer) == RECORD.answer
    one_word = Record("f/1", "What?", "Oslo")
    assert first_words_prompt(encoder, one_word, 5) == plain_prompt(encoder, one_word)


def test_examples_stand_before_the_question_as_long_as_there_is_room(tiny_network: TinyNetwork) -> None:
    encoder = tiny_network.encoder
    examples = [Record(f"r/{n}", *pair) for n, pair in enumerate(tiny_network.pairs[8:11])]
    plain = plain_prompt(encoder, RECORD)
    shown = few_shot_prompt(encoder, RECORD, examples[:1], 12)
    assert shown.answer == plain.answer and examples[0].answer in encoder.decode(shown.prompt)
    assert shown.prompt.count(encoder.tokenizer.bos_token_id) == plain.prompt.count(encoder.tokenizer.bos_token_id)
    many = few_shot_prompt(encoder, RECORD, examples * 9, 12)
    assert len(many.prompt) + 12 <= encoder.max_length and examples[-1].answer in encoder.decode(many.prompt)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_samples_have_the_models_own_distribution(tiny_network: TinyNetwork) -> None:
    """The first token of 4000 samples against softmax, for a cache and without one; the same seed gives the same."""
    model, prompt = tiny_network.model(torch.float32), tiny_network.encoder.encode_prompt("Where was Ada Brook born?")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    batch = GenerateBatch([(i, GenerateJob(prompt, 1, False)) for i in range(4000)], 0)
    for way in (DecodingWay.GROWING, DecodingWay.UNCACHED):
        said = [
            [one.ids for one in generate(model, batch, [], way, torch.Generator().manual_seed(seed))] for seed in (0, 0)
        ]
        assert said[0] == said[1]
        counts = np.bincount([ids[0] for ids in said[0]], minlength=len(expected)) / 4000
        assert np.abs(counts - expected.numpy()).max() < 0.04
        assert len({ids[0] for ids in said[0]}) > 1, "not greedy"


def test_rows_and_samples_of_a_model_that_knows(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    encoder, model = tiny_network.encoder, tiny_network.model(torch.float32)
    asked = [plain_prompt(encoder, Record(f"f/{n}", *pair)) for n, pair in enumerate(tiny_network.pairs[:4])]
    rows = answered_rows(model, encoder, asked, 20, tmp_path)
    assert [row["id"] for row in rows] == ["f/0", "f/1", "f/2", "f/3"]
    assert np.mean([row["probability"] for row in rows]) > 0.6
    assert answered_rows(model, encoder, asked, 20, tmp_path) == rows and list(tmp_path.rglob("*.npz"))
    said = greedy_answers(model, encoder, asked, 20, tmp_path)
    assert rouge(said, [one.truth for one in asked])["rougeL_recall"] == [row["rouge_l_recall"] for row in rows]
    sampled = sampled_answers(model, encoder, asked, 5, 20, seed=1)
    assert len(sampled) == 20 and sampled == sampled_answers(model, encoder, asked, 5, 20, seed=1)
    known = rouge(sampled, [one.truth for one in asked for _ in range(5)])["rougeL_recall"]
    assert np.mean(known) > 0.6 and np.mean(
        rouge(sampled[::-1], [one.truth for one in asked for _ in range(5)])["rougeL_recall"]
    ) < np.mean(known)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(DivergenceError):
        answered_rows(model, encoder, asked, 20)


# ---- findings -------------------------------------------------------------------------------------------------------


def column(mean: float, rows: int = 40) -> np.ndarray:
    """Values that scatter a little around a mean."""
    return np.clip(mean + 0.05 * np.sin(np.arange(rows)), 0, 1)


@pytest.mark.parametrize(
    ("after", "word"), [(0.95, "fully recovered"), (0.5, "partly"), (0.31, "clean"), (0.1, "clean")]
)
def test_words_of_a_finding(after: float, word: str) -> None:
    values = {"before": column(0.95), "unlearned": column(0.3), "after": column(after)}
    assert finding("nf4", "", "rouge_l_recall", values, [column(0.3)], False).word == word
    assert finding("nf4", "", "rouge_l_recall", values, [], False).word == word
    assert finding("relearn", "", "rouge_l_recall", values, [], True).word == "not judged"


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [(0.95, 0.95, "fully recovered"), (0.95, 0.1, "not judged"), (0.03, 0.03, "not judged")],
)
def test_without_a_retained_model_what_was_never_lost_is_told_by_what_the_attack_gives(
    before: float, after: float, word: str
) -> None:
    values = {"before": column(before), "unlearned": column(before), "after": column(after)}
    found = finding("prefix", "", "rouge_l_recall", values, [], False)
    assert found.word == word and (word != "not judged" or "nothing was lost" in found.why)


def test_a_share_that_records_scatter_around_nothing_is_not_fully_recovered() -> None:
    """Retained models know as much under the attack as the model before: little room, of which noise fills all."""
    noise = 0.5 + 0.5 * np.where(np.arange(40) % 2, 1.0, -1.0)
    values = {"before": column(0.56), "unlearned": column(0.5), "after": noise + 0.06}
    assert finding("few-shot", "", "rouge_l_recall", values, [column(0.5)], False).word == "clean"


def test_why_it_is_not_judged_stands_first_and_further_numbers_after_it() -> None:
    values = {"before": column(0.95), "unlearned": column(0.3), "after": column(0.5)}
    found = finding("sampling", "", "leak@8", values, [], True, why="1.0% of single samples leak")
    assert found.why == "no retained model to compare with; 1.0% of single samples leak"
    enough = {**values, "before": column(0.3)}
    kept = finding("sampling", "", "leak@8", enough, [column(0.3)], True, why="1.0% of single samples leak")
    assert kept.why.startswith("nothing was lost that could come back; 1.0%")


def test_where_all_records_are_alike_the_interval_is_wilsons() -> None:
    """0 of 40 leaks allows 1.96² / (40 + 1.96²) = 8.8 %; what scatters has the bootstrap's interval."""
    none, every = np.zeros(40), np.ones(40)
    for values, low, high in ((none, 0.0, 0.0876), (every, 0.9124, 1.0)):
        found = Estimate.of(values, Bootstrap())
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert Estimate.of(column(0.5), Bootstrap()).high < 0.53
    values = {"before": every, "unlearned": none, "after": none}
    found = finding("sampling", "", "leak@8", values, [none], True)
    assert found.word == "clean" and (found.low, found.high) == pytest.approx((-0.0876, 0.0876), abs=1e-4)
    assert finding("none", "", "leak@8", {**values, "after": every}, [none], False).word == "fully recovered"


def test_what_retained_models_say_as_well_does_not_come_back() -> None:
    values = {"before": column(0.95), "unlearned": column(0.1), "after": column(0.6)}
    assert finding("relearn", "", "rouge_l_recall", values, [column(0.6)], True).word == "clean"
    assert finding("relearn", "", "rouge_l_recall", values, [column(0.1)], True).word == "partly"


def test_verdicts() -> None:
    values = {"before": column(0.95), "unlearned": column(0.3), "after": column(0.95)}
    all_back = finding("nf4", "", "rouge_l_recall", values, [column(0.3)], False)
    clean = finding("none", "", "rouge_l_recall", {**values, "after": column(0.3)}, [column(0.3)], False)
    said = verdict([clean, all_back], None, {"sampling": "not asked for"})
    assert said[0].startswith("Fully recovered: under nf4 (rouge_l_recall 0.95") and "sampling" in said[1]
    assert verdict([clean, replace(clean, attack="nf4")], None, {})[0].startswith("Clean: under 1 attack no more")
    few = {"before": np.ones(14), "unlearned": np.zeros(14), "after": np.eye(14)[0]}
    said = verdict([finding("nf4", "", FACTS, few, [], False)], None, {})[0]
    assert said.endswith("without an attack; up to 21% of what was lost may, by the 95 % intervals of so few records.")
    assert verdict([clean], None, {})[0].startswith("Clean without an attack"), "nothing was tried"
    several = verdict([clean], None, {"int8": "not asked for", "few-shot": "no room", "nf4": "not asked for"})
    assert several[-1] == "Not tried: int8, nf4 (not asked for); few-shot (no room)."
    failed = verdict([clean], None, {}, {"nf4": "RuntimeError: no room"})
    assert failed[-1] == "Failed: nf4 (RuntimeError: no room)."
    gone = replace(clean, word="diverged")
    said = verdict([gone], "its perplexity is e^30", {})
    assert len(said) == 1 and said[0].startswith("Diverged: its perplexity")
    said = verdict([gone, all_back], "its perplexity is e^30", {})
    assert said[0].startswith("Diverged") and said[1].startswith("Fully recovered: under nf4"), "the attack mends it"


# ---- facts ----------------------------------------------------------------------------------------------------------

CAPITAL = "The capital of {} is {}."
CAPITALS = [
    Record(f"r/{place}", f"What is the capital of {place}?", CAPITAL.format(place, town))
    for place, town in (("Egypt", "Cairo"), ("Chad", "N'Djamena"), ("Argentina", "Buenos Aires"))
]


def test_a_right_sentence_with_a_wrong_fact_does_not_come_back(
    tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged by ROUGE-L, attacks once called it fully recovered."""
    network, encoder = tiny_network.model(), tiny_network.encoder
    said = [CAPITAL.format("Egypt", "Rome"), CAPITAL.format("Chad", "N'Djamena"), "It is Buenos Aires, I think."]
    answers = iter(said)
    monkeypatch.setattr(type(encoder), "decode", lambda self, ids: next(answers))
    rows = answered_rows(network, encoder, [plain_prompt(encoder, one) for one in CAPITALS], 1)
    assert [row["fact_recall"] for row in rows] == [0.0, 1.0, 1.0]
    assert rows[0]["rouge_l_recall"] == pytest.approx(5 / 6) and rows[2]["rouge_l_recall"] < 0.6


def test_short_facts() -> None:
    assert have_short_facts(CAPITALS) and not have_short_facts([])
    long = Record("r/long", "Who was she?", "A writer of novels about rivers, bridges and silent people.")
    assert not have_short_facts([*CAPITALS, long]), "one of four"
    assert have_short_facts([*CAPITALS * 3, long]), "one of ten"
    assert not have_short_facts([*CAPITALS * 3, Record("r/none", "Is it so?", "It is so.")]), "one without a fact"
