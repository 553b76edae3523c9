"""Answers of many architectures against the plain obvious way; and what happens where memory runs out."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import small_model
from conftest import TinyNetwork
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)
from waiting import Counter

import sga.evaluation.inference
from sga.errors import DivergenceError, UserError
from sga.evaluation import decoding, graph_decoding
from sga.evaluation.decoding import DecodingWay, _Decoding, decoding_way, generate
from sga.evaluation.graph_decoding import GraphDecoding
from sga.evaluation.inference import Inference
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch, ScoreJob
from sga.evaluation.requests import Answer, Generation, TokenScores
from sga.evaluation.scoring import score_batch, trees_work
from sga.models.attention import switched

VOCABULARY, CONTEXT, EOS = 61, 64, 1

SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 0}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    **SPECIAL,
}
GROUPED = {"num_key_value_heads": 2, **SMALL}
GPT2 = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL}
CAPPED = {"head_dim": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 10.0, **GROUPED}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, **SMALL}

ARCHITECTURES: dict[str, tuple[Callable[[], Any], bool]] = {
    "Llama": (lambda: LlamaConfig(**GROUPED), True),
    "GPT-2": (lambda: GPT2Config(**GPT2), True),
    "OPT": (lambda: OPTConfig(**OPT), True),
    "Phi": (lambda: PhiConfig(**SMALL), True),
    "Qwen2": (lambda: Qwen2Config(**GROUPED), True),
    "GPT-NeoX": (lambda: GPTNeoXConfig(**SMALL), True),
    "Gemma2": (lambda: Gemma2Config(sliding_window=CONTEXT, **CAPPED), True),
    "Gemma2, short window": (lambda: Gemma2Config(sliding_window=8, **CAPPED), False),
    "Mistral": (lambda: MistralConfig(sliding_window=None, **GROUPED), True),
    "Mistral, short window": (lambda: MistralConfig(sliding_window=8, **GROUPED), False),
    "Bloom": (lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SPECIAL), False),  # ALiBi, no position_ids
    "Falcon": (lambda: FalconConfig(alibi=True, **SMALL), False),  # ALiBi from a two-dimensional mask
}
"""How to make it, and whether it scores trees as it scores sequences."""

EAGER_ONLY = {"Gemma2", "Gemma2, short window", "Bloom"}
ATTENTION = [(name, kind) for name in ARCHITECTURES for kind in ("sdpa", "eager") if (name, kind) not in {
    (eager, "sdpa") for eager in EAGER_ONLY
}]  # fmt: skip


def tiny(
    name: str, attention: str = "eager", dtype: torch.dtype = torch.float64, scale: float = 1.5
) -> PreTrainedModel:
    """A random model with weights so large that each token changes what is said of those after it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            ARCHITECTURES[name][0](), attn_implementation=attention
        )
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1:
                    embeds = isinstance(module, torch.nn.Embedding)
                    parameter.data.normal_(0, 1 if embeds else 1.5 / parameter.shape[-1] ** 0.5)
    model.generation_config = GenerationConfig()
    return model.to(dtype).eval()


