"""Stages the site's pages: those of docs/ as they are, and the reference, made of the package and its parsers.

`python docs/site/generate.py build/site` leaves ``build/site/docs``, from which Sphinx builds (`make docs`).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import sga
from sga.commands.completion import verb_parsers

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINKED = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "benchmarks",
    "configs",
    "data",
    "notebooks",
    "sga",
    "tests",
)
"""What pages link to outside docs/; links to these files become files of the site."""

SECTIONS = {
    "Start": ["start", "unlearn"],
    "Guides": [
        *("choosing", "normals", "smoothing-rate", "benchmarks", "evaluation", "handover", "attacks", "sweeps"),
        *("many-devices", "speed-and-memory", "trainer", "footguns", "troubleshooting", "faults"),
    ],
    "Reference": [
        *("reference/api", "reference/verbs", "reference/papers", "methods", "metrics", "runs", "architectures"),
    ],
    "Results": ["results", "published"],
    "Develop": ["architecture", "extending", "contributing", "changelog"],
}
"""Pages by section. Sphinx refuses a page that is in none; those in folders of docs/ go to Results by themselves."""

_FIRST = """\
Make a causal language model forget chosen data and keep everything else: **Smoothed Gradient Ascent**, some twenty
methods to compare it with, and an evaluation that is tested, row by row, against published numbers.

```sh
# your own data, in one command
sga unlearn MODEL --forget forget.jsonl --retain retain.jsonl
# or built-in data, with nothing to download
sga demo
```

[Start here](start.md): install it, and take your own two files to a result. Then:
[what the results say](results.md), [ten mistakes of this field](footguns.md), [the papers](reference/papers.md).

![Forget quality against model utility](images/forget-quality-utility.svg)
"""

GROUPS = {
    "data": "Data", "groups": "Groups and normal samples", "batching": "Templates and batches",
    "models": "Models", "likelihood": "Likelihoods", "losses": "Losses", "rates": "The smoothing rate",
    "evaluation": "Evaluation", "metrics": "Metrics as functions", "training": "Modules of Lightning",
    "callbacks": "Callbacks", "runs": "Run folders", "experiments": "Experiments and reports", "errors": "Errors",
}  # fmt: skip
"""Pages of the reference of public names, by folder of the package."""

_TRAINING = ("datamodule", "optimization", "module", "cli")


def stage(folder: Path) -> Path:
    """Makes the folder that Sphinx builds from, from nothing, and returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    pages = {**api_pages(), **verb_pages(), "reference/papers": paper_index(), "reference/raw-results": raw_results()}
    pages["index"] = index()
    for name in ("contributing", "changelog"):
        text = (ROOT / f"{name.upper()}.md").read_text(encoding="utf-8")
        pages[name] = text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    for name, text in pages.items():
        path = source / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (source / "README.md").unlink()
    titles = {path: _title(path) for path in source.rglob("*.md")}
    for path in titles:
        text = _as_page(path.read_text(encoding="utf-8"), path.stem)
        path.write_text(_titled_links(text, path, titles), encoding="utf-8")
    return source


def _title(path: Path) -> str:
    """Heading of a page, without marks."""
    found = re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].replace("`", "") if found else path.stem.replace("-", " ").capitalize()


def _titled_links(text: str, page: Path, titles: Mapping[Path, str]) -> str:
    """A page whose links to others, called after their files on GitHub, are called after the others' headings."""

    def named(found: re.Match[str]) -> str:
        title = titles.get((page.parent / found[2]).resolve())
        return found[0] if title is None else f"[{title}]({found[2]}{found[3] or ''})"

    return re.sub(r"\[([\w/-]+\.md)\]\(([\w./-]+\.md)(#[^)]*)?\)", named, text)


def _as_page(text: str, name: str) -> str:
    """A page of docs/ as one of the site: GitHub's first pages are the site's, and every page has a title."""
    text = re.sub(r"\]\((?:\.\./)?README\.md\)", "](index.md)", text)
    text = re.sub(r"\]\((\.\./[\w/-]+/README\.md)\)", r"](path:\1)", text)  # a file, no page
    return text if re.search(r"^# ", text, re.MULTILINE) else f"# {name.replace('-', ' ').capitalize()}\n\n{text}"


def index() -> str:
    """The first page: docs/README.md, with every page by section."""
    tables = (DOCS / "README.md").read_text(encoding="utf-8").partition("\n\n|")[2]
    page = f"\n## Every page\n\n|{tables}"
    named = {name for names in SECTIONS.values() for name in names}
    found = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.glob("*/*.md")}
    sections = {**SECTIONS, "Results": [*SECTIONS["Results"], *sorted(found - named), "reference/raw-results"]}
    trees = (
        f"```{{toctree}}\n:caption: {title}\n:hidden:\n\n{chr(10).join(sections[title])}\n```\n" for title in sections
    )
    return f"# sga\n\n{_FIRST}\n{page}\n" + "\n".join(trees)


