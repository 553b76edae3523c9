"""Zero-shot accuracy by EleutherAI's lm-evaluation-harness, run in this process on the current weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from sga.callbacks.evaluator import EvaluationCallback
from sga.datamodule import EvaluationData
from sga.errors import UserError, check_numbers
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.requests import Answers


class Harness(EvaluationCallback):
    """Zero-shot tasks of the harness (extra ``harness``) at every evaluation; nothing runs unless tasks are named.

    Metrics are ``harness/TASK/METRIC`` as the harness names and computes them, with its standard errors in
    ``harness/TASK/METRIC_stderr``. The published Harry Potter setting takes boolq, rte, hellaswag, winogrande,
    arc_challenge, arc_easy, openbookqa, piqa and truthfulqa, whose data the harness takes from the Hub.
    """

    def __init__(
        self,
        tasks: Sequence[str] = (),
        include_path: str | None = None,
        limit: int | None = None,
        batch_size: int = 8,
    ) -> None:
        """Checks the settings; tasks are looked up before training starts.

        Args:
            tasks: Names of tasks or task groups of the harness.
            include_path: Folder with your own task files.
            limit: Number of items of each task to evaluate, to try it out; null for all.
            batch_size: Number of sequences per forward pass.
        """
        check_numbers(1, limit=limit, batch_size=batch_size)
        self.tasks, self.include_path = tuple(tasks), include_path
        self.limit, self.batch_size = limit, batch_size
        self._task_manager: Any = None
        self._module: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._module = pl_module
        if not self.tasks or stage == "predict":
            return
        if trainer.world_size > 1:
            raise UserError(
                "--harness.tasks works in one process; leave it out here, and evaluate the result by itself: "
                "sga validate … --trainer.devices 1 --harness.tasks …"
            )
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                f"--harness.tasks needs the extra 'harness' ({error}): pip install 'sga-unlearning[harness]'"
            ) from error
        self._task_manager = TaskManager(include_path=self.include_path)
        unknown = [task for task in self.tasks if not self._task_manager.match_tasks([task])]
        if unknown:
            raise UserError(
                f"--harness.tasks: the harness has no {', '.join(unknown)}; `lm-eval ls tasks` lists what it has, "
                "--harness.include_path FOLDER adds tasks of your own"
            )

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        if not self.tasks:
            if evaluation.name == "book":  # its published setting includes the harness
                evaluation.absent["harness"] = "no tasks of lm-evaluation-harness are named (--harness.tasks)"
            return
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with isolate_rng():  # the harness sets every global seed
            model = HFLM(
                pretrained=self._module.model,
                tokenizer=copy.deepcopy(self._module.data.tokenizer),  # the harness may add a pad token to it
                max_length=data.encoder.max_length,
                batch_size=self.batch_size,
            )
            found = simple_evaluate(
                model=model,
                tasks=list(self.tasks),
                num_fewshot=0,
                limit=self.limit,
                log_samples=False,
                task_manager=self._task_manager,
            )
        assert found is not None, "the harness gives results to the first process"
        for task, values in found["results"].items():
            for key, value in values.items():
                metric, _, how = key.partition(",")
                if how and isinstance(value, int | float):
                    name = f"harness/{task}/{metric}" if how == "none" else f"harness/{task}/{metric}/{how}"
                    evaluation.add(name, value)
        if self.limit is not None:
            evaluation.note(f"harness: the first {self.limit} items of each task only, which is no benchmark result")
