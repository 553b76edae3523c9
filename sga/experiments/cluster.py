"""Tasks as jobs of a cluster, through submitit: SLURM arrays, with preempted jobs requeued."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sga.errors import UserError
from sga.experiments.engine import Job, Pool, run
from sga.experiments.task import Outcome, Task, outcome

JOBS = "jobs"
"""Name of the folder, within the experiment's, for the output of jobs."""


@dataclass(frozen=True)
class _Work:
    """Work of one job, in the form that submitit can pickle and requeue."""

    task: Task
    folder: Path

    def __call__(self) -> None:
        run([self.task], self.folder)

    def checkpoint(self) -> Any:
        """Requeues the same work if the job runs out of time or is preempted; it then resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class _ClusterJob:
    work: _Work
    job: Any

    def poll(self) -> Outcome | None:
        if not self.job.done():
            return None
        found = outcome(self.work.task, self.work.folder)
        return found or Outcome(f"job {self.job.job_id} ended without a result; see {self.job.paths.stderr}", 1)

    def stop(self) -> None:
        self.job.cancel()


class Cluster(Pool):
    """Pool that runs each task in a cluster job.

    Args:
        kind: Kind of cluster: ``slurm``, or ``local`` for processes of this machine in place of jobs, to try it out.
        folder: Folder of the experiment, on a file system that all jobs see.
        workers: Number of jobs at a time.
        parameters: Parameters of submitit's executor, such as ``timeout_min`` (24 hours by default here),
            ``gpus_per_node`` and ``slurm_partition``.
        ahead: True to submit all tasks to SLURM at once, which runs `workers` at a time; False if later tasks depend on
            results of earlier ones.

    Raises:
        UserError: submitit is not installed, there is no SLURM, or submitit does not know a parameter.
    """

    def __init__(
        self,
        kind: Literal["slurm", "local"],
        folder: Path,
        workers: int,
        parameters: Mapping[str, Any],
        ahead: bool = True,
    ) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise UserError(
                f"--cluster submits jobs through submitit, which is not installed ({error}): "
                "pip install 'sga-unlearning[slurm]'"
            ) from None
        try:
            self.executor = submitit.AutoExecutor(folder / JOBS / "%j", cluster=kind, slurm_max_num_timeout=100)
            given = {"name": "sga", "timeout_min": 24 * 60, "slurm_array_parallelism": workers, **parameters}
            self.executor.update_parameters(**given)
        except (RuntimeError, NameError, TypeError, AssertionError) as error:
            raise UserError(f"--cluster {kind}: {error}") from None
        self.pause = 10.0 if kind == "slurm" else 1.0  # each poll of a job takes several calls to a shared file system
        self.workers = 1000 if ahead and kind == "slurm" else workers

    def batch(self) -> AbstractContextManager[object]:
        """Context within which all started jobs are submitted as one array."""
        context: AbstractContextManager[object] = self.executor.batch(allow_implicit_submissions=True)
        return context

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        """Submits a task; its job takes the lock when it begins."""
        work = _Work(task, folder.resolve())
        return _ClusterJob(work, self.executor.submit(work))
