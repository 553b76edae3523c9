"""The LightningDataModule: records, groups, token ids, and what evaluation asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
from transformers import PreTrainedTokenizerBase

from sga.batching.control_text import check_control_text
from sga.batching.encoding import Encoded, Encoder
from sga.batching.loader import GroupLoader
from sga.batching.templates import AutoTemplate, Template
from sga.data.authors import Authors
from sga.data.folds import evenly, in_folds
from sga.data.records import Benchmark, Record, Source
from sga.data.refusals import read_refusals
from sga.data.reserved import check_reserved, reserved_and_pool, with_reserved
from sga.errors import UserError, check_numbers
from sga.evaluation.reference import RetainReference
from sga.groups import alternatives as others
from sga.groups.group import Group
from sga.groups.group_file import read_groups
from sga.groups.pairing import NearestNormals, Pairing, extended, make_groups, with_model
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, RETAIN, columns_of
from sga.losses.base import Needs
from sga.models.pretrained import LanguageModel
from sga.runs.folder import RunFolder
from sga.runs.restart import check_reserved_ids, check_reserved_rows, only_begun, reserved_ids

SCHEMA_VERSION = "2"
"""Raised when a change to the code changes numbers; results of different versions are never compared."""


@dataclass(frozen=True)
class EvaluationData:
    """What metrics may ask about.

    Attributes:
        name: The benchmark's name, prefix of its metrics.
        sets: Records by evaluation set.
        absent: For each evaluation set that is not there, why not.
        normals: The distinct normal samples of the training groups; empty without groups.
        settings: What the numbers depend on besides the weights, by name; kept with results and compared with those of
            a reference.
        encoder: For metrics that cut texts by their tokens.
        examples: Worked examples that stand before each question of an evaluation set, by set.
        references: Each retain model's numbers for the forget set, in its order; none without a reference.
        alternatives: The other answers to forget questions that training learns; empty without groups.
        drawn: `Record.content` of all samples that training groups have as normals, whatever `normals` is cut to.
    """

    name: str
    sets: dict[str, tuple[Record, ...]]
    absent: dict[str, str]
    normals: tuple[Record, ...]
    settings: dict[str, str | None]
    encoder: Encoder
    examples: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    references: tuple[RetainReference, ...] = ()
    alternatives: tuple[Record, ...] = ()
    drawn: frozenset[tuple[str, str]] = frozenset()


class Asking(Protocol):
    """What asks in evaluations."""

    def request_batches(self, trainer: Any, stage: str) -> Iterable[Any]:
        """Batches of what is asked in a stage, ``validate``, ``test`` or ``predict``."""

    def settings(self, trainer: Any) -> dict[str, str]:
        """What the metrics depend on besides the answers, by name."""


class UnlearningData(pl.LightningDataModule):
    """Groups each forget sample with its K−1 normals, and hands evaluation requests to the validation loop."""

    def __init__(
        self,
        language_model: LanguageModel,
        source: Source = Authors(),  # noqa: B008  (frozen)
        root: str | None = None,
        train_on: Sequence[str] = ("forget",),
        folds: int = 1,
        forget_folds: Sequence[int] | None = None,
        group_size: int = 4,
        pairing: Pairing = NearestNormals(),  # noqa: B008  (frozen)
        pairs: str | None = None,
        pool_size: int | None = None,
        reserved: float = 0.2,
        alternatives: others.Alternatives | None = None,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        template: Template = AutoTemplate(),  # noqa: B008  (frozen)
        special_tokens: Literal["warn", "refuse", "text"] = "warn",
        max_length: int = 512,
        evaluation_rows: int | None = None,
        evaluation_tokens: int | None = None,
        generation_rows: int | None = None,
        predict_sets: Sequence[str] = ("forget", "retain"),
        refusals: str | None = None,
        seed: int = 0,
    ) -> None:
        """Notes the settings; nothing is read yet.

        Args:
            language_model: Whose tokenizer is used (linked to the model's).
            source: Which benchmark.
            root: Folder of the benchmark's files, where it has any.
            train_on: Training splits. ``[forget]`` unlearns; several splits (forget, retain, real_authors,
                world_facts) train a target or a retain model by plain fine-tuning, without normals.
            folds: Into how many parts of successive records (of long texts: blocks) the forget split is cut.
            forget_folds: Which of them are there to be trained on, counted from 1; null takes all. Evaluation sets stay
                whole, so that runs on different folds can be compared.
            group_size: K: one forget sample and K−1 normal samples.
            pairing: How normal samples are chosen from the retain split.
            pairs: A normal-data file, such as ``sga normals`` writes or a run's ``pairs.jsonl``; null pairs afresh, or
                re-reads the run folder's on resume.
            pool_size: Normals that each forget sample is paired with, from which each epoch draws K−1; null for K−1.
            reserved: Retain questions that unlearning never draws from, so that ``model_utility_unseen`` is measured on
                rows it has not seen: a share (below 1) of those that are evaluated, or their number; 0 for none. Which
                ones follows from data and seed; a target's or retain model's own training has them all.
            alternatives: Other answers to the forget questions among the K−1 normals; null for none, so that all are
                neighbours, records of the retain split.
            batch_size: Groups per optimiser step, over all processes and accumulation.
            micro_batch_size: Groups per forward pass and process; null takes a step's groups in one pass. Changes
                memory and speed, never the result.
            template: How a question and an answer become one text. AutoTemplate takes the tokenizer's own chat template
                where it has one, else TOFU's plain text.
            special_tokens: What a special token is that is spelled out in a record, such as ``</s>``: ``warn`` takes it
                as that token and says so, ``refuse`` is an error, ``text`` takes it as text. In records that have one,
                ``text`` may move the bounds of tokens next to the template's own special tokens; others are the same.
            max_length: Most tokens of a sequence (at most the model's context); a longer one is an error.
            evaluation_rows: At most this many rows of each evaluation set while training (evenly spaced); null takes
                every row. ``sga test`` always takes every row.
            evaluation_tokens: Most tokens of a batch that is scored, padding included; null finds it from the memory
                that is free. Changes memory and speed only; where it is too much for the memory it is halved.
            generation_rows: Most rows of a batch that is generated, likewise.
            predict_sets: Evaluation sets that ``sga predict`` answers.
            refusals: A text file with one refusal a line, for methods that answer forget questions with one; null takes
                those that come with the package.
            seed: Seed of the order of groups, of refusals and other answers, and of random pairings (linked to
                ``seed_everything``).
        """
        super().__init__()
        check_numbers(2, evaluation_rows=evaluation_rows)
        check_numbers(1, evaluation_tokens=evaluation_tokens, generation_rows=generation_rows)
        check_reserved(reserved)
        self.alternatives, self.neighbors = alternatives, group_size - 1 - (alternatives.count if alternatives else 0)
        if alternatives is not None and self.neighbors < 0:
            raise UserError(
                f"group_size {group_size} has no room for {alternatives.count} alternatives beside the forget sample; "
                f"set --data.group_size {alternatives.count + 1} or more"
            )
        if not train_on:
            raise UserError("train_on must name at least one split, such as [forget]")
        wrong = [number for number in forget_folds or () if not 1 <= number <= folds]
        if folds < 1 or wrong or (forget_folds is not None and len(set(forget_folds)) != max(1, len(forget_folds))):
            raise UserError(
                f"forget_folds must name different folds from 1 to folds = {folds}, at least one, got {forget_folds}"
            )
        if list(train_on) != ["forget"] and group_size != 1:
            raise UserError(
                f"train_on {list(train_on)} is plain fine-tuning, which has no normal samples: "
                f"set --data.group_size 1 (got {group_size})"
            )
        self.language_model = language_model
        self.source, self.root = source, root
        self.train_on, self.group_size = tuple(train_on), group_size
        self.folds, self.forget_folds = folds, None if forget_folds is None else tuple(forget_folds)
        self.pairing = with_model(pairing, getattr(language_model, "name_or_path", None))
        self.pairs, self.pool_size, self.reserved = pairs, pool_size, reserved
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.template, self.max_length, self.special_tokens = template, max_length, special_tokens
        self.evaluation_rows, self.predict_sets = evaluation_rows, tuple(predict_sets)
        self.evaluation_tokens, self.generation_rows = evaluation_tokens, generation_rows
        self.refusals = refusals
        self.seed = seed
        self.benchmark: Benchmark | None = None
        self.groups: list[Group] = []
        self.pool: Sequence[Record] = ()
        """Retain records that unlearning may draw from: all but the reserved ones."""
        self._loader: GroupLoader | None = None
        self._whole: tuple[str, ...] = ()
        self.evaluator: Asking | None = None
        """What knows the questions of an evaluation: the trainer's `Evaluator`, which enters itself here."""

    # ---- records, groups, tokens -------------------------------------------------------------------------------

    def read(self, run_folder: Path | None = None) -> None:
        """Reads the benchmark, pairs the groups (or re-reads them from `run_folder`), and makes the tokenizer.

        Does nothing the second time.

        Raises:
            UserError: anything about records, groups or tokenizer that the user has to mend.
        """
        if self.benchmark is not None:
            return
        benchmark = self.source.load(self.root)
        missing = [split for split in self.train_on if split not in benchmark.training]
        if missing:
            raise UserError(
                f"train_on names {', '.join(missing)}, which {benchmark.name} does not have; "
                f"its training splits are {', '.join(benchmark.training)}"
            )
        # Of whole texts and all folds: runs on different ones have the same tokenizer.
        self.tokenizer: PreTrainedTokenizerBase = self.language_model.tokenizer(_texts(benchmark))
        self.template = self.template.chosen(self.tokenizer)
        context = self.language_model.context()
        length = min(self.max_length, context) if context else self.max_length
        self.encoder = Encoder(self.tokenizer, self.template, length, as_text=self.special_tokens == "text")
        benchmark = self.source.cut(benchmark, self.encoder)
        if self.forget_folds is not None:
            wanted = in_folds(benchmark.training["forget"], self.folds, self.forget_folds)
            benchmark = replace(benchmark, training={**benchmark.training, "forget": wanted})
        benchmark = with_reserved(benchmark, self.reserved, self.seed)
        reserved, self.pool = reserved_and_pool(benchmark)
        if self.alternatives is not None:
            benchmark = others.with_paraphrased_questions(benchmark)
        kept = RunFolder(run_folder) if run_folder is not None and not only_begun(run_folder) else None
        if kept is not None:
            check_reserved_rows(kept, benchmark)

        self.groups = self._grouped(benchmark, reserved, kept.pairs_path if kept is not None else None)
        sets = (*benchmark.training.values(), *benchmark.evaluation.values())
        self._check_texts([record for records in sets for record in records] + _members(self.groups))
        self.benchmark = benchmark

    def _grouped(self, benchmark: Benchmark, reserved: Sequence[Record], kept: Path | None) -> list[Group]:
        """The groups: made, or re-read from the file that was given or, on resume, from the run folder's (`kept`)."""
        forget, pool = benchmark.training["forget"], self.pool

        def alternated(groups: list[Group]) -> list[Group]:
            if self.alternatives is None:
                return groups
            measured = others.measured_answers(benchmark)
            if not any(group.alternatives for group in groups):
                return others.with_alternatives(groups, self.alternatives, pool, measured, self.seed)
            others.check_alternatives(groups, measured)
            return groups

        @cache
        def make() -> list[Group]:
            pairing = (self.pairing, self.seed, self.pool_size, reserved)
            return alternated(make_groups(forget, pool, self.neighbors + 1, *pairing))

        if self.train_on != ("forget",):
            splits = {**benchmark.training, **({"retain": pool} if reserved and self._unlearns_by_tuning else {})}
            return [Group(record) for split in self.train_on for record in splits[split]]
        if self.pairs is not None or (kept is not None and kept.is_file()):
            path = kept if self.pairs is None else Path(self.pairs)
            assert path is not None, "one of the two is there"
            asked = 0 if self.alternatives is None else self.alternatives.size
            expected = (self.neighbors + 1, self.pool_size, make, reserved, asked)
            return alternated(read_groups(path, forget, pool, *expected))
        return make()

    @property
    def _unlearns_by_tuning(self) -> bool:
        """True if a model is unlearned by fine-tuning on what is to be kept: reserved rows are then left out."""
        callbacks = self.trainer.callbacks if self.trainer is not None else ()  # type: ignore[attr-defined]
        return "forget" not in self.train_on and any(getattr(one, "role", None) == "unlearn" for one in callbacks)

    def _check_texts(self, records: Sequence[Record]) -> None:
        # Where nothing to train on has a question, the template is of no use.
        marks = any(not group.forget.is_text for group in self.groups)
        check_control_text(self.encoder, records, refuse=self.special_tokens == "refuse", marks=marks)

    def encode(self, groups: Sequence[Group]) -> list[list[Encoded]]:
        """Token ids of groups; the tokenizer gets all texts at once, a record that stands in many groups once."""
        rows = [_members([group]) for group in groups]
        records = list({record.id: record for row in rows for record in row}.values())
        encoded, _ = self.encoder.encode_all([(record.question, record.answer) for record in records])
        by_id = {record.id: sequence for record, sequence in zip(records, encoded, strict=True)}

        def sequence(record: Record, role: str) -> Encoded:
            found = by_id[record.id]
            return replace(found, prompt_length=1) if role in self._whole else found

        return [
            [sequence(record, role) for record, role in zip(row, _roles(group), strict=True)]
            for row, group in zip(rows, groups, strict=True)
        ]

    def sequences(self, roles: Sequence[str]) -> list[Encoded]:
        """Token ids of all groups' sequences of some roles; setup() for training has run."""
        assert self._loader is not None, "setup() has run"
        groups = zip(self._loader.groups, self._loader.roles, strict=True)
        return [group[column] for group, present in groups for column in columns_of(present, roles)]

    def set_reference(self, total_nll: Mapping[Encoded, float] | None) -> None:
        """Stores the starting model's negative log-likelihoods of sequences with the data; see `collate`."""
        assert self._loader is not None, "setup() has run"
        self._loader.reference = total_nll

    def extend(self, needs: Needs) -> None:
        """Adds to the groups what a loss reads besides forget and normal samples; notes what it reads as a whole."""
        assert self.benchmark is not None, "read() first"
        refusals = read_refusals(self.refusals)
        self.groups = extended(self.groups, needs.alternative, needs.retain, self.pool, refusals, self.seed)
        self._check_texts([record for group in self.groups for record in group.alternatives])
        self._whole = needs.whole

    def loader(self, rank: int = 0, world_size: int = 1) -> GroupLoader:
        """A loader of the groups, from the first epoch on."""
        return GroupLoader(
            self.encode(self.groups),
            self.batch_size,
            self.micro_batch_size,
            self.seed,
            rank,
            world_size,
            self.tokenizer.pad_token_id or 0,
            [_roles(group) for group in self.groups],
            self.neighbors + 1,
            self.alternatives.count if self.alternatives else None,
        )

    def evaluation_data(self, every_row: bool = False) -> EvaluationData:
        """The records that metrics ask about, cut to `evaluation_rows` unless every row is wanted."""
        assert self.benchmark is not None, "read() first"
        limit = None if every_row else self.evaluation_rows
        normals = dict.fromkeys(normal for group in self.groups for normal in group.normals)
        # Texts are cut to the context, so that another one gives other numbers.
        scored = [record for name in ("forget", "holdout") for record in self.benchmark.evaluation.get(name, ())]
        return EvaluationData(
            name=self.benchmark.name,
            sets={name: evenly(records, limit) for name, records in self.benchmark.evaluation.items()},
            absent=dict(self.benchmark.absent),
            normals=evenly(tuple(normals), limit),
            settings={
                **self.evaluation_settings,
                "benchmark": self.benchmark.name,
                "forget_set": _content_hash(self.benchmark.evaluation.get("forget", ())),
                "template": repr(self.template) + (", special tokens as text" if self.encoder.as_text else ""),
                "rendering": self._rendering if any(not record.is_text for record in scored) else None,
                "text_length": str(self.encoder.max_length) if any(record.is_text for record in scored) else None,
                **(self.evaluator.settings(self.trainer) if self.evaluator is not None else {}),
            },
            encoder=self.encoder,
            examples=dict(self.benchmark.examples),
            alternatives=tuple(record for group in self.groups for record in group.alternatives),
            drawn=frozenset(normal.content for normal in normals),
        )

    @property
    def _rendering(self) -> str | None:
        """First 16 hex digits of the SHA-256 of what the tokenizer's template makes of an example, if it has one."""
        text = self.template.rendering(self.tokenizer)
        return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def evaluation_settings(self) -> dict[str, str | None]:
        """What an answer of the model depends on besides its weights and the tokens asked about."""
        return {
            "schema_version": SCHEMA_VERSION,
            "dtype": getattr(self.language_model, "dtype", "float32"),
            "precision": str(self.trainer.precision) if self.trainer is not None else None,
        }

    # ---- Lightning ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        assert trainer is not None
        self.read(Path(trainer.default_root_dir) if stage == "fit" else None)
        if stage == "fit":
            loss: Any = trainer.lightning_module.loss
            if loss is not None:
                loss.check_alternatives(self.alternatives.count if self.alternatives else 0)
                self.extend(loss.needs)
            self._loader = self.loader(trainer.global_rank, trainer.world_size)
            if trainer.accumulate_grad_batches not in (1, self._loader.accumulation):
                raise UserError(
                    f"trainer.accumulate_grad_batches = {trainer.accumulate_grad_batches} contradicts batch_size "
                    f"{self.batch_size} and micro_batch_size {self._loader.micro_batch_size} on {trainer.world_size} "
                    f"processes, which make {self._loader.accumulation}; leave it out"
                )
            trainer.accumulate_grad_batches = self._loader.accumulation
            self._limit(self._loader, trainer)

    def _limit(self, loader: GroupLoader, trainer: pl.Trainer) -> None:
        """Has the loader end its epochs where the trainer's flags say: all that counts steps asks the loader."""
        share, repeats = trainer.limit_train_batches, trainer.overfit_batches > 0  # type: ignore[attr-defined]
        if isinstance(share, int) or share < 1 or repeats:
            loader.limit(share, repeats)
            trainer.limit_train_batches = len(loader)  # whole steps: Lightning would end within an accumulated one
        interval = getattr(trainer, "val_check_interval", None)  # not there where it is a time
        within_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
        if isinstance(interval, int) and interval > len(loader) and within_epoch:
            raise UserError(
                f"trainer.val_check_interval {interval} is more than the {len(loader)} batches of an epoch: lower it, "
                "or count on over epochs with --trainer.check_val_every_n_epoch null"
            )

    def state_dict(self) -> dict[str, Any]:
        """The loader's position, and which rows are reserved.

        Lightning gives a loader its own state back within an epoch only, not at its end.
        """
        if self._loader is None or self.benchmark is None:
            return {}
        return {**self._loader.state_dict(), "reserved": reserved_ids(self.benchmark)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._loader is not None and self.benchmark is not None:
            check_reserved_ids(state_dict.get("reserved"), self.benchmark, "the checkpoint's run")
            self._loader.load_state_dict(state_dict)

    def train_dataloader(self) -> GroupLoader:
        assert self._loader is not None, "setup() has run"
        return self._loader

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.train_dataloader().steps_per_epoch

    def val_dataloader(self) -> Iterable[Any]:
        return self._asked("validate")

    def test_dataloader(self) -> Iterable[Any]:
        return self._asked("test")

    def predict_dataloader(self) -> Iterable[Any]:
        return self._asked("predict")

    def _asked(self, stage: str) -> Iterable[Any]:
        return () if self.evaluator is None else self.evaluator.request_batches(self.trainer, stage)


def _members(groups: Sequence[Group]) -> list[Record]:
    """All records of groups, in the order in which they are encoded."""
    return [record for group in groups for record in (group.forget, *group.normals, *group.alternatives, *group.retain)]


def _roles(group: Group) -> tuple[str, ...]:
    """Role of each of a group's sequences, in the order in which they are encoded."""
    return (
        FORGET,
        *[NORMAL] * len(group.normals),
        *[ALTERNATIVE] * len(group.alternatives),
        *[RETAIN] * len(group.retain),
    )


def _content_hash(records: Sequence[Record]) -> str:
    """First 16 hex digits of the SHA-256 of everything that a set is evaluated on."""
    return hashlib.sha256(
        repr([(r.spelling, r.paraphrased_answer, r.perturbed_answers) for r in records]).encode()
    ).hexdigest()[:16]


def _texts(benchmark: Benchmark) -> Iterator[str]:
    """Every text of a benchmark that a tokenizer of its own is trained on: training splits and evaluation answers."""
    for records in (*benchmark.training.values(), *benchmark.evaluation.values()):
        for record in records:
            yield record.question
            yield record.answer
            yield from filter(None, (record.paraphrased_answer,))
            yield from record.perturbed_answers
