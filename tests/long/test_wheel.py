"""A built wheel, installed into an empty environment: the program and every file that it needs are in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT

import sga

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; the checkout is not on its path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the wheel and what it requires, and nothing else.

    The wheel is built from what git tracks, so that no file that happens to lie about is in it.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, "./source", cwd=folder)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    constraints = ROOT / "constraints.txt"
    torch = re.findall(r"^torch==\S+", constraints.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for wanted in (torch, [wheel]):  # torch first and alone, as in the Makefile
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *wanted, cwd=folder)
    return python


def test_it_is_the_wheel_s_package(python: Path, tmp_path: Path) -> None:
    place = Path(run(python, "-c", "import sga; print(sga.__file__)", cwd=tmp_path).strip())
    assert place.is_relative_to(python.parents[1]), "not the checkout"
    assert run(python.with_name("sga"), "--version", cwd=tmp_path).strip() == f"sga {sga.__version__}"


MODULES = """
import importlib, json, pkgutil
import sga
names = [module.name for module in pkgutil.walk_packages(sga.__path__, "sga.") if ".share" not in module.name]
for name in names:
    if name != "sga.__main__":
        importlib.import_module(name)
for name in sga.__all__:
    assert getattr(sga, name) is not None
print(json.dumps(names))
"""


def test_every_module_is_there_and_needs_no_extra(python: Path, tmp_path: Path) -> None:
    printed = run(python, "-c", MODULES, cwd=tmp_path)
    ours = [path.relative_to(ROOT).with_suffix("").parts for path in Path(sga.__file__).parent.rglob("*.py")]
    expected = {".".join(parts).removesuffix(".__init__") for parts in ours} - {"sga"}
    assert set(json.loads(printed.splitlines()[-1])) >= expected


FILES = """
import json
from sga.data.builtin import packaged_path
for name in ("configs", "data"):
    folder = packaged_path(name)
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            print(f"{name}/{path.relative_to(folder).as_posix()}")
"""
PARSED = """
from sga.cli import parsed_config
from sga.data.builtin import packaged_path
benchmarks, methods = (sorted(packaged_path(f"configs/{name}").glob("*.yaml")) for name in ("benchmarks", "methods"))
pairs = [(file.stem, "sga") for file in benchmarks] + [("authors", file.stem) for file in methods]
for benchmark, method in pairs:
    files = [f"--config=configs/benchmarks/{benchmark}.yaml", f"--config=configs/methods/{method}.yaml"]
    parsed_config(["validate" if method in ("evaluate", "task-vector", "whp") else "fit", *files])
print(len(pairs))
"""


def test_every_file_is_there_and_every_configuration_is_found_by_its_name(python: Path, tmp_path: Path) -> None:
    tracked = run("git", "ls-files", "configs", "data", cwd=ROOT).splitlines()
    assert sorted(run(python, "-c", FILES, cwd=tmp_path).splitlines()) == sorted(tracked)
    assert int(run(python, "-c", PARSED, cwd=tmp_path).splitlines()[-1]) >= 40


STEPS = """
from sga.data.builtin import packaged_path
from sga.experiments.demo import read_demo
print(len(read_demo(packaged_path("configs/demo/demo.yaml"))))
"""


def test_the_demo_is_found_and_runs(python: Path, small_plan: Path, tmp_path: Path) -> None:
    """The packaged plan can be read with every file that it names; one of the same shape on little data is run."""
    assert int(run(python, "-c", STEPS, cwd=tmp_path)) >= 5
    printed = run(python, "-m", "sga", "demo", "--config", small_plan, "--folder", "small", cwd=tmp_path)
    assert "Report:" in printed and (tmp_path / "small" / "report.html").is_file()
