"""Who does what: trials of an Optuna study, taken by one worker each, whichever machine it runs on.

Optuna's storage does the one thing that has to be atomic: a waiting trial becomes one worker's running trial. A grid's
tasks are trials that carry the task's key; a search's are drawn by the sampler. Both follow the same rules:

* Trials with the same identity (a task's key, or the first number of a search trial that was put back) are the same
  work, and the one with the lowest number that has not ended without a result stands for it. So it does no harm if two
  workers queue the same task: whoever takes the second trial finds the first and drops its own.
* A worker writes a new beat into its trial every few seconds. One whose process is gone (seen on the same machine), or
  whose beat has not changed for `stale_after` seconds by the watcher's own clock (clocks of different machines are
  never compared), has its trial ended without a result, and the work is queued again.
* A worker that finds its own trial ended by another one (it was suspended, say) stops what it is doing.

Optuna's own heartbeat is not used: it exists for databases only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.errors import UserError
from sga.experiments.configuration import Values
from sga.experiments.sweeps.definition import Distribution, Outcome, Search, Task
from sga.files import read_json_lines

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"


def open_storage(storage: str | None, folder: Path) -> optuna.storages.BaseStorage:
    """The storage of a sweep: a journal file in its folder, or a database.

    Args:
        storage: URL of a database or path of another journal file; None for ``journal.log`` in the folder.
        folder: The sweep's.

    Raises:
        UserError: Optuna is not installed, the database cannot be opened or is SQLite, or the journal is damaged
            elsewhere than in its last line.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    except ModuleNotFoundError as error:
        raise UserError(
            f"sga sweep shares out its trials through Optuna, which is not installed ({error}): "
            "pip install 'sga-unlearning[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if storage is not None and "://" in storage:
        if storage.startswith("sqlite"):
            # It has no row locks: Optuna's check that a trial waits and its change to running are two steps there.
            raise UserError(
                f"--storage {storage}: SQLite gives one trial to two workers now and then; leave --storage out for "
                "a journal file, or name a PostgreSQL or MySQL database"
            )
        try:
            return optuna.storages.get_storage(storage)
        except Exception as error:  # whatever the database's driver raises
            raise UserError(f"--storage {storage}: cannot be opened ({error})") from error
    path = Path(storage) if storage is not None else folder / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)

    class Lock(JournalFileSymlinkLock):
        """Optuna's lock; who gets it finds the journal whole, whatever a killed writer has left."""

        def acquire(self) -> bool:
            acquired = super().acquire()
            try:
                trim(path)
            except BaseException:
                self.release()
                raise
            return acquired

    lock = Lock(str(path))
    lock.acquire()
    try:
        read_json_lines(path, "move it away: finished runs are reused from their folders")
    finally:
        lock.release()
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))


def trim(path: Path) -> None:
    """Takes away a last line that is half written; a file named ``….torn`` beside the journal keeps it.

    The next line would be glued to it, and a journal with such a line cannot be opened again.
    """
    with path.open("a+b") as file:
        if file.tell() == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        with path.with_name(f"{path.name}.torn").open("ab") as torn:
            torn.write(content[whole:] + b"\n")
        file.truncate(whole)
    print(f"{path}: the last line was half written and is now in {path.name}.torn; its writer was killed", flush=True)


