"""Run folders read back: what was run, how it went at each evaluation, and which evaluation was chosen."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from sga.errors import UserError
from sga.evaluation.aggregation import UTILITY_UNSEEN
from sga.evaluation.metrics import frontier_area
from sga.files import read_json_lines, read_json_object
from sga.rates.smoothing import equivalent_normal_weight

RUN_ROLES = ("target", "retain", "unlearn")
"""A run trains the model that is to forget, trains the one that never saw the forget set, or unlearns."""


_SHORT_METHODS = {"GradientAscent": "GA", "SmoothedGradientAscent": "SGA", "GradientDifference": "GD"}


@dataclass(frozen=True)
class Run:
    """One finished run folder; rows and groups are read when they are first asked for.

    Attributes:
        path: The run folder.
        info: What `run.json` says.
        evaluations: The lines of `metrics.jsonl`, by ascending step; never empty.
        chosen: What `metrics.json` says: the chosen evaluation, and why other values are absent.
    """

    path: Path
    info: Mapping[str, Any]
    evaluations: list[dict[str, Any]]
    chosen: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run, as its configuration gave it."""
        return str(self.info["name"])

    @property
    def role(self) -> str:
        """One of `RUN_ROLES`."""
        return str(self.info["role"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.info["seed"])

    @property
    def group_size(self) -> int:
        """K: one forget sample and K − 1 normal samples."""
        return int(self.info["group_size"])

    @property
    def benchmark(self) -> str:
        """Name of the benchmark, which is the prefix of its metrics."""
        return str(self.info["benchmark"])

    @property
    def has_texts(self) -> bool:
        """False where the run was told to keep questions and answers out of its folder."""
        return bool(self.info.get("texts", True))

    @property
    def method(self) -> str:
        """``GA``, ``SGA`` or ``GD``, another method's class name, or the role where nothing is unlearned.

        An evaluation of a model without a loss has no method and goes by the run's name.
        """
        if self.role != "unlearn":
            return self.role
        if self.info["method"] is None:
            return self.name
        return _SHORT_METHODS.get(str(self.info["method"]), str(self.info["method"]))

    @property
    def smoothing_rate(self) -> float | None:
        """r, where it is fixed: 0 for GA; None for other methods and for rates that a rule computes."""
        if self.method == "GA":
            return 0.0
        return _number(self.info["parameters"].get("smoothing_rate")) if self.method == "SGA" else None

    @property
    def normal_weight(self) -> float | None:
        """λ of −ℓ_f + λ·ℓ̄_n: GD's own weight, and for GA and SGA at a fixed rate the equivalent one."""
        if self.method == "GD":
            parameters = self.info["parameters"]
            return _number(parameters.get("normal_weight", parameters.get("retain_weight")))
        rate = self.smoothing_rate
        if self.method == "SGA" and _number(self.info["parameters"].get("alternative_rate")) is not None:
            return None  # neighbours and alternatives have a weight each
        return None if rate is None else equivalent_normal_weight(self.group_size, rate) + 0.0

    @property
    def label(self) -> str:
        """What the run is called in tables and charts: ``GA``, ``SGA r = −0.8``, ``GD λ = 1``, ``retain``."""
        if self.method == "SGA" and self.smoothing_rate is not None:
            return f"SGA r = {plain(self.smoothing_rate)}{self._alternatives('alternative_rate', 'r')}"
        if self.method == "GD" and self.normal_weight is not None:
            return f"GD λ = {plain(self.normal_weight)}{self._alternatives('alternative_weight', 'λ')}"
        if self.role != "unlearn" or not self.info["parameters"]:
            return self.method
        settings = ", ".join(
            f"{name} = {plain(value) if _number(value) is not None else value}"
            for name, value in self.info["parameters"].items()
        )
        return f"{self.method} {settings}"

    def _alternatives(self, parameter: str, symbol: str) -> str:
        """What the label says of alternatives among the normals, and of a number of their own."""
        count, own = self.info.get("alternatives"), _number(self.info["parameters"].get(parameter))
        if not count:
            return ""
        number = "" if own is None else f" {symbol} = {plain(own)}"
        return f", {count} alternative{'s' if count > 1 else ''}{number}"

    @property
    def chosen_step(self) -> int:
        """Step of the chosen evaluation."""
        return int(self.chosen.get("step", self.evaluations[-1]["step"]))

    @property
    def handover(self) -> Mapping[str, Any] | None:
        """What the rule for handing over says of the chosen evaluation; None for a run without that rule."""
        return self.chosen.get("handover")

    def key(self, name: str) -> str:
        """The name that a metric has in this run's files: perplexities have no prefix, the rest the benchmark's."""
        if name == "utility":
            unseen = any(self.key(UTILITY_UNSEEN) in row for row in self.evaluations)
            name = UTILITY_UNSEEN if unseen else "model_utility"
        return name if name.startswith("perplexity/") else f"{self.benchmark}/{name}"

    def value(self, name: str, evaluation: Mapping[str, Any] | None = None) -> float | None:
        """A finite metric of one evaluation, by default the chosen one; None where it is absent.

        Args:
            name: Such as ``model_utility``, ``forget/rouge_l_recall``, ``perplexity/normal/log``; ``utility`` is
                ``model_utility_unseen``, or ``model_utility`` where a run has no reserved rows. Logarithms are
                also worked out from the plain value.
            evaluation: One of `evaluations`.
        """
        numbers = self.chosen if evaluation is None else evaluation
        found = _number(numbers.get(self.key(name)))
        if found is not None:
            return found
        for ending, logarithm in (("/log", math.log), ("_log10", math.log10)):
            if name.endswith(ending):
                base = _number(numbers.get(self.key(name.removesuffix(ending))))
                return logarithm(base) if base is not None and base > 0 else None
        return None

    def why_absent(self, name: str) -> str:
        """Why a metric has no value, in the words of the run."""
        reasons: Mapping[str, Any] = self.chosen.get("absent") or {}
        key = name if name == "frontier_area" else self.key(name)
        wider = key.removesuffix("/log").removesuffix("_log10")
        candidates = [key, wider, *(str(parent) for parent in PurePosixPath(wider).parents)]
        if name in ("frontier_area", "ks_statistic", "ks_n"):
            candidates += [self.key("forget_quality_log10"), self.key("forget_quality")]
        if name == "frontier_area":
            candidates.append(self.key("utility"))
        for candidate in candidates:
            if candidate in reasons:
                return str(reasons[candidate])
        return "not among this run's metrics"

    @property
    def frontier(self) -> list[tuple[float, float]]:
        """(log10 forget quality, utility) of each evaluation that has both, by step."""
        points = []
        for evaluation in self.evaluations:
            quality, utility = self.value("forget_quality_log10", evaluation), self.value("utility", evaluation)
            if quality is not None and utility is not None:
                points.append((quality, utility))
        return points

    @property
    def frontier_area(self) -> float | None:
        """Area under the trajectory of an unlearning run, 0 to 1, higher is better; None without a point."""
        return frontier_area(self.frontier) if self.role == "unlearn" and self.frontier else None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of `rows.jsonl`: one for each step, evaluation set and record.

        Raises:
            UserError: the file is missing or a line of it is malformed; names file and line.
        """
        path = self.path / "rows.jsonl"
        rows = []
        for number, row in read_json_lines(path):
            _require(row, {"step": int, "set": str, "id": str}, f"{path}:{number}")
            rows.append(row)
        return rows

    def rows_at(self, step: int, evaluation_set: str) -> list[dict[str, Any]]:
        """The rows of one evaluation set at one step, in file order."""
        return [row for row in self.rows if row["step"] == step and row["set"] == evaluation_set]

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The lines of `pairs.jsonl`, forget samples with their normals; empty where the run has no groups.

        Raises:
            UserError: a line is malformed; names file and line.
        """
        path = self.path / "pairs.jsonl"
        pairs = []
        for number, row in read_json_lines(path) if path.is_file() else []:
            _require(row, {"forget_id": str, "normals": list}, f"{path}:{number}")
            for normal in row["normals"]:
                if not isinstance(normal, dict) or not isinstance(normal.get("id"), str):
                    raise UserError(f"{path}:{number}: each of 'normals' must be an object with a string 'id'")
            pairs.append(row)
        return pairs


def load_run(path: str | Path) -> Run:
    """Reads a run folder; only its rows and groups wait until they are asked for.

    Raises:
        UserError: the folder or a file of it is missing, the run has not finished, or a file is malformed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    if not (path / "run.json").is_file():
        inner = sorted(str(child.parent) for child in path.glob("*/run.json"))
        cure = f"name the run folders in it: {', '.join(inner[:4])}" if inner else "is it a folder that a run wrote?"
        raise UserError(f"{path}: holds no run.json; {cure}")
    info = read_json_object(path / "run.json")
    wanted: dict[str, type] = {"name": str, "role": str, "seed": int, "group_size": int, "benchmark": str}
    wanted |= {"parameters": dict, "method": str}
    if info.get("method", "") is None:  # a model that is only evaluated has no loss
        del wanted["method"]
    _require(info, wanted, str(path / "run.json"))
    if info["role"] not in RUN_ROLES:
        raise UserError(f"{path / 'run.json'}: 'role' must be one of {', '.join(RUN_ROLES)}, got {info['role']!r}")
    if info["group_size"] < 1:
        raise UserError(f"{path / 'run.json'}: 'group_size' must be at least 1, got {info['group_size']}")
    evaluations = _read_evaluations(path / "metrics.jsonl", info["benchmark"])
    if not (path / "metrics.json").is_file():
        raise UserError(
            f"{path}: the run has not finished (no metrics.json; evaluated up to step {evaluations[-1]['step']}); "
            "wait for it, or resume it from its last checkpoint"
        )
    chosen = read_json_object(path / "metrics.json")
    _check_metrics(chosen, info["benchmark"], str(path / "metrics.json"))
    if not isinstance(chosen.get("absent", {}), dict):
        raise UserError(f"{path / 'metrics.json'}: 'absent' must be an object of reasons by metric")
    if not (path / "rows.jsonl").is_file():
        raise UserError(f"{path / 'rows.jsonl'}: no such file; the run folder is incomplete")
    return Run(path, info, evaluations, chosen)


def plain(value: float) -> str:
    """A setting as people write it: −0.8, 1, 2.5, with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def _number(value: Any) -> float | None:
    """The value as a float where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def _read_evaluations(path: Path, benchmark: str) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        _require(row, {"step": int}, where)
        _check_metrics(row, benchmark, where)
        by_step[row["step"]] = row  # a resumed run evaluates its first step again; the later line counts
    if not by_step:
        raise UserError(f"{path}: holds no evaluation; the run has not finished")
    return [by_step[step] for step in sorted(by_step)]


def _check_metrics(row: Mapping[str, Any], benchmark: str, where: str) -> None:
    for key, value in row.items():
        is_metric = key in ("epoch", "seconds", "frontier_area") or key.startswith((f"{benchmark}/", "perplexity/"))
        if is_metric and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{where}: {key!r} must be a number or null, got {value!r:.60}")


def _require(row: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for name, kind in kinds.items():
        if name not in row:
            raise UserError(f"{where}: missing {name!r}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise UserError(f"{where}: {name!r} must be of type {kind.__name__}, got {row[name]!r:.60}")
