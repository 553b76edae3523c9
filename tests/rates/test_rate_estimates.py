"""`sga rate`: Gram matrices against full gradients, estimates against known truths, the command against its JSON."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import small_model
from conftest import SMALL_LLAMA, TinyNetwork
from markupsafe import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sga import GradientAscent, Loss
from sga.__main__ import main
from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.datamodule import UnlearningData
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.metrics import Floats
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL
from sga.likelihood.forward import sequence_nll
from sga.losses.ascent import GradientDifference, SmoothedGradientAscent
from sga.rates.estimates import Estimator, IntervalEstimate, RateRule, RuleEstimates, rules, total_gram
from sga.rates.geometry import Geometry, geometry_by_layer, margin_rate, margin_weight, min_norm_rate, paper_rate, total
from sga.rates.gram import ChunkGradients, Gram, cut_into_chunks, gram_of_layers
from sga.rates.policies import MarginRate, MarginWeight, PaperRate
from sga.rates.smoothing import equivalent_normal_weight, equivalent_smoothing_rate
from sga.report import rate_advice as advice
from sga.report.charts import Span, interval_chart
from sga.report.rate_advice import Sample
from sga.report.styles import Style

K = 4
EXACT = {"rel": 1e-10, "abs": 1e-14}


def draws(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def gram_of(forget: Floats, normal: Floats, sizes: Sequence[int] | None = None) -> Gram:
    """The Gram matrices of chunk gradients [C, P]."""
    counts = np.ones(len(forget)) if sizes is None else np.array(sizes, dtype=np.float64)
    return Gram(forget @ forget.T, normal @ normal.T, normal @ forget.T, counts, K)


def values(geometry: Geometry) -> tuple[float, float, float]:
    return geometry.forget_squared, geometry.normal_squared, geometry.inner


# ---- from a model ---------------------------------------------------------------------------------------------------


def chunked(groups: Sequence[list[Encoded]], chunks: int) -> list[list[list[Encoded]]]:
    return [[groups[number] for number in part] for part in cut_into_chunks(len(groups), chunks)]


def grams(
    network: PreTrainedModel, groups: Sequence[list[Encoded]], chunks: int, held: int | None = None, micro: int = 2
) -> dict[str, Gram]:
    gradients = ChunkGradients(network, chunked(groups, chunks), micro, contextlib.nullcontext)
    return gram_of_layers(gradients, K, held)


def full_gradients(network: PreTrainedModel, groups: Sequence[list[Encoded]]) -> dict[str, Geometry]:
    """Geometry by layer of the gradients of the mean losses over all groups, in one pass each."""
    batch = collate(groups)
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    parameters = [parameter for _, parameter in named]
    forget, normal = (
        torch.autograd.grad(sequence_nll(network, part).mean(), parameters)
        for part in (batch.forget_only(), batch.normals_only())
    )
    return geometry_by_layer([name for name, _ in named], forget, normal, K)


@pytest.mark.parametrize("chunks", [4, 5, 10])
def test_gram_matrices_give_the_full_gradients_geometry(tiny_network: TinyNetwork, chunks: int) -> None:
    """10 groups in chunks of equal and of unequal sizes, float64, in all layers and in each."""
    network, groups = tiny_network.model(), tiny_network.groups(10, K)
    expected, found = full_gradients(network, groups), grams(network, groups, chunks)
    assert list(found) == list(expected) and len(expected) == 4
    assert values(total_gram(found).geometry(10)) == pytest.approx(values(total(expected.values())), **EXACT)
    for layer, geometry in expected.items():
        assert values(found[layer].geometry(10)) == pytest.approx(values(geometry), **EXACT)
    other = full_gradients(network, groups[:9])
    assert values(total(other.values())) != pytest.approx(values(total(expected.values())), rel=1e-3), "groups matter"


def test_each_chunk_s_entry_is_that_of_its_own_groups(tiny_network: TinyNetwork) -> None:
    network, groups = tiny_network.model(), tiny_network.groups(5, K)
    whole = total_gram(grams(network, groups, 5))
    alone = total(full_gradients(network, groups[3:4]).values())
    found = (whole.forget[3, 3], whole.normal[3, 3], whole.inner[3, 3])
    assert found == pytest.approx(values(alone), **EXACT)


@pytest.mark.parametrize(("held", "micro"), [(1, 2), (2, 2), (3, 2), (99, 2), (None, 1), (2, 99)])
def test_neither_memory_nor_micro_batch_changes_the_numbers(tiny_network: TinyNetwork, held: int, micro: int) -> None:
    network, groups = tiny_network.model(), tiny_network.groups(7, K)
    expected, found = (total_gram(grams(network, groups, 5, *how)) for how in ((None, 2), (held, micro)))
    for name in ("forget", "normal", "inner"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-14)


def test_fewer_held_chunks_are_held(tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 chunks in blocks of 2: blocks 01, 23, 4 against themselves and later ones."""
    asked: list[range] = []
    rows = ChunkGradients.rows

    def counted(self: ChunkGradients, chunks: range) -> list[torch.Tensor]:
        asked.append(chunks)
        return rows(self, chunks)

    monkeypatch.setattr(ChunkGradients, "rows", counted)
    grams(tiny_network.model(), tiny_network.groups(5, K), 5, held=2)
    two, three, one = range(2), range(2, 4), range(4, 5)
    assert asked == [two, three, one, three, one, one]


