"""Language models of the Hugging Face Hub or of a local folder, and the interface of all sources of models.

Sources are light descriptions; weights are loaded or drawn only when `network` is called.
"""

from __future__ import annotations

import os
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sga.errors import UserError
from sga.models.text_config import text_config

PURE_BFLOAT16 = (
    "weights in pure bfloat16: at lr 1e-5 an Adam-sized step rounds to nothing for every weight of "
    "magnitude 2^-8 or more, so the model hardly changes. Use float32 weights under bf16-mixed precision."
)


class LanguageModel(ABC):
    """A causal language model and its tokenizer, described but not yet loaded."""

    trainable: ClassVar[bool] = True
    """False for a model that can only be evaluated."""
    trains_all_weights: ClassVar[bool] = True
    """False if the loaded weights are frozen, so that a low-precision type loses no updates."""
    trains_tokenizer: ClassVar[bool] = False
    """True if the tokenizer is trained on the data, so that it contains words of the forget data."""

    @property
    def location(self) -> str:
        """Place of the model, by which it can be given again; the class's name where it has none."""
        return str(getattr(self, "name_or_path", type(self).__name__))

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer; a model without one trains it on `texts`."""

    @abstractmethod
    def network(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Loads or draws the model's weights, for use with `tokenizer`."""

    @abstractmethod
    def context(self) -> int | None:
        """Length of the context in tokens, None if the model does not say; known without loading weights."""


