"""`sga sequence`: unlearning requests one after the other."""

from __future__ import annotations

from pathlib import Path

from sga.commands.parsing import Repeated, verb
from sga.experiments.configuration import settings_from
from sga.experiments.engine import Processes, run, terminable
from sga.experiments.sequence import RESULTS_FILE, read_sequence, sequence_results
from sga.files import write_json
from sga.runs.config_files import config_path


@verb("sequence")
def main(*, config: Path, folder: Path | None = None, set_: Repeated = ()) -> int:
    """Unlearn request after request, each from the result of the one before.

    Each request is an ordinary run folder, request-1, request-2, …, that starts from the model of the one before and
    is evaluated like any other run. Run again to resume after an interruption: finished requests are reused, and the
    one that was interrupted resumes from its last checkpoint.

    Args:
        config (FILE): File of the sequence, such as configs/sequences/muse.yaml.
        folder (DIR): Folder of the runs (default: runs/sequences/NAME_OF_THE_FILE).
        set_ (NAME=VALUE): A setting of all requests, which overrides the file's.
    """
    place = folder or Path("runs/sequences", config.stem)
    requests = read_sequence(config_path(config), settings_from(set_))
    with terminable():
        ended = run(requests, place, Processes(shows=True), retry=True, wait=False)
    code = max(outcome.code for outcome in ended.values())
    if code:
        return code

    from sga.report.summary import runs_table
    from sga.runs.folder import load_run

    runs = [load_run(place / request.name) for request in requests]
    write_json(place / RESULTS_FILE, sequence_results(runs))
    print()
    print(runs_table(runs))
    print(f"\nNumbers: {place / RESULTS_FILE}\nPage:    sga report {' '.join(str(one.path) for one in runs)}")
    return 0
