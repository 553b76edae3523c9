"""One worker: takes what is open, runs `sga fit` on it in a process of its own, and notes how it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.data.builtin import source_hash
from sga.errors import UserError
from sga.evaluation.table import duration
from sga.experiments.configuration import set_value
from sga.experiments.sweeps.claims import Claim, Claims, open_storage
from sga.experiments.sweeps.definition import Outcome, Sweep, Task, label
from sga.files import read_json_object, write_json, write_text, yaml_text
from sga.runs.folder import RunFolder
from sga.runs.lock import LockedError, write_lock

STATE_FILE = "trial.json"
CONFIG_FILE = "fit.yaml"
LOG_FILE = "fit.log"


@dataclass(frozen=True)
class Worker:
    """What a worker knows.

    Attributes:
        sweep: What is asked for.
        folder: The sweep's folder, on a file system that all workers see.
        storage: As `open_storage` takes it.
        stale_after: Seconds without a sign of life after which a worker of another machine counts as gone.
        poll: Seconds between looks at the storage while others are working.
    """

    sweep: Sweep
    folder: Path
    storage: str | None = None
    stale_after: float = 180.0
    poll: float = 2.0

    def run(self) -> None:
        """Works until everything is finished, by this worker or by others.

        Raises:
            UserError: a shared model could not be made.
        """
        with terminable():
            self._models()
            if self.sweep.search is None:
                claims = self.claims()
                self._drain(claims, lambda: self.sweep.tasks(claims.outcomes()), self.sweep.run_count)
            else:
                self._search()

    def claims(self, models: bool = False) -> Claims:
        """The trials of the sweep, or of its shared models."""
        name = f"{self.sweep.path.stem}-{self.sweep.key[:16]}{'-models' if models else ''}"
        directions = ["maximize"] if models else list(self.sweep.objectives.values())
        return Claims(open_storage(self.storage, self.folder), name, directions, self.stale_after)

    def _models(self) -> None:
        tasks = self.sweep.model_tasks
        if not tasks:
            return
        claims = self.claims(models=True)
        self._drain(claims, lambda: tasks, len(tasks))
        for task in tasks:
            outcome = claims.outcomes()[task.key]
            if outcome.reason is not None:
                raise UserError(
                    f"the {task.folder} failed ({outcome.reason}; see {self.folder / task.folder / LOG_FILE}): mend "
                    "it, and start again with --retry-failed"
                )

    def _drain(self, claims: Claims, tasks: Callable[[], list[Task]], total: int) -> None:
        outcomes = claims.outcomes()
        pace = _Pace(total, sum(task.key in outcomes for task in tasks()))
        while True:
            outcomes = claims.outcomes()
            known = tasks()
            rest = [task for task in known if task.key not in outcomes]
            if not rest:
                return
            found = claims.claim(rest)
            if found is None:
                time.sleep(self.poll)
                continue
            task, claim = found
            with _releasing(claim):
                outcome = self.outcome(task, claim)
                if outcome is None:
                    continue
                if outcome.reason is not None:
                    claim.fail(outcome.reason)
                else:
                    claim.finish(outcome.values)
            outcomes = claims.outcomes()
            self._say(task.label, outcome, pace.after(sum(task.key in outcomes for task in tasks())))

    def _search(self) -> None:
        search = self.sweep.search
        assert search is not None, "this is a search"
        claims = self.claims()
        pace = _Pace(search.trials, len(claims.outcomes()))
        while len(claims.outcomes()) < search.trials:
            found = claims.draw(search)
            if found is None:
                time.sleep(self.poll)
                continue
            values, claim = found
            with _releasing(claim):
                outcomes = []
                for seed in self.sweep.seeds:
                    outcome = self.outcome(self.sweep.task(values, seed), claim)
                    if outcome is None:
                        break
                    outcomes.append(outcome)
                if claim.lost.is_set() or len(outcomes) < len(self.sweep.seeds):
                    continue
                reasons = [outcome.reason for outcome in outcomes if outcome.reason is not None]
                if reasons:
                    claim.fail("; ".join(sorted(set(reasons))))
                    mean = Outcome(reason=reasons[0])
                else:
                    columns = zip(*(outcome.values for outcome in outcomes), strict=True)
                    mean = Outcome(tuple(sum(column) / len(outcomes) for column in columns))
                    claim.finish(mean.values)
            self._say(label(values), mean, pace.after(len(claims.outcomes())))

    def _say(self, name: str, outcome: Outcome, place: str) -> None:
        # A shared model has no objectives, and one value that says it is there.
        pairs = zip(self.sweep.objectives, outcome.values, strict=True) if not name.startswith("models/") else ()
        numbers = ", ".join(f"{objective} {value:.4g}" for objective, value in pairs) if outcome.values else ""
        said = f"FAILED: {outcome.reason}" if outcome.reason is not None else numbers or "done"
        print(f"[{place}] {name}: {said}", flush=True)

    # ---- one run -----------------------------------------------------------------------------------------------

    def outcome(self, task: Task, claim: Claim | None = None) -> Outcome | None:
        """Makes a task's run folder, or goes on with it, or reuses it; None if the claim was lost meanwhile."""
        folder = self.folder / task.folder
        if not self._until_free(folder, claim):
            return None
        state = read_state(folder)
        if state and state.get("key") != task.key:
            raise UserError(f"{folder} holds another run than this sweep's: move it away")
        if state.get("state") == "finished":
            return self._read(task)
        if state.get("state") == "failed":
            return Outcome(reason=str(state["reason"]))
        if not state and folder.exists():
            raise UserError(f"{folder} was not made by sga sweep: choose another --folder, or move it away")
        config = json.loads(json.dumps(task.config))
        if task.stage != "model":
            for name, value in self.sweep.locations(self.folder).items():
                set_value(config, name, value)
        set_value(config, "run.folder", str(folder))
        state = {
            "key": task.key,
            "state": "started",
            "stage": task.stage,
            "values": task.values,
            "seed": task.seed,
            "source": source_hash(),
            "attempts": int(state.get("attempts", 0)) + 1,
            "peak_memory_bytes": int(state.get("peak_memory_bytes", 0)),
        }
        write_json(folder / STATE_FILE, state)
        write_text(folder / CONFIG_FILE, yaml_text(config))
        code, memory = _fit(folder, claim)
        if code in (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            time.sleep(2.0)  # a scheduler that stops the run stops this worker too: then it is no failure
        if code is None:
            return None
        state["peak_memory_bytes"] = max(state["peak_memory_bytes"], memory)
        write_json(folder / STATE_FILE, state)  # it may be an objective
        outcome = Outcome(reason=why_ended(code, folder / LOG_FILE)) if code else self._read(task)
        state["state"] = "finished" if outcome.reason is None else "failed"
        if outcome.reason is not None:
            state["reason"] = outcome.reason
        if task.stage != "model" and not self.sweep.keep_weights:
            shutil.rmtree(RunFolder(folder).checkpoints_path, ignore_errors=True)
        write_json(folder / STATE_FILE, state)
        return outcome

    def _until_free(self, folder: Path, claim: Claim | None) -> bool:
        """Waits while another process writes to a run folder (runs outlive workers); False if the claim is lost."""
        said = False
        while claim is None or not claim.lost.is_set():
            try:
                with write_lock(folder):
                    return True
            except LockedError as error:
                if not said:
                    print(f"waiting: {error.held}", flush=True)
                said = True
            time.sleep(self.poll)
        return False

    def _read(self, task: Task) -> Outcome:
        if task.stage == "model":
            return Outcome((1.0,))
        folder = self.folder / task.folder
        if not RunFolder(folder).chosen_path.is_file():
            return Outcome(reason="the run made no evaluation")
        values = []
        for name in self.sweep.objectives:
            found = objective(folder, name)
            if isinstance(found, str):
                return Outcome(reason=f"{name} is absent: {found}")
            values.append(found)
        return Outcome(tuple(values))


def read_state(folder: Path) -> dict[str, Any]:
    """What a run folder of a sweep says about itself; empty where there is none."""
    path = folder / STATE_FILE
    return read_json_object(path) if path.is_file() else {}


def objective(folder: Path, name: str) -> float | str:
    """A metric of a finished run, with or without the benchmark's prefix, or why it is absent."""
    run = RunFolder(folder)
    if name == "seconds":  # of the whole run; the chosen evaluation may be an earlier one
        return float(run.evaluations[-1]["seconds"])
    if name == "peak_memory_bytes":  # seen by the worker, not by the run
        return float(read_state(folder)[name])
    chosen, benchmark = run.chosen, run.info["benchmark"]
    for found in (chosen.get(name), chosen.get(f"{benchmark}/{name}")):
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
    reasons: dict[str, str] = chosen.get("absent") or {}
    for key in (name, f"{benchmark}/{name}", f"{benchmark}/forget_quality", f"{benchmark}/forget_quality_log10"):
        if key in reasons:
            return reasons[key]
    return "not among the run's metrics"


def forgive(sweep: Sweep, folder: Path) -> int:
    """Lets failed runs of a sweep folder be made again; their number."""
    failed = [path for path in folder.glob(f"*/*/{STATE_FILE}") if read_state(path.parent).get("state") == "failed"]
    for path in failed:
        shutil.rmtree(path.parent)
    return len(failed)


def _fit(folder: Path, claim: Claim | None) -> tuple[int | None, int]:
    """Runs `sga fit`; exit code (None if the claim was lost meanwhile) and peak resident memory in bytes."""
    command = [
        sys.executable,
        "-m",
        "sga.experiments.sweeps.fit",
        "--config",
        str(folder / CONFIG_FILE),
        "--ckpt_path",
        "last",
    ]
    with (folder / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if claim is not None and claim.lost.is_set():
                    return None, 0
                time.sleep(0.1)
            process.returncode = os.waitstatus_to_exitcode(status)
            unit = 1 if sys.platform == "darwin" else 1024
            return process.returncode, usage.ru_maxrss * unit
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            assert process.stdin is not None, "it is a pipe"
            process.stdin.close()


def why_ended(code: int, log: Path) -> str:
    """A reason for people from an exit code and the end of a log."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output")
    return f"{said.removeprefix('sga: error: ')[:400]} (exit code {code})"


class _Pace:
    """How far the work is, and how long the rest takes at the pace of all workers since this one began."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done_before, self.began = total, done, time.monotonic()

    def after(self, done: int) -> str:
        """In words, once so many pieces are done."""
        new, left = done - self.done_before, self.total - done
        if new < 1 or left < 1:
            return f"{done} of {self.total}"
        return f"{done} of {self.total}, {duration((time.monotonic() - self.began) / new * left)} left"


@contextmanager
def _releasing(claim: Claim) -> Iterator[None]:
    """Puts the work back if this worker is interrupted or fails itself."""
    try:
        yield
    except BaseException:
        claim.release()
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, as an exception."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
