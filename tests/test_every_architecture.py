"""Every architecture against the equations in plain hooks, on modules that are named here by hand.

:func:`oracle` shares nothing with the package: it knows no table of architectures, no batches and
no packing, and takes one text at a time. That what is shared and skipped changes no score is
``test_architectures.py``'s; ``bench/architectures.py`` makes a table out of the models here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from every_type import wrong
from test_sites import tiny
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import (
    ARCHITECTURES,
    Architecture,
    Site,
    find_site,
    register_architecture,
)
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.sadi import sadi_edit
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.passes.sequences import Tree, pack
from sadi_lmeval.types import Element, HiddenSite, Scope

LAYERS, HEADS, HIDDEN = 2, 4, 32

# ------------------------------------------------------------------ the models


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
        head_dim: activations a head; 12 where 32 hidden units do not make 4 heads.
        neurons: a layer's.
        registered: what is said by hand about a type that is neither listed nor found.
    """

    kind: str
    named: Named
    changes: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    head_dim: int = 8
    neurons: int = 48
    registered: Architecture | None = None


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


class LlamaLikeConfig(LlamaConfig):
    model_type = "llama_like"


class LlamaLike(LlamaForCausalLM):
    config_class = LlamaLikeConfig


class RenamedConfig(LlamaConfig):
    model_type = "renamed"


class Renamed(LlamaForCausalLM):
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


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The types that are said by hand, for the length of a test."""
    monkeypatch.setattr(sites, "ARCHITECTURES", dict(ARCHITECTURES))
    for case in CASES.values():
        if case.registered is not None:
            register_architecture(case.kind, case.registered)


# ------------------------------------------------------------------ the oracle

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


# ------------------------------------------------------------------ the package's side

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


def columns_of(where: str, edit: int, head_dim: int) -> list[tuple[int, int]]:
    """(layer, column) of what an edit scales, a head taken apart."""
    if where != "head":
        return CHOSEN[where][edit]
    return [
        (layer, head * head_dim + i) for layer, head in CHOSEN[where][edit] for i in range(head_dim)
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


# ------------------------------------------------------------------ tests


def places(name: str) -> list[str]:
    """The sites that a kind of model has: a mixture of experts has no neurons."""
    return [where for where in SITES if where != "neuron" or CASES[name].named.neurons is not None]


each_case = pytest.mark.parametrize("name", CASES)
each_place = pytest.mark.parametrize(
    ("name", "where"), [(name, where) for name in CASES for where in places(name)]
)


@each_case
def test_every_site_has_the_shape_and_the_modules_of_the_model(name: str) -> None:
    case, model = CASES[name], made(name)
    shapes = {
        "head": (HEADS, case.head_dim),
        "neuron": (case.neurons, 1),
        "mlp": (HIDDEN, 1),
        "residual": (HIDDEN, 1),
    }
    for where, (entries, width) in shapes.items():
        if where == "neuron" and case.named.neurons is None:
            with pytest.raises(UserError, match=r"several experts.*element=head or element=hidden"):
                site_of(model, where)
            continue
        site = site_of(model, where)
        assert (site.layers, site.entries, site.entry_width) == (LAYERS, entries, width), where
        modules, side = modules_of(model, case.named, where)
        assert site.side == side
        assert all(ours is named for ours, named in zip(site.modules, modules, strict=True)), where


@each_place
@pytest.mark.parametrize("clean", [False, True], ids=["live", "clean"])
def test_steering_is_the_equations_in_plain_hooks(name: str, where: str, clean: bool) -> None:
    """Logits after the prompt, and log-likelihoods of two tokens, with all prompts in a batch."""
    case, model = CASES[name], made(name)
    edits = edits_of(model, where, clean)
    expected = []
    for prompt, tokens, edit in REQUESTS:
        text = [*prompt, *tokens]
        if edit == UNSTEERED:
            expected.append(score_of(plain_logits(model, text), prompt, tokens))
            continue
        columns = columns_of(where, edit, case.head_dim)
        last = len(prompt) - 1
        logits = oracle(model, case.named, where, text, last, columns, DELTAS[edit], clean)
        assert_close(logits_at(model, edits, prompt, edit), logits[last], (prompt, edit))
        expected.append(score_of(logits, prompt, tokens))
    by_request = torch.tensor(expected)
    steered, unsteered = by_request.view(-1, 3)[:, :2], by_request.view(-1, 3)[:, 2:]
    assert ((steered - unsteered).abs().amax(dim=1) > 1e-3).all()
    assert_close(scores(model, edits), by_request)


@pytest.mark.parametrize("name", [name for name in CASES if "neuron" in places(name)])
def test_a_scaled_neuron_is_a_scaled_input_of_the_last_projection(name: str) -> None:
    """So that it is the neuron's own output, gated or not, and nothing before or after it."""
    case, model = CASES[name], made(name)
    text, columns = PROMPTS[0], columns_of("neuron", 0, case.head_dim)
    found = logits_at(model, edits_of(model, "neuron"), text, 0)
    expected = oracle(model, case.named, "down", text, len(text) - 1, columns, DELTAS[0])
    assert_close(found, expected[-1])


