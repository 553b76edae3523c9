"""What the site is made of, without building it: every page, public name, verb and method is on it."""

from __future__ import annotations

import configparser
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

import sga
from sga.__main__ import VERBS
from sga.commands.completion import completion_script, verb_parsers
from sga.errors import UserError


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The script that makes the site's pages."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "site" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_one_section(generate: ModuleType) -> None:
    pages = {str(path.relative_to(generate.DOCS).with_suffix("")) for path in generate.DOCS.rglob("*.md")}
    trees = re.findall(r"```\{toctree\}\n.*?\n\n(.*?)```", generate.index(), flags=re.DOTALL)
    named = [name for tree in trees for name in tree.split()]
    assert len(named) == len(set(named))
    assert pages - set(named) == {"README"}
    generated = {"contributing", "changelog"}
    assert {name for name in named if not name.startswith("reference/")} == (pages - {"README"}) | generated


def test_every_public_name_has_its_docstring(generate: ModuleType) -> None:
    pages = generate.api_pages()
    index = pages["reference/api"]
    for name in sga._PUBLIC:
        assert f"`sga.{name}`" in index, name
    described = "".join(pages.values())
    for name in ("SmoothedGradientAscent", "RunFolder", "membership_auc"):
        assert re.search(rf"\.\. auto\w+:: sga\.\w[\w.]*\.{name}\n", described)
    assert len(re.findall(r"\.\. auto(?:class|function)::", described)) > 120


def test_every_verb_has_a_parser_with_help_for_each_option() -> None:
    for verb in [verb for verb in VERBS if verb not in ("validate", "test", "predict")]:
        for parser in verb_parsers(verb):
            options = [action for action in parser._actions if action.option_strings]
            assert options, verb
            if verb != "fit":  # Lightning's own flags say nothing
                assert [action.dest for action in options if not action.help] == [], parser.prog


def test_defaults_on_a_verb_s_page_are_as_they_are_given(generate: ModuleType) -> None:
    page = generate._parser_section(*verb_parsers("attack"), False)
    assert "(default 0.05 0.2)" in page and "()" not in page and "('" not in page
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert "default" not in rows["--reference RETAIN_RUN …"] and max(row.count("default") for row in rows.values()) == 1
    lightning = generate._parser_section(*verb_parsers("fit"), False)
    assert re.search(r"`--data.group_size.*\(default `4`\) \|", lightning)


def test_links_of_the_site_are_called_after_pages(generate: ModuleType, tmp_path: Path) -> None:
    """On GitHub they are called after files, which the site's pages are not."""
    source = generate.stage(tmp_path / "site")
    index, start = ((source / f"{name}.md").read_text(encoding="utf-8") for name in ("index", "start"))
    assert "[Ten mistakes of this field, and what sga does about each](footguns.md)" in index
    assert "[Troubleshooting](troubleshooting.md)" in start and "README" not in index
    attack = (source / "reference" / "verb-attack.md").read_text(encoding="utf-8")
    assert "[Forgotten, or only hidden?](../attacks.md)" in attack
    named = [
        path.name for path in source.rglob("*.md") if re.search(r"\[[\w/-]+\.md\]\((?!path:)", path.read_text("utf-8"))
    ]
    assert named == []


def test_the_shell_completes_verbs_and_options() -> None:
    pytest.importorskip("shtab")
    script = completion_script("bash", ["attack", "normals", "compare"])
    for flag in ("--reference", "--output", "--resamples", "retrieve"):
        assert flag in script
    with pytest.raises(UserError, match="choose from bash, zsh, tcsh"):
        completion_script("fish", VERBS)


def test_every_method_has_a_paper_a_badge_and_its_exact_arguments(generate: ModuleType) -> None:
    rows = list(generate.method_rows())
    named = {name for row in rows for name in re.findall(r"`([a-z][\w-]*)`", row["method"])}
    files = {path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")}
    others = {"evaluate", "reinforced", "target"}  # no methods
    variants = {name for name in files - named if any(name.startswith(f"{one}-") for one in named)}
    assert named <= files and files - named == others | variants
    assert all(re.fullmatch(r"faithful|variant: .+", row["as published"]) for row in rows)
    page = generate.paper_index()
    assert "class_path: sga.SmoothedGradientAscent" in page and "https://arxiv.org/abs/2510.22376" in page


def test_the_oldest_constraints_are_setup_s_lowest_versions() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = "\n".join([setup["options"]["install_requires"], *setup["options.extras_require"].values()])
    lowest = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)$", lines, flags=re.MULTILINE))
    stated = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", stated, flags=re.MULTILINE))
    assert {name: lowest.get(name) for name in pinned} == pinned
    required = re.findall(r"^([\w-]+)", setup["options"]["install_requires"], flags=re.MULTILINE)
    assert set(required) - set(pinned) == {"torch"}
