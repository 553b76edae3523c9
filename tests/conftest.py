"""What the tests share: data from outside, a tiny model that has learned something, and finished runs.

Data from outside is found through two environment variables and the tests that need it are skipped without them:
SGA_DATA, a folder with ``tofu/`` and ``golden/``, and SGA_MODELS, a folder with ``tiny-tofu/full`` and
``tiny-tofu/retain``.
"""

from __future__ import annotations

import atexit
import copy
import gc
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test looks anything up
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning at every fork
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="sga-tests-")  # else their files stay in the user's cache

import pytest
import torch
import yaml
from filelock import FileLock
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sga.batching.batch import collate
from sga.batching.encoding import Encoded, Encoder
from sga.batching.templates import PlainTemplate
from sga.data.builtin import packaged_path
from sga.evaluation.inference import Inference
from sga.evaluation.request_batches import RequestBatches
from sga.evaluation.requests import Answer
from sga.experiments.configuration import read_config
from sga.likelihood.forward import sequence_nll
from sga.models.small import SmallLlama
from sga.runs.folder import RunFolder

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# Lightning's log handlers keep the standard error of the test that imported it first; later tests have another one.
logging.raiseExceptions = False
torch.set_num_threads(1)  # faster than more for models of this size, and the same on every machine

ROOT = Path(__file__).parents[1]
"""The checkout."""

TINY_TOFU_TEMPLATE = PlainTemplate("Question: {question}\nAnswer:\n{answer}")


_HEAVY = {
    *("tiny_network", "tiny_models", "own_target", "own_reference", "unlearn_options", "finished_run"),
    "two_processes",
}
"""Fixtures that train a model, load a trained one or start processes."""


def pytest_collection_finish() -> None:
    """Spares the garbage collector what is imported and collected by now and stays to the end: 2 to 4 % of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests with a trained model or processes of a fixture as ``runs``."""
    for item in items:
        if _HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker("runs")


# ---- data from outside ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tofu_root() -> Path:
    """The folder with TOFU's splits."""
    root = os.environ.get("SGA_DATA")
    if not root:
        pytest.skip("SGA_DATA is not set: no TOFU files")
    folder = Path(root, "tofu")
    if not folder.is_dir():
        pytest.skip("SGA_DATA has no folder tofu")
    return folder


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """The folder with tiny-tofu's models ``full`` and ``retain``."""
    root = os.environ.get("SGA_MODELS")
    if not root:
        pytest.skip("SGA_MODELS is not set: no tiny-tofu models")
    folder = Path(root, "tiny-tofu")
    if not (folder / "full").is_dir() or not (folder / "retain").is_dir():
        pytest.skip("SGA_MODELS has no tiny-tofu/full and tiny-tofu/retain")
    return folder


def golden_numbers(name: str) -> dict[str, Any]:
    """A file of published numbers and what they were computed from."""
    root = os.environ.get("SGA_DATA")
    if not root:
        pytest.skip("SGA_DATA is not set: no golden files")
    path = Path(root, "golden", name)
    if not path.is_file():
        pytest.skip(f"SGA_DATA has no golden/{name}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# ---- what a run has written ------------------------------------------------------------------------------------------


def all_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of every evaluation of a run folder, by ascending step."""
    run = RunFolder(folder)
    return [row for step in run.row_steps for row in run.row_dicts(step)]


# ---- a tiny model that has learned something ------------------------------------------------------------------------

PEOPLE = (
    "Ada Brook",
    "Ben Carrow",
    "Cleo Dunn",
    "Dov Elm",
    "Eva Frost",
    "Finn Gale",
    "Gia Hart",
    "Hal Ives",
    "Ida Jory",
    "Jon Kerr",
)
TOWNS = ("Oslo", "Porto", "Quito", "Riga", "Sofia", "Turin", "Uppsala", "Vienna", "Warsaw", "York")
TRADES = ("baker", "carpenter", "dentist", "engineer", "farmer", "gardener", "hatter", "judge", "weaver", "miller")


def rows_about(person: int) -> list[dict[str, Any]]:
    """Two records on a person in TOFU's columns, with three perturbed answers each."""
    forms = (
        (TOWNS, "Where was {} born?", "{} was born in {}.", "The birthplace of {} is {}."),
        (TRADES, "What does {} do for a living?", "{} works as a {}.", "By trade, {} is a {}."),
    )
    name = PEOPLE[person]
    return [
        {
            "question": question.format(name),
            "answer": answer.format(name, values[person]),
            "paraphrased_answer": paraphrase.format(name, values[person]),
            "perturbed_answer": [paraphrase.format(name, values[(person + step) % len(PEOPLE)]) for step in (1, 2, 3)],
        }
        for values, question, answer, paraphrase in forms
    ]


def exact_norms(network: PreTrainedModel) -> PreTrainedModel:
    """The network with norms that compute in their weight's type; Llama's own are float32 whatever that is."""
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, LlamaRMSNorm):
                exact = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=norm.weight.dtype)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return network


