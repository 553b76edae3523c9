"""MUSE-News: its files, its prompts, what a short context does to them, and its four numbers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import SMALL_LLAMA, TinyNetwork, all_rows, shipped, training_options
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.callbacks.muse import MUSE, knowmem_example, knowmem_prompt, until_stop
from sga.cli import run_verb
from sga.commands.score import main as score
from sga.data.muse import MUSENews
from sga.data.records import EVALUATION_SETS, Record
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import privleak
from sga.evaluation.requests import Answers, Continue, Generation
from sga.models.small import train_tokenizer


@pytest.fixture(scope="module")
def muse_root() -> Path:
    """The folder with MUSE-News' files."""
    root = os.environ.get("SGA_DATA")
    if not root:
        pytest.skip("SGA_DATA is not set: no MUSE-News files")
    folder = Path(root, "muse_news")
    if not folder.is_dir():
        pytest.skip("SGA_DATA has no folder muse_news")
    return folder


# ---- the published files --------------------------------------------------------------------------------------------


def test_the_published_files_are_read_whole(muse_root: Path) -> None:
    found = MUSENews().load(str(muse_root))
    assert found.name == "muse" and not found.absent
    assert {name: len(records) for name, records in found.evaluation.items()} == dict.fromkeys(
        ("forget", "retain", "holdout", "verbmem", "knowmem_forget", "knowmem_retain"), 100
    )
    assert set(found.evaluation) <= set(EVALUATION_SETS)
    assert {name: len(records) for name, records in found.examples.items()} == {
        "knowmem_forget": 10,
        "knowmem_retain": 10,
    }
    texts = {name: {record.content for record in found.evaluation[name]} for name in ("forget", "retain", "holdout")}
    assert all(len(contents) == 100 for contents in texts.values())
    assert not texts["forget"] & texts["holdout"] and not texts["forget"] & texts["retain"]
    for name, records in found.evaluation.items():
        assert all(record.is_text == (name in texts) for record in records)
        assert len({record.id for record in records}) == 100
    first = json.loads((muse_root / "verbmem" / "forget.json").read_text(encoding="utf-8"))[0]
    assert found.evaluation["verbmem"][0] == Record("verbmem/forget/0", first["prompt"], first["gt"])


def test_the_published_article_without_text_is_left_out_and_the_others_keep_their_index(muse_root: Path) -> None:
    articles = json.loads((muse_root / "raw" / "forget.json").read_text(encoding="utf-8"))
    records = MUSENews().load(str(muse_root)).training["forget"]
    assert len(articles) == 889 and len(records) == 888
    assert [articles[int(record.id.removeprefix("raw/forget/"))] for record in records] == [
        record.answer for record in records
    ]


# ---- a folder of one's own ------------------------------------------------------------------------------------------

