"""Every shipped configuration parses under the verb it is for, and says where its values come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import sga
from sga.cli import configured_cli, parsed_config, plain_config
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.sweeps.definition import read_sweep

CONFIGS = sorted(
    path
    for path in packaged_path("configs").rglob("*.yaml")
    if path.parent.name not in ("demo", "prompts", "sweeps") and path.stem != "sequential" and path.is_file()
)


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 100


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_parses(path: Path) -> None:
    verb = "validate" if path.stem.endswith(("evaluate", "task-vector", "whp")) else "fit"
    config = parsed_config([verb, "--config", str(path)])[verb]
    assert config.run.folder.startswith("runs/")
    assert config.data.language_model == config.model.language_model


@pytest.mark.parametrize("stem", ["llama-2-7b-sga", "phi-1.5-sga", "opt-2.7b-sga-r-2", "opt-2.7b-sga-r-8"])
def test_the_papers_settings(stem: str) -> None:
    config = yaml.safe_load(packaged_path(f"configs/tofu/{stem}.yaml").read_text(encoding="utf-8"))
    assert config["data"]["group_size"] == 4
    expected = {"llama-2-7b-sga": -0.8, "phi-1.5-sga": -0.8, "opt-2.7b-sga-r-2": -2, "opt-2.7b-sga-r-8": -8}[stem]
    assert config["model"]["loss"]["init_args"]["smoothing_rate"] == expected
    assert config["trainer"]["max_epochs"] == 5 and config["data"]["batch_size"] == 32


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
        f"config: {CONFIGS[0]}\nseeds: [0]\nobjectives: {{a: maximize}}\ngrid: {{model.loss: [{before}]}}\n"
    )
    with pytest.raises(UserError, match=f"old.yaml: {said}"):
        read_sweep(path)


def test_a_saved_configuration_has_public_names() -> None:
    """What a run folder keeps can be used again after a module has moved."""
    small = ["--model.language_model=sga.SmallLlama"]
    cli = configured_cli(["--config", str(packaged_path("configs/authors/sga-margin.yaml")), *small])
    saved = yaml.safe_dump(plain_config(cli._parser("fit"), cli.config["fit"]))
    assert "class_path: sga.SmoothedGradientAscent" in saved and "class_path: sga.MarginRate" in saved
    assert BY_MODULE.findall(saved) == []
