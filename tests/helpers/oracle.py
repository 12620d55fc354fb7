"""SADI's equations in a Llama written out in plain torch, one sequence at a time.

:func:`oracle` shares no code with the package: no hooks, no batches, no packing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits
from sadi_lmeval.methods.sadi import Steering, sadi_edit
from sadi_lmeval.types import Element, HiddenSite

VOCAB = 60
HEAD_DIM = 12
SITES: list[tuple[Element, HiddenSite]] = [
    ("head", "mlp"),
    ("neuron", "mlp"),
    ("hidden", "mlp"),
    ("hidden", "residual"),
]


class Passed(NamedTuple):
    """Logits ``[seq, vocab]``, and the activations A of one position, ``[layers, width]``."""

    logits: Tensor
    activations: Tensor


def plain_pass(
    model: LlamaForCausalLM,
    tokens: list[int],
    at: int,
    where: str,
    edit: Callable[[int, Tensor], Tensor] = lambda layer, a: a,
) -> Passed:
    """A Llama's forward pass; ``edit`` replaces the activations of position ``at``.

    Args:
        where: ``head``, ``neuron``, ``mlp`` or ``residual``.
        edit: takes a layer and A ``[width]``; returns A'.
    """
    c, w = model.config, {k: v.double() for k, v in model.state_dict().items()}
    length, dim = len(tokens), c.head_dim
    shared = c.num_attention_heads // c.num_key_value_heads
    seen: list[Tensor] = []

    def site(name: str, layer: int, values: Tensor) -> Tensor:
        if name != where:
            return values
        seen.append(values[at].clone())
        values = values.clone()
        values[at] = edit(layer, values[at])
        return values

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.rms_norm_eps) * weight

    def rotated(x: Tensor) -> Tensor:
        """Rotary embedding of ``[seq, head_dim]``, the two halves as the pairs."""
        half, positions = dim // 2, torch.arange(length).double()
        out = torch.empty_like(x)
        for i in range(half):
            angle = positions * 10000.0 ** (-2 * i / dim)
            a, b = x[:, i], x[:, i + half]
            out[:, i] = a * angle.cos() - b * angle.sin()
            out[:, i + half] = b * angle.cos() + a * angle.sin()
        return out

    h = w["model.embed_tokens.weight"][tokens]
    for layer in range(c.num_hidden_layers):
        p = f"model.layers.{layer}."
        x = norm(h, w[p + "input_layernorm.weight"])
        q, k, v = (x @ w[f"{p}self_attn.{n}_proj.weight"].T for n in "qkv")
        keys = [rotated(part) for part in k.split(dim, dim=-1)]
        values = v.split(dim, dim=-1)
        heads = []
        for head, query in enumerate(q.split(dim, dim=-1)):
            scores = rotated(query) @ keys[head // shared].T / math.sqrt(dim)
            future = torch.ones(length, length).triu(1).bool()
            weights = scores.masked_fill(future, -math.inf).softmax(-1)
            heads.append(weights @ values[head // shared])
        attended = site("head", layer, torch.cat(heads, -1))
        h = h + attended @ w[p + "self_attn.o_proj.weight"].T
        x = norm(h, w[p + "post_attention_layernorm.weight"])
        gate = x @ w[p + "mlp.gate_proj.weight"].T
        neurons = site("neuron", layer, gate / (1 + torch.exp(-gate)))
        up = x @ w[p + "mlp.up_proj.weight"].T
        h = h + site("mlp", layer, (neurons * up) @ w[p + "mlp.down_proj.weight"].T)
        h = site("residual", layer, h)
    logits = norm(h, w["model.norm.weight"]) @ w["lm_head.weight"].T
    return Passed(logits, torch.stack(seen))


def oracle(
    model: LlamaForCausalLM,
    tokens: list[int],
    at: int,
    where: str,
    mask: Tensor,
    delta: float,
    clean: bool,
    fixed: Tensor | None = None,
) -> Tensor:
    """A' = A + delta (A ⊙ M) at position ``at``; logits ``[seq, vocab]``.

    Args:
        mask: M, ``[layers, width]`` of zeros and ones.
        clean: A and the whole site of every layer from an unsteered pass.
        fixed: D, ``[layers, width]``, in A's place in the product (the ablation).
    """
    unsteered = plain_pass(model, tokens, at, where)
    if delta == 0:
        return unsteered.logits

    def edit(layer: int, now: Tensor) -> Tensor:
        a = unsteered.activations[layer] if clean else now
        factor = a if fixed is None else fixed[layer].double()
        return torch.stack(
            [a[i] + delta * factor[i] if mask[layer, i] else a[i] for i in range(len(a))]
        )

    return plain_pass(model, tokens, at, where, edit).logits


def oracle_score(logits: Tensor, context: int, continuation: list[int]) -> tuple[float, bool]:
    """(sum of log-probabilities, whether each token is the most probable one)."""
    total, greedy = 0.0, True
    for i, token in enumerate(continuation):
        row = logits[context - 1 + i].log_softmax(-1)
        total += float(row[token])
        greedy &= int(row.argmax()) == token
    return total, greedy


class Family(NamedTuple):
    """Three edits of one site (the second with delta 0), as the oracle and as we take them."""

    where: str
    site: Site
    masks: list[Tensor]  # [layers, width], for the oracle
    deltas: list[float]
    difference: Tensor  # [layers, width]
    steering: Steering
    edits: Edits

    def oracle(self, model: LlamaForCausalLM, tokens: list[int], at: int, edit: int) -> Tensor:
        fixed = self.difference if self.steering == "fixed" else None
        mask, delta = self.masks[edit], self.deltas[edit]
        return oracle(model, tokens, at, self.where, mask, delta, self.edits.clean, fixed)


def make_model() -> LlamaForCausalLM:
    """head_dim is not hidden_size / heads, and two query heads share each key/value head."""
    return tiny_llama(VOCAB, head_dim=HEAD_DIM)


def family(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering = "dynamic",
) -> Family:
    site = find_site(model, element, hidden_site)
    generator = torch.Generator().manual_seed(3)
    shape = (site.layers, site.entries, site.entry_width)
    difference = torch.randn(shape, generator=generator)
    deltas = [3.0, 0.0, -1.5]
    chosen = [torch.rand(shape[:2], generator=generator).flatten().argsort()[:5] for _ in deltas]
    masks = []
    for entries in chosen:
        mask = torch.zeros(site.layers * site.entries, dtype=torch.bool)
        mask[entries] = True
        masks.append(mask.view(shape[:2]))
    edits = [
        sadi_edit(mask, difference, delta, steering)
        for mask, delta in zip(masks, deltas, strict=True)
    ]
    wide = [mask.repeat_interleave(site.entry_width, dim=1) for mask in masks]
    where = hidden_site if element == "hidden" else element
    return Family(
        where,
        site,
        wide,
        deltas,
        difference.flatten(1),
        steering,
        DiagonalEdits(site, edits, clean),
    )


VARIANTS = [
    pytest.param(element, hidden_site, clean, steering, id=f"{name}-{reading}-{steering}")
    for (element, hidden_site), clean, steering in itertools.product(
        SITES, (False, True), ("dynamic", "fixed")
    )
    for name in [hidden_site if element == "hidden" else element]
    for reading in ["clean" if clean else "live"]
]
