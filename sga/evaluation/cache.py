"""Cache of answers between evaluations, keyed by content: the model's weights and the tokens of the request.

A file is never changed: each evaluation adds a new one, so that several processes may use one folder. Files hold
numbers and token ids, no text; but anyone with the tokenizer can decode the token ids of generated answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sga.evaluation.request_batches import GenerateJob, Job, ScoreJob
from sga.evaluation.requests import Answer, Generation, TokenScores
from sga.files import write_bytes
from sga.models.adapters import adapter_settings

FORMAT = "2"
"""Version of the files; files of another version are not read. Raise it when their form or a cached number changes."""


def model_key(model: nn.Module, settings: Mapping[str, str | None]) -> str:
    """SHA-256 of everything that an answer depends on besides the tokens of its request.

    Args:
        model: Model to hash: every parameter and buffer with name, type and shape, and its configuration. Where weights
            are sharded (FSDP2), every process has to call this, and all get the key of the whole model.
        settings: Other settings that answers depend on: precision, device, versions, stop tokens.
    """
    config = getattr(model, "config", None)
    described = config.to_dict() if config is not None else {}
    described = {name: value for name, value in described.items() if name not in ("_name_or_path", "name_or_path")}
    digest = hashlib.sha256(json.dumps([FORMAT, dict(settings), described], sort_keys=True, default=str).encode())
    adapters = adapter_settings(model)  # two adapters with equal weights may be scaled differently
    digest.update(json.dumps(adapters, sort_keys=True).encode() if adapters else b"")
    _add_weights(digest, model.state_dict())
    return digest.hexdigest()


def weights_key(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes, as a hex string."""
    digest = hashlib.sha256()
    _add_weights(digest, state)
    return digest.hexdigest()


def _add_weights(digest: Any, state: Mapping[str, Any]) -> None:
    names = sorted(name for name, value in state.items() if isinstance(value, Tensor))
    if any(isinstance(state[name], DTensor) for name in names):
        for name in names:  # gathered one at a time, in the same order by all processes
            value = state[name]
            digest.update(_tensor_digest(name, value.full_tensor() if isinstance(value, DTensor) else value))
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing lets other threads run
        for part in pool.map(_tensor_digest, names, [state[name] for name in names]):
            digest.update(part)


def _tensor_digest(name: str, value: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
    content = value.detach().contiguous().cpu()
    if content.numel():
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class AnswerCache:
    """Cached answers of one model in a folder.

    Args:
        folder: Folder of the cache, with a subfolder for each model.
        key: Key of the model and its settings, from `model_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder / key[:32]

    def find(self, jobs: Sequence[Job]) -> dict[int, Answer]:
        """Cached answers by index in `jobs`; an answer without the details that a job needs does not count."""
        wanted = {job.key: index for index, job in enumerate(jobs)}
        found: dict[int, Answer] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                content = path.read_bytes()
                if _name(content) != path.stem:
                    raise ValueError("it is not as it was written")
                with np.load(BytesIO(content), allow_pickle=False) as file:
                    stored = _unpacked({name: file[name] for name in file.files})
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                warnings.warn(f"{path}: cannot be read ({error}); its answers are computed again", stacklevel=2)
                continue
            for key, answer in stored.items():
                index = wanted.get(key)
                if index is None:
                    continue
                job = jobs[index]
                if isinstance(job, ScoreJob) and job.detail and isinstance(answer, TokenScores) and answer.hits is None:
                    continue
                found[index] = answer
        return found

    def add(self, jobs: Sequence[Job], answers: Mapping[int, Answer]) -> None:
        """Writes answers, by index in `jobs`, as one new file; no file if there are none."""
        if not answers:
            return
        content = BytesIO()
        np.savez_compressed(content, allow_pickle=False, **_packed(jobs, answers))
        data = content.getvalue()
        write_bytes(self._folder / f"{_name(data)}.npz", data)


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _packed(jobs: Sequence[Job], answers: Mapping[int, Answer]) -> dict[str, np.ndarray]:
    scored = [(jobs[i].key, answer) for i, answer in answers.items() if isinstance(answer, TokenScores)]
    details = [answer for _, answer in scored if answer.hits is not None]
    spoken = [(jobs[i].key, answer) for i, answer in answers.items() if isinstance(answer, Generation)]
    assert all(isinstance(jobs[i], ScoreJob | GenerateJob) for i in answers)

    def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)

    return {
        "score_keys": np.array([key for key, _ in scored], dtype="U64"),
        "score_lengths": np.array([len(answer.log_probs) for _, answer in scored], dtype=np.int64),
        "score_detailed": np.array([answer.hits is not None for _, answer in scored], dtype=np.bool_),
        "log_probs": joined([answer.log_probs for _, answer in scored], np.float64),
        "hits": joined([answer.hits for answer in details if answer.hits is not None], np.bool_),
        "means": joined([answer.means for answer in details if answer.means is not None], np.float64),
        "variances": joined([answer.variances for answer in details if answer.variances is not None], np.float64),
        "generation_keys": np.array([key for key, _ in spoken], dtype="U64"),
        "generation_lengths": np.array([len(answer.ids) for _, answer in spoken], dtype=np.int64),
        "generation_ids": np.array([token for _, answer in spoken for token in answer.ids], dtype=np.int64),
    }


def _unpacked(arrays: Mapping[str, np.ndarray]) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    start = detail_start = 0
    columns = zip(arrays["score_keys"], arrays["score_lengths"], arrays["score_detailed"], strict=True)
    for key, length, detailed in columns:
        log_probs = arrays["log_probs"][start : start + length]
        start += length
        if detailed:
            where = slice(detail_start, detail_start + length)
            detail_start += length
            answers[str(key)] = TokenScores(
                log_probs, arrays["hits"][where], arrays["means"][where], arrays["variances"][where]
            )
        else:
            answers[str(key)] = TokenScores(log_probs)
    start = 0
    for key, length in zip(arrays["generation_keys"], arrays["generation_lengths"], strict=True):
        ids = arrays["generation_ids"][start : start + length]
        answers[str(key)] = Generation(tuple(int(token) for token in ids))
        start += length
    return answers
