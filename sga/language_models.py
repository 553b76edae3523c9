"""Where the language model comes from: a Hugging Face name or folder, or a small Llama made from scratch.

Both are light descriptions; weights are loaded or drawn only when `network` is called.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sga.errors import UserError

PURE_BFLOAT16 = (
    "weights in pure bfloat16: at lr 1e-5 an Adam-sized step rounds to nothing for every weight of "
    "magnitude 2^-8 or more, so the model hardly changes. Use float32 weights under bf16-mixed precision."
)


class LanguageModel(ABC):
    """A causal language model and its tokenizer, described but not yet loaded."""

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer; `texts` is what one is trained on where the model has none of its own."""

    @abstractmethod
    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model with its weights, for use with `tokenizer`."""

    @abstractmethod
    def context(self) -> int | None:
        """The most tokens that the model takes, None where it does not say; known without loading weights."""


class Pretrained(LanguageModel):
    """Any Hugging Face causal language model."""

    def __init__(
        self,
        name_or_path: str,
        revision: str = "main",
        tokenizer_name_or_path: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        trust_remote_code: bool = False,
    ) -> None:
        """Notes where the model is; environment variables in paths (``$SGA_MODELS/…``) are filled in.

        Args:
            name_or_path: Name on the Hub, a local folder in Hugging Face format, or a run folder of this program, whose
                ``model/`` is taken.
            revision: Branch, tag or commit on the Hub.
            tokenizer_name_or_path: Where the tokenizer is, if not beside the model.
            dtype: Type of the weights. Keep float32 and train under bf16 autocast (``--trainer.precision bf16-mixed``):
                with pure bfloat16 weights small updates round to nothing.
            attention: Implementation of attention.
            trust_remote_code: Run Python code that comes with the model. Only for sources that you trust.
        """
        self.name_or_path = _model_location(name_or_path)
        self.revision = revision
        self.tokenizer_name_or_path = (
            _model_location(tokenizer_name_or_path) if tokenizer_name_or_path else self.name_or_path
        )
        self.dtype = dtype
        self.attention = attention
        self.trust_remote_code = trust_remote_code

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.tokenizer_name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(f"no tokenizer could be loaded from {self.tokenizer_name_or_path!r}: {error}") from error
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def context(self) -> int | None:
        try:
            config = AutoConfig.from_pretrained(
                self.name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(f"no model could be loaded from {self.name_or_path!r}: {error}") from error
        positions = getattr(config, "max_position_embeddings", None)
        return int(positions) if positions else None

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        if self.dtype == "bfloat16":
            warnings.warn(PURE_BFLOAT16, stacklevel=2)
        try:
            network = AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                dtype=getattr(torch, self.dtype),
                attn_implementation=self.attention,
                trust_remote_code=self.trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"no model could be loaded from {self.name_or_path!r}: {error}") from error
        assert isinstance(network, PreTrainedModel)
        embeddings = network.get_input_embeddings()
        assert isinstance(embeddings, torch.nn.Embedding)
        if len(tokenizer) > embeddings.num_embeddings:
            raise UserError(
                f"the tokenizer {self.tokenizer_name_or_path!r} has {len(tokenizer)} tokens, the model "
                f"{self.name_or_path!r} embeddings for {embeddings.num_embeddings}; "
                "give the tokenizer that belongs to the model"
            )
        return network


def _model_location(name_or_path: str) -> str:
    """Fills in environment variables, finds a run folder's model, and says early where a local path leads nowhere."""
    location = os.path.expanduser(os.path.expandvars(name_or_path))
    if "$" in location:
        raise UserError(f"model {name_or_path!r}: an environment variable in it is not set")
    path = Path(location)
    if (path / "model" / "config.json").is_file():
        return str(path / "model")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model folder {location!r} has no config.json (nor a model/ folder with one); "
                "give a folder that save_pretrained wrote, or a finished run folder"
            )
        return str(path)
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1 or location.startswith("runs/")
    if looks_local:
        raise UserError(f"model {location!r}: no such folder")
    return location


class SmallLlama(LanguageModel):
    """A Llama with random weights and a byte-level BPE tokenizer trained on the data: for runs with no download."""

    def __init__(
        self,
        hidden_size: int = 128,
        layers: int = 4,
        heads: int = 4,
        vocabulary: int = 4096,
        context: int = 512,
    ) -> None:
        """Notes the sizes.

        Args:
            hidden_size: Width of the residual stream; a multiple of `heads`.
            layers: Transformer blocks.
            heads: Attention heads.
            vocabulary: Most tokens that the tokenizer learns, the three special ones included.
            context: Most tokens of a sequence.
        """
        if hidden_size % heads:
            raise UserError(f"hidden_size must be a multiple of heads, got {hidden_size} and {heads}")
        self.hidden_size, self.layers, self.heads = hidden_size, layers, heads
        self.vocabulary, self._context = vocabulary, context

    def context(self) -> int:
        return self._context

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        return train_tokenizer(texts, self.vocabulary, self._context)

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=int(8 * self.hidden_size / 3 / 16 + 0.5) * 16,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self._context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        network = LlamaForCausalLM(config)
        network.generation_config = GenerationConfig.from_model_config(config)
        return network


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that puts ``<s>`` in front of a sequence; the same texts give the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    def as_list() -> Iterator[str]:
        yield from texts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(as_list(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
