"""What libraries say of themselves is hidden, and shown with ``--verbose``."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

import sga
from sga.__main__ import main
from sga.models.noise import hide_noise, warnings_as_before

SCRIPT = """
import logging, os, sys, warnings
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch import seed_everything
import huggingface_hub.utils
from transformers.utils.logging import tqdm
from sga.models.noise import hide_noise
from sga.runs.config_files import config_files
for verbose in ("1", ""):
    os.environ["SGA_VERBOSE"] = verbose
    hide_noise()
    hide_noise()
    seed_everything(0)
    rank_zero_info("a file that Lightning writes")
    list(tqdm([1], desc="Loading weights"))
    warnings.warn(f"of use {verbose}")
    said = warnings.formatwarning(message="m", category=UserWarning, filename="f", lineno=1, line=None)
    assert "m" in said, "other programs call it with names"
    assert not huggingface_hub.utils.are_progress_bars_disabled(), "downloads take minutes"
    config_files(["configs/benchmarks/authors.yaml", "configs/methods/target.yaml"])
    print("----", file=sys.stderr)
"""


def test_noise_is_hidden_unless_it_is_asked_for_and_what_is_of_use_is_not() -> None:
    """First with --verbose, which changes nothing, then without it, in one process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for verbose, said in zip((True, False), done.stderr.split("----")[:2], strict=True):
        assert "of use" in said and "applies too" in said
        assert ("Seed set to 0" in said) == ("Loading weights" in said) == verbose
        assert ("\nwarning: of use \n" in f"\n{said}") != verbose, "one line"


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_setting_of_the_hub_s_bars_is_no_reason_for_a_warning(value: str) -> None:
    environment = {**os.environ, "SGA_VERBOSE": "", "HF_HUB_DISABLE_PROGRESS_BARS": value}
    script = "from sga.models.noise import hide_noise; hide_noise()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and not done.stderr


def test_functions_for_other_programs_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGA_VERBOSE", "")
    monkeypatch.setattr(warnings, "formatwarning", lambda *_: "another program's")  # other tests may have hidden noise
    filters, shown = list(warnings.filters), warnings.formatwarning

    @warnings_as_before()
    def work() -> None:
        hide_noise()
        assert warnings.formatwarning is not shown
        raise ValueError

    with pytest.raises(ValueError):
        work()
    assert warnings.formatwarning is shown and list(warnings.filters) == filters
    assert all(hasattr(one, "__wrapped__") for one in (sga.unlearn, sga.evaluate)), "they are such functions"


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
