"""Tries recipes for `sga unlearn` on small sets of facts that a small chat model knows, many in one go.

    python benchmarks/own_data_recipe.py --model FOLDER --output FILE.csv [--sets first,second] [--seeds 0,1]
        [--settings NAME,NAME] [--device cuda] [--workers 12] [--seconds 130]

Each setting is an ordinary training by Lightning with this package's module, data, evaluator and metric callbacks,
so that it does what `sga fit` does with these flags; only the model is copied in memory in place of being loaded, and
nothing is written but one line of a CSV file for each evaluation. Evaluations are made after every epoch. The sets are
in ``benchmarks/facts``: `first` and `second` are for choosing, `reported` has the facts of ``data/facts``, with the
forget questions asked in other words besides.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sga.evaluation.degenerate import is_repeating
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sga
from sga import (
    DPO,
    NPO,
    Evaluator,
    GradientDifference,
    KLMinimization,
    Loss,
    Memorization,
    ModelUtility,
    SimNPO,
    SmoothedGradientAscent,
)
from sga.datamodule import UnlearningData
from sga.errors import DivergenceError
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.facts import says_fact
from sga.groups.alternatives import Alternatives, RefusalAnswers, SubstitutedAnswers
from sga.models.adapters import LoRA
from sga.models.pretrained import Pretrained
from sga.module import UnlearningModule
from sga.optimization import ConstantSchedule

HERE = Path(__file__).parent
FIELDS = (
    "set", "setting", "seed", "epoch", "facts_left", "facts_asked_otherwise", "facts_kept", "facts_kept_unseen",
    "retain_ratio", "unseen_ratio", "degenerate", "forget_nll", "retain_nll", "extraction", "forget_rouge", "seconds",
)  # fmt: skip


def gd(neighbors: float, alternatives: float | None = 1.0) -> partial[Loss]:
    return partial(GradientDifference, normal_weight=neighbors, alternative_weight=alternatives)


def one(
    loss: Any, neighbors: int, other: int, lr: float, epochs: int = 8, rank: int = 0, **more: Any
) -> dict[str, Any]:
    """A setting: loss, neighbours and alternatives in a group, learning rate, most epochs, rank of an adapter."""
    return {"loss": loss, "neighbors": neighbors, "other": other, "lr": lr, "epochs": epochs, "rank": rank, **more}


SETTINGS: dict[str, dict[str, Any]] = {
    "gd-3+1-w3": one(gd(3.0), 3, 1, 3e-5),
    "gd-2+1-w2-lr4": one(gd(2.0), 2, 1, 4e-5),
    "gd-3+1-w3-lr5": one(gd(3.0), 3, 1, 5e-5),
    "gd-3+1-w3-a2": one(gd(3.0, 2.0), 3, 1, 3e-5),
    "gd-3+1-w6-a2-lr5": one(gd(6.0, 2.0), 3, 1, 5e-5),
    "gd-6+1-w6-lr5": one(gd(6.0), 6, 1, 5e-5),
    "gd-6+2-w6-a2-lr5": one(gd(6.0, 2.0), 6, 2, 5e-5),
    "lora-gd-3+1-w3-lr5e-4": one(gd(3.0), 3, 1, 5e-4, rank=16),
    "lora-gd-3+1-w3-lr1e-3": one(gd(3.0), 3, 1, 1e-3, rank=16),
    "lora-gd-6+1-w6-lr1e-3": one(gd(6.0), 6, 1, 1e-3, rank=16),
    "lora-gd-3+1-w3-lr2e-4": one(gd(3.0), 3, 1, 2e-4, 12, rank=16),
    "sga-3+1-r4": one(partial(SmoothedGradientAscent, smoothing_rate=-4.0), 3, 1, 3e-5),
    "sga-6+1-r8-lr5": one(partial(SmoothedGradientAscent, smoothing_rate=-8.0), 6, 1, 5e-5),
    "sga-3+1-r1": one(partial(SmoothedGradientAscent, smoothing_rate=-1.0), 3, 1, 3e-5),
    "npo-nll-3-lr3": one(partial(NPO, beta=0.1, retain="nll"), 3, 0, 3e-5),
    "npo-nll-6-w3-lr5": one(partial(NPO, beta=0.1, retain="nll", retain_weight=3.0), 6, 0, 5e-5),
    "npo-kl-3-lr5": one(partial(NPO, beta=0.1, retain="kl"), 3, 0, 5e-5),
    "lora-npo-nll-6-lr1e-3": one(partial(NPO, beta=0.1, retain="nll", retain_weight=3.0), 6, 0, 1e-3, rank=16),
    "dpo-answer-6-lr3": one(partial(DPO, beta=0.1, alternative="normal_answer", retain="nll"), 6, 0, 3e-5),
    "dpo-refusal-3-lr3": one(partial(DPO, beta=0.1, alternative="refusal", retain="nll"), 3, 0, 3e-5),
    "simnpo-6-lr3": one(partial(SimNPO, beta=4.5, margin=0.0, retain="nll"), 6, 0, 3e-5),
    "kl-3-lr3": one(partial(KLMinimization, retain_weight=3.0), 3, 0, 3e-5),
    "gd-3+1-w3-refusal": one(gd(3.0), 3, 1, 3e-5, alternatives=RefusalAnswers(1, 8)),
    "gd-3+1-w3-batch4": one(gd(3.0), 3, 1, 2e-5, batch=4),
    "gd-3+1-w3-batch16-lr5": one(gd(3.0), 3, 1, 5e-5, 12, batch=16),
    "gd-10+1-w10-lr5": one(gd(10.0), 10, 1, 5e-5),
    "gd-6+1-w3-lr3": one(gd(3.0), 6, 1, 3e-5),
    "gd-3+1-w3-a4-lr5": one(gd(3.0, 4.0), 3, 1, 5e-5),
    "gd-3+1-w6-a4-lr1e-4": one(gd(6.0, 4.0), 3, 1, 1e-4, 6),
    "lora-gd-6+2-w6-a2-lr5e-4": one(gd(6.0, 2.0), 6, 2, 5e-4, rank=16),
    "lora-gd-6+1-w6-lr2e-3": one(gd(6.0), 6, 1, 2e-3, rank=16),
    "gd-6+1-w12-a4-lr5": one(gd(12.0, 4.0), 6, 1, 5e-5, 10),
}


class Loaded(Pretrained):
    """A model that is in memory already; each training gets a copy of it."""

    kept: PreTrainedModel
    words: PreTrainedTokenizerBase

    def tokenizer(self, texts: Any) -> PreTrainedTokenizerBase:
        return self.words

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return copy.deepcopy(self.kept)

    def context(self) -> int:
        return int(self.kept.config.max_position_embeddings)


class LoadedAdapter(Loaded, LoRA):
    """The same with a low-rank adapter."""

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return self.prepared(copy.deepcopy(self.kept))


class Seen(pl.Callback):
    """Notes the numbers of each evaluation, and ends a training that has nothing more to show."""

    def __init__(self, utility: ModelUtility) -> None:
        self.utility, self.found, self.begun = utility, [], time.monotonic()  # type: ignore[var-annotated]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        evaluator = next(c for c in trainer.callbacks if isinstance(c, Evaluator))  # type: ignore[attr-defined]
        assert evaluator.evaluation is not None, "it has just been made"
        row = numbers(evaluator.evaluation)
        row["epoch"] = 0 if trainer.state.fn == "validate" else trainer.current_epoch + 1
        row["seconds"] = round(time.monotonic() - self.begun, 1)
        self.found.append(row)
        gone = [one["facts_left"] == 0 for one in self.found[-2:]]
        if trainer.state.fn == "fit" and len(gone) == 2 and all(gone):
            trainer.should_stop = True


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation found, by the names of the columns."""

    def column(name: str, field: str) -> list[Any]:
        return [row[field] for row in evaluation.of_set(name) if field in row]

    def mean(name: str, field: str) -> float:
        values = column(name, field)
        return sum(values) / len(values) if values else float("nan")

    def said(name: str) -> int:
        pairs = [(record, evaluation.rows[key]) for key, record in evaluation.texts.items() if key[0] == name]
        return sum(bool(says_fact(record, row["generation"])) for record, row in pairs)

    answers = [*column("forget", "generation"), *column("retain", "generation")]
    return {
        "facts_left": said("forget"),
        "facts_asked_otherwise": said("forget_paraphrased"),
        "facts_kept": said("retain"),
        "facts_kept_unseen": said("retain_unseen"),
        "retain_ratio": mean("retain", "rouge_l_recall"),
        "unseen_ratio": mean("retain_unseen", "rouge_l_recall"),
        "degenerate": sum(not one.strip() or is_repeating(one) for one in answers),
        "forget_nll": mean("forget", "avg_nll"),
        "retain_nll": mean("retain", "avg_nll"),
        "extraction": mean("forget", "extraction_strength"),
        "forget_rouge": mean("forget", "rouge_l_recall"),
    }