@pytest.fixture
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention casts its softmax to float32 whatever the weights' type, which would hide what is compared.

    And the lowest float64, which hides padding, is −∞ there, so that padding makes no number of a whole row.
    """
    softmax = torch.nn.functional.softmax

    def exact(values: Tensor, dim: int, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return softmax(values, dim=dim, dtype=torch.promote_types(values.dtype, dtype or values.dtype), **options)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


def score_jobs(rng: random.Random, prompts: int = 3) -> list[list[ScoreJob]]:
    """Five answers to each prompt: one, three that begin like it and one that does not."""

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(least, most)))

    groups = []
    for _ in range(prompts):
        prompt, right = tokens(3, 20), tokens(5, 12)
        answers = [right, *(right[:kept] + tokens(1, 6) for kept in (2, 4, len(right))), tokens(4, 6)]
        groups.append(
            [
                ScoreJob((*prompt, *answer, EOS), len(prompt), detail=number % 2 == 0, ends=True, cut=False)
                for number, answer in enumerate(answers)
            ]
        )
    return groups


def batch_of(groups: Sequence[Sequence[ScoreJob]]) -> ScoreBatch:
    numbers = iter(range(1000))
    return ScoreBatch([[(next(numbers), job) for job in group] for group in groups], pad_id=0)


@torch.no_grad()
def plainly(model: PreTrainedModel, job: ScoreJob) -> TokenScores:
    """One sequence, all its logits, the whole log-softmax."""
    logits = model(input_ids=torch.tensor([job.ids])).logits[0, job.prompt_length - 1 : -1]
    log_p = torch.log_softmax(logits.double(), dim=-1)  # [T, V]
    targets = torch.tensor(job.ids[job.prompt_length :])
    means = (log_p.exp() * log_p).sum(dim=-1)
    return TokenScores(
        log_p[torch.arange(len(targets)), targets].numpy(),
        (log_p.argmax(dim=-1) == targets).numpy(),
        means.numpy(),
        (log_p.exp() * (log_p - means[:, None]) ** 2).sum(dim=-1).numpy(),
    )


def assert_scores(
    found: Sequence[Answer], expected: Sequence[TokenScores], detail: Sequence[bool], atol: float
) -> None:
    for ours, theirs, wanted in zip(found, expected, detail, strict=True):
        assert isinstance(ours, TokenScores) and isinstance(theirs, TokenScores)
        assert ours.log_probs.dtype == np.float64
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, rtol=0, atol=atol)
        assert (ours.hits is None, ours.means is None, ours.variances is None) == (not wanted,) * 3
        if wanted:
            np.testing.assert_array_equal(ours.hits, theirs.hits)
            np.testing.assert_allclose(ours.means, theirs.means, rtol=0, atol=atol)
            np.testing.assert_allclose(ours.variances, theirs.variances, rtol=0, atol=10 * atol)  # squares of those


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "attention"), ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.runs
def test_scores_are_those_of_single_sequences(
    name: str, attention: str, dtype: torch.dtype, exact_softmax: None
) -> None:
    """float64 to 1e-9; float32 to 1e-4, which is its rounding in logits of this size."""
    model = tiny(name, attention, dtype)
    groups = score_jobs(random.Random(3))
    batch = batch_of(groups)
    jobs = [job for group in groups for job in group]
    expected = [plainly(model, job) for job in jobs]
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    assert trees_work(model, batch) == ARCHITECTURES[name][1]
    detail = [job.detail for job in jobs]
    assert_scores(Inference(model, [EOS]).answer(batch), expected, detail, atol)
    assert_scores(Inference(model, [EOS]).answer(batch.apart()), expected, detail, atol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_negative_control_context_matters_in_these_models(name: str) -> None:
    """Another first token, and the same tokens one place further on, change what is said of the last ones."""
    model = tiny(name)
    job = score_jobs(random.Random(3))[0][0]
    before = plainly(model, job).log_probs
    for ids in ((job.ids[0] % 50 + 3, *job.ids[1:]), (7, *job.ids)):
        other = replace(job, ids=ids, prompt_length=len(ids) - len(before))
        assert np.abs(plainly(model, other).log_probs - before).max() > 1e-2
    assert before.std() > 0.5


@pytest.mark.parametrize("name", [name for name, (_, works) in ARCHITECTURES.items() if not works])
def test_negative_control_trees_that_do_not_work_give_other_numbers_or_none(name: str) -> None:
    model = tiny(name)
    groups = score_jobs(random.Random(3))
    expected = [plainly(model, job) for group in groups for job in group]
    try:
        found = score_batch(model, batch_of(groups))
    except (ValueError, RuntimeError, IndexError, TypeError):
        return
    errors = [np.abs(a.log_probs - b.log_probs).max() for a, b in zip(found, expected, strict=True)]
    assert max(errors) > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_window_is_noticed_that_only_the_longest_sequences_leave(attention: str) -> None:
    """A short tree scores well under a long window; that says nothing about a long one, in this batch or later."""
    model = tiny("Mistral", attention)
    model.config.sliding_window = 24  # read in each forward pass
    short, *_ = sorted(score_jobs(random.Random(1), 12), key=lambda group: max(len(job.ids) for job in group))
    *_, long = sorted(score_jobs(random.Random(2), 12), key=lambda group: max(len(job.ids) for job in group))
    assert max(len(job.ids) for job in short) < 24 < max(len(job.ids) for job in long)
    expected = [[plainly(model, job) for job in group] for group in (short, long)]
    assert trees_work(model, batch_of([short])), "so it cannot be told from the short one"
    detail = [job.detail for job in short]
    together = Inference(model, [EOS]).answer(batch_of([short, long]))
    assert_scores(together[:5], expected[0], detail, 1e-6)  # 1e-6: eager attention's softmax is in float32
    assert_scores(together[5:], expected[1], detail, 1e-6)
    inference = Inference(model, [EOS])
    for group, scores in zip((short, long, short), (*expected, expected[0]), strict=True):
        assert_scores(inference.answer(batch_of([group])), scores, detail, 1e-6)


@pytest.mark.usefixtures("exact_softmax")
def test_a_token_that_cannot_occur_adds_nothing_to_mean_and_variance() -> None:
    """Models mask tokens of their vocabulary with −∞, and 0·(−∞) is no number."""
    model = tiny("Llama")
    jobs = [replace(job, detail=True) for job in score_jobs(random.Random(3), 1)[0]]
    unused = torch.tensor(sorted(set(range(VOCABULARY)) - {token for job in jobs for token in job.ids}))
    others = torch.tensor(sorted(set(range(VOCABULARY)) - set(unused.tolist())))
    assert len(unused) > 3

    def mask(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(-1, unused, -torch.inf)

    model.lm_head.register_forward_hook(mask)
    for ours, job in zip(score_batch(model, batch_of([jobs])), jobs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([job.ids])).logits[0, job.prompt_length - 1 : -1, others]
        log_p = torch.log_softmax(logits.double(), dim=-1)
        means = (log_p.exp() * log_p).sum(dim=-1)
        assert ours.means is not None and ours.variances is not None
        np.testing.assert_allclose(ours.means, means.numpy(), atol=1e-9)
        variances = (log_p.exp() * (log_p - means[:, None]) ** 2).sum(dim=-1)
        np.testing.assert_allclose(ours.variances, variances.numpy(), atol=1e-9)


def test_a_large_vocabulary_is_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one and of a few positions give what one block gives."""
    model = tiny("Llama")
    batch = batch_of(score_jobs(random.Random(5)))
    expected = score_batch(model, batch)
    for numbers in (1, 3 * VOCABULARY):
        monkeypatch.setattr("sga.evaluation.scoring._CHUNK", {"cpu": numbers, "cuda": numbers})
        assert_scores(score_batch(model, batch), expected, [job.detail for job in batch.jobs], 1e-12)