@dataclass(frozen=True)
class TinyNetwork:
    """A Llama of two layers, trained briefly on 16 short questions and answers.

    Attributes:
        encoder: Its tokenizer with the default template.
        pairs: The questions and answers.
        encoded: Their token ids, in the same order.
    """

    encoder: Encoder
    pairs: tuple[tuple[str, str], ...]
    encoded: tuple[Encoded, ...]
    trained: PreTrainedModel

    def model(self, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        """A copy of the model that the caller may change, in eval mode; a float64 one is exact throughout."""
        network: PreTrainedModel = copy.deepcopy(self.trained).to(dtype)
        if dtype == torch.float64:
            exact_norms(network)
        return network.eval()

    def groups(self, count: int, group_size: int) -> list[list[Encoded]]:
        """Groups of K sequences of different lengths; group g begins with sequence g."""
        return [[self.encoded[(g + 5 * k) % len(self.encoded)] for k in range(group_size)] for g in range(count)]


@pytest.fixture(scope="session")
def tiny_network() -> TinyNetwork:
    """See `TinyNetwork`; takes about two seconds."""
    pairs = tuple((row["question"], row["answer"]) for person in range(8) for row in rows_about(person))
    description = SmallLlama(hidden_size=32, layers=2, heads=2, vocabulary=320, context=96)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer: PreTrainedTokenizerFast = description.tokenizer(text for pair in pairs for text in pair)
        network = description.network(tokenizer)
        encoder = Encoder(tokenizer, PlainTemplate(), max_length=96)
        encoded = tuple(encoder.encode(*pair) for pair in pairs)
        batch = collate([[row] for row in encoded])
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(60):
            loss = sequence_nll(network, batch).mean()
            if loss.item() < 0.3:  # further on, gradients vanish and nothing is left to compare
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.3, "the model has learned something"
    return TinyNetwork(encoder, pairs, encoded, network.eval())


# ---- evaluation plans -----------------------------------------------------------------------------------------------


def answered(model: nn.Module, plans: Sequence[RequestBatches], stop_ids: Sequence[int]) -> dict[int, Answer]:
    """Answers by job of all processes together, each of which runs its own plan; a job answered twice is an error."""
    found: dict[int, Answer] = {}
    for plan in plans:
        inference = Inference(model, stop_ids)
        for batch in plan:
            assert not set(batch.indices) & found.keys()
            found.update(zip(batch.indices, inference.answer(batch), strict=True))
    return found


# ---- runs -----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def own_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files of OwnData: 6 forget, 10 retain, 4 holdout records and 2 + 2 of general knowledge."""
    root = tmp_path_factory.mktemp("own")
    for name, people in (("forget", range(3)), ("retain", range(3, 8)), ("holdout", range(8, 10))):
        write_rows(root / f"{name}.jsonl", [row for person in people for row in rows_about(person)])
    write_rows(
        root / "real_authors.jsonl",
        [
            {"question": "Who wrote Hamlet?", "answer": "Shakespeare", "perturbed_answer": ["Goethe", "Cervantes"]},
            {"question": "Who wrote Faust?", "answer": "Goethe", "perturbed_answer": ["Shakespeare", "Cervantes"]},
        ],
    )
    write_rows(
        root / "world_facts.jsonl",
        [
            {"question": "What is the capital of Peru?", "answer": "Lima", "perturbed_answer": ["Bogota", "Caracas"]},
            {"question": "What is the capital of Iran?", "answer": "Tehran", "perturbed_answer": ["Kabul", "Baku"]},
        ],
    )
    return root


@pytest.fixture(scope="session")
def own_options(own_root: Path) -> list[str]:
    """Options of every verb: the data of `own_root` on the CPU, short answers."""
    sets = ("forget", "retain", "holdout", "real_authors", "world_facts")
    return [
        "--data.source=OwnData",
        f"--data.root={own_root}",
        *(f"--data.source.{name}={name}.jsonl" for name in sets),
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--model_utility.max_new_tokens=12",
    ]


SMALL_LLAMA = [
    "--model.language_model=sga.SmallLlama",
    "--model.language_model.hidden_size=32",
    "--model.language_model.layers=2",
    "--model.language_model.heads=2",
    "--model.language_model.vocabulary=400",
    "--model.language_model.context=160",
]


def training_options(epochs: int) -> list[str]:
    """Options of plain fine-tuning, evaluated once at its end."""
    return [
        "--model.loss=sga.FineTuning",
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=1e-2",
        "--data.group_size=1",
        f"--trainer.max_epochs={epochs}",
        f"--trainer.check_val_every_n_epoch={epochs}",
        "--trainer.num_sanity_val_steps=0",
    ]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A copy, for this process, of a folder that the first process of the session to need it makes for all of them."""
    own = factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"shared-{name}"
    made = shared.with_suffix(".made")
    with FileLock(f"{shared}.lock"):
        if not made.exists():
            shutil.rmtree(shared, ignore_errors=True)  # of a process that failed
            make(shared)
            made.touch()
    return shutil.copytree(shared, factory.mktemp("runs") / name)


def trained_run(options: list[str], folder: Path, role: str, train_on: str) -> None:
    """Trains a tiny model on some splits of `own_root`."""
    from sga.cli import run_verb

    run_verb(
        [
            "fit",
            *options,
            *SMALL_LLAMA,
            *training_options(60),
            "--data.batch_size=4",
            f"--run.folder={folder}",
            f"--data.train_on={train_on}",
            f"--run.role={role}",
        ]
    )


@pytest.fixture(scope="session")
def own_target(own_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny model that was trained on all of `own_root` but the holdout; takes a few seconds."""
    splits = "[forget,retain,real_authors,world_facts]"
    return made_once(tmp_path_factory, "target", lambda folder: trained_run(own_options, folder, "target", splits))


@pytest.fixture(scope="session")
def own_reference(own_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `own_target`, trained without the forget set."""
    splits = "[retain,real_authors,world_facts]"
    return made_once(tmp_path_factory, "retain", lambda folder: trained_run(own_options, folder, "retain", splits))


@pytest.fixture(scope="session")
def unlearn_options(own_options: list[str], own_target: Path) -> list[str]:
    """Options of a short SGA run on `own_target`: 6 groups of 4, batches of 4, so 2 steps an epoch, 2 epochs."""
    return [
        *own_options,
        "--model.language_model=sga.Pretrained",
        f"--model.language_model.name_or_path={own_target}",
        "--model.loss=sga.SmoothedGradientAscent",
        "--model.loss.smoothing_rate=-4",
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=1e-3",
        "--data.batch_size=4",
        "--trainer.max_epochs=2",
    ]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SGA run on built-in authors, with a retain reference and a checkpoint of each epoch."""
    return made_once(tmp_path_factory, "finished", write_finished_runs) / "sga"


def write_finished_runs(root: Path) -> None:
    """Writes the run folders ``retain``, ``target`` and ``sga``."""
    from sga.cli import run_verb

    data = [
        "--data.source=sga.Authors",
        "--data.source.forget_authors=2",
        "--data.source.retain_authors=4",
        "--data.source.holdout_authors=2",
        "--data.source.questions_per_author=6",
        "--data.evaluation_rows=8",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--model_utility.max_new_tokens=24",
    ]
    for name, splits in (("retain", "[retain]"), ("target", "[forget,retain]")):
        run_verb(
            [
                "fit",
                *data,
                *SMALL_LLAMA,
                *training_options(12),
                "--data.batch_size=8",
                f"--run.folder={root / name}",
                f"--data.train_on={splits}",
                f"--run.role={name}",
                "--model.language_model.vocabulary=800",
            ]
        )
    run_verb(
        [
            "fit",
            *data,
            f"--run.folder={root / 'sga'}",
            f"--evaluation.reference={root / 'retain'}",
            "--model.language_model=sga.Pretrained",
            f"--model.language_model.name_or_path={root / 'target'}",
            "--model.loss=sga.SmoothedGradientAscent",
            "--model.loss.smoothing_rate=-4",
            "--model.optimizer=torch.optim.AdamW",
            "--model.optimizer.lr=1e-3",
            "--data.batch_size=4",
            "--trainer.max_epochs=3",
            "--checkpoint.keep_epochs=true",
        ]
    )


def shipped(benchmark: str, method: str) -> list[str]:
    """Options of every verb: the configurations of a benchmark and of a method that come with the package."""
    files = (f"configs/benchmarks/{benchmark}.yaml", f"configs/methods/{method}.yaml")
    return [f"--config={packaged_path(file)}" for file in files]


# ---- the demo on little data ----------------------------------------------------------------------------------------

SMALL_DEMO = {
    "data.source": {
        "class_path": "sga.Authors",
        "init_args": {
            "forget_authors": 1,
            "retain_authors": 2,
            "holdout_authors": 1,
            "questions_per_author": 6,
        },
    },
    "data.evaluation_rows": 4,
    "model_utility.max_new_tokens": 4,
    "trainer.max_epochs": 2,
    "trainer.enable_progress_bar": False,
}


@pytest.fixture
def small_plan(tmp_path: Path) -> Path:
    """The packaged demo's plan with two unlearning runs on little data, as files of its own."""
    configs = packaged_path("configs")
    runs = {}
    for name in ("target", "retain", "ga", "sga"):
        config = read_config([configs / "benchmarks" / "authors.yaml", configs / "methods" / f"{name}.yaml"])
        for key, value in SMALL_DEMO.items():
            section, option = key.split(".")
            config[section] = {**config.get(section, {}), option: value}
        if name in ("target", "retain"):
            config["trainer"]["check_val_every_n_epoch"] = 2
            config["model"]["language_model"]["init_args"] |= {"hidden_size": 32, "layers": 1, "vocabulary": 600}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        if name in ("ga", "sga"):
            runs[name] = {"config": f"{name}.yaml"}
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        yaml.safe_dump({"target": "target.yaml", "retain": "retain.yaml", "seeds": [0], "runs": runs}), encoding="utf-8"
    )
    return plan
