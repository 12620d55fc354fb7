"""The contract of edits, on every family of them, with and without a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.generation import PROMPTS, generate
from helpers.grids import assert_same, one_by_one, score
from helpers.layouts import ROWS_ALONE, A, B, C
from helpers.oracle import make_model, oracle_score, plain_pass
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.edits.field import FieldEdits
from sadi_lmeval.edits.joined import joined
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.types import Scope

STRENGTHS = [1.5, 0.0, -2.0, 0.7]
"""Of each edit; the second edits nothing."""
LAYERS = [[0, 2], [0, 1], [1], [2]]
"""That each edit edits."""
REQUESTS = [Continuation(c, t) for c in (A, B, C) for t in ((3, 14, 15), (6,), (44, 2))]


# ------------------------------------------------------------------ the rules, twice


def along(projections: Tensor, norms: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Each coefficient is a strength times the cosine with its direction."""
    return torch.ones_like(norms), numbers * projections / norms.unsqueeze(-1)


def bent(tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
    return rows + numbers * torch.tanh(rows @ tensors["bend"])


def warm(unsteered: Tensor) -> Tensor:
    """Open, shut and half open, by the prompt and the edit."""
    mean = unsteered[:, 0].mean(dim=-1, keepdim=True)
    parts = torch.sigmoid(2 * mean * torch.tensor([1.0, 2.0, -1.0, -3.0]))
    return torch.where(torch.tensor([False, False, True, False]), (mean > 0).float(), parts)


class Made(NamedTuple):
    """Edits, and what they do to one row in float64: ``wanted(layer, A, edit)``."""

    edits: Edits
    wanted: Callable[[int, Tensor, int], Tensor]


def given(site: Site, seed: int, *shape: int) -> dict[int, Tensor]:
    """Values of each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(*shape, generator=generator) for layer in range(site.layers)}


def scaled(site: Site, scope: Scope, **gate: Any) -> Made:
    shift, gain = given(site, 1, site.width), given(site, 2, site.width)
    edits = ScaledEdits(site, STRENGTHS, LAYERS, scope, shift=shift, gain=gain, **gate)

    def wanted(layer: int, a: Tensor, edit: int) -> Tensor:
        return a + STRENGTHS[edit] * (gain[layer].double() * a + shift[layer].double())

    return Made(edits, wanted)


def directions(site: Site, scope: Scope, **gate: Any) -> Made:
    read, write = given(site, 3, 2, site.width), given(site, 4, 2, site.width)
    offset, numbers = given(site, 5, 2), [[s] for s in STRENGTHS]
    edits = DirectionEdits(
        site, along, numbers, LAYERS, scope, read=read, write=write, offset=offset, **gate
    )

    def wanted(layer: int, a: Tensor, edit: int) -> Tensor:
        after = a.clone()
        for u, v, c in zip(read[layer], write[layer], offset[layer], strict=True):
            cosine = (float(a @ u.double()) + float(c)) / float(a.norm())
            after += STRENGTHS[edit] * cosine * v.double()
        return after

    return Made(edits, wanted)


def field(site: Site, scope: Scope, **gate: Any) -> Made:
    bends = given(site, 6, site.width, site.width)
    tensors = {layer: {"bend": bend} for layer, bend in bends.items()}
    edits = FieldEdits(site, bent, [[s] for s in STRENGTHS], LAYERS, scope, tensors=tensors, **gate)

    def wanted(layer: int, a: Tensor, edit: int) -> Tensor:
        return a + STRENGTHS[edit] * torch.tanh(a @ bends[layer].double())

    return Made(edits, wanted)


def diagonal(site: Site, scope: Scope, **gate: Any) -> Made:
    chosen, shift = given(site, 7, site.width), given(site, 8, site.width)

    def gain(edit: int) -> Tensor:
        of_layers = [STRENGTHS[edit] * (chosen[n] > 1) * (n in LAYERS[edit]) for n in chosen]
        return torch.stack(of_layers).float()

    every = [Edit(gain(i), gain(i) * torch.stack(list(shift.values()))) for i in range(4)]

    def wanted(layer: int, a: Tensor, edit: int) -> Tensor:
        return a + every[edit].gain[layer].double() * (a + shift[layer].double())

    return Made(DiagonalEdits(site, every, scope=scope, **gate), wanted)


def both(site: Site, scope: Scope, **gate: Any) -> Made:
    """Two families as one; ``wanted`` counts on from the first to the second."""
    one, two = scaled(site, scope, **gate), field(site, scope)
    parts = [one.edits, two.edits]

    def wanted(layer: int, a: Tensor, edit: int) -> Tensor:
        return one.wanted(layer, a, edit) if edit < 4 else two.wanted(layer, a, edit - 4)

    return Made(joined(parts), wanted)


GATE: dict[str, Any] = {"gate": warm, "gate_digests": ["w0", "w1", "w2", "w3"]}
EVERY: dict[str, Callable[[Site, Scope], Made]] = {
    "scaled": scaled,
    "directions": directions,
    "field": field,
    "diagonal": diagonal,
    "joined": both,
    "scaled, gated": lambda site, scope: scaled(site, scope, **GATE),
    "directions, gated": lambda site, scope: directions(site, scope, **GATE),
    "field, gated": lambda site, scope: field(site, scope, **GATE),
    "diagonal, gated": lambda site, scope: diagonal(site, scope, **GATE),
    "joined, one of them gated": lambda site, scope: both(site, scope, **GATE),
}
families = pytest.mark.parametrize("name", EVERY)
scopes = pytest.mark.parametrize("scope", ["prompt", "onwards"])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture(scope="module")
def site(model: LlamaForCausalLM) -> Site:
    return find_site(model, "hidden", "residual")


# ------------------------------------------------------------------ one row at a time


def rows_of(site: Site, count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, site.width, generator=torch.Generator().manual_seed(9)).to(dtype)


@families
def test_each_row_is_what_its_equation_says(site: Site, name: str) -> None:
    edits, wanted = EVERY[name](site, "prompt")
    rows = rows_of(site, 3 * edits.count, torch.float32)
    which = torch.arange(len(rows)) % edits.count
    for layer in range(site.layers):
        after = edits.apply(layer, rows, which)
        for row, edit, found in zip(rows, which.tolist(), after, strict=True):
            edited = layer in LAYERS[edit % 4]
            expected = wanted(layer, row.double(), edit) if edited else row.double()
            torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_itself_alone_and_keeps_its_type(
    site: Site, name: str, dtype: torch.dtype
) -> None:
    edits = EVERY[name](site, "prompt").edits
    rows = rows_of(site, 3 * edits.count, dtype)
    which = torch.arange(len(rows)) % edits.count
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    tolerance: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {}
    for layer in range(site.layers):
        after = edits.apply(layer, rows, which)
        assert after.dtype == dtype
        mixed = edits.apply(layer, rows[order], which[order])
        torch.testing.assert_close(mixed, after[order], **tolerance)
        for i, row in enumerate(rows):
            alone = edits.apply(layer, row[None], which[i : i + 1])
            torch.testing.assert_close(alone[0], after[i], **tolerance)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_strength_of_nought_keeps_every_bit(site: Site, name: str, dtype: torch.dtype) -> None:
    edits = EVERY[name](site, "prompt").edits
    rows = rows_of(site, edits.count, dtype)
    which = torch.arange(edits.count)
    for layer in range(site.layers):
        after = edits.apply(layer, rows, which)
        for edit in range(1, edits.count, 4):
            assert torch.equal(after[edit], rows[edit])
        assert torch.equal(edits.apply(layer, rows, torch.full((edits.count,), 1)), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_edit_leaves_alone_keeps_its_bits_beside_edits_that_change_it(
    site: Site, dtype: torch.dtype
) -> None:
    """A negative zero, and infinity."""
    gain = torch.zeros(3, site.layers, site.width)
    gain[0, 0, 4], gain[1, 0, 5] = 2.0, -1.5
    edits = DiagonalEdits(site, [Edit(each) for each in gain])
    row = torch.full((site.width,), -0.0, dtype=dtype)
    row[4], row[5::4] = 1.0, torch.inf
    for edit, changed in enumerate(([4], [5], [])):
        after = edits.apply(0, row[None], torch.tensor([edit]))[0]
        assert (after != row).nonzero().flatten().tolist() == changed
        kept = [n for n in range(site.width) if n not in changed]
        assert torch.equal(after.signbit()[kept], row.signbit()[kept])


@families
def test_the_first_layer_of_an_edit_is_the_first_that_it_changes(site: Site, name: str) -> None:
    edits = EVERY[name](site, "prompt").edits
    rows = rows_of(site, 1, torch.float32)
    for edit in range(edits.count):
        which = torch.tensor([edit])
        changed = [n for n in range(site.layers)
                   if not torch.equal(edits.apply(n, rows, which), rows)]  # fmt: skip
        assert edits.first_layers[edit] <= min(changed, default=site.layers)
        assert set(changed) <= set(edits.layers)


@pytest.mark.parametrize("gate", [{}, GATE])
@pytest.mark.parametrize("make", [scaled, directions, field])
def test_whatever_an_edit_is_made_of_is_in_its_digest(
    site: Site, make: Callable[..., Made], gate: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(scope: Scope = "prompt", **other: Any) -> list[str]:
        edits = make(site, scope, **{**gate, **other}).edits
        return [edits.digest(i) for i in range(edits.count)]

    before = digests()
    assert digests() == before
    assert len(set(before)) == len(before)
    assert not set(before) & set(digests("onwards"))
    if gate:
        assert digests(gate_digests=["w0", "other", "w2", "w3"])[2] == before[2]
        assert digests(gate_digests=["w0", "other", "w2", "w3"])[1] != before[1]
    with monkeypatch.context() as patch:
        patch.setattr("test_edits.STRENGTHS", [1.5, 0.0, -2.0000002, 0.7])
        after = digests()
        assert [i for i in range(4) if after[i] != before[i]] == [2]
    with monkeypatch.context() as patch:
        patch.setattr("test_edits.LAYERS", [[0, 2], [0, 1], [1, 2], [2]])
        after = digests()
        assert [i for i in range(4) if after[i] != before[i]] == [2]
    with monkeypatch.context() as patch:
        values = {seed: given(site, seed, *shape) for seed, shape in shapes_of(site).items()}
        for seed in values:
            values[seed][2].view(-1)[-1] += 1e-3
        patch.setattr("test_edits.given", lambda site, seed, *shape: values[seed])
        after = digests()
        # the last layer's values changed: of no edit that leaves that layer alone
        assert [i for i in range(4) if after[i] != before[i]] == [0, 3]


@families
def test_the_same_edit_of_another_site_has_another_digest(
    model: LlamaForCausalLM, site: Site, name: str
) -> None:
    """The MLP's output is as wide as the block's."""
    here, there = (EVERY[name](s, "prompt").edits for s in (site, find_site(model, "hidden")))
    for edit in range(here.count):
        assert here.digest(edit) != there.digest(edit)


def shapes_of(site: Site) -> dict[int, tuple[int, ...]]:
    w = site.width
    return {1: (w,), 2: (w,), 3: (2, w), 4: (2, w), 5: (2,), 6: (w, w)}


# ------------------------------------------------------------------ in a model


def by_the_oracle(
    model: LlamaForCausalLM, made: Made, tokens: list[int], at: int, edit: int
) -> Tensor:
    """Logits of a text whose position ``at`` is edited, by the equations written out."""
    plain = plain_pass(model, tokens, at, "residual")
    table = made.edits.gates(plain.activations.float()[None])
    gate = 1.0 if table is None else float(table[0, edit])

    def edited(layer: int, a: Tensor) -> Tensor:
        if layer not in LAYERS[edit % 4]:
            return a
        return a + gate * (made.wanted(layer, a, edit) - a)

    return plain_pass(model, tokens, at, "residual", edited).logits


@families
def test_scores_equal_the_equations_written_out(
    model: LlamaForCausalLM, site: Site, name: str
) -> None:
    made = EVERY[name](site, "prompt")
    values, greedy = score(model, REQUESTS, [made.edits])
    for edit in range(made.edits.count):
        for number, (context, tokens, _) in enumerate(REQUESTS):
            logits = by_the_oracle(model, made, [*context, *tokens], len(context) - 1, edit)
            value, most_probable = oracle_score(logits, len(context), list(tokens))
            assert float(values[1 + edit, number]) == pytest.approx(value, abs=1e-4)
            assert bool(greedy[1 + edit, number]) == most_probable


@families
@scopes
def test_a_grid_equals_each_edit_alone(
    model: LlamaForCausalLM, site: Site, name: str, scope: Scope
) -> None:
    edits = EVERY[name](site, scope).edits
    assert_same(score(model, REQUESTS, [edits]), one_by_one(model, REQUESTS, [edits]))
    rows = score(model, REQUESTS, [edits], ROWS_ALONE, branching=False, resuming=False)
    assert_same(rows, one_by_one(model, REQUESTS, [edits]))


@scopes
def test_a_grid_of_all_families_equals_each_edit_alone(
    model: LlamaForCausalLM, site: Site, scope: Scope
) -> None:
    every = [make(site, scope).edits for make in EVERY.values()]
    assert_same(score(model, REQUESTS, every), one_by_one(model, REQUESTS, every))


@families
def test_an_edit_of_nought_scores_as_the_unsteered_model(
    model: LlamaForCausalLM, site: Site, name: str
) -> None:
    values, _ = score(model, REQUESTS, [EVERY[name](site, "prompt").edits])
    torch.testing.assert_close(values[2], values[0], atol=1e-5, rtol=1e-6)
    assert float((values[1] - values[0]).abs().max()) > 1e-2


@families
@pytest.mark.parametrize("which", [0, 2, 3])
def test_generation_equals_the_equations_written_out(
    model: LlamaForCausalLM, site: Site, name: str, which: int
) -> None:
    made = EVERY[name](site, "prompt")
    tokens, logits = generate(model, made.edits, which)
    for row, prompt in enumerate(PROMPTS):
        text = [*prompt, *tokens[row].tolist()]
        expected = by_the_oracle(model, made, text, len(prompt) - 1, which)
        steps = expected[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[:, row].double(), steps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["scaled", "scaled, gated", "directions, gated", "field, gated", "diagonal, gated"]
)
def test_a_generation_that_is_edited_onwards_has_the_gate_of_its_prompt(
    model: LlamaForCausalLM, site: Site, name: str
) -> None:
    """A generated text has the score that it has as a continuation."""
    edits = EVERY[name](site, "onwards").edits
    for which in (0, 2, 3):
        tokens, logits = generate(model, edits, which)
        requests = [
            Continuation(tuple(prompt), tuple(tokens[row].tolist()), which)
            for row, prompt in enumerate(PROMPTS)
        ]
        found = log_likelihoods(Forward(model), requests, edits, 2, False, ROWS_ALONE)
        for row, (value, _) in enumerate(found):
            steps = logits[:, row].log_softmax(-1)
            total = float(steps.gather(1, tokens[row, :, None]).sum())
            assert value == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_that_is_shut_keeps_every_bit_and_an_open_one_is_none(
    site: Site, dtype: torch.dtype
) -> None:
    edits = EVERY["field"](site, "prompt").edits
    rows, which = rows_of(site, 4, dtype), torch.tensor([0, 0, 2, 2])
    after = edits.edited(edits.placed(which), 1, rows, None)
    gated = edits.edited(edits.placed(which), 1, rows, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert torch.equal(gated[::2], rows[::2])
    assert torch.equal(gated[1::2], after[1::2])


def test_gates_are_shut_open_and_half_open_here(model: LlamaForCausalLM, site: Site) -> None:
    """So that the tests above mean something."""
    edits = EVERY["scaled, gated"](site, "prompt").edits
    prompts = [plain_pass(model, list(c), len(c) - 1, "residual").activations for c in (A, B, C)]
    table = edits.gates(torch.stack(prompts).float())
    assert table is not None
    assert {0.0, 1.0} <= set(table[:, 2].tolist())
    assert ((table[:, [0, 3]] > 0.01) & (table[:, [0, 3]] < 0.99)).any()
