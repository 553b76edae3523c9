"""The run folder: its files, the metrics and rows of each evaluation, the chosen evaluation, and the weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sga.errors import UserError
from sga.evaluation.aggregation import UTILITY_UNSEEN
from sga.evaluation.metrics import frontier_area
from sga.files import read_json_lines, read_json_object, read_yaml, write_json, write_json_lines, write_text
from sga.groups.group import Group
from sga.groups.group_file import write_groups
from sga.rates.replayed import RATES_FILE
from sga.rates.smoothing import equivalent_normal_weight
from sga.runs.rows import Rows, read_rows

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RUN_ROLES = ("target", "retain", "unlearn")
"""Kinds of runs: training the model that will forget, training the model that never sees the forget set, unlearning."""

OWN_CHECKPOINTS = ("last", "best", "good")
"""Names of a run's checkpoints: the last one, the stopping rule's choice, the last one before divergence."""

NO_METRIC = "not among the run's metrics"

_SHORT_METHODS = {"GradientAscent": "GA", "SmoothedGradientAscent": "SGA", "GradientDifference": "GD"}


class RunFolder:
    """The folder of a run, finished or not; all reading and writing of its files goes through this class.

    Files are read when first used and then cached, and written atomically. Use `load_run` for a finished run, which
    also checks the files.

    Attributes:
        path: Path of the folder, which need not exist yet.
        info_path: Path of the run's settings and versions.
        config_path: Path of the resolved configuration, as `sga fit` reads it.
        evaluations_path: Path of the metrics, one evaluation per line.
        chosen_path: Path of the chosen evaluation's metrics; written from the first evaluation on.
        rows_path: Path of the folder of per-sample values, one file per evaluation.
        pairs_path: Path of the forget samples with their normals.
        rates_path: Path of the rates that a policy set, one per optimizer step.
        reference_path: Path of the likelihoods under the starting model.
        predictions_path: Path of the answers that `sga predict` wrote.
        checkpoints_path: Path of the folder of Lightning's checkpoints.
        model_path: Path of the exported model and tokenizer, a folder in Hugging Face format.
        adapter_path: Path of the exported adapter alone, a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info_path = self.path / "run.json"
        self.config_path = self.path / "config.yaml"
        self.evaluations_path = self.path / "metrics.jsonl"
        self.chosen_path = self.path / "metrics.json"
        self.rows_path = self.path / "rows"
        self.pairs_path = self.path / "pairs.jsonl"
        self.rates_path = self.path / RATES_FILE
        self.reference_path = self.path / "reference.json"
        self.predictions_path = self.path / "predictions.jsonl"
        self.checkpoints_path = self.path / "checkpoints"
        self.model_path = self.path / "model"
        self.adapter_path = self.path / "adapter"
        self._old_rows_path = self.path / "rows.jsonl"  # rows of all evaluations, in runs before 2026-11-27

    @classmethod
    def of_rows(cls, path: Path) -> RunFolder:
        """Run folder that a file of rows belongs to."""
        return cls(path.parents[1] if path.parent.name == "rows" else path.parent)

    @property
    def test(self) -> RunFolder:
        """Folder inside this one that `sga test` writes to."""
        return RunFolder(self.path / "test")

    # ---- reading -----------------------------------------------------------------------------------------------

    @cached_property
    def info(self) -> dict[str, Any]:
        """Settings of the run: name, role, method, seed, benchmark, versions, and what else its numbers depend on."""
        return read_json_object(self.info_path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Resolved configuration of the run.

        Raises:
            UserError: the file is missing, or is not a mapping.
        """
        content = read_yaml(self.config_path)
        if not isinstance(content, dict):
            raise UserError(f"{self.config_path}: not a run's configuration; choose another --run.folder")
        return content

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Metrics of each evaluation with ``step``, ``epoch`` and ``seconds``, by ascending step."""
        by_step: dict[int, dict[str, Any]] = {}
        for number, row in read_json_lines(self.evaluations_path) if self.evaluations_path.exists() else ():
            where = f"{self.evaluations_path}:{number}"
            _require(row, {"step": int}, where)
            _check_metrics(row, where)
            by_step[row["step"]] = row  # older resumed runs evaluated their first step again; the later line counts
        return [by_step[step] for step in sorted(by_step)]

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """Metrics of the chosen evaluation, and the reason for each absent one (``absent``)."""
        chosen = read_json_object(self.chosen_path)
        _check_metrics(chosen, str(self.chosen_path))
        if not isinstance(chosen.get("absent", {}), dict):
            raise UserError(f"{self.chosen_path}: 'absent' must be an object of reasons by metric")
        return chosen

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """Forget samples (``forget_id``, ``forget``) with their ``normals``; empty for a run without groups.

        Raises:
            UserError: a line is malformed; names file and line.
        """
        groups = []
        for number, row in read_json_lines(self.pairs_path) if self.pairs_path.is_file() else []:
            where = f"{self.pairs_path}:{number}"
            _require(row, {"forget_id": str, "normals": list}, where)
            for normal in row["normals"]:
                if not isinstance(normal, dict) or not isinstance(normal.get("id"), str):
                    raise UserError(f"{where}: each of 'normals' must be an object with a string 'id'")
            groups.append(row)
        return groups

    # ---- rows --------------------------------------------------------------------------------------------------

    @property
    def results(self) -> tuple[Path, ...]:
        """Paths of the files and folders that a run writes from its first evaluation or checkpoint on."""
        files = (self.evaluations_path, self.chosen_path, self._old_rows_path, self.predictions_path, self.rates_path)
        return (*files, self.rows_path, self.checkpoints_path, self.model_path, self.adapter_path, self.test.path)

    @property
    def row_steps(self) -> list[int]:
        """Steps of the evaluations that have rows, ascending."""
        return sorted({*self._row_files(), *self._old_rows})

    def rows_file(self, step: int) -> Path:
        """Path of the file that holds the rows of an evaluation."""
        path = self.rows_path / f"{step:06}.jsonl"
        return path if path.exists() or not self._old_rows_path.exists() else self._old_rows_path

    def numbered_rows(self, step: int) -> Rows:
        """Rows of one evaluation, each with its place in the file for messages.

        Raises:
            UserError: the step has no rows, or a row is malformed; names file and line.
        """
        if step not in self.row_steps:
            have = ", ".join(map(str, self.row_steps)) or "none"
            raise UserError(f"{self.rows_file(step)}: no rows of step {step}; it has {have}")
        path = self.rows_file(step)
        if path == self._old_rows_path:
            return self._old_rows[step]
        found = read_rows(path)
        if found.keys() - {step}:
            raise UserError(f"{path}: holds rows of step {min(found.keys() - {step})}; were files renamed?")
        return found.get(step, {})

    def row_dicts(self, step: int, evaluation_set: str | None = None) -> list[dict[str, Any]]:
        """Rows of one evaluation as plain dictionaries, of one evaluation set or of all, in file order."""
        rows = self.numbered_rows(step)
        return [row for (name, _), (_, row) in rows.items() if evaluation_set in (None, name)]

    def rows(self, step: int) -> pd.DataFrame:
        """Rows of one evaluation as a table: ``step``, ``set``, ``id``, texts if the run wrote them, values.

        Raises:
            UserError: the step has no rows, or a row is malformed; names file and line.
        """
        import pandas as pd

        return pd.DataFrame(self.row_dicts(step))

    def _row_files(self) -> dict[int, Path]:
        files = self.rows_path.glob("*.jsonl") if self.rows_path.is_dir() else ()
        return {int(path.stem): path for path in files if path.stem.isdecimal()}

    @cached_property
    def _old_rows(self) -> dict[int, Rows]:
        return read_rows(self._old_rows_path) if self._old_rows_path.is_file() else {}

    # ---- weights -----------------------------------------------------------------------------------------------

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint, which need not exist: ``last``, ``best``, ``good``, or the name of an epoch's."""
        return self.checkpoints_path / f"{name}.ckpt"

    @property
    def result_checkpoint(self) -> Path | None:
        """Path of the checkpoint with the run's result: the stopping rule's choice, else the last; None without one."""
        return next((path for name in ("best", "last") if (path := self.checkpoint(name)).is_file()), None)

    @property
    def checkpoints(self) -> list[Path]:
        """Paths of the existing checkpoints, sorted by name."""
        return sorted(path for path in self.checkpoints_path.glob("*.ckpt") if path.is_file())

    def load_model(
        self, checkpoint: str | Path | None = None, trust_code: bool = False
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the model of this run with its tokenizer, on the CPU and in eval mode.

        Args:
            checkpoint: Path of a checkpoint, or ``last``, ``best`` or ``good`` of this run. By default the result: the
                exported model, else the best checkpoint, else the last one.
            trust_code: True to run code that the configuration names: classes of other packages, and
                ``trust_remote_code``. Leave it False for run folders from others.

        Raises:
            UserError: the checkpoint is missing, damaged, or of another model; the tokenizer was not exported; or the
                configuration names code that is not trusted.
        """
        from sga.runs.weights import load_model  # imports torch, which reports do not need

        return load_model(self, checkpoint, trust_code)

    # ---- writing -----------------------------------------------------------------------------------------------

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Writes the run's settings, which `info` reads."""
        self._forget("info")
        write_json(self.info_path, info)

    def write_config(self, text: str) -> None:
        """Writes the configuration from its YAML text, which `config` reads."""
        self._forget("config")
        write_text(self.config_path, text)

    def write_groups(self, groups: Sequence[Group], texts: bool) -> None:
        """Writes the groups, which `groups` reads; with `texts` False, hashes instead of texts."""
        self._forget("groups")
        write_groups(self.pairs_path, groups, texts)

    def write_evaluation(self, point: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Writes rows and metrics of an evaluation; deletes those of the same step and of later steps.

        Later ones exist if a run was resumed from an earlier checkpoint than its last.

        Args:
            point: Metrics of the evaluation with ``step``, ``epoch`` and ``seconds``.
            rows: Rows of the evaluation, each with ``step``, ``set`` and ``id``.

        Returns:
            All evaluations of the run so far, by ascending step.
        """
        step = point["step"]
        points = [old for old in self.evaluations if old["step"] < step] + [dict(point)]
        for earlier in [old for old in self._old_rows if old < step and old not in self._row_files()]:
            self._write_rows(earlier, [row for _, row in self._old_rows[earlier].values()])
        self._write_rows(step, rows)
        for later, path in self._row_files().items():
            if later > step:
                path.unlink()
        self._old_rows_path.unlink(missing_ok=True)
        write_json_lines(self.evaluations_path, points)
        self._forget("evaluations", "_old_rows")
        return points

    def _write_rows(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        write_json_lines(self.rows_path / f"{step:06}.jsonl", rows)

    def write_chosen(self, chosen: Mapping[str, Any]) -> None:
        """Writes the chosen evaluation, which `chosen` reads."""
        self._forget("chosen")
        write_json(self.chosen_path, chosen)

    def write_predictions(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes answers of `sga predict`, one JSON object per line."""
        write_json_lines(self.predictions_path, lines)

    def _forget(self, *names: str) -> None:
        for name in names:
            vars(self).pop(name, None)


class Run(RunFolder):
    """A finished run, with the names and values that reports and comparisons use; `load_run` makes one."""

    @property
    def name(self) -> str:
        """Name of the run, from its configuration."""
        return str(self.info["name"])

    @property
    def role(self) -> str:
        """Role of the run, one of `RUN_ROLES`."""
        return str(self.info["role"])

    @property
    def seed(self) -> int:
        """Seed of the run, for data and training."""
        return int(self.info["seed"])

    @property
    def group_size(self) -> int:
        """Size K of a group: one forget sample and K − 1 normal samples."""
        return int(self.info["group_size"])

    @property
    def benchmark(self) -> str:
        """Name of the benchmark, the prefix of its metrics."""
        return str(self.info["benchmark"])

    @property
    def has_texts(self) -> bool:
        """False if the run kept questions and answers out of its folder (``--run.texts false``)."""
        return bool(self.info.get("texts", True))

    @property
    def method(self) -> str:
        """Name of the method: ``GA``, ``SGA``, ``GD`` or another class name; the role of a run that does not unlearn.

        An evaluation of a model without a loss has no method; it is called by the run's name.
        """
        if self.role != "unlearn":
            return self.role
        if self.info["method"] is None:
            return self.name
        return _SHORT_METHODS.get(str(self.info["method"]), str(self.info["method"]))

    @property
    def smoothing_rate(self) -> float | None:
        """Smoothing rate r if it is fixed: 0 for GA; None for other methods and for rates that a rule computes."""
        if self.method == "GA":
            return 0.0
        return _number(self.info["parameters"].get("smoothing_rate")) if self.method == "SGA" else None

    @property
    def normal_weight(self) -> float | None:
        """Weight λ of −ℓ_f + λ·ℓ̄_n: GD's own weight, and the equivalent one of GA and SGA at a fixed rate."""
        if self.method == "GD":
            parameters = self.info["parameters"]
            return _number(parameters.get("normal_weight", parameters.get("retain_weight")))
        rate = self.smoothing_rate
        if self.method == "SGA" and _number(self.info["parameters"].get("alternative_rate")) is not None:
            return None  # neighbours and alternatives have different weights
        return None if rate is None else equivalent_normal_weight(self.group_size, rate) + 0.0

    @property
    def label(self) -> str:
        """Label of the run in tables and charts: ``GA``, ``SGA r = −0.8``, ``GD λ = 1``, ``retain``."""
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
        """Part of the label on alternatives among the normals, with their own rate or weight if there is one."""
        count, own = self.info.get("alternatives"), _number(self.info["parameters"].get(parameter))
        if not count:
            return ""
        number = "" if own is None else f" {symbol} = {plain(own)}"
        return f", {count} alternative{'s' if count > 1 else ''}{number}"

    @property
    def chosen_step(self) -> int:
        """Optimiser step of the chosen evaluation."""
        return int(self.chosen.get("step", self.evaluations[-1]["step"]))

    @property
    def handover(self) -> Mapping[str, Any] | None:
        """Finding of the rule for handing over on the chosen evaluation; None for a run without that rule."""
        return self.chosen.get("handover")

    def key(self, name: str) -> str:
        """Name of a metric in this run's files: perplexities have no prefix, the others the benchmark's."""
        if name == "utility":
            unseen = any(self.key(UTILITY_UNSEEN) in row for row in self.evaluations)
            name = UTILITY_UNSEEN if unseen else "model_utility"
        return name if name.startswith("perplexity/") else f"{self.benchmark}/{name}"

    def value(self, name: str, evaluation: Mapping[str, Any] | None = None) -> float | None:
        """Value of a metric in one evaluation, by default the chosen one; None if it is absent or not finite.

        Args:
            name: Name without prefix, such as ``model_utility``, ``forget/rouge_l_recall``, ``perplexity/normal/log``;
                ``utility`` is ``model_utility_unseen``, or ``model_utility`` for a run without reserved rows. A missing
                logarithm is computed from the plain value.
            evaluation: Entry of `evaluations`; None for the chosen one.
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
        """Reason why a metric has no value, from the run's files."""
        reasons: Mapping[str, Any] = self.chosen.get("absent") or {}
        is_area = name in ("frontier_area", "frontier_area_ks")
        key = name if is_area else self.key(name)
        wider = key.removesuffix("/log").removesuffix("_log10")
        candidates = [key, wider, *(str(parent) for parent in PurePosixPath(wider).parents)]
        if is_area or name in ("ks_statistic", "ks_n"):
            candidates += [self.key("forget_quality_log10"), self.key("forget_quality")]
        if is_area:
            candidates.append(self.key("utility"))
        return next((str(reasons[one]) for one in candidates if one in reasons), NO_METRIC)

    @property
    def frontier(self) -> list[tuple[float, float]]:
        """Points (log10 forget quality, utility) of the evaluations that have both, by step."""
        points = []
        for evaluation in self.evaluations:
            quality, utility = self.value("forget_quality_log10", evaluation), self.value("utility", evaluation)
            if quality is not None and utility is not None:
                points.append((quality, utility))
        return points

    @property
    def frontier_area(self) -> float | None:
        """Area under the trajectory of an unlearning run, in [0, 1], higher is better; None without a point."""
        return frontier_area(self.frontier) if self.role == "unlearn" and self.frontier else None


def load_run(path: str | Path) -> Run:
    """Opens a finished run and checks its files; rows, groups and weights are read when they are used.

    Raises:
        UserError: the folder or a file of it is missing, the run has not finished, or a file is malformed.
    """
    run = Run(path)
    if not run.path.is_dir():
        raise UserError(f"{path}: no such run folder")
    if not run.info_path.is_file():
        inner = sorted(str(child.parent) for child in run.path.glob(f"*/{run.info_path.name}"))
        cure = f"name the run folders in it: {', '.join(inner[:4])}" if inner else "is it a folder that a run wrote?"
        raise UserError(f"{path}: holds no {run.info_path.name}; {cure}")
    wanted: dict[str, type] = {"name": str, "role": str, "seed": int, "group_size": int, "benchmark": str}
    # A model that is only evaluated has no loss.
    wanted |= {"parameters": dict} if run.info.get("method", "") is None else {"parameters": dict, "method": str}
    _require(run.info, wanted, str(run.info_path))
    if run.role not in RUN_ROLES:
        raise UserError(f"{run.info_path}: 'role' must be one of {', '.join(RUN_ROLES)}, got {run.role!r}")
    if run.group_size < 1:
        raise UserError(f"{run.info_path}: 'group_size' must be at least 1, got {run.group_size}")
    if not run.evaluations:
        raise UserError(f"{run.evaluations_path}: holds no evaluation; the run has not finished")
    if not run.chosen_path.is_file():
        raise UserError(
            f"{path}: the run has not finished (no {run.chosen_path.name}; evaluated up to step "
            f"{run.evaluations[-1]['step']}); wait for it, or resume it from its last checkpoint"
        )
    _ = run.chosen  # checked as it is read
    if not run._old_rows_path.is_file():
        lost = sorted({point["step"] for point in run.evaluations} - run._row_files().keys())
        if lost:
            raise UserError(f"{run.rows_file(lost[0])}: no such file; the run folder is incomplete")
    return run


def plain(value: float) -> str:
    """A number as people write it: −0.8, 1, 2.5, with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def _number(value: Any) -> float | None:
    """The value as a float; None if it is not a finite number."""
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max
    return None if wrong else float(value)


def _check_metrics(row: Mapping[str, Any], where: str) -> None:
    for key, value in row.items():
        is_metric = key in ("epoch", "seconds", "frontier_area") or "/" in key
        if is_metric and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{where}: {key!r} must be a number or null, got {value!r:.60}")


def _require(row: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for name, kind in kinds.items():
        if name not in row:
            raise UserError(f"{where}: missing {name!r}")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise UserError(f"{where}: {name!r} must be of type {kind.__name__}, got {row[name]!r:.60}")
