"""Where activations are read and scaled: every listed architecture, and those that are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.models import MIXTURES, tiny, tiny_llama
from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.hooks import visiting
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import (
    ARCHITECTURES,
    Architecture,
    find_site,
    register_architecture,
)
from sadi_lmeval.edits.contract import Edits, Reads, reading
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.sequences import Tree, pack
from sadi_lmeval.types import Element, HiddenSite

ELEMENTS: list[tuple[Element, HiddenSite]] = [
    ("head", "mlp"),
    ("neuron", "mlp"),
    ("hidden", "mlp"),
    ("hidden", "residual"),
]
IDS = [5, 9, 7, 4, 8, 33]
CPU = torch.device("cpu")


def logits(model: PreTrainedModel, edits: Edits | None = None, at: int = 3) -> Tensor:
    """Logits at every position of IDS, ``[seq, vocab]``."""
    tree = Tree()
    tree.add(IDS)
    everywhere = Points.of([(0, i) for i in range(len(IDS))], 1, CPU)
    steered = None
    if edits is not None:
        steered = Steered(edits, Points.of([(0, at)], 1, CPU), torch.tensor([0]))
    return Forward(model).logits(pack([tree], 0, torch.float32, CPU), everywhere, steered)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_listed_architecture_has_its_sites(kind: str) -> None:
    model = tiny(kind)
    found = find_site(model, "head")
    assert (found.layers, found.entries, found.entry_width) == (2, 4, 8)
    for hidden_site in ("mlp", "residual"):
        found = find_site(model, "hidden", hidden_site)
        assert (found.layers, found.entries, found.entry_width) == (2, 32, 1)
    if kind not in MIXTURES:
        found = find_site(model, "neuron")
        assert (found.layers, found.entry_width) == (2, 1)
        assert found.entries in (48, 128)  # BLOOM and MPT take 4 times the hidden size


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_site_of_every_listed_architecture_steers(kind: str) -> None:
    """From the edited position on, and in the first layer as in the last."""
    model = tiny(kind)
    plain = logits(model)
    for element, hidden_site in ELEMENTS:
        if element == "neuron" and kind in MIXTURES:
            continue
        site = find_site(model, element, hidden_site)
        for layer in (0, 1):
            gain = torch.zeros(site.layers, site.width)
            gain[layer, ::2] = 2.0  # not all: a norm would undo that
            gap = (
                (logits(model, DiagonalEdits(site, [Edit(gain)], False)) - plain).abs().amax(dim=-1)
            )
            where = (element, hidden_site, layer)
            assert gap[:3].max() < 1e-5, where
            assert gap[3] > 1e-3, where
            if layer == 0:
                assert (gap[4:] > 1e-4).all(), where


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_mlp_s_output_is_its_own_contribution_without_the_residual(kind: str) -> None:
    """Of an MLP whose weights are all zero there is nothing to read.

    Not even where the block then adds to what the MLP gave in place, as Falcon's does.
    """
    model = tiny(kind)
    site = find_site(model, "hidden")
    everywhere = Points.of([(0, i) for i in range(len(IDS))], 1, CPU)
    with torch.no_grad():
        for module in site.modules:
            for parameter in module.parameters():
                parameter.zero_()
        with reading(Reads(site), everywhere) as collected:
            model(torch.tensor([IDS]))
    assert len(collected.last) == 2
    assert not any(activations.any() for activations in collected.last)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_residual_is_what_the_next_block_gets(kind: str) -> None:
    model = tiny(kind)
    site = find_site(model, "hidden", "residual")
    out: list[Tensor] = []
    into: list[Tensor] = []

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        into.append(arguments[0] if arguments else keywords["hidden_states"])

    handle = site.modules[1].register_forward_pre_hook(before, with_kwargs=True)
    with visiting({0: site.modules[0]}, "output", lambda _, a: out.append(a)), torch.no_grad():
        model(torch.tensor([IDS]))
    handle.remove()
    assert torch.equal(out[0], into[0])


def test_head_dim_comes_from_the_config_and_not_from_the_hidden_size() -> None:
    site = find_site(tiny_llama(40, head_dim=12), "head")
    assert (site.entries, site.entry_width, site.width) == (4, 12, 48)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_there_are_as_many_heads_as_queries_however_few_keys(shared: int) -> None:
    site = find_site(tiny_llama(40, num_key_value_heads=shared), "head")
    assert (site.entries, site.entry_width) == (4, 8)


def test_a_head_s_entries_are_the_output_of_that_head() -> None:
    """With the values of one key/value head at zero, the query heads that share it are silent."""
    model = tiny_llama(40, head_dim=12)
    site = find_site(model, "head")
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.v_proj.weight[12:24] = 0  # the second of two
    seen: list[Tensor] = []
    with visiting(dict(enumerate(site.modules)), site.side, lambda _, a: seen.append(a)):
        model(torch.tensor([IDS]))
    for activations in seen:
        heads = activations.view(1, len(IDS), site.entries, site.entry_width)
        assert not heads[:, :, 2:].any()
        assert heads[:, :, :2].abs().amin(dim=-1).amin() > 0


@pytest.mark.parametrize("kind", ["starcoder2", "nemotron", "gpt_bigcode"])
def test_an_unlisted_architecture_is_found_by_looking(kind: str) -> None:
    assert kind not in ARCHITECTURES
    model = tiny(kind)
    plain = logits(model)
    for element, width in (("head", 32), ("neuron", 48), ("hidden", 32)):
        site = find_site(model, element)  # type: ignore[arg-type]
        assert (site.layers, site.width) == (2, width)
        gain = torch.full((2, width), 2.0)
        assert (logits(model, DiagonalEdits(site, [Edit(gain)], False)) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["cpmant", "xlm"])
@pytest.mark.parametrize("element", ["head", "neuron", "hidden"])
def test_an_architecture_without_known_sites_is_refused_with_a_list(
    kind: str, element: Element
) -> None:
    with pytest.raises(UserError) as caught:
        find_site(tiny(kind), element)
    said = str(caught.value)
    assert "\n" not in said
    assert repr(kind) in said
    assert all(name in said for name in ARCHITECTURES)
    assert "sadi_lmeval.register_architecture" in said


@pytest.mark.parametrize("kind", [*MIXTURES, "qwen2_moe"])
def test_a_neuron_of_several_experts_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"several experts.*element=head or element=hidden"):
        find_site(tiny(kind), "neuron")


@pytest.mark.parametrize("kind", ["olmoe", "phimoe"])
@pytest.mark.parametrize("experts_per_token", [1, 2])
def test_a_neuron_of_several_experts_is_refused_in_an_unlisted_architecture(
    kind: str, experts_per_token: int
) -> None:
    model = tiny(kind, num_experts_per_tok=experts_per_token)
    with pytest.raises(UserError, match=r"several experts.*element=head or element=hidden"):
        find_site(model, "neuron")


def test_a_registered_architecture_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "ARCHITECTURES", dict(ARCHITECTURES))
    register_architecture(
        "xglm", Architecture("model.layers", "self_attn.out_proj", "fc2", "activation_fn")
    )
    found = find_site(tiny("xglm", num_layers=2, attention_heads=4, d_model=32), "head")
    assert (found.layers, found.entries, found.entry_width) == (2, 4, 8)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("model.blocks", "self_attn.o_proj", "mlp", "mlp.act_fn"),
        Architecture("model.layers", "attention.o_proj", "mlp", "mlp.act_fn"),
    ],
)
def test_a_module_that_is_not_there_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, architecture: Architecture
) -> None:
    monkeypatch.setitem(sites.ARCHITECTURES, "llama", architecture)
    says_where = r"'llama'.*sadi_lmeval\.register_architecture"
    with pytest.raises(UserError, match=says_where) as caught:
        find_site(tiny_llama(40), "head")
    assert "\n" not in str(caught.value)


def test_a_module_that_takes_no_part_in_the_pass_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama(40)
    for block in model.model.layers:
        block.idle = nn.Linear(2, 2)
    idle = Architecture("model.layers", "self_attn.o_proj", "idle", "mlp.act_fn")
    monkeypatch.setitem(sites.ARCHITECTURES, "llama", idle)
    with pytest.raises(UserError, match="seen in 0 of 3 layers"):
        find_site(model, "hidden")


def test_heads_that_do_not_make_the_width_are_refused() -> None:
    model = tiny_llama(40)
    model.config.num_attention_heads = 3
    with pytest.raises(UserError, match="3 heads of 8 do not make the width 32"):
        find_site(model, "head")
