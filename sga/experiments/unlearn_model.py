"""The model that `sga unlearn` is given: names, folders and objects, as arguments of `sga.Pretrained`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.errors import UserError
from sga.experiments.configuration import Values, digest
from sga.files import write_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def given_model(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Arguments of `sga.Pretrained` for a model; objects are written into a folder that is named after their content.

    Raises:
        UserError: a model object has no tokenizer, or one of the two is of another kind.
    """
    if isinstance(model, (str, Path)):
        found = {"name_or_path": str(model)}
        if isinstance(tokenizer, (str, Path)):
            return found if str(tokenizer) == str(model) else {**found, "tokenizer_name_or_path": str(tokenizer)}
        if tokenizer is not None:
            found["tokenizer_name_or_path"] = str(_saved(folder, "tokenizer", tokenizer, _tokenizer_key(tokenizer)))
        return found
    if not hasattr(model, "save_pretrained") or not hasattr(model, "state_dict"):
        raise UserError(
            f"model must be a Hugging Face model, a folder or a name on the Hub, got {type(model).__name__}"
        )
    if tokenizer is None:
        raise UserError("a model object needs its tokenizer: unlearn(model, tokenizer, …)")
    from sga.evaluation.cache import model_key

    path = str(_saved(folder, "model", model, model_key(model, {})))
    if isinstance(tokenizer, (str, Path)):
        return {"name_or_path": path, "tokenizer_name_or_path": str(tokenizer)}
    place = _saved(folder, "tokenizer", tokenizer, _tokenizer_key(tokenizer))
    return {"name_or_path": path, "tokenizer_name_or_path": str(place)}


def with_settings(start: Mapping[str, Any], own: Values) -> dict[str, Any]:
    """Arguments of `sga.Pretrained` with those that the user's settings have, which are taken out of the settings."""
    from sga.models.pretrained import Pretrained

    prefix = "model.language_model."
    found = {**start, **{name: own.pop(prefix + name) for name in _OF_MODEL if prefix + name in own}}
    file = found.pop("gguf_file", None)
    if file is not None:
        found["name_or_path"] = Pretrained(found["name_or_path"], gguf_file=file).location
    return found


def base_template_warning(
    tokenizer: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, template: Any
) -> str | None:
    """Sentence on a base model that is asked in another form than the model; None if both are asked alike.

    Args:
        tokenizer: Tokenizer of the model.
        base: Tokenizer of the base model.
        template: The user's setting ``data.template``; None without one.
    """
    from sga.batching.templates import AutoTemplate

    if template is not None and not re.search("AutoTemplate|ChatTemplate", str(template)):
        return None  # a text of its own, the same for both
    mine, theirs = (AutoTemplate().rendering(one) for one in (tokenizer, base))
    if mine == theirs:
        return None
    if theirs is None:
        said = "has no chat template: it is asked in the plain template, the model in its chat template"
    elif mine is None:
        said = "has a chat template, which the model has not: each is asked in a form of its own"
    else:
        said = "'s chat template is not the model's: each is asked in its own"
    return (
        f"the base model{' ' * said.startswith('has')}{said}, so that the membership AUC that is the goal is of other "
        "prompts than the model's; ask both alike (--set data.template=PlainTemplate), or give the base model's "
        "tokenizer the chat template of the model"
    )


_OF_MODEL = (
    "name_or_path",
    "revision",
    "tokenizer_name_or_path",
    "dtype",
    "attention",
    "trust_remote_code",
    "gguf_file",
)
"""Arguments of `sga.Pretrained`, which the starting model's evaluation needs as much as the training."""


def _tokenizer_key(tokenizer: Any) -> str:
    if not hasattr(tokenizer, "save_pretrained") or not hasattr(tokenizer, "get_vocab"):
        raise UserError(f"tokenizer must be one of Hugging Face, or where one is, got {type(tokenizer).__name__}")
    return digest([tokenizer.get_vocab(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map)])


def _saved(folder: Path, name: str, given: Any, key: str) -> Path:
    """Path of a saved object, which is written atomically."""
    place = folder / f"given-{name}-{key[:8]}"
    if not place.exists():
        write_folder(place, given.save_pretrained)
    return place
