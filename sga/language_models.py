"""Where the language model comes from: a Hugging Face name or folder, a small Llama made from scratch, or two models
put together (task vector, Who's Harry Potter).

All are light descriptions; weights are loaded or drawn only when `network` is called.
"""

from __future__ import annotations

import math
import os
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
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
from transformers.modeling_outputs import CausalLMOutput

from sga.errors import UserError

PURE_BFLOAT16 = (
    "weights in pure bfloat16: at lr 1e-5 an Adam-sized step rounds to nothing for every weight of "
    "magnitude 2^-8 or more, so the model hardly changes. Use float32 weights under bf16-mixed precision."
)


class LanguageModel(ABC):
    """A causal language model and its tokenizer, described but not yet loaded."""

    trainable: ClassVar[bool] = True
    """False where it can only be evaluated."""
    trains_all_weights: ClassVar[bool] = True
    """False where the loaded weights are frozen, so that their type loses no updates."""

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
        except Exception as error:  # whatever transformers makes of a damaged or foreign folder
            raise _unreadable("tokenizer", self.tokenizer_name_or_path, error) from error
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def context(self) -> int | None:
        try:
            config = AutoConfig.from_pretrained(
                self.name_or_path, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except Exception as error:
            raise _unreadable("model", self.name_or_path, error) from error
        positions = getattr(config, "max_position_embeddings", None)
        return int(positions) if positions else None

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        if self.dtype == "bfloat16" and self.trains_all_weights:
            warnings.warn(PURE_BFLOAT16, stacklevel=2)
        try:
            made: Any = AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                dtype=getattr(torch, self.dtype),
                attn_implementation=self.attention,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _unreadable("model", self.name_or_path, error) from error
        network, loaded = made
        if loaded["missing_keys"]:  # transformers draws them at random, with a warning
            raise UserError(
                f"the weights in {self.name_or_path!r} lack {len(loaded['missing_keys'])} parameters of its "
                f"config.json, {min(loaded['missing_keys'])} first; copy the model again"
            )
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


def _unreadable(what: str, location: str, error: Exception) -> UserError:
    """What is said of files of a model that cannot be read; code that came with them has not been run."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # whose own advice is to run it
        said = "its weights are a pickle that holds more than numbers, and may run code; take them as safetensors"
    return UserError(f"no {what} could be loaded from {location!r}: {said:.400}")


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


class TaskVector(LanguageModel):
    """The model without the direction in which fine-tuning on the forget data moves it: θ − a·(θ_tuned − θ).

    Source: Ilharco et al., arXiv 2212.04089.
    """

    def __init__(self, name_or_path: str, tuned: str, scale: float = 5.0) -> None:
        """Notes where the models are.

        Args:
            name_or_path: The model that is to forget, as for `Pretrained`.
            tuned: The same after fine-tuning on the forget data: a run folder of FineTuning, say.
            scale: a. 5 is what the paper of MUSE takes.
        """
        if not math.isfinite(scale):
            raise UserError(f"scale must be a finite number, got {scale}")
        self._base, self._tuned, self.scale = Pretrained(name_or_path), Pretrained(tuned), scale
        self.name_or_path, self.tuned = self._base.name_or_path, self._tuned.name_or_path

    def context(self) -> int | None:
        return self._base.context()

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return self._base.tokenizer(texts)

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


class WhosHarryPotter(LanguageModel):
    """A decoder over two models: logits v_b − a·ReLU(v_r − v_b), v_r of the model reinforced on the forget data.

    What the reinforced model says more than the base is taken to be what is to be forgotten. It is evaluated as any
    model and cannot be trained or exported. Source: Eldan and Russinovich, arXiv 2310.02238, whose second half,
    fine-tuning on the predictions of this decoder, is left out.
    """

    trainable = False

    def __init__(self, name_or_path: str, reinforced: str, strength: float = 1.0) -> None:
        """Notes where the models are.

        Args:
            name_or_path: The model that is to forget, as for `Pretrained`.
            reinforced: The same after fine-tuning on the forget data: a run folder of FineTuning, say.
            strength: a, at least 0.
        """
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength must be a finite number of at least 0, got {strength}")
        self._base, self._reinforced, self.strength = Pretrained(name_or_path), Pretrained(reinforced), strength
        self.name_or_path, self.reinforced = self._base.name_or_path, self._reinforced.name_or_path

    def context(self) -> int | None:
        return self._base.context()

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return self._base.tokenizer(texts)

    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        base, reinforced = self._base.network(tokenizer), self._reinforced.network(tokenizer)
        if base.config.vocab_size != reinforced.config.vocab_size:
            raise UserError(
                f"the models {self.name_or_path!r} and {self.reinforced!r} have vocabularies of "
                f"{base.config.vocab_size} and {reinforced.config.vocab_size}: they cannot be decoded together"
            )
        return ContrastedModel(base, reinforced, self.strength)


class ContrastedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # of __init_subclass__
    """The decoder of `WhosHarryPotter` as a model: called like one, and with a key-value cache for both."""

    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, base: PreTrainedModel, reinforced: PreTrainedModel, strength: float) -> None:
        super().__init__(base.config)
        self.base, self.reinforced, self.strength = base, reinforced, strength
        self.generation_config = base.generation_config
        # Both models write to one cache, the second one to layers of its own beyond the first one's.
        for module in reinforced.modules():
            place: Any = getattr(module, "layer_idx", None)
            if place is not None:
                module.layer_idx = place + base.config.num_hidden_layers

    def get_output_embeddings(self) -> None:
        """There is no single head that could be given fewer positions."""

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
                past_key_values=past_key_values,
                use_cache=bool(use_cache) and past_key_values is not None,  # one of its own has no room for two models
                logits_to_keep=logits_to_keep,
            ).logits
            return found

        # The base second: its layers come first in the cache, and tell both how much has been read before.
        reinforced = logits(self.reinforced)
        base = logits(self.base)
        return CausalLMOutput(logits=base - self.strength * (reinforced - base).relu())

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise UserError("WhosHarryPotter is a decoder over two models, which Hugging Face's format has no place for")


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
        sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "vocabulary": vocabulary}
        for name, size in {**sizes, "context": context}.items():
            if size < 1:
                raise UserError(f"{name} must be at least 1, got {size}")
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
