"""`sga fit`, `validate`, `test` and `predict`, and what the terminal shows when a training run ends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sga.errors import UserError
from sga.evaluation.table import fitted_table
from sga.report.seed_groups import by_seed_group
from sga.report.summary import ABSENT, Column, columns
from sga.runs.folder import Run, load_run


def main(arguments: Sequence[str]) -> int:
    """Run one of Lightning's verbs, which is the first argument."""
    from sga.cli import run_verb

    cli = run_verb(arguments)
    run = Run(cli.trainer.default_root_dir)
    if arguments[0] == "fit" and cli.trainer.is_global_zero and run.chosen_path.is_file():
        given = cli.config["fit"].evaluation.reference
        print("\n".join(fit_end(load_run(run.path), [given] if isinstance(given, str) else given or [])))
    return 0


def fit_end(run: Run, reference_paths: Sequence[str] = ()) -> list[str]:
    """Lines that end a training run: metrics at the start, as chosen and of the reference, and three commands.

    Args:
        run: Run folder of the finished run.
        reference_paths: Run folders or logs of models that never saw the forget data.
    """
    first, last = run.evaluations[0], run.evaluations[-1]
    references = [found for path in reference_paths if (found := _finished(path)) is not None]
    word = "last" if run.chosen_step == last["step"] else "chosen"
    lines = [["", f"step {first['step']}", f"{word}, step {run.chosen_step}", "reference", ""]]
    # One evaluation has no start, and most runs that make a target or a retain model have no reference.
    kept = [i for i in range(5) if not ((i in (1, 4) and first is last) or (i == 3 and not references))]
    for column in columns(by_seed_group([run])):
        start, end = run.value(column.name, first), run.value(column.name)
        if start is not None and end is not None:
            values = [value for one in references if (value := one.value(column.name)) is not None]
            goal = sum(values) / len(values) if values else None
            shown = [ABSENT if value is None else column.number(value) for value in (start, end, goal)]
            lines.append([column.head, *shown, _verdict(column, start, end, goal)])
    shown_lines = [[line[i] for i in kept] for line in lines]
    table = fitted_table(shown_lines, texts=[kept.index(i) for i in (0, 4) if i in kept]) if len(lines) > 1 else []
    return ["", *table, "", "next", *(f"  {command}" for command in _next_commands(run, reference_paths))]


def _verdict(column: Column, start: float, end: float, goal: float | None) -> str:
    """An arrow for better or worse; nothing where neither can be said, or where both are written alike."""
    if column.best == "retain" and goal is None and column.name.startswith("mia/"):
        goal = 0.5
    if column.number(start) == column.number(end) or column.best is None or (column.best == "retain" and goal is None):
        return ""
    gain = abs(start - goal) - abs(end - goal) if column.best == "retain" and goal is not None else end - start
    better = gain < 0 if column.best == "low" else gain > 0
    return "▲ better" if better else "▼ worse"


def _finished(path: str) -> Run | None:
    """The run in a folder; None for a log of another program."""
    try:
        return load_run(path)
    except UserError:
        return None


def _next_commands(run: Run, reference_paths: Sequence[str]) -> list[str]:
    folder, exported = shlex.quote(str(run.path)), run.model_path.is_dir()
    others = "".join(f" {shlex.quote(path)}" for path in reference_paths)
    commands = [f"sga report {folder}{''.join(f' {shlex.quote(p)}' for p in reference_paths if _finished(p))}"]
    commands += [f'sga ask {folder} "A question"'] * exported
    if exported and run.role == "unlearn":
        commands.append(f"sga attack {folder}{others and f' --reference{others}'}")
    return [*commands, f"sga test --config {shlex.quote(str(run.config_path))}"][:3]
