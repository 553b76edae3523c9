"""What a run folder says of the run: losses of one's own, words of the data, and rows with hostile characters."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import SMALL_LLAMA, training_options, write_rows
from torch import Tensor

from sga import load_run
from sga.__main__ import main
from sga.callbacks.run_files import _parameters
from sga.cli import run_verb
from sga.losses.base import Loss
from sga.rates.policies import MarginRate


class OwnLoss(Loss):
    """Keeps things that JSON has no form for, some of them under the names of its arguments."""

    def __init__(
        self,
        scale: float = 2.0,
        ceiling: float = math.inf,
        parts: list[float] | None = None,
        rate: MarginRate | None = None,
    ) -> None:
        super().__init__()
        self.scale = torch.tensor(scale)
        self.register_buffer("table", torch.arange(3.0))
        self.lowest, self.seen, self.rate = -math.inf, {1, 2}, rate
        self.parts = [torch.tensor(part) for part in parts or ()]

    def forward(self, nll: Tensor) -> Tensor:
        return (self.scale * nll).mean()


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_loss_is_described_by_its_arguments_whatever_it_keeps(
    verb: str, own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    run_verb(
        [
            verb,
            *own_options,
            "--model.language_model=sga.Pretrained",
            f"--model.language_model.name_or_path={own_target}",
            "--model.loss=test_run_files.OwnLoss",
            "--model.loss.parts=[.inf, 1.5]" if verb == "validate" else "--model.loss.parts=[1.5]",
            "--model.loss.rate=sga.MarginRate",
            "--model.loss.rate.margin=0.5",
            f"--run.folder={tmp_path / 'run'}",
            *(["--trainer.max_epochs=1", "--data.group_size=2"] if verb == "fit" else []),
        ]
    )
    parameters = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["parameters"]
    parts = "[tensor(inf), tensor(1.5000)]" if verb == "validate" else [1.5]
    assert parameters == {"scale": 2.0, "ceiling": "inf", "parts": parts, "rate": "MarginRate(margin=0.5)"}
    with pytest.raises(TypeError, match="not JSON serializable"):  # negative control
        json.dumps(vars(OwnLoss())["scale"])


def test_without_a_configuration_the_loss_says_what_it_keeps() -> None:
    found = _parameters(pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), OwnLoss(3.0))
    assert found == {"scale": "tensor(3.)", "parts": [], "rate": None}


# ---- words of the data ----------------------------------------------------------------------------------------------


def small_run(options: list[str], folder: Path, *more: str) -> None:
    run_verb(["fit", *options, *SMALL_LLAMA, *training_options(1), f"--run.folder={folder}", *more])


@pytest.mark.runs
def test_a_tokenizer_that_keeps_words_of_the_data_is_said_where_no_texts_are_wanted(
    own_options: list[str], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"trained on the data.*model/tokenizer\.json"):
        small_run(own_options, tmp_path / "a", "--run.texts=false")
    assert "Carrow" in (tmp_path / "a" / "model" / "tokenizer.json").read_text(encoding="utf-8"), "it is as it says"
    for number, more in enumerate((["--run.texts=false", "--export.enabled=false"], [])):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*trained on the data")
            small_run(own_options, tmp_path / str(number), *more)
    assert not (tmp_path / "0" / "model").exists()


# ---- hostile characters ---------------------------------------------------------------------------------------------

HOSTILE = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\ufeff\u200b\u202e"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs on data with a hostile character or more in each text."""
    root = tmp_path_factory.mktemp("hostile")

    def rows(name: str, count: int) -> list[dict[str, Any]]:
        return [
            {
                "question": f"Who{HOSTILE[i % len(HOSTILE)]}is {name}{i}{HOSTILE}?",
                "answer": f"{HOSTILE[i % len(HOSTILE)]}{name}{i} is{HOSTILE}number {i}{HOSTILE[-1 - i % len(HOSTILE)]}",
                "paraphrased_answer": f"Number {i}{HOSTILE}it is",
                "perturbed_answer": [f"Number {i + 1}{HOSTILE}it is", f"Number{HOSTILE} {i + 2}"],
            }
            for i in range(count)
        ]

    for name, count in (("forget", 11), ("retain", 12)):
        write_rows(root / f"{name}.jsonl", rows(name, count))
    run_verb(
        [
            "fit",
            "--data.source=OwnData",
            f"--data.root={root}",
            "--data.source.forget=forget.jsonl",
            "--data.source.retain=retain.jsonl",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--model_utility.max_new_tokens=12",
            *SMALL_LLAMA,
            "--model.loss=sga.SmoothedGradientAscent",
            "--model.loss.smoothing_rate=-4",
            "--data.batch_size=4",
            "--trainer.max_epochs=2",
            f"--run.folder={root / 'run'}",
        ]
    )
    return root


def test_rows_with_hostile_characters_are_read_back_as_they_were(hostile_run: Path) -> None:
    given = {
        f"{name}/{index}": json.loads(line)
        for name in ("forget", "retain")
        for index, line in enumerate((hostile_run / f"{name}.jsonl").read_bytes().splitlines())
    }
    run = load_run(hostile_run / "run")
    assert [point["epoch"] for point in run.evaluations] == [0.0, 1.0, 2.0]
    assert len(run.row_steps) == 3
    for step in run.row_steps:
        rows = {row["id"]: row for row in run.row_dicts(step) if row["set"] in ("forget", "retain")}
        assert rows.keys() == given.keys()
        for record_id, row in rows.items():
            assert (row["question"], row["answer"]) == (given[record_id]["question"], given[record_id]["answer"])
    raw = run.rows_file(0).read_text(encoding="utf-8")
    assert len(raw.splitlines()) > len(raw.split("\n")), "negative control: the characters are there as they are"


def test_sga_score_reads_them_too(hostile_run: Path) -> None:
    """Its numbers from the rows are those that the run computed from the model's answers."""
    output = hostile_run / "scores.json"
    assert main(["score", str(hostile_run / "run"), "--output", str(output), "--no-intervals"]) == 0
    scores = json.loads(output.read_text(encoding="utf-8"))
    run = load_run(hostile_run / "run")
    both = scores["metrics"].keys() & run.chosen.keys()
    assert {"own/forget/avg_nll", "own/forget/truth_ratio", "own/retain/probability", "perplexity/retain"} <= both
    assert {name: scores["metrics"][name] for name in both} == pytest.approx({name: run.chosen[name] for name in both})