def test_half_precision_trees_are_within_its_rounding() -> None:
    """bfloat16 has 8 bits; what is wrong in a tree is off by whole nats."""
    model = tiny("Llama", "sdpa", torch.bfloat16)
    groups = score_jobs(random.Random(3))
    batch = batch_of(groups)
    assert trees_work(model, batch)
    exact = tiny("Llama", "sdpa", torch.float64)
    for ours, job in zip(score_batch(model, batch), (job for group in groups for job in group), strict=True):
        assert ours.log_probs.dtype == np.float64
        assert np.abs(ours.log_probs - plainly(exact, job).log_probs).max() < 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trees_work(tiny("Llama", "sdpa", torch.float32), batch)


# ---- greedy answers -------------------------------------------------------------------------------------------------

STOPS = [EOS, 5, 9, 17, 23, 31, 40]
"""So many that a random model ends some of its answers."""


def their_answer(model: PreTrainedModel, ids: Sequence[int], limit: int, stops: list[int]) -> tuple[int, ...]:
    """Hugging Face's greedy answer to one prompt, alone and without padding; the stop token removed."""
    if limit == 0:
        return ()
    settings = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=stops, pad_token_id=0)
    prompt = torch.tensor([list(ids)])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    assert isinstance(output, Tensor)
    found = output[0, len(ids) :].tolist()
    return tuple(found[:-1] if found and found[-1] in stops else found)


def generate_jobs(rng: random.Random, limits: Sequence[int]) -> list[GenerateJob]:
    return [
        GenerateJob(tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, 20))), limit, cut=False)
        for limit in limits
    ]


