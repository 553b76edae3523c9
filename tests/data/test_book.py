"""A book as a benchmark: blocks, passages, what is refused, its two numbers, the harness, and runs on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyNetwork

from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.callbacks.book import BookContinuations
from sga.callbacks.harness import Harness
from sga.cli import run_verb
from sga.commands.score import main as score
from sga.data.book import Book
from sga.data.builtin import builtin_path
from sga.data.folds import in_folds
from sga.data.records import Record
from sga.data.text_blocks import cut_records, pieces, split_after, text_blocks
from sga.datamodule import EvaluationData, UnlearningData
from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import bleu
from sga.evaluation.requests import Answers, Continue, Generation
from sga.models.small import SmallLlama, train_tokenizer


class Words:
    """Counts a token for each letter, white space apart: what a cut does can be seen by eye."""

    text_room = 1000
    special_tokens = 2

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [sum(not letter.isspace() for letter in text) for text in texts]


class Joining(Words):
    """As `Words`, but a text of several words has two tokens more than its words."""

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [
            count + 2 * (len(text.split()) > 1) for text, count in zip(texts, super().token_counts(texts), strict=True)
        ]


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_by_hand() -> None:
    """Ten letters in blocks of at most four: three, of 10/3 letters each; a word goes where it begins."""
    assert text_blocks("aa bb\n\ncc dd ee", 4, Words()) == ["aa bb", "cc dd", "ee"]
    assert text_blocks("aa bb cc dd ee", 10, Words()) == ["aa bb cc dd ee"]
    assert text_blocks("aa bb cc dd ee", 9, Words()) == ["aa bb cc", "dd ee"]
    assert text_blocks(" \n ", 4, Words()) == []


@pytest.mark.parametrize("most", [5, 17, 60, 400])
@pytest.mark.parametrize("counter", [Words(), Joining()], ids=["plain", "joining"])
def test_every_word_is_in_one_block_and_no_block_is_too_long(most: int, counter: Words) -> None:
    draws = np.random.default_rng(most)
    words = ["x" * int(length) for length in draws.integers(1, 4 if most == 5 else 12, size=300)]
    text = "  ".join(words)
    cut = text_blocks(text, max(most, 12) if most > 5 else most, counter)
    assert [word for block in cut for word in block.split()] == words
    counts = counter.token_counts(cut)
    assert max(counts) <= max(most, 12 if most > 5 else 0)
    if most == 60:
        assert min(counts) > 20, "the last one is no remnant"


def test_text_without_spaces_is_cut_too_and_a_word_that_does_not_fit_is_refused() -> None:
    text = "永" * 100
    cut = text_blocks(text, 30, Words())
    assert "".join(cut) == text and max(map(len, cut)) <= 30
    assert "".join(pieces(text + " \n")) == text + " \n"
    with pytest.raises(UserError, match="blocks of 4 tokens are too short for a word of 'impossible'"):
        text_blocks("impossible", 4, Words())


def test_split_after_takes_whole_words() -> None:
    assert split_after("aa bb cc dd", 5, Words()) == ("aa bb", "cc dd")
    assert split_after("aa bb cc dd", 4, Words()) == ("aa bb", "cc dd")
    assert split_after("aaaaaa bb", 4, Words()) == ("aaaaaa", "bb")


def test_blocks_of_a_real_tokenizer_are_as_long_as_training_allows_and_reproducible() -> None:
    text = builtin_path("book/on-small-trades.txt").read_text(encoding="utf-8")
    encoder = Encoder(train_tokenizer([text], 800, 64), PlainTemplate(), 64)
    record = Record("text", "", text)
    cut = cut_records([record, Record("pair", "q", "a")], encoder.text_room, encoder)
    assert cut == cut_records([record, Record("pair", "q", "a")], encoder.text_room, encoder)
    assert [one.id for one in cut[:2]] == ["text/0", "text/1"] and cut[-1] == Record("pair", "q", "a")
    lengths = [len(encoder.encode(one.question, one.answer).ids) for one in cut[:-1]]
    assert max(lengths) <= 64 and min(lengths) >= 40  # those of at most 62 tokens and the two special ones
    assert " ".join(one.answer for one in cut[:-1]).split() == text.split()


def test_folds_are_successive_disjoint_and_whole() -> None:
    records = [Record(str(number), "", "text") for number in range(11)]
    parts = [in_folds(records, 4, [number]) for number in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [2, 3, 3, 3]
    assert [record for part in parts for record in part] == records
    assert in_folds(records, 4, [3, 1]) == parts[0] + parts[2]
    with pytest.raises(UserError, match="11 forget records cannot be cut into 12 folds"):
        in_folds(records, 12, [1])


# ---- the source -----------------------------------------------------------------------------------------------------


def encoder_of(max_length: int = 512) -> Encoder:
    source = Book()
    texts = [record.answer for records in source.load(None).evaluation.values() for record in records]
    return Encoder(train_tokenizer(texts, 1000, max_length), PlainTemplate(), max_length)


def test_the_sample_book() -> None:
    """Long enough, nothing is lost, and what is held out stands neither in training nor in the forget passages."""
    source, encoder = Book(), encoder_of()
    found = source.cut(source.load(None), encoder)
    book = builtin_path("book/the-tide-clock.txt").read_text(encoding="utf-8")
    normal = builtin_path("book/on-small-trades.txt").read_text(encoding="utf-8")
    assert 3000 <= len(book.split()) <= 5000 and len(normal.split()) >= 2000
    forget, holdout = found.training["forget"], found.evaluation["holdout"]
    assert " ".join(record.answer for record in (*forget, *holdout)).split() == book.split()
    assert " ".join(record.answer for record in found.training["retain"]).split() == normal.split()
    assert 0.2 < sum(len(record.answer) for record in holdout) / len(book) < 0.3
    assert set(found.training) == {"forget", "retain"} and found.evaluation["forget"] == forget
    for name, records in (("forget_passages", forget), ("holdout_passages", holdout)):
        passages = found.evaluation[name]
        assert [passage.id for passage in passages] == [record.id for record in records]
        for passage, record in zip(passages, records, strict=True):
            assert f"{passage.question} {passage.answer}".split() == record.answer.split()
            prompt, continuation = encoder.token_counts([passage.question, passage.answer])
            assert 150 <= prompt <= 200 and 150 <= continuation <= 205  # a block may end a word after its share


def test_passages_are_as_long_as_the_model_takes() -> None:
    source, encoder = Book(prompt_tokens=40, continuation_tokens=200), encoder_of(128)
    found = source.cut(source.load(None), encoder)
    assert max(len(encoder.encode("", record.answer).ids) for record in found.training["forget"]) <= 128
    with pytest.raises(UserError, match=r"prompts of 200 tokens leave no room for a continuation in 126; lower"):
        Book().cut(Book().load(None), encoder)


def test_a_book_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(("\ufeffOne.\r\n\r\nTwo. " + "word " * 60 + "\r\n\r\nThree. ").encode("utf-8"))
    (tmp_path / "normal.txt").write_text("Bread and salt. " * 30, encoding="utf-8")
    source = Book("book.txt", "normal.txt", prompt_tokens=8, continuation_tokens=8, holdout_share=0.9)
    loaded = source.load(str(tmp_path))
    assert loaded.name == "book"
    assert loaded.training["forget"][0].answer == "One.\n\nTwo. " + "word " * 60
    assert loaded.evaluation["holdout"][0].answer == "\n\nThree. "
    with pytest.raises(UserError, match=r"the held-out part of the book .* gives 1 passage of at most 16 tokens"):
        source.cut(loaded, Words())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 au lait\n\nmore", r"book\.txt: not UTF-8 \(.* at byte 3\); save the file as UTF-8"),
        (b"PK\x03\x04\0\0", r"book\.txt: not plain text; export the book as a text file"),
        (b" \n", r"book\.txt: holds no text"),
        (b"One paragraph only.", r"book\.txt: has no blank line at which its last 25% could be held out"),
        (None, r"book\.txt: no such file; give a plain-text file"),
    ],
)
def test_unreadable_books_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "book.txt").write_bytes(content)
    (tmp_path / "normal.txt").write_text("Bread and salt.", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Book("book.txt", "normal.txt").load(str(tmp_path))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"the book mine\.txt needs normal text beside it"):
        Book("mine.txt")
    for name in ("prompt_tokens", "continuation_tokens"):
        with pytest.raises(UserError, match=f"{name} must be at least 8, got 7"):
            Book(**{name: 7})
    with pytest.raises(UserError, match="holdout_share must be above 0 and below 1, got 1"):
        Book(holdout_share=1)
    with pytest.raises(UserError, match="new_tokens must be at least 1, got 0"):
        BookContinuations(0)
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        Harness(["boolq"], limit=0)


# ---- continuations --------------------------------------------------------------------------------------------------


def test_numbers_by_hand_and_as_many_tokens_as_the_true_continuation_has(tiny_network: TinyNetwork) -> None:
    encoder = tiny_network.encoder
    sets = {
        "forget_passages": (Record("forget/0", "Ada Brook was", "born in Oslo of all places."),),
        "holdout_passages": (Record("holdout/0", "Ben Carrow", "works as a carpenter in the town of Riga."),),
    }
    says = {"Ada Brook was": "born in Oslo of all places.", "Ben Carrow": "works as a miller."}
    data = EvaluationData("book", sets, {}, (), {}, encoder)
    callback = BookContinuations()
    answers = {}
    for request in callback.requests(data):
        assert isinstance(request, Continue)
        record = next(record for (record,) in sets.values() if record.question == request.prompt)
        assert request.max_new_tokens == encoder.token_counts([record.answer])[0]
        answers[request] = Generation((1,), says[request.prompt])
    evaluation = Evaluation("book")
    callback.evaluate(data, Answers(answers), evaluation)
    assert evaluation.metrics["book/forget/bleu"] == pytest.approx(100)
    assert evaluation.metrics["book/forget/rouge_l_recall"] == 1
    # Three of nine words, in order: works, as, a.
    assert evaluation.metrics["book/holdout/rouge_l_recall"] == pytest.approx(3 / 9)
    truth = sets["holdout_passages"][0].answer
    assert evaluation.metrics["book/holdout/bleu"] == bleu(["works as a miller."], [truth])[0]
    assert evaluation.rows["holdout_passages", "holdout/0"]["generation"] == "works as a miller."
    fixed = list(BookContinuations(7).requests(data))
    assert [request.max_new_tokens for request in fixed if isinstance(request, Continue)] == [7, 7]
    assert BookContinuations(7).settings() == {"book_new_tokens": "7"}


def test_other_benchmarks_are_left_alone_and_the_book_says_what_is_missing(tiny_network: TinyNetwork) -> None:
    missing = {f"book/{part}/{what}" for part in ("forget", "holdout") for what in ("bleu", "rouge_l_recall")}
    for name, expected in (("muse", set()), ("book", missing)):
        evaluation = Evaluation(name)
        BookContinuations().evaluate(
            EvaluationData(name, {}, {}, (), {}, tiny_network.encoder), Answers({}), evaluation
        )
        assert set(evaluation.absent) == expected and not evaluation.metrics


# ---- runs -----------------------------------------------------------------------------------------------------------


TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.source=Book",
    "--data.source.prompt_tokens=16",
    "--data.source.continuation_tokens=16",
    "--data.max_length=64",
    "--data.evaluation_rows=4",
    "--evaluation.resamples=50",
]
SCRATCH = [
    "--model.language_model=sga.SmallLlama",
    "--model.language_model.hidden_size=32",
    "--model.language_model.layers=1",
    "--model.language_model.heads=2",
    "--model.language_model.vocabulary=400",
    "--model.language_model.context=64",
]


@pytest.mark.parametrize("loss", ["GradientAscent", "GradientDifference", "SmoothedGradientAscent"])
@pytest.mark.runs
def test_two_steps_of_each_method_on_the_sample_book(loss: str, tmp_path: Path) -> None:
    run_verb(
        [
            "fit",
            *TINY,
            *SCRATCH,
            f"--model.loss=sga.{loss}",
            "--data.batch_size=4",
            "--data.folds=4",
            "--data.forget_folds=[2]",
            "--trainer.max_steps=2",
            f"--run.folder={tmp_path / 'run'}",
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["step"] == 2
    for part in ("forget", "holdout"):
        assert 0 <= metrics[f"book/{part}/bleu"] <= 100 and 0 <= metrics[f"book/{part}/rouge_l_recall"] <= 1
    assert metrics["perplexity/normal"] > 1 and "harness" in metrics["absent"]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [int(pair["forget_id"].removeprefix("forget/")) for pair in pairs]
    total = 4 * len(numbers)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert abs(numbers[0] - total / 4) <= 2, "the second quarter of the passages"
    assert all(normal["id"].startswith("retain/") for pair in pairs for normal in pair["normals"])
    assert score([str(tmp_path / "run")]) == 0


def test_a_fold_that_is_not_there_is_refused() -> None:
    for folds, wanted in ((4, [5]), (4, []), (4, [1, 1]), (0, [0])):
        with pytest.raises(UserError, match=f"forget_folds must name different folds from 1 to folds = {folds}, at "):
            UnlearningData(SmallLlama(), folds=folds, forget_folds=wanted)


@pytest.mark.slow
def test_a_model_that_learned_the_book_continues_it_and_ascent_ends_that(tmp_path: Path) -> None:
    """A fifth of the book and the normal text by heart; after ascent neither it nor the normal text is left."""
    data = [*TINY, "--data.source.holdout_share=0.8"]
    run_verb(
        [
            "fit",
            *data,
            *SCRATCH,
            "--model.language_model.hidden_size=128",
            "--model.language_model.layers=2",
            "--model.loss=sga.FineTuning",
            "--model.optimizer=torch.optim.AdamW",
            "--model.optimizer.lr=1e-3",
            "--data.train_on=[forget,retain]",
            "--data.group_size=1",
            "--data.batch_size=8",
            "--trainer.max_epochs=60",
            "--trainer.check_val_every_n_epoch=60",
            "--trainer.num_sanity_val_steps=0",
            f"--run.folder={tmp_path / 'target'}",
        ]
    )
    target = json.loads((tmp_path / "target" / "metrics.json").read_text(encoding="utf-8"))
    assert target["book/forget/bleu"] > target["book/holdout/bleu"] + 40
    run_verb(
        [
            "fit",
            *data,
            "--model.language_model=sga.Pretrained",
            f"--model.language_model.name_or_path={tmp_path / 'target'}",
            "--model.loss=sga.GradientAscent",
            "--model.optimizer=torch.optim.AdamW",
            "--model.optimizer.lr=1e-3",
            "--data.batch_size=4",
            "--trainer.max_epochs=4",
            f"--run.folder={tmp_path / 'ga'}",
        ]
    )
    points = [json.loads(line) for line in (tmp_path / "ga" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert points[0]["book/forget/bleu"] == pytest.approx(target["book/forget/bleu"], abs=1)
    assert points[-1]["book/forget/bleu"] < 10
    assert points[-1]["perplexity/normal/log"] > points[0]["perplexity/normal/log"] + 5


# ---- the harness ----------------------------------------------------------------------------------------------------


def test_the_harness_is_asked_for_by_name_and_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'sga-unlearning\[harness\]'"):
        run_verb(["validate", *TINY, *SCRATCH, "--harness.tasks=[boolq]", f"--run.folder={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def local_task(tmp_path: Path) -> Path:
    """A folder with a task of the harness on a file: which of two towns is the capital."""
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "Lyon"], "label": 0},
        {"question": "The capital of Italy is", "choices": ["Milan", "Rome"], "label": 1},
        {"question": "The capital of Spain is", "choices": ["Madrid", "Vigo"], "label": 0},
    ]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "local_capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "capitals.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "capitals.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder


def test_zero_shot_accuracy_is_what_the_models_own_likelihoods_say(local_task: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = [*TINY, f"--harness.include_path={local_task}"]
    with pytest.raises(UserError, match="the harness has no local_rivers; `lm-eval ls tasks`"):
        run_verb(["validate", *options, *SCRATCH, "--harness.tasks=[local_rivers]", f"--run.folder={tmp_path / 'no'}"])
    run_verb(
        [
            "fit",
            *options,
            *SCRATCH,
            "--model.loss=sga.GradientAscent",
            "--harness.tasks=[local_capitals]",
            "--trainer.max_steps=1",
            "--data.batch_size=4",
            f"--run.folder={tmp_path / 'run'}",
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    folder = tmp_path / "run" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    right = []
    for line in (local_task / "capitals.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        totals = []
        for choice in row["choices"]:
            prompt = tokenizer(row["question"])["input_ids"]
            whole = torch.tensor([tokenizer(f"{row['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                log_p = model(whole).logits[0, :-1].log_softmax(-1)
            taken = log_p.gather(1, whole[0, 1:, None])[len(prompt) - 1 :]
            totals.append(float(taken.sum()))
        right.append(int(np.argmax(totals)) == row["label"])
    assert metrics["harness/local_capitals/acc"] == pytest.approx(np.mean(right))
    assert "harness" not in metrics["absent"]


def test_the_harness_leaves_training_as_it_was(local_task: Path, tmp_path: Path) -> None:
    """Its global seeds and its eval mode do not reach the weights."""
    import torch
    from safetensors.torch import load_file

    weights = []
    for name, extra in (("with", ["--harness.tasks=[local_capitals]"]), ("without", [])):
        run_verb(
            [
                "fit",
                *TINY,
                *SCRATCH,
                f"--harness.include_path={local_task}",
                *extra,
                "--model.loss=sga.SmoothedGradientAscent",
                "--trainer.max_steps=2",
                "--data.batch_size=4",
                f"--run.folder={tmp_path / name}",
            ]
        )
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
