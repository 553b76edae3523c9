"""Every shipped configuration parses under the verb it is for, and says where its values come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sga.cli import parsed_config
from sga.data.builtin import packaged_path

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