class Pretrained(LanguageModel):
    """Any Hugging Face causal language model."""

    def __init__(
        self,
        name_or_path: str,
        revision: str = "main",
        tokenizer_name_or_path: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None,
        trust_remote_code: bool = False,
        gguf_file: str | None = None,
    ) -> None:
        """Stores the location of the model; environment variables in paths (``$SGA_MODELS/…``) are expanded.

        Args:
            name_or_path: Name on the Hub, a local folder in Hugging Face format, or a run folder of this program, whose
                ``model/`` is taken. With ``/FILE.gguf`` at its end, the same as `gguf_file` FILE.gguf in that place.
            revision: Branch, tag or commit on the Hub.
            tokenizer_name_or_path: Location of the tokenizer; null if it is beside the model.
            dtype: Type of the weights. Keep float32 and train under bf16 autocast (``--trainer.precision bf16-mixed``):
                with pure bfloat16 weights small updates are rounded away.
            attention: Implementation of attention; null for sdpa, or eager for a model without sdpa.
            trust_remote_code: True to run Python code that comes with the model. Only for sources that you trust.
            gguf_file: Name of a GGUF file in the model's folder or repository, such as
                ``SmolLM2-135M-Instruct.Q4_1.gguf``, to read model and tokenizer from; null without one. Its weights are
                converted to ordinary ones of `dtype`, and exported as such. Needs the package gguf
                (``pip install 'sga-unlearning[gguf]'``).
        """
        if gguf_file is None and name_or_path.endswith(".gguf"):
            place, _, gguf_file = name_or_path.rpartition("/")
            name_or_path = place or "."
        if gguf_file is not None and find_spec("gguf") is None:
            raise UserError("gguf_file needs the package gguf: pip install 'sga-unlearning[gguf]'")
        self.name_or_path = _model_location(name_or_path, gguf_file)
        self.revision = revision
        self.tokenizer_name_or_path = (
            _model_location(tokenizer_name_or_path, of_tokenizer=True) if tokenizer_name_or_path else self.name_or_path
        )
        self.dtype = dtype
        self.attention = attention
        self.trust_remote_code = trust_remote_code
        self.gguf_file = gguf_file

    @property
    def location(self) -> str:
        return self.name_or_path if self.gguf_file is None else f"{self.name_or_path}/{self.gguf_file}"

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.tokenizer_name_or_path,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                **(self.gguf_arguments if self.tokenizer_name_or_path == self.name_or_path else {}),
            )
        except Exception as error:  # transformers has no common error for a damaged or foreign folder
            raise _unreadable("tokenizer", self.tokenizer_name_or_path, error) from error
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def context(self) -> int | None:
        try:
            config = AutoConfig.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                **self.gguf_arguments,
            )
        except Exception as error:
            raise _unreadable("model", self.name_or_path, error) from error
        positions = getattr(text_config(config), "max_position_embeddings", None)
        return int(positions) if positions else None

    @property
    def gguf_arguments(self) -> dict[str, str]:
        """Arguments of transformers' loaders that name the GGUF file; empty without one."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

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
                **self.gguf_arguments,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.attention is not None and _is_about_attention(error):
                raise UserError(
                    f"the model {self.name_or_path!r} cannot have its attention computed by {self.attention!r}: leave "
                    "--model.language_model.attention out (null takes what the model has), or set it to eager"
                ) from error
            raise _unreadable("model", self.name_or_path, error) from error
        network, loaded = made
        if self.attention is None and getattr(network.config, "_attn_implementation", None) == "eager":
            warnings.warn(
                f"{type(network).__name__} has no sdpa attention: going on with eager attention, which gives the same "
                "result with more memory (--model.language_model.attention=eager says so beforehand)",
                stacklevel=2,
            )
        if loaded["missing_keys"]:  # transformers draws them at random, with a warning
            raise UserError(
                f"the weights in {self.name_or_path!r} lack {len(loaded['missing_keys'])} parameters of its "
                f"config.json, {min(loaded['missing_keys'])} first; copy the model again"
            )
        assert isinstance(network, PreTrainedModel)
        if self.gguf_file is not None:
            # The weights are ordinary ones by now, but transformers refuses to save a model marked as quantised.
            if hasattr(network.config, "quantization_config"):
                del network.config.quantization_config
            network.hf_quantizer = None  # type: ignore[assignment]
        embeddings = network.get_input_embeddings()
        assert isinstance(embeddings, torch.nn.Embedding)
        if len(tokenizer) > embeddings.num_embeddings:
            raise UserError(
                f"the tokenizer {self.tokenizer_name_or_path!r} has {len(tokenizer)} tokens, the model "
                f"{self.name_or_path!r} embeddings for {embeddings.num_embeddings}; "
                "give the tokenizer that belongs to the model"
            )
        return network


def _is_about_attention(error: Exception) -> bool:
    """True if transformers refuses an implementation of attention, or lacks the package for it."""
    return isinstance(error, ValueError | ImportError) and any(
        word in str(error) for word in ("scaled_dot_product_attention", "attn_implementation", "Flash", "flash_attn")
    )


def _unreadable(what: str, location: str, error: Exception) -> UserError:
    """Error for files of a model that cannot be read; code that came with them has not been run."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # its own message advises to run the code
        said = "its weights are a pickle that holds more than numbers, and may run code; take them as safetensors"
    return UserError(f"no {what} could be loaded from {location!r}: {said:.400}")


def _model_location(name_or_path: str, gguf_file: str | None = None, of_tokenizer: bool = False) -> str:
    """Expands environment variables, finds a run folder's model, and refuses a local path that does not exist."""
    location = os.path.expanduser(os.path.expandvars(name_or_path))
    if "$" in location:
        raise UserError(f"model {name_or_path!r}: an environment variable in it is not set")
    path = Path(location)
    if gguf_file is None and (path / "model" / "config.json").is_file():
        return str(path / "model")
    if path.is_dir():
        if gguf_file is not None:
            if not (path / gguf_file).is_file():
                raise UserError(
                    f"model folder {location!r} has no file {gguf_file!r} (--model.language_model.gguf_file)"
                )
            return str(path)
        marks = ("config.json", *(("tokenizer_config.json",) if of_tokenizer else ()))
        if not any((path / mark).is_file() for mark in marks):
            raise UserError(
                f"model folder {location!r} has no config.json (nor a model/ folder with one); "
                "give a folder that save_pretrained wrote, or a finished run folder"
            )
        return str(path)
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1 or location.startswith("runs/")
    if looks_local:
        raise UserError(f"model {location!r}: no such folder")
    return location
