"""Imports follow one arrow, records → groups → batch → nll → loss → module → callbacks → report; no leftovers."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import sga

PACKAGE = Path(sga.__file__).parent
ROOT = PACKAGE.parent

LAYERS = (
    "sga",
    "sga.errors",
    "sga.files",
    "sga.data",
    "sga.models",
    "sga.groups",
    "sga.batching",
    "sga.likelihood",
    "sga.evaluation",
    "sga.rates",
    "sga.losses",
    "sga.runs",
    "sga.datamodule",
    "sga.optimization",
    "sga.module",
    "sga.callbacks",
    "sga.cli",
    "sga.planning",
    "sga.report",
    "sga.attacks",
    "sga.experiments",
    "sga.commands",
    "sga.__main__",
)
"""Files and folders of the package in the order of the arrow: a module imports from its own folder and from those
before it, never from those after it. There are no exceptions."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    """Place of a module in the order."""
    place = ".".join(module.split(".")[:2])
    assert place in LAYERS, f"{module} has no place in LAYERS: put it where it belongs on the arrow"
    return LAYERS.index(place)


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
    here = layer(module)
    return [f"{module} imports {name}" for name in sorted(imports(source, module)) if layer(name) > here]


def test_there_are_modules() -> None:
    assert len(MODULES) > 25
    assert all(path.is_file() for path in MODULES.values())


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrow(module: str) -> None:
    assert backward(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_negative_control_an_import_that_points_back_is_seen() -> None:
    assert backward("sga.losses", "from sga.module import UnlearningModule") == ["sga.losses imports sga.module"]
    assert backward("sga.batching.batch", "def f():\n    import sga.callbacks.export") == [
        "sga.batching.batch imports sga.callbacks.export"
    ]
    assert backward("sga.groups.group", "from sga.batching.encoding import Encoder") == [
        "sga.groups.group imports sga.batching.encoding"
    ]
    assert backward("sga.module", "from sga.losses import Loss\nimport torch") == []
    with pytest.raises(AssertionError, match=r"sga\.utils has no place"):
        layer("sga.utils")


def test_the_root_is_small_and_no_file_is_long() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 23
    assert {f"sga.{path.stem}" for path in entries} - {"sga.__init__"} == set(LAYERS) - {"sga"}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def twice(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public classes and functions that stand in several modules, `main` of the verbs apart."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1 and name != "main"}


def test_no_public_name_is_defined_twice() -> None:
    assert twice({name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}) == {}


def test_negative_control_a_name_defined_twice_is_seen() -> None:
    sources = {"a": "class Answers: ...\ndef table(): ...", "b": "class Answers: ...\nclass _Own: ...", "c": "x = 1"}
    assert twice(sources) == {"Answers": ["a", "b"]}


def test_a_loss_never_sees_a_model_or_lightning() -> None:
    modules = [name for name in MODULES if name == "sga.losses" or name.startswith("sga.losses.")]
    assert len(modules) > 5
    names = set()
    for module in modules:
        source = MODULES[module].read_text(encoding="utf-8")
        assert not imports(source, module) & {
            "sga.likelihood.forward",
            "sga.models.pretrained",
            "sga.runs.starting_model",
        }
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    assert names <= {"__future__", "abc", "collections", "dataclasses", "math", "warnings", "typing", "torch", "sga"}


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


FILES_OF_RUNS = re.compile(
    r"(\S*/)?(run\.json|config\.yaml|metrics\.jsonl?|rows\.jsonl|pairs\.jsonl|reference\.json|predictions\.jsonl|"
    r"checkpoints|(\S*\.)?ckpt)"
)
"""Names of files in a run folder, alone or at the end of a path or pattern; in a sentence they are for readers."""


def files_of_runs(source: str) -> list[str]:
    """Strings of a module that name a file of a run folder, docstrings apart."""
    tree = ast.parse(source)
    documents = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in documents]
    return [text.value for text in texts if isinstance(text.value, str) and FILES_OF_RUNS.fullmatch(text.value)]


def test_only_the_run_folder_knows_the_names_of_its_files() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    benchmarks = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")}
    notebooks = {
        path.stem: "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cells in [json.loads(path.read_text(encoding="utf-8"))["cells"]]
    }
    assert len(files_of_runs(sources["sga.runs.folder"])) >= 8 and benchmarks and notebooks
    outside = {name: source for name, source in sources.items() if layer(name) != LAYERS.index("sga.runs")}
    found = {
        name: names
        for name, source in {**outside, **benchmarks, **notebooks}.items()
        if (names := files_of_runs(source))
    }
    assert found == {}


def test_negative_control_a_name_of_a_file_is_seen() -> None:
    assert files_of_runs('"""run.json"""\nfolder / "metrics.json"') == ["metrics.json"]
    assert files_of_runs('f"{folder}/checkpoints/last.ckpt", "see metrics.json there"') == ["/checkpoints/last.ckpt"]
    assert files_of_runs('folder.glob("checkpoints/*.ckpt")') == ["checkpoints/*.ckpt"]
