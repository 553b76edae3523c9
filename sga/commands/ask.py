"""`sga ask`: answers of one or two models to a question, side by side."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sga.commands.parsing import verb
from sga.errors import UserError, check_numbers
from sga.evaluation.table import side_by_side
from sga.experiments.task import STATE_FILE
from sga.runs.folder import RunFolder

if TYPE_CHECKING:
    from sga.batching.templates import Template

_LONGEST = 2048
"""Tokens of prompt and answer where a model does not say how many it takes."""


@verb("ask")
def main(
    model: str,
    other: str | None,
    question: str,
    *,
    answer: str | None = None,
    max_new_tokens: int = 200,
    trust_code: bool = False,
) -> int:
    """Ask one or two models a question and print their greedy answers side by side.

    A model is a run folder, a folder in Hugging Face format, or a name on the Hub. A run folder's template is the
    run's, any other's the tokenizer's own chat template where it has one. With --answer, the negative log-likelihood of
    that answer per token stands under each. Answers go to standard output, what it is waiting for to standard error.

    Args:
        model: Run folder, model folder, or name on the Hub.
        other: Another model to compare with.
        question: Question in quotation marks.
        answer (TEXT): Answer of which the likelihood is shown.
        max_new_tokens: Largest number of tokens of an answer.
        trust_code: Import the template of a run that is not of this package.
    """
    check_numbers(1, **{"--max-new-tokens": max_new_tokens})
    if not question.strip():
        raise UserError("the question is empty; put it in quotation marks after the models")
    names = [model, *([other] if other is not None else [])]
    # What is wrong with a folder is said before a model is loaded.
    for name in names:
        _check_finished(Path(name))
    _note("loading libraries")
    templates = [run_template(name, trust_code) for name in names]
    asked = [
        _ask(name, template, question, answer, max_new_tokens) for name, template in zip(names, templates, strict=True)
    ]
    print(answer_columns(names, asked))
    return 0


def _check_finished(path: Path) -> None:
    """Refuses the folder of a run, or of `sga unlearn`, that has no model.

    Raises:
        UserError: the run has not finished, exports no model, or is in a folder of this one.
    """
    run = RunFolder(path.parent if path.name == "model" else path)
    if any((place / "config.json").is_file() for place in (path, run.model_path)):
        return
    from sga.experiments.unlearn_recipe import START, UNLEARNED  # not at the top: imports torch

    if (path / START).is_dir():  # of all runs of `sga unlearn`
        run = RunFolder(path / UNLEARNED)
        if (run.model_path / "config.json").is_file():
            raise UserError(f"{path} holds several runs: give the run with the model, {run.path}")
    elif run.info_path.is_file() and run.info.get("verb") == "validate":
        raise UserError(f"{path} is an evaluation, which leaves no model; give the model that it evaluated")
    elif not (run.info_path.is_file() or (run.path / STATE_FILE).is_file() or (run.path.parent / START).is_dir()):
        return  # no run at all
    raise UserError(
        f"{run.path}: the run has not finished: its model/ is written at its end. Wait for it or, if it was stopped, "
        "give the command that began it once more"
    )


def run_template(model: str, trust_code: bool = False) -> Template:
    """Template that a run folder, or its ``model/``, was trained with; AutoTemplate for any other model.

    Args:
        model: Run folder, its ``model/``, or any other name of a model.
        trust_code: True if a class from outside this package may be imported, which runs the code of its module.

    Raises:
        UserError: the run's configuration names no template that can be made, or one that is not trusted.
    """
    from sga.batching.templates import AutoTemplate, Template

    folder = Path(model)
    run = next((one for one in map(RunFolder, (folder, folder.parent)) if one.info_path.is_file()), None)
    if run is None or not run.config_path.is_file():
        return AutoTemplate()
    path = run.config_path
    data = run.config.get("data")
    stored = data.get("template") if isinstance(data, dict) else None
    if stored is None:
        return AutoTemplate()
    described = stored if isinstance(stored, dict) else {"class_path": stored}
    if not isinstance(described.get("class_path"), str):
        raise UserError(f"{path}: data.template names no class_path")
    module, _, name = described["class_path"].rpartition(".")
    module = module or "sga"
    if module.partition(".")[0] != "sga" and not trust_code:
        raise UserError(
            f"{path}: data.template is {module}.{name}, which is not of this package: --trust-code if you trust the run"
        )
    try:
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Template)):  # nothing else is called
            raise UserError(f"{path}: data.template is {name}, which is no template")
        return kind(**(described.get("init_args") or {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its template cannot be made ({error})") from error


def _ask(name: str, template: Template, question: str, answer: str | None, limit: int) -> tuple[str, str | None]:
    """Greedy answer of a model, and the likelihood of a given answer in words."""
    import torch

    from sga.batching.encoding import Encoder
    from sga.evaluation.inference import Inference, stop_tokens
    from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch, ScoreJob
    from sga.evaluation.requests import Generation, TokenScores
    from sga.models.noise import hide_noise
    from sga.models.pretrained import Pretrained

    hide_noise()
    _note(f"loading {name}")
    described = Pretrained(name)
    tokenizer = described.tokenizer(())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = described.network(tokenizer).to(device).eval()  # type: ignore[arg-type]
    longest = described.context() or _LONGEST
    encoder = Encoder(tokenizer, template.chosen(tokenizer), longest)
    prompt = encoder.encode_prompt(question)
    if len(prompt) >= longest:
        raise UserError(f"the question has {len(prompt)} tokens, and {name} takes {longest}; shorten it")
    inference = Inference(network, stop_tokens(tokenizer, network))
    pad = tokenizer.pad_token_id or 0
    _note("answering")
    job = GenerateJob(prompt, min(limit, longest - len(prompt)), cut=False)
    with torch.no_grad():
        [said] = inference.answer(GenerateBatch([(0, job)], pad).to(network.device))
        assert isinstance(said, Generation)
        text = encoder.decode(said.ids)
        if answer is None:
            return text, None
        pair = encoder.encode(question, answer)
        score = ScoreJob(pair.ids, pair.prompt_length, detail=True, ends=True, cut=False)
        [scores] = inference.answer(ScoreBatch([[(0, score)]], pad).to(network.device))
    assert isinstance(scores, TokenScores)
    nll = [-float(value) for value in scores.log_probs]
    mean = sum(nll) / len(nll)
    tokens = [tokenizer.decode([token]) for token in pair.ids[pair.prompt_length :]]
    each = " ".join(
        f"{json.dumps(token, ensure_ascii=False)} {value:.2f}" for token, value in zip(tokens, nll, strict=True)
    )
    return text, f"{answer!r}: {mean:.3f} nats per token ({len(nll)} tokens): {each}"


def _note(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def answer_columns(names: Sequence[str], asked: Sequence[tuple[str, str | None]], width: int | None = None) -> str:
    """Columns of a name, an answer and, where it is there, a likelihood, within `width` characters."""
    rows = [names, ["─"] * len(names), [text or "(an empty answer)" for text, _ in asked]]
    if asked[0][1] is not None:
        rows += [[""] * len(names), [likelihood or "" for _, likelihood in asked]]
    return "\n".join(side_by_side(rows, width))
