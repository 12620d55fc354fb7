"""Tiny models of random weights, large enough that layers matter: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant :{% endif %}"
)


def tiny_llama(vocab_size: int, **changes: Any) -> LlamaForCausalLM:
    """Random weights large enough that layers matter; 4 query and 2 key/value heads."""
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_inner": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "moe_intermediate_size": 48,
    "num_local_experts": 2,
    "num_experts": 2,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    "num_experts_per_tok": 2,
}
MIXTURES = ("mixtral", "qwen3_moe")


def knows(config: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration has a setting, or its layers have each their own."""
    try:
        return hasattr(config, name)
    except Exception:  # transformers has a kind of its own for the second
        return True


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of any type: 2 layers of 32, 4 heads, random weights large enough to matter."""
    known = AutoConfig.for_model(kind)
    sizes = {name: size for name, size in SIZES.items() if knows(known, name)}
    if kind != "falcon" and knows(known, "head_dim"):
        sizes["head_dim"] = 8
    return random_model(AutoConfig.for_model(kind, **{**sizes, **changes}))


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with weights large enough to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model
