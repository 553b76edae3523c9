"""The plan: every question becomes one job, every job is in one batch, and beginnings that are shared stand once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PEOPLE, TinyNetwork, answered, rows_about

from sga.batching.encoding import Encoder
from sga.evaluation.inference import Inference
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, RequestBatches, ScoreBatch, ScoreJob, TokenTree
from sga.evaluation.requests import (
    Answer,
    Continue,
    Generate,
    Generation,
    Request,
    Score,
    ScoreText,
    TokenScores,
)


def tofu_like(people: Sequence[int] = range(len(PEOPLE))) -> Iterator[Request]:
    """What the metrics ask about questions with a paraphrase and three wrong answers each, and about two texts."""
    for person in people:
        for row in rows_about(person):
            yield Score(row["question"], row["answer"])
            yield Generate(row["question"], 12)
            for answer in (row["paraphrased_answer"], *row["perturbed_answer"]):
                yield Score(row["question"], answer)
        yield ScoreText(rows_about(person)[0]["answer"], detail=True)
        yield Continue(rows_about(person)[1]["answer"][:12], 5)


def plan_of(
    requests: Sequence[Request] | Iterator[Request], encoder: Encoder, **settings: int | bool
) -> RequestBatches:
    return RequestBatches(requests, encoder, **settings)  # type: ignore[arg-type]


def invented(job: ScoreJob | GenerateJob) -> Answer:
    """An answer that says which job it belongs to."""
    if isinstance(job, GenerateJob):
        return Generation((*job.ids, job.limit))
    return TokenScores(-np.array(job.ids[job.prompt_length :], dtype=np.float64))


# ---- jobs -----------------------------------------------------------------------------------------------------------


def test_requests_with_the_same_tokens_are_one_job(tiny_network: TinyNetwork) -> None:
    """Another question of the same tokens is the same job, and a limit beyond the context is the context's."""
    encoder = tiny_network.encoder
    question, answer = tiny_network.pairs[0]
    room = encoder.max_length - len(encoder.encode_prompt(question))
    asked = [
        Score(question, answer),
        Score(question, answer),
        Score(question, answer, detail=True),
        Generate(question, room + 1),
        Generate(question, room + 2),
        Generate(question, encoder.max_length, count_prompt=True),
        Generate(question, room - 1),
        ScoreText(answer),
        Score("", answer),  # ends with the end-of-sequence token, the text does not
    ]
    plan = RequestBatches(asked, encoder)
    assert [type(job) for job in plan.jobs] == [ScoreJob, GenerateJob, GenerateJob, ScoreJob, ScoreJob]
    assert len({job.key for job in plan.jobs}) == 5
    assert [job.limit for job in plan.jobs if isinstance(job, GenerateJob)] == [room, room - 1]
    assert [job.ends for job in plan.jobs if isinstance(job, ScoreJob)] == [True, False, True]
    answers = plan.answers({index: invented(job) for index, job in enumerate(plan.jobs)})
    scores = answers.scores(Score(question, answer, detail=True))
    assert scores.log_probs is answers.scores(Score(question, answer)).log_probs
    assert answers.generation(asked[3]) == answers.generation(asked[5])  # type: ignore[arg-type]
    assert answers.generation(asked[6]) != answers.generation(asked[5])  # type: ignore[arg-type]
    assert not answers.scores(ScoreText(answer)).ends and answers.scores(Score("", answer)).ends


@pytest.mark.parametrize("order", [(False, True), (True, False), (True, True), (False, False)])
def test_a_job_has_details_if_anyone_wants_them(tiny_network: TinyNetwork, order: tuple[bool, ...]) -> None:
    request = Score(*tiny_network.pairs[0])
    plan = RequestBatches([replace(request, detail=detail) for detail in order], tiny_network.encoder)
    [job] = plan.jobs
    assert isinstance(job, ScoreJob) and job.detail == any(order)
    [scores] = answered(tiny_network.model(), [plan], [2]).values()
    assert isinstance(scores, TokenScores) and (scores.hits is not None) == any(order)
    found = plan.answers({0: scores})
    assert found.scores(replace(request, detail=True)) is found.scores(request)


def test_details_are_no_part_of_what_an_answer_is_kept_under(tiny_network: TinyNetwork) -> None:
    """Kept numbers are found by whoever asks for fewer of them; anything else that matters is another key."""
    job = ScoreJob((1, 5, 6, 7, 2), 2, detail=False, ends=True, cut=False)
    assert replace(job, detail=True).key == job.key
    others = [replace(job, prompt_length=3), replace(job, ids=(1, 5, 6, 7, 3)), GenerateJob(job.ids, 2, cut=False)]
    assert len({job.key, *(other.key for other in others)}) == 4
    assert GenerateJob((1, 2), 3, cut=False).key != GenerateJob((1, 2), 4, cut=False).key


