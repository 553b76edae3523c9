"""Every shipped benchmark parses with every method; how files are laid one over the other; names of classes."""

from __future__ import annotations

import inspect
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, shipped

import sga
from sga.cli import _cli, _ParsingCLI, configured_cli, parsed_config, plain_config, run_verb
from sga.commands.config import main as copy_configs
from sga.data.builtin import packaged_path
from sga.data.tofu import TOFU
from sga.errors import UserError
from sga.experiments.configuration import read_config
from sga.experiments.sweeps.definition import read_sweep
from sga.runs.config_files import composed, config_files, config_path

ROOT_OF_CONFIGS = packaged_path("configs")
BENCHMARKS = sorted((ROOT_OF_CONFIGS / "benchmarks").glob("*.yaml"))
METHODS = sorted((ROOT_OF_CONFIGS / "methods").glob("*.yaml"))
PAIRS = sorted((ROOT_OF_CONFIGS / "pairs").glob("*/*.yaml"))
EVALUATED_ONLY = ("evaluate", "task-vector", "whp")
MODELS_OF_THEIR_OWN = ("muse-llama-2-7b", "tofu-small")
"""Benchmarks whose target and retain model come from elsewhere."""


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def parsed(benchmark: str, method: str, *options: str) -> Any:
    """The configuration that a shipped benchmark and method make."""
    verb = "validate" if method in EVALUATED_ONLY else "fit"
    return parsed_config([verb, *shipped(benchmark, method), *options])[verb]


# ---- benchmarks and methods -----------------------------------------------------------------------------------------


def test_there_are_configurations() -> None:
    assert len(BENCHMARKS) >= 8 and len(METHODS) >= 33 and len(PAIRS) >= 20
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT_OF_CONFIGS.rglob("*.yaml"))
    assert lines < 1200


def test_every_pair_belongs_to_a_benchmark_and_a_method() -> None:
    assert {path.parent.name for path in PAIRS} <= {path.stem for path in BENCHMARKS}
    assert {path.name for path in PAIRS} <= {path.name for path in METHODS}