@pytest.mark.parametrize(("name", "attention"), [pair for pair in ATTENTION if "sdpa" in pair or pair[0] in EAGER_ONLY])
@pytest.mark.usefixtures("exact_softmax")
@pytest.mark.runs
def test_greedy_answers_are_hugging_face_s(name: str, attention: str) -> None:
    """Prompts of many lengths and limits in one batch here, one by one without padding there."""
    model = tiny(name, attention)
    jobs = generate_jobs(random.Random(2), [25] * 12 + [0, 1, 2, 7, 0, 13])
    expected = [their_answer(model, job.ids, job.limit, STOPS) for job in jobs]
    found = generate(model, GenerateBatch(list(enumerate(jobs)), pad_id=0), STOPS)
    assert [generation.ids for generation in found] == expected
    assert len({len(answer) for answer in expected}) > 4, "rows end at different times"
    assert expected[12] == expected[16] == ()


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT"])
@pytest.mark.usefixtures("exact_softmax")
def test_rows_that_wait_for_others_do_not_leave_the_context(name: str) -> None:
    """Two of thirty rows have reached the end of the context, the positions of which are a table of this length."""
    model = tiny(name)
    rng = random.Random(4)
    full = [GenerateJob(tuple(rng.randrange(2, VOCABULARY) for _ in range(CONTEXT - 1)), 1, cut=False)] * 2
    jobs = [*full, *generate_jobs(rng, [30] * 28)]
    found = generate(model, GenerateBatch(list(enumerate(jobs)), pad_id=0), [])
    assert [len(generation.ids) for generation in found] == [1, 1, *[30] * 28]
    for job, generation in list(zip(jobs, found, strict=True))[1:6]:
        assert generation.ids == their_answer(model, job.ids, job.limit, [])


@pytest.mark.usefixtures("exact_softmax")
def test_the_company_in_a_batch_changes_no_answer() -> None:
    model = tiny("Llama")
    jobs = generate_jobs(random.Random(6), [20] * 15)
    together = [generation.ids for generation in generate(model, GenerateBatch(list(enumerate(jobs)), 0), STOPS)]
    alone = [generate(model, GenerateBatch([(0, job)], 0), STOPS)[0].ids for job in jobs]
    assert together == alone
    assert len(set(alone)) > 10


@pytest.mark.usefixtures("exact_softmax")
@pytest.mark.runs
def test_what_scoring_has_proved_is_not_generated_again_and_is_the_same() -> None:
    """The scored answers are the model's own ones, beyond their end, cut short, gone wrong, and others."""
    model = tiny("Llama")
    prompts = generate_jobs(random.Random(8), [20] * 20)
    expected = [their_answer(model, job.ids, job.limit, STOPS) for job in prompts]
    scored = []
    for number, (job, answer) in enumerate(zip(prompts, expected, strict=True)):
        onwards = their_answer(model, job.ids, 20, [])  # stop tokens in the middle of it do not stop
        assert onwards[: len(answer)] == answer and (len(answer) == 20 or onwards[len(answer)] in STOPS)
        wrong = tuple((token + 1) % VOCABULARY for token in onwards)
        said = (onwards, onwards[: len(answer) // 2], answer[:3] + wrong[3:], wrong)[number % 4]
        scored.append([ScoreJob((*job.ids, *said, EOS), len(job.ids), detail=False, ends=True, cut=False)])
    assert sum(len(answer) < 20 for answer in expected[::4]) >= 2
    inference = Inference(model, STOPS)
    batch = GenerateBatch(list(enumerate(prompts)), pad_id=0)
    tokens: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, options: tokens.append(len(options["input_ids"])), with_kwargs=True
    )
    assert [answer.ids for answer in inference.answer(batch) if isinstance(answer, Generation)] == expected
    without, tokens[:] = sum(tokens), []
    inference.answer(batch_of(scored))
    tokens.clear()
    assert [answer.ids for answer in inference.answer(batch) if isinstance(answer, Generation)] == expected
    assert sum(tokens) < 0.8 * without
    short = GenerateBatch([(n, replace(job, limit=2)) for n, job in enumerate(prompts)], pad_id=0)
    found = [answer.ids for answer in inference.answer(short) if isinstance(answer, Generation)]
    assert found == [answer[:2] for answer in expected], "also with a limit below what has been proved"


# ---- models without a key-value cache, and models that are none -----------------------------------------------------


def slow_answer(model: PreTrainedModel, ids: Sequence[int], limit: int) -> tuple[int, ...]:
    """The arg-max of the whole text's last logits, again and again."""
    text = list(ids)
    for _ in range(limit):
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return tuple(text[len(ids) :])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", DecodingWay.GROWING),
        ("mamba2", DecodingWay.OWN),  # our cache vanished in its **kwargs, and 0 of 5 answers were right
        ("qwen3_next", DecodingWay.OWN),  # IndexError: our cache begins with a layer of keys and values
        ("mamba", DecodingWay.UNCACHED),
        ("rwkv", DecodingWay.UNCACHED),
        ("roberta, decoder", DecodingWay.UNCACHED),  # counts positions from 2
        ("openai-gpt", DecodingWay.UNCACHED),
        ("phi3, LongRoPE", DecodingWay.ALONE),  # positions are scaled by the longest text of a batch
    ],
)
@torch.no_grad()
@pytest.mark.runs
def test_greedy_answers_without_a_cache_of_our_form(name: str, way: DecodingWay) -> None:
    """Prompts of unequal lengths, some of which pass the 16 tokens that LongRoPE counts as long."""
    model = small_model(name)
    jobs = generate_jobs(random.Random(3), [12, 9, 12, 0, 5, 1])
    jobs += [GenerateJob(tuple(range(5, 23)), 12, cut=False), GenerateJob((7, 8), 4, cut=False)]
    batch = GenerateBatch(list(enumerate(jobs)), pad_id=0)
    expected = [slow_answer(model, job.ids, job.limit) for job in jobs]
    assert decoding_way(model, batch) == way
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference = Inference(model, [])
        found = [inference.answer(batch) for _ in range(2)]
    assert [[answer.ids for answer in answers] for answers in found] == [expected] * 2  # type: ignore[union-attr]
    said = [str(one.message) for one in caught if "greedy answers" in str(one.message)]
    assert len(said) == (way >= DecodingWay.UNCACHED)


