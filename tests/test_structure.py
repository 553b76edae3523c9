"""Imports follow one arrow, records → groups → batch → nll → loss → module → callbacks → report; no leftovers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sga

PACKAGE = Path(sga.__file__).parent
ROOT = PACKAGE.parent

LAYERS = (
    {"sga"},
    {"sga.errors", "sga.files"},
    {"sga.data", "sga.language_models"},
    {"sga.adapters"},
    {"sga.normals.search"},
    {"sga.normals.embedders", "sga.normals.selection", "sga.normals.checks"},
    {"sga.groups", "sga.encoding", "sga.answers"},
    {"sga.normals"},
    {"sga.batches"},
    {"sga.packing", "sga.fused"},
    {"sga.likelihood", "sga.geometry", "sga.evaluation.requests"},
    {"sga.sharding", "sga.processes"},
    {"sga.rates", "sga.split"},
    {"sga.losses", "sga.optimization", "sga.evaluation"},
    {"sga.datamodule", "sga.starting_model"},
    {"sga.module"},
    {"sga.callbacks", "sga.settings"},
    {"sga.cli", "sga.report"},
    {
        "sga.show",
        "sga.score",
        "sga.compare",
        "sga.demo",
        "sga.sweep",
        "sga.sequence",
        "sga.rate",
        "sga.plan",
        "sga.normals.command",
    },
    {"sga.__main__"},
)
"""A module may import from earlier layers and, within a subpackage, from its own; never from a later one. The longest
name that fits decides, so that a subpackage stands for all its modules but those that are named."""

SIBLINGS = {
    "sga.files": {"sga.errors"},
    "sga.sequence": {"sga.sweep"},
    "sga.normals.command": {"sga.show"},
}
"""Imports within a layer that are not within a subpackage."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> tuple[int, str]:
    """Layer of a module, and the entry that puts it there."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        for number, entries in enumerate(LAYERS):
            if entry in entries and (entry != "sga" or module == "sga"):
                return number, entry
    raise AssertionError(f"{module} has no place in LAYERS: put it where it belongs on the arrow")


def imports(source: str, module: str) -> set[str]:
    """Modules of the package that a module imports, at its top or in a function; those for type checking count too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] == "sga"}


def backward(module: str, source: str) -> list[str]:
    """Imports that point back along the arrow."""
    here, entry = layer(module)
    wrong = []
    for imported in sorted(imports(source, module)):
        there, other = layer(imported)
        same = there == here and (other == entry or other in SIBLINGS.get(module, ()))
        if not (there < here or same):
            wrong.append(f"{module} imports {imported}")
    return wrong


def test_there_are_modules() -> None:
    assert len(MODULES) > 25
    assert all(path.is_file() for path in MODULES.values())


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrow(module: str) -> None:
    assert backward(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_negative_control_an_import_that_points_back_is_seen() -> None:
    assert backward("sga.losses", "from sga.module import UnlearningModule") == ["sga.losses imports sga.module"]
    assert backward("sga.batches", "def f():\n    import sga.callbacks.export") == [
        "sga.batches imports sga.callbacks.export"
    ]
    assert backward("sga.groups", "from sga.encoding import Encoder") == ["sga.groups imports sga.encoding"]
    assert backward("sga.module", "from sga.losses import Loss\nimport torch") == []
    with pytest.raises(AssertionError, match=r"sga\.utils has no place"):
        layer("sga.utils")


def test_a_loss_never_sees_a_model_or_lightning() -> None:
    modules = [name for name in MODULES if name == "sga.losses" or name.startswith("sga.losses.")]
    assert len(modules) > 5
    names = set()
    for module in modules:
        source = MODULES[module].read_text(encoding="utf-8")
        assert not imports(source, module) & {"sga.likelihood", "sga.language_models", "sga.starting_model"}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    assert names <= {"__future__", "abc", "collections", "dataclasses", "math", "warnings", "typing", "torch", "sga"}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.startswith(("sga.data.", "sga.report", "sga.groups", "sga.normals"))]
)
def test_records_groups_and_the_report_need_no_torch_and_no_lightning(module: str) -> None:
    """At their top, that is: `sga report` and `sga --help` start at once."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"torch", "lightning", "transformers"}


# ---- leftovers ------------------------------------------------------------------------------------------------------

TEXTS = sorted(
    path
    for folder, patterns in (
        ("sga", ("*.py",)),
        ("tests", ("*.py",)),
        ("configs", ("*.yaml",)),
        ("notebooks", ("*.ipynb",)),
        ("docs", ("*.md",)),
        (".", ("*.md", "*.toml", "*.cfg", "Makefile")),
    )
    for pattern in patterns
    for path in ((ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
)

ROOTS = "|".join(("home", "root", "tmp", "work", "mnt", "Users", "opt", "scratch", "workspace"))
LEFTOVERS = {
    "an absolute path": re.compile(rf"(?<![\w.$}}*/-])/({ROOTS})/\w"),
    "a drive": re.compile(r"\b[A-Z]:\\\\?(Users|home)"),
    "a bare note to oneself": re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b"),
    "a debugger": re.compile(r"\b(break" r"point\(\)|import " r"pdb|set_" r"trace\()"),
    "a device by name": re.compile(r"\.cu" r"da\(\)"),
}


def leftovers(text: str) -> set[str]:
    return {name for name, pattern in LEFTOVERS.items() if pattern.search(text)}


def test_no_file_holds_a_leftover() -> None:
    assert len(TEXTS) > 40
    found = {str(path.relative_to(ROOT)): leftovers(path.read_text(encoding="utf-8")) for path in TEXTS}
    assert {name: what for name, what in found.items() if what} == {}


def test_negative_control_leftovers_are_seen() -> None:
    slash = chr(47)
    for text, name in (
        (f'open("{slash}home{slash}me/x")', "an absolute path"),
        (f"see {slash}tmp{slash}x", "an absolute path"),
        ("C:" + chr(92) + "Users", "a drive"),
        ("# TO" + "DO later", "a bare note to oneself"),
        ("break" + "point()", "a debugger"),
        ("model.cu" + "da()", "a device by name"),
    ):
        assert leftovers(text) == {name}, text
    assert leftovers("https://example.org/home/x and ../tmp/y and $HOME/src/x and runs/tmp/z") == set()


@pytest.mark.parametrize("module", MODULES)
def test_asserts_hold_no_exception_and_nothing_is_swallowed(module: str) -> None:
    """`assert condition, ValueError(…)` raises AssertionError; `except Exception: pass` hides what happened."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert):
            raised = node.msg.func if isinstance(node.msg, ast.Call) else None
            assert not (isinstance(raised, ast.Name) and raised.id.endswith("Error")), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            only = node.body[0] if len(node.body) == 1 else None
            assert not isinstance(only, ast.Pass), f"exception swallowed in line {node.lineno}"


def test_every_public_name_is_there() -> None:
    for name in sga.__all__:
        assert getattr(sga, name) is not None
        assert name in dir(sga)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(sga, "nothing")  # noqa: B009