@pytest.mark.parametrize("benchmark", [path.stem for path in BENCHMARKS])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_parses_with_every_method_or_says_why_not(benchmark: str, every: bool) -> None:
    """One parser for a benchmark's methods; they differ from each other in what their files say and in nothing else.

    In the quick tests, a method that is nothing but a loss, which no benchmark has, is parsed with one benchmark only.
    """
    parsers = {
        verb: _cli(_ParsingCLI, [verb, *shipped(benchmark, method)])
        for verb, method in (("fit", "sga"), ("validate", "evaluate"))
    }
    base = parsers["fit"].config["fit"]
    for method in (path.stem for path in METHODS):
        verb = "validate" if method in EVALUATED_ONLY else "fit"
        models = ("target", "retain") if benchmark in MODELS_OF_THEIR_OWN else ()
        without_tokenizer = ("task-vector", "whp") if benchmark == "muse-llama-2-7b" else ()
        if method in (*models, *without_tokenizer):
            with pytest.raises(UserError, match=f"{method} on {benchmark} makes no sense: "):
                composed(shipped(benchmark, method))
            continue
        options = composed(shipped(benchmark, method))
        file = ROOT_OF_CONFIGS / "methods" / f"{method}.yaml"
        assert yaml.safe_load(options[0].removeprefix("--config=")) == {"run": {"folder": f"runs/{benchmark}/{method}"}}
        said = content(file)
        only_a_loss = list(said) == ["model"] and list(said["model"]) == ["loss"] and len(options) == 3
        if only_a_loss and benchmark != "authors" and not every:
            assert options[1:] == shipped(benchmark, method)
            continue
        config = parsers[verb].parser.parse_args([verb, *options])[verb]
        assert config.run.folder == f"runs/{benchmark}/{method}"
        assert config.data.language_model == config.model.language_model
        assert (config.model.loss is None) == (method in EVALUATED_ONLY)
        if method in ("target", "retain", "reinforced", *EVALUATED_ONLY):
            continue
        assert config.data == base.data and config.evaluation == base.evaluation, method
        assert config.model.language_model == base.model.language_model, method
        assert config.trainer.max_epochs == base.trainer.max_epochs * (2 if method == "alternating" else 1)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_says_every_hyper_parameter_and_nothing_of_a_benchmark(path: Path) -> None:
    method = content(path)
    assert "class_path: sga." in path.read_text(encoding="utf-8") or path.stem == "evaluate"
    assert set(method) <= {"run", "trainer", "model", "data", "evaluation", "export"}
    assert set(method.get("data", {})) <= {"train_on", "group_size", "evaluation_rows"}
    loss = method.get("model", {}).get("loss")

    def check(block: Any) -> None:
        if isinstance(block, dict) and "class_path" in block:
            kind = getattr(sga, block["class_path"].removeprefix("sga."))
            wanted = {name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")}
            assert set(block.get("init_args", {})) == wanted, block["class_path"]
            for inner in block.get("init_args", {}).values():
                check(inner)

    check(loss)
    if loss is not None:
        assert content(BENCHMARKS[0])["model"].get("loss") is None


def test_the_papers_settings() -> None:
    rates = {"tofu-llama-2-7b": -0.8, "tofu-phi-1.5": -0.8, "tofu-opt-2.7b": -4.0}
    for benchmark, rate in rates.items():
        config = parsed(benchmark, "sga")
        assert config.data.group_size == 4 and config.trainer.max_epochs == 5 and config.data.batch_size == 32
        assert config.model.loss.init_args.smoothing_rate == rate
    config = parsed("tofu-opt-2.7b", "sga", "--model.loss.smoothing_rate=-8")
    assert config.model.loss.init_args.smoothing_rate == -8


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_open_unlearnings_default_set_up(split: str) -> None:
    """Its configs/model, configs/experiment/unlearn/tofu/default.yaml and scripts/tofu_unlearn.sh at d3d7cf9."""
    names = {"1b": "Llama-3.2-1B-Instruct", "3b": "Llama-3.2-3B-Instruct", "8b": "Llama-3.1-8B-Instruct"}
    for benchmark in (path.stem for path in BENCHMARKS if path.stem.startswith("tofu-llama-3")):
        name = names[benchmark[-2:]]
        config = parsed(benchmark, "gd", f"--data.source.forget_split={split}")
        assert config.data.source.init_args.forget_split == split
        assert config.model.language_model.init_args.name_or_path == f"open-unlearning/tofu_{name}_full"
        optimizer, template = config.model.optimizer.init_args, config.data.template.init_args
        assert (optimizer.lr, optimizer.weight_decay) == (1e-5, 0.01)
        assert (config.trainer.max_epochs, config.data.batch_size) == (10, 32)
        assert (template.system, template.date) == ("You are a helpful assistant.", "2025-04-10")
        retain = parsed(benchmark, "retain", f"--data.source.forget_split={split}")
        assert retain.model.language_model.init_args.name_or_path == f"meta-llama/{name}"
        assert retain.trainer.max_epochs == 5 and retain.model.optimizer.init_args.lr == 1e-5


@pytest.mark.parametrize("benchmark", ["tofu-llama-2-7b", "tofu-phi-1.5", "tofu-opt-2.7b"])
def test_forget01_of_the_papers_models(benchmark: str, tofu_root: Path) -> None:
    """With the paper's K and batch, its 40 forget samples and 3,960 others; target, reference and methods alike."""
    sizes = set()
    for method in ("target", "retain", "sga", "gd-random", "evaluate"):
        config = parsed(benchmark, method, "--data.source.forget_split=forget01")
        source = config.data.source.init_args
        assert source.forget_split == "forget01"
        assert config.data.group_size == (1 if method in ("target", "retain") else 4)
        training = TOFU(**source.as_dict()).load(str(tofu_root)).training
        sizes.add((len(training["forget"]), len(training["retain"])))
    assert sizes == {(40, 3960)}


def test_an_adapter_goes_over_a_method() -> None:
    """TOFU's settings of LoRA: twice the epochs at ten times the learning rate, of the benchmark's model."""
    config = parsed("tofu-llama-2-7b", "sga", f"--config={ROOT_OF_CONFIGS / 'adapters' / 'lora.yaml'}")
    model = config.model.language_model
    assert model.class_path == "sga.LoRA" and model.init_args.name_or_path == "locuslab/tofu_ft_llama2-7b"
    assert config.trainer.max_epochs == 10 and config.model.optimizer.init_args.lr == 1e-4
    assert config.model.loss.init_args.smoothing_rate == -0.8, "the pair's"
    assert config.run.folder == "runs/tofu-llama-2-7b/sga-lora"


def test_a_model_that_no_loss_makes_is_evaluated(own_options: list[str], own_target: Path, tmp_path: Path) -> None:
    start = [f"--model.language_model.{name}={own_target}" for name in ("name_or_path", "tuned")]
    with pytest.raises(UserError, match=r"training needs a loss: .* evaluate the model with sga validate"):
        run_verb(["fit", *shipped("own", "task-vector"), *own_options, *start, f"--run.folder={tmp_path / 'run'}"])


# ---- how files are laid one over the other --------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's benchmark, method and pair."""
    files = {
        "benchmarks/b.yaml": "trainer: {max_epochs: 3}\nmodel: {optimizer: {init_args: {lr: 1.0e-5}}}\n",
        "methods/m.yaml": "trainer: {max_epochs: 1.5x}\nrun: {role: unlearn}\nexport: {folder: 'a/{benchmark}'}\n",
        "pairs/b/m.yaml": "model: {optimizer: {init_args: {lr: 10x}}}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_relative_values_are_worked_out_and_the_pair_comes_last(mine: Path) -> None:
    benchmark, method, pair = config_files(["benchmarks/b.yaml", "methods/m.yaml"])
    assert not benchmark.relative and not method.added and pair.added
    assert method.content["trainer"]["max_epochs"] == 4.5 and method.content["export"]["folder"] == "a/b"
    assert pair.content["model"]["optimizer"]["init_args"]["lr"] == 1e-4
    named = config_files(["benchmarks/b.yaml", "pairs/b/m.yaml", "methods/m.yaml"])
    assert [file.path.parent.name for file in named] == ["benchmarks", "b", "methods"], "named by the user: as named"
    merged = read_config([Path("benchmarks/b.yaml"), Path("methods/m.yaml")])
    assert merged["model"]["optimizer"]["init_args"]["lr"] == 1e-4 and merged["trainer"]["max_epochs"] == 4.5


def test_flags_between_files_stay_where_they_are(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    (mine / "own.yaml").write_text("seed_everything: 1\n", encoding="utf-8")
    options = ["--a=1", "--config", "benchmarks/b.yaml", "--b", "2", "-c", "methods/m.yaml", "--config=own.yaml"]
    with caplog.at_level(logging.INFO):
        a, folder, benchmark, b, two, method, pair, own = composed([*options, "--config={c: 1}"])[:-1]
    assert (a, b, two) == ("--a=1", "--b", "2")
    assert yaml.safe_load(folder.removeprefix("--config=")) == {"run": {"folder": "runs/b/m-own"}}
    assert benchmark == "--config=benchmarks/b.yaml" and own == "--config=own.yaml"
    assert "max_epochs: 4.5" in method and "lr: 0.0001" in pair
    assert "pairs/b/m.yaml applies too" in caplog.text


def test_a_value_relative_to_nothing_is_refused(mine: Path) -> None:
    with pytest.raises(
        UserError, match=r"methods/m\.yaml: trainer: max_epochs: 1\.5x is relative to what a file before"
    ):
        config_files(["methods/m.yaml"])
    with pytest.raises(UserError, match=r"methods/m\.yaml: trainer: max_epochs"):
        config_files(["methods/m.yaml", "benchmarks/b.yaml"])


def test_a_users_method_has_the_pairs_of_a_shipped_benchmark_and_files_are_found_from_anywhere(
    mine: Path,
) -> None:
    """As for those who installed a wheel: no checkout in the working directory."""
    assert config_path("configs/methods/ga.yaml") == ROOT_OF_CONFIGS / "methods" / "ga.yaml"
    assert config_path("methods/m.yaml") == Path("methods/m.yaml"), "what is there comes first"
    (mine / "methods" / "rmu.yaml").write_text("model: {loss: {class_path: sga.RMU}}\n", encoding="utf-8")
    found = config_files(["configs/benchmarks/book.yaml", "methods/rmu.yaml"])
    assert found[-1].path == ROOT_OF_CONFIGS / "pairs" / "book" / "rmu.yaml"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of shipped files and no checkout."""
    monkeypatch.chdir(tmp_path)
    assert copy_configs(["copy", "benchmarks/tofu-phi-1.5", "methods/retain", "methods/sga", "sweeps/quick"]) == 0
    return tmp_path / "configs"


BASE = "microsoft/phi-1_5"


@pytest.mark.parametrize("place", [".", "configs", "configs/benchmarks"])
@pytest.mark.parametrize("own_pairs", [True, False])
def test_copies_have_their_pair_from_wherever_they_are_named(
    place: str, own_pairs: bool, copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, the retain model would be made of the model that knows what is to be forgotten."""
    assert (copied / "pairs" / "tofu-phi-1.5" / "retain.yaml").is_file()
    if not own_pairs:
        shutil.rmtree(copied / "pairs")
    monkeypatch.chdir(copied.parent / place)
    files = [os.path.relpath(copied / name) for name in ("benchmarks/tofu-phi-1.5.yaml", "methods/retain.yaml")]
    with caplog.at_level(logging.INFO):
        config = read_config([Path(file) for file in files])
    assert config["model"]["language_model"]["init_args"]["name_or_path"] == BASE
    root = copied if own_pairs else ROOT_OF_CONFIGS
    said = re.search(r"(\S+) applies too", caplog.text)
    assert said is not None and Path(said[1]).samefile(root / "pairs" / "tofu-phi-1.5" / "retain.yaml")
    folder, *options = composed([f"--config={file}" for file in files])
    assert (
        "runs/tofu-phi-1.5/retain" in folder
        and Path(options[2].partition("=")[2]).parts[-2:] == Path(said[1]).parts[-2:]
    )


def test_a_model_of_a_benchmark_is_not_made_of_the_one_that_knows_the_data(copied: Path) -> None:
    mine, method = copied / "benchmarks" / "mine.yaml", copied / "methods" / "retain.yaml"
    (copied / "benchmarks" / "tofu-phi-1.5.yaml").rename(mine)
    files = [f"--config={mine}", f"--config={method}"]
    said = r"retain\.yaml: nothing says which model it trains, .* or write pairs/mine/retain\.yaml beside"
    lora = f"--config={ROOT_OF_CONFIGS / 'adapters' / 'lora.yaml'}"
    for more in ([], [lora], ["--model.language_model.dtype=bfloat16"], ["--model.language_model=sga.LoRA"]):
        with pytest.raises(UserError, match=said):
            composed([*files, *more])
    with pytest.raises(UserError, match=said):
        read_config([mine, method], {"model.language_model.dtype": "bfloat16"})
    composed([*files, f"--model.language_model.name_or_path={BASE}"])
    composed([*files, "--model.language_model.name_or_path", BASE])
    composed([*files, "--config={model: {language_model: sga.SmallLlama}}"])
    read_config([mine, method], {"model.language_model.name_or_path": BASE})
    composed([f"--config={mine}", f"--config={copied / 'methods' / 'sga.yaml'}"])
    own = copied / "base.yaml"
    own.write_text("model: {language_model: {init_args: {name_or_path: gpt2}}}\n", encoding="utf-8")
    composed([*files, f"--config={own}"])
    with pytest.raises(UserError, match=said.replace("mine", "BENCHMARK")):
        composed([f"--config={own}", f"--config={method}"])


def test_copied_plans_name_the_packages_files(copied: Path) -> None:
    path = copied / "sweeps" / "quick.yaml"
    assert set(read_sweep(path).models) == {"target", "retain"}
    assert config_path("../methods/sga.yaml", path.parent).samefile(copied / "methods" / "sga.yaml"), "there: first"
    with pytest.raises(UserError, match=r"\.\./methods/sgd\.yaml: no such file"):
        config_path("../methods/sgd.yaml", path.parent)
    with pytest.raises(UserError, match="no such file"):
        config_path("../benchmarks/book.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("configs/methods/sgd.yaml", r"no such file; is it .*configs/methods/sga.yaml"),
        ("nowhere.yaml", r"nowhere.yaml: no such file$"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_is_close(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed([f"--config={name}"])


def test_a_key_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("data: {group_sise: 4}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parsed_config(["fit", "--config", str(path)])


# ---- names of classes -----------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
BY_MODULE = re.compile(r"\bsga(?:\.[a-z_]\w*)+\.([A-Z]\w*)")


@pytest.mark.parametrize("path", [*sorted((ROOT / "configs").rglob("*.yaml")), *PAGES], ids=lambda path: path.name)
def test_classes_are_named_by_their_public_names(path: Path) -> None:
    """`sga.NAME` stays when a module moves; what is named in a configuration or on a page exists under that name."""
    text = path.read_text(encoding="utf-8")
    assert [name for name in BY_MODULE.findall(text) if name in sga.__all__] == []
    named = set(re.findall(r"(?<![\w./-])sga\.([A-Z]\w*)", text)) - {"NAME"}
    assert named <= set(sga.__all__)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("sga.losses.GradientAscent", "sga.GradientAscent"),
        ("sga.losses.ascent.GradientAscent", "sga.GradientAscent"),
        ("sga.language_models.Pretrained", "sga.Pretrained"),
        ("sga.normals.embedders.TFIDF", "sga.TFIDF"),
    ],
)
@pytest.mark.runs
def test_a_module_path_gives_one_sentence_with_the_public_name(before: str, now: str, tmp_path: Path) -> None:
    """Of a configuration, a list in it, a flag in both forms, and a sweep; negative control: the public name parses."""
    said = re.escape(f"{before} is now called {now}, which is the name to write")
    path = tmp_path / "old.yaml"
    path.write_text(f"model:\n  loss:\n    class_path: {before}\n", encoding="utf-8")
    for arguments in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(UserError, match=f"old.yaml: {said}"):
            parsed_config(["fit", *arguments])
    path.write_text(f"trainer:\n  callbacks:\n  - class_path: {before}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"old.yaml: {said}"):
        parsed_config(["fit", f"--config={path}"])
    for arguments in ([f"--model.loss={before}"], ["--model.loss", before]):
        with pytest.raises(UserError, match=f"the command line: {said}"):
            parsed_config(["fit", *arguments])
    path.write_text(
        f"config: {BENCHMARKS[0]}\nseeds: [0]\nobjectives: {{a: maximize}}\ngrid: {{model.loss: [{before}]}}\n"
    )
    with pytest.raises(UserError, match=f"old.yaml: {said}"):
        read_sweep(path)


def test_a_saved_configuration_has_public_names() -> None:
    """What a run folder keeps can be used again after a module has moved."""
    small = ["--model.language_model=sga.SmallLlama"]
    cli = configured_cli([*shipped("authors", "sga-margin"), *small])
    saved = yaml.safe_dump(plain_config(cli._parser("fit"), cli.config["fit"]))
    assert "class_path: sga.SmoothedGradientAscent" in saved and "class_path: sga.MarginRate" in saved
    assert BY_MODULE.findall(saved) == []