def test_weights_and_gradients_are_left_alone_and_frozen_parameters_left_out(tiny_network: TinyNetwork) -> None:
    """Only the second block is trainable, as an adapter is."""
    network, groups = tiny_network.model(), tiny_network.groups(4, K)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = grams(network, groups, 4)
    assert list(found) == ["model.layers.1"]
    assert values(found["model.layers.1"].geometry(4)) == pytest.approx(
        values(full_gradients(network, groups)["model.layers.1"]), **EXACT
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        grams(network, groups, 4)


def test_losses_are_those_of_the_chunks_and_damaged_weights_are_said(tiny_network: TinyNetwork) -> None:
    network, groups = tiny_network.model(), tiny_network.groups(5, K)
    gradients = ChunkGradients(network, chunked(groups, 4), None, contextlib.nullcontext)
    gram_of_layers(gradients, K)
    nll = sequence_nll(network, collate(groups)).detach()
    mean = np.average(gradients.nll, axis=0, weights=[1, 1, 1, 2])
    assert mean.tolist() == pytest.approx([nll[:, 0].mean().item(), nll[:, 1:].mean().item()], **EXACT)
    with torch.no_grad():
        network.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(ValueError, match="loss on the sampled groups is nan"):
        grams(network, groups, 4)


# ---- estimates ------------------------------------------------------------------------------------------------------


def test_noise_free_products_are_means_over_pairs_of_different_chunks() -> None:
    """By loops over pairs, for chunks of 1, 2 and 3 groups, whole and with one chunk drawn twice and one not at all."""
    forget, normal, sizes = draws(0, 4, 6), draws(1, 4, 6), [1, 2, 3, 2]
    found = gram_of(forget, normal, sizes)
    for counts in ([1, 1, 1, 1], [2, 0, 1, 1]):
        weights = [count * size for count, size in zip(counts, sizes, strict=True)]
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        whole = sum(weights[i] * weights[j] for i, j in pairs)
        [got] = found.resampled(np.array([counts], dtype=np.float64), math.inf)
        expected = [
            sum(weights[i] * weights[j] * float(left[i] @ right[j]) for i, j in pairs) / whole
            for left, right in ((forget, forget), (normal, normal), (normal, forget))
        ]
        assert values(got) == pytest.approx(expected, **EXACT)


def test_the_noise_of_the_sample_s_own_size_gives_its_mean_gradients_back() -> None:
    forget, normal, sizes = draws(2, 5, 7), draws(3, 5, 7), np.array([1, 2, 2, 3, 1])
    f, n = (sizes @ rows / sizes.sum() for rows in (forget, normal))
    found = gram_of(forget, normal, sizes.tolist())
    assert values(found.geometry(found.groups)) == pytest.approx((f @ f, n @ n, n @ f), **EXACT)
    assert found.geometry(2).forget_squared > found.geometry(9).forget_squared > found.geometry(math.inf).forget_squared


@dataclass
class Population:
    """Groups whose forget and normal gradients have known means and noise that the two share in part.

    Attributes:
        size: Groups of a sample.
    """

    size: int
    dimensions: int = 12

    def __post_init__(self) -> None:
        self.forget, self.normal = 0.5 * draws(7, self.dimensions), 0.4 * draws(8, self.dimensions)
        self.normal += 0.3 * self.forget

    @property
    def truth(self) -> Geometry:
        f, n = self.forget, self.normal
        return Geometry(float(f @ f), float(n @ n), float(f @ n), K)

    def at(self, groups: int) -> tuple[float, float, float]:
        """Expected products of mean gradients over so many groups: variance 1 of g_f, 0.5 of ḡ_n, 0.3 shared."""
        f, n, c = values(self.truth)
        share = self.dimensions / groups
        return f + share, n + 0.5 * share, c + 0.3 * share

    def sample(self, seed: int, chunks: int) -> Gram:
        """One sample, as chunks of groups."""
        common, own = draws(seed, 2, self.size, self.dimensions)
        forget = self.forget + common
        normal = self.normal + 0.3 * common + math.sqrt(0.5 - 0.09) * own
        parts = cut_into_chunks(self.size, chunks)
        means = [np.stack([rows[part].mean(axis=0) for part in parts]) for rows in (forget, normal)]
        return gram_of(means[0], means[1], [len(part) for part in parts])


@pytest.mark.parametrize("chunks", [12, 5])
@pytest.mark.runs
def test_noise_free_products_are_unbiased_and_a_batch_s_are_as_expected(chunks: int) -> None:
    """Means over 2000 samples of 12 groups within 4 standard errors; the sample's own products are not unbiased."""
    population = Population(12)
    samples = [population.sample(seed, chunks) for seed in range(2000)]

    def errors(groups: float, expected: Sequence[float]) -> Floats:
        """Deviations of the mean in standard errors, [3]."""
        found = np.array([values(sample.geometry(groups)) for sample in samples])
        deviations: Floats = (found.mean(axis=0) - expected) / (found.std(axis=0) / math.sqrt(len(found)))
        return deviations

    assert np.abs(errors(math.inf, values(population.truth))).max() < 4
    for groups in (12, 4):
        assert np.abs(errors(groups, population.at(groups))).max() < 4
    assert errors(12, values(population.truth)).min() > 8, "negative control: noise makes all three too large"


@pytest.mark.runs
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """c/n, the cosine, and three rules over 200 samples of 64 groups in 32 chunks; 95 % intervals."""
    population, hits, count = Population(64), dict.fromkeys(("ratio", "cosine", "paper", "margin", "weight"), 0), 200
    truth = population.truth
    chosen = [
        RateRule("paper", PaperRate()),
        RateRule("m", MarginRate(margin=0.5)),
        RateRule("λ", MarginWeight(margin=0.5)),
    ]
    expected = {
        "ratio": truth.inner / truth.normal_squared,
        "cosine": truth.cosine,
        "paper": paper_rate(truth),
        "margin": margin_rate(truth, 0.5),
        "weight": margin_weight(truth, 0.5),
    }
    for seed in range(count):
        sample = population.sample(seed, 32)
        estimator = Estimator(32, 8, Bootstrap(resamples=200, seed=seed))
        whole, (paper, margin, weight) = estimator.geometry(sample), estimator.rules(sample, chosen)
        intervals = {
            "ratio": whole.interference_noise_free,
            "cosine": whole.cosine_noise_free,
            "paper": paper.rate_noise_free,
            "margin": margin.rate_noise_free,
            "weight": weight.weight_noise_free,
        }
        for name, interval in intervals.items():
            assert interval.low <= interval.high
            hits[name] += interval.holds(expected[name])
    assert all(0.87 <= hit / count < 1 for hit in hits.values()), hits


def same_chunks(f: Floats, n: Floats, chunks: int = 8) -> Gram:
    """A sample without any noise."""
    return gram_of(np.tile(f, (chunks, 1)), np.tile(n, (chunks, 1)))


def estimates(sample: Gram, margins: Sequence[float] = (0.0, 0.5)) -> dict[str, RuleEstimates]:
    estimator = Estimator(len(sample.sizes), 4, Bootstrap(resamples=100))
    return {found.rule.name: found for found in estimator.rules(sample, rules(margins))}


def test_without_noise_every_estimate_is_the_closed_form_and_its_interval_a_point() -> None:
    """The quadratic ℓ_f = ‖θ‖²/2, ℓ̄_n = ‖θ − e‖²/2 at θ = (x, y): g_f = θ, ḡ_n = θ − e, u = −(K−1)/K·e."""
    x, y = 0.3, 0.5
    sample = same_chunks(np.array([x, y]), np.array([x - 1, y]))
    found = estimates(sample)
    c, n = x * (x - 1) + y * y, (x - 1) ** 2 + y * y
    closed = {
        "paper": -4 * x / 3,
        "min_norm": 4 * x / 3,
        "margin(0)": -4 / 3 * c / (n - c),
        "margin(0.5)": -4 / 3 * (c + 0.5 * n) / (n - c),
        "margin_lambda(0)": equivalent_smoothing_rate(K, c / n),
        "margin_lambda(0.5)": equivalent_smoothing_rate(K, 0.5 + c / n),
    }
    assert found.pop("margin_lambda(1)").weight.value == pytest.approx(1 + c / n), "always shown; beyond any r here"
    lengths = math.sqrt((x * x + y * y) / n)
    for estimate in ((ratio := found.pop("norm_ratio")).weight, ratio.weight_noise_free):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((lengths,) * 3, abs=1e-8)
    assert ratio.applied == pytest.approx(lengths) and ratio.rate.value == equivalent_smoothing_rate(K, lengths)
    assert set(found) == set(closed)
    for name, rate in closed.items():
        assert rate is not None
        for estimate in (found[name].rate, found[name].rate_noise_free):
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((rate,) * 3, abs=1e-8)
        assert found[name].batch_rate == pytest.approx(rate, abs=1e-8)
        assert found[name].weight.value == pytest.approx(equivalent_normal_weight(K, rate), abs=1e-8)
        assert found[name].answered and found[name].answered_share == 1
    assert found["margin_lambda(0.5)"].applied == pytest.approx(0.5 + c / n)
    assert min_norm_rate(sample.geometry(8)) == pytest.approx(found["min_norm"].rate.value)


def test_what_no_rate_reaches_is_infinite() -> None:
    """c > n: no margin rate; λ = 0.5 + c/n beyond 1 has no r; ‖u‖ = 0 leaves the paper's rate without an answer."""
    beyond = estimates(same_chunks(np.array([3.0, 0.0]), np.array([1.0, 0.5])))
    assert beyond["margin(0)"].rate.value == beyond["margin(0)"].rate.low == -math.inf
    assert not beyond["margin(0)"].answered and beyond["margin(0)"].answered_share == 0
    assert beyond["margin(0)"].applied == -8 and beyond["margin(0)"].weight.value == 1
    assert beyond["margin_lambda(0.5)"].rate.value == -math.inf
    assert beyond["margin_lambda(0.5)"].weight.value == pytest.approx(0.5 + 3 / 1.25)
    assert beyond["norm_ratio"].weight.value == pytest.approx(3 / math.sqrt(1.25))
    assert beyond["norm_ratio"].rate.value == -math.inf, "λ beyond 1 has no r"
    same = estimates(same_chunks(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    level = same["norm_ratio"]
    assert level.weight.value == pytest.approx(1) and level.rate.value < -1e6, "λ = 1 is r's limit"
    assert math.isinf(same["paper"].rate.value) and not same["paper"].answered
    clamped = estimates(same_chunks(np.array([0.99, 0.0]), np.array([1.0, 0.0])))["margin(0)"]
    assert clamped.clamped and clamped.applied == -8 and clamped.rate.value < -100


@pytest.mark.parametrize("rate", [-50.0, -4.0, -0.8, 0.0, 0.5, 1.0])
def test_r_and_lambda_are_each_other_s_inverse(rate: float) -> None:
    assert equivalent_smoothing_rate(K, equivalent_normal_weight(K, rate)) == pytest.approx(rate, abs=1e-12)
    assert equivalent_smoothing_rate(K, 1.0) is None and equivalent_smoothing_rate(K, 3.0) is None


# ---- advice ---------------------------------------------------------------------------------------------------------

TAKEN = Sample(taken=32, available=100, chunks=32, group_size=K, batch_size=8, seed=0)


def sentences(sample: Gram, loss: Loss | None = None, taken: Sample = TAKEN) -> str:
    estimator = Estimator(len(sample.sizes), taken.batch_size, Bootstrap(resamples=200))
    return "\n".join(advice.advice(estimator.geometry(sample), estimator.rules(sample, rules([0, 0.5])), taken, loss))


def noisy(f: Sequence[float], n: Sequence[float], noise: float, seed: int = 0) -> Gram:
    rows = [np.array(mean) + noise * draws(seed + side, 32, len(mean)) for side, mean in enumerate((f, n))]
    return gram_of(rows[0], rows[1])


def test_equal_norms_and_cosines_are_called_no_information_and_others_are_not() -> None:
    """‖ḡ_n‖² = 1/3 of ‖g_f‖² at cosine 0 is what four orthogonal gradients of equal norms give: r = −1."""
    assert "carries no information here" in sentences(noisy([1, 0], [0, 1 / math.sqrt(3)], 0.1))
    other = sentences(noisy([1, 0], [0, 2], 0.1))
    assert "carries no information" not in other and "norms or cosines of the gradients are unequal" in other


def test_interference_is_said_with_its_sign_or_not_at_all() -> None:
    assert "forgetting hurts the normal samples" in sentences(noisy([1, 0.5], [0.5, 1], 0.1))
    assert "forgetting helps the normal samples" in sentences(noisy([1, -0.5], [-0.5, 1], 0.1))
    assert "hurts or helps the normal samples cannot be told" in sentences(noisy([1, 0.0], [0.0, 1], 0.5))


def test_the_configured_rate_is_held_against_what_keeps_the_normal_loss_level() -> None:
    """c/n = 0.8: λ = 0.375 of r = −0.8 is too little, λ = 1.5 is not; a policy has no fixed number."""
    sample = noisy([1, 0.5], [0.5, 1], 0.02)
    assert "r = −0.80 (λ = 0.38) is a margin_lambda with m = −0.4" in sentences(sample, SmoothedGradientAscent(-0.8))
    assert "normal loss rises at these weights" in sentences(sample, SmoothedGradientAscent(-0.8))
    assert "normal loss falls at these weights" in sentences(sample, GradientDifference(1.5))
    for loss in (None, GradientDifference(MarginWeight()), GradientAscent()):
        assert "The configuration's" not in sentences(sample, loss)


def test_noise_few_chunks_and_a_whole_set_are_said() -> None:
    quiet, loud = sentences(noisy([1, 0], [0, 1], 0.1)), sentences(noisy([1, 0], [0, 1], 3.0))
    assert "follow noise more than signal" in loud and "follow noise" not in quiet
    assert "chunks make coarse intervals" not in quiet and "groups were taken" not in quiet
    few = sentences(
        same_chunks(np.array([1.0, 0.0]), np.array([0.0, 1.0])), taken=Sample(8, 8, 8, K, batch_size=4, seed=0)
    )
    assert "8 chunks make coarse intervals" in few and "All 8 groups were taken" in few


def answer(sample: Gram) -> str:
    return advice.answer([*estimates(sample).values()], K)


def test_which_r_is_answered_with_the_rule_that_did_best_in_the_project_s_sweep() -> None:
    """λ = 1 + c/n: 0.5 for g_f = (1, −0.5), ḡ_n = (0, 1), which is r = −4/3; 1.8 beyond any r. It can be set."""
    from sga.cli import configured_cli

    for f, n, said in (([1, -0.5], [0, 1], "r = −1.33 (λ = 0.50"), ([1, 0.5], [0.5, 1], "λ = 1.80 (")):
        text = answer(noisy(f, n, 0.002))
        assert text.startswith("Which r? ") and said in text and "margin_lambda with m = 1" in text
        assert ("beyond what any r reaches" in text) == (n[0] == 0.5)
        assert "3 seeds of one small world" in text and "not certain" in text and "r = −8" in text
        policy = configured_cli([*AUTHORS, *re.findall(r"--model\.loss\S+", text)]).model.loss.policy
        assert policy == MarginWeight(margin=1.0)


@pytest.mark.parametrize(
    "sample",
    [
        lambda: same_chunks(np.array([9.0, 0.0]), np.array([1.0, 0.0])),
        lambda: same_chunks(np.array([-2.0, 0.0]), np.array([1.0, 0.0])),
        lambda: noisy([1, 0], [0, 0.01], 1.0),
    ],
    ids=["above-the-clamp", "forgetting-helps", "noise"],
)
def test_numbers_that_speak_against_the_rule_give_no_recommendation(sample: Callable[[], Gram]) -> None:
    text = answer(sample())
    assert text.startswith("Which r? This sample does not say") and "--model.loss" not in text
    assert "sga sweep" in text and "r = −8" in text


def test_an_r_of_its_own_is_offered_where_one_reaches_and_can_be_set() -> None:
    from sga.cli import configured_cli

    options = re.findall(r"--model\.loss\S+", sentences(noisy([1, 0], [0.1, 1], 0.01)))
    assert configured_cli([*AUTHORS, *options]).model.loss.policy == MarginRate(margin=0.5)
    assert "--model.loss" not in sentences(noisy([3, 0], [1, 0.5], 0.01))


# ---- the command ----------------------------------------------------------------------------------------------------

AUTHORS = (
    "--data.source=sga.Authors",
    "--data.source.forget_authors=2",
    "--data.source.retain_authors=3",
    "--data.source.holdout_authors=1",
    "--data.source.questions_per_author=6",
    *SMALL_LLAMA,
    "--model.language_model.vocabulary=600",
    "--trainer.accelerator=cpu",
)

ALTERNATIVES = ("--data.alternatives=RefusalAnswers", "--data.alternatives.count=1", "--data.alternatives.pool=3")


@dataclass(frozen=True)
class Shown:
    """What a command left: its text, its numbers, and its page."""

    text: str
    content: dict[str, dict[str, dict[str, float]]]
    page: str
    raw: bytes


Rate = Callable[..., Shown]


@pytest.fixture
def rate(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Rate:
    """Runs `sga rate` on built-in authors with a random model; more options override."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> Shown:
        capsys.readouterr()
        assert main(["rate", *AUTHORS, "--groups=8", "--output=out", *options]) == 0
        raw = Path("out/rate.json").read_bytes()
        return Shown(capsys.readouterr().out, json.loads(raw), Path("out/rate.html").read_text("utf-8"), raw)

    return run


def test_an_encoder_has_no_rate(
    own_target: Path, own_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has seen the answer whose likelihood it is asked for."""
    small_model("bert", tokens=600).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(own_target / "model" / name, tmp_path / "bert")
    model = ("--model.language_model=Pretrained", f"--model.language_model.name_or_path={tmp_path / 'bert'}")
    loss = ("--model.loss=sga.SmoothedGradientAscent", "--model.loss.smoothing_rate=-1")
    assert main(["rate", *own_options, *model, *loss, f"--output={tmp_path / 'out'}", "--groups=4"]) == 2
    assert "is no causal language model" in capsys.readouterr().err


def shown_number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


def table_of(text: str, head: str) -> dict[str, list[str]]:
    """Cells of a printed table by the name in its first column; cells are two spaces apart."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    rows = [re.split(r" {2,}", line) for line in lines[start + 2 : lines.index("", start)]]
    return {name: cells for name, *cells in rows}


def test_the_command_prints_what_it_writes(rate: Rate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(map(len, rate().text.splitlines())) <= 80
    monkeypatch.setattr("sga.evaluation.table.terminal_width", lambda: 200)  # a line for each row
    found = rate("--margins", "0", "0.6", "--data.batch_size=5")
    content = found.content
    assert "groups      8 of 12 of authors, K = 4, in 8 chunks (seed 0)" in found.text
    assert (content["groups"], content["groups_available"], content["chunks"], content["batch_size"]) == (8, 12, 8, 5)
    rows = table_of(found.text, "rule ")
    assert list(rows) == list(content["rules"])
    assert list(rows) == [
        "paper",
        "min_norm",
        "margin(0)",
        "margin(0.6)",
        "norm_ratio",
        "margin_lambda(0)",
        "margin_lambda(0.6)",
        "margin_lambda(1)",
    ]
    for name, (r, weight, noise_free, batch, applied, _) in rows.items():
        rule = content["rules"][name]
        for cell, key in ((r, "rate"), (weight, "weight"), (noise_free, "rate_noise_free")):
            value, low, high = map(shown_number, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell).groups())
            for number, end in ((value, "value"), (low, "low"), (high, "high")):
                stated = rule[key][end]
                assert math.isinf(number) if stated is None else number == pytest.approx(stated, abs=0.0051)
        assert rule["batch_rate"] is None or shown_number(batch) == pytest.approx(rule["batch_rate"], abs=0.0051)
        assert shown_number(applied.split()[2]) == pytest.approx(rule["applied"], abs=0.0051)
    layers = table_of(found.text, "layer ")
    assert list(layers) == ["all", *content["layers"]] and len(layers) == 5
    sample = content["geometry"]["sample"]
    assert float(layers["all"][0]) == pytest.approx(math.sqrt(sample["forget_squared"]), rel=0.01)
    parts = [layer["sample"]["inner"] for layer in content["layers"].values()]
    assert sum(parts) == pytest.approx(sample["inner"], rel=1e-9)
    geometry = Geometry(sample["forget_squared"], sample["normal_squared"], sample["inner"], K)
    assert content["rules"]["paper"]["rate"]["value"] == pytest.approx(paper_rate(geometry))
    assert content["settings"]["data"]["group_size"] == 4 and content["versions"]["torch"] == torch.__version__
    joined = " ".join(found.text.split())
    assert len(content["advice"]) >= 5 and all(" ".join(line.split()) in joined for line in content["advice"])
    assert found.text.startswith(found.content["answer"][:60]) and found.content["recommended"] in (
        None,
        list(rows)[-1],
    )
    assert " ".join(found.content["answer"].split()) in joined
    for symbol, meaning in advice.SYMBOLS:
        assert found.content["symbols"][symbol] == meaning and meaning in joined and escape(meaning) in found.page
    assert found.page.index(escape(found.content["answer"])) < found.page.index("<h2>Rules</h2>")
    named = " ".join(symbol for symbol, _ in advice.SYMBOLS)
    assert all(name in named for name in ("r", "λ", "K", "m", "g_f", "ḡ_n", "u", "c, n", "without noise", "answered"))
    for piece in ("<svg", "margin_lambda(0.6)", "model.layers.1", "8 of 12"):
        assert piece in found.page
    assert "script-src 'sha256-" in found.page and found.page.count("<script>") == 1


@pytest.mark.runs
def test_the_same_command_gives_the_same_and_another_seed_another_sample(rate: Rate) -> None:
    first, second = rate(), rate()
    assert first.raw == second.raw and first.text == second.text and first.page == second.page
    other = rate("--seed_everything=1")
    assert other.content["geometry"] != first.content["geometry"]
    few = rate("--held=3", "--data.micro_batch_size=1", "--chunks=8")
    for name, value in few.content["geometry"]["noise_free"].items():
        assert value == pytest.approx(first.content["geometry"]["noise_free"][name], rel=1e-4)


def test_a_run_s_own_rule_and_checkpoint_are_looked_at_and_the_run_is_left_alone(
    own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """The checkpoint's weights on a random model are the exported model's; the configuration's rule has a line."""
    before = {path: path.stat().st_mtime_ns for path in own_target.rglob("*") if path.is_file()}
    exported = ["--model.language_model=sga.Pretrained",
                f"--model.language_model.name_or_path={own_target}"]  # fmt: skip
    checkpoint = [*SMALL_LLAMA, f"--ckpt_path={own_target / 'checkpoints' / 'last.ckpt'}"]
    policy = ["--model.loss=sga.SmoothedGradientAscent", "--model.loss.smoothing_rate=sga.MarginRate",
              "--model.loss.smoothing_rate.margin=0.3", "--model.loss.smoothing_rate.lowest=-2"]  # fmt: skip
    found = []
    for name, weights in (("exported", exported), ("checkpoint", checkpoint)):
        run = f"--run.folder={tmp_path / name}"
        assert main(["rate", *own_options, *weights, *policy, run]) == 0
        assert {path.name for path in (tmp_path / name).rglob("*")} == {"rate", "rate.json", "rate.html"}
        found.append(json.loads((tmp_path / name / "rate" / "rate.json").read_text()))
    assert found[0]["groups"] == found[0]["groups_available"] == found[0]["chunks"] == 6
    assert "MarginRate(lowest=-2.0, margin=0.3)" in found[0]["rules"]
    assert found[1]["geometry"]["sample"] == pytest.approx(found[0]["geometry"]["sample"], rel=1e-5)
    assert found[1]["checkpoint"].endswith("last.ckpt") and found[0]["checkpoint"] is None
    assert {path: path.stat().st_mtime_ns for path in own_target.rglob("*") if path.is_file()} == before


@pytest.mark.runs
def test_groups_are_those_of_the_first_epoch(rate: Rate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pools of normals and alternatives a training step sees a draw, in another mixture than that of the pools."""
    loaders: list[GroupLoader] = []
    seen: list[list[Encoded]] = []
    load = UnlearningData.loader

    def noted(data: UnlearningData) -> GroupLoader:
        loaders.append(load(data))
        return loaders[-1]

    def put_together(groups: list[list[Encoded]], **options: int) -> Batch:
        seen.extend(groups)
        return collate(groups, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(UnlearningData, "loader", noted)
    monkeypatch.setattr("sga.rates.gram.collate", put_together)
    rate(*ALTERNATIVES, "--data.group_size=4", "--data.pool_size=5")
    assert {len(group) for group in seen} == {4}
    (loader,) = loaders
    drawn = [loader.drawn(index) for index in range(len(loader.groups))]
    assert all(roles == [FORGET, NORMAL, NORMAL, ALTERNATIVE] for _, roles in drawn)
    assert all(group in [rows for rows, _ in drawn] for group in seen)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.group_size=1"], "group_size must be at least 2, got 1"),
        (["--groups=0"], "--groups must be at least 4, got 0"),
        (["--groups=13"], "--groups 13: there are 12; --groups 12 takes all of them"),
        (["--chunks=3"], "--chunks must be at least 4, got 3"),
        (["--chunks=9"], "--chunks 9: must be at most the number of groups, 8"),
        (["--held=0"], "--held must be at least 1, got 0"),
        (["--margins", "-1"], "--margins must be a finite number of at least 0, got -1"),
        (["--data.source.forget_authors=1", "--data.source.questions_per_author=3"], "needs at least 4"),
        (["--ckpt_path=missing.ckpt"], "--ckpt_path missing.ckpt: no such file"),
        (["--output=file"], "--output file is a file; name a folder"),
        ([*ALTERNATIVES, "--model.loss=NPO"], "NPO has no use for alternatives among the normals"),
        (
            [*ALTERNATIVES, "--model.loss=SmoothedGradientAscent", "--model.loss.alternative_rate=-2"],
            "alternative_rate -2: sga rate looks for one number for all normals; leave it out",
        ),
    ],
)
@pytest.mark.runs
def test_what_cannot_be_is_said_before_a_model_is_made(
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(self: object, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        raise AssertionError("a model was made")

    monkeypatch.setattr("sga.SmallLlama.network", refused)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["rate", *AUTHORS, "--groups=8", *options]) == 2
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["rate", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "Nothing is trained" in printed and "--chunks" in printed


# ---- the chart ------------------------------------------------------------------------------------------------------


def test_the_chart_draws_what_lies_on_its_axis_and_writes_what_does_not() -> None:
    styles = {"of a sample": Style("c2"), "without noise": Style("c0")}
    spans = [
        Span("a & b", "of a sample", 0.5, 0.2, math.inf, "half"),
        Span("a & b", "without noise", -math.inf, -math.inf, 0.1, "none"),
    ]
    content = interval_chart(spans, styles, {"GD": 1.0}, (0.0, 2.0), "λ", "rule").to_dict()
    json.dumps(content, allow_nan=False)
    vertical, _, lines, marks, text = (content["datasets"][layer["data"]["name"]] for layer in content["layer"])
    assert vertical == [{"x": 1.0, "text": "GD"}]
    assert [(line["low"], line["high"]) for line in lines] == [(0.2, 2.0), (0.0, 0.1)]
    assert [(mark["x"], mark["hover0"], mark["hover2"]) for mark in marks] == [(0.5, "a & b", "half")]
    assert [(edge["x"], edge["text"]) for edge in text] == [(0.0, "← −∞")]
    assert IntervalEstimate(1.0, 0.0, 2.0).holds(2.0) and not IntervalEstimate(1.0, 0.0, 2.0).holds(2.1)
