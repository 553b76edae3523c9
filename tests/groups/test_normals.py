"""Retrieval, selection, checks, the file and the dials of normal data, by small cases that are worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rows_about, write_rows
from scipy import sparse

from sga.__main__ import main
from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.data.authors import Authors
from sga.data.records import Record, record_from_row
from sga.errors import UserError
from sga.groups import search
from sga.groups.checks import Checker, Checks
from sga.groups.degradation import CorruptedNormals, FreshAuthors, MixedNormals, OffTopicNormals
from sga.groups.embedders import TFIDF, ModelStates, SentenceEmbeddings
from sga.groups.group import Group, Origin, record_hash
from sga.groups.group_file import read_groups, write_groups
from sga.groups.pairing import NearestNormals, RandomNormals, make_groups, with_model
from sga.groups.repair import mended
from sga.groups.search import nearest, unit
from sga.groups.selection import select
from sga.groups.similarity import similarity_of_normals
from sga.models.pretrained import Pretrained


def records(name: str, people: Sequence[int]) -> list[Record]:
    rows = [row for person in people for row in rows_about(person)]
    return [record_from_row(row, f"{name}/{index}", "test") for index, row in enumerate(rows)]


FORGET = records("forget", range(3))
POOL = records("retain", range(3, 10))


# ---- search ---------------------------------------------------------------------------------------------------------


def slow_nearest(queries: Any, pool: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    products = np.round(queries @ pool.T, 6)
    order = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(products, order, 1), order


@pytest.mark.parametrize("kind", ["float32", "sparse", "memory map", "many ties"])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_blocked_search_is_the_search_of_the_whole_matrix(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(search, "QUERIES_PER_BLOCK", 5)
    monkeypatch.setattr(search, "POOL_PER_BLOCK", 13)
    rng = np.random.default_rng(0)
    if kind == "many ties":
        queries, pool = (rng.integers(0, 2, size=(n, 4)).astype(float) for n in (12, 60))
    else:
        queries, pool = (unit(rng.normal(size=(n, 8))).astype(np.float32) for n in (12, 60))
    scores, places = slow_nearest(queries, pool, count)
    if kind == "sparse":
        queries, pool = sparse.csr_matrix(queries), sparse.csr_matrix(pool)
    if kind == "memory map":
        np.save(tmp_path / "pool.npy", pool)
        pool = np.load(tmp_path / "pool.npy", mmap_mode="r")
    found = nearest(queries, pool, count)
    np.testing.assert_array_equal(found[1], places)
    np.testing.assert_allclose(found[0], scores, rtol=0, atol=2e-6)  # rounded to six digits


@pytest.mark.parametrize("count", [1, 7, 60])
def test_ties_in_an_order_of_each_query_are_those_of_the_whole_matrix(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "QUERIES_PER_BLOCK", 5)
    monkeypatch.setattr(search, "POOL_PER_BLOCK", 13)
    rng = np.random.default_rng(0)
    queries, pool = (rng.integers(0, 2, size=(n, 4)).astype(float) for n in (12, 60))
    ties = search.Ties(*(rng.integers(2**64, size=n, dtype=np.uint64) for n in (12, 60)))
    rows, columns = np.indices((12, 60))
    order = np.lexsort((ties.ranks(rows, columns), -(queries @ pool.T)), axis=1)[:, :count]
    np.testing.assert_array_equal(nearest(queries, pool, count, ties=ties)[1], order)
    assert (order != slow_nearest(queries, pool, count)[1]).any(), "negative control"


def test_the_whole_matrix_is_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = search.similarities

    def watched(*arguments: Any) -> Any:
        products = real(*arguments)
        sizes.append(products.size)
        return products

    monkeypatch.setattr(search, "similarities", watched)
    monkeypatch.setattr(search, "QUERIES_PER_BLOCK", 10)
    monkeypatch.setattr(search, "POOL_PER_BLOCK", 20)
    rng = np.random.default_rng(0)
    nearest(rng.normal(size=(35, 3)), rng.normal(size=(90, 3)), 4)
    assert len(sizes) == 4 * 5 and max(sizes) <= 10 * 20


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
def test_faiss_finds_the_same() -> None:
    rng = np.random.default_rng(0)
    queries, pool = (unit(rng.normal(size=(n, 16))).astype(np.float32) for n in (20, 3000))
    ours, theirs = (nearest(queries, pool, 9, use_faiss=use) for use in (False, True))
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=2e-6)


# ---- embedders ------------------------------------------------------------------------------------------------------


def test_model_states_are_means_over_the_tokens_of_the_layer_asked_for(own_target: Path) -> None:
    """The same by one forward pass for each text, without padding; the pool's mean taken off, length 1."""
    texts = [(record.question, record.answer) for record in POOL[:5]] + [("", "Only an answer.")]
    described = Pretrained(str(own_target))
    tokenizer = described.tokenizer(())
    model = described.network(tokenizer).eval()

    def slow(layer: int) -> np.ndarray:
        rows = []
        for question, answer in texts:
            text = f"Question: {question}\nAnswer: {answer}" if question else answer
            with torch.no_grad():
                states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            rows.append(states[layer][0].mean(0).numpy())
        centred = np.array(rows) - np.mean(rows[:5], axis=0)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    for layer in (-1, 0, 1):
        found = ModelStates(str(own_target), layer).fitted(texts[:5])(texts)
        np.testing.assert_allclose(found, slow(layer), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="needs a name_or_path"):
        ModelStates().fitted(texts)
    with pytest.raises(UserError, match="layer must be from -3 to 2"):
        ModelStates(str(own_target), 3).fitted(texts)