# ---- public names ---------------------------------------------------------------------------------------------------


def group_of(module: str) -> str:
    """The page of the reference that a module's public names are on."""
    part = module.split(".")[1]
    return {"report": "experiments", **dict.fromkeys(_TRAINING, "training")}.get(part, part)


def api_pages() -> dict[str, str]:
    """A page for each group of public names, with their docstrings, and their index."""
    named: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
    for module, names in sga._MODULES.items():
        named[group_of(module)] += [(module, name) for name in names.split()]
    metrics = importlib.import_module("sga.evaluation.metrics")
    named["metrics"] = [("sga.evaluation.metrics", name) for name in metrics.__all__]
    pages, rows = {}, []
    for group, entries in named.items():
        parts = [f"# {GROUPS[group]}\n"]
        for module, name in entries:
            parts.append(f"## {name}\n\n{_described(module, name)}")
            where = f"sga.{name}" if group != "metrics" else f"sga.evaluation.metrics.{name}"
            rows.append(f"| [`{where}`](api-{group}.md#{name.lower()}) | {_summary(module, name)} |")
        pages[f"reference/api-{group}"] = "\n".join(parts)
    tree = "\n".join(f"api-{group}" for group in GROUPS)
    table = "\n".join(["| name | what it is |", "|---|---|", *rows])
    text = "Every public name, with its arguments, shapes, units, errors and source. `import sga` knows them all."
    pages["reference/api"] = f"# Public names\n\n{text}\n\n{table}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    return pages


