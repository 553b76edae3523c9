"""Fluency by a classifier: a small one, trained here to tell sentences from shuffled words, in a run and by itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from sga.callbacks.fluency import Fluency
from sga.cli import run_verb
from sga.commands.score import score_log
from sga.data.authors import Authors
from sga.errors import UserError
from sga.evaluation.metrics import relative_utility, utility_score
from sga.models.classifier import FluencyClassifier
from sga.runs.folder import RunFolder
from sga.runs.logs import read_log


def sentences(unseen: bool) -> list[str]:
    """Answers of the built-in authors: 40 for the test (every tenth), the others to train on."""
    benchmark = Authors(forget_authors=2, retain_authors=18).load(None)
    answers = [record.answer for record in (*benchmark.training["forget"], *benchmark.training["retain"])]
    return [answer for index, answer in enumerate(answers) if (index % 10 == 3) == unseen]


def shuffled(text: str, seed: int) -> str:
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small BERT, trained for some seconds on rows (clean) and on the same words in another order."""
    folder = tmp_path_factory.mktemp("classifier")
    clean = sentences(unseen=False)
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(clean, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0, id2label={0: "salad", 1: "clean"},
        label2id={"salad": 0, "clean": 1},
    )  # fmt: skip
    network = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(8):
        texts = [(text, 1) for text in clean] + [(shuffled(text, epoch), 0) for text in clean]
        random.Random(epoch).shuffle(texts)
        for start in range(0, len(texts), 32):
            part = texts[start : start + 32]
            batch = tokenizer([text for text, _ in part], padding=True, truncation=True, return_tensors="pt")
            loss = network(**batch, labels=torch.tensor([label for _, label in part])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_tells_unseen_sentences_from_shuffled_words(classifier: Path) -> None:
    unseen = sentences(unseen=True)
    judge = FluencyClassifier(str(classifier), "clean")
    clean, salad = judge.probabilities(unseen), judge.probabilities([shuffled(text, 9) for text in unseen])
    assert sum(clean) / len(unseen) > 0.7 > 0.3 > sum(salad) / len(unseen)
    other = FluencyClassifier(str(classifier), "salad").probabilities(unseen)
    assert [a + b for a, b in zip(clean, other, strict=True)] == pytest.approx([1.0] * len(unseen), abs=1e-12)
    alone = [judge.probabilities([text])[0] for text in unseen]
    assert clean == pytest.approx(alone, abs=1e-5), "padding and order change nothing"
    long = " ".join(unseen)  # beyond the 64 positions of the classifier
    assert judge.probabilities([long]) == pytest.approx(judge.probabilities([" ".join(long.split()[:80])]), abs=1e-9)
    assert judge.probabilities(["", " \n", unseen[0]]) == pytest.approx([0.0, 0.0, alone[0]], abs=1e-5)


def test_a_model_that_is_no_classifier_is_refused_with_the_cure(
    classifier: Path, own_target: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no label 'fluent' beside others; its labels: salad, clean"):
        FluencyClassifier(str(classifier), "fluent")
    with pytest.raises(UserError, match="not a sequence classifier"):
        FluencyClassifier(str(tmp_path), "clean")
    config = BertConfig.from_pretrained(classifier)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((classifier / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((classifier / "tokenizer_config.json").read_bytes())
    with pytest.raises(UserError, match=r"weights are missing \(classifier.bias"):
        FluencyClassifier(str(tmp_path), "clean")
    for half in ({"classifier": "folder"}, {"classifier_label": "clean"}):
        with pytest.raises(UserError, match="belong together"):
            Fluency(**half)


def test_the_composites_utility_takes_it_and_says_so(
    unlearn_options: list[str], classifier: Path, tmp_path: Path
) -> None:
    options = [f"--fluency.classifier={classifier}", "--fluency.classifier_label=clean"]
    run_verb(["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", "--trainer.max_epochs=1", *options])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    start, last = (json.loads(line) for line in (lines[0], lines[-1]))
    rows = [row for row in RunFolder(tmp_path / "run").row_dicts(last["step"]) if row["set"] == "forget"]
    shares = [row["classifier_fluency"] for row in rows]
    answers = [row["generation"] for row in rows]
    assert shares == pytest.approx(FluencyClassifier(str(classifier), "clean").probabilities(answers), abs=1e-5)
    name = next(name.partition("/")[0] for name in last if name.endswith("/composite/utility"))
    fluency = last[f"{name}/forget/classifier_fluency"]
    assert fluency == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert last[f"{name}/composite/classifier_fluency"] == fluency and f"{name}/composite/ngram_fluency" not in last
    utility, full = (
        utility_score(model_utility=one[f"{name}/model_utility"], fluency=one[f"{name}/forget/classifier_fluency"])
        for one in (last, start)
    )
    assert last[f"{name}/composite/utility"] == pytest.approx(utility, abs=1e-12)
    assert last[f"{name}/composite/relative_utility"] == pytest.approx(relative_utility(utility, full), abs=1e-12)
    scored = score_log(read_log(tmp_path / "run"), full=read_log(tmp_path / "run", step=0)).metrics
    for part in ("classifier_fluency", "utility", "relative_utility"):
        assert scored[f"{name}/composite/{part}"] == pytest.approx(last[f"{name}/composite/{part}"], abs=1e-9)
    info = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert info["evaluation"]["fluency_classifier"] == f"{classifier.name}: clean"