def test_counting_the_prompt_takes_its_tokens_off_the_limit(tiny_network: TinyNetwork) -> None:
    encoder = tiny_network.encoder
    question = tiny_network.pairs[0][0]
    length = len(encoder.encode_prompt(question))
    for most, expected in ((length + 7, 7), (length, 0), (3, 0)):
        plan = RequestBatches([Generate(question, most, count_prompt=True)], encoder)
        [job] = plan.jobs
        assert isinstance(job, GenerateJob) and job.limit == expected
        [found] = answered(tiny_network.model(), [plan], []).values()
        assert isinstance(found, Generation) and len(found.ids) == expected


def test_what_was_cut_to_the_context_is_said(tiny_network: TinyNetwork) -> None:
    encoder = Encoder(tiny_network.encoder.tokenizer, tiny_network.encoder.template, 24)
    short, long = ScoreText("Ada Brook"), ScoreText("Ada Brook was born in Oslo. " * 5)
    continued = [
        Continue("Ada", 8),
        Continue("Ada Brook was born in Oslo. " * 5, 8),
        Continue("Ada", 8, ("Oslo " * 9,)),
    ]
    plan = RequestBatches([short, long, *continued], encoder)
    answers = plan.answers({index: invented(job) for index, job in enumerate(plan.jobs)})
    assert [answers.scores(request).cut for request in (short, long)] == [False, True]
    assert [answers.generation(request).cut for request in continued] == [False, True, True]
    assert len(plan.jobs[1].ids) == 24, "its first tokens"
    assert plan.jobs[1].ids == tuple(encoder.tokenizer(long.text)["input_ids"][:24])
    assert len(plan.jobs[3].ids) == 24 - 8, "its last tokens"
    assert plan.jobs[3].ids == tuple(encoder.tokenizer(continued[1].prompt)["input_ids"][-16:])
    assert len(plan.jobs) == 4, "without its example the last one is the first"


# ---- trees ----------------------------------------------------------------------------------------------------------


