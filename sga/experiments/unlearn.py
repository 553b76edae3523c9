"""From two files and a model to a model that can be handed over: `sga unlearn` and `sga.unlearn`.

A preset over `sga fit` and the engine of experiments. Three ordinary runs in one folder: the starting model is
evaluated, it is trained under the rule that needs no retained model, and what was exported is evaluated from disk.
"""

from __future__ import annotations

import io
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sga.attacks.attack import quick_attack_lines
from sga.errors import Interruption, StoppedError, UserError
from sga.evaluation.handover import Tolerances
from sga.evaluation.table import duration
from sga.experiments.configuration import Values
from sga.experiments.engine import InThisProcess, Pool, Processes, run
from sga.experiments.task import Task
from sga.experiments.unlearn_data import UnlearningRecords, look, read_unlearning_records
from sga.experiments.unlearn_knowledge import check_answers, knowledge, missed_facts
from sga.experiments.unlearn_model import base_template_warning, given_model, with_settings
from sga.experiments.unlearn_pilot import piloted_rate
from sga.experiments.unlearn_progress import WholeProgress
from sga.experiments.unlearn_recipe import (
    BASE,
    FINAL,
    ROWS_NOTE,
    START,
    UNLEARNED,
    Plan,
    Recipe,
    chosen_recipe,
    exported_model,
    few_rows,
    method_config,
    recipe_table,
    tolerances_of,
)
from sga.experiments.unlearn_result import UnlearnResult
from sga.files import write_text, yaml_text
from sga.models.noise import warnings_as_before
from sga.runs.folder import Run, load_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Unlearned:
    """Result of `unlearn`: the folder of its runs, the verdict, the metrics, and where model and report are.

    Attributes:
        folder: Folder of the three runs, ``start``, ``unlearned`` and ``final``, for `load_run`.
        sentence: First sentence of the result: fit to be handed over, or the largest violation.
        fit: True if the model is fit to be handed over, as far as can be tested.
        metrics: Metrics of the exported model, read from disk again, by name.
        start_metrics: Metrics of the starting model, by name.
        model_path: Path of the exported model and tokenizer in Hugging Face format, with its card.
        report: Path of the page with all results.
    """

    folder: Path
    sentence: str
    fit: bool
    metrics: dict[str, float] = field(repr=False)
    start_metrics: dict[str, float] = field(repr=False)
    model_path: Path
    report: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        """The exported model on the CPU, in eval mode; loaded when it is first asked for."""
        return load_run(self.folder / UNLEARNED).load_model()[0]


