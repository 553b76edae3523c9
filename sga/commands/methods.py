"""`sga methods`: a list of the methods, from the docstrings of the losses and the shipped configurations."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import sga
from sga.commands.config import shipped_files
from sga.commands.parsing import verb
from sga.evaluation.table import terminal_width


def method_table() -> list[tuple[str, str, str, str]]:
    """Names of configurations, class, papers and first sentence of each loss that a shipped configuration uses.

    No module of the losses is imported, which would take seconds.
    """
    docstrings = {
        node.name: ast.get_docstring(node) or ""
        for path in sorted(Path(sga.__file__).parent.joinpath("losses").glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    names: dict[str, set[str]] = {}
    for name, path in shipped_files().items():
        found = re.search(r"^ +loss:\s+class_path: (?:sga\.)?(?:\w+\.)*(\w+)", path.read_text(encoding="utf-8"), re.M)
        if found and found[1] in docstrings:
            names.setdefault(found[1], set()).add(name.rpartition("/")[2])
    # A model's name before the method's makes another name of the same configuration.
    shortest = {
        kind: sorted(one for one in some if not any(one.endswith(f"-{other}") for other in some))
        for kind, some in names.items()
    }
    return [
        (
            ", ".join(shortest[kind]),
            kind,
            ", ".join(dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{5})", text))) or "-",
            text.split("\n\n")[0].replace("\n", " "),
        )
        for kind, text in docstrings.items()
        if kind in shortest
    ]


@verb("methods")
def main() -> int:
    """List the methods: class, configuration, paper (arXiv), and what each does; docs/methods.md has more."""
    width = min(terminal_width(), 120)
    for names, kind, papers, sentence in method_table():
        print(textwrap.fill(f"{kind}: {names} (arXiv {papers})", width, subsequent_indent="    "))
        print(textwrap.fill(sentence, width, initial_indent="    ", subsequent_indent="    "))
    print("\nsga config list NAME shows the files of a name, sga config copy copies them")
    return 0
