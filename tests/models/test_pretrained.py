"""Models as folders: attention that they have or lack, and sizes that stand in one of several configurations."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from architectures import small_model
from conftest import TinyNetwork

from sga.errors import UserError
from sga.evaluation.inference import most_rows, most_tokens
from sga.likelihood.forward import _hidden_size
from sga.models.blocks import check_layers, transformer_blocks
from sga.models.pretrained import Pretrained
from sga.models.text_config import text_config


@pytest.mark.parametrize("name", ["gemma2", "gptj", "bloom"])
def test_a_model_without_sdpa_gets_eager_attention(name: str, tiny_network: TinyNetwork, tmp_path: Path) -> None:
    small_model(name, tokens=400).save_pretrained(tmp_path)
    tokenizer = tiny_network.encoder.tokenizer
    with pytest.warns(UserWarning, match="has no sdpa attention: going on with eager"):
        network = Pretrained(str(tmp_path)).network(tokenizer)
    assert network.config._attn_implementation == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Pretrained(str(tmp_path), attention="eager").network(tokenizer)
    with pytest.raises(UserError, match=r"cannot have .* 'sdpa': leave --model.language_model.attention out"):
        Pretrained(str(tmp_path), attention="sdpa").network(tokenizer)


def test_a_model_with_sdpa_gets_it(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    small_model("llama", tokens=400).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = Pretrained(str(tmp_path)).network(tiny_network.encoder.tokenizer)
    assert network.config._attn_implementation == "sdpa"


def test_sizes_of_a_multimodal_model_are_its_text_s(tmp_path: Path) -> None:
    """Gemma 3's own configuration has no hidden size, vocabulary, layers or positions; its image part has 3 layers."""
    model = small_model("gemma3")
    model.save_pretrained(tmp_path)
    assert not hasattr(model.config, "num_hidden_layers")
    assert text_config(model).num_hidden_layers == len(transformer_blocks(model)) == 2
    assert Pretrained(str(tmp_path)).context() == 128
    assert _hidden_size(model) == 32
    assert most_tokens(model, torch.device("cpu")) > 0 and most_rows(model, torch.device("cpu"), 100) > 0
    check_layers(model, trained_layers=(1,))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model.layers.1." in name for name in trained)
    assert text_config(torch.nn.Linear(1, 1)) is None
