"""SADI's equations against a Llama written out in plain torch, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.oracle import (
    SITES,
    VARIANTS,
    family,
    make_model,
    oracle,
    plain_pass,
)
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.sadi import SADI, Steering, binary_mask, sadi_edit
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.sequences import Tree, pack
from sadi_lmeval.settings import Setting
from sadi_lmeval.types import Element, HiddenSite


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


TOKENS = [5, 9, 7, 4, 8, 33, 21]


def steered_logits(model: LlamaForCausalLM, edits: Edits, edit: int, at: int) -> Tensor:
    """Our logits at every position of TOKENS, ``[seq, vocab]``."""
    cpu = torch.device("cpu")
    tree = Tree()
    tree.add(TOKENS)
    everywhere = Points.of([(0, i) for i in range(len(TOKENS))], 1, cpu)
    steered = Steered(edits, Points.of([(0, at)], 1, cpu), torch.tensor([edit]))
    return Forward(model).logits(pack([tree], 0, torch.float32, cpu), everywhere, steered)


# ---------------------------------------------------------------------------- tests


def test_the_oracle_without_an_edit_is_the_model(model: LlamaForCausalLM) -> None:
    logits = plain_pass(model, TOKENS, 0, "mlp").logits
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(logits.float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("element", "hidden_site", "clean", "steering"), VARIANTS)
def test_steered_logits_equal_the_equations_written_out(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering,
) -> None:
    edits = family(model, element, hidden_site, clean, steering)
    for edit, at in ((0, 3), (2, 0), (2, 6)):
        ours = steered_logits(model, edits.edits, edit, at)
        theirs = edits.oracle(model, TOKENS, at, edit)
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("element", "hidden_site", "clean", "steering"), VARIANTS)
def test_the_method_s_arguments_reach_the_edits_of_its_settings(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering,
) -> None:
    """The K entries are found here by sorting the means of D."""
    method = SADI(
        element=element,
        hidden_site=hidden_site,
        selection="bottom",
        steering=steering,
        activations="clean" if clean else "live",
    )
    site = find_site(model, *method.place)
    difference = torch.randn(site.shape, generator=torch.Generator().manual_seed(5))
    means = [(float(v.mean()), i) for i, v in enumerate(difference.flatten(0, 1))]
    settings = [Setting(2, 4.0), Setting(5, -1.5), Setting(5, 0.0)]
    edits = method.edits(site, {"difference": difference}, settings, 0)
    assert (edits.count, edits.clean, edits.scope) == (3, clean, "prompt")
    where = hidden_site if element == "hidden" else element
    fixed = difference.flatten(1) if steering == "fixed" else None
    for edit, (top_k, delta) in enumerate(settings):
        mask = torch.zeros(site.layers * site.entries)
        mask[[i for _, i in sorted(means)[: int(top_k)]]] = 1
        wide = mask.view(site.layers, site.entries).repeat_interleave(site.entry_width, dim=1)
        theirs = oracle(model, TOKENS, 3, where, wide, delta, clean, fixed)
        ours = steered_logits(model, edits, edit, 3)
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)


def test_live_and_clean_activations_are_different_readings(model: LlamaForCausalLM) -> None:
    for element, hidden_site in SITES:
        live, clean = (family(model, element, hidden_site, c).edits for c in (False, True))
        gap = steered_logits(model, live, 0, 3) - steered_logits(model, clean, 0, 3)
        assert gap.abs().max() > 1e-2, element


def test_a_delta_changes_logits_from_the_edited_position_on_and_none_before(
    model: LlamaForCausalLM,
) -> None:
    for element, hidden_site in SITES:
        edits = family(model, element, hidden_site, clean=False).edits
        gap = steered_logits(model, edits, 0, 3) - steered_logits(model, edits, 1, 3)
        assert torch.equal(gap[:3], torch.zeros_like(gap[:3]))
        assert (gap[3:].abs().amax(dim=-1) > 1e-2).all(), element


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("steering", ["dynamic", "fixed"])
def test_an_edit_of_delta_zero_changes_no_logit_bit(
    model: LlamaForCausalLM, clean: bool, steering: Steering
) -> None:
    site = find_site(model, "head")
    difference = torch.randn(site.layers, site.entries, site.entry_width)
    everything = torch.ones(site.layers, site.entries, dtype=torch.bool)
    edits = DiagonalEdits(site, [sadi_edit(everything, difference, 0.0, steering)], clean)
    with torch.no_grad():
        plain = model(torch.tensor([TOKENS])).logits[0]
    assert torch.equal(steered_logits(model, edits, 0, 3), plain)


def test_a_delta_of_minus_one_silences_what_it_selects(model: LlamaForCausalLM) -> None:
    """All attention outputs scaled by 1 + delta = 0: as if the projection gave nothing."""
    site = find_site(model, "head")
    everything = torch.ones(site.layers, site.entries, dtype=torch.bool)
    difference = torch.ones(site.layers, site.entries, site.entry_width)
    edits = DiagonalEdits(site, [sadi_edit(everything, difference, -1.0, "dynamic")], clean=False)
    silent = make_model()
    with torch.no_grad():
        for block in silent.model.layers:
            block.self_attn.o_proj.weight.zero_()
        expected = silent(torch.tensor([TOKENS[:1]])).logits[0, 0]
    torch.testing.assert_close(steered_logits(model, edits, 0, 0)[0], expected)


def test_an_edit_has_the_layers_of_its_mask_only(model: LlamaForCausalLM) -> None:
    site = find_site(model, "neuron")
    gain = torch.zeros(site.layers, site.width)
    gain[1, 7] = 2.0
    shift = torch.zeros_like(gain)
    shift[2, 3] = 1.0
    assert DiagonalEdits(site, [Edit(gain)], clean=False).written_layers == [1]
    assert DiagonalEdits(site, [Edit(gain), Edit(0 * gain, shift)], clean=False).written_layers == [
        1,
        2,
    ]
    assert DiagonalEdits(site, [Edit(gain)], clean=True).written_layers == [0, 1, 2]
    assert DiagonalEdits(site, [Edit(0 * gain)], clean=True).written_layers == []


def one_edit(
    site: Site, layer: int, entry: int, gain: float = 0.0, shift: float | None = None
) -> Edit:
    """An edit of one activation."""
    gains = torch.zeros(site.layers, site.width)
    gains[layer, entry] = gain
    if shift is None:
        return Edit(gains)
    shifts = torch.zeros(site.layers, site.width)
    shifts[layer, entry] = shift
    return Edit(gains, shifts)


def test_edits_know_the_first_layer_that_each_of_them_touches(model: LlamaForCausalLM) -> None:
    site = find_site(model, "neuron")
    two = Edit(one_edit(site, 1, 3, 2.0).gain + one_edit(site, 2, 4, 2.0).gain)
    nothing = Edit(torch.zeros(site.layers, site.width))
    alike = [one_edit(site, 2, 7, 2.0), one_edit(site, 0, 5, shift=1.0), nothing, two]
    for clean in (False, True):
        edits = DiagonalEdits(site, alike, clean)
        assert edits.count == 4
        assert edits.first_layers == [2, 0, 3, 1]
        assert edits.layers == [0, 1, 2]
    none = DiagonalEdits(site, [], False)
    assert (none.count, none.first_layers, none.layers) == (0, [], [])


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 31)), max_size=6),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 31)), max_size=6),
    st.integers(0, 2),
)
@settings(max_examples=60)
def test_every_row_gets_its_own_edit_and_untouched_entries_keep_their_bits(
    scaled: list[tuple[int, int]], shifted: list[tuple[int, int]], layer: int
) -> None:
    site = find_site(make_model(), "hidden")
    generator = torch.Generator().manual_seed(0)
    made = []
    for where_scaled, where_shifted in ((scaled, shifted), (shifted, scaled)):
        gain, shift = torch.zeros(3, 32), torch.zeros(3, 32)
        for places, values in ((where_scaled, gain), (where_shifted, shift)):
            for place in places:
                values[place] = float(torch.randn((), generator=generator))
        made.append(Edit(gain, shift))
    activations = torch.randn(5, 32, generator=generator)
    which = [0, 1, 1, 0, 1]
    found = DiagonalEdits(site, made, False).apply(layer, activations, torch.tensor(which))
    for row, edit in enumerate(which):
        gain, shift = made[edit].gain[layer], made[edit].shift[layer]  # type: ignore[index]
        expected = activations[row] + gain * activations[row] + shift
        torch.testing.assert_close(found[row], expected)
        touched = (gain != 0) | (shift != 0)
        assert torch.equal(found[row][~touched], activations[row][~touched])


def test_the_digest_of_an_edit_says_what_it_does_and_is_that_of_no_other(
    model: LlamaForCausalLM,
) -> None:
    head, neuron = find_site(model, "head"), find_site(model, "neuron")

    def digest(edit: Edit, site: Site = head, clean: bool = False) -> str:
        return DiagonalEdits(site, [edit], clean).digest(0)

    different = [
        digest(one_edit(head, 1, 5, 2.0)),
        digest(one_edit(head, 1, 5, 3.0)),
        digest(one_edit(head, 1, 6, 2.0)),
        digest(one_edit(head, 2, 5, 2.0)),
        digest(one_edit(head, 1, 5, shift=2.0)),
        digest(one_edit(head, 1, 5, 2.0), clean=True),
        digest(one_edit(neuron, 1, 5, 2.0), neuron),
        digest(Edit(one_edit(head, 1, 5, 2.0).gain + one_edit(head, 2, 5, 2.0).gain)),
        digest(Edit(torch.zeros(head.layers, head.width))),
    ]
    assert len(set(different)) == len(different)
    assert digest(one_edit(head, 1, 5, 2.0)) == different[0]
    assert digest(one_edit(head, 1, 5, 2.0, shift=0.0)) == different[0]


def test_the_digest_of_an_edit_does_not_depend_on_the_others(model: LlamaForCausalLM) -> None:
    """So that a response is found in the cache whatever other tasks a run has."""
    site = find_site(model, "head")
    edit, others = one_edit(site, 1, 5, 2.0), [one_edit(site, 1, 3, 1.0), one_edit(site, 2, 4, 1.0)]
    alone = DiagonalEdits(site, [edit], False).digest(0)
    assert DiagonalEdits(site, [others[0], edit], False).digest(1) == alone
    assert DiagonalEdits(site, [*others, edit], False).digest(2) == alone


@pytest.mark.parametrize("steering", ["dynamic", "fixed"])
def test_clean_activations_may_be_given_once_for_several_points(
    model: LlamaForCausalLM, steering: Steering
) -> None:
    """Three points in two rows, two of them with the same unsteered activations."""
    edits = family(model, "neuron", "mlp", True, steering).edits
    cpu = torch.device("cpu")
    trees = [Tree(), Tree()]
    trees[0].add(TOKENS)
    trees[1].add(TOKENS[:4])
    batch = pack(trees, 0, torch.float32, cpu)
    points = Points.of([(0, 3), (0, 6), (1, 3)], 2, cpu)
    forward, which = Forward(model), torch.tensor([0, 2, 2])
    [clean] = forward.activations(batch, points, [edits.reads])
    torch.testing.assert_close(clean[0], clean[2], atol=1e-5, rtol=1e-5)
    expected = forward.logits(batch, points, Steered(edits, points, which))
    of_point = torch.tensor([1, 0, 1])
    given = Steered(edits, points, which, of_point=of_point, unsteered=clean[[1, 0]])
    torch.testing.assert_close(forward.logits(batch, points, given), expected, atol=1e-5, rtol=1e-5)


def test_sadi_edit_scales_a_head_as_a_whole_and_leaves_the_rest() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    difference = torch.arange(12.0).view(2, 2, 3)
    gain = sadi_edit(mask, difference, 9.0, "dynamic").gain
    assert gain.tolist() == [[9, 9, 9, 0, 0, 0], [0, 0, 0, 9, 9, 9]]
    fixed = sadi_edit(mask, difference, 2.0, "fixed")
    assert not fixed.gain.any()
    assert fixed.shift is not None
    assert fixed.shift.tolist() == [[0, 2, 4, 0, 0, 0], [0, 0, 0, 18, 20, 22]]


SCORES = torch.tensor([[0.5, -3.0, 2.0], [2.0, -0.1, 1.0]])


@pytest.mark.parametrize(
    ("selection", "top_k", "ones"),
    [
        ("top", 1, [(0, 2)]),
        ("top", 2, [(0, 2), (1, 0)]),
        ("top", 3, [(0, 2), (1, 0), (1, 2)]),
        ("top_abs", 1, [(0, 1)]),
        ("top_abs", 2, [(0, 1), (0, 2)]),
        ("bottom", 2, [(0, 1), (1, 1)]),
        ("bottom", 6, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
    ],
)
def test_the_mask_takes_the_k_entries_that_its_selection_names(
    selection: str, top_k: int, ones: list[tuple[int, int]]
) -> None:
    mask = binary_mask(SCORES, top_k, selection, seed=0)  # type: ignore[arg-type]
    assert mask.shape == SCORES.shape
    assert [tuple(one) for one in mask.nonzero().tolist()] == ones


@pytest.mark.parametrize("selection", ["top", "top_abs", "bottom", "random"])
@pytest.mark.parametrize("top_k", [1, 2, 17, 59, 60])
def test_the_mask_has_k_ones_over_all_layers_together(selection: str, top_k: int) -> None:
    scores = torch.randn(4, 15, generator=torch.Generator().manual_seed(0))
    mask = binary_mask(scores, top_k, selection, seed=1)  # type: ignore[arg-type]
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == top_k


@pytest.mark.parametrize("selection", ["top", "top_abs", "bottom"])
def test_every_selected_score_is_at_least_as_extreme_as_every_other(selection: str) -> None:
    scores = torch.randn(4, 15, generator=torch.Generator().manual_seed(0))
    mask = binary_mask(scores, 9, selection, seed=0)  # type: ignore[arg-type]
    key = {"top": scores, "top_abs": scores.abs(), "bottom": -scores}[selection]
    assert key[mask].min() >= key[~mask].max()


@pytest.mark.parametrize("selection", ["top", "top_abs", "bottom"])
def test_of_equal_scores_the_earlier_layer_and_entry_wins(selection: str) -> None:
    mask = binary_mask(torch.zeros(3, 700), 702, selection, seed=0)  # type: ignore[arg-type]
    assert mask.flatten().tolist() == [True] * 702 + [False] * (2100 - 702)


def test_a_random_mask_follows_from_its_seed_alone() -> None:
    one = binary_mask(SCORES.repeat(4, 4), 10, "random", seed=7)
    torch.rand(5)
    other_scores = torch.zeros(8, 12)
    assert torch.equal(one, binary_mask(other_scores, 10, "random", seed=7))
    assert not torch.equal(one, binary_mask(other_scores, 10, "random", seed=8))


def test_a_random_mask_leaves_the_generator_of_torch_alone() -> None:
    before = torch.get_rng_state()
    binary_mask(SCORES, 2, "random", seed=7)
    assert torch.equal(before, torch.get_rng_state())
