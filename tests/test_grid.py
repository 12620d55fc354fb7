"""All settings at once: as each of them alone, and for the price of what they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from helpers.grids import assert_same, one_by_one, score
from helpers.hooks import count_hooks, replaced
from helpers.layouts import (
    FEW_LOGITS,
    FEW_TOKENS,
    LAYOUTS,
    ONE_BATCH,
    REQUESTS,
    ROWS_ALONE,
    SAME_BEGINNING,
    A,
)
from helpers.oracle import SITES, VARIANTS, Family, family, make_model, oracle_score
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.sadi import Steering, sadi_edit
from sadi_lmeval.passes import grid as module
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.passes.packing import UNSTEERED, Continuation, pack_requests
from sadi_lmeval.passes.scoring import groups_of
from sadi_lmeval.passes.sequences import Batch
from sadi_lmeval.types import Element, HiddenSite

MIXED = [Continuation(c, t) for c, t, _ in [*REQUESTS, *SAME_BEGINNING]]
FEWER = MIXED[:10] + MIXED[10::4]
TOUCHED: list[tuple[int, ...]] = [(0, 2), (1,), (), (2,), (1, 2)]
"""The layers of each edit of a family; none of the third."""
NOTHING = 2
FAMILIES = [(*site, clean) for site in SITES for clean in (False, True)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def in_layers(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering = "dynamic",
    touched: list[tuple[int, ...]] = TOUCHED,
) -> Family:
    """Edits of two entries in each of the layers that ``touched`` says."""
    base = family(model, element, hidden_site, clean, steering)
    site = base.site
    generator = torch.Generator().manual_seed(5)
    deltas = [[3.0, -1.5, 2.0, -2.5][i % 4] for i in range(len(touched))]
    masks = []
    for layers in touched:
        mask = torch.zeros(site.layers, site.entries, dtype=torch.bool)
        for layer in layers:
            mask[layer, torch.randperm(site.entries, generator=generator)[:2]] = True
        masks.append(mask)
    shape = (site.layers, site.entries, site.entry_width)
    edits = [
        sadi_edit(mask, base.difference.view(shape), delta, steering)
        for mask, delta in zip(masks, deltas, strict=True)
    ]
    wide = [mask.repeat_interleave(site.entry_width, dim=1) for mask in masks]
    return base._replace(masks=wide, deltas=deltas, edits=DiagonalEdits(site, edits, clean))


def by_the_oracle(
    model: LlamaForCausalLM, requests: list[Continuation], edits: Family
) -> tuple[Tensor, Tensor]:
    """The same from the equations written out."""
    known: dict[tuple[int, Continuation], tuple[float, bool]] = {}
    for context, tokens, _ in requests:
        text = [*context, *tokens]
        for edit in range(-1, edits.edits.count):
            if (edit, Continuation(context, tokens)) in known:
                continue
            plain = edits._replace(deltas=[0.0]) if edit < 0 else edits
            logits = plain.oracle(model, text, len(context) - 1, max(edit, 0))
            score_ = oracle_score(logits, len(context), list(tokens))
            known[edit, Continuation(context, tokens)] = score_
    table = [
        [known[edit, Continuation(c, t)] for c, t, _ in requests]
        for edit in range(-1, edits.edits.count)
    ]
    found = torch.tensor(table, dtype=torch.float64)
    return found[..., 0].float(), found[..., 1].bool()


# ------------------------------------------------------------------ the scores


@pytest.mark.parametrize(("element", "hidden_site", "clean", "steering"), VARIANTS)
def test_the_grid_equals_the_equations_written_out_in_every_layout(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering,
) -> None:
    edits = in_layers(model, element, hidden_site, clean, steering)
    expected = by_the_oracle(model, FEWER, edits)
    assert (expected[0][1:] - expected[0][:1]).abs().amax(dim=1).count_nonzero() == 4
    # Of several families every layout is tried with and without resuming below.
    for resuming, layouts in ((True, LAYOUTS), (False, [FEW_TOKENS, ONE_BATCH])):
        for bounds in layouts if steering == "dynamic" else [FEW_TOKENS]:
            assert_same(score(model, FEWER, [edits.edits], bounds, True, resuming), expected)
    assert_same(score(model, FEWER, [edits.edits], branching=False), expected)


@pytest.mark.parametrize("clean", [False, True])
def test_the_grid_of_several_families_equals_every_setting_alone(
    model: LlamaForCausalLM, clean: bool
) -> None:
    families = [in_layers(model, *site, clean != (i == 1)).edits for i, site in enumerate(SITES)]
    expected = one_by_one(model, MIXED, families)
    for resuming in (False, True):
        for bounds in LAYOUTS:
            assert_same(score(model, MIXED, families, bounds, True, resuming), expected)
    assert_same(score(model, MIXED, families, FEW_TOKENS, False), expected)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("touched", [[(2,)] * 3, [(2,), ()], [(1,), (1, 2)], [()], []])
def test_families_that_leave_the_first_layers_alone_equal_every_setting_alone(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    touched: list[tuple[int, ...]],
) -> None:
    families = [in_layers(model, element, hidden_site, clean, touched=touched).edits]
    expected = one_by_one(model, MIXED, families)
    for bounds in (ROWS_ALONE, ONE_BATCH):
        assert_same(score(model, MIXED, families, bounds), expected)


tokens = st.lists(st.integers(4, 6), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.builds(Continuation, tokens, tokens), min_size=1, max_size=10), st.booleans())
@settings(max_examples=25)
def test_the_grid_of_any_requests_equals_every_setting_alone(
    model: LlamaForCausalLM, requests: list[Continuation], resuming: bool
) -> None:
    families = [in_layers(model, "head", "mlp", False).edits]
    families.append(in_layers(model, "hidden", "residual", True).edits)
    expected = one_by_one(model, requests, families)
    for bounds in (FEW_LOGITS, ONE_BATCH):
        assert_same(score(model, requests, families, bounds, True, resuming), expected)


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_an_edit_of_nothing_gives_exactly_the_unsteered_scores(
    model: LlamaForCausalLM, branching: bool, clean: bool
) -> None:
    edits = in_layers(model, "neuron", "mlp", clean).edits
    values, greedy = score(model, MIXED, [edits, edits], branching=branching)
    for setting in (1 + NOTHING, 1 + edits.count + NOTHING):
        assert torch.equal(values[setting], values[0])
        assert torch.equal(greedy[setting], greedy[0])


def test_the_grid_without_steering_is_the_unsteered_model(model: LlamaForCausalLM) -> None:
    assert_same(score(model, MIXED, []), one_by_one(model, MIXED, []))


@pytest.mark.parametrize("a_pass", [0, 10**6])
@pytest.mark.parametrize("widest", [1, 10**6])
def test_edits_may_share_a_pass_or_not(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, a_pass: int, widest: int
) -> None:
    monkeypatch.setattr(module, "_PASS", a_pass)
    monkeypatch.setattr(module, "_WIDEST", {"cpu": widest})
    families = [in_layers(model, *site, clean).edits for site in SITES for clean in (False, True)]
    expected = one_by_one(model, FEWER, families)
    assert_same(score(model, FEWER, families, ONE_BATCH), expected)


def test_the_edit_that_a_request_names_is_not_looked_at(model: LlamaForCausalLM) -> None:
    edits = in_layers(model, "head", "mlp", False).edits
    named = [request._replace(edit=i % 5 - 1) for i, request in enumerate(MIXED)]
    for branching in (True, False):
        found = score(model, named, [edits], branching=branching)
        assert_same(found, score(model, MIXED, [edits], branching=branching))


@pytest.mark.parametrize("branching", [False, True])
def test_the_softmax_has_the_type_that_was_asked_for(
    model: LlamaForCausalLM, branching: bool
) -> None:
    edits = in_layers(model, "head", "mlp", False).edits
    wide, _ = score(model, MIXED, [edits], branching=branching, softmax_dtype=torch.float64)
    narrow, _ = score(model, MIXED, [edits], branching=branching)
    torch.testing.assert_close(wide.float(), narrow, atol=1e-5, rtol=1e-5)
    assert not torch.equal(wide.float().double(), wide)


# ------------------------------------------------------------------ what is computed

FORKING = [Continuation(A, t) for t in ((3, 14), (6,), (3, 15))]
"""Eight tokens to compute, of which the last two (A's last and 3) are seen by A's last."""


@contextmanager
def counting(model: LlamaForCausalLM) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens that pass through the MLP of each block, and positions that get logits."""
    layers, logits = [0] * len(model.model.layers), [0]
    handles = []
    for layer, block in enumerate(model.model.layers):

        def count(m: nn.Module, given: tuple[Tensor], out: Tensor, layer: int = layer) -> None:
            layers[layer] += out.shape[:-1].numel()

        handles.append(block.mlp.register_forward_hook(count))

    def read(m: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        logits[0] += out.shape[:-1].numel()

    handles.append(model.lm_head.register_forward_hook(read))
    try:
        yield layers, logits
    finally:
        for handle in handles:
            handle.remove()


def computed(
    model: LlamaForCausalLM,
    requests: list[Continuation],
    touched: list[tuple[int, ...]],
    resuming: bool = True,
    bounds: Bounds = ONE_BATCH,
    element: Element = "head",
    hidden_site: HiddenSite = "mlp",
    clean: bool = False,
) -> tuple[list[int], int]:
    edits = in_layers(model, element, hidden_site, clean, touched=touched).edits
    with counting(model) as (layers, logits):
        score(model, requests, [edits], bounds, True, resuming)
    return layers, logits[0]


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(
    ("touched", "layers", "logits"),
    [
        pytest.param([], [8, 8, 8], 2, id="none"),
        pytest.param([()], [8, 8, 8], 2, id="nothing"),
        pytest.param([(0,)] * 3, [8 + 6, 8 + 6, 8 + 6], 2 + 6, id="first"),
        pytest.param([(1,), (1, 2)], [8, 8 + 4, 8 + 4], 2 + 4, id="second"),
        pytest.param([(2,)] * 3, [8, 8, 8 + 3], 2 + 3, id="last"),
        pytest.param([(1,), (2,), (2,)], [8, 8 + 2, 8 + 2 + 2], 2 + 4, id="second and last"),
    ],
)
def test_prompts_run_once_and_edits_run_what_they_change_from_their_first_layer_on(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    touched: list[tuple[int, ...]],
    layers: list[int],
    logits: int,
) -> None:
    found = computed(model, FORKING, touched, element=element, hidden_site=hidden_site, clean=clean)
    assert found == (layers, logits)


def test_without_resuming_edits_run_what_they_change_from_the_first_layer_on(
    model: LlamaForCausalLM,
) -> None:
    layers, logits = computed(model, FORKING, [(1,), (2,)], resuming=False)
    assert layers == [8 + 4] * 3
    assert logits == 2 + 4


@pytest.mark.parametrize("bounds", LAYOUTS)
def test_an_edit_of_the_last_layer_runs_one_token_a_prompt(
    model: LlamaForCausalLM, bounds: Bounds
) -> None:
    prompts = [(10 + n, *A[: 2 + n]) for n in range(5)]
    requests = [Continuation(p, (t, t + 1, 5)) for p in prompts for t in (20, 30)]
    trunk = sum(len(p) for p in prompts) + 5 * 4
    rows_alone = computed(model, requests, [(2,)] * 4, bounds=ROWS_ALONE)
    assert rows_alone == ([trunk, trunk, trunk + 4 * 5], 5 * 5 + 4 * 5)
    layers, _ = computed(model, requests, [(2,)] * 4, bounds=bounds)
    assert layers[0] == layers[1]
    assert layers[2] - layers[1] == 4 * 5


def test_what_prompts_begin_with_is_run_once(model: LlamaForCausalLM) -> None:
    ends = [(n, n + 1) for n in range(20, 40, 2)]
    beginning = SAME_BEGINNING[-1].context
    requests = [Continuation((*beginning, *end), (3, 4)) for end in ends]
    cases: list[tuple[list[tuple[int, ...]], list[int]]] = [
        ([(1,)] * 2, [0, 40, 40]),
        ([(2,)] * 2, [0, 0, 20]),
    ]
    for touched, more in cases:
        layers, _ = computed(model, requests, touched, bounds=ROWS_ALONE)
        trunk = len(beginning) + 10 * 3
        assert layers == [trunk + extra for extra in more]


def test_edits_that_begin_in_different_layers_have_passes_of_their_own_where_that_is_cheaper(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[tuple[int, ...]] = [(0,), (1,), (1,)]
    monkeypatch.setattr(module, "_PASS", 0)
    assert computed(model, FORKING, touched)[0] == [8 + 2, 8 + 6, 8 + 6]
    monkeypatch.setattr(module, "_PASS", 1000)
    assert computed(model, FORKING, touched)[0] == [8 + 6, 8 + 6, 8 + 6]


@pytest.mark.parametrize("bounds", [*LAYOUTS, Bounds(None, 25, 1000)])
@pytest.mark.parametrize("resuming", [False, True])
def test_no_pass_is_larger_than_its_bounds_or_than_one_row_of_one_setting(
    model: LlamaForCausalLM, bounds: Bounds, resuming: bool
) -> None:
    requests = [request._replace(edit=UNSTEERED) for request in MIXED]
    requests += [Continuation((40 + n, n, n + 1, n + 2), (3,)) for n in range(10)]
    rows = [
        row for group in groups_of(requests, True) for row in pack_requests(requests, group, True)
    ]
    passes: list[tuple[int, int]] = []
    logits: list[int] = []
    handles = [
        model.model.embed_tokens.register_forward_hook(
            lambda m, given, out: passes.append((out.shape[0], out.shape[1]))
        ),
        model.lm_head.register_forward_hook(
            lambda m, given, out: logits.append(out.shape[:-1].numel())
        ),
    ]
    families = [in_layers(model, *variant, touched=TOUCHED * 4).edits for variant in FAMILIES[:2]]
    score(model, requests, families, bounds, True, resuming)
    for handle in handles:
        handle.remove()
    longest = max(max(row.length, row.tree.past) for row in rows)
    assert max(rows * width for rows, width in passes) <= max(bounds.tokens, longest)
    assert max(logits) <= max(bounds.scored, longest)
    assert bounds.rows is None or max(rows for rows, _ in passes) <= bounds.rows


def test_no_pass_brings_a_larger_mask_than_its_bounds(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that over the prompts nor that over what settings change."""
    sizes: dict[str, list[int]] = {"trunk": [], "logits": []}

    def noting(name: str) -> Any:
        run = getattr(Forward, name)

        def noted(forward: Forward, batch: Batch, *arguments: Any, **keywords: Any) -> Any:
            sizes[name].append(0 if batch.attention_mask is None else batch.attention_mask.numel())
            return run(forward, batch, *arguments, **keywords)

        return noted

    for name in sizes:
        monkeypatch.setattr(Forward, name, noting(name))
    requests = [
        Continuation((40 + n, *range(3, 11), n), tokens)
        for n in range(12)
        for tokens in ((3, 4), (5, 6))
    ]
    families = [in_layers(model, *FAMILIES[0], touched=TOUCHED * 4).edits]
    largest = []
    for mask in (1 << 24, 400):
        bounds = Bounds(None, 4096, 4096, 32, mask)
        score(model, requests, families, bounds, True, True)
        largest.append([max(sizes[name]) for name in ("trunk", "logits")])
        for seen in sizes.values():
            seen.clear()
    assert min(largest[0]) > 2 * 400
    assert 0 < max(largest[1]) <= 400


# ------------------------------------------------------------------ nothing is left in the model


@pytest.fixture
def untouched(model: LlamaForCausalLM) -> Iterator[None]:
    """The same bits come out before and after, and nothing is left in any module."""
    ids = torch.tensor([[5, 9, 7, 4], [8, 6, 3, 11]])
    with torch.no_grad():
        before = model(ids).logits
        yield
        assert count_hooks(model) == 0
        assert replaced(model) == 0
        assert torch.equal(before, model(ids).logits)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("resuming", [False, True])
@pytest.mark.parametrize("branching", [False, True])
def test_the_model_is_as_before_after_a_grid(
    model: LlamaForCausalLM, branching: bool, resuming: bool
) -> None:
    families = [in_layers(model, *variant).edits for variant in FAMILIES]
    score(model, FEWER, families, FEW_TOKENS, branching, resuming)


def where_it_fails(model: LlamaForCausalLM) -> dict[str, nn.Module]:
    return {
        "embedding": model.model.embed_tokens,
        "first block": model.model.layers[0].self_attn,
        "last block": model.model.layers[2].mlp,
        "norm": model.model.norm,
    }


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["embedding", "first block", "last block", "norm"])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("variant", [("head", "mlp", True), ("hidden", "residual", False)])
def test_the_model_is_as_before_after_a_pass_that_fails(
    model: LlamaForCausalLM,
    error: type[BaseException],
    where: str,
    times: int,
    variant: tuple[Element, HiddenSite, bool],
) -> None:
    """In the trunk, or in one of the passes that go on from it."""
    edits = in_layers(model, *variant, touched=[(0,), (1,), (2,)] * 3).edits
    left = times

    def fail(m: nn.Module, given: Any, out: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise error("no more")

    handle = where_it_fails(model)[where].register_forward_hook(fail)
    with pytest.raises(error, match="no more"):
        score(model, FORKING, [edits], Bounds(1, 1, 1))
    handle.remove()
    assert left == 0


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("branching", [False, True])
def test_the_model_is_as_before_after_an_error_of_whoever_is_told(
    model: LlamaForCausalLM, branching: bool
) -> None:
    edits = in_layers(model, "head", "mlp", True).edits

    def done(which: list[int], values: Tensor, greedy: Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        grid_log_likelihoods(
            Forward(model), MIXED, [edits], 2, branching, True, FEW_TOKENS, None, done
        )


def test_a_second_grid_of_the_same_model_does_not_remember_the_first(
    model: LlamaForCausalLM,
) -> None:
    forward = Forward(model)
    edits = in_layers(model, "head", "mlp", False).edits

    def scored(requests: list[Continuation], families: list[Edits]) -> Tensor:
        values = torch.zeros(1 + sum(f.count for f in families), len(requests))

        def done(which: list[int], some: Tensor, greedy: Tensor) -> None:
            values[:, which] = some

        grid_log_likelihoods(forward, requests, families, 2, True, True, ONE_BATCH, None, done)
        return values

    first = scored(SAME_BEGINNING, [edits])
    scored(MIXED, [DiagonalEdits(edits.site, [Edit(torch.ones(3, edits.site.width))], True)])
    assert torch.equal(first, scored(SAME_BEGINNING, [edits]))
