"""What libraries say of themselves is hidden, and shown with ``--verbose``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sga.__main__ import main

SCRIPT = """
import logging, sys, warnings
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch import seed_everything
import huggingface_hub.utils
from transformers.utils.logging import tqdm
from sga.models.noise import hide_noise
hide_noise()
hide_noise()
seed_everything(0)
rank_zero_info("a file that Lightning writes")
list(tqdm([1], desc="Loading weights"))
warnings.warn("of use")
assert not huggingface_hub.utils.are_progress_bars_disabled(), "downloads take minutes"
from sga.runs.config_files import config_files
config_files(["configs/benchmarks/authors.yaml", "configs/methods/target.yaml"])
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_noise_is_hidden_and_what_is_of_use_is_not(verbose: bool) -> None:
    environment = {**os.environ, "SGA_VERBOSE": "1" if verbose else ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "of use" in done.stderr and "applies too" in done.stderr
    assert ("Seed set to 0" in done.stderr) == ("Loading weights" in done.stderr) == verbose
    assert ("\nwarning: of use\n" in f"\n{done.stderr}") != verbose, "one line"


@pytest.mark.parametrize(
    ("arguments", "left", "verbose"),
    [
        (["--verbose", "methods", "x"], ["methods", "x"], "1"),
        (["methods", "x", "--verbose"], ["methods", "x"], "1"),
        (["methods", "--verbose", "false"], ["methods", "--verbose", "false"], None),  # Lightning's option
        (["methods"], ["methods"], None),
    ],
)
def test_verbose_is_an_option_of_every_verb(
    arguments: list[str], left: list[str], verbose: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setenv("SGA_VERBOSE", "")
    monkeypatch.setattr("sga.__main__._run", lambda verb, rest: seen.append([verb, *rest]) or 0)
    assert main(arguments) == 0
    assert seen == [left] and os.environ["SGA_VERBOSE"] == (verbose or "")
