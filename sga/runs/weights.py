"""Weights of a run: checkpoint files, checked before they are loaded, and models made from them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sga.errors import UserError
from sga.evaluation.cache import weights_key
from sga.models.adapters import has_adapter, is_adapter_weight
from sga.models.pretrained import LanguageModel, Pretrained
from sga.runs.folder import OWN_CHECKPOINTS, RunFolder

_PREFIX = "model."
"""Prefix of the network's weights in a checkpoint of `UnlearningModule`."""


def damage(path: Path) -> str | None:
    """Name of the first damaged part of a checkpoint file; None if the file is intact.

    torch.save writes a CRC-32 of each part, and torch.load does not check it. The whole file is read, about a gigabyte
    per second and a megabyte at a time; the next reader finds it in the system's cache.

    Raises:
        zipfile.BadZipFile: the file is not an archive.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def is_whole(path: Path) -> bool:
    """True if a checkpoint file exists and is intact."""
    try:
        return damage(path) is None
    except (OSError, zipfile.BadZipFile):
        return False


def what_is_left(path: Path) -> str:
    """Advice on what to resume from in place of a damaged checkpoint: the newest intact one beside it, if any."""
    others = {other for other in path.parent.glob("*.ckpt") if other != path and other.stem != "best"}
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        if is_whole(other):
            content = torch.load(other, map_location="cpu", mmap=True, weights_only=True)
            return f"go on from {other}, of step {content['global_step']}"
    return "there is no other one beside it to go on from: start the run again in another folder"


def check_checkpoint(path: Path, where: str) -> None:
    """Checks a checkpoint file of unknown origin, without running code from it and without copying weights.

    Args:
        path: Path of the checkpoint file.
        where: Name of the file or option, for the message.

    Raises:
        UserError: the file is damaged, holds more than numbers and texts, or is not a checkpoint of Lightning.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        # Compressed members, which torch.save never writes, could fill the memory.
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise UserError(f"{where}: not written by torch.save; go on from another one")
        damaged = damage(path)
        if damaged is not None:
            raise UserError(f"{where}: damaged, {damaged} in it is not what was written; {what_is_left(path)}")
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{where}: holds more than numbers and texts, and may run code when it is read, which is not done; go on "
            "from a checkpoint of this program"
        ) from None
    except Exception as error:  # zipfile and torch.load have no common error for damaged files
        said = " ".join(str(error).split())
        raise UserError(f"{where}: not a checkpoint, or a damaged one ({said:.200}); {what_is_left(path)}") from None
    expected = ("state_dict", "global_step", "pytorch-lightning_version")
    missing = [name for name in expected if not isinstance(content, dict) or name not in content]
    if missing:
        raise UserError(
            f"{where}: not a checkpoint of a run, it has no {', '.join(missing)}; for weights alone give their folder "
            "in Hugging Face format as --model.language_model.name_or_path"
        )


def load_checkpoint(network: nn.Module, path: Path, where: str) -> None:
    """Loads the weights of a checkpoint of `UnlearningModule` into a network.

    Args:
        network: Network as its language model makes it; if it has an adapter, the checkpoint holds the adapter alone.
        path: Path of a checkpoint that `check_checkpoint` has accepted.
        where: Name of the file or option, for the message.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    named: Mapping[str, Any] = checkpoint["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in named.items() if name.startswith(_PREFIX)}
    frozen = None
    if has_adapter(network):
        state = network.state_dict()
        frozen = weights_key({name: w for name, w in state.items() if not is_adapter_weight(name)})
        weights = {**state, **weights}
    if checkpoint.get("frozen_weights") != frozen:
        raise UserError(f"{where}: made with another model beside its adapter, or one of the two has no adapter")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{where}: not of this model ({' '.join(str(error).split()):.200})") from None


def load_model(
    run: RunFolder, checkpoint: str | Path | None, trust_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the model of a run with its tokenizer; see `RunFolder.load_model`."""
    exported = Pretrained(str(run.model_path)) if (run.model_path / "config.json").is_file() else None
    if checkpoint is None and exported is not None:
        tokenizer = exported.tokenizer([])
        return exported.network(tokenizer).eval(), tokenizer  # type: ignore[no-untyped-call]
    if checkpoint is None:
        path = _result(run)
    else:
        path = run.checkpoint(str(checkpoint)) if str(checkpoint) in OWN_CHECKPOINTS else Path(checkpoint)
    if path is not None:
        if not path.is_file():
            raise UserError(f"{run.path}: no such checkpoint as {path}")
        check_checkpoint(path, str(path))
    language_model = _configured_language_model(run, trust_code)
    if exported is None and language_model.trains_tokenizer:
        raise UserError(
            f"{run.path}: its tokenizer was trained on the data and was not exported; run it again with "
            "--export.enabled true"
        )
    tokenizer = (exported or language_model).tokenizer([])
    network = language_model.network(tokenizer)
    if path is not None:
        load_checkpoint(network, path, str(path))
    return network.eval(), tokenizer  # type: ignore[no-untyped-call]


def _result(run: RunFolder) -> Path | None:
    """Path of the final checkpoint of a run without an exported model; None if it evaluated the configured model."""
    own = run.result_checkpoint
    if own is None and run.info.get("verb") == "fit":
        raise UserError(f"{run.path}: holds neither an exported model nor a checkpoint; run it again")
    evaluated = run.info.get("checkpoint")
    return own if own is not None or evaluated is None else Path(evaluated)


def _without_code(described: Any, where: str) -> Any:
    """Returns a configuration block of unknown origin if it names no foreign code; refuses it otherwise."""
    if isinstance(described, list):
        return [_without_code(inner, where) for inner in described]
    if not isinstance(described, dict):
        return described
    name = described.get("class_path")
    if name is not None and not str(name).startswith("sga."):
        raise UserError(
            f"{where}: {name} is no class of this package; load_model(trust_code=True) if you trust the run"
        )
    return {
        key: False if key == "trust_remote_code" else _without_code(value, where) for key, value in described.items()
    }


def _configured_language_model(run: RunFolder, trust_code: bool) -> LanguageModel:
    model = run.config.get("model")
    described = model.get("language_model") if isinstance(model, dict) else None
    where = f"{run.config_path}: model.language_model"
    if not trust_code:
        described = _without_code({"class_path": described} if isinstance(described, str) else described, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LanguageModel, "language_model")
    try:
        found = parser.instantiate_classes(parser.parse_object({"language_model": described})).language_model
    except UserError:
        raise
    except Exception as error:  # jsonargparse's own errors, and any error of an import
        said = " ".join(str(error).split())
        raise UserError(f"{where}: {said:.300}") from None
    assert isinstance(found, LanguageModel)
    return found
