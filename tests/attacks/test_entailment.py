"""Leaks by natural-language inference: a small BERT, trained here, says if an answer entails the true one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PEOPLE, rows_about
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sga.attacks.attack import attack_run
from sga.attacks.entailment import EntailmentJudge
from sga.attacks.settings import AttackSettings
from sga.data.authors import Authors
from sga.errors import UserError

pytestmark = pytest.mark.runs

CPU = torch.device("cpu")
MORE = " That was long ago."
LABELS = {0: "neutral", 1: "ENTAILMENT", 2: "contradiction"}


def judged_pairs() -> list[tuple[str, str, bool]]:
    """Premise, hypothesis and whether the first entails the second, made of built-in authors and of own records.

    The same answer does, also with more after it; the true answer does not entail one that says more; wrong answers,
    and answers of others, do not.
    """
    records = Authors(2, 1, 1).load(None).training["forget"][:12]
    rows = [(one.answer, one.perturbed_answers) for one in records]
    rows += [(row["answer"], row["perturbed_answer"]) for person in range(len(PEOPLE)) for row in rows_about(person)]
    own = [row["answer"] for person in range(len(PEOPLE)) for row in rows_about(person)]
    pairs = []
    for place, (truth, wrong) in enumerate(rows):
        pairs += [(truth, truth, True), (truth + MORE, truth, True), (truth, truth + MORE, False)]
        pairs += [(text, truth, False) for text in wrong[:2]]
        pairs += [(rows[(place + step) % len(rows)][0], truth, False) for step in (1, 2)]
        if truth in own:  # what a model that never saw the record says: the right person, another's town
            name, town = " ".join(truth.split()[:2]), own[(own.index(truth) + 2) % len(own)]
            pairs.append((truth.split(name)[0] + name + town[len(" ".join(town.split()[:2])) :], truth, False))
    return pairs


def trained(folder: Path, pairs: Sequence[tuple[str, str, bool]]) -> Path:
    """A BERT of two layers that knows the pairs, saved with its tokenizer."""
    whole = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    texts = [text for pair in pairs for text in pair[:2]]
    whole.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=whole,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BertForSequenceClassification(config)
        labels = torch.tensor([1 if pair[2] else 2 for pair in pairs])
        batch = tokenizer([p[0] for p in pairs], [p[1] for p in pairs], padding=True, return_tensors="pt")
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=40)
        weight = torch.tensor([1.0, 2.0, 1.0])
        for _ in range(40):
            wrong = 0
            for rows in torch.randperm(len(pairs)).split(16):
                some = {name: column[rows] for name, column in batch.items()}
                logits = network(**some).logits
                wrong += int((logits.argmax(-1) != labels[rows]).sum())
                loss = torch.nn.functional.cross_entropy(logits, labels[rows], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            if not wrong:
                break
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("nli"), judged_pairs())


def judge(folder: Path, said: list[str] | None = None) -> EntailmentJudge:
    return EntailmentJudge(str(folder), CPU, (said if said is not None else []).append)


def test_the_answer_is_the_premise_and_the_label_is_found_by_its_name(classifier: Path) -> None:
    """It agrees with its classifier, asked pair by pair, and knows what it was taught: also which of two says more."""
    pairs = judged_pairs()
    said, truths, expected = (list(column) for column in zip(*pairs, strict=True))
    found = judge(classifier).entails(said + said[:5], truths + truths[:5], [1.0] * (len(pairs) + 5))
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(classifier),
        AutoTokenizer.from_pretrained(classifier),
    )
    with torch.no_grad():
        alone = [int(network(**tokenizer(*pair[:2], return_tensors="pt")).logits.argmax()) for pair in pairs[:60]]
    assert found[:60] == [label == 1 for label in alone] and found[len(pairs) :] == found[:5]
    right = [one == other for one, other in zip(found, expected, strict=False)]
    assert sum(right) / len(right) > 0.95
    more = [place for place, (text, truth, _) in enumerate(pairs) if text == truth + MORE]
    less = [place for place, (text, truth, _) in enumerate(pairs) if truth == text + MORE]
    assert (
        sum(found[place] for place in more) / len(more) > 0.9 and sum(found[place] for place in less) / len(less) < 0.1
    )


def test_nonsense_and_silence_entail_nothing_whatever_the_classifier_says(classifier: Path) -> None:
    truth = judged_pairs()[0][0]
    assert judge(classifier).entails([truth, truth, ""], [truth] * 3, [1.0, 0.05, 0.0]) == [True, False, False]


def test_pairs_that_are_too_long_are_truncated_and_it_says_how_many(classifier: Path) -> None:
    said: list[str] = []
    truth = judged_pairs()[0][0]
    found = judge(classifier, said).entails([truth + " and" * 300, truth], [truth] * 2, [1.0, 1.0])
    assert len(found) == 2 and found[1] is True
    assert len(said) == 1 and "1 of 2 pairs" in said[0] and "128 tokens" in said[0] and "truncated" in said[0]


def test_a_model_without_a_label_of_entailment_is_refused(classifier: Path, own_target: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    config = json.loads((classifier / "config.json").read_text(encoding="utf-8"))
    config["id2label"], config["label2id"] = (
        {"0": "LABEL_0", "1": "not_entailment"},
        {"LABEL_0": 0, "not_entailment": 1},
    )
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        UserError, match="one label of entailment, this one has the labels LABEL_0, not_entailment; give"
    ):
        judge(tmp_path)
    with pytest.raises(UserError, match="this one classifies no sequences"):
        judge(own_target / "model")
    with pytest.raises(UserError, match="no model can be loaded from there"):
        judge(tmp_path / "nowhere")


def test_samples_are_judged_by_it_beside_rouge(
    classifier: Path, own_target: Path, own_reference: Path, tmp_path: Path
) -> None:
    """The target's samples entail the answers and the retained model's do not; the texts themselves are not kept."""
    settings = AttackSettings(samples=8, questions=6, nli=str(classifier))
    some: dict[str, Any] = {"attacks": ("sampling",), "settings": settings, "target": str(own_target)}
    found = attack_run(own_target, [str(own_reference)], output=tmp_path, say=lambda _: None, **some)
    rouge, nli = found.findings[1:]
    assert (rouge.attack, nli.attack) == ("sampling", "sampling NLI") and str(classifier) in nli.says
    assert nli.retained is not None and nli.after.value > 0.8 > 0.4 > nli.retained.value
    assert nli.before.value > 0.8 and nli.word == "fully recovered"
    point = nli.details["curves"][str(own_target)]["1"]
    assert point["leak_low"] <= point["leak"] <= point["leak_high"] and "best" not in point
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "results").glob("sampling-*.json")]
    assert len(results) == 2 and all(set(one) == {"scores", "facts", "entailed", "done"} for one in results)
    assert all(len(judged) == 8 for one in results for judged in one["entailed"].values())
    again: list[str] = []
    assert (
        attack_run(own_target, [str(own_reference)], output=tmp_path, say=again.append, **some).content == found.content
    )
    assert len(again) == 1, "nothing is sampled twice"