@pytest.mark.usefixtures("exact_softmax")
def test_uncached_answers_stop_and_are_cut_as_cached_ones() -> None:
    model = tiny("Llama")
    batch = GenerateBatch(list(enumerate(generate_jobs(random.Random(2), [25] * 6 + [0, 1, 2, 7]))), pad_id=0)
    expected = generate(model, batch, STOPS)
    for way in DecodingWay:
        assert generate(model, batch, STOPS, way) == expected


@pytest.mark.usefixtures("exact_softmax")
@pytest.mark.parametrize("name", ["Llama", "Phi"])
def test_fixed_buffers_give_the_answers_of_growing_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers for 6 tokens, which are made anew in the middle of answers and when half of the rows have ended."""
    monkeypatch.setattr(graph_decoding, "STAGE", 6)
    monkeypatch.setattr(graph_decoding, "LOOK", 2)
    model = tiny(name)
    batch = GenerateBatch(list(enumerate(generate_jobs(random.Random(2), [25] * 6 + [0, 1, 2, 7]))), pad_id=0)
    moved = []
    move = graph_decoding._FixedLayer.move
    monkeypatch.setattr(
        graph_decoding._FixedLayer, "move", lambda self, kept, *more: moved.append(len(kept)) or move(self, kept, *more)
    )
    before = model.config._attn_implementation
    assert generate(model, batch, STOPS, DecodingWay.GRAPH) == generate(model, batch, STOPS, DecodingWay.GROWING)
    assert moved[0] == 9 and moved[-1] < 7, moved
    assert model.config._attn_implementation == before


@pytest.mark.usefixtures("exact_softmax")
def test_answers_are_made_without_recorded_steps_where_these_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    batch = GenerateBatch(list(enumerate(generate_jobs(random.Random(2), [5] * 4))), pad_id=0)
    expected = generate(model, batch, STOPS)
    monkeypatch.setattr(sga.evaluation.inference, "decoding_way", lambda model, batch: DecodingWay.GRAPH)
    monkeypatch.setattr(GraphDecoding, "begin", lambda self, steps: torch.zeros(1) @ torch.zeros(2))
    with pytest.warns(UserWarning, match="recorded steps of decoding failed \\(RuntimeError"):
        assert Inference(model, STOPS).answer(batch) == expected


DECODED_OPERATORS = 195
"""Number of operators of a decoded token, of a model of two blocks, without those of the rotary positions.

The latter are transformers' own: 13 or 22, by its version.
"""


@torch.no_grad()
def test_a_step_in_fixed_buffers_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it add operators with the length of the context: it is the same work every time."""
    model = tiny("Llama")
    batch = GenerateBatch(list(enumerate(generate_jobs(random.Random(2), [25] * 6))), pad_id=0)
    with switched(model):
        decoding = GraphDecoding(model, batch, torch.arange(6), STOPS, graph=False)
        decoding.begin(10)
        counts = []
        for _ in range(3):
            with Counter() as counted:
                decoding._step()
            decoding._count()
            counts.append(counted.operators)
            assert counted.waits == []
    with Counter() as rotary:
        model.model.rotary_emb(torch.zeros(6, 1, 32, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.long))
    assert len(set(counts)) == 1 and counts[0] - rotary.operators <= DECODED_OPERATORS, (counts, rotary.operators)


