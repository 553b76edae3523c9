"""Verbs that only read numbers start at once: neither they nor the modules behind them import a heavy library.

In processes of their own, because this one has imported everything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_structure import MODULES

HEAVY = {
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "torchmetrics",
    "sklearn",
    "scipy",
    "pandas",
    "nltk",
    "rouge_score",
    "sacrebleu",
    "altair",
    "vl_convert",
}

PLACES = (
    "sga.data",
    "sga.groups",
    "sga.evaluation.metrics",
    "sga.evaluation.aggregation",
    "sga.evaluation.bootstrap",
    "sga.evaluation.comparison",
    "sga.evaluation.evaluation",
    "sga.evaluation.log",
    "sga.evaluation.paired",
    "sga.evaluation.reference",
    "sga.evaluation.table",
    "sga.rates.estimates",
    "sga.rates.smoothing",
    "sga.runs.folder",
    "sga.runs.foreign_logs",
    "sga.runs.logs",
    "sga.runs.references",
    "sga.report",
    "sga.commands",
)
"""Modules and packages that import nothing heavy at their top."""


def after(code: str) -> tuple[set[str], float]:
    """Heavy libraries that are there when a new process has run `code`, and its seconds of processor time."""
    end = f"import sys, time; print(*sorted({HEAVY!r} & sys.modules.keys()), time.process_time(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *heavy, seconds = done.stderr.split("\n")[-2].split()
    return set(heavy), float(seconds)


@pytest.mark.runs
def test_modules_that_only_read_import_nothing_heavy() -> None:
    """One process imports them one after the other and names those with which something heavy came."""
    modules = []
    for place in PLACES:
        found = [name for name in MODULES if name == place or name.startswith(f"{place}.")]
        assert found, f"there is no {place}"
        modules += [name for name in found if name != "sga.report.charts"]
    code = f"""
import importlib, sys
seen = set()
for name in {modules!r}:
    importlib.import_module(name)
    came, seen = {HEAVY!r} & sys.modules.keys() - seen, {HEAVY!r} & sys.modules.keys()
    if came:
        print(name, *sorted(came))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.runs
def test_negative_control_heavy_imports_are_seen() -> None:
    assert after("import sga.report.charts")[0] == {"altair"}
    assert after("import sga.losses.base")[0] == {"torch"}
    rouge = "from sga.evaluation.metrics import rouge_l_recall; rouge_l_recall('a', 'a')"
    assert after(rouge)[0] >= {"rouge_score", "nltk"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "{RUN}", "--reference={RETAIN}"),
        ("compare", "{RUN}", "{RUN}", "--step-a=0"),
        ("report", "{RETAIN}", "{RUN}", "--output={PAGE}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_verbs_that_only_read_import_nothing_heavy(
    arguments: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    """They take a quarter to half a second of processor time, and 3 seconds more where charts are drawn."""
    places = {"RUN": finished_run, "RETAIN": finished_run.parent / "retain", "PAGE": tmp_path / "page.html"}
    words = [word.format_map(places) for word in arguments]
    heavy, seconds = after(f"from sga.__main__ import main; assert main({words!r}) == 0")
    draws = arguments[0] == "report"
    assert heavy == ({"altair", "vl_convert"} if draws else set())
    assert seconds < (8 if draws else 2)
