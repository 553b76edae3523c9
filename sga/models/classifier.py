"""A text classifier of the Hugging Face Hub or a folder, with a label for fluent language."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sga.errors import UserError

_TEXTS = 32
"""Number of texts that are classified in one pass."""
_NO_LENGTH = 10**9


class FluencyClassifier:
    """Probability that a text is fluent language, by a sequence classifier such as a detector of gibberish.

    Differs from open-unlearning's `classifier_prob` (d3d7cf9), which takes a class by its number: an empty text has
    probability 0 here, because a classifier was never shown one.
    """

    def __init__(self, name_or_path: str, label: str) -> None:
        """Loads the classifier in float32, and checks that it knows the label.

        Args:
            name_or_path: Folder or Hub name of the classifier, with its tokenizer.
            label: Label of fluent text in the classifier's ``id2label``, such as ``clean``.

        Raises:
            UserError: there is no classifier there, it has no trained head, or no such label.
        """
        where = f"fluency.classifier {name_or_path}"
        try:
            config = AutoConfig.from_pretrained(name_or_path)
            labels = {name: index for index, name in config.id2label.items()}
            if label not in labels or len(labels) < 2:
                known = ", ".join(map(str, labels))
                raise UserError(f"{where}: has no label {label!r} beside others; its labels: {known}")
            self._tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            network, loading = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{where}: not a sequence classifier with its tokenizer; give the folder of one ({error})"
            ) from None
        if loading["missing_keys"]:
            some = ", ".join(sorted(loading["missing_keys"])[:3])
            raise UserError(f"{where}: weights are missing ({some}); give a model that was trained as a classifier")
        self._network = network.eval().requires_grad_(False)
        self._index = int(labels[label])
        limits = (self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        # A tokenizer that was given no length states an astronomic one, which is none.
        self._length = min((limit for limit in limits if limit and limit < _NO_LENGTH), default=None)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], device: torch.device | str = "cpu") -> list[float]:
        """Probability of the label for each text, in [0, 1]; 0 for a text of white space.

        Args:
            texts: Texts to classify, truncated to the classifier's context.
            device: Device to classify on; the classifier stays there.
        """
        network, found = self._network.to(device), [0.0] * len(texts)
        asked = sorted((index for index, text in enumerate(texts) if text.strip()), key=lambda index: len(texts[index]))
        # Without padding a batch has one text.
        size = _TEXTS if self._tokenizer.pad_token is not None and network.config.pad_token_id is not None else 1
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            encoded = self._tokenizer(
                [texts[index] for index in part],
                padding=size > 1,
                truncation=self._length is not None,
                max_length=self._length,
                return_tensors="pt",
            ).to(device)
            shares = network(**encoded).logits.double().softmax(-1)[:, self._index].tolist()
            for index, share in zip(part, shares, strict=True):
                found[index] = share
        return found