def random_sequences(rng: random.Random, count: int, vocabulary: int = 3) -> list[tuple[int, ...]]:
    """Distinct sequences that share much: few tokens, and some are beginnings of others."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        sequence = tuple(rng.randrange(vocabulary) for _ in range(rng.randint(2, 9)))
        if found and rng.random() < 0.4:
            start = rng.choice(list(found))
            sequence = start[: rng.randint(1, len(start))] + sequence
        found[sequence] = None
    return list(found)


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_holds_its_sequences_and_each_beginning_once(seed: int) -> None:
    sequences = random_sequences(random.Random(seed), 1 + seed % 12)
    tree = TokenTree.of(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tree.ids[path].tolist() == list(sequence[:-1]), "the last token predicts nothing"
        assert tree.positions[path].tolist() == list(range(len(sequence) - 1))
    beginnings = {sequence[:length] for sequence in sequences for length in range(1, len(sequence))}
    assert len(tree) == len(tree.ids) == len(tree.positions) == len(beginnings)


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_what_is_before_it_in_its_own_sequence_and_nothing_else(seed: int) -> None:
    """Against brute force: each node is the beginning that ends there, and sees the nodes that are beginnings of it."""
    sequences = random_sequences(random.Random(seed), 1 + seed % 12)
    tree = TokenTree.of(sequences)
    beginning: dict[int, tuple[int, ...]] = {}
    for sequence, path in zip(sequences, tree.paths, strict=True):
        for place, node in enumerate(path.tolist()):
            assert beginning.setdefault(node, sequence[: place + 1]) == sequence[: place + 1]
    expected = [[beginning[j] == beginning[i][: len(beginning[j])] for j in range(len(tree))] for i in range(len(tree))]
    assert tree.sees().tolist() == expected


def test_a_tree_by_hand() -> None:
    """1 2 3 9, 1 2 4 9 and 1 2 3 5 9: the nodes are 1, 2, 3, then the 4, then the 5 after the 3."""
    tree = TokenTree.of([(1, 2, 3, 9), (1, 2, 4, 9), (1, 2, 3, 5, 9)])
    assert tree.ids.tolist() == [1, 2, 3, 4, 5]
    assert tree.positions.tolist() == [0, 1, 2, 2, 3]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 3], [0, 1, 2, 4]]
    assert tree.sees().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1],
    ]


def test_a_sequence_that_is_a_beginning_of_another_adds_nothing() -> None:
    for sequences in ([(1, 2, 3), (1, 2, 3, 4)], [(1, 2, 3, 4), (1, 2, 3)], [(1, 2, 3, 4), (1, 2, 3), (1, 2, 5)]):
        tree = TokenTree.of(sequences)
        assert tree.ids.tolist() == [1, 2, 3]
    assert len(TokenTree.of([(1, 2)])) == 1


def test_a_row_has_no_sequence_twice(tiny_network: TinyNetwork) -> None:
    for batch in RequestBatches([*tofu_like(), *tofu_like()], tiny_network.encoder):
        if isinstance(batch, ScoreBatch):
            assert len({(job.ids, job.prompt_length) for job in batch.jobs}) == len(batch.jobs)


def test_sharing_saves_tokens_and_only_between_answers_to_one_question(tiny_network: TinyNetwork) -> None:
    asked = list(tofu_like())
    shared = list(RequestBatches(asked, tiny_network.encoder, tokens_per_batch=500))
    apart = list(RequestBatches(asked, tiny_network.encoder, tokens_per_batch=500, share_prompts=False))
    tokens = [
        sum(batch.attention_mask.sum().item() for batch in batches if isinstance(batch, ScoreBatch))
        for batches in (shared, apart)
    ]
    assert tokens[0] < 0.5 * tokens[1], "five answers to a question, of which four begin alike"
    assert any(batch.sees is not None for batch in shared if isinstance(batch, ScoreBatch))
    assert not any(batch.sees is not None for batch in apart if isinstance(batch, ScoreBatch))
    for batch in shared:
        if isinstance(batch, ScoreBatch) and batch.sees is not None:
            prompts = Counter(job.prompt for job in batch.jobs)
            assert set(prompts.values()) == {5} and len(prompts) == len(batch.input_ids)


def test_texts_which_share_one_token_stay_apart(tiny_network: TinyNetwork) -> None:
    """Else a hundred short texts, which all begin with <s>, become one row with an attention mask of its own."""
    texts = [ScoreText(f"{a} {b}") for a in PEOPLE for b in PEOPLE]
    plan = RequestBatches(texts, tiny_network.encoder, tokens_per_batch=100)
    for batch in plan:
        assert isinstance(batch, ScoreBatch) and batch.sees is None and batch.tokens <= 100


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 40, 75, 150, 1000])
def test_the_token_budget_is_kept_by_all_but_single_sequences(tiny_network: TinyNetwork, budget: int) -> None:
    """Also with many answers to one question, which are cut into several rows."""
    question = "Where was Ada Brook born?"
    many = [Score(question, f"{a} met {b}.") for a in PEOPLE for b in PEOPLE]
    plan = RequestBatches([*tofu_like(range(3)), *many], tiny_network.encoder, tokens_per_batch=budget)
    seen = 0
    for batch in plan:
        if isinstance(batch, ScoreBatch):
            assert batch.tokens == batch.input_ids.numel()
            assert batch.tokens <= budget or len(batch.jobs) == 1
            seen += len(batch.jobs)
    assert seen == sum(isinstance(job, ScoreJob) for job in plan.jobs)
    longest = max(len(job.ids) - 1 for job in plan.jobs if isinstance(job, ScoreJob))
    if budget >= longest:
        assert len(plan) < len(plan.jobs) / 2, "and it is used"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_job_is_answered_once_whatever_is_known_already(tiny_network: TinyNetwork, world: int, seed: int) -> None:
    """Processes have the same number of batches, known answers or not, and none computes a known one."""
    rng = random.Random(seed)
    people = rng.sample(range(len(PEOPLE)), rng.randint(1, 5))
    tokens, rows = rng.choice([1, 60, 200, 5000]), rng.choice([1, 3, 50])
    plans = [
        RequestBatches(tofu_like(people), tiny_network.encoder, tokens, rows, rank, world) for rank in range(world)
    ]
    jobs = plans[0].jobs
    for share in (0.0, rng.random(), rng.random(), 1.0):
        known = {index: invented(job) for index, job in enumerate(jobs) if rng.random() < share}
        done: Counter[int] = Counter(known.keys())
        for plan in plans:
            plan.known = known
            batches = list(plan)
            assert len(batches) == len(plan) == len(plans[0])
            assert [batch.indices for batch in plan] == [batch.indices for batch in batches]
            for batch in batches:
                done.update(batch.indices)
                assert [jobs[index] for index in batch.indices] == batch.jobs
                if share == 0 and world == 1:
                    assert batch.indices
        assert done == dict.fromkeys(range(len(jobs)), 1)


def test_known_answers_leave_out_forward_passes(tiny_network: TinyNetwork) -> None:
    plan = RequestBatches(tofu_like(), tiny_network.encoder, tokens_per_batch=100)
    whole = sum(batch.tokens for batch in plan if isinstance(batch, ScoreBatch))
    plan.known = {i: invented(job) for i, job in enumerate(plan.jobs) if isinstance(job, ScoreJob) and i % 2}
    less = sum(batch.tokens for batch in plan if isinstance(batch, ScoreBatch))
    assert less < 0.8 * whole, "not half: the questions that the others share remain"
    plan.known = {index: invented(job) for index, job in enumerate(plan.jobs)}
    for batch in plan:
        assert batch.indices == [] and Inference(torch.nn.Identity(), []).answer(batch) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_answers_that_are_known_in_part_give_the_same_whole(tiny_network: TinyNetwork, world: int) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    expected = answered(model, [RequestBatches(tofu_like(range(4)), encoder)], [2])
    rng = random.Random(world)
    for share in (0.3, 0.8):
        plans = [RequestBatches(tofu_like(range(4)), encoder, 90, 5, rank, world) for rank in range(world)]
        known = {index: answer for index, answer in expected.items() if rng.random() < share}
        for plan in plans:
            plan.known = known
        found = answered(model, plans, [2])
        assert found.keys() == expected.keys() - known.keys()
        assert_equal(found, {index: expected[index] for index in found})


def assert_equal(found: dict[int, Answer], expected: dict[int, Answer]) -> None:
    assert found.keys() == expected.keys()
    for index, answer in expected.items():
        other = found[index]
        if isinstance(answer, Generation):
            assert other == answer
            continue
        assert isinstance(other, TokenScores)
        np.testing.assert_allclose(other.log_probs, answer.log_probs, rtol=0, atol=1e-12)
        assert (other.hits is None) == (answer.hits is None)
        if answer.hits is not None:
            np.testing.assert_array_equal(other.hits, answer.hits)
            for ours, theirs in ((other.means, answer.means), (other.variances, answer.variances)):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def leaves(batch: ScoreBatch | GenerateBatch) -> list[ScoreBatch | GenerateBatch]:
    """Halves of halves, down to single jobs."""
    if len(batch.indices) == 1:
        return [batch]
    first, second = batch.halves()
    assert first.indices + second.indices == batch.indices
    assert first.jobs + second.jobs == batch.jobs
    return [*leaves(first), *leaves(second)]


def test_halves_and_apart_give_the_same_answers(tiny_network: TinyNetwork) -> None:
    model, encoder = tiny_network.model(), tiny_network.encoder
    asked = [replace(r, detail=n % 2 == 0) if isinstance(r, Score) else r for n, r in enumerate(tofu_like(range(3)))]
    for tokens in (10_000, 60):
        for batch in RequestBatches(asked, encoder, tokens_per_batch=tokens, generation_rows=5):
            whole = dict(zip(batch.indices, Inference(model, [2]).answer(batch), strict=True))
            if isinstance(batch, ScoreBatch):
                plain = batch.apart()
                assert plain.sees is None and plain.indices == batch.indices
                assert plain.tokens >= batch.tokens
                assert_equal(dict(zip(plain.indices, Inference(model, [2]).answer(plain), strict=True)), whole)
            if len(batch.indices) > 1:
                for part in batch.halves():
                    found = dict(zip(part.indices, Inference(model, [2]).answer(part), strict=True))
                    assert_equal(found, {index: whole[index] for index in part.indices})
            single = leaves(batch)
            assert [index for part in single for index in part.indices] == batch.indices
            found = {part.indices[0]: Inference(model, [2]).answer(part)[0] for part in single}
            assert_equal(found, whole)


def test_moving_a_batch_moves_every_tensor_and_leaves_the_original(tiny_network: TinyNetwork) -> None:
    for batch in RequestBatches(tofu_like(range(1)), tiny_network.encoder):
        moved = batch.to("meta")
        tensors = {name: value for name, value in vars(moved).items() if isinstance(value, torch.Tensor)}
        assert len(tensors) >= 3 and all(value.is_meta for value in tensors.values())
        assert not batch.input_ids.is_meta
        assert moved.indices == batch.indices
