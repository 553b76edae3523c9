"""ROUGE and BLEU of texts that the published tokenizers have no words of: absent, or counted by a setting, never 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import TinyNetwork

from sga.callbacks.book import BookContinuations
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.muse import MUSE
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import rouge, texts_without_words
from sga.evaluation.requests import Answers, Continue, Generate, Generation, TokenScores

RUSSIAN = ("Она родилась в Риге.", "Его отец был судьёй.", "Первый роман вышел зимой.")
CHINESE = ("她出生在里加。", "他的父亲是法官。", "第一部小说在冬天出版。")
ENGLISH = ("She was born in Riga.", "His father was a judge.", "The first novel came in winter.")


def evaluated(callback: ModelUtility | MUSE | BookContinuations, data: EvaluationData) -> Evaluation:
    """The callback's evaluation of a model that says every true answer word for word."""
    truth = {record.question: record.answer for records in data.sets.values() for record in records}
    answers: dict[object, object] = {}
    for request in callback.requests(data):
        if isinstance(request, Generate | Continue):
            asked = (
                (request.question if isinstance(request, Generate) else request.prompt)
                .removeprefix("Question: ")
                .removesuffix("\nAnswer: ")
            )
            ids = tuple(data.encoder.tokenizer(truth[asked], add_special_tokens=False)["input_ids"])
            answers[request] = Generation(ids, truth[asked])
        else:
            answers[request] = TokenScores(np.array([-0.5, -0.5]))
    evaluation = Evaluation(data.name)
    callback.evaluate(data, Answers(answers), evaluation)  # type: ignore[arg-type]
    return evaluation


def data_of(network: TinyNetwork, name: str, sets: dict[str, Sequence[str]]) -> EvaluationData:
    records = {
        key: tuple(Record(f"{key}/{i}", f"{key} {i}?", text) for i, text in enumerate(texts))
        for key, texts in sets.items()
    }
    return EvaluationData(name, records, {}, (), {}, network.encoder)


@pytest.mark.parametrize("texts", [RUSSIAN, CHINESE])
def test_rouge_is_absent_where_no_true_text_has_a_published_word(
    texts: Sequence[str], tiny_network: TinyNetwork
) -> None:
    """The model says every answer word for word; 0 would call that forgotten."""
    data = data_of(tiny_network, "own", {"forget": texts, "retain": ENGLISH})
    found = evaluated(ModelUtility(), data)
    assert "own/forget/rouge_l_recall" not in found.metrics
    assert "no true text of forget has a word of a-z" in found.absent["own/forget/rouge_l_recall"]
    assert "rouge_tokenizer: unicode" in found.absent["own/forget/rouge_l_recall"]
    assert found.metrics["own/retain/rouge_l_recall"] == 1
    assert all("rouge_l_recall" not in row and row["generation"] for row in found.of_set("forget"))
    found = evaluated(ModelUtility(rouge_tokenizer="unicode"), data)
    assert found.metrics["own/forget/rouge_l_recall"] == 1
    assert any("rouge_tokenizer: unicode" in note for note in found.notes)


def test_single_texts_without_a_published_word_are_counted_in_a_note(tiny_network: TinyNetwork) -> None:
    found = evaluated(ModelUtility(), data_of(tiny_network, "own", {"forget": [*ENGLISH, RUSSIAN[0]]}))
    assert found.metrics["own/forget/rouge_l_recall"] == 0.75, "the published value"
    assert any(note.startswith("1 of 4 true forget texts have no word of a-z") for note in found.notes)


def test_muse_and_the_book_say_it_too(tiny_network: TinyNetwork) -> None:
    data = data_of(tiny_network, "muse", {"knowmem_forget": CHINESE, "knowmem_retain": ENGLISH})
    found = evaluated(MUSE(), data)
    assert "muse/knowmem_forget" not in found.metrics and "a-z" in found.absent["muse/knowmem_forget"]
    data = data_of(tiny_network, "book", {"forget_passages": CHINESE, "holdout_passages": RUSSIAN})
    found = evaluated(BookContinuations(), data)
    assert {name for name in found.absent if name.startswith("book/")} == {
        "book/forget/bleu", "book/forget/rouge_l_recall", "book/holdout/rouge_l_recall"
    }  # fmt: skip
    assert found.metrics["book/holdout/bleu"] == pytest.approx(100), "Russian has spaces"
    assert evaluated(BookContinuations(rouge_tokenizer="unicode"), data).metrics["book/forget/rouge_l_recall"] == 1


def test_unicode_words_by_hand() -> None:
    """Words of 4 and 4, 3 in common in order; Chinese by character; Hindi keeps its vowel signs; ASCII as published."""

    def recall(generated: str, truth: str, tokenizer: str = "unicode") -> float:
        return rouge([generated], [truth], tokenizer=tokenizer)["rougeL_recall"][0]  # type: ignore[arg-type]

    assert recall("Он родился в Риге!", "она родился в риге") == 0.75
    assert recall("她在里加", "她出生在里加") == pytest.approx(4 / 6)
    assert recall("की", "का") == 0 and recall("नई किताब", "नई किताब पढ़ो") == pytest.approx(2 / 3)
    assert recall("café", "cafe") == 0 and recall("café", "cafe\u0301") == 1
    for text in ("The novels_of 1962, running!", "It's A-Z", ""):
        for truth in ("novel of 1962 runs", "its a z"):
            assert recall(text, truth) == recall(text, truth, "published")
    assert texts_without_words(["…", "里加"], "unicode") == 1
    with pytest.raises(UserError, match="rouge_tokenizer must be 'published' or 'unicode', got 'spaces'"):
        recall("a", "b", "spaces")


def test_the_tokenizer_is_kept_with_results_unless_it_is_the_published_one() -> None:
    for callback in (ModelUtility, MUSE, BookContinuations):
        assert "rouge_tokenizer" not in callback().settings()
        assert callback(rouge_tokenizer="unicode").settings()["rouge_tokenizer"] == "unicode"


def test_one_plain_text_among_questions_is_named_as_the_reason(tiny_network: TinyNetwork) -> None:
    records = (
        Record("forget/0", "Who?", "Ada."),
        Record("forget/1", "", "A passage."),
        Record("forget/2", "Why?", "So."),
    )
    data = EvaluationData("own", {"forget": records}, {}, (), {}, tiny_network.encoder)
    found = evaluated(ModelUtility(), data)
    assert found.absent["own/forget/rouge_l_recall"] == (
        "1 of 3 forget records, forget/1 first, are plain text, which has no question to answer"
    )
    texts = EvaluationData("own", {"forget": records[1:2], "retain": records[:1]}, {}, (), {}, tiny_network.encoder)
    assert evaluated(ModelUtility(), texts).absent["own/forget/rouge_l_recall"] == (
        "plain text has no question to answer"
    )
