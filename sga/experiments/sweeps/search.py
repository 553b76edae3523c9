"""Trials drawn by an Optuna study when there is room for more; their results are read from the run folders."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.errors import UserError
from sga.experiments.configuration import Values
from sga.experiments.sweeps.definition import Sweep, Trial
from sga.experiments.sweeps.results import disk_results
from sga.files import read_json_lines
from sga.runs.lock import LockedError, write_lock

if TYPE_CHECKING:
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"


def optuna() -> Any:
    """Imports Optuna, which is optional.

    Raises:
        UserError: Optuna is not installed; names the extra to install.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(
            f"a search draws its trials through Optuna, which is not installed ({error}): "
            "pip install 'sga-unlearning[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_journal(folder: Path) -> JournalStorage:
    """Opens the storage of a search, a journal file in the sweep's folder.

    Raises:
        UserError: Optuna is not installed, or the journal is damaged before its last line.
    """
    optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    path = folder / JOURNAL
    folder.mkdir(parents=True, exist_ok=True)

    class Lock(JournalFileSymlinkLock):
        """Optuna's lock, which also removes a line half written by a killed process when it is acquired."""

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
    return JournalStorage(JournalFileBackend(str(path), lock))


def trim(path: Path) -> None:
    """Moves a half-written last line of the journal to a file ``….torn`` beside it.

    The next line would otherwise be appended to it, and a journal with such a line cannot be opened again.
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


class Draws:
    """Trials of a search, shared by all commands on the same folder.

    No command owns a trial: any with room runs it, and any that sees it finished reports it to the study. A trial with
    a failed run is not reported and stays "running" in the study, because it may be retried.

    Args:
        sweep: Sweep with a search.
        folder: Folder of the sweep, with the journal and the run folders.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        assert sweep.search is not None, "this is a search"
        self.sweep, self.search, self.folder = sweep, sweep.search, folder
        self.study = optuna().create_study(
            storage=open_journal(folder),
            study_name=f"{sweep.path.stem}-{sweep.key[:16]}",
            directions=["maximize" if way == "maximize" else "minimize" for way in sweep.objectives.values()],
            load_if_exists=True,
        )

    def tasks(self, room: int = 0) -> list[Trial]:
        """Runs of all trials so far; new trials are drawn for `room` more runs."""
        self._tell()
        for _ in range(0, room, len(self.sweep.seeds)):
            self._ask()
        return [task for trial in self._drawn() for task in self._runs(trial)]

    def _drawn(self) -> list[FrozenTrial]:
        """Trials with values; a trial whose drawing was interrupted does not count."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "values" in trial.user_attrs]

    def _runs(self, trial: FrozenTrial) -> list[Trial]:
        values: Values = trial.user_attrs["values"]
        return [self.sweep.task(values, seed) for seed in self.sweep.seeds]

    def _ask(self) -> None:
        """Draws one more trial, unless all are drawn or another command is drawing one now."""
        optuna_ = optuna()
        try:
            with write_lock(self.folder / JOURNAL):
                number = len(self._drawn())
                if number >= self.search.trials:
                    return
                # Each trial has its own seed: commands that shared one would draw the same values.
                seed = zlib.crc32(f"{self.search.seed}/#{number}".encode())
                samplers = {"tpe": optuna_.samplers.TPESampler, "random": optuna_.samplers.RandomSampler}
                self.study.sampler = samplers[self.search.sampler](seed=seed)
                trial = self.study.ask(self.search.space)
                trial.set_user_attr("values", self.search.values(trial.params))
        except LockedError:
            return

    def _tell(self) -> None:
        """Reports the mean objectives of trials whose runs have all finished to the study."""
        waiting = [trial for trial in self._drawn() if not trial.state.is_finished()]
        results = disk_results(self.sweep, self.folder) if waiting else {}
        for trial in waiting:
            found = [results.get(task.key) for task in self._runs(trial)]
            columns = [result.values for result in found if result is not None and result.reason is None]
            if len(columns) == len(found):
                means = [sum(column) / len(column) for column in zip(*columns, strict=True)]
                self.study.tell(trial.number, means, skip_if_finished=True)
