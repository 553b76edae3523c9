"""`sga sequence`: unlearning requests one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sga.experiments.configuration import settings_from
from sga.experiments.engine import Processes, run, terminable
from sga.experiments.sequence import RESULTS_FILE, read_sequence, sequence_results
from sga.files import write_json
from sga.runs.config_files import config_path


def main(arguments: Sequence[str]) -> int:
    """Runs a sequence; see ``sga sequence --help``."""
    parser = argparse.ArgumentParser(
        "sga sequence",
        description="Unlearn request after request: each is an ordinary run folder, request-1, request-2, …, that "
        "starts from the model of the one before and is evaluated like any other run. Run again to go on after an "
        "interruption: finished requests are reused, the one that was under way goes on from its last checkpoint.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="such as configs/sequences/muse.yaml"
    )
    parser.add_argument("--folder", type=Path, help="where it goes (default runs/sequences/NAME_OF_THE_FILE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all requests; wins over the file"
    )
    options = parser.parse_args(list(arguments))
    folder: Path = options.folder or Path("runs/sequences", options.config.stem)
    requests = read_sequence(config_path(options.config), settings_from(options.set))
    with terminable():
        ended = run(requests, folder, Processes(shows=True), retry=True, wait=False)
    code = max(outcome.code for outcome in ended.values())
    if code:
        return code

    from sga.report.summary import runs_table
    from sga.runs.folder import load_run

    runs = [load_run(folder / request.name) for request in requests]
    write_json(folder / RESULTS_FILE, sequence_results(runs))
    print()
    print(runs_table(runs))
    print(f"\nNumbers: {folder / RESULTS_FILE}\nPage:    sga report {' '.join(str(one.path) for one in runs)}")
    return 0
