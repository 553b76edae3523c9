"""The site, built strictly: no dead link, nothing fetched, every public name in the search index."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT

import sga

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """Links, anchors and what a browser fetches of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        fetched = found.get("src") or (found.get("href") if tag == "link" else None)
        if fetched:
            self.fetched.append(fetched)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    folder = tmp_path_factory.mktemp("site")
    places = [str(folder / name) for name in ("doctrees", "docs", "html")]
    stage = [sys.executable, "docs/site/generate.py", str(folder)]
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs/site", "-d", *places]
    for command in (stage, build):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def test_no_link_is_dead_and_nothing_is_fetched(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 70
    dead = []
    for path, page in pages.items():
        assert [one for one in page.fetched if re.match(r"(https?:)?//", one)] == [], path
        for link in page.links:
            if re.match(r"https?:|mailto:|javascript:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            known = pages.get(target)
            if not target.exists() or (anchor and known is not None and unquote(anchor) not in known.anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert [one for one in dead if "genindex" not in one and "search.html" not in one] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_search_index_has_every_public_name(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert [name for name in sga._PUBLIC if name.lower() not in index.lower()] == []
