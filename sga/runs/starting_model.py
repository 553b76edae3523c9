"""The starting model, which reference numbers come from, also at every step of a resumed run."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sga.batching.batch import Batch
from sga.batching.encoding import Encoded
from sga.errors import UserError
from sga.evaluation.cache import model_key
from sga.files import read_json_object, write_json
from sga.likelihood.answer_tokens import AnswerTokens
from sga.likelihood.forward import ForwardOptions, answer_tokens
from sga.losses.base import Needs
from sga.models.adapters import adapter_off, has_adapter
from sga.models.sharding import is_sharded
from sga.runs.folder import RunFolder


class StartingModel:
    """The model before unlearning, as a copy or as the trained network with its adapter off; it is never trained.

    Args:
        network: Copy of the starting model; or the trained network itself if it has an adapter that can be switched
            off (`sga.models.adapters`), which saves the memory of a copy.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def answers(
        self,
        batch: Batch,
        keep_logits: bool = False,
        hidden_layer: int | None = None,
        options: ForwardOptions = ForwardOptions(),  # noqa: B008  (frozen)
    ) -> AnswerTokens:
        """`answer_tokens` of the starting model, in eval mode and without gradients."""
        training = self.network.training
        self.network.eval()
        try:
            with adapter_off(self.network):
                return answer_tokens(self.network, batch, keep_logits, hidden_layer, options)
        finally:
            self.network.train(training)


def starting_model(
    trained: nn.Module,
    resumed: bool,
    load: Callable[[], nn.Module],
    needs: Needs,
    sequences: Iterable[Encoded],
    score: Callable[[StartingModel, list[Encoded]], list[float]],
    folder: Path,
    writes: bool,
) -> tuple[StartingModel | None, Mapping[Encoded, float] | None]:
    """Starting model and reference negative log-likelihoods that a loss needs; None for each that it does not need.

    The numbers are cached in the run folder, by the content of sequences and with the hash of the weights: a resumed
    run reads them, because its own weights are no longer the starting model's.

    Args:
        trained: Network to be trained, with the weights at the start of training or of the resumed run.
        resumed: True if the run is resumed from a checkpoint.
        load: Function that loads the starting model once more.
        needs: Needs of the loss, of which `reference` and `reference_nll` count here.
        sequences: Sequences of the streams that `needs.reference_nll` names.
        score: Function for the negative log-likelihoods (nats, summed over answer tokens) of sequences.
        folder: Path of the run folder, where the numbers are cached.
        writes: True if this process writes the numbers; one process of several does.

    Returns:
        The starting model, and the negative log-likelihood of each sequence.

    Raises:
        UserError: a resumed run's starting model differs from the one that the run began with, or its numbers are not
            finite.
    """
    if not needs.reference and not needs.reference_nll:
        return None, None
    path = RunFolder(folder).reference_path
    stored = _read(path) if resumed else None
    wanted = list(dict.fromkeys(sequences))
    known = {row: stored["total_nll"].get(_key(row), math.nan) for row in wanted} if stored is not None else {}
    missing = [row for row in wanted if math.isnan(known.get(row, math.nan))]
    if not needs.reference and not missing:
        return None, known
    if has_adapter(trained):
        network, key = trained, None
    elif resumed:
        network = load()
        key = model_key(network, {})
        if stored is not None and stored["model"] != key:
            raise UserError(
                f"{path} was made with another starting model than the one that the configuration names now; give that "
                "one back its place (--model.language_model), or start a new run in another folder"
            )
    else:
        network = _copy(trained, load) if needs.reference else trained
        key = model_key(network, {})
    model = StartingModel(network)
    known |= dict(zip(missing, score(model, missing), strict=True))
    unusable = sum(not math.isfinite(nll) for nll in known.values())
    if unusable:
        raise UserError(
            f"the starting model gives {unusable} of {len(known)} training sequences a NaN or infinite loss, which the "
            "loss is to be compared with; start from another model"
        )
    if writes and stored is None:
        write_json(path, {"model": key, "total_nll": {_key(row): nll for row, nll in known.items()}})
    if network is not trained:
        network.requires_grad_(False)
    return model if needs.reference else None, known if needs.reference_nll else None


def _copy(trained: nn.Module, load: Callable[[], nn.Module]) -> nn.Module:
    if not is_sharded(trained):
        return copy.deepcopy(trained)
    network = load()  # FSDP2 does not copy modules
    network.load_state_dict(trained.state_dict())
    return network


def _key(sequence: Encoded) -> str:
    """First 32 hex digits of the SHA-256 of a sequence's tokens and its prompt length."""
    content = json.dumps([sequence.prompt_length, *sequence.ids])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    stored = read_json_object(path, "it is damaged: delete it to compute the numbers again")
    try:
        model, values = stored["model"], stored["total_nll"]
        return {"model": model, "total_nll": {str(name): float(value) for name, value in values.items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the starting model's numbers, or damaged ({error!r}); delete it to compute them again"
        ) from None