def test_scores_that_depend_on_the_batch_are_made_one_by_one() -> None:
    """But for sequences one longer than 16: the last token predicts nothing and does not go through the model here."""
    model = small_model("phi3, LongRoPE")
    groups = [[job for job in group if len(job.ids) != 17] for group in score_jobs(random.Random(3))]
    assert {len(job.ids) > 16 for group in groups for job in group} == {True, False}
    expected = [plainly(model, job) for group in groups for job in group]
    detail = [job.detail for group in groups for job in group]
    with pytest.warns(UserWarning, match="depends on the lengths of the others in its batch") as caught:
        for batch in (batch_of(groups), batch_of(groups).apart()):
            assert_scores(Inference(model, [EOS]).answer(batch), expected, detail, 1e-4)
    assert len(caught) == 2, "one for each evaluation"


@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_an_encoder_is_no_causal_model(name: str) -> None:
    model = small_model(name)
    for batch in (batch_of(score_jobs(random.Random(3))), GenerateBatch([(0, GenerateJob((5,), 3, cut=False))], 0)):
        with pytest.raises(UserError, match=r"is no causal language model: .*give a decoder"):
            Inference(model, [EOS]).answer(batch)


# ---- memory ---------------------------------------------------------------------------------------------------------


def without_memory(
    model: PreTrainedModel,
    most: int,
    message: str = "CUDA out of memory",
    kind: type[Exception] = torch.OutOfMemoryError,
) -> list[int]:
    """Makes a model fail on more than `most` tokens, as PyTorch does; returns the sizes of what it is given."""
    sizes: list[int] = []

    def check(module: Any, args: Any, options: dict[str, Any]) -> None:
        sizes.append(options["input_ids"].numel())
        if sizes[-1] > most:
            raise kind(message)

    model.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_that_does_not_fit_is_halved_with_one_warning(share: bool) -> None:
    groups = score_jobs(random.Random(9), 12)
    batch = batch_of(groups) if share else batch_of(groups).apart()
    model = tiny("Llama", "sdpa")
    expected = Inference(model, [EOS]).answer(batch)
    detail = [job.detail for job in batch.jobs]
    sizes = without_memory(model, int(0.7 * batch.tokens))
    inference = Inference(model, [EOS])
    with pytest.warns(UserWarning, match=r"out of memory with 60 sequences.*half that size") as caught:
        found = inference.answer(batch)
    assert len(caught) == 1
    assert_scores(found, expected, detail, 1e-9)
    assert sum(size > 0.7 * batch.tokens for size in sizes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_scores(inference.answer(batch), expected, detail, 1e-9)
    assert sum(size > 0.7 * batch.tokens for size in sizes) == 1, "it is remembered"


def test_batches_are_halved_until_they_fit() -> None:
    groups = score_jobs(random.Random(9), 3)
    batch = batch_of(groups)
    model = tiny("Llama", "sdpa")
    expected = Inference(model, [EOS]).answer(batch)
    longest = max(len(job.ids) for job in batch.jobs)
    sizes = without_memory(model, longest)
    with pytest.warns(UserWarning, match="out of memory"):
        found = Inference(model, [EOS]).answer(batch)
    assert_scores(found, expected, [job.detail for job in batch.jobs], 1e-9)
    assert max(sizes) > longest


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        (RuntimeError, "std::bad_alloc"),  # a C++ container inside an operator
        (MemoryError, ""),  # Python's own, and how bad_alloc leaves a binding
        (MemoryError, "Unable to allocate 97.7 KiB for an array with shape (100, 125)"),  # NumPy's
    ],
)
def test_however_it_is_said_that_memory_ran_out(kind: type[Exception], message: str) -> None:
    batch = batch_of(score_jobs(random.Random(9), 3))
    model = tiny("Llama", "sdpa")
    expected = Inference(model, [EOS]).answer(batch)
    without_memory(model, max(len(job.ids) for job in batch.jobs), message, kind)
    with pytest.warns(UserWarning, match="out of memory"):
        assert_scores(Inference(model, [EOS]).answer(batch), expected, [job.detail for job in batch.jobs], 1e-9)