@warnings_as_before()
def unlearn(
    model: Any,
    tokenizer: Any = None,
    forget: Any = None,
    retain: Any = None,
    holdout: Any = None,
    method: str | None = None,
    lora: int | None = None,
    *,
    folder: str | Path = "runs/unlearn",
    epochs: int | None = None,
    lr: float | None = None,
    group_size: int | None = None,
    settings: Values | None = None,
    base: str | Path | None = None,
    anyway: bool = False,
    say: Callable[[str], None] | None = None,
) -> Unlearned:
    """Makes a model forget records and keep others; the model to hand over is exported, evaluated and described.

    The same call resumes an interrupted one, and reuses finished runs.

    Args:
        model: A Hugging Face causal language model, or where one is: a name on the Hub, a folder, a run folder.
        tokenizer: Its tokenizer, or where one is; None takes the model's own.
        forget: Records to forget: path of a file, or records, dictionaries or a data set of them. See
            `converted_records`.
        retain: Records to keep, of the same kind. Without them general questions of the package are used.
        holdout: Records of the kind to forget that the model never saw, by which forgetting is measured.
        method: Name of a method; ``sga methods`` lists them. None takes the recipe's.
        lora: Rank of a low-rank adapter, 0 to train all weights; None takes the recipe's.
        folder: Path of the folder that everything is written to.
        epochs: Largest number of passes over the forget data; None takes the recipe's.
        lr: Learning rate; None takes the recipe's.
        group_size: Number K of sequences in a group, one forget sample and K − 1 normals; None takes the recipe's.
        settings: Further settings of `sga fit` by dotted name; they win.
        base: Name or folder of a model that never saw the forget records, such as the one that `model` was
            finetuned from. Its membership AUC is what forgetting aims at, in place of 0.5.
        anyway: True if the model is trained although it does not seem to know what it is to forget.
        say: Function that is called with each line of output; None prints them.

    Raises:
        UserError: data or model are not usable; the sentence says what to do.
        StoppedError: training, or an evaluation, failed.
    """
    begun = time.monotonic()
    say = say or _say
    folder = Path(folder)
    if forget is None:
        raise UserError("unlearn needs what to forget (--forget): a file, or records")
    if method is not None:
        method_config(method)  # a wrong name is said before anything is read
    records = read_unlearning_records(forget, retain, holdout)
    if records.has_texts and holdout is None:
        raise UserError(
            "what is to be forgotten has plain text in it, of which forgetting can only be measured against texts of "
            "the same kind that the model never saw: give --holdout, or make questions with answers of it"
        )
    own = dict(settings or {})
    named = (("trainer.max_epochs", epochs), ("model.optimizer.lr", lr), ("data.group_size", group_size))
    own |= {name: value for name, value in named if value is not None}
    start = with_settings(given_model(model, tokenizer, folder), own)
    weights = _look(records, start, own, say, base)
    recipe = chosen_recipe(method, lora, weights, records)
    plan = Plan(recipe, start, records.write(folder), weights, own)
    _check_plan(plan, records, base, say)
    try:
        result = _run_plan(plan, None if base is None else str(base), folder, anyway, say, records.warnings)
    except Interruption as error:
        name = signal.Signals(error.number).name
        raise Interruption(error.number, f"stopped by {name}; the same command goes on") from None
    result.write(recipe, records)
    for line in result.lines(records.warnings):
        say(line)
    steps = _steps(base is not None)
    say(f"\n[{steps} of {steps}] tries attacks (minutes; the result above stands if you end them)")
    for line in ["\nattacks", *quick_attack_lines(folder / UNLEARNED)]:
        say(line)
    result.write_page(recipe, records)  # which tells of the attacks now
    say(f"\n{duration(time.monotonic() - begun)} in all")
    return Unlearned(
        folder,
        result.account.sentence,
        result.account.fit,
        _numbers(result.final.chosen),
        _numbers(result.start.chosen),
        exported_model(folder),
        result.report,
    )


@warnings_as_before()
def evaluate(
    model: Any,
    tokenizer: Any = None,
    data: Any = None,
    *,
    folder: str | Path = "runs/evaluation",
    settings: Values | None = None,
) -> dict[str, float]:
    """Metrics of a model on forget, retain and holdout data, by name; an ordinary `sga validate` in a folder.

    The same call reads what is there already.

    Args:
        model: Model to evaluate, as for `unlearn`.
        tokenizer: Its tokenizer, as for `unlearn`.
        data: Sets of records by ``forget``, ``retain`` and, where there is one, ``holdout``; or one set, which is taken
            for ``forget``.
        folder: Path of the run folder's parent.
        settings: Further settings of `sga validate` by dotted name.

    Raises:
        UserError: data or model are not usable.
    """
    if data is None:
        raise UserError("evaluate needs data: a file or records, or several by forget, retain and holdout")
    sets = dict(data) if isinstance(data, Mapping) else {"forget": data}
    unknown = sorted(set(sets) - {"forget", "retain", "holdout"})
    if unknown or "forget" not in sets:
        raise UserError(f"evaluate: data must be by forget, retain and holdout, forget at least; got {', '.join(sets)}")
    folder = Path(folder)
    records = read_unlearning_records(*(sets.get(name) for name in ("forget", "retain", "holdout")))
    own = dict(settings or {})
    start = with_settings(given_model(model, tokenizer, folder), own)
    recipe = chosen_recipe("ga", 0, None, records)
    first, *_ = Plan(recipe, start, records.write(folder), None, own).tasks()
    _check_settings(first, own)
    task = Task("evaluation", first.config, {}, first.key, "evaluates the model", verb="validate")
    _check_ended(run([task], folder, InThisProcess(lambda line: None), retry=True, wait=False), [task])
    return _numbers(load_run(folder / task.name).chosen)


