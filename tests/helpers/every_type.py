"""Tiny random models of every type of causal language model that transformers lists."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from helpers.models import SIZES, knows
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.model import model_class
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.types import Element, HiddenSite, Scope

LAYERS = 4
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_SIZES: dict[str, Any] = {
    **SIZES,
    **dict.fromkeys("num_hidden_layers num_layers n_layer n_layers decoder_layers".split(), LAYERS),
    **dict.fromkeys("n_head n_heads attention_heads decoder_attention_heads".split(), 4),
    **dict.fromkeys("d_model n_embd emb_dim lru_width".split(), 32),
    **dict.fromkeys("d_ff decoder_ffn_dim ffn_hidden_dim".split(), 48),
    **dict.fromkeys("num_experts n_routed_experts num_local_experts moe_num_experts".split(), 4),
    **dict.fromkeys("n_group topk_group mamba_n_groups n_groups encoder_layers".split(), 1),
    **dict.fromkeys("q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim".split(), 16),
    **dict.fromkeys("qk_nope_head_dim v_head_dim mamba_d_state ssm_state_size".split(), 8),
    **dict.fromkeys("mamba_chunk_size chunk_size state_size index_head_dim".split(), 8),
    **dict.fromkeys("linear_key_head_dim linear_value_head_dim laurel_rank".split(), 8),
    **dict.fromkeys("hidden_size_per_layer_input kv_channels".split(), 8),
    **dict.fromkeys("mamba_n_heads mamba_num_heads index_n_heads altup_num_inputs".split(), 4),
    **dict.fromkeys("linear_num_value_heads qk_rope_head_dim".split(), 4),
    "linear_num_key_heads": 2,
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    "moe_topk": 2,
    "index_topk": 64,
    "shared_expert_intermediate_size": 48,
    "vocab_size_per_layer_input": 64,
}
_MIXED = ["linear_attention", "full_attention"] * (LAYERS // 2)
_LATENT = {"head_dim": 4, "num_key_value_heads": 4}
_GEMMA_4 = {
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "num_kv_shared_layers": 1,
    "global_head_dim": 16,
}
_INKLING = {
    "unpadded_vocab_size": 64,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
}
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "gemma3n_text": {"layer_types": _GEMMA_4["layer_types"], "num_kv_shared_layers": 2},
    "gemma4_text": _GEMMA_4,
    "gemma4_unified_text": _GEMMA_4,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _MIXED},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "mamba2": {"num_heads": 8},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    **dict.fromkeys(("inkling_text", "inkling2_text", "inkling2_loop_text"), _INKLING),
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "num_buckets": 4},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "chunk_size": 64},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    # With a least time step, transformers' whole pass and its steps after a cache compute different
    # things: the one clamps the steps to it, the other does not.
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "time_step_min": 1e-30},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beside sizes."""


def _sizes(config: PreTrainedConfig) -> dict[str, Any]:
    found = {
        name: size
        for name, size in {**_SIZES, "head_dim": 8}.items()
        if knows(config, name) and not isinstance(getattr(type(config), name, 0), property)
    }
    if "qk_rope_head_dim" in found:
        found |= _LATENT
    for name in getattr(type(config), "sub_configs", None) or {}:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            found[name] = {**_sizes(inner), "model_type": inner.model_type}
    encodes = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"}
    if config.model_type in encodes and hasattr(config, "is_decoder"):
        found["is_decoder"] = True
    return {**found, **OWN.get(config.model_type, {})}


def tiny_config(kind: str) -> PreTrainedConfig:
    made = CONFIG_MAPPING[kind]
    config = made(**_sizes(made()))
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    return config


# ------------------------------------------------------------------ the trial

PROMPTS = [(5, 9, 7, 4, 8, 33, 21), (11,), (6, 9, 7, 40)]
CONTINUATION = (3, 14, 26)
STEPS = 3
CPU = torch.device("cpu")
PLACES: dict[str, tuple[Element, HiddenSite]] = {
    "head": ("head", "mlp"),
    "neuron": ("neuron", "mlp"),
    "mlp": ("hidden", "mlp"),
    "residual": ("hidden", "residual"),
}


def refusal(config: PreTrainedConfig, where: str) -> str:
    """What a model of ours says before weights are loaded; empty where it says nothing."""
    element, hidden_site = PLACES[where]
    given: dict[str, Any] = {"element": element, "top_k": 2, "delta": 3}
    if element == "hidden":
        given["hidden_site"] = hidden_site
    model = object.__new__(model_class("sadi"))
    model._arguments, model.arms = {}, model._read_arms(given)
    try:
        model._get_backend(config)
    except UserError as error:
        return str(error)
    return ""


