"""A tiny model of every architecture, and the equations in plain hooks on modules named by hand.

:func:`oracle` shares nothing with the package: it knows no table of architectures, no batches and
no packing, and takes one text at a time. ``bench/architectures.py`` makes a table of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from helpers.models import tiny
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import (
    Architecture,
    Site,
    find_site,
)
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits
from sadi_lmeval.methods.sadi import sadi_edit
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.passes.sequences import Tree, pack
from sadi_lmeval.types import Element, HiddenSite, Scope

LAYERS, HEADS, HIDDEN = 2, 4, 32


class Named(NamedTuple):
    """Dotted names of modules: the list of blocks, and what is inside of one.

    Attributes:
        down: the MLP's last projection, whose input holds the neurons.
        neurons: None where there are several experts.
    """

    blocks: str
    heads: str
    mlp: str
    neurons: str | None
    down: str


class Case(NamedTuple):
    """A kind of model.

    Attributes:
        changes: of its configuration.
        head_dim: activations a head, or of each layer a head; 12 where 32 hidden units do not make
            4 heads.
        neurons: a layer's.
        registered: what is said by hand about a type that is neither listed nor found.
    """

    kind: str
    named: Named
    changes: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    head_dim: int | tuple[int, ...] = 8
    neurons: int = 48
    registered: Architecture | None = None

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Of each layer."""
        return self.head_dim if isinstance(self.head_dim, tuple) else (self.head_dim,) * LAYERS


LLAMA = Named("model.layers", "self_attn.o_proj", "mlp", "mlp.act_fn", "mlp.down_proj")
MIXTURE = LLAMA._replace(neurons=None, down="")
FALCON = Named("transformer.h", "self_attention.dense", "mlp", "mlp.act", "mlp.dense_4h_to_h")
BLOOM = FALCON._replace(mlp="mlp.dense_4h_to_h", neurons="mlp.gelu_impl")
RENAMED = LLAMA._replace(mlp="perceptron", neurons="perceptron.act_fn", down="perceptron.down_proj")
GPT2 = Named("transformer.h", "attn.c_proj", "mlp", "mlp.act", "mlp.c_proj")
OPT = Named("model.decoder.layers", "self_attn.out_proj", "fc2", "activation_fn", "fc2")
WIDE = {"head_dim": 12}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 40}

