"""Writer of the run folder: files of a run for people, reports and later runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning
import lightning.pytorch as pl
import torch
import transformers
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import sga
from sga.batching.batch import Batch
from sga.callbacks.evaluator import Evaluator, callback_of, evaluation_of, prediction_request
from sga.callbacks.export import HuggingFaceExport
from sga.callbacks.room import check_room
from sga.callbacks.stopping import Stopping
from sga.data.records import Benchmark
from sga.errors import UserError
from sga.evaluation.aggregation import UTILITY_UNSEEN
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import frontier_area, frontier_area_ks
from sga.evaluation.requests import Generation
from sga.evaluation.table import evaluation_table
from sga.groups.group import record_hash
from sga.groups.similarity import similarity_of_normals
from sga.losses.base import Loss
from sga.rates.geometry import Geometry, paper_rate, total
from sga.rates.replayed import write_rates
from sga.runs.folder import RunFolder
from sga.runs.provenance import command, commit
from sga.runs.restart import clear_start, only_begun, reserved_ids

_TEXTS = ("generation", "answer_tokens")
"""Names of row fields that hold words of the data."""


class RunFiles(pl.Callback):
    """Writes the files that `RunFolder` reads: description, groups, metrics, rows and predictions; each atomically.

    Evaluations are keyed by step: one that is repeated after a resume replaces the old one.
    """

    def __init__(
        self,
        folder: str = "runs/unnamed",
        role: Literal["unlearn", "target", "retain"] = "unlearn",
        texts: bool = True,
        sample_texts: int = 4,
    ) -> None:
        """Notes the settings.

        Args:
            folder: Path of the run folder, where all files of this run are written.
            role: Kind of model that the run makes: an unlearned model, the target (trained on everything) or the retain
                model (trained without the forget data, the reference of forget quality).
            texts: False keeps questions, answers and generations out of the folder, which then has hashes and numbers
                only. A tokenizer trained on the data (SmallLlama's) still holds words of it, in ``model/``.
            sample_texts: Number of greedy answers of the forget set to log as text to TensorBoard.
        """
        self.folder = Path(folder)
        self.role = role
        self.texts = texts
        self.sample_texts = sample_texts
        self.began_anew = False
        """True if the folder held the beginning of another run; known once this run has started."""
        self._started = time.monotonic()
        self._before = 0.0  # seconds spent before the checkpoint that this run resumes from
        self._tokens: Counter[str] = Counter()  # tokens of this process's training steps, by model
        self._looks: list[tuple[float, float | None]] = []  # cosine and r* of gradients measured in the first epoch
        self._last_look: dict[str, Geometry] = {}
        self._similarity: float | None = None

    def state_dict(self) -> dict[str, Any]:
        counts = {"tokens": 0, "reference_tokens": 0, **self._tokens}
        return {"seconds": time.monotonic() - self._started, "looks": self._looks, **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Under DDP every process resumes with the first one's count; all saw equally many groups.
        self._tokens = Counter({name: int(state_dict.get(name, 0)) for name in ("tokens", "reference_tokens")})
        self._before = float(state_dict["seconds"])
        self._looks = list(state_dict.get("looks", ()))

    # ---- the start of a run ------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict" and not self.texts:
            raise UserError("sga predict writes texts, which --run.texts false forbids; leave one of the two out")
        if (evaluator := callback_of(trainer, Evaluator)) is not None:
            evaluator.keeps_texts = self.texts
        export = callback_of(trainer, HuggingFaceExport)
        exported = export is not None and export.enabled
        model: Any = pl_module
        if stage == "fit" and exported and not self.texts and model.language_model.trains_tokenizer:
            warnings.warn(
                f"--run.texts false: the tokenizer of {type(model.language_model).__name__} is trained on the data, "
                "the forget set included, and is exported with the model: words of it are in model/tokenizer.json, and "
                "in what starts from that model. Take a model with a tokenizer of its own, or --export.enabled false",
                stacklevel=2,
            )

    # Nothing is written in setup(): every check comes first, so that a refused run leaves no files.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_room(trainer, pl_module)
        self._describe(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._describe(trainer, pl_module, "validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._describe(trainer, pl_module, "test")

    def _describe(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        """Writes the run's description and, for a fit, the groups."""
        self._started = time.monotonic() - (self._before if stage == "fit" else 0.0)
        if not trainer.is_global_zero:
            return
        data = module.data
        run = self.folder_of(stage)
        run.path.mkdir(parents=True, exist_ok=True)
        self.began_anew = stage != "test" and only_begun(run.path)
        if self.began_anew:
            clear_start(run.path)
        grouped = any(group.normals or group.alternative_origins for group in data.groups)
        if stage == "fit" and grouped and not run.pairs_path.exists():
            run.write_groups(data.groups, self.texts)
        if stage == "fit":
            self._similarity = similarity_of_normals(data.groups, data.benchmark.training["retain"])
        run.write_info(
            {
                "name": self.folder.name,
                "verb": stage,
                "role": self.role,
                "method": type(module.loss).__name__ if module.loss is not None else None,
                "parameters": _parameters(trainer, module.loss),
                "seed": data.seed,
                "group_size": data.group_size,
                "alternatives": data.alternatives.count if data.alternatives is not None else 0,
                "benchmark": data.benchmark.name,
                "model": module.language_model.location,
                "checkpoint": trainer.ckpt_path,
                "reference": None
                if (evaluator := callback_of(trainer, Evaluator)) is None
                else evaluator.reference_path,
                "texts": self.texts,
                "forget_records": len(data.benchmark.training["forget"]),
                "retain_records": len(data.benchmark.training["retain"]),
                "reserved": reserved_ids(data.benchmark),
                "evaluation": data.evaluation_data(every_row=stage == "test").settings,
                "data_sha256": _data_hashes(data.benchmark),
                "versions": versions(),
                "commit": commit(),
                "command": command(),
                "device": _device(trainer),
                "processes": trainer.world_size,
            },
        )

    def folder_of(self, stage: str) -> RunFolder:
        """Folder that a stage writes to: ``sga test`` has one inside the run's, everything else uses the run's."""
        run = RunFolder(self.folder)
        return run.test if stage == "test" else run

    # ---- training ----------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._tokens.update(pl_module.tokens)
        pl_module.tokens.clear()
        if (
            trainer.current_epoch == 0
            and (rate := pl_module.rate)
            and rate.geometry
            and rate.geometry is not self._last_look
        ):
            self._last_look = rate.geometry
            geometry = total(rate.geometry.values())
            self._looks.append((geometry.cosine, paper_rate(geometry)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and pl_module.rate is not None:
            rate = pl_module.rate
            write_rates(RunFolder(self.folder).rates_path, rate.loss.parameter, rate.values)

    # ---- evaluations -------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, self.folder_of("fit"))
        if trainer.state.fn == "validate":
            self._show(trainer, self.folder_of("validate"))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, pl_module, self.folder_of("test"))
        self._show(trainer, self.folder_of("test"))

    def _show(self, trainer: pl.Trainer, run: RunFolder) -> None:
        if trainer.is_global_zero:
            print(f"\n{evaluation_table(_evaluation(trainer))}\n")
            print(f"written to {run.chosen_path}, rows to {run.rows_path.name}/")

    def _write(self, trainer: pl.Trainer, pl_module: Any, run: RunFolder) -> None:
        cost = {**self._cost(trainer), **self._normal_data()} if trainer.state.fn == "fit" else {}
        if not trainer.is_global_zero:
            return
        evaluation = _evaluation(trainer)
        step = trainer.global_step
        # At the end of an epoch the current one is complete, but Lightning has not counted it yet.
        steps_per_epoch = pl_module.data.steps_per_epoch if trainer.state.fn == "fit" else 0
        epoch = round(step / steps_per_epoch, 6) if steps_per_epoch else 0.0
        point = {
            "step": step,
            "epoch": epoch,
            "seconds": round(time.monotonic() - self._started, 3),
            **evaluation.metrics,
        }
        rows = []
        for (name, record_id), values in evaluation.rows.items():
            record = evaluation.texts[name, record_id]
            if self.texts:
                texts = {"question": record.question, "answer": record.answer}
            else:
                texts = {"sha256": record_hash(record)}
                values = {key: value for key, value in values.items() if key not in _TEXTS}
            rows.append({"step": step, "set": name, "id": record_id, **texts, **values})
        points = run.write_evaluation(point, rows)
        run.write_chosen({**_summary(points, evaluation, _stopping(trainer)), **cost})
        self._log(trainer, evaluation, step)

    def _cost(self, trainer: pl.Trainer) -> dict[str, int]:
        """Costs so far: tokens trained on by all processes, tokens read by their starting models if any, and on a GPU
        the peak memory of the first process's tensors in bytes.
        """
        device = trainer.strategy.root_device
        counts = torch.tensor([self._tokens["tokens"], self._tokens["reference_tokens"]], device=device)
        tokens, reference_tokens = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        cost = {"tokens": tokens, **({"reference_tokens": reference_tokens} if reference_tokens else {})}
        if device.type == "cuda":
            cost["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        return cost

    def _normal_data(self) -> dict[str, float]:
        """Mean similarity of the normals, and gradient cosine and r* of the first epoch if they were measured."""
        found = {"normals/similarity": self._similarity}
        for name, values in (
            ("normals/gradient_cosine", [cosine for cosine, _ in self._looks]),
            ("normals/paper_rate", [rate for _, rate in self._looks if rate is not None]),
        ):
            found[name] = sum(values) / len(values) if values else None
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def _log(self, trainer: pl.Trainer, evaluation: Evaluation, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(evaluation.values(), step=step)
            if isinstance(logger, TensorBoardLogger) and self.texts:
                shown = [
                    (key, row) for key, row in evaluation.rows.items() if key[0] == "forget" and "generation" in row
                ]
                for key, row in shown[: self.sample_texts]:
                    record = evaluation.texts[key]
                    with suppress(OSError):  # the logger above has reported it
                        logger.experiment.add_text(
                            f"generations/{key[1]}",
                            f"**{record.question}**\n\nanswer: {record.answer}\n\nmodel: {row['generation']}",
                            step,
                        )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the run's settings with the chosen evaluation's metrics, for TensorBoard's HParams tab."""
        run = RunFolder(self.folder)
        if not trainer.is_global_zero or not run.chosen_path.is_file():
            return
        group = trainer.optimizers[0].param_groups[0]
        settings = {
            "method": type(pl_module.loss).__name__,
            **{name: value for name, value in _parameters(trainer, pl_module.loss).items() if value is not None},
            "group_size": pl_module.data.group_size,
            "lr": float(group.get("initial_lr", group["lr"])),
            "seed": pl_module.data.seed,
        }
        metrics = {
            f"final/{name}": value for name, value in run.chosen.items() if isinstance(value, float) and "/" in name
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, metrics, trainer.global_step)

    # ---- predictions -------------------------------------------------------------------------------------------

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        evaluator = callback_of(trainer, Evaluator)
        assert evaluator is not None, "the trainer has an Evaluator"
        batches = evaluator.request_batches(trainer, "predict")
        mine = [pair for batch in trainer.predict_loop.predictions for pair in batch]
        parts: list[Any] = [mine]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, mine)
        if not trainer.is_global_zero:
            return
        answers = batches.answers({index: Generation(ids) for part in parts for index, ids in part})
        sets = pl_module.data.evaluation_data(every_row=True).sets
        lines = [
            {"set": name, "id": record.id, "question": record.question, "answer": record.answer,
             "generation": answers.generation(prediction_request(record)).text}
            for name in pl_module.data.predict_sets
            for record in sets[name]
            if not record.is_text
        ]  # fmt: skip
        run = RunFolder(self.folder)
        run.write_predictions(lines)
        print(f"{len(lines)} answers written to {run.predictions_path}")


def _parameters(trainer: pl.Trainer, loss: Loss | None) -> dict[str, Any]:
    """The loss's arguments as configured or, in your own program, as the loss's attributes.

    Values that JSON has no form for (an object, infinity) are described as text.
    """
    if loss is None:
        return {}
    saved = callback_of(trainer, SaveConfigCallback)
    config = None if saved is None else saved.config.model.loss
    if config is not None:
        arguments = vars(config.get("init_args") or config.__class__())
    else:
        names = inspect.signature(type(loss)).parameters
        arguments = {name: getattr(loss, name) for name in names if hasattr(loss, name)}
    if not hasattr(loss, "average"):  # losses that have no other mean than the usual one need not state it
        arguments = {name: value for name, value in arguments.items() if name != "average"}
        arguments |= {} if loss.mean_over == "sequence" else {"average": loss.mean_over}
    if not arguments.get("unit_ascent", True):  # as published
        del arguments["unit_ascent"]
    return {
        name: value if _has_json_form(value) else str(getattr(loss, name, value)) for name, value in arguments.items()
    }


def _data_hashes(benchmark: Benchmark) -> dict[str, str]:
    """SHA-256 of the training records by set, in order: says whether two runs had the same data, and none of it."""
    return {
        name: hashlib.sha256("".join(map(record_hash, records)).encode()).hexdigest()
        for name, records in benchmark.training.items()
    }


def _has_json_form(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, by name."""
    return {
        "sga": sga.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _summary(points: list[dict[str, Any]], evaluation: Evaluation, stopping: Stopping | None) -> dict[str, Any]:
    """Content of metrics.json: the chosen evaluation with its reason, the frontier area of all, and absent metrics."""
    summary: dict[str, Any] = {"chosen": "the last evaluation", **points[-1]}
    absent, notes = evaluation.absent, evaluation.notes
    if stopping is not None and stopping.rule is not None:
        choice = stopping.choice
        of_choice = [point for point in points if choice is not None and point["step"] == choice.step]
        if choice is None or not of_choice:
            summary["because"] = f"no evaluation qualifies as {stopping.rule.declaration()}"
        else:
            summary = {"chosen": stopping.rule.declaration(), "because": choice.because, **of_choice[0]}
            summary |= stopping.result()
            absent, notes = choice.absent, choice.notes
        if stopping.stopped is not None:
            summary["stopped"] = stopping.stopped
    keys = [key for name in (UTILITY_UNSEEN, "model_utility") for key in points[-1] if key.endswith(f"/{name}")]
    utility, prefix = keys[0] if keys else "", keys[0].split("/")[0] if keys else ""
    trade_off = [
        (point[f"{prefix}/forget_quality_log10"], 1 - point[f"{prefix}/ks_statistic"], point[utility])
        for point in points
        if f"{prefix}/forget_quality_log10" in point and utility in point
    ]
    if trade_off and not utility.endswith(UTILITY_UNSEEN):
        notes = [*notes, "frontier areas are over model_utility, whose retain rows unlearning may have seen"]
    if trade_off:
        summary["frontier_area"] = frontier_area([(quality, utility) for quality, _, utility in trade_off])
        summary["frontier_area_ks"] = frontier_area_ks([(near, utility) for _, near, utility in trade_off])
    summary["absent"] = absent
    summary["notes"] = notes
    return summary


def _evaluation(trainer: pl.Trainer) -> Evaluation:
    evaluation = evaluation_of(trainer)
    assert evaluation is not None, "the trainer has an Evaluator"
    return evaluation


def _stopping(trainer: pl.Trainer) -> Stopping | None:
    """The stopping callback of a training run; None otherwise, because there is a single evaluation then."""
    return callback_of(trainer, Stopping) if trainer.state.fn == "fit" else None


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