def trained(
    name: str, set_name: str, seed: int, model: Path, kept: Any, words: Any, device: str
) -> list[dict[str, Any]]:
    """Evaluations of a setting, the starting model's first where `name` is ``start``."""
    setting = {"loss": None, "neighbors": 3, "other": 1, "lr": 0.0, "epochs": 0, "rank": 0, **SETTINGS.get(name, {})}
    loaded = (
        LoadedAdapter(str(model), setting["rank"], alpha=2 * setting["rank"], dropout=0.0)
        if setting["rank"]
        else Loaded(str(model))
    )
    loaded.kept, loaded.words = kept, words
    folder = HERE / "facts" / set_name
    retain = folder / "retain.jsonl"
    if not retain.exists():
        retain = HERE.parent / "data" / "facts" / "retain.jsonl"
    alternatives: Alternatives | None = setting.get("alternatives", SubstitutedAnswers(setting["other"] or 1, 8))
    size = setting.get("batch", 8)
    data = UnlearningData(
        loaded,
        sga.OwnData(str(folder / "forget.jsonl"), str(retain)),
        group_size=1 + setting["neighbors"] + setting["other"],
        pool_size=setting.get("pool", 20),
        alternatives=alternatives if setting["other"] else None,
        batch_size=size,
        micro_batch_size=size,
        seed=seed,
    )
    pl.seed_everything(seed, verbose=False)
    utility = ModelUtility(max_new_tokens=24)
    seen = Seen(utility)
    with tempfile.TemporaryDirectory() as place:
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            precision="32-true",
            max_epochs=setting["epochs"],
            check_val_every_n_epoch=1,
            num_sanity_val_steps=0,
            callbacks=[Evaluator(answers=None, resamples=0), utility, Memorization(), seen],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=place,
        )
        optimizer = partial(torch.optim.AdamW, lr=setting["lr"], weight_decay=0.0)
        loss = setting["loss"]() if setting["loss"] is not None else None
        module = UnlearningModule(loaded, loss, optimizer, ConstantSchedule())
        try:
            if loss is None:
                trainer.validate(module, datamodule=data, verbose=False)
            else:
                trainer.fit(module, datamodule=data)
        except DivergenceError as error:
            print(f"{name} {set_name} {seed}: {error}", file=sys.stderr)
    return [{"set": set_name, "setting": name, "seed": seed, **row} for row in seen.found]