FILES: dict[str, list[Any]] = {
    "privleak/forget": [
        f"On Monday the mayor of {town} resigned over the bridge." for town in ("Oslo", "Riga", "York")
    ],
    "privleak/retain2": [f"Snow fell on {town} and nobody was hurt." for town in ("Porto", "Quito", "Turin")],
    "privleak/holdout": [f"On Friday the team of {town} lost its coach again." for town in ("Sofia", "Bonn", "Lima")],
    "verbmem/forget": [
        {"prompt": "On Monday the mayor of", "gt": " Oslo resigned over the bridge."},
        {"prompt": "On Monday the mayor of Riga", "gt": " resigned over the bridge."},
        {"prompt": "On Monday", "gt": " the mayor of York resigned over the bridge."},
    ],
    "knowmem/forget_qa": [
        {"question": "Who resigned?", "answer": "the mayor"},
        {"question": "When did the mayor resign?", "answer": "Monday"},
        {"question": "What over?", "answer": "the bridge"},
    ],
    "knowmem/forget_qa_icl": [{"question": "Who wrote it?", "answer": "Ada"}, {"question": "Where?", "answer": "Rome"}],
    "knowmem/retain2_qa": [
        {"question": "What fell?", "answer": "snow"},
        {"question": "Who was hurt?", "answer": "nobody"},
        {"question": "Where did snow fall?", "answer": "Porto"},
    ],
    "knowmem/retain2_qa_icl": [{"question": "How many?", "answer": "two"}],
    "raw/forget": ["On Monday the mayor of Oslo resigned over the bridge.", "", "The bridge was closed."],
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in MUSE-News' form with a few short rows."""
    return write(tmp_path / "muse_news", FILES)


def test_the_folder_is_found_by_its_name_and_by_its_parents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = MUSENews().load(str(folder))
    assert found.evaluation["knowmem_retain"][1] == Record("knowmem/retain2_qa/1", "Who was hurt?", "nobody")
    assert found.examples["knowmem_forget"][1] == Record("knowmem/forget_qa_icl/1", "Where?", "Rome")
    assert [record.id for record in found.training["forget"]] == ["raw/forget/0", "raw/forget/2"]
    assert found.training["retain"] == found.evaluation["retain"]
    assert MUSENews().load(str(folder.parent)) == found
    monkeypatch.setenv("SGA_DATA", str(folder.parent))
    assert MUSENews().load(None) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("privleak/forget", ["a text", " \n"], r"privleak.forget\.json\[1\]: the text is empty"),
        (
            "privleak/holdout",
            ["a text", {"text": "b"}],
            r"privleak.holdout\.json\[1\]: the text must be a string, got d",
        ),
        ("privleak/retain2", [], r"privleak.retain2\.json: holds no text"),
        ("raw/forget", ["", " "], r"raw.forget\.json: holds no text"),
        ("raw/forget", ["a text", None], r"raw.forget\.json\[1\]: the text must be a string, got NoneType"),
        ("verbmem/forget", [{"prompt": "a", "gt": ""}], r"verbmem.forget\.json\[0\]: 'gt' is empty"),
        ("verbmem/forget", [{"prompt": "a"}], r"verbmem.forget\.json\[0\]: missing 'gt'"),
        ("verbmem/forget", ["a"], r"verbmem.forget\.json\[0\]: expected an object with 'prompt' and 'gt', got str"),
        (
            "knowmem/forget_qa",
            [*FILES["knowmem/forget_qa"], {"question": "", "answer": "a"}],
            r"\[3\]: 'question' is em",
        ),
        ("knowmem/retain2_qa", [{"question": "q", "answer": 7}], r"\[0\]: 'answer' must be a string, got int"),
        ("knowmem/retain2_qa_icl", [], r"knowmem.retain2_qa_icl\.json: holds no record"),
        ("knowmem/forget_qa", {"question": "q"}, r"forget_qa\.json: expected a JSON array, found dict"),
        ("knowmem/forget_qa", '["a",\n"b"', r"forget_qa\.json:2: not JSON"),
    ],
)
def test_malformed_files_are_refused_by_name_and_index(folder: Path, name: str, content: Any, message: str) -> None:
    write(folder, {name: content})
    with pytest.raises(UserError, match=message):
        MUSENews().load(str(folder))


def test_missing_and_unreadable_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "verbmem" / "forget.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match=r"verbmem.forget\.json:1: not UTF-8"):
        MUSENews().load(str(folder))
    (folder / "verbmem" / "forget.json").unlink()
    with pytest.raises(UserError, match=r"verbmem.forget\.json: no such file"):
        MUSENews().load(str(folder))
    with pytest.raises(UserError, match=r"--data\.root .*: no MUSE-News files there"):
        MUSENews().load(str(tmp_path / "nowhere"))


def test_the_hub_gives_the_same_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub calls retain what the files call retain2, and puts texts into a column."""
    asked = []

    def load_dataset(name: str, configuration: str, split: str) -> list[dict[str, str]]:
        asked.append((name, configuration, split))
        path = f"{configuration}/{split}"
        rows = FILES[
            {
                "privleak/retain": "privleak/retain2",
                "knowmem/retain_qa": "knowmem/retain2_qa",
                "knowmem/retain_qa_icl": "knowmem/retain2_qa_icl",
            }.get(path, path)
        ]
        return [{"text": row} if isinstance(row, str) else row for row in rows]

    monkeypatch.delenv("SGA_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert MUSENews().load(None) == MUSENews().load(str(folder))
    assert len(asked) == len(FILES) and {name for name, _, _ in asked} == {"muse-bench/MUSE-News"}


def test_a_hub_out_of_reach_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.delenv("SGA_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"muse-bench/MUSE-News.*no network.*--data\.root FOLDER"):
        MUSENews().load(None)


# ---- prompts and answers --------------------------------------------------------------------------------------------


def data_of(
    encoder: Encoder,
    sets: dict[str, Sequence[tuple[str, str]]],
    examples: Sequence[tuple[str, str]] = (),
    name: str = "muse",
) -> EvaluationData:
    records = {
        set_name: tuple(Record(f"{set_name}/{number}", *pair) for number, pair in enumerate(pairs))
        for set_name, pairs in sets.items()
    }
    shown = tuple(Record(f"example/{number}", *pair) for number, pair in enumerate(examples))
    return EvaluationData(
        name=name,
        sets=records,
        absent={"verbmem": "nobody wrote it down"},
        normals=(),
        settings={},
        encoder=encoder,
        examples={"knowmem_forget": shown},
    )


def evaluated(callback: MUSE, data: EvaluationData, says: Callable[[str], str]) -> Evaluation:
    """The callback's evaluation of a model that says `says(prompt)`."""
    encoder = data.encoder
    answers = {}
    for request in callback.requests(data):
        assert isinstance(request, Continue)
        _, cut = encoder.encode_continued(request.prompt, request.max_new_tokens, request.examples)
        ids = tuple(encoder.tokenizer(says(request.prompt), add_special_tokens=False)["input_ids"])
        answers[request] = Generation(ids, encoder.decode(ids), cut)
    evaluation = Evaluation(data.name)
    callback.evaluate(data, Answers(answers), evaluation)
    return evaluation


