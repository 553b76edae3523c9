"""Models that are attacked or compared, and their records: read from run folders, weights always from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from sga.batching.encoding import Encoder
from sga.data.folds import evenly
from sga.data.records import Record
from sga.errors import UserError
from sga.files import write_text, yaml_text
from sga.models.pretrained import Pretrained
from sga.runs.folder import RunFolder


@dataclass(frozen=True)
class AttackedModel:
    """Model on disk or on the Hub.

    Attributes:
        role: Role of the model: ``unlearned``, ``before`` (unlearning) or ``retained``.
        name: Run folder, folder or Hub name of the model, as it was given.
        described: Place of its weights and its tokenizer.
    """

    role: str
    name: str
    described: Pretrained

    @property
    def key(self) -> str:
        """Hash of the files that the weights are read from, see `files_key`."""
        return files_key(self.described.name_or_path, self.described.revision, self.described.dtype)

    def load(self, device: torch.device) -> PreTrainedModel:
        """Loads the weights, in eval mode."""
        network = self.described.network(self.described.tokenizer(())).to(device)  # type: ignore[arg-type]
        return network.eval()  # type: ignore[no-any-return]


WEIGHTS = (".json", ".safetensors", ".bin", ".model", ".gguf")
"""Ends of the names of files that a model and its tokenizer are read from."""


def files_key(name: str, *described: str | None) -> str:
    """Hash of a model's place: path, sizes and times of its files, or its Hub name, and what else describes it."""
    place = Path(name)
    files = sorted(one for one in place.glob("*") if one.suffix in WEIGHTS)
    parts = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    whole = (str(place.resolve() if files else place), *described, parts)
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AttackData:
    """Records that attacks ask about, and how they are asked.

    Attributes:
        benchmark: Name of the benchmark.
        forget: Forget records, evenly spaced where they are too many.
        retain: Retain records that are evaluated, at most as many as forget records.
        holdout: Records that no model has seen; may be empty.
        encoder: Tokenizer, template and longest sequence.
        max_new_tokens: Largest number of tokens of an answer.
        texts: False if nothing but numbers may be kept.
    """

    benchmark: str
    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    holdout: tuple[Record, ...]
    encoder: Encoder = field(repr=False)
    max_new_tokens: int
    texts: bool


def attacked_run(path: str | Path) -> RunFolder:
    """Run folder at a path: the folder itself, or the training in a folder of `sga unlearn`.

    Raises:
        UserError: there is no run.
    """
    folder = Path(path)
    for run in (RunFolder(folder), RunFolder(folder / "unlearned")):
        if run.info_path.is_file() and run.config_path.is_file():
            return run
    raise UserError(f"{path}: no run folder; give the folder of an unlearning run, or of sga unlearn")


def run_model(run: RunFolder, role: str, name: str) -> AttackedModel:
    """Exported model of a run, or the model that an evaluation has looked at.

    Raises:
        UserError: the run was trained and nothing was exported, or its model is not one on disk.
    """
    if (run.model_path / "config.json").is_file():
        return AttackedModel(role, name, Pretrained(str(run.model_path)))
    if run.info.get("verb") == "fit" or run.result_checkpoint is not None or run.info.get("checkpoint"):
        raise UserError(
            f"{run.path}: holds no exported model, and attacks are on what is handed over; run it again with "
            "--export.enabled true"
        )
    return AttackedModel(role, name, _configured(run))


def named_model(name: str, role: str) -> AttackedModel:
    """Model in a run folder, in a folder or on the Hub.

    Raises:
        UserError: as `run_model`, or there is no such model.
    """
    run = RunFolder(name)
    return run_model(run, role, name) if run.info_path.is_file() else AttackedModel(role, name, Pretrained(name))


def model_before(run: RunFolder) -> AttackedModel:
    """Model that a run began with.

    Raises:
        UserError: it is not one on disk or on the Hub.
    """
    described = _configured(run)
    return AttackedModel("before", described.location, described)


def _configured(run: RunFolder) -> Pretrained:
    described = (run.config.get("model") or {}).get("language_model") or {}
    arguments: dict[str, Any] = dict(described.get("init_args") or {}) if isinstance(described, dict) else {}
    if not arguments.get("name_or_path"):
        raise UserError(
            f"{run.config_path}: the model that the run began with is not on disk; name one (--target MODEL)"
        )
    kept = ("name_or_path", "revision", "tokenizer_name_or_path", "dtype", "attention", "gguf_file")
    return Pretrained(**{name: arguments[name] for name in kept if arguments.get(name) is not None})


def attack_data(run: RunFolder, rows: int, max_new_tokens: int | None) -> AttackData:
    """Records of a run, as its configuration says.

    Args:
        run: Run folder with a configuration.
        rows: Largest number of forget records, and of retain records.
        max_new_tokens: Largest number of tokens of an answer; None takes the run's.

    Raises:
        UserError: the data cannot be read, or has no forget records.
    """
    from sga.cli import fit_objects

    # Of an evaluation's configuration fit does not know all.
    wanted = ("seed_everything", "model", "data", "model_utility")
    with TemporaryDirectory() as place:
        file = Path(place) / "data.yaml"
        write_text(file, yaml_text({name: run.config[name] for name in wanted if name in run.config}))
        config, _, data = fit_objects(["--config", str(file)])
    described = run_model(run, "unlearned", str(run.path)).described
    tokenizer = described.tokenizer(())
    length = min(data.max_length, described.context() or data.max_length)
    encoder = Encoder(tokenizer, data.template.chosen(tokenizer), length, as_text=data.special_tokens == "text")
    benchmark = data.source.cut(data.source.load(data.root), encoder)
    sets = benchmark.evaluation
    if not sets.get("forget"):
        raise UserError(f"{run.path}: its data has no forget set, which attacks ask about")
    known = {record.content for record in benchmark.training["retain"]}
    retain = [record for record in sets.get("retain", ()) if record.content in known]
    configured = getattr(getattr(config, "model_utility", None), "max_new_tokens", 200)
    return AttackData(
        benchmark.name,
        evenly(sets["forget"], rows),
        evenly(retain or benchmark.training["retain"], rows),
        evenly(sets.get("holdout", ()), rows),
        encoder,
        max_new_tokens or int(configured),
        bool(run.info.get("texts", True)),
    )


def check_tokenizers(encoder: Encoder, models: Sequence[AttackedModel]) -> None:
    """Refuses models whose tokens mean something else.

    Raises:
        UserError: a model has another tokenizer.
    """
    vocabulary = encoder.tokenizer.get_vocab()
    for model in models:
        if model.described.tokenizer(()).get_vocab() != vocabulary:
            raise UserError(
                f"{model.name}: has another tokenizer than the unlearned model, so that both cannot be asked the same "
                "tokens; name a model of the same kind"
            )


def are_questions(records: Sequence[Record]) -> bool:
    """True if every record has a question."""
    return all(not record.is_text for record in records)