CASES = {
    "Llama": Case("llama", LLAMA, WIDE, 12),
    "Llama, one key a layer": Case("llama", LLAMA, {"num_key_value_heads": 1}),
    "Llama, as many keys as queries": Case("llama", LLAMA, {"num_key_value_heads": 4}),
    "BLOOM": Case("bloom", BLOOM, neurons=128),
    "Mistral": Case("mistral", LLAMA, {**WIDE, "sliding_window": 40}, 12),
    "Falcon, multi-query": Case("falcon", FALCON, {"multi_query": True}),
    "Falcon, serial": Case("falcon", FALCON, {"multi_query": False, "parallel_attn": False}),
    "Falcon, new decoder": Case(
        "falcon", FALCON, {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "Falcon, ALiBi": Case("falcon", FALCON, {"alibi": True}),
    "Qwen2": Case("qwen2", LLAMA),
    "Qwen3": Case("qwen3", LLAMA, WIDE, 12),
    "Gemma 2": Case("gemma2", LLAMA, {**WIDE, **WINDOW, "attn_implementation": "eager"}, 12),
    "Gemma 3, text": Case("gemma3_text", LLAMA, {**WIDE, **WINDOW}, 12),
    "Gemma 4, text": Case(
        "gemma4_text",
        LLAMA,
        {**WIDE, **WINDOW, "global_head_dim": 20, "attention_k_eq_v": True,
         "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": 60},
        (12, 20),
    ),
    "Phi": Case("phi", Named("model.layers", "self_attn.dense", "mlp", "mlp.activation_fn",
                             "mlp.fc2")),
    "Phi-3": Case("phi3", LLAMA._replace(neurons="mlp.activation_fn"), WIDE, 12),
    "GPT-2": Case("gpt2", GPT2),
    "GPT-NeoX": Case("gpt_neox", Named("gpt_neox.layers", "attention.dense", "mlp", "mlp.act",
                                       "mlp.dense_4h_to_h")),
    "GPT-J": Case("gptj", GPT2._replace(heads="attn.out_proj", down="mlp.fc_out")),
    "OPT": Case("opt", OPT),
    "MPT": Case("mpt", Named("transformer.blocks", "attn.out_proj", "ffn.down_proj", "ffn.act",
                             "ffn.down_proj"), neurons=128),
    "StableLM": Case("stablelm", LLAMA),
    "OLMo 2": Case("olmo2", LLAMA, WIDE, 12),
    "Cohere": Case("cohere", LLAMA, WIDE, 12),
    "Granite": Case("granite", LLAMA, {**WIDE, "residual_multiplier": 0.7}, 12),
    "SmolLM3": Case("smollm3", LLAMA, {"no_rope_layers": [1, 0]}),
    "Mixtral": Case("mixtral", MIXTURE, WIDE, 12),
    "Qwen3-MoE": Case("qwen3_moe", MIXTURE, WIDE, 12),
    "Falcon-H1": Case(
        "falcon_h1",
        LLAMA._replace(mlp="feed_forward", neurons="feed_forward.act_fn",
                       down="feed_forward.down_proj"),
        {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_chunk_size": 8},
    ),
    "an unlisted type like Llama": Case("llama_like", LLAMA, WIDE, 12),
    "XGLM": Case(
        "xglm",
        OPT._replace(blocks="model.layers"),
        {"num_layers": LAYERS, "attention_heads": HEADS, "d_model": HIDDEN},
    ),
    "other names, registered by hand": Case(
        "renamed",
        RENAMED,
        registered=Architecture(*RENAMED[:4]),
    ),
}  # fmt: skip

_MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba": ("mamba", {}),
    "Jamba": (
        "jamba",
        {
            "num_experts": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Bamba": ("bamba", {"attn_layer_indices": [1], "mamba_expand": 2, **_MAMBA_2}),
}
"""Without attention, or with attention in some layers only: name, type and configuration."""
BOTH = (0, 1)
MIXED_PLACES: dict[str, dict[str, tuple[int, ...]]] = {
    "Mamba": {"residual": BOTH},
    "Jamba": {"head": (1,), "mlp": BOTH, "residual": BOTH},
    "Bamba": {"head": (1,), "neuron": BOTH, "mlp": BOTH, "residual": BOTH},
}
"""The layers that have an element."""


class LlamaLikeConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "llama_like"


class LlamaLike(LlamaForCausalLM):  # type: ignore[misc]
    config_class = LlamaLikeConfig


class RenamedConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "renamed"


class Renamed(LlamaForCausalLM):  # type: ignore[misc]
    """Whose MLPs have a name of their own."""

    config_class = RenamedConfig

    def __init__(self, config: RenamedConfig) -> None:
        super().__init__(config)
        for block in self.model.layers:
            mlp = block.mlp
            del block.mlp
            block.perceptron = block.__dict__["mlp"] = mlp


AutoConfig.register("renamed", RenamedConfig)
AutoModelForCausalLM.register(RenamedConfig, Renamed)
AutoConfig.register("llama_like", LlamaLikeConfig)
AutoModelForCausalLM.register(LlamaLikeConfig, LlamaLike)


@functools.cache
def made(name: str) -> PreTrainedModel:
    """2 layers of 32, 4 heads, a vocabulary of 60."""
    kind, changes = (CASES[name].kind, CASES[name].changes) if name in CASES else MIXED[name]
    return tiny(kind, vocab_size=60, **changes)


Change = Callable[[int, Tensor], Tensor]
"""Takes a layer and what a module takes or gives, ``[seq, width]``; returns what is to be there."""


@contextmanager
def changing(modules: Sequence[nn.Module], side: str, change: Change) -> Iterator[None]:
    """Put plain hooks on modules, for one text at a time."""

    def changed(layer: int, values: Tensor) -> Tensor:
        return change(layer, values.reshape(-1, values.shape[-1])).view_as(values)

    handles = []
    for layer, module in enumerate(modules):

        def before(_: nn.Module, given: Any, layer: int = layer) -> Any:
            return (changed(layer, given[0]), *given[1:])

        def after(_: nn.Module, given: Any, found: Any, layer: int = layer) -> Any:
            if isinstance(found, tuple):
                return (changed(layer, found[0]), *found[1:])
            return changed(layer, found)

        if side == "input":
            handles.append(module.register_forward_pre_hook(before))
        else:
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_of(model: nn.Module, named: Named, where: str) -> tuple[list[nn.Module], str]:
    """The modules of a site, one a layer, and the side of it that counts.

    Args:
        where: ``head``, ``neuron``, ``mlp``, ``residual``, or ``down``: the neurons as they go
            into the MLP's last projection.
    """
    inner = {
        "head": named.heads,
        "neuron": named.neurons,
        "mlp": named.mlp,
        "residual": "",
        "down": named.down,
    }[where]
    paths = [f"{named.blocks}.{layer}.{inner}".rstrip(".") for layer in range(LAYERS)]
    side = "input" if where in ("head", "down") else "output"
    return [model.get_submodule(path) for path in paths], side


def plain_logits(model: nn.Module, text: Sequence[int]) -> Tensor:
    """``[seq, vocab]`` of one text."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(text)])).logits[0]
    return logits


def last_activations(
    model: nn.Module, modules: Sequence[nn.Module], side: str, text: Sequence[int]
) -> Tensor:
    """At the last token of one text, ``[layers, width]``; a narrower layer's row ends in zeros."""
    seen: list[Tensor] = []

    def keep(layer: int, values: Tensor) -> Tensor:
        seen.append(values[-1].clone())
        return values

    with changing(modules, side, keep):
        plain_logits(model, text)
    return pad_sequence(seen, batch_first=True)


def oracle(
    model: nn.Module,
    named: Named,
    where: str,
    text: Sequence[int],
    at: int,
    columns: Sequence[tuple[int, int]],
    delta: float,
    clean: bool = False,
    onwards: bool = False,
) -> Tensor:
    """A' = A + delta (A ⊙ M) at a token, in every layer; logits ``[seq, vocab]``.

    Args:
        at: the edited token.
        columns: where M is 1: (layer, column) of the site's activations.
        clean: take A from an unsteered pass, and write the site back as a whole.
        onwards: edit every later token too.
    """
    modules, side = modules_of(model, named, where)
    unsteered: list[Tensor] = []

    def keep(layer: int, values: Tensor) -> Tensor:
        unsteered.append(values.clone())
        return values

    def edit(layer: int, values: Tensor) -> Tensor:
        values = values.clone()
        for position in range(at, len(values) if onwards else at + 1):
            a = (unsteered[layer] if clean else values)[position].clone()
            for edited_layer, column in columns:
                if edited_layer == layer:
                    a[column] = a[column] + delta * a[column]
            values[position] = a
        return values

    if clean:
        with changing(modules, side, keep):
            plain_logits(model, text)
    with changing(modules, side, edit):
        return plain_logits(model, text)


def score_of(logits: Tensor, prompt: Sequence[int], continuation: Sequence[int]) -> float:
    """Summed log-probability of a continuation, from logits ``[seq, vocab]`` of the text."""
    total = 0.0
    for i, token in enumerate(continuation):
        total += float(logits[len(prompt) - 1 + i].float().log_softmax(-1)[token])
    return total


SITES: dict[str, tuple[Element, HiddenSite]] = {
    "head": ("head", "mlp"),
    "neuron": ("neuron", "mlp"),
    "mlp": ("hidden", "mlp"),
    "residual": ("hidden", "residual"),
}
CHOSEN = {
    "head": [[(0, 1), (1, 0), (1, 3)], [(0, 2), (1, 2)]],
    "neuron": [
        [(0, n) for n in range(0, 48, 5)] + [(1, n) for n in range(3, 48, 7)],
        [(0, 30), (1, 11)],
    ],
    "mlp": [[(0, 3), (0, 17), (1, 0), (1, 31)], [(0, 8), (1, 9)]],
    "residual": [[(0, 3), (0, 17), (1, 0), (1, 31)], [(0, 8), (1, 9)]],
}
"""The (layer, entry) that each of two edits scales."""
DELTAS = [3.0, -1.5]
PROMPTS = [(5, 9, 7, 4, 8, 33, 21), (11,), (6, 9, 7, 40)]
CONTINUATIONS = [(3, 14), (15, 9), (26, 5)]
ROOMY, NARROW = Bounds(None, 200, 1000), Bounds(1, 200, 1000)
CPU = torch.device("cpu")


def columns_of(where: str, edit: int, head_dim: int | Sequence[int]) -> list[tuple[int, int]]:
    """(layer, column) of what an edit scales, a head taken apart."""
    if where != "head":
        return CHOSEN[where][edit]
    dims = [head_dim] * LAYERS if isinstance(head_dim, int) else head_dim
    return [
        (layer, head * dims[layer] + i)
        for layer, head in CHOSEN[where][edit]
        for i in range(dims[layer])
    ]


def site_of(model: nn.Module, where: str) -> Site:
    return find_site(model, *SITES[where])


def edits_of(
    model: nn.Module,
    where: str,
    clean: bool = False,
    scope: Scope = "prompt",
    deltas: Sequence[float] = DELTAS,
) -> Edits:
    """The two edits, made as SADI makes them out of masks."""
    site = site_of(model, where)
    made_ = []
    for chosen, delta in zip(CHOSEN[where], deltas, strict=True):
        mask = torch.zeros(site.layers, site.entries, dtype=torch.bool)
        for place in chosen:
            if place[0] < site.layers:  # heads are in some layers only
                mask[place] = True
        nothing = torch.zeros(site.layers, site.entries, site.entry_width)
        made_.append(sadi_edit(mask, nothing, delta, "dynamic"))
    return DiagonalEdits(site, made_, clean, scope)


REQUESTS = [
    Continuation(prompt, tokens, edit)
    for prompt, tokens in zip(PROMPTS, CONTINUATIONS, strict=True)
    for edit in (0, 1, UNSTEERED)
]


def scores(
    model: nn.Module,
    edits: Edits | None,
    requests: Sequence[Continuation] = REQUESTS,
    bounds: Bounds = ROOMY,
    branching: bool = False,
) -> Tensor:
    """Log-likelihoods ``[requests]``, in float32 whatever the model's type."""
    found = log_likelihoods(
        Forward(model), requests, edits, 0, branching, bounds, softmax_dtype=torch.float32
    )
    return torch.tensor([score for score, _ in found])


def logits_at(model: nn.Module, edits: Edits | None, text: Sequence[int], edit: int) -> Tensor:
    """Logits of the token after a prompt whose last token is edited, ``[vocab]``."""
    forward = Forward(model)
    tree = Tree()
    tree.add(list(text))
    last = Points.of([(0, len(text) - 1)], 1, CPU)
    steered = None if edits is None else Steered(edits, last, torch.tensor([edit]))
    return forward.logits(pack([tree], 0, forward.dtype, CPU), last, steered)[0]


def read_at_the_end(model: nn.Module, site: Site, text: Sequence[int]) -> Tensor:
    """What collectors get of a text, ``[layers, width]``."""
    forward, tree = Forward(model), Tree()
    tree.add(list(text))
    last = Points.of([(0, len(text) - 1)], 1, CPU)
    [found] = forward.activations(pack([tree], 0, forward.dtype, CPU), last, [site])
    return found[0]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


STEPS = 3


def generated(
    model: Any,
    edits: Edits | None,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    **options: Any,
) -> tuple[list[list[int]], Tensor]:
    """Under the first edit: tokens ``[rows][steps]``, and logits ``[rows, steps, vocab]``."""
    ids, mask = left_padded(prompts)
    settings = {"do_sample": False, "min_new_tokens": STEPS, "max_new_tokens": STEPS, **options}

    def run() -> Any:
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )

    if edits is None:
        found = run()
    else:
        with steered_generation(model, edits, 0, ids, mask):
            found = run()
    return found.sequences[:, ids.shape[1] :].tolist(), torch.stack(found.logits, dim=1)


def assert_close(found: Tensor, expected: Tensor, where: object = "") -> None:
    torch.testing.assert_close(
        found, expected, atol=1e-4, rtol=1e-4, msg=lambda said: f"{where}: {said}"
    )


def places(name: str) -> list[str]:
    """The sites that a kind of model has: a mixture of experts has no neurons."""
    return [where for where in SITES if where != "neuron" or CASES[name].named.neurons is not None]