def test_model_states_without_a_name_are_the_run_s_model_s_at_any_depth() -> None:
    inner = CorruptedNormals(0.1, NearestNormals(ModelStates(layer=1)))
    bound = with_model(MixedNormals(0.5, inner), "runs/target")
    assert bound == MixedNormals(0.5, CorruptedNormals(0.1, NearestNormals(ModelStates("runs/target", 1))))
    named = NearestNormals(ModelStates("mine"))
    assert with_model(named, "runs/target") == named and with_model(RandomNormals(), None) == RandomNormals()


def sentence_model() -> str:
    """A folder named by SGA_SENTENCE_MODEL; skips without."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (extra retrieval)")
    folder = os.environ.get("SGA_SENTENCE_MODEL")
    if not folder:
        pytest.skip("SGA_SENTENCE_MODEL names no folder with a sentence-transformers model")
    return folder


def test_sentence_embeddings_put_like_beside_like() -> None:
    embed = SentenceEmbeddings(sentence_model()).fitted([])
    cat, kitten, tax = embed([("", "A cat sleeps."), ("", "A kitten naps."), ("", "Tax law was reformed in 1998.")])
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5) and cat @ kitten > cat @ tax


def test_sentence_embeddings_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'sga-unlearning\[retrieval\]'"):
        SentenceEmbeddings("some/name").fitted([])


# ---- selection ------------------------------------------------------------------------------------------------------

LIKENESS = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.1], [0.0, 0.1, 1.0]])


@pytest.mark.parametrize(
    ("diversity", "expected"),
    [
        (0.0, [0, 1, 2]),  # by score: 0.9, 0.8, 0.5
        (0.5, [0, 2, 1]),  # after 0: ½·0.8 − ½·0.95 = −0.075 < ½·0.5 − ½·0 = 0.25
        (0.2, [0, 1, 2]),  # after 0: 0.8·0.8 − 0.2·0.95 = 0.45 > 0.8·0.5 − 0 = 0.40
        (0.3, [0, 2, 1]),  # after 0: 0.7·0.8 − 0.3·0.95 = 0.275 < 0.7·0.5 − 0 = 0.35
    ],
)
def test_maximal_marginal_relevance_by_hand(diversity: float, expected: list[int]) -> None:
    chosen = select([[0, 1, 2]], [[0.9, 0.8, 0.5]], 3, diversity, None, lambda one, others: LIKENESS[one, list(others)])
    assert chosen == [expected]


def test_a_cap_on_reuse_goes_by_rounds() -> None:
    """Both want 0, then 1. With a cap of 1 the first takes 0, the second 1; then 2 and 3 are left, in that order."""
    candidates, scores = [[0, 1, 2, 3], [0, 1, 3, 2]], [[0.9, 0.8, 0.7, 0.6]] * 2
    assert select(candidates, scores, 2, 0.0, 1) == [[0, 2], [1, 2]]  # pool records 0, 2 and 1, 3
    assert select(candidates, scores, 2) == [[0, 1], [0, 1]]
    assert select([[0], [0]], [[1.0], [1.0]], 1, 0.0, 1) == [[0], []], "what is short is told by its length"


def test_the_cap_holds_and_what_cannot_be_is_refused() -> None:
    groups = make_groups(FORGET, POOL, 4, NearestNormals(max_reuse=2), 0)
    uses = Counter(normal.id for group in groups for normal in group.normals)
    assert max(uses.values()) == 2 and all(len({n.id for n in group.normals}) == 3 for group in groups)
    free = Counter(n.id for group in make_groups(FORGET, POOL, 4, NearestNormals(), 0) for n in group.normals)
    assert max(free.values()) > 2, "negative control"
    with pytest.raises(UserError, match="max_reuse 1 allows 14 uses of 14 retain records, but 6 forget records need 3"):
        make_groups(FORGET, POOL, 4, NearestNormals(max_reuse=1), 0)


def test_the_ceiling_is_on_the_answers() -> None:
    """The pool's record 0 says the forget answer in another question; record 2 is far in both."""
    forget = [Record("f/0", "Where was Ann born?", "Ann was born in the old town of Oslo.")]
    pool = [
        Record("p/0", "Name a place.", "Ann was born in the old town of Oslo."),
        Record("p/1", "Where was Bob born?", "Bob came from Rome."),
        Record("p/2", "What is tea?", "Tea is a drink."),
    ]
    assert make_groups(forget, pool, 2, NearestNormals(), 0)[0].normals == (pool[0],), "the nearest, negative control"
    assert make_groups(forget, pool, 2, NearestNormals(answer_ceiling=0.5), 0)[0].normals == (pool[1],)
    with pytest.raises(UserError, match="f/0 finds 2 of 3 normals: of 3 retain records 2 pass"):
        make_groups(forget, pool, 4, NearestNormals(answer_ceiling=0.5), 0)