@each_case
def test_a_delta_of_zero_changes_no_bit_although_its_hooks_run(name: str) -> None:
    model, text = made(name), PROMPTS[0]
    plain = logits_at(model, None, text, UNSTEERED)
    requests = [request._replace(edit=0) for request in REQUESTS[::3]]
    unsteered = scores(model, None, requests)
    for where in places(name):
        for clean in (False, True):
            edits = edits_of(model, where, clean, deltas=[0.0, 3.0])
            assert edits.layers == [0, 1]
            assert torch.equal(logits_at(model, edits, text, 0), plain), (where, clean)
            assert not torch.equal(logits_at(model, edits, text, 1), plain), (where, clean)
            assert torch.equal(scores(model, edits, requests), unsteered), (where, clean)


@each_case
@pytest.mark.parametrize(("where", "clean"), [("head", True), ("mlp", False)])
def test_requests_in_a_batch_score_as_alone(name: str, where: str, clean: bool) -> None:
    """Right-padded, each row with an edit of its own or none."""
    model = made(name)
    edits = edits_of(model, where, clean)
    assert_close(scores(model, edits, REQUESTS, NARROW), scores(model, edits))


GENERATED: list[tuple[str, bool, Scope]] = [
    ("head", False, "prompt"),
    ("mlp", True, "prompt"),
    ("head", False, "onwards"),
    ("residual", False, "onwards"),
]


@each_case
@pytest.mark.parametrize(("where", "clean", "scope"), GENERATED)
def test_generation_with_a_cache_and_without_is_the_equations_in_plain_hooks(
    name: str, where: str, clean: bool, scope: Scope
) -> None:
    """Left-padded, all prompts in a batch; without a cache every step computes them again."""
    case, model = CASES[name], made(name)
    edits = edits_of(model, where, clean, scope)
    tokens, logits = generated(model, edits, use_cache=True)
    again, recomputed = generated(model, edits, use_cache=False)
    assert again == tokens
    assert_close(recomputed, logits)
    columns = columns_of(where, 0, case.head_dim)
    for prompt, own, found in zip(PROMPTS, tokens, logits, strict=True):
        text, last = [*prompt, *own], len(prompt) - 1
        onwards = scope == "onwards"
        expected = oracle(model, case.named, where, text, last, columns, DELTAS[0], clean, onwards)[
            last:-1
        ]
        assert_close(found, expected, prompt)
        assert (expected - plain_logits(model, text)[last:-1]).abs().max() > 1e-3


@each_case
def test_prompts_in_a_batch_are_generated_from_as_alone(name: str) -> None:
    model = made(name)
    edits = edits_of(model, "mlp", clean=True)
    tokens, logits = generated(model, edits)
    for row, prompt in enumerate(PROMPTS):
        [own], found = generated(model, edits, [prompt])
        assert own == tokens[row]
        assert_close(found[0], logits[row])