@pytest.mark.usefixtures("exact_softmax")
def test_greedy_answers_survive_it_too() -> None:
    jobs = generate_jobs(random.Random(2), [12] * 9 + [0])
    batch = GenerateBatch(list(enumerate(jobs)), pad_id=0)
    model = tiny("Llama")
    expected = Inference(model, STOPS).answer(batch)
    without_memory(model, int(0.4 * batch.input_ids.numel()))
    with pytest.warns(UserWarning, match="out of memory with 10 sequences"):
        assert Inference(model, STOPS).answer(batch) == expected


@pytest.mark.parametrize("message", ["CUDA out of memory", "Tried to allocate 20.00 GiB"])
def test_a_single_sequence_that_does_not_fit_is_an_error_with_a_cure(message: str) -> None:
    model = tiny("Llama")
    batch = batch_of([score_jobs(random.Random(9), 1)[0][:1]])
    without_memory(model, 1, message)
    with pytest.raises(UserError, match=rf"out of memory with a single sequence.*{message}.*lower --data.max_length"):
        Inference(model, [EOS]).answer(batch)
    whole = batch_of(score_jobs(random.Random(9), 2))
    with pytest.raises(UserError, match="single sequence"), pytest.warns(UserWarning, match="out of memory"):
        Inference(model, [EOS]).answer(whole)


def test_other_errors_are_not_taken_for_it() -> None:
    model = tiny("Llama")

    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.model.register_forward_pre_hook(fail)
    batch = batch_of([group[:1] for group in score_jobs(random.Random(9), 3)])
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Inference(model, [EOS]).answer(batch)


REALLY = """
import resource, sys, warnings
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from sga.evaluation.inference import Inference
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch, ScoreJob

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=20_000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256)
model = LlamaForCausalLM(config).eval()
jobs = [ScoreJob(tuple(range(n, n + 101)), 1, detail=True, ends=True, cut=False) for n in range(64)]
batch = ScoreBatch([[(n, job)] for n, job in enumerate(jobs)], 0)  # 6400 positions x 20000 x 4 bytes = 512 MB
small = [ScoreBatch([[(n, job)]], 0) for n, job in enumerate(jobs)]
Inference(model, [2]).answer(small[0])  # what is allocated once
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = Inference(model, [2]).answer(batch)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
expected = [Inference(model, [2]).answer(one)[0] for one in small]
assert all(abs(a.log_probs - b.log_probs).max() < 1e-4 for a, b in zip(found, expected))
assert all((a.hits == b.hits).all() for a, b in zip(found, expected))
print(len([w for w in caught if "out of memory with" in str(w.message)]), len(found))
"""


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT"])
@pytest.mark.usefixtures("exact_softmax")
def test_rows_that_begin_in_parts_get_the_same_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 rows, of which at most one goes on with those of other parts; the last part has 3 rows."""
    model = tiny(name)
    jobs = generate_jobs(random.Random(2), [25] * 12 + [0, 1, 2, 7, 0, 13, 25, 1])
    batch = GenerateBatch(list(enumerate(jobs)), pad_id=0)
    whole = generate(model, batch, STOPS)
    sizes = []
    together = _Decoding.together

    def counted(parts: Sequence[_Decoding]) -> _Decoding:
        sizes.append(len(parts))
        return together(parts)

    monkeypatch.setattr(_Decoding, "together", counted)
    monkeypatch.setitem(decoding._PART, "cpu", 5)
    assert generate(model, batch, STOPS) == whole
    assert len(sizes) == 1 and sizes[0] > 1, "rows of several parts went on together"
    assert [generation.ids for generation in whole] == [their_answer(model, job.ids, job.limit, STOPS) for job in jobs]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process, which Linux can")
def test_memory_that_really_runs_out_on_a_cpu_is_survived() -> None:
    done = subprocess.run([sys.executable, "-c", REALLY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    failures, answers = map(int, done.stdout.split())
    assert failures >= 1 and answers == 64


def test_nan_logits_stop_a_generation(tiny_network: TinyNetwork) -> None:
    """Arg-max of NaN is token 0, which would read like an answer."""
    model = tiny_network.model().eval()
    batch = GenerateBatch([(0, GenerateJob((1, 5, 6), 4, cut=False))], pad_id=0)
    assert len(generate(model, batch, [2])) == 1
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergenceError, match="logits are NaN"):
        generate(model, batch, [2])