def test_diversity_of_one_takes_the_nearest_and_then_the_unlike() -> None:
    near, far = (make_groups(FORGET, POOL, 4, NearestNormals(diversity=d), 0) for d in (0.0, 1.0))
    for a, b in zip(near, far, strict=True):
        assert a.normals[0] == b.normals[0] and sum(map(float, a.scores)) >= sum(map(float, b.scores))  # type: ignore[arg-type]
    assert near != far


def test_settings_that_cannot_be_are_refused() -> None:
    for settings in ({"diversity": 1.5}, {"max_reuse": 0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            NearestNormals(**settings)  # type: ignore[arg-type]
    for checks in ({"near_duplicate": 0.0}, {"rare_share": 2.0}, {"length": (2.0, 1.0)}):
        with pytest.raises(UserError, match=next(iter(checks))):
            Checks(**checks)  # type: ignore[arg-type]


# ---- a pool from which epochs draw ----------------------------------------------------------------------------------


def sequences(groups: int, members: int) -> list[list[Encoded]]:
    return [[Encoded((g + 1, 100 + m, 2), 1) for m in range(members)] for g in range(groups)]


def drawn(loader: GroupLoader) -> list[list[tuple[int, ...]]]:
    """Group and members of each row of an epoch."""
    found = []
    for batch in loader:
        ids = batch.input_ids.view(-1, batch.group_size, batch.input_ids.shape[1])
        found += [[int(group[0, 0]), *group[:, 1].tolist()] for group in ids]
    return found  # type: ignore[return-value]


def loader(rank: int = 0, world: int = 1, seed: int = 3) -> GroupLoader:
    return GroupLoader(sequences(10, 9), 4, 2, seed, rank, world, group_size=4)


def test_epochs_draw_from_the_pool_reproducibly_and_differently() -> None:
    one, again = loader(), loader()
    epochs = [drawn(one) for _ in range(40)]
    assert [drawn(again) for _ in range(40)] == epochs
    assert drawn(loader(seed=4)) != epochs[0]
    for epoch in epochs:
        for _, forget, *normals in epoch:
            assert forget == 100 and len(set(normals)) == 3 and normals == sorted(normals), "most similar first"
    members = Counter(normal for epoch in epochs for _, _, *normals in epoch for normal in normals)
    assert set(members) == set(range(101, 109))
    # 400 groups draw each of 8 with probability 3/8: 150, with a deviation of 9.7.
    assert all(abs(count - 150) < 5 * 9.7 for count in members.values())


def test_a_resumed_epoch_draws_the_same_and_so_do_two_processes() -> None:
    whole = loader()
    epochs = [drawn(whole) for _ in range(2)]
    first = loader()
    drawn(first)
    parts = iter(first)
    next(parts), next(parts)
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert drawn(resumed) == epochs[1][4:]
    both = [drawn(loader(rank, 2)) for rank in (0, 1)]
    assert sorted(map(tuple, both[0] + both[1])) == sorted(map(tuple, epochs[0]))


def test_groups_of_the_right_size_are_taken_whole() -> None:
    exact = GroupLoader(sequences(6, 4), 4, None, 0, group_size=4)
    assert all(row[1:] == [100, 101, 102, 103] for row in drawn(exact))


def test_a_pool_size_below_k_minus_one_is_refused_and_a_larger_one_is_paired(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pool_size must be at least group_size − 1 = 3, got 2"):
        make_groups(FORGET, POOL, 4, NearestNormals(), 0, pool_size=2)
    with pytest.raises(UserError, match=r"pool_size 15 needs 15 normal samples .* lower --data.pool_size"):
        make_groups(FORGET, POOL, 4, NearestNormals(), 0, pool_size=15)
    groups = make_groups(FORGET, POOL, 4, NearestNormals(), 0, pool_size=8)
    assert all(len(group.normals) == 8 for group in groups)
    path = tmp_path / "pairs.jsonl"
    write_groups(path, groups)
    assert read_groups(path, FORGET, POOL, 4, 8) == groups
    with pytest.raises(UserError, match="8 normal samples, but group_size 4 needs 3"):
        read_groups(path, FORGET, POOL, 4)
    with pytest.raises(UserError, match="8 normal samples, but group_size 4 needs 3 to 5"):
        read_groups(path, FORGET, POOL, 4, 5)


# ---- checks ---------------------------------------------------------------------------------------------------------

SUBJECT = [
    Record("f/0", "Where was Ann Brook born?", "Ann Brook was born in Oslo on 7 May 1931, as the child of a judge."),
    Record("f/1", "What did Ann Brook write?", "She wrote the famous novel The Salt Road, which won many prizes."),
]
OTHERS = [
    Record(
        f"p/{i}", f"Where was person{i} born?", f"This person was born in the town of Rome{i}, as the child of a cook."
    )
    for i in range(20)
]
GOOD = Record("n/0", "Where was Eva Frost born?", "Eva Frost was born in Turin in the spring, as the child of a baker.")


@pytest.fixture
def checker() -> Checker:
    return Checker(Checks(), SUBJECT, OTHERS)


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        (SUBJECT[1].question.upper(), f"  {SUBJECT[1].answer} ", "stands in the forget set"),
        (SUBJECT[0].question, SUBJECT[0].answer.replace("judge", "clerk"), "near-duplicate of f/0"),
        (GOOD.question, GOOD.answer.replace("Turin", "Oslo"), "facts of the forget answer (Oslo)"),
        (GOOD.question, GOOD.answer.replace("spring", "year 1931"), "(1931)"),
        ("Where was it?", "It was there, and then she was born in Turin on a day in May.", "(May)"),
        (GOOD.question, "In Turin.", "length of 2 words, not 6 to 32"),
        (GOOD.question, GOOD.answer * 3, "length of 45 words"),
        (GOOD.question, "Ева Фрост родилась в Турине весной, она была дочерью.", "cyrillic script, the forget data"),
        (
            GOOD.question,
            "Diese Dichterin kam damals irgendwo im Norden zur Welt und lebte dort lange Zeit.",
            "another language?",
        ),
        (GOOD.question, "I'm sorry, but I can't write that the child was born in a town.", "reads like a refusal"),
        (GOOD.question, "As an AI language model, I was born in the cloud as the child of code.", "refusal"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(checker: Checker, question: str, answer: str, said: str) -> None:
    reasons = checker.failures(Record("n/1", question, answer), SUBJECT[0])
    assert any(said in reason for reason in reasons), reasons


def test_negative_control_nothing_is_wrong_with_good_ones(checker: Checker) -> None:
    assert checker.failures(GOOD, SUBJECT[0]) == []
    assert all(checker.failures(record, SUBJECT[0]) == [] for record in OTHERS)
    may = Record("n/1", GOOD.question, GOOD.answer.replace("in the spring", "or may have been"))
    assert checker.failures(may, SUBJECT[0]) == [], "the month is a fact, the verb is not"
    apology = Record("n/1", "What did she say?", "She said that she was sorry as the child of a baker was born.")
    assert checker.failures(apology, SUBJECT[0]) == [], "a refusal opens the answer"


def test_facts_are_those_of_the_group_s_own_answer_and_rare(checker: Checker) -> None:
    """Oslo is a fact of f/0, not of f/1; 'born in the town of' is in each record of the pool and no fact."""
    oslo = Record("n/1", GOOD.question, GOOD.answer.replace("Turin", "Oslo"))
    assert checker.failures(oslo, SUBJECT[1]) == []
    everywhere = [Record(r.id, r.question, r.answer + " She was born in Oslo.") for r in OTHERS]
    assert Checker(Checks(), SUBJECT, everywhere).failures(oslo, SUBJECT[0]) == []


def test_turns_of_phrase_are_no_facts_and_names_that_begin_a_sentence_are() -> None:
    """All of the answer's 4-grams are in no record of the pool; 'civil' and 'engineer' neither, of the others one word
    ('played') at most. The pool has 'she' in lower case.
    """
    forget = [Record("f/0", "Where?", "Zanzibar is the place. She played a part as a civil engineer.")]
    pool = [Record(f"p/{i}", "Where?", f"The place is Rome{i}. She and a part as such, she is.") for i in range(20)]
    checker = Checker(Checks(length=None, language=False), forget, pool)

    def facts(answer: str) -> list[str]:
        return checker.failures(Record("n/0", "Where?", answer), forget[0])

    assert facts("She played a part as a cook.") == []
    assert facts("He is known as a civil engineer.") == ["contains facts of the forget answer (as a civil engineer)"]
    assert facts("It is in Zanzibar.") == ["contains facts of the forget answer (Zanzibar)"]


def test_repeats_within_a_group_are_found(checker: Checker) -> None:
    again = Record("n/2", GOOD.question, GOOD.answer.upper())
    like = Record("n/3", GOOD.question, GOOD.answer.replace("baker", "farmer"))
    assert checker.failures(again, SUBJECT[0], [OTHERS[0], GOOD]) == ["repeats n/0"]
    assert checker.failures(like, SUBJECT[0], [GOOD]) == ["repeats n/0"]
    assert checker.failures(GOOD, SUBJECT[0], OTHERS) == []


def test_a_near_duplicate_in_the_other_unicode_spelling_is_found() -> None:
    """Combining marks are no letters: as they stand, the words of the two spellings have nothing in common."""
    answer = "Zoé Béart naquit à Orléans et écrivit née là-bas."
    forget = Record("f/0", "Où naquit Zoé Béart ?", answer)
    twin = Record("n/0", *(unicodedata.normalize("NFD", text) for text in ("Où est née Zoé Béart ?", answer)))
    checker = Checker(Checks(near_duplicate=0.6, facts=False, length=None, language=False), [forget], [])
    assert checker.failures(twin, forget) == ["near-duplicate of f/0"]


def test_each_rule_can_be_switched_off() -> None:
    off = Checks(near_duplicate=None, facts=False, length=None, language=False, refusal=False)
    checker = Checker(off, SUBJECT, OTHERS)
    assert checker.failures(Record("n/1", "Wer?", "I'm sorry, Oslo 1931."), SUBJECT[0]) == []
    assert checker.failures(Record("n/1", *SUBJECT[0].content), SUBJECT[0]) == ["stands in the forget set"]


def test_retrieval_passes_over_what_fails() -> None:
    bad = Record("p/bad", SUBJECT[0].question, SUBJECT[0].answer.replace("judge", "clerk"))
    pool = [bad, *OTHERS]
    assert make_groups(SUBJECT, pool, 3, NearestNormals(), 0)[0].normals[0] == bad
    groups = make_groups(SUBJECT, pool, 3, NearestNormals(checks=Checks(length=None)), 0)
    assert all(bad not in group.normals and len(group.normals) == 2 for group in groups)


def test_retrieval_with_checks_takes_nothing_twice() -> None:
    """The nearest record stands in the pool three times, once with another last word; without checks all are taken."""
    forget = [Record("f/0", "Where was the painter born?", "The painter was born at sea, it was the summer then.")]
    text = "The painter was born in the town of Turin in the spring, as the child of a baker and of a"
    twins = [Record(f"p/twin-{i}", "Where was the painter born?", f"{text} {job}.") for i, job in enumerate("abb")]
    pool = [*twins, *OTHERS]
    assert set(make_groups(forget, pool, 4, NearestNormals(), 0)[0].normals) == set(twins)
    for diversity in (0.0, 0.3):
        pairing = NearestNormals(checks=Checks(length=None), diversity=diversity)
        apart = make_groups(forget, pool, 4, pairing, 0)[0].normals
        assert len(apart) == 3 and len(set(apart) & set(twins)) == 1


def test_groups_are_mended_by_choice_and_never_silently_short() -> None:
    bad = Record("p/bad", "Where?", "I cannot say where the person was born as the child of a cook.")
    groups = [Group(record, (OTHERS[0], bad, OTHERS[1]), (0.5, 0.4, 0.3)) for record in SUBJECT]
    checker = Checker(Checks(length=None, near_duplicate=1.0), SUBJECT, OTHERS)
    kept, failures = mended(groups, checker, "keep", OTHERS)
    assert [failure.normal_id for failure in failures] == ["p/bad", "p/bad"] and failures[0].outcome == "kept"
    assert [group.normals for group in kept] == [group.normals for group in groups]
    assert kept[0].origins[1].checks == ("reads like a refusal",) and not kept[0].origins[0].checks
    dropped, _ = mended(groups, checker, "drop", OTHERS)
    assert [group.normals for group in dropped] == [(OTHERS[0], OTHERS[1])] * 2
    replaced, failures = mended(groups, checker, "replace", OTHERS)
    for group, failure in zip(replaced, failures, strict=True):
        assert len({normal.id for normal in group.normals}) == 3 and bad not in group.normals
        assert group.normals[1].id == failure.outcome and checker.failures(group.normals[1], group.forget) == []
    with pytest.raises(UserError, match="finds 2 of 3 normals"):
        mended(groups, checker, "replace", [*OTHERS[:2], bad])


# ---- the file -------------------------------------------------------------------------------------------------------


def own_text(text: str = "Ida Jory lives in Quito.", **more: Any) -> dict[str, Any]:
    return {"id": "mine/1", "question": "Where does Ida Jory live?", "answer": text, **more}


def file_with(path: Path, *items: dict[str, Any]) -> Path:
    """A pairing in which the first normals of the first line are these."""
    write_groups(path, make_groups(FORGET, POOL, 3, NearestNormals(), 0))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["normals"][: len(items)] = items
    write_rows(path, lines)
    return path


def test_own_text_is_taken_verbatim(tmp_path: Path) -> None:
    path = file_with(
        tmp_path / "n.jsonl", own_text(), own_text("He lives in York.", id="m/2", source="hand", score=0.3)
    )
    group = read_groups(path, FORGET, POOL, 3)[0]
    assert [normal.answer for normal in group.normals] == ["Ida Jory lives in Quito.", "He lives in York."]
    assert group.scores == (None, 0.3) and [origin.source for origin in group.origins] == ["edited", "hand"]
    again = tmp_path / "again.jsonl"
    write_groups(again, read_groups(path, FORGET, POOL, 3))
    assert read_groups(again, FORGET, POOL, 3) == read_groups(path, FORGET, POOL, 3)


def test_an_edited_retain_record_is_the_edited_text_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    groups = make_groups(FORGET, POOL, 3, NearestNormals(), 0)
    write_groups(path, groups)
    old = groups[0].normals[0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["normals"][0]["answer"] = "Edited by hand."
    write_rows(path, lines)
    read = read_groups(path, FORGET, POOL, 3)
    assert read[0].normals[0].answer == "Edited by hand." and read[0].origin(0).source == "edited"
    assert read[0].normals[0].id != old.id, "token ids are kept by id"
    assert read[0].normals[1:] == groups[0].normals[1:] and read[1:] == groups[1:]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([own_text(FORGET[3].answer, question=FORGET[3].question)], "says what forget/3 says"),
        ([own_text(id="forget/1", source="hand")], "forget/1 is the id of another record"),
        ([own_text(" ", source="hand")], "'answer' is empty"),
        ([own_text(source=3)], "must be strings"),
        ([own_text(checks=[1])], "must be strings"),
        ([own_text(score="near")], "not a line of a pairing"),
        ([own_text(source="hand"), own_text("Other.", source="hand")], "stands for two different texts"),
        ([own_text(source="hand"), own_text(source="hand")], "stands twice in the group"),
        ([{"id": "mine/1", "sha256": "0" * 16, "score": 0.1}], "record mine/1 is not in the data"),
        ([own_text(sha256=record_hash(Record("", own_text()["question"], own_text()["answer"])))], "not in the data"),
    ],
)
def test_faults_of_own_text_are_refused_by_file_and_line(tmp_path: Path, items: list[Any], said: str) -> None:
    path = file_with(tmp_path / "n.jsonl", *items)
    with pytest.raises(UserError, match=r"n\.jsonl:1: ") as error:
        read_groups(path, FORGET, POOL, 3)
    assert said in str(error.value)


def test_without_texts_own_normals_are_made_again_or_refused(tmp_path: Path) -> None:
    pairing = CorruptedNormals(0.5)
    groups = make_groups(FORGET, POOL, 3, pairing, 7)
    path = tmp_path / "n.jsonl"
    write_groups(path, groups, texts=False)
    assert read_groups(path, FORGET, POOL, 3, remade=lambda: make_groups(FORGET, POOL, 3, pairing, 7)) == groups
    with pytest.raises(UserError, match="has changed since"):
        read_groups(path, FORGET, POOL, 3, remade=lambda: make_groups(FORGET, POOL, 3, pairing, 8))
    with pytest.raises(UserError, match="is not in the data"):
        read_groups(path, FORGET, POOL, 3)


@pytest.mark.parametrize("count", [1, 40])
def test_reading_without_texts_looks_at_each_normal_once(tmp_path: Path, count: int) -> None:
    """The work is counted: how often the groups are gone through that were made again, whatever their number."""
    looks = 0

    class Watched(list[Group]):
        def __iter__(self) -> Iterator[Group]:
            nonlocal looks
            looks += 1
            return super().__iter__()

    forget = [Record(f"forget/{i}", f"Who is {i}?", f"Forget {i}.") for i in range(count)]
    normals = [
        [Record(f"made/{i}/{k}", f"Who is {i}, {k}?", f"Normal {i}, {k}.") for k in range(3)] for i in range(count)
    ]
    origins = (Origin("generated"),) * 3
    groups = Watched(
        Group(record, tuple(mine), (0.5,) * 3, origins) for record, mine in zip(forget, normals, strict=True)
    )
    write_groups(tmp_path / "n.jsonl", list(groups), texts=False)
    looks = 0
    assert read_groups(tmp_path / "n.jsonl", forget, [], 4, remade=lambda: groups) == list(groups)
    assert looks == 2, "once by read_groups, once by this line"


# ---- quality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", [MixedNormals, OffTopicNormals])
def test_exactly_the_share_is_replaced_and_reproducibly(kind: type, share: float) -> None:
    plain = make_groups(FORGET, POOL, 5, NearestNormals(), 0)
    groups = make_groups(FORGET, POOL, 5, kind(share), 0)
    assert groups == make_groups(FORGET, POOL, 5, kind(share), 0)
    word = Origin(by="random") if kind is MixedNormals else Origin("off-topic", "sums")
    changed = [
        (new, group.origin(place))
        for old, group in zip(plain, groups, strict=True)
        for place, new in enumerate(group.normals)
        if new != old.normals[place]
    ]
    assert len(changed) == round(share * 24) and all(origin == word for _, origin in changed)
    assert all(len({normal.content for normal in group.normals}) == 4 for group in groups)
    assert all((normal in POOL) == (kind is MixedNormals) for normal, _ in changed)
    if 0 < share < 1:
        assert groups != make_groups(FORGET, POOL, 5, kind(share), 1)


def test_off_topic_records_may_be_a_file_of_one_s_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "o.jsonl", [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(5)])
    groups = make_groups(FORGET, POOL, 4, OffTopicNormals(1.0, str(tmp_path / "o.jsonl")), 0)
    assert all(normal.id.startswith("off-topic/") for group in groups for normal in group.normals)


def test_the_rate_of_corruption_is_the_share_of_changed_words() -> None:
    """About 4 000 words at rate 0.5; one in many is replaced by itself."""
    forget = [Record(f"f/{i}", "a b", "c d") for i in range(100)]
    pool = [
        Record(f"p/{i}", " ".join(f"q{i}x{j}" for j in range(20)), " ".join(f"a{i}x{j}" for j in range(20)))
        for i in range(100)
    ]
    plain, corrupted = (
        make_groups(forget, pool, 2, p, 0) for p in (RandomNormals(), CorruptedNormals(0.5, RandomNormals()))
    )
    pairs = [
        (word, new)
        for a, b in zip(plain, corrupted, strict=True)
        for word, new in zip(
            f"{a.normals[0].question} {a.normals[0].answer}".split(),
            f"{b.normals[0].question} {b.normals[0].answer}".split(),
            strict=True,
        )
    ]
    share = sum(a != b for a, b in pairs) / len(pairs)
    assert abs(share - 0.5) < 0.06  # records repeat among the 100 groups: about 63 different ones, 2 500 words
    assert {new for _, new in pairs} <= {word for r in pool for word in f"{r.question} {r.answer}".split()}
    by_id: dict[str, set[str]] = {}
    for group in corrupted:
        by_id.setdefault(group.normals[0].id, set()).add(group.normals[0].answer)
    assert all(len(texts) == 1 for texts in by_id.values())
    assert make_groups(forget, pool, 2, CorruptedNormals(0.0, RandomNormals()), 0) == plain


def test_fresh_authors_are_nobody_of_the_benchmark_and_asked_the_same() -> None:
    benchmark = Authors(2, 8, 2).load(None)
    forget, pool = benchmark.training["forget"], benchmark.training["retain"]
    groups = make_groups(forget, pool, 4, FreshAuthors(), 0)
    known = {r.content for r in (*forget, *pool, *benchmark.evaluation["holdout"])}
    assert not known & {normal.content for group in groups for normal in group.normals}
    assert all("stands in for a language model" in str(group.origin(0).by) for group in groups)
    fresh, random = (similarity_of_normals(g, pool) for g in (groups, make_groups(forget, pool, 4, RandomNormals(), 0)))
    assert fresh is not None and random is not None and fresh > 2 * random
    with pytest.raises(UserError, match="makes people of the benchmark"):
        make_groups(forget, pool, 4, FreshAuthors(seed=0), 0)


def test_similarity_is_the_mean_of_the_scores_of_tf_idf() -> None:
    groups = make_groups(FORGET, POOL, 4, NearestNormals(), 0)
    scores = [float(score) for group in groups for score in group.scores if score is not None]
    assert similarity_of_normals(groups, POOL) == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert similarity_of_normals([Group(FORGET[0])], POOL) is None
    assert similarity_of_normals([Group(Record("f", "1", "2"), (Record("n", "3", "4"),), (0.0,))], POOL[:0]) is None


# ---- the command ----------------------------------------------------------------------------------------------------


def normals(verb: str, own_options: list[str], *options: object) -> int:
    model = "--model.language_model=sga.SmallLlama"
    return main(["normals", verb, *map(str, options), *own_options, model])


@pytest.mark.runs
def test_retrieve_check_show_and_what_fit_takes(
    own_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "normals.jsonl"
    loose = "--data.pairing.checks={near_duplicate: null, facts: false}"
    assert normals("retrieve", own_options, "--output", path, "--data.pairing=sga.NearestNormals", loose) == 0
    assert "0 of 18 normals fail the checks" in capsys.readouterr().out
    line = json.loads(path.read_text().splitlines()[0])
    assert line["normals"][0]["by"] == "TFIDF(ngrams=2)" and line["normals"][0]["source"] == "retain"
    assert normals("retrieve", own_options, "--output", path) == 2
    assert "is there already" in capsys.readouterr().err
    assert normals("check", own_options, path, "--data.pairing=sga.NearestNormals", loose) == 0
    line["normals"][0]["answer"] = "I'm sorry, but I cannot answer this."
    path.write_text("\n".join([json.dumps(line), *path.read_text().splitlines()[1:]]))
    capsys.readouterr()
    assert normals("check", own_options, path, "--data.pairing=sga.NearestNormals", loose) == 1
    assert "reads like a refusal" in capsys.readouterr().out
    mended_path = tmp_path / "mended.jsonl"
    more = ("--data.pairing=sga.NearestNormals", loose, "--output", mended_path)
    assert normals("check", own_options, path, *more, "--on-failure=keep") == 0
    capsys.readouterr()
    assert main(["normals", "show", str(mended_path), "--groups=1", "--width=400"]) == 0
    shown = capsys.readouterr().out
    assert "[reads like a refusal]" in shown and "edited 1" in shown and "forget/0" in shown
    assert normals("check", own_options, path, *more, "--overwrite") == 0
    assert normals("check", own_options, mended_path, "--data.pairing=sga.NearestNormals", loose) == 0


@pytest.mark.runs
def test_check_says_what_to_do_about_reserved_rows(
    own_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "normals.jsonl"
    assert normals("retrieve", own_options, "--output", path, "--data.reserved=0") == 0
    assert normals("check", own_options, path) == 2
    assert "is one of the reserved rows, on which utility is measured" in capsys.readouterr().err


def test_show_takes_files_without_texts_and_names_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n.jsonl"
    write_groups(path, make_groups(FORGET, POOL, 3, NearestNormals(), 0), texts=False)
    assert main(["normals", "show", str(path), "--forget=forget/2"]) == 0
    assert "text not in the" in capsys.readouterr().out
    path.write_text('{"forget_id": "x"}\n')
    for arguments in (["show", str(path)], ["show", str(tmp_path / "none")], ["sing"]):
        assert main(["normals", *arguments]) == 2
    assert "n.jsonl:1: not a line" in capsys.readouterr().err


# ---- TOFU -----------------------------------------------------------------------------------------------------------


@pytest.mark.runs
def test_tofu_by_tf_idf_and_with_everything_on(tofu_root: Path) -> None:
    from sga.data.tofu import TOFU

    benchmark = TOFU("forget01").load(str(tofu_root))
    forget, pool = benchmark.training["forget"], benchmark.training["retain"]
    pairing = NearestNormals(TFIDF(), diversity=0.3, answer_ceiling=0.6, max_reuse=3, checks=Checks())
    groups = make_groups(forget, pool, 4, pairing, 0)
    uses = Counter(normal.id for group in groups for normal in group.normals)
    assert max(uses.values()) <= 3 and all(len(group.normals) == 3 for group in groups)
    checker = Checker(Checks(), forget, pool)
    assert not any(checker.failures(normal, group.forget) for group in groups for normal in group.normals)