def test_questions_come_after_worked_examples_and_end_in_a_space(tiny_network: TinyNetwork) -> None:
    pairs = {
        "knowmem_forget": [("Who won?", "Ada")],
        "knowmem_retain": [("Who lost?", "Ben")],
        "verbmem": [("On", "e")],
    }
    data = data_of(tiny_network.encoder, pairs, examples=[("How many?", "two"), ("Where?", "Rome")])
    assert list(MUSE(verbmem_tokens=20, knowmem_tokens=8).requests(data)) == [
        Continue("On", 20),
        Continue(
            "Question: Who won?\nAnswer: ",
            8,
            ("Question: How many?\nAnswer: two\n\n", "Question: Where?\nAnswer: Rome\n\n"),
        ),
        Continue("Question: Who lost?\nAnswer: ", 8),
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the mayor", "the mayor"),
        (" the mayor\nof Oslo ", "the mayor\nof Oslo"),
        ("the mayor\n\nQuestion: Who won?\nAnswer: Ada", "the mayor"),
        ("the mayor\nQuestion 2: Who won?", "the mayor"),
        ("the mayor Question: Who won?\n\nAda", "the mayor"),
        ("the Questionable mayor", "the Questionable mayor"),
        ("\n\nthe mayor", ""),
        ("Question: the mayor", ""),
        ("", ""),
    ],
)
def test_an_answer_ends_at_the_first_stop_string(tiny_network: TinyNetwork, text: str, answer: str) -> None:
    assert until_stop(text) == answer
    data = data_of(tiny_network.encoder, {"knowmem_forget": [("Who?", "the mayor")]})
    found = evaluated(MUSE(knowmem_tokens=8), data, lambda _: text)
    assert found.rows["knowmem_forget", "knowmem_forget/0"]["generation"] == answer


def test_numbers_by_hand(tiny_network: TinyNetwork) -> None:
    """KnowMem: "the old mayor" for "the mayor" has precision 2/3 and recall 1, F1 = 4/5; "a" has 0: mean 40 of 100.

    No stemmer: "mayors" is not "mayor", F1 = 2 · (1/2 · 1/2) / 1 = 1/2. VerbMem: word for word.
    """
    said = {"Who won? ": "the old mayor", "Who lost? ": "a", "Who ran? ": "the mayors"}
    data = data_of(
        tiny_network.encoder,
        {
            "knowmem_forget": [("Who won?", "the mayor"), ("Who lost?", "Ben")],
            "knowmem_retain": [("Who ran?", "the mayor")],
            "verbmem": [("On Monday", "the mayor left")],
        },
    )

    def says(prompt: str) -> str:
        asked = prompt.removeprefix("Question: ").replace("\nAnswer:", "")
        return said.get(asked, "the mayor left\n\nfor Rome")

    found = evaluated(MUSE(verbmem_tokens=90, knowmem_tokens=8), data, says)
    assert found.metrics["muse/knowmem_forget"] == pytest.approx(40, abs=1e-12)
    assert found.metrics["muse/knowmem_retain"] == pytest.approx(50, abs=1e-12)
    assert found.metrics["muse/verbmem"] == pytest.approx(100 * 2 * (3 / 5) / (1 + 3 / 5), abs=1e-12), "no stop strings"
    assert found.metrics["muse/knowmem_forget/ci_low"] == 0 and found.metrics["muse/knowmem_forget/ci_high"] == 80
    assert found.of_set("knowmem_forget")[0] == {
        "rouge_l_fmeasure": pytest.approx(0.8, abs=1e-12),
        "generation": "the old mayor",
    }
    assert not found.absent


def test_the_true_continuation_is_cut_to_as_many_tokens_the_first_one_included(tiny_network: TinyNetwork) -> None:
    """Whoever gives the first n − 1 text tokens gets 100: the beginning-of-sequence token is one of the n."""
    encoder = tiny_network.encoder
    truth = "the mayor of Oslo was born in Riga and works as a baker for the judge of York"
    ids = encoder.tokenizer(truth, add_special_tokens=False)["input_ids"]
    assert len(ids) > 20
    data = data_of(encoder, {"verbmem": [("On Monday", truth)]})
    for tokens in (2, 10, 19):
        beginning = encoder.tokenizer.decode(ids[: tokens - 1])
        assert encoder.first_tokens(truth, tokens) == beginning.strip()
        found = evaluated(MUSE(verbmem_tokens=tokens), data, lambda _, text=beginning: text)
        assert found.metrics["muse/verbmem"] == pytest.approx(100, abs=1e-9)
    whole = evaluated(MUSE(verbmem_tokens=19), data, lambda _: truth)
    assert whole.metrics["muse/verbmem"] < 90, "negative control: the whole is more than the cut truth"


