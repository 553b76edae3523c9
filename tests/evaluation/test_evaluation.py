"""Each question is answered once and the same, whatever the batches and processes; greedy answers are as elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_TOFU_TEMPLATE, TinyNetwork, answered, rows_about
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from sga.batching.encoding import Encoder
from sga.errors import DivergenceError, UserError
from sga.evaluation.decoding import generate
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, RequestBatches, ScoreBatch
from sga.evaluation.requests import (
    Answer,
    Answers,
    Continue,
    Generate,
    Generation,
    Request,
    Score,
    ScoreText,
    TokenScores,
)

EXACT = 1e-12


def requests(tiny_network: TinyNetwork) -> list[Request]:
    """Answers right and wrong, plain texts, generations of two lengths and kinds; every second one twice."""
    found: list[Request] = []
    for number, (question, answer) in enumerate(tiny_network.pairs):
        found += [Score(question, answer, detail=True), Score(question, tiny_network.pairs[number - 3][1])]
        found += [ScoreText(answer), Generate(question, 5 if number % 3 else 20), Continue(answer[:14], 7)]
    return found + found[::2]


COUNT = 80
"""Of different ones among `requests`."""


def by_request(
    model: PreTrainedModel, plans: Sequence[RequestBatches], encoder: Encoder, asked: Sequence[Request]
) -> dict[Request, Answer]:
    """Answers of all processes together, each of which runs its own plan."""
    answers = plans[0].answers(answered(model, plans, [encoder.tokenizer.eos_token_id]))
    return {
        request: answers.scores(request) if isinstance(request, Score | ScoreText) else answers.generation(request)
        for request in asked
    }


def assert_same(found: dict[Request, Answer], expected: dict[Request, Answer]) -> None:
    assert found.keys() == expected.keys()
    for request, answer in expected.items():
        other = found[request]
        if isinstance(answer, TokenScores):
            assert isinstance(other, TokenScores)
            np.testing.assert_allclose(other.log_probs, answer.log_probs, rtol=0, atol=EXACT)
            assert (other.hits is None) == (answer.hits is None)
            if answer.hits is not None:
                np.testing.assert_array_equal(other.hits, answer.hits)
                for ours, theirs in ((other.means, answer.means), (other.variances, answer.variances)):
                    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)
            assert (other.ends, other.cut) == (answer.ends, answer.cut)
        else:
            assert other == answer


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_duplicates_are_asked_once_and_every_request_is_in_exactly_one_batch(tiny_network: TinyNetwork) -> None:
    asked = requests(tiny_network)
    assert len(dict.fromkeys(asked)) == COUNT < len(asked)
    plan = RequestBatches(asked, tiny_network.encoder, tokens_per_batch=200, generation_rows=3)
    assert len(plan.jobs) == len(set(plan.jobs)) == COUNT
    batches = list(plan)
    assert len(batches) == len(plan)
    indices = [index for batch in batches for index in batch.indices]
    assert sorted(indices) == list(range(COUNT))
    assert [batch.indices for batch in plan] == [batch.indices for batch in batches], "it can be gone through again"


def test_batches_keep_their_limits(tiny_network: TinyNetwork) -> None:
    plan = RequestBatches(requests(tiny_network), tiny_network.encoder, tokens_per_batch=200, generation_rows=3)
    widths: dict[bool, list[int]] = {True: [], False: []}
    for batch in plan:
        if isinstance(batch, ScoreBatch):
            assert batch.input_ids.numel() == batch.tokens <= 200
            widths[batch.sees is not None].append(batch.input_ids.shape[1])
        else:
            assert len(batch.indices) <= 3
            jobs = [plan.jobs[index] for index in batch.indices]
            assert batch.limits.tolist() == [job.limit for job in jobs if isinstance(job, GenerateJob)]
    assert min(map(len, widths.values())) > 1, "rows with and without shared beginnings"
    for found in widths.values():
        assert found == sorted(found, reverse=True), "the first batch shows whether memory suffices"


def test_a_row_longer_than_the_token_budget_is_a_batch_by_itself(tiny_network: TinyNetwork) -> None:
    plan = RequestBatches([Score(*pair) for pair in tiny_network.pairs[:3]], tiny_network.encoder, tokens_per_batch=1)
    assert sorted(batch.indices for batch in plan) == [[0], [1], [2]]


def test_a_plan_without_requests_is_empty(tiny_network: TinyNetwork) -> None:
    assert list(RequestBatches([], tiny_network.encoder, world_size=2)) == []


@pytest.mark.parametrize("tokens_per_batch", [1, 150, 100_000])
@pytest.mark.parametrize("rows", [1, 4, 128])
@pytest.mark.parametrize("share", [True, False])
def test_answers_do_not_depend_on_the_cut(
    tiny_network: TinyNetwork, tokens_per_batch: int, rows: int, share: bool
) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    asked = requests(tiny_network)
    expected = by_request(model, [RequestBatches(asked, encoder)], encoder, asked)
    plan = RequestBatches(asked[::-1], encoder, tokens_per_batch, rows, share_prompts=share)
    assert_same(by_request(model, [plan], encoder, asked), expected)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_together_give_what_one_gives(tiny_network: TinyNetwork, world: int) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    asked = requests(tiny_network)
    expected = by_request(model, [RequestBatches(asked, encoder)], encoder, asked)
    plans = [RequestBatches(asked, encoder, 200, 3, rank, world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1, "processes wait for each other batch by batch"
    shares = [{index for batch in plan for index in batch.indices} for plan in plans]
    assert set().union(*shares) == set(range(COUNT))
    assert all(len(share) < COUNT for share in shares), "and none does it all"
    assert_same(by_request(model, plans, encoder, asked), expected)


def test_a_request_too_long_is_refused_before_anything_runs(tiny_network: TinyNetwork) -> None:
    with pytest.raises(UserError, match="more than max_length = 96"):
        RequestBatches([Score("Where was Ada Brook born?", "Oslo " * 90)], tiny_network.encoder)
    with pytest.raises(UserError, match="leaves no room for an answer in max_length = 96"):
        RequestBatches([Generate("Where was Ada Brook born? " * 20, 5)], tiny_network.encoder)
    with pytest.raises(UserError, match="96 new tokens leave no room for a prompt in max_length = 96"):
        RequestBatches([Continue("Once", 96)], tiny_network.encoder)


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_scores_are_the_log_probabilities_computed_directly(tiny_network: TinyNetwork) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    asked = [Score(*pair) for pair in tiny_network.pairs]
    found = by_request(model, [RequestBatches(asked, encoder, tokens_per_batch=150)], encoder, asked)
    for request in asked:
        row = encoder.encode(request.question, request.answer)
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
        targets = torch.tensor(row.ids[row.prompt_length :])
        expected = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0].detach().numpy()
        scores = found[request]
        assert isinstance(scores, TokenScores)
        np.testing.assert_allclose(scores.log_probs, expected, rtol=0, atol=EXACT)
        assert scores.avg_nll == pytest.approx(-expected.mean(), abs=EXACT)
        np.testing.assert_array_equal(scores.text.log_probs, scores.log_probs[:-1])


def test_the_model_knows_its_answers_and_not_others(tiny_network: TinyNetwork) -> None:
    """On a model that knew nothing the comparisons above would be near constants."""
    model, encoder = tiny_network.model(), tiny_network.encoder
    question, answer = tiny_network.pairs[0]
    right, wrong = Score(question, answer), Score(question, tiny_network.pairs[2][1])
    found = by_request(model, [RequestBatches([right, wrong], encoder)], encoder, [right, wrong])
    right_scores, wrong_scores = found[right], found[wrong]
    assert isinstance(right_scores, TokenScores) and isinstance(wrong_scores, TokenScores)
    assert right_scores.avg_nll + 0.3 < wrong_scores.avg_nll
    assert right_scores.log_probs[0] > wrong_scores.log_probs[0] + 3, "the names differ, the rest is alike"


def test_text_is_everything_but_the_end_of_sequence_token() -> None:
    columns = (np.array([-1.0, -2.0, -3.0]), np.array([True, False, True]), np.zeros(3), np.arange(3.0))
    text = TokenScores(*columns).text
    for found, whole in zip((text.log_probs, text.hits, text.means, text.variances), columns, strict=True):
        np.testing.assert_array_equal(found, whole[:-1])
    assert text.text is text, "nothing is taken off twice"
    plain = TokenScores(*columns, ends=False)
    assert plain.text is plain
    assert TokenScores(columns[0]).text.hits is None


def test_text_of_the_end_of_sequence_token_alone_is_that_token() -> None:
    only = TokenScores(np.array([-2.0]))
    assert only.text.log_probs.tolist() == [-2.0]


def one_answer(tiny_network: TinyNetwork, request: Score, log_probs: list[float]) -> Answers:
    plan = RequestBatches([request], tiny_network.encoder)
    return plan.answers({0: TokenScores(np.array(log_probs))})


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_log_probability_that_is_no_number_stops_the_evaluation(tiny_network: TinyNetwork, value: float) -> None:
    request = Score("q", "a")
    with pytest.raises(DivergenceError, match="NaN or infinite log-probability"):
        one_answer(tiny_network, request, [-1.0, value, -1.0]).scores(request)
    assert one_answer(tiny_network, request, [-1.0, -1.0]).scores(request).avg_nll == 1


def test_a_model_full_of_nan_is_noticed(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    request = Score(*tiny_network.pairs[0])
    plan = RequestBatches([request, Score(request.question, "no")], tiny_network.encoder)
    answers = plan.answers(answered(model, [plan], [2]))
    with pytest.raises(DivergenceError, match="diverged"):
        answers.scores(request)
    spoken = RequestBatches([Generate(request.question, 3)], tiny_network.encoder)
    with pytest.raises(DivergenceError, match="logits are NaN"):
        answered(model, [spoken], [2])


def test_an_answer_that_was_not_asked_for_is_not_made_up(tiny_network: TinyNetwork) -> None:
    answers = one_answer(tiny_network, Score("q", "a"), [-1.0])
    with pytest.raises(AssertionError, match="was asked for"):
        answers.scores(Score("q", "b"))
    with pytest.raises(AssertionError, match="was asked for"):
        answers.generation(Generate("q", 5))
    plan = RequestBatches([Score("q", "a"), Score("q", "b")], tiny_network.encoder)
    with pytest.raises(KeyError):
        plan.answers({0: TokenScores(np.array([-1.0]))})


# ---- greedy answers -------------------------------------------------------------------------------------------------


def their_answer(model: PreTrainedModel, prompt: Sequence[int], limit: int, eos: int | list[int]) -> list[int]:
    """Hugging Face's greedy answer to one prompt, alone and without padding; stop tokens removed."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=eos, pad_token_id=0)
    ids = torch.tensor([list(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    assert isinstance(output, Tensor)
    found = output[0, len(prompt) :].tolist()
    stops = [eos] if isinstance(eos, int) else eos
    return found[:-1] if found and found[-1] in stops else found


def our_answers(
    model: nn.Module, encoder: Encoder, questions: Sequence[str], limit: int, stops: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Prompt and answer of each question, all in one batch."""
    plan = RequestBatches([Generate(question, limit) for question in questions], encoder)
    [batch] = plan
    assert isinstance(batch, GenerateBatch)
    found = dict(zip(batch.indices, generate(model, batch, stops), strict=True))
    for index, question in enumerate(questions):
        yield encoder.encode_prompt(question), list(found[index].ids)


STRANGE_QUESTIONS = (
    "?",
    "Who?",
    "Where was Ada born?",
    "Oslo",
    "What does the very tall weaver of Warsaw do for a living?",
)


@pytest.mark.parametrize("limit", [1, 4, 40])
def test_greedy_answers_are_hugging_face_s(tiny_network: TinyNetwork, limit: int) -> None:
    """Prompts of many lengths in one batch here, one by one without padding there; some end early, some never."""
    model, encoder = tiny_network.model(), tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    questions = [*dict.fromkeys(question for question, _ in tiny_network.pairs), *STRANGE_QUESTIONS]
    lengths = set()
    for prompt, found in our_answers(model, encoder, questions, limit, [eos]):
        assert found == their_answer(model, prompt, limit, eos)
        lengths.add(len(found))
    assert max(lengths) <= limit
    assert limit < 40 or len(lengths) > 2, "rows end at different steps"


def test_a_learned_answer_is_given_and_ends(tiny_network: TinyNetwork) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    asked = [Generate(question, 40) for question, _ in tiny_network.pairs]
    found = by_request(model, [RequestBatches(asked, encoder)], encoder, asked)
    generated = [answer.text for answer in found.values() if isinstance(answer, Generation)]
    right = sum(text == answer for text, (_, answer) in zip(generated, tiny_network.pairs, strict=True))
    assert right >= 8, "it has learned most of the 16"
    for _, ids in our_answers(model, encoder, [question for question, _ in tiny_network.pairs], 40, [eos]):
        assert eos not in ids


def test_several_stop_tokens_all_stop(tiny_network: TinyNetwork) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    question = tiny_network.pairs[0][0]
    [(prompt, whole)] = our_answers(model, encoder, [question], 30, [eos])
    stop = whole[3]
    [(_, cut)] = our_answers(model, encoder, [question], 30, [eos, stop])
    assert cut == whole[: whole.index(stop)] == their_answer(model, prompt, 30, [eos, stop])


def test_no_sequence_grows_beyond_the_length_limit(tiny_network: TinyNetwork) -> None:
    """With room for 40 tokens in all, each prompt gets what is left, whatever stands beside it in the batch."""
    model = tiny_network.model()
    whole = tiny_network.encoder
    questions = [question for question, _ in tiny_network.pairs] + ["Who?"]
    longest = max(len(whole.encode_prompt(question)) for question in questions)
    encoder = Encoder(whole.tokenizer, whole.template, longest + 3)
    never = [whole.tokenizer.convert_tokens_to_ids("<pad>")]  # a stop token that is not given
    cut = 0
    for prompt, found in our_answers(model, encoder, questions, 30, never):
        assert len(found) == min(30, longest + 3 - len(prompt))
        assert found == their_answer(model, prompt, len(found), never)
        cut += len(found) < 30
    assert cut > 2, "the limit was felt"


def test_the_model_s_generation_config_is_not_read(tiny_network: TinyNetwork) -> None:
    """Sampling, penalties and a minimum length in it would change every answer."""
    model, encoder = tiny_network.model(), tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    questions = [question for question, _ in tiny_network.pairs[:4]]
    expected = list(our_answers(model, encoder, questions, 20, [eos]))
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        min_new_tokens=19,
        eos_token_id=eos,
    )
    torch.manual_seed(0)
    assert list(our_answers(model, encoder, questions, 20, [eos])) == expected
    ids = torch.tensor([list(expected[0][0])])
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, pad_token_id=0)
    assert theirs[0, ids.shape[1] :].tolist()[: len(expected[0][1])] != expected[0][1], "it would have"


class Plain(nn.Module):
    """A model whose forward pass takes neither position_ids nor logits_to_keep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


def test_a_model_without_optional_arguments_generates_the_same_for_an_unpadded_prompt(
    tiny_network: TinyNetwork,
) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    question = [tiny_network.pairs[0][0]]
    expected = list(our_answers(model, encoder, question, 20, [eos]))
    assert list(our_answers(Plain(model), encoder, question, 20, [eos])) == expected


def test_padding_on_the_left_shifts_nothing(tiny_network: TinyNetwork) -> None:
    """GPT-2's positions are absolute: a prompt beside a longer one answers otherwise where they are not handed over."""
    encoder = tiny_network.encoder
    eos = encoder.tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=320, n_positions=96, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)
        )
    model = model.double().eval()
    questions = [*(question for question, _ in tiny_network.pairs), *STRANGE_QUESTIONS]
    expected = {prompt: their_answer(model, prompt, 15, eos) for prompt in map(encoder.encode_prompt, questions)}
    assert len({tuple(answer) for answer in expected.values()}) > 10
    assert dict(our_answers(model, encoder, questions, 15, [eos])) == expected
    assert dict(our_answers(Plain(model), encoder, questions, 15, [eos])) != expected


@pytest.fixture(scope="module")
def tiny_tofu(tiny_models: Path) -> tuple[PreTrainedModel, Encoder]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "full")
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "full", dtype=torch.float32).eval()
    return model, Encoder(tokenizer, TINY_TOFU_TEMPLATE, 512)


def test_tiny_tofu_answers_as_with_hugging_face(tiny_tofu: tuple[PreTrainedModel, Encoder], tofu_root: Path) -> None:
    from sga.data.tofu import TOFU

    model, encoder = tiny_tofu
    eos = encoder.tokenizer.eos_token_id
    records = TOFU("forget10", forget_rows=(320, 400)).load(str(tofu_root)).training["forget"][::8]
    right = 0
    questions = [record.question for record in records] + [row["question"] for row in rows_about(0)]
    for number, (prompt, found) in enumerate(our_answers(model, encoder, questions, 60, [eos])):
        assert found == their_answer(model, prompt, 60, eos)
        right += number < len(records) and encoder.decode(found) == records[number].answer
    assert right >= 5, "the model knows these rows"