def gains_of(site: Site) -> Tensor:
    """A few entries of the first and of the last layer."""
    gains = torch.zeros(site.layers, site.entries, site.entry_width)
    gains[0, :: max(2, site.entries // 6)] = 1.5
    gains[-1, 1 :: max(2, site.entries // 5)] = -0.7
    return gains.view(site.layers, site.width)


def steered_logits(
    model: PreTrainedModel, site: Site, text: Sequence[int], at: int, onwards: bool
) -> Tensor:
    """A' = A + gain A in plain hooks, ``[seq, vocab]`` of one text without batches and packing."""
    gains = gains_of(site) if site.modules else torch.zeros(0)

    def changed(layer: int, values: Tensor) -> Tensor:
        if values.dim() == 4 and values.shape[1] == 1 and values.shape[2] == len(text):
            rows = values[:, 0].transpose(0, 1)
        else:
            rows = values.reshape(len(text), -1)
        rows = rows.reshape(len(text), -1).clone()
        # A layer with narrower heads has less of each.
        own = rows.shape[1] // site.entries
        gain = gains[layer].view(site.entries, -1)[:, :own].flatten()
        rows[at : None if onwards else at + 1] *= 1 + gain
        if values.dim() == 4 and values.shape[1] == 1 and values.shape[2] == len(text):
            return rows.view(len(text), values.shape[0], -1).transpose(0, 1)[:, None]
        return rows.view(values.shape)

    with ExitStack() as stack:
        for layer, module in enumerate(site.modules):

            def before(_: Any, given: Any, layer: int = layer) -> Any:
                return (changed(layer, given[0]), *given[1:])

            def after(_: Any, given: Any, found: Any, layer: int = layer) -> Any:
                if isinstance(found, (tuple, list)):
                    parts = changed(layer, found[0]), *found[1:]
                    return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
                return changed(layer, found)

            if site.side == "input":
                handle: Any = module.register_forward_pre_hook(before)
            else:
                handle = module.register_forward_hook(after)
            stack.callback(handle.remove)
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([list(text)])).logits[0]
    return logits


def wrong(model: PreTrainedModel, site: Site) -> str:
    """What of the package's numbers is not that of plain hooks; empty where all are."""
    family = DiagonalEdits(site, [Edit(gains_of(site))], False)
    expected = []
    for prompt in PROMPTS:
        text = [*prompt, *CONTINUATION]
        found = steered_logits(model, site, text, len(prompt) - 1, False).float().log_softmax(-1)
        expected.append(
            sum(float(found[len(prompt) - 1 + i, t]) for i, t in enumerate(CONTINUATION))
        )
    engine = Engine(model, pad=0, rows=None, max_length=64)
    requests = [Continuation(prompt, CONTINUATION, 0) for prompt in PROMPTS]
    scores: dict[int, Any] = {}
    engine.score(requests, family, scores.update)
    grid: dict[int, float] = {}
    engine.score_grid(
        requests,
        [family],
        lambda n, values, _: grid.update(zip(n, values[1].tolist(), strict=True)),
    )
    plain: dict[int, Any] = {}
    engine.score(requests, None, plain.update)
    for index, value in enumerate(expected):
        if not abs(scores[index][0] - value) < 2e-3 * max(1.0, abs(value) / 10):
            return f"scores ({scores[index][0]:.4f}, and {value:.4f} in plain hooks)"
        if not abs(grid[index] - value) < 2e-3 * max(1.0, abs(value) / 10):
            return f"grid ({grid[index]:.4f}, and {value:.4f} in plain hooks)"
    if max(abs(plain[i][0] - value) for i, value in enumerate(expected)) < 1e-3:
        return "nothing is steered"
    return _wrong_text(model, site)


def _wrong_text(model: Any, site: Site) -> str:
    """As ``wrong``, of generation; not where the unsteered model's own is not its forward pass."""
    prompt = list(PROMPTS[0])
    nothing = site._replace(modules=())
    gains = gains_of(site)
    steps: tuple[tuple[Scope, float], ...] = (("prompt", 0.0), ("prompt", 1.0), ("onwards", 1.0))
    for scope, factor in steps:
        family = DiagonalEdits(site, [Edit(gains * factor)], False, scope)
        ids = torch.tensor([prompt])
        with steered_generation(model, family, 0, ids, torch.ones_like(ids)):
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=STEPS, max_new_tokens=STEPS, pad_token_id=0,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        text = made.sequences[0].tolist()
        onwards, of = scope == "onwards", site if factor else nothing
        expected = steered_logits(model, of, text, len(prompt) - 1, onwards)
        gap = (torch.cat(made.logits) - expected[len(prompt) - 1 : -1]).abs().max()
        if not gap < 1e-2:
            return f"texts ({scope}: logits differ by {gap:.1e})" if factor else ""
    return ""