def test_other_benchmarks_are_left_alone_and_muse_says_what_is_not_there(tiny_network: TinyNetwork) -> None:
    other = evaluated(MUSE(), data_of(tiny_network.encoder, {}, name="own"), str)
    assert not other.metrics and not other.absent and not other.rows and not other.notes
    muse = evaluated(MUSE(), data_of(tiny_network.encoder, {}), str)
    assert muse.absent == {
        "muse/verbmem": "nobody wrote it down",
        "muse/knowmem_forget": "there is no knowmem_forget set",
        "muse/knowmem_retain": "there is no knowmem_retain set",
    }


@pytest.mark.parametrize("name", ["verbmem_tokens", "knowmem_tokens"])
def test_no_token_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
        MUSE(**{name: 0})


# ---- short contexts -------------------------------------------------------------------------------------------------


def test_examples_give_way_from_the_front_and_no_more_than_needed(tiny_network: TinyNetwork) -> None:
    encoder = Encoder(tiny_network.encoder.tokenizer, PlainTemplate(), max_length=400)
    examples = [
        knowmem_example(Record("", f"Who lives in {town}?", "Ada")) for town in ("Oslo", "Riga", "York", "Rome")
    ]
    prompt = knowmem_prompt(Record("", "Who won?", "Ben"))

    def length(first: int) -> int:
        return len(encoder.tokenizer("".join(examples[first:]) + prompt)["input_ids"])

    for first in range(5):
        for spare in (0, 1):  # the very length that fits, and one more
            room = length(first) + spare
            ids, cut = encoder.encode_continued(prompt, encoder.max_length - room, examples)
            assert len(ids) == length(first) and cut == (first > 0)
            assert encoder.decode(ids, strip=False) == "".join(examples[first:]) + prompt
    ids, cut = encoder.encode_continued(prompt, encoder.max_length - length(4) + 1, examples)
    assert cut and ids == tuple(encoder.tokenizer(prompt)["input_ids"][1:]), "then the prompt's own beginning"


def test_cut_prompts_are_counted(tiny_network: TinyNetwork) -> None:
    """Context 96: of the 64 tokens beside 32 new ones, long questions and examples take more than there are."""
    encoder = tiny_network.encoder
    long = "Ada Brook was born in Oslo. " * 20
    data = data_of(
        encoder,
        {"verbmem": [(long, "a"), ("On", "a"), (long + "x", "a")], "knowmem_forget": [("Who?", "a"), ("What?", "b")]},
        examples=[(long, "a"), ("Where?", "Rome")],
    )
    (verbmem, short, *_), knowmem = list(MUSE(32, 32).requests(data))[:3], list(MUSE(32, 32).requests(data))[3]
    assert isinstance(verbmem, Continue) and isinstance(short, Continue) and isinstance(knowmem, Continue)
    ids, cut = encoder.encode_continued(verbmem.prompt, 32)
    assert cut and ids == tuple(encoder.tokenizer(long)["input_ids"][-64:])
    ids, cut = encoder.encode_continued(knowmem.prompt, 32, knowmem.examples)
    assert cut and encoder.decode(ids) == "Question: Where?\nAnswer: Rome\n\nQuestion: Who?\nAnswer:"
    assert evaluated(MUSE(32, 32), data, lambda _: "a").notes == [
        "2 of 3 verbmem prompts lost their beginning to leave room for new tokens in 96, the context",
        "2 of 2 knowmem_forget prompts lost their first examples to leave room for new tokens in 96, the context",
    ]
    with pytest.raises(UserError, match="128 new tokens leave no room for a prompt in max_length = 96"):
        evaluated(MUSE(), data, lambda _: "a")


# ---- runs -----------------------------------------------------------------------------------------------------------