def _described(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return f"A constant or type, `{' '.join(str(value).split())}`.\n"
    kind, options = "autofunction", ""
    if inspect.isclass(value):
        kind, options = "autoclass", ":members:\n:show-inheritance:\n"
        if "__init__" in vars(value) and inspect.getdoc(value.__init__) and not hasattr(value, "__dataclass_fields__"):
            options += ":special-members: __init__\n"
    return (
        f"```{{eval-rst}}\n.. {kind}:: {value.__module__}.{name}\n"
        + "".join(f"   {line}\n" for line in options.splitlines())
        + "```\n"
    )


def _summary(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    text = inspect.getdoc(value) if inspect.isclass(value) or inspect.isfunction(value) else None
    first = " ".join((text or repr(value)).split("\n\n")[0].split())
    return first.replace("|", "\\|")


# ---- verbs ----------------------------------------------------------------------------------------------------------


def verb_pages() -> dict[str, str]:
    """A page for each verb, made of its parser, and their index."""
    from sga.__main__ import VERBS, usage

    pages = {}
    for verb in VERBS:
        parsers = verb_parsers(verb)
        pages[f"reference/verb-{verb}"] = f"# sga {verb}\n\n" + "\n".join(
            _parser_section(one, len(parsers) > 1) for one in parsers
        )
    tree = "\n".join(f"verb-{verb}" for verb in VERBS)
    intro = "Every verb with every option, as its parser has it. `sga VERB --help` says the same.\n\n"
    intro += "\n".join(f"* [sga {verb}](verb-{verb}.md)" for verb in VERBS)
    intro += f"\n\n```text\n{usage()}\n```"
    pages["reference/verbs"] = f"# Verbs and options\n\n{intro}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    return pages


def _parser_section(parser: argparse.ArgumentParser, several: bool) -> str:
    heading = f"## {parser.prog}\n\n" if several else ""
    about = "\n\n".join(
        " ".join(part.split()) if not part.startswith(" ") else f"```text\n{part}\n```"
        for part in (parser.description or "").split("\n\n")
    )
    rows = ["| option | what it is |", "|---|---|"]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        flag = next(iter(action.option_strings), "")
        if flag.endswith(".help") or "-->" in str(action.metavar or action.dest):  # links between options are none
            continue
        # Options of Lightning's verbs have their types for values.
        value = f" {action.metavar}" if flag and "." not in flag and action.metavar and action.nargs != 0 else ""
        value = f"{value} …" if action.nargs == "+" else value.replace(" \b", "")
        flags = ", ".join(f"`{flag}{value}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
        values = f" {{{', '.join(map(str, action.choices))}}}" if action.choices else ""
        about_it = " ".join((action.help or "").replace("%%", "%").split())
        about_it = _cell(re.sub(r" ?\((required, )?type: .*\)$", "", about_it) + values)
        known = action.default in (None, argparse.SUPPRESS, False, [], ()) or re.search(r"\(default|Default:", about_it)
        rows.append(f"| {flags} | {about_it}{'' if known else f' (default {_cell(_flat(action.default))})'} |")
    about = re.sub(r"docs/([\w-]+\.md)", r"[\1](../\1)", _escaped(about))
    return f"{heading}{about}\n\n" + "\n".join(rows) + "\n"


def _flat(value: Any) -> str:
    text = " ".join(map(str, value) if isinstance(value, tuple) else str(value).split())
    return f"`{text if len(text) < 60 else text[:57] + '…'}`"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("$", "\\$") if "`" not in text else text


# ---- papers ---------------------------------------------------------------------------------------------------------


def paper_index() -> str:
    """Methods by paper: equation, class, exact arguments, badge; from the table of methods.md and configs/methods."""
    heads = {row["method"]: _heading(row) for row in method_rows()}
    lines = ["# Paper index", "", _PAPERS_INTRO, "", "| method | as published | paper |", "|---|---|---|"]
    for row in method_rows():
        badge = row["as published"].partition(":")[0]
        anchor = re.sub(r"[^\w\- ]", "", heads[row["method"]].lower()).replace(" ", "-")
        lines.append(f"| [{heads[row['method']]}](#{anchor}) | {_badge(badge)} | {row['source']} |")
    lines.append("")
    for row in method_rows():
        names = re.findall(r"`([a-z][\w-]*)`", row["method"])
        badge, _, why = row["as published"].partition(": ")
        lines += [
            f"## {heads[row['method']]}",
            "",
            f"{_badge(badge)} {why}".rstrip(),
            "",
        ]
        papers = re.findall(r"\d{4}\.\d{5}", row["source"])
        lines += (
            ["Papers: " + ", ".join(f"[arXiv {one}](https://arxiv.org/abs/{one})" for one in papers) + "  "]
            if papers
            else []
        )
        lines += [f"Loss: {row['loss']}  ", f"Needs: {row['needs']}; cost: {row['cost']}", ""]
        for name in names:
            config = yaml.safe_load((ROOT / "configs" / "methods" / f"{name}.yaml").read_text(encoding="utf-8"))
            lines += [
                f"`--config configs/methods/{name}.yaml`{_class_link(config)}:",
                "",
                "```yaml",
                yaml.safe_dump(config, sort_keys=False).rstrip(),
                "```",
                "",
            ]
    lines += [f"Where codes and papers depart from each other, option by option: [methods]({_DIFFERENCES})."]
    return "\n".join(lines)


def _heading(row: Mapping[str, str]) -> str:
    title = row["method"].split(", `")[0]
    return f"{title[0].upper()}{title[1:]}"


def _badge(word: str) -> str:
    return f'<span class="badge-{word}">{word}</span>'


_DIFFERENCES = "../methods.md#where-papers-published-codes-and-this-program-differ"
_PAPERS_INTRO = """\
Each method with its paper, its equation as this program computes it, its class and the exact arguments that its
configuration gives. *faithful* is the paper's definition, as far as it could be read (the page on methods says of which
only the code was at hand); *variant* says what is done otherwise."""


def method_rows() -> Iterator[dict[str, str]]:
    """Rows of the table of methods in methods.md."""
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = [line for line in text.split("## What there is")[1].splitlines() if line.startswith("|")]
    table = table[: next((n for n, line in enumerate(table) if n and line.startswith("| method")), len(table))]
    heads = _cells(table[0])
    heads[0] = "method"
    for line in table[2:]:
        yield dict(zip(heads, _cells(line), strict=True))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _class_link(config: Any) -> str:
    for part in ("loss", "language_model"):
        described = ((config.get("model") or {}).get(part) or {}).get("class_path", "")
        name = described.rpartition(".")[2]
        if name in sga._PUBLIC:
            return f", [`sga.{name}`](api-{group_of(sga._PUBLIC[name])}.md#{name.lower()})"
    return ""


# ---- results --------------------------------------------------------------------------------------------------------


def raw_results() -> str:
    """The stored raw results, to download."""
    rows = ["| file | size |", "|---|---|"]
    for path in sorted((DOCS / "results").iterdir()):
        if path.suffix in (".gz", ".csv", ".txt"):
            rows.append(f"| [{path.name}](../results/{path.name}) | {path.stat().st_size / 1024:.0f} KB |")
    return "# Raw results\n\nWhat the tables of [results](../results.md) are made of.\n\n" + "\n".join(rows) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Stages the site in a folder."""
    print(stage(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
