"""A report in Chromium: drawn under its own policy, inert towards hostile texts, readable without scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import GA_POINTS, GD_POINTS, STRONG_POINTS, Checker, write_run

from sga.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script></noscript><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"

DRAWN = 'role="graphics-document"'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose names, settings, questions and answers are hostile."""
    folder = tmp_path_factory.mktemp("page")
    runs = [
        write_run(folder / "ga", "GA", GA_POINTS, answer=HOSTILE),
        write_run(folder / "sga", "SGA", STRONG_POINTS, {"smoothing_rate": -8.0}, name=HOSTILE),
        write_run(folder / "own", f"Mine{HOSTILE}", GD_POINTS, {"a": 1.0}),
    ]
    return write_report(runs, folder / "report.html", title=f"Report {HOSTILE}")


def seen(page: Path) -> tuple[str, str]:
    """The document as it stands after its scripts ran, and what the browser complained of."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [BROWSER, *options, f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr


def test_charts_are_drawn_and_nothing_is_refused_or_run(page: Path) -> None:
    document, complaints = seen(page)
    document = re.sub("<noscript>.*?</noscript>|<script>.*?</script>", "", document, flags=re.DOTALL)
    assert document.count(DRAWN) == 6
    assert len(re.findall(r'aria-label="[^"]*seed: 0; step: 40', document)) == 15
    assert "Content Security Policy" not in complaints and "CONSOLE" not in complaints
    assert "<title>Report &lt;/script&gt;" in document and "img" not in Checker(document).tags


def test_negative_control_a_script_that_is_not_the_page_s_is_refused(page: Path) -> None:
    words = page.read_text(encoding="utf-8")
    changed = page.with_name("changed.html")
    changed.write_text(words.replace("// Draws", "//Draws").replace("picked_store", "other_store"), encoding="utf-8")
    document, complaints = seen(changed)
    assert "Content Security Policy" in complaints and DRAWN not in document