OPTIONS = [
    *shipped("muse-llama-2-7b", "evaluate"),
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
NUMBERS = ("muse/verbmem", "muse/knowmem_forget", "muse/knowmem_retain", "muse/mia/min_k")


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    settings: dict[str, str | None]

    @classmethod
    def read(cls, folder: Path) -> Run:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return cls(
            json.loads((folder / "metrics.json").read_text(encoding="utf-8")), all_rows(folder), run["evaluation"]
        )

    def of_set(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["set"] == name]


def test_a_small_model_on_a_small_folder(folder: Path, tmp_path: Path) -> None:
    """Without outside data: four numbers, one reason for each thing that texts lack, no text where none is wanted."""
    options = [
        *OPTIONS,
        *SMALL_LLAMA,
        f"--data.root={folder}",
        "--muse.verbmem_tokens=8",
        "--muse.knowmem_tokens=4",
        "--membership_inference.reference_auc=0.5",
        "--run.texts=false",
        f"--run.folder={tmp_path / 'run'}",
    ]
    run_verb(["validate", *options])
    run = Run.read(tmp_path / "run")
    for name in (*NUMBERS, "muse/privleak"):
        assert run.metrics[f"{name}/ci_low"] <= run.metrics[name] <= run.metrics[f"{name}/ci_high"]
    assert run.metrics["muse/privleak_reference_auc"] == 0.5
    assert run.metrics["absent"] == {
        "muse/forget_quality": "plain text has no wrong answers to compare with",
        "muse/model_utility": "plain text has no question to answer",
        "muse/model_utility_unseen": "plain text has no question to answer",
        "muse/mia/reference": "no reference with losses of forget and holdout (--evaluation.reference)",
        "perplexity/normal": "these groups have no normal samples",
    }
    assert run.metrics["notes"] == [], "nothing was cut"
    assert {row["set"]: len(run.of_set(row["set"])) for row in run.rows} == dict.fromkeys(
        ("forget", "retain", "holdout", "verbmem", "knowmem_forget", "knowmem_retain"), 3
    )
    assert run.metrics["muse/knowmem_retain"] == pytest.approx(
        100 * np.mean([row["rouge_l_fmeasure"] for row in run.of_set("knowmem_retain")])
    )
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "run").glob("*.json*"))
    assert "mayor" not in written and "generation" not in written