# ---- the model ------------------------------------------------------------------------------------------------------


def _look(
    records: UnlearningRecords,
    start: Mapping[str, Any],
    own: Values,
    say: Callable[[str], None],
    base: str | Path | None = None,
) -> int:
    """Says what the data and the form of its prompts are like; the number of the model's weights."""
    from sga.batching.encoding import Encoder
    from sga.batching.templates import AutoTemplate
    from sga.models.pretrained import Pretrained
    from sga.planning.trace import fake_network

    described = Pretrained(**start)
    tokenizer = described.tokenizer(())
    template = AutoTemplate().chosen(tokenizer)
    length = min(int(own.get("data.max_length", 512)), described.context() or sys.maxsize)
    given = own.get("data.template")
    if base is not None and any(not record.is_text for record in records.sets["forget"]):  # texts have no template
        said = base_template_warning(tokenizer, Pretrained(str(base)).tokenizer(()), given)
        records.warnings.extend([] if said is None else [said])
    for line in look(records, Encoder(tokenizer, template, length)):
        say(f"data: {line}")
    weights = sum(parameter.numel() for parameter in fake_network(described).parameters())
    shown = str(given.get("class_path")) if isinstance(given, dict) else str(given or type(template).__name__)
    say(f"model: {start['name_or_path']}, {weights / 1e6:.3g} million weights, template {shown.removeprefix('sga.')}")
    return weights


def _check_plan(plan: Plan, records: UnlearningRecords, base: str | Path | None, say: Callable[[str], None]) -> None:
    """Refuses settings that there are not, and says if there are too few records for the rule.

    With a base model the rule aims at its number, which nobody knows yet.
    """
    _, training, _ = plan.tasks()
    _check_settings(training, plan.own)
    few = None if base is not None else few_rows(records, training.config)
    if few is not None:
        records.warnings.append(few)
        say(f"data: WARNING: {few}")


# ---- the work -------------------------------------------------------------------------------------------------------


def _run_plan(
    plan: Plan, base: str | None, folder: Path, anyway: bool, say: Callable[[str], None], warnings: list[str]
) -> UnlearnResult:
    """Makes all runs; adds to the warnings what the starting model knows badly.

    Raises:
        UserError: the starting model, or the base model, is not usable.
        StoppedError: training, or an evaluation, failed.
    """
    tasks = plan.tasks()
    before_training = [*([] if base is None else [plan.base_task(base)]), tasks[0]]
    total = _steps(base is not None)
    with WholeProgress() as progress:
        pool = _pool(tasks[1], progress)

        def make(tasks: Sequence[Task]) -> None:
            # A training takes many times as long as an evaluation.
            _check_ended(run(tasks, folder, pool, retry=True, wait=False, total=total, alike=False), tasks)

        make(before_training)
        before = load_run(folder / START)
        check_answers(before)
        found = {} if base is None else base_goals(load_run(folder / BASE), before, anyway)
        for name, goal in found.items():
            say(f"base: {name.rpartition('.')[2]} {goal:.2f} is the goal (0.50 without --base)")
        tasks = plan.tasks(found)
        tolerances = tolerances_of(tasks[1].config)
        say(f"model: {knowledge(before, tolerances, anyway)}")
        lines, found_poor = missed_facts(before)
        warnings += found_poor
        for line in lines:
            say(line)
        if plan.recipe.pilot is not None and "model.optimizer.lr" not in plan.own:
            rate = piloted_rate(plan.recipe.pilot, tasks[1], before, tolerances, folder, pool, say)
            tasks = plan.tasks({**found, "model.optimizer.lr": rate})
        for line in recipe_lines(plan.recipe, tasks[1]):
            say(line)
        make([*before_training, *tasks[1:]])
    return UnlearnResult(folder, before, load_run(folder / UNLEARNED), load_run(folder / FINAL), tolerances)


def _steps(base: bool) -> int:
    """Number of steps that are counted in the output: the runs, and the attacks on the exported model."""
    return 5 if base else 4