# ---- many at a time --------------------------------------------------------------------------------------------------


def work(number: int, jobs: Any, results: Any, options: argparse.Namespace, kept: Any, words: Any) -> None:
    """Does jobs until none is left or time is up; each worker has the model in memory once."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(max(1, options.threads))
    if options.device == "cuda":
        kept = kept.to("cuda")
    while time.time() < options.until:
        job = jobs.get()
        if job is None:
            break
        set_name, name, seed = job
        begun = time.monotonic()
        try:
            rows = trained(name, set_name, seed, options.model, kept, words, options.device)
        except Exception as error:  # the others go on
            print(f"{name} {set_name} {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            rows = []
        results.put((job, rows, round(time.monotonic() - begun, 1)))
    results.put(None)


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face format")
    parser.add_argument("--output", type=Path, required=True, help="CSV file")
    parser.add_argument("--sets", default="first,second")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--seconds", type=float, default=1e9, help="no training begins after so many")
    options = parser.parse_args()
    options.until = time.time() + options.seconds
    sets, seeds = options.sets.split(","), [int(seed) for seed in options.seeds.split(",")]
    loaded = Pretrained(str(options.model))
    words = loaded.tokenizer(())
    kept = loaded.network(words)
    context = multiprocessing.get_context("fork")  # the weights are shared, and packages are imported once
    jobs, results = context.Queue(), context.Queue()
    wanted = [(one, "start", seeds[0]) for one in sets]
    wanted += [(one, name, seed) for seed in seeds for name in options.settings.split(",") for one in sets]
    for job in [*wanted, *[None] * options.workers]:
        jobs.put(job)
    jobs.cancel_join_thread()
    workers = [
        context.Process(target=work, args=(number, jobs, results, options, kept, words), daemon=True)
        for number in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    write_results(results, options)


def write_results(results: Any, options: argparse.Namespace) -> None:
    """Writes the lines as they come; ratios are to the starting model's of the same set, written in the end."""
    left, lines = options.workers, []
    while left:
        found = results.get()
        if found is None:
            left -= 1
            continue
        job, rows, seconds = found
        lines += rows
        print(f"{' '.join(map(str, job)):<44} {seconds:>6} s  " + "  ".join(
            f"{row['facts_left']}/{row['facts_kept']}/{row['retain_ratio']:.2f}" for row in rows
        ), flush=True)  # fmt: skip
        write(lines, options.output)


def write(lines: list[dict[str, Any]], path: Path) -> None:
    """The whole file anew."""
    start = {row["set"]: row for row in lines if row["setting"] == "start"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for row in lines:
            base = start.get(row["set"])
            shares = {
                name: row[name] / base[name] if base is not None and base[name] else float("nan")
                for name in ("retain_ratio", "unseen_ratio")
            }
            table.writerow({n: round(v, 4) if isinstance(v, float) else v for n, v in {**row, **shares}.items()})


if __name__ == "__main__":
    main()