@pytest.fixture(scope="module")
def tiny_options(muse_root: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four rows of each set, for a model whose context of 512 is shorter than MUSE's prompts and texts.

    Ten of the articles to train on, which are cut into blocks though nothing is trained.
    """
    root = shutil.copytree(muse_root, tmp_path_factory.mktemp("some") / "muse_news")
    articles = json.loads((root / "raw" / "forget.json").read_text(encoding="utf-8"))
    write(root, {"raw/forget": articles[:10]})
    return [
        *OPTIONS,
        f"--data.root={root}",
        "--data.evaluation_rows=4",
        "--model.language_model.tokenizer_name_or_path=null",
    ]


@pytest.fixture(scope="module")
def retrained(tiny_options: list[str], tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of tiny-tofu/retain, without a reference."""
    folder = tmp_path_factory.mktemp("muse") / "retrained"
    model = f"--model.language_model.name_or_path={tiny_models / 'retain'}"
    run_verb(["validate", *tiny_options, model, f"--run.folder={folder}"])
    return folder


def test_three_numbers_without_a_reference_and_the_reason_for_the_fourth(retrained: Path) -> None:
    run = Run.read(retrained)
    for name in NUMBERS:
        assert run.metrics[f"{name}/ci_low"] <= run.metrics[name] <= run.metrics[f"{name}/ci_high"]
    assert "muse/privleak" not in run.metrics
    assert run.metrics["absent"]["muse/privleak"].startswith("no reference: give a retrained model's run")
    assert run.metrics["notes"] == [
        *(f"4 of 4 {name} texts were cut to the first 512 tokens, the context" for name in ("forget", "retain")),
        "4 of 4 holdout texts were cut to the first 512 tokens, the context",
        "4 of 4 verbmem prompts lost their beginning to leave room for new tokens in 512, the context",
        *(
            f"4 of 4 knowmem_{name} prompts lost their first examples to leave room for new tokens in 512, the context"
            for name in ("forget", "retain")
        ),
    ]


def test_a_run_scores_as_it_was_evaluated_and_no_metric_of_tofu_is_missed(retrained: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored.json"
    assert score([str(retrained), f"--output={output}"]) == 0
    scored, run = json.loads(output.read_text(encoding="utf-8")), Run.read(retrained)
    for name, value in run.metrics.items():
        if name.startswith("muse/") and not name.startswith("muse/forget/avg_nll"):
            assert scored["metrics"][name] == pytest.approx(value, rel=1e-9), name
    assert not any("utility" in name or "truth_ratio" in name for name in scored["absent"])


def test_privleak_is_against_the_retrained_model(
    tiny_options: list[str], tiny_models: Path, retrained: Path, tmp_path: Path
) -> None:
    """Zero for the reference itself, and for another model what the two AUCs give."""
    reference = Run.read(retrained).metrics["muse/mia/min_k"]
    for model in ("retain", "full"):
        run_verb(
            [
                "validate",
                *tiny_options,
                f"--model.language_model.name_or_path={tiny_models / model}",
                f"--evaluation.reference={retrained}",
                f"--evaluation.answers={retrained.parent / '.answers'}",
                f"--run.folder={tmp_path / model}",
            ]
        )
        metrics = Run.read(tmp_path / model).metrics
        assert metrics["muse/privleak_reference_auc"] == reference
        assert metrics["muse/privleak"] == pytest.approx(privleak(metrics["muse/mia/min_k"], reference), abs=1e-9)
        assert "muse/mia/reference" in metrics
        assert set(metrics["absent"]) == {
            "muse/forget_quality",
            "muse/model_utility",
            "muse/model_utility_unseen",
            "perplexity/normal",
        }
    assert Run.read(tmp_path / "retain").metrics["muse/privleak"] == 0


def test_privleak_against_an_assumed_auc(
    tiny_options: list[str], tiny_models: Path, retrained: Path, tmp_path: Path
) -> None:
    """The answers are those of the first run, kept beside its folder."""
    run_verb(
        [
            "validate",
            *tiny_options,
            f"--model.language_model.name_or_path={tiny_models / 'retain'}",
            "--membership_inference.reference_auc=0.5",
            f"--evaluation.answers={retrained.parent / '.answers'}",
            f"--run.folder={tmp_path / 'run'}",
        ]
    )
    metrics, first = Run.read(tmp_path / "run").metrics, Run.read(retrained).metrics
    assert {name: metrics[name] for name in NUMBERS} == {name: first[name] for name in NUMBERS}
    assert metrics["muse/privleak"] == pytest.approx(100 * (0.5 - first["muse/mia/min_k"]) / 0.5, abs=1e-9)
    assert metrics["muse/privleak_reference_auc"] == 0.5


def test_a_reference_of_another_length_is_refused(
    tiny_options: list[str], tiny_models: Path, retrained: Path, tmp_path: Path
) -> None:
    """Texts are cut to it, so its AUC is that of other texts."""
    with pytest.raises(UserError, match="text_length is '512' there and '300' here"):
        run_verb(
            [
                "validate",
                *tiny_options,
                f"--model.language_model.name_or_path={tiny_models / 'retain'}",
                f"--evaluation.reference={retrained}",
                "--data.max_length=300",
                f"--run.folder={tmp_path / 'run'}",
            ]
        )


@pytest.fixture(scope="module")
def says(tiny_models: Path) -> Callable[[Sequence[int], int], str]:
    """What Hugging Face's own `generate` makes of a prompt's tokens with tiny-tofu/retain."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "retain")
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "retain").eval()

    def said(ids: Sequence[int], tokens: int) -> str:
        greedy = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=tokenizer.eos_token_id
        )
        new = model.generate(torch.tensor([ids]), generation_config=greedy)[0, len(ids) :]
        return str(tokenizer.decode(new, skip_special_tokens=True))

    return said


def test_verbmem_is_what_rouge_score_says_of_the_models_own_generation(
    retrained: Path, says: Callable[[Sequence[int], int], str], tiny_models: Path, muse_root: Path
) -> None:
    """The last 512 − 128 tokens of a prompt, 128 new ones; the truth's first 128 ids with ``<s>``."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "retain")
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    items = json.loads((muse_root / "verbmem" / "forget.json").read_text(encoding="utf-8"))
    for row in Run.read(retrained).of_set("verbmem")[:3]:
        item = items[int(row["id"].rsplit("/", 1)[1])]
        said = says(tokenizer(item["prompt"])["input_ids"][-384:], 128)
        truth = tokenizer.decode(tokenizer(item["gt"])["input_ids"][:128], skip_special_tokens=True)
        assert row["generation"] == said.strip()
        assert row["rouge_l_fmeasure"] == pytest.approx(scorer.score(truth, said)["rougeL"].fmeasure, abs=1e-12)


def test_knowmem_is_the_models_own_answer_after_the_examples_that_fit(
    retrained: Path, says: Callable[[Sequence[int], int], str], tiny_models: Path, muse_root: Path
) -> None:
    """Of the ten examples those at the end, as many as leave room for 32 of 512 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "retain")
    for name, file in (("knowmem_forget", "forget_qa"), ("knowmem_retain", "retain2_qa")):
        items, examples = (
            json.loads((muse_root / "knowmem" / f"{part}.json").read_text(encoding="utf-8"))
            for part in (file, f"{file}_icl")
        )
        shown = [f"Question: {item['question']}\nAnswer: {item['answer']}\n\n" for item in examples]
        for row in Run.read(retrained).of_set(name)[:3]:
            prompt = f"Question: {items[int(row['id'].rsplit('/', 1)[1])]['question']}\nAnswer: "
            tried = [tokenizer("".join(shown[first:]) + prompt)["input_ids"] for first in range(11)]
            lengths = [len(ids) for ids in tried]
            assert lengths[0] > 480 > lengths[10]
            said = says(next(ids for ids in tried if len(ids) <= 480), 32)
            assert row["generation"] == said.split("\n\n")[0].split("\nQuestion")[0].split("Question:")[0].strip()


def test_min_k_is_over_every_token_of_the_text_but_the_first(
    retrained: Path, tiny_models: Path, muse_root: Path
) -> None:
    """511 tokens are scored of the first 512, no end of sequence among them: the lowest int(0.4 · 511) = 204 count."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "retain")
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "retain").eval()
    run = Run.read(retrained)
    for name in ("forget", "holdout"):
        texts = json.loads((muse_root / "privleak" / f"{name}.json").read_text(encoding="utf-8"))
        for row in run.of_set(name):
            ids = torch.tensor([tokenizer(texts[int(row["id"].rsplit("/", 1)[1])])["input_ids"][:512]])
            with torch.no_grad():
                log_p = model(ids).logits[0, :-1].double().log_softmax(dim=-1)
            of_tokens = log_p.gather(1, ids[0, 1:, None])[:, 0].numpy()
            assert len(of_tokens) == 511
            assert row["min_k"] == pytest.approx(-np.sort(of_tokens)[:204].mean(), abs=1e-4)  # float32 logits
            assert row["avg_nll"] == pytest.approx(-of_tokens.mean(), abs=1e-4)
    scores = [[row["min_k"] for row in run.of_set(name)] for name in ("forget", "holdout")]
    assert run.metrics["muse/mia/min_k"] == pytest.approx(
        roc_auc_score([1] * 4 + [0] * 4, [-score for score in (*scores[0], *scores[1])])
    )


# ---- training -------------------------------------------------------------------------------------------------------


def encoder_for(folder: Path, max_length: int) -> Encoder:
    records = MUSENews().load(str(folder)).training
    texts = [record.answer for split in records.values() for record in split]
    return Encoder(train_tokenizer(texts, 260, max_length), PlainTemplate(), max_length)


def test_training_texts_are_cut_into_blocks_of_one_article_each(folder: Path) -> None:
    source, encoder = MUSENews(block_tokens=32), encoder_for(folder, 64)
    loaded = source.load(str(folder))
    found = source.cut(loaded, encoder)
    for split, records in found.training.items():
        assert len(records) > len(loaded.training[split])
        assert max(len(encoder.encode("", record.answer).ids) for record in records) <= 32
        assert all(record.is_text for record in records)
        for article in loaded.training[split]:
            parts = [record.answer for record in records if record.id.rpartition("/")[0] == article.id]
            assert " ".join(parts).split() == article.answer.split()
    assert found.evaluation == loaded.evaluation, "evaluation texts stay whole"
    assert MUSENews().cut(loaded, encoder_for(folder, 32)).training == found.training, "a short context lowers it"
    with pytest.raises(UserError, match="block_tokens must be at least 16, got 8"):
        MUSENews(block_tokens=8)


def test_a_subset_and_the_rows_that_belong_to_it(folder: Path) -> None:
    """Of the continuations only the first one stands in the first two texts as it is, white space apart."""
    write(
        folder, {"privleak/forget": ["On Monday the  mayor of\nOslo resigned over the bridge.", "Rain.", "More rain."]}
    )
    rows = [{"prompt": "On", "gt": " Oslo resigned over the bridge."}, {"prompt": "a", "gt": "More rain."}]
    write(folder, {"verbmem/forget": rows})
    found = MUSENews(forget="privleak/forget", texts=2).load(str(folder))
    assert found.training == {"forget": found.evaluation["forget"], "retain": found.evaluation["retain"]}
    assert [len(found.evaluation[name]) for name in ("forget", "retain", "holdout")] == [2, 2, 2]
    assert [record.id for record in found.evaluation["verbmem"]] == ["verbmem/forget/0"]
    assert len(MUSENews(forget="privleak/forget").load(str(folder)).evaluation["verbmem"]) == 2
    write(folder, {"verbmem/forget": [{"prompt": "On", "gt": "something else"}]})
    none = MUSENews(forget="privleak/forget").load(str(folder))
    assert "verbmem" not in none.evaluation and "privleak/forget" in none.absent["verbmem"]
    with pytest.raises(UserError, match="texts must be at least 2, got 1"):
        MUSENews(texts=1)


def test_other_files_of_muse_are_read_where_they_are_and_named_where_they_are_not(folder: Path) -> None:
    with pytest.raises(UserError, match=r"raw.retain1\.json: no such file.*--data\.source\.retain name are files too"):
        MUSENews(retain="raw/retain1").load(str(folder))
    write(folder, {"raw/retain1": ["A calm day."], "sust/forget_2": ["The second request."]})
    found = MUSENews(forget="sust/forget_2", retain="raw/retain1").load(str(folder))
    assert [record.id for split in found.training.values() for record in split] == ["sust/forget_2/0", "raw/retain1/0"]


@pytest.mark.runs
def test_blocks_of_the_published_articles(muse_root: Path) -> None:
    """Every word of them in blocks that training takes; an article that fits is one block."""
    source = MUSENews()
    loaded = source.load(str(muse_root))
    loaded = replace(loaded, training={**loaded.training, "forget": loaded.training["forget"][:50]})
    encoder = Encoder(train_tokenizer([loaded.training["retain"][0].answer], 1000, 2048), PlainTemplate(), 2048)
    found = source.cut(loaded, encoder)
    counts = encoder.token_counts([record.answer for record in loaded.training["forget"]])
    lengths = [len(encoder.encode("", record.answer).ids) for record in found.training["forget"]]
    assert max(lengths) <= 2048
    for article, count in zip(loaded.training["forget"], counts, strict=True):
        blocks = [record for record in found.training["forget"] if record.id.rpartition("/")[0] == article.id]
        assert len(blocks) == 1 if count <= 2046 else len(blocks) > 1
    words = [word for record in found.training["forget"] for word in record.answer.split()]
    assert words == [word for record in loaded.training["forget"] for word in record.answer.split()]


SMALL = [
    "--data.source=MUSENews",
    "--data.max_length=128",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--evaluation.resamples=200",
]


@pytest.mark.parametrize("loss", ["GradientAscent", "GradientDifference", "SmoothedGradientAscent"])
@pytest.mark.runs
def test_two_steps_of_each_method(folder: Path, tmp_path: Path, loss: str) -> None:
    run_verb(
        [
            "fit",
            *SMALL,
            *SMALL_LLAMA,
            f"--data.root={folder}",
            "--data.source.block_tokens=16",
            "--data.group_size=2",
            "--data.batch_size=2",
            f"--model.loss=sga.{loss}",
            "--muse.verbmem_tokens=8",
            "--muse.knowmem_tokens=8",
            "--trainer.max_steps=2",
            f"--run.folder={tmp_path / 'run'}",
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["step"] == 2
    assert all(0 <= metrics[f"muse/{name}"] <= 100 for name in ("verbmem", "knowmem_forget", "knowmem_retain"))
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(pair["forget_id"].startswith("raw/forget/") for pair in pairs)
    assert all(normal["id"].startswith("privleak/retain2/") for pair in pairs for normal in pair["normals"])


@pytest.mark.slow
def test_end_to_end_the_target_leaks_and_a_model_retrained_with_another_seed_does_not(
    muse_root: Path, tmp_path: Path
) -> None:
    """A tiny model from scratch on 8 + 8 texts' beginnings; then ascent, which ends the leak."""
    files = {}
    for name in FILES:
        rows = json.loads((muse_root / f"{name}.json").read_text(encoding="utf-8"))
        files[name] = [row[:300] for row in rows[:8]] if name.startswith("privleak") else rows[:4]
    files["verbmem/forget"] = [{"prompt": text[:150], "gt": text[150:]} for text in files["privleak/forget"]]
    options = [
        *SMALL,
        f"--data.root={write(tmp_path / 'muse_news', files)}",
        "--data.source.forget=privleak/forget",
        "--muse.verbmem_tokens=48",
        "--muse.knowmem_tokens=8",
    ]
    scratch = [*SMALL_LLAMA, "--model.language_model.hidden_size=64", "--model.language_model.vocabulary=600"]

    def learned(name: str, splits: str, *more: str) -> dict[str, Any]:
        folder = tmp_path / name
        training = [
            *training_options(50),
            "--data.batch_size=4",
            f"--data.train_on={splits}",
        ]
        run_verb(["fit", *options, *scratch, *training, *more, f"--run.folder={folder}"])
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found

    learned("retain", "[retain]", "--run.role=retain")
    reference = f"--evaluation.reference={tmp_path / 'retain'}"
    again = learned("again", "[retain]", "--seed_everything=1", reference)
    target = learned("target", "[forget,retain]", reference)
    assert target["muse/privleak"] < -50 and target["muse/privleak/ci_high"] < 0
    assert again["muse/privleak/ci_low"] < 0 < again["muse/privleak/ci_high"]
    assert target["muse/verbmem"] > again["muse/verbmem"] + 10
    run_verb(
        [
            "fit",
            *options,
            reference,
            "--model.language_model=sga.Pretrained",
            f"--model.language_model.name_or_path={tmp_path / 'target'}",
            "--model.loss=sga.GradientAscent",
            "--model.optimizer=torch.optim.AdamW",
            "--model.optimizer.lr=5e-3",
            "--data.batch_size=4",
            "--trainer.max_epochs=4",
            f"--run.folder={tmp_path / 'ga'}",
        ]
    )
    after = json.loads((tmp_path / "ga" / "metrics.json").read_text(encoding="utf-8"))
    assert after["muse/privleak"] > target["muse/privleak"] + 50
    assert after["muse/verbmem"] < target["muse/verbmem"] / 2
