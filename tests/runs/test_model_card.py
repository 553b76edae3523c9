"""The card of an exported model: the Hub's form, all that it takes to make the model again, no text of the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import rows_about
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

import sga
from sga.attacks.result import write_card
from sga.data.records import read_records
from sga.files import write_json, write_json_lines, write_text
from sga.groups.group import record_hash
from sga.runs.folder import RunFolder
from sga.runs.model_card import base_model, model_card

INFO: dict[str, Any] = {
    "name": "mine", "verb": "fit", "role": "unlearn", "method": "NPO", "parameters": {"beta": 0.1}, "seed": 3,
    "group_size": 2, "benchmark": "tofu", "model": "someone/base", "reference": None, "forget_records": 40,
    "retain_records": 80, "versions": {"sga": "0.2.0", "torch": "2.13.0"}, "device": "cpu", "processes": 1,
    "commit": "abcdef123456", "command": "sga fit --config mine.yaml", "data_sha256": {"forget": "ff" * 32},
}  # fmt: skip


def run_folder(folder: Path, model: str = "someone/base", **info: Any) -> RunFolder:
    """A run with two evaluations and a configuration."""
    write_json(folder / "run.json", {**INFO, "model": model, **info})
    start = {"step": 0, "epoch": 0.0, "seconds": 1.0, "tofu/model_utility": 0.75, "tofu/forget/probability": 0.9}
    last = {**start, "step": 8, "tofu/model_utility": 0.5, "tofu/forget/probability": 0.125}
    last |= {"tofu/model_utility/ci_low": 0.4, "tofu/model_utility/ci_high": 0.625}
    write_json_lines(folder / "metrics.jsonl", [start, last])
    write_json(folder / "metrics.json", {"chosen": "the last evaluation", **last})
    language_model = {
        "class_path": "sga.Pretrained",
        "init_args": {"name_or_path": model, "revision": "v1", "dtype": "float32"},
    }
    loss = {"class_path": "sga.NPO", "init_args": {"beta": 0.1}}
    data = {"root": "/private/place", "group_size": 2, "batch_size": 4}
    config = {"seed_everything": 3, "model": {"language_model": language_model, "loss": loss}, "data": data}
    write_text(folder / "config.yaml", yaml.safe_dump(config))
    return RunFolder(folder)


def test_the_hub_reads_its_front_matter(tmp_path: Path) -> None:
    card = ModelCard(model_card(run_folder(tmp_path)))
    data = card.data.to_dict()
    assert data["base_model"] == "someone/base" and data["base_model_revision"] == "v1"
    assert data["base_model_relation"] == "finetune" and data["library_name"] == "transformers"
    assert data["license"] == "unknown" and "set `license`" in card.text
    assert {"machine-unlearning", "NPO", "tofu"} <= set(data["tags"])


def test_it_says_what_it_takes_to_make_the_model_again(tmp_path: Path) -> None:
    retain = run_folder(tmp_path / "retain", role="retain", method=None)
    card = model_card(run_folder(tmp_path / "run", reference=str(retain.path)))
    for said in (
        "| tofu/model_utility | 0.5 | 0.4 to 0.625 | 0.75 | 0.5 |",
        "| tofu/forget/probability | 0.125 |  | 0.9 | 0.125 |",
        "- command: `sga fit --config mine.yaml`",
        "- commit of sga: abcdef123456",
        "- seed: 3",
        "- step: 8 of 8",
        f"- SHA-256 of the forget records: {'ff' * 32}",
        "class_path: sga.NPO",
        "beta: 0.1",
        "## What was not tested",
        "None was run",
    ):
        assert said in card, said
    assert "/private/place" not in card and str(tmp_path) not in card, "no folders of the maker's machine"


def test_a_run_without_a_rule_a_configuration_or_an_evaluation_has_a_card_too(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {**INFO, "command": None, "commit": None})
    card = model_card(RunFolder(tmp_path))
    assert "The run was not evaluated." in card and "beta: 0.1" in card and "command" not in card


def test_a_folder_hands_its_own_card_s_base_and_licence_on(tmp_path: Path) -> None:
    write_text(tmp_path / "base" / "README.md", "---\nbase_model: org/first\nlicense: apache-2.0\n---\n# Base\n")
    run = run_folder(tmp_path / "run", model=str(tmp_path / "base"))
    found = base_model(run)
    assert (found.hub_name, found.revision, found.license) == ("org/first", None, "apache-2.0")
    write_text(tmp_path / "card.md", model_card(run, adapter=True))
    front = metadata_load(tmp_path / "card.md")
    assert front is not None
    assert (front["base_model"], front["license"], front["library_name"]) == ("org/first", "apache-2.0", "peft")
    assert front["base_model_relation"] == "finetune", "it is no adapter on org/first, but on the folder's weights"
    front = ModelCard(model_card(run_folder(tmp_path / "hub"), adapter=True)).data.to_dict()
    assert front["base_model_relation"] == "adapter"


def test_no_place_on_the_maker_s_machine_is_in_it(tmp_path: Path) -> None:
    write_text(tmp_path / "base" / "README.md", "---\nbase_model: /data/alice/weights\n---\n")
    given = "/data/alice/my data/forget.jsonl"
    said = f"sga unlearn /data/alice/m/ --forget '{given}' --output=/data/alice/runs"
    said += " --set 'data.x=[/data/alice/a,/data/alice/b]'"
    run = run_folder(tmp_path / "run", model=str(tmp_path / "base"), command=said)
    config = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    config["data"]["alternatives"] = {"class_path": "sga.FileAnswers", "init_args": {"file": given}}
    write_text(run.config_path, yaml.safe_dump(config))
    card = model_card(RunFolder(run.path))
    assert "alice" not in card and str(tmp_path) not in card
    assert "`sga unlearn m/ --forget forget.jsonl --output=runs --set 'data.x=[a,b]'`" in card
    assert "file: forget.jsonl" in card
    template = run_folder(tmp_path / "url", command="sga fit --x https://host/a/b --data.root data/own and/or")
    assert "`sga fit --x https://host/a/b --data.root data/own and/or`" in model_card(template)


def test_a_cached_model_is_named_with_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789" * 4
    cache = tmp_path / "hub" / "models--someone--base"
    write_text(cache / "refs" / "v1", commit)
    write_text(cache / "snapshots" / commit / "config.json", "{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert base_model(run_folder(tmp_path / "run")).revision == commit


def test_attacks_take_the_place_of_the_sentence_that_there_were_none(tmp_path: Path) -> None:
    write_text(tmp_path / "README.md", model_card(run_folder(tmp_path / "run")))
    write_card(tmp_path, {"verdict": ["Nothing comes back."]}, [])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Nothing comes back." in card and "None was run" not in card and card.count("## Attacks") == 1


def test_every_export_has_one(own_target: Path, own_root: Path) -> None:
    """A model that was trained here: no base model, hashes of its data, none of its texts."""
    run = sga.load_run(own_target)
    path = run.model_path / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8"))
    assert card.data.base_model is None and "own" in card.data.tags
    records = read_records(own_root / "forget.jsonl", "forget")
    expected = hashlib.sha256("".join(map(record_hash, records)).encode()).hexdigest()
    assert run.info["data_sha256"]["forget"] == expected and expected in card.text
    assert "own/retain/probability" in card.text and "torch" in card.text and "sga.FineTuning" in card.text
    for row in rows_about(0) + rows_about(4):
        assert row["answer"] not in card.text and row["question"] not in card.text
    assert json.loads((run.path / "run.json").read_text(encoding="utf-8"))["command"] is None, "run by pytest"
