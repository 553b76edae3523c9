"""Models made of two others: task vectors and contrasted decoding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from sga.errors import UserError
from sga.models.pretrained import LanguageModel, Pretrained
from sga.models.text_config import cache_argument, text_config


class _Combination(LanguageModel):
    """A model made of two, with the tokenizer and the context of the first."""

    _base: Pretrained

    def context(self) -> int | None:
        return self._base.context()

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return self._base.tokenizer(texts)


class TaskVector(_Combination):
    """The model minus the direction in which fine-tuning on the forget data moves it: θ − a·(θ_tuned − θ).

    Source: Ilharco et al., arXiv 2212.04089.
    """

    def __init__(self, name_or_path: str, tuned: str, scale: float = 5.0) -> None:
        """Stores the locations of the two models; nothing is loaded yet.

        Args:
            name_or_path: Name or path of the model that has to forget; see `Pretrained`.
            tuned: Name or path of the same model after fine-tuning on the forget data, such as a run folder of
                FineTuning.
            scale: Factor a on the difference of the weights; MUSE's paper uses 5.
        """
        if not math.isfinite(scale):
            raise UserError(f"scale must be a finite number, got {scale}")
        self._base, self._tuned, self.scale = Pretrained(name_or_path), Pretrained(tuned), scale
        self.name_or_path, self.tuned = self._base.name_or_path, self._tuned.name_or_path

    @torch.no_grad()
    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        network = self._base.network(tokenizer)
        tuned = dict(self._tuned.network(tokenizer).named_parameters())
        for name, parameter in network.named_parameters():
            if name not in tuned or tuned[name].shape != parameter.shape:
                raise UserError(
                    f"the models {self.name_or_path!r} and {self.tuned!r} differ in parameter {name}: a task vector "
                    "needs the same model before and after fine-tuning"
                )
            parameter.sub_(tuned[name] - parameter, alpha=self.scale)
        return network


class WhosHarryPotter(_Combination):
    """A decoder over two models: logits v_b − a·ReLU(v_r − v_b), with v_r of a model reinforced on the forget data.

    Tokens that the reinforced model predicts more strongly than the base count as forget knowledge, and are lowered.
    You can evaluate it like any model, but not train or export it. Source: Eldan and Russinovich, arXiv 2310.02238,
    without its second half, fine-tuning on the predictions of this decoder.
    """

    trainable = False

    def __init__(self, name_or_path: str, reinforced: str, strength: float = 1.0) -> None:
        """Stores the locations of the two models; nothing is loaded yet.

        Args:
            name_or_path: Name or path of the model that has to forget; see `Pretrained`.
            reinforced: Name or path of the same model after fine-tuning on the forget data, such as a run folder of
                FineTuning.
            strength: Factor a on the lowered logits, at least 0.
        """
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength must be a finite number of at least 0, got {strength}")
        self._base, self._reinforced, self.strength = Pretrained(name_or_path), Pretrained(reinforced), strength
        self.name_or_path, self.reinforced = self._base.name_or_path, self._reinforced.name_or_path

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        base, reinforced = self._base.network(tokenizer), self._reinforced.network(tokenizer)
        vocabularies = [int(text_config(model).vocab_size) for model in (base, reinforced)]
        if vocabularies[0] != vocabularies[1]:
            raise UserError(
                f"the models {self.name_or_path!r} and {self.reinforced!r} have vocabularies of "
                f"{vocabularies[0]} and {vocabularies[1]}: they cannot be decoded together"
            )
        return ContrastedModel(base, reinforced, self.strength)


class ContrastedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """The decoder of `WhosHarryPotter` with the interface of a model, and one key-value cache for both models."""

    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, base: PreTrainedModel, reinforced: PreTrainedModel, strength: float) -> None:
        super().__init__(base.config)
        self.base, self.reinforced, self.strength = base, reinforced, strength
        self.generation_config = base.generation_config
        # Both models write to one cache, the second one to layers after those of the first one.
        for module in reinforced.modules():
            place: Any = getattr(module, "layer_idx", None)
            if place is not None:
                module.layer_idx = place + text_config(base).num_hidden_layers

    def get_output_embeddings(self) -> None:
        """None, because there is no single head that could get fewer positions."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        def logits(model: PreTrainedModel) -> Tensor:
            found: Tensor = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{cache_argument(model): past_key_values},
                use_cache=bool(use_cache) and past_key_values is not None,  # a model's own cache lacks the layers
                logits_to_keep=logits_to_keep,
            ).logits
            return found

        # The base runs second: its layers come first in the cache, and give both models the length read so far.
        reinforced = logits(self.reinforced)
        base = logits(self.base)
        return CausalLMOutput(logits=base - self.strength * (reinforced - base).relu())

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise UserError("WhosHarryPotter is a decoder over two models, which Hugging Face's format has no place for")
