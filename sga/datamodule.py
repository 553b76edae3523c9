"""The LightningDataModule: records, groups, token ids, and the requests of evaluations."""

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
"""Version of the numbers; results of different versions are never compared. Raise it if a code change moves numbers."""


@dataclass(frozen=True)
class EvaluationData:
    """Data of an evaluation, which metrics make their requests from.

    Attributes:
        name: Name of the benchmark, the prefix of its metrics.
        sets: Records by evaluation set.
        absent: Reason for each evaluation set that is missing.
        normals: Distinct normal samples of the training groups; empty without groups.
        settings: Settings by name that the numbers depend on besides the weights; written with results, and compared
            with those of a reference.
        encoder: Encoder, for metrics that split texts by their tokens.
        examples: Few-shot examples that precede each question of an evaluation set, by set.
        references: Numbers of each retain model for the forget set, in its order; empty without a reference.
        alternatives: Other answers to forget questions that training learns; empty without groups.
        drawn: `Record.content` of all samples that training groups have as normals, also of those beyond the limit of
            `normals`.
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
    """Source of an evaluation's requests; the trainer's `Evaluator` is one."""

    def request_batches(self, trainer: Any, stage: str) -> Iterable[Any]:
        """Batches of the requests in a stage, ``validate``, ``test`` or ``predict``."""

    def settings(self, trainer: Any) -> dict[str, str]:
        """Settings that the metrics depend on besides the answers, by name."""


class UnlearningData(pl.LightningDataModule):
    """LightningDataModule of groups, each a forget sample with its K−1 normals, and of evaluation requests."""

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
        """Stores the settings; nothing is read yet.

        Args:
            language_model: Model whose tokenizer is used (linked to the model's).
            source: Source of the benchmark's records.
            root: Folder of the benchmark's files, if it has any.
            train_on: Names of the training splits. ``[forget]`` unlearns; several splits (forget, retain, real_authors,
                world_facts) train a target or a retain model by plain fine-tuning, without normals.
            folds: Number of parts of successive records (of long texts: blocks) that the forget split is divided into.
            forget_folds: Numbers of the parts to train on, counted from 1; null for all. Evaluation sets are not
                divided, so that runs on different folds can be compared.
            group_size: Size K of a group: one forget sample and K−1 normal samples.
            pairing: Pairing that chooses normal samples from the retain split.
            pairs: Path of a group file from ``sga normals``, or of a run's ``pairs.jsonl``; null makes new pairs, or
                re-reads the run folder's on resume.
            pool_size: Number of normals paired with each forget sample, from which each epoch draws K−1; null for K−1.
            reserved: Share (below 1) or number of the evaluated retain questions that unlearning never uses, so that
                ``model_utility_unseen`` is measured on unseen rows; 0 for none. Data and seed determine the rows; the
                training of a target or retain model uses them too.
            alternatives: Source of other answers to the forget questions among the K−1 normals; null for none, so that
                all normals are neighbours, records of the retain split.
            batch_size: Number of groups per optimiser step, over all processes and accumulation.
            micro_batch_size: Number of groups per forward pass and process; null for all of a step's groups in one
                pass. Changes memory and speed, never the result.
            template: Template that makes one text of a question and an answer. AutoTemplate uses the tokenizer's chat
                template if it has one, otherwise TOFU's plain text.
            special_tokens: Treatment of special tokens that are spelled out in a record, such as ``</s>``: ``warn``
                encodes them as tokens with a warning, ``refuse`` is an error, ``text`` encodes them as text. In records
                that have one, ``text`` may move token boundaries next to the template's own special tokens.
            max_length: Largest number of tokens of a sequence, at most the model's context; a longer one is an error.
            evaluation_rows: Largest number of rows of each evaluation set during training, evenly spaced; null for all.
                ``sga test`` always uses all rows.
            evaluation_tokens: Largest number of tokens of a scoring batch, padding included; null chooses it by the
                free memory. Changes memory and speed only; a batch that does not fit in memory is halved.
            generation_rows: Largest number of rows of a generation batch; null chooses it by the free memory. Changes
                memory and speed only.
            predict_sets: Names of the evaluation sets that ``sga predict`` answers.
            refusals: Path of a text file with one refusal per line, for methods that train on refusals; null uses the
                package's own.
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
        """Retain records that unlearning may use: all except the reserved ones."""
        self._loader: GroupLoader | None = None
        self._whole: tuple[str, ...] = ()
        self.evaluator: Asking | None = None
        """Source of an evaluation's requests: the trainer's `Evaluator`, which sets itself here."""

    # ---- records, groups, tokens -------------------------------------------------------------------------------

    def read(self, run_folder: Path | None = None) -> None:
        """Reads the benchmark, makes the groups (or re-reads them from `run_folder`), and the tokenizer.

        A second call does nothing.

        Raises:
            UserError: records, groups or tokenizer have a fault that the user has to mend.
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
        # Trained on whole texts of all folds, so that runs on different folds have the same tokenizer.
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
        """Makes the groups, or re-reads them from the given file or, on resume, from the run folder's (`kept`)."""
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
        """True if a model is unlearned by fine-tuning on retain data, which then leaves out reserved rows."""
        callbacks = self.trainer.callbacks if self.trainer is not None else ()  # type: ignore[attr-defined]
        return "forget" not in self.train_on and any(getattr(one, "role", None) == "unlearn" for one in callbacks)

    def _check_texts(self, records: Sequence[Record]) -> None:
        # Without a question among the training data the template is not used.
        marks = any(not group.forget.is_text for group in self.groups)
        check_control_text(self.encoder, records, refuse=self.special_tokens == "refuse", marks=marks)

    def encode(self, groups: Sequence[Group]) -> list[list[Encoded]]:
        """Token ids of groups; the tokenizer gets all texts in one call, with each record once."""
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
        """Token ids of all groups' sequences of some roles; call it after setup() for training."""
        assert self._loader is not None, "setup() has run"
        groups = zip(self._loader.groups, self._loader.roles, strict=True)
        return [group[column] for group, present in groups for column in columns_of(present, roles)]

    def set_reference(self, total_nll: Mapping[Encoded, float] | None) -> None:
        """Stores the starting model's negative log-likelihoods of sequences, for `collate`."""
        assert self._loader is not None, "setup() has run"
        self._loader.reference = total_nll

    def extend(self, needs: Needs) -> None:
        """Adds samples to the groups that a loss needs besides forget and normal samples, and stores `needs.whole`."""
        assert self.benchmark is not None, "read() first"
        refusals = read_refusals(self.refusals)
        self.groups = extended(self.groups, needs.alternative, needs.retain, self.pool, refusals, self.seed)
        self._check_texts([record for group in self.groups for record in group.alternatives])
        self._whole = needs.whole

    def loader(self, rank: int = 0, world_size: int = 1) -> GroupLoader:
        """Loader of the groups, at the beginning of the first epoch."""
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
        """Data for the metrics' requests, limited to `evaluation_rows` per set unless `every_row` is true."""
        assert self.benchmark is not None, "read() first"
        limit = None if every_row else self.evaluation_rows
        normals = dict.fromkeys(normal for group in self.groups for normal in group.normals)
        # Texts are truncated to the context, so another context gives other numbers.
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
        """First 16 hex digits of the SHA-256 of an example in the tokenizer's template; None for a plain template."""
        text = self.template.rendering(self.tokenizer)
        return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def evaluation_settings(self) -> dict[str, str | None]:
        """Settings that an answer of the model depends on besides its weights and the request's tokens."""
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
        """Applies the trainer's limits on batches to the loader, which everything that counts steps asks."""
        share, repeats = trainer.limit_train_batches, trainer.overfit_batches > 0  # type: ignore[attr-defined]
        if isinstance(share, int) or share < 1 or repeats:
            loader.limit(share, repeats)
            trainer.limit_train_batches = len(loader)  # whole steps: Lightning would end within an accumulated step
        interval = getattr(trainer, "val_check_interval", None)  # missing if it is a time
        within_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
        if isinstance(interval, int) and interval > len(loader) and within_epoch:
            raise UserError(
                f"trainer.val_check_interval {interval} is more than the {len(loader)} batches of an epoch: lower it, "
                "or count on over epochs with --trainer.check_val_every_n_epoch null"
            )

    def state_dict(self) -> dict[str, Any]:
        """State of the loader, and the ids of the reserved rows.

        Needed because Lightning restores a loader's own state within an epoch only, not at its end.
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
        """Number of optimiser steps of an epoch."""
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
    """First 16 hex digits of the SHA-256 of all texts that a set is evaluated on."""
    return hashlib.sha256(
        repr([(r.spelling, r.paraphrased_answer, r.perturbed_answers) for r in records]).encode()
    ).hexdigest()[:16]


def _texts(benchmark: Benchmark) -> Iterator[str]:
    """Texts of a benchmark that a model's own tokenizer is trained on: training splits and evaluation sets."""
    for records in (*benchmark.training.values(), *benchmark.evaluation.values()):
        for record in records:
            yield record.question
            yield record.answer
            yield from filter(None, (record.paraphrased_answer,))
            yield from record.perturbed_answers
