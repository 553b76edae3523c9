"""Small random models of many architectures, made from configurations alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

VOCABULARY = 61

SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SIZES = {
    **SPECIAL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_num_experts": 4,
    "moe_k": 2,
}
GROUPED_EXPERTS = {**EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
STATES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
GPT = {**SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}

Settings = dict[str, Any]
ARCHITECTURES: dict[str, tuple[str, Settings]] = {}
"""By name: Hugging Face's model type and the settings of a small model."""


def _add(names: str, base: Settings = SIZES, kind: str = "", **settings: Any) -> None:
    for name in names.split() if not kind else [names]:
        ARCHITECTURES[name] = kind or name, {**base, **settings}


_add("llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 stablelm starcoder2 olmo olmo2 olmo3 granite cohere")
_add("cohere2 glm glm4 helium nemotron persimmon smollm3 seed_oss arcee apertus exaone4 ernie4_5 gpt_neox biogpt doge")
_add("gpt_neox_japanese hunyuan_v1_dense ministral diffllama bitnet nanochat jais2 vaultgemma modernbert-decoder")
_add("gemma2, short window", kind="gemma2", sliding_window=8)
_add("mistral, short window", kind="mistral", sliding_window=8)
LONG = {"rope_type": "longrope", "type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
_add("phi3, LongRoPE", kind="phi3", original_max_position_embeddings=16, rope_scaling=LONG)
_add("bert, decoder", kind="bert", is_decoder=True)
_add("roberta, decoder", kind="roberta", is_decoder=True)
_add("bert roberta")
_add("electra", embedding_size=32)
_add("xlnet", SPECIAL, d_model=32, n_layer=2, n_head=4, d_inner=48)
_add("opt", ffn_dim=48, word_embed_proj_dim=32)
_add("xglm", SPECIAL, d_model=32, attention_heads=4, num_layers=2, ffn_dim=48)
_add("gpt2 gpt_bigcode openai-gpt", GPT)
_add("gptj codegen", GPT, rotary_dim=4)
_add("ctrl", GPT, dff=48)
_add("gpt_neo", SIZES, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8)
_add("bloom", SPECIAL, hidden_size=32, n_layer=2, n_head=4)
_add("mpt", SPECIAL, d_model=32, n_layers=2, n_heads=4, max_seq_len=128)
FALCON = {**SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_add("falcon", FALCON)
_add("falcon, ALiBi", FALCON, kind="falcon", alibi=True)
_add("mamba falcon_mamba", state_size=8)
_add(
    "mamba2",
    SPECIAL,
    hidden_size=32,
    num_hidden_layers=2,
    num_heads=4,
    head_dim=16,
    state_size=8,
    n_groups=1,
    chunk_size=8,
)
_add("rwkv", context_length=128, attention_hidden_size=32)
_add("xlstm", num_blocks=2, num_heads=4, chunk_size=8, embedding_dim=32)
_add("reformer", {**SPECIAL, "hidden_size": 32}, attention_head_size=8, num_attention_heads=4,
     attn_layers=["local"] * 2, axial_pos_embds=False, is_decoder=True, local_attn_chunk_length=8,
     feed_forward_size=48)  # fmt: skip
_add("mixtral qwen2_moe qwen3_moe olmoe granitemoe granitemoeshared phimoe jetmoe flex_olmo ernie4_5_moe", **EXPERTS)
_add("hunyuan_v1_moe", **EXPERTS, moe_topk=2)
_add("gpt_oss", **EXPERTS, layer_types=["sliding_attention", "full_attention"], sliding_window=8)
_add("glm4_moe dots1", **GROUPED_EXPERTS)
_add("deepseek_v2", {**SIZES, **GROUPED_EXPERTS, **LATENT}, topk_method="greedy")
_add("deepseek_v3", {**SIZES, **GROUPED_EXPERTS, **LATENT}, head_dim=4)
_add("dbrx", SPECIAL, d_model=32, n_heads=4, n_layers=2, max_seq_len=128,
     attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
     ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32})  # fmt: skip
_add("minimax", **EXPERTS, layer_types=["linear_attention", "full_attention"], block_size=8)
_add("llama4_text", **EXPERTS, intermediate_size_mlp=48, attention_chunk_size=8,
     layer_types=["chunked_attention", "full_attention"], interleave_moe_layer_step=2)  # fmt: skip
_add("qwen3_next", **EXPERTS, **LINEAR)
_add("qwen3_5_text", **LINEAR)
_add("granitemoehybrid", **EXPERTS, **STATES, layer_types=["mamba", "attention"])
_add("falcon_h1", **STATES, mamba_d_ssm=64)
_add("bamba", **STATES, attn_layer_indices=[1])
_add("jamba", **EXPERTS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
     mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False)  # fmt: skip
_add("nemotron_h", **EXPERTS, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1, chunk_size=8,
     layers_block_type=["mamba", "attention"])  # fmt: skip
_add("zamba2", **STATES, mamba_headdim=16, mamba_ngroups=1, chunk_size=8, layers_block_type=["mamba", "hybrid"],
     num_mem_blocks=1, use_mem_rope=True, attention_head_dim=16, n_mamba_heads=4)  # fmt: skip
_add("lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8, conv_L_cache=3)
_add("lfm2_moe", **EXPERTS, layer_types=["conv", "full_attention"], conv_L_cache=3, num_dense_layers=1)
_add("recurrent_gemma", {**SIZES, "num_hidden_layers": 3}, lru_width=32, attention_window_size=64,
     block_types=["recurrent", "recurrent", "attention"])  # fmt: skip
_add("gemma3", SPECIAL,
     text_config={**SIZES, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
     vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
                    "image_size": 28, "patch_size": 14},
     image_token_index=60, boi_token_index=58, eoi_token_index=59, mm_tokens_per_image=4)  # fmt: skip
del ARCHITECTURES["gemma3"][1]["vocab_size"]  # it is the text's

ENCODERS = {"bert", "roberta", "electra", "xlnet"}
"""Not causal: refused."""


def small_model(name: str, dtype: torch.dtype = torch.float32, tokens: int | None = None) -> PreTrainedModel:
    """A random model with weights so large that each token changes what is said of those after it, in eval mode."""
    kind, settings = ARCHITECTURES[name]
    if tokens is not None:
        settings = {**settings, "vocab_size": tokens}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
        for module in model.modules():
            for own, parameter in module.named_parameters(recurse=False):
                # What says how fast a state decays stays as it is, and what looks at neighbours.
                if parameter.dim() > 1 and "A_log" not in own and "Conv1d" not in type(module).__name__:
                    embeds = isinstance(module, torch.nn.Embedding)
                    parameter.data.normal_(0, 1 if embeds else 1.2 / parameter.shape[-1] ** 0.5)
    model.generation_config = GenerationConfig()
    return model.to(dtype).eval()