@each_case
def test_detaching_restores_every_bit(name: str) -> None:
    """After scores, after a generation, and after a pass that failed under way."""
    model = made(name)
    text = [*PROMPTS[0], *CONTINUATIONS[0]]
    before, texts = plain_logits(model, text), generated(model, None)
    for where, clean in (("head", True), ("residual", False)):
        edits = edits_of(model, where, clean)
        scores(model, edits)
        generated(model, edits)
        with pytest.raises(IndexError):
            logits_at(model, edits, [5, 10_000], 0)  # not in the vocabulary
    assert torch.equal(plain_logits(model, text), before)
    after = generated(model, None)
    assert after[0] == texts[0]
    assert torch.equal(after[1], texts[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


def test_the_last_types_are_not_listed_and_of_the_second_the_mlp_would_not_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They stand for looking and for registering."""
    monkeypatch.setattr(sites, "ARCHITECTURES", ARCHITECTURES)
    assert not {"llama_like", "xglm", "falcon_h1", "renamed"} & set(ARCHITECTURES)
    assert site_of(made("an unlisted type like Llama"), "head").entries == HEADS
    assert site_of(made("XGLM"), "head").entries == HEADS
    with pytest.raises(UserError, match=r"'renamed'.*sadi_lmeval\.register_architecture"):
        site_of(made("other names, registered by hand"), "mlp")


@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("name", MIXED)
def test_of_mixed_layers_those_that_have_an_element_are_steered(name: str, where: str) -> None:
    """Or it is refused in one line, where none has it."""
    model = made(name)
    if where in MIXED_PLACES[name]:
        site = site_of(model, where)
        assert site.blocks == MIXED_PLACES[name][where]
        assert wrong(model, site) == ""
        return
    with pytest.raises(UserError, match=f"element={SITES[where][0]}") as caught:
        site_of(model, where)
    assert repr(MIXED[name][0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_of_two_kinds_are_told_apart_for_who_registers_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jamba's MLPs are in every layer, its attention is in one; neurons in some are refused."""
    jamba = Architecture("model.layers", "self_attn.o_proj", "feed_forward", "mamba.act")
    monkeypatch.setitem(sites.ARCHITECTURES, "jamba", jamba)
    model = made("Jamba")
    with pytest.raises(UserError, match=r"only 1 of its 2 layers have 'mamba.act'"):
        site_of(model, "neuron")
    assert site_of(model, "head").blocks == (1,)
    assert site_of(model, "mlp").width == HIDDEN
    named = LLAMA._replace(mlp="feed_forward")
    text, columns = PROMPTS[0], columns_of("mlp", 0, 0)
    expected = oracle(model, named, "mlp", text, len(text) - 1, columns, DELTAS[0])
    assert_close(logits_at(model, edits_of(model, "mlp"), text, 0), expected[-1])


def test_a_head_of_latent_attention_has_the_width_of_its_values() -> None:
    """DeepSeek's head_dim is that part of the keys that is rotated."""
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
    model = tiny(
        "deepseek_v3", v_head_dim=12, head_dim=4, num_key_value_heads=HEADS, vocab_size=60,
        n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1, **sizes,
    )  # fmt: skip
    site = site_of(model, "head")
    assert (site.entries, site.entry_width) == (HEADS, 12)
    text, columns = PROMPTS[0], columns_of("head", 0, 12)
    expected = oracle(model, LLAMA, "head", text, len(text) - 1, columns, DELTAS[0])
    assert_close(logits_at(model, edits_of(model, "head"), text, 0), expected[-1])
    with pytest.raises(UserError, match=r"only 1 of its 2 layers have 'mlp.act_fn'"):
        site_of(model, "neuron")


def test_the_table_in_the_documentation_is_what_trying_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(__file__).parents[1]
    release = f"transformers=={transformers.__version__}\n"
    if release not in (folder / "constraints.txt").read_text():
        pytest.skip("the table is of the release of transformers in constraints.txt")
    monkeypatch.syspath_prepend(str(folder / "bench"))
    monkeypatch.delitem(sys.modules, "architectures", raising=False)
    from architectures import table

    text = (folder / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert table() in text, "python bench/architectures.py prints the table that belongs there"