def base_goals(base: Run, before: Run, anyway: bool) -> Values:
    """Settings of the rule by which its goals of membership are a base model's numbers.

    Args:
        base: Evaluation of a model that never saw the forget records.
        before: Evaluation of the starting model.
        anyway: True if a base model that knows the data as well is accepted.

    Raises:
        UserError: the base model recognises the data about as well as the starting model, or no membership is measured.
    """
    prefix = "handover/all/mia/"
    names = [name for name in ("loss", "min_k", "pairs") if f"{prefix}{name}" in base.chosen]
    if not names:
        raise UserError("--base: there is neither a holdout set nor a wrong answer to measure membership by")
    found = {name: (base.chosen[f"{prefix}{name}"], before.chosen[f"{prefix}{name}"]) for name in names}
    if not anyway and all(start - goal <= Tolerances().auc for goal, start in found.values()):
        goal, start = found[names[0]]
        raise UserError(
            f"--base recognises what is to be forgotten ({goal:.2f}) as well as the model does ({start:.2f}): it has "
            "seen it, or the model has not, or holdout is too unlike forget to tell. Name a model that never saw it, "
            "give another holdout, or leave --base out (--anyway goes on)"
        )
    field = {"loss": "base_loss_auc", "min_k": "base_min_k_auc", "pairs": "base_pairs"}
    return {f"stop.rule.tolerances.{field[name]}": goal for name, (goal, _) in found.items()}


def _pool(training: Task, progress: WholeProgress) -> Pool:
    """This process, or on several devices one of its own for each run."""
    if training.config["trainer"].get("devices") not in (None, 1, "1"):
        return Processes()
    return InThisProcess(progress.hear, progress.phase)


def _check_settings(task: Task, own: Values) -> None:
    """Refuses settings that there are not, before anything is computed.

    Raises:
        UserError: a setting is unknown, or its value of another kind.
    """
    if not own:
        return
    from sga.cli import parsed_config

    said = io.StringIO()
    with TemporaryDirectory() as place:
        file = Path(place, "settings.yaml")
        write_text(file, yaml_text(task.config))
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(said):
                parsed_config([task.verb, "--config", str(file)])
        except UserError as error:
            raise UserError(str(error).replace(f"{file}:", "settings (--set):")) from None
        except SystemExit:  # the parser's own way to refuse
            raise UserError(f"settings (--set): {said.getvalue().partition('error: ')[2].strip()}") from None


def _check_ended(ended: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    for task in tasks:
        outcome = ended.get(task.key)
        if outcome is not None and outcome.reason is not None:
            raise StoppedError(f"{task.title}: {outcome.reason}")


def recipe_lines(recipe: Recipe, training: Task) -> list[str]:
    """Lines on the coming training, the user's own settings included."""
    model, data = training.config["model"], training.config["data"]
    count = ((data.get("alternatives") or {}).get("init_args") or {}).get("count", 0)
    settings = {name: value for name, value in model["loss"].get("init_args", {}).items() if value is not None}
    settings |= {"K": data["group_size"], "lr": model["optimizer"]["init_args"]["lr"]}
    settings |= {"epochs": training.config["trainer"]["max_epochs"], "batch": data["batch_size"]}
    parts = [
        f"recipe {recipe.name}: {recipe.method}",
        f"LoRA of rank {recipe.rank}" if recipe.rank else "all weights",
        f"{_many(data['group_size'] - 1 - count, 'neighbour')} and {_many(count, 'alternative')}",
        *(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()),
    ]
    fitted = data["group_size"] == recipe.settings["data.group_size"]  # not the user's own
    limited = data["evaluation_rows"] == recipe.settings["data.evaluation_rows"]
    others = [start for start, holds in (("K = ", fitted), (ROWS_NOTE, limited)) if not holds]
    notes = [note for note in recipe.notes if not note.startswith(tuple(others))]
    table = recipe_table()
    why = [str(table["why"])] if recipe.method == table["method"] else []
    return [", ".join(parts), *(f"recipe: {note}" for note in (*why, *notes))]


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _numbers(chosen: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in chosen.items() if "/" in name and isinstance(value, (int, float))}


def _say(line: str) -> None:
    print("\n".join(
        textwrap.fill(part, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        if len(part) > 80 and not part.startswith(" ") else part
        for part in line.split("\n")
    ), flush=True)  # fmt: skip
