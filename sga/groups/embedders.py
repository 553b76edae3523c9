"""Embedders of texts as unit vectors: TF-IDF, hidden states of a causal language model, sentence-transformers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sga.data.records import comparable
from sga.errors import UserError
from sga.groups.search import Embedding, unit

_BATCH_TOKENS = 4096


class Embedder(ABC):
    """Embedder whose vectors' cosine is a similarity. Implementations are frozen dataclasses, chosen by class path."""

    @abstractmethod
    def fitted(self, pool: Sequence[tuple[str, str]]) -> Embedding:
        """Embedding function with its model loaded, fitted to the pool's pairs of question and answer if it learns."""


@dataclass(frozen=True)
class TFIDF(Embedder):
    """Sublinear TF-IDF over word n-grams, with vocabulary and document frequencies of the pool.

    Args:
        ngrams: Length in words of the longest n-gram that counts as a term.
    """

    ngrams: int = 2

    def fitted(self, pool: Sequence[tuple[str, str]]) -> Embedding:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, self.ngrams), sublinear_tf=True)
        try:
            vectorizer.fit([comparable(f"{question} {answer}") for question, answer in pool])
        except ValueError as error:
            raise UserError(
                f"the retain pool has no words that TF-IDF could compare ({error}); use --data.pairing=RandomNormals"
            ) from None
        return lambda texts: vectorizer.transform([comparable(f"{question} {answer}") for question, answer in texts])


@dataclass(frozen=True)
class ModelStates(Embedder):
    """Mean over tokens of a causal language model's hidden states, minus the pool's mean vector.

    Without centring, the states of most models lie in a narrow cone and every cosine is near 1 (Ethayarajh, arXiv
    1909.00512).

    Args:
        name_or_path: Name of the model on the Hub, a local folder, or a run folder with its ``model/``; null for the
            model that unlearns.
        layer: Index of the layer whose states are used: 0 for the token embeddings, 1 for the first block's output;
            negative indices count from the last layer, −1.
        template: Text made of ``{question}`` and ``{answer}``; for an empty question it is the answer alone.
        max_length: Number of tokens that longer texts are truncated to.
        device: Device that the model runs on, such as ``cuda``.
    """

    name_or_path: str | None = None
    layer: int = -1
    template: str = "Question: {question}\nAnswer: {answer}"
    max_length: int = 512
    device: str = "cpu"

    def fitted(self, pool: Sequence[tuple[str, str]]) -> Embedding:
        import torch

        from sga.models.pretrained import Pretrained
        from sga.models.text_config import text_config

        if self.name_or_path is None:
            raise UserError(
                "ModelStates needs a name_or_path, because the model to be trained is not one from a folder"
            )
        described = Pretrained(self.name_or_path)
        tokenizer = described.tokenizer(())
        model = described.network(tokenizer).to(self.device).eval()  # type: ignore[arg-type]
        layers = int(text_config(model).num_hidden_layers) + 1
        if not -layers <= self.layer < layers:
            raise UserError(f"layer must be from {-layers} to {layers - 1} for {self.name_or_path}, got {self.layer}")
        limit = min(self.max_length, described.context() or self.max_length)

        def states(texts: Sequence[tuple[str, str]]) -> Any:
            rows = [tokenizer(self._text(*pair), truncation=True, max_length=limit)["input_ids"] for pair in texts]
            order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
            found = np.zeros((len(rows), int(text_config(model).hidden_size)), dtype=np.float32)
            for batch in _batches(order, [len(row) for row in rows]):  # similar lengths, so little padding
                width = max(1, len(rows[batch[-1]]))
                ids = torch.zeros((len(batch), width), dtype=torch.long)
                mask = torch.zeros((len(batch), width), dtype=torch.long)
                for place, index in enumerate(batch):
                    ids[place, : len(rows[index])] = torch.tensor(rows[index], dtype=torch.long)
                    mask[place, : len(rows[index])] = 1
                with torch.no_grad():
                    output = model(
                        ids.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True,
                        use_cache=False, logits_to_keep=1,
                    )  # fmt: skip
                hidden = output.hidden_states[self.layer].float().cpu() * mask[..., None]  # [B, T, D]
                found[batch] = (hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).numpy()
            return found

        centre = states(pool).mean(axis=0)
        return lambda texts: unit(states(texts) - centre)

    def _text(self, question: str, answer: str) -> str:
        return self.template.replace("{question}", question).replace("{answer}", answer) if question else answer


@dataclass(frozen=True)
class SentenceEmbeddings(Embedder):
    """Embeddings of a sentence-transformers model (extra ``retrieval``).

    Args:
        name_or_path: Name of the model on the Hub or a local folder; environment variables are expanded.
        batch_size: Number of texts per forward pass.
        device: Device that the model runs on, such as ``cuda``.
    """

    name_or_path: str
    batch_size: int = 64
    device: str = "cpu"

    def fitted(self, pool: Sequence[tuple[str, str]]) -> Embedding:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError(
                "SentenceEmbeddings needs sentence-transformers: pip install 'sga-unlearning[retrieval]'"
            ) from None
        location = os.path.expanduser(os.path.expandvars(self.name_or_path))
        if "$" in location:
            raise UserError(f"embedder {self.name_or_path!r}: an environment variable in it is not set")
        if location.startswith((".", "/")) and not Path(location).is_dir():
            raise UserError(f"embedder {location!r}: no such folder")
        try:
            model = SentenceTransformer(location, device=self.device)
        except (OSError, ValueError) as error:
            raise UserError(f"no sentence-transformers model could be loaded from {location!r}: {error}") from error

        def embed(texts: Sequence[tuple[str, str]]) -> Any:
            joined = [f"{question} {answer}".strip() for question, answer in texts]
            return unit(np.asarray(model.encode(joined, batch_size=self.batch_size, show_progress_bar=False)))

        return embed


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterable[list[int]]:
    """Splits indices, sorted by length, into batches of at most `_BATCH_TOKENS` tokens, padding included."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