class Claim:
    """One trial that this worker has taken; a thread keeps its beat until it is ended.

    Attributes:
        lost: Set when another worker has ended the trial.
    """

    def __init__(self, study: optuna.Study, trial: Trial, beat_every: float) -> None:
        self.study, self.trial, self.number = study, trial, trial.number
        self.lost = threading.Event()
        self._done = threading.Event()
        trial.set_user_attr("worker", {"host": _host(), "pid": os.getpid(), "started": _started(None)})
        trial.set_user_attr("beat", 0)
        self._beats = threading.Thread(target=self._beat, args=(beat_every,), daemon=True, name=f"trial {self.number}")
        self._beats.start()

    def _beat(self, every: float) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        beat = 0
        while not self._done.wait(every):
            beat += 1
            try:
                self.trial.set_user_attr("beat", beat)
            except UpdateFinishedTrialError:
                self.lost.set()
                return
            except Exception as error:  # a database that is away for a while; the run itself does not need it
                print(f"trial {self.number}: no sign of life could be given ({error})", flush=True)

    def finish(self, values: Sequence[float]) -> None:
        """Ends the trial with the objectives' values."""
        self._end(None, values)

    def fail(self, reason: str) -> None:
        """Ends the trial for good: it is not tried again by itself."""
        self._end({"outcome": "failed", "reason": reason}, None)

    def release(self) -> None:
        """Puts the work back; another worker, or a later one, does it."""
        self._end({"outcome": "released"}, None)

    def drop(self) -> None:
        """Ends a trial whose work another trial stands for."""
        self._end({"outcome": "dropped"}, None)

    def _end(self, attributes: Mapping[str, Any] | None, values: Sequence[float] | None) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        self._done.set()
        self._beats.join()
        try:
            for name, value in (attributes or {}).items():
                self.trial.set_user_attr(name, value)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self.study.tell(self.number, values, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            self.lost.set()


class Claims:
    """The trials of one study.

    Args:
        storage: Where they are.
        name: Of the study; workers that give the same one share the work.
        directions: ``maximize`` or ``minimize`` for each objective.
        stale_after: Seconds without a new beat after which another machine's worker counts as gone.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, directions: Sequence[str], stale_after: float = 180.0
    ) -> None:
        import optuna
        from optuna.study import StudyDirection

        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[StudyDirection[direction.upper()] for direction in directions],
            load_if_exists=True,
        )
        self.stale_after = stale_after
        self._seen: dict[int, tuple[Any, float]] = {}  # last beat of a running trial, and when it was new

    # ---- looking -----------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials that stand for work, by number."""
        standing: dict[str, FrozenTrial] = {}
        for trial in self._trials():
            if self._stands(trial):
                standing.setdefault(identity(trial), trial)
        return list(standing.values())

    def outcomes(self) -> dict[str, Outcome]:
        """How finished work ended, by identity."""
        return {
            identity(trial): Outcome(reason=str(trial.user_attrs.get("reason")))
            if trial.state.name == "FAIL"
            else Outcome(tuple(trial.values))
            for trial in self.trials()
            if trial.state.is_finished()
        }

    def forgive(self) -> None:
        """Lets failed work be tried again."""
        numbers = [trial.number for trial in self._trials()]
        self.study.set_user_attr("forgiven", max(numbers, default=-1))

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _stands(self, trial: FrozenTrial) -> bool:
        """Whether a trial is, will be or has been worth something; not if it ended without a result."""
        if trial.state.name != "FAIL":
            return trial.user_attrs.get("outcome") != "dropped"
        forgiven = trial.number <= int(self.study.user_attrs.get("forgiven", -1))
        return trial.user_attrs.get("outcome") == "failed" and not forgiven

    # ---- taking ------------------------------------------------------------------------------------------------

    def claim(self, tasks: Sequence[Task]) -> tuple[Task, Claim] | None:
        """Takes one of these tasks that nobody has; None if there is none now."""
        self.reap()
        wanted = {task.key: task for task in tasks}
        standing = {identity(trial): trial for trial in self.trials()}
        for key in wanted:
            if key not in standing:
                self.study.enqueue_trial({}, user_attrs={"key": key})
        while any(trial.state.name == "WAITING" for trial in self._trials()):
            claim = self._take()
            task = wanted.get(str(claim.trial.user_attrs.get("key")))
            if task is not None and self._is_first(claim):
                return task, claim
            claim.drop()
        return None

    def draw(self, search: Search) -> tuple[Values, Claim] | None:
        """Takes a trial of a search, a new one or one that was put back; None if as many as wanted are taken."""
        self.reap()
        while True:
            trials = self._trials()
            standing = {identity(trial) for trial in self.trials()}
            for trial in trials:
                left = trial.state.name == "FAIL" and trial.user_attrs.get("outcome") != "dropped"
                if left and identity(trial) not in standing:
                    self.study.enqueue_trial(trial.params, user_attrs={"key": identity(trial)})
                    standing.add(identity(trial))
            waiting = any(trial.state.name == "WAITING" for trial in self._trials())
            if not waiting and len(standing) >= search.trials:
                return None
            claim = self._take()
            values = self._suggested(claim.trial, search)
            if self._is_first(claim) and self._rank(claim) < search.trials:
                claim.trial.set_user_attr("values", values)
                return values, claim
            claim.drop()

    def _take(self) -> Claim:
        return Claim(self.study, self.study.ask(), beat_every=max(0.2, min(20.0, self.stale_after / 6)))

    def _is_first(self, claim: Claim) -> bool:
        """Whether this trial stands for its work: there is no earlier one that does."""
        mine = identity(self._trials()[claim.number])
        return all(identity(trial) != mine for trial in self.trials() if trial.number < claim.number)

    def _rank(self, claim: Claim) -> int:
        """How many pieces of a search's work came before this one."""
        mine = _first_number(self._trials()[claim.number])
        return len({_first_number(trial) for trial in self.trials() if _first_number(trial) < mine})

    def _suggested(self, trial: Trial, search: Search) -> Values:
        import optuna

        # A seed of its own for each trial: workers that shared one would draw the same.
        seed = zlib.crc32(f"{search.seed}/{identity(self._trials()[trial.number])}".encode())
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        self.study.sampler = samplers[search.sampler](seed=seed)
        return {name: _suggest(trial, name, one) for name, one in search.space.items()}

    # ---- workers that are gone ---------------------------------------------------------------------------------

    def reap(self) -> None:
        """Ends the trials of workers that are gone, without a result."""
        from optuna.trial import TrialState

        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                self._seen.pop(trial.number, None)
            elif self._is_gone(trial):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                print(f"trial {trial.number} was left by its worker and is taken over", flush=True)

    def _is_gone(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker") or {}
        if worker.get("host") == _host() and _started(int(worker["pid"])) != worker["started"]:
            return True
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        before, since = self._seen.setdefault(trial.number, (beat, now))
        if beat != before:
            self._seen[trial.number] = (beat, now)
        return beat == before and now - since > self.stale_after


def identity(trial: FrozenTrial) -> str:
    """What work a trial is for: a task's key, or ``#n`` with the first number of a search trial."""
    return str(trial.user_attrs.get("key", f"#{trial.number}"))


def _first_number(trial: FrozenTrial) -> int:
    return int(identity(trial).removeprefix("#"))


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Any:
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.kind == "choice":
        # Optuna's choices are numbers and texts; blocks go in and come out as JSON.
        return json.loads(trial.suggest_categorical(name, [json.dumps(one) for one in distribution.choices]))
    log = distribution.kind.startswith("log")
    if distribution.kind.endswith("int"):
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


@cache
def _host() -> str:
    """What tells this machine, and on Linux this container, from others: many of them may be called localhost."""
    name = socket.gethostname()
    if sys.platform != "linux":
        return name
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{name} {boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int | None) -> str | None:
    """When a process of this machine started, by default this one; None where there is no such process.

    Numbers of processes are used again; a number with its start is not.
    """
    number = os.getpid() if pid is None else pid
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in ("Z", "X") else fields[19]  # a zombie is gone
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(number)], capture_output=True, text=True, check=False)
    return listed.stdout.strip() or None
