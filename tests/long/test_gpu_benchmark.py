"""benchmarks/gpu.sh on a CPU with tiny models: all of it works, and a row that fails ends no other one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ROWS = {"evaluation", "dynamic", "step-1b", "lora", "step-7b", "ways"}


@pytest.mark.slow
def test_the_gpu_benchmark_measures_its_table(tofu_root: Path, tmp_path: Path) -> None:
    """The other tree is broken: what is measured of this one stays, and the table names what failed."""
    broken, output = tmp_path / "broken", tmp_path / "output"
    (broken / "sga").mkdir(parents=True)
    (broken / "sga" / "__init__.py").write_text("raise ImportError('broken')\n")
    settings = {"DEVICE": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), str(output), str(tofu_root), str(broken)],
        env={**os.environ, **settings, "SECONDS_AT_MOST": "1500"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = {path.name: json.loads(path.read_text()) for path in output.glob("*.json")}
    assert found.keys() == {f"{name}.{tree}.json" for name in ROWS for tree in ("after", "before")}
    for name in ROWS:
        assert "error" not in found[f"{name}.after.json"], name
        assert found[f"{name}.before.json"]["error"] == "failed, see its log"
        assert f"| {name} | after | " in printed and f"| {name} | before | **failed, see its log** |" in printed
        assert "broken" in (output / f"{name}.before.log").read_text()
    assert found["lora.after.json"]["plain_tokens_per_second"] > 0
    for name in ("dynamic", "step-1b", "step-7b"):
        assert max(found[f"{name}.after.json"][f"{what}_off"] for what in ("losses", "gradients")) < 0.03
    ways = found["ways.after.json"]["ways"]
    assert ways["by length"]["gradients_off"] < 0.03 and "does not support backward" in ways["flex attention"]["error"]
