"""What is AUSteer's own: signs that are counted, and single dimensions that are scaled.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.equations.austeer import EQUATIONS
from helpers.equations.contract import HEAD_DIM, HEADS, LAYERS, WIDTH
from helpers.models import tiny_llama
from helpers.results import masks_of
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.austeer import AUSteer, SignCounts, signed_consistency
from sadi_lmeval.processes import Processes
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, ranked

PAIRS: list[list[list[float]]] = [
    # positive less negative, of two layers of three dimensions
    [[1.0, -0.5, 0.0], [2.0, -1.0, 0.1]],
    [[0.2, -0.1, 1.0], [1.0, -3.0, -0.1]],
    [[3.0, -2.0, -1.0], [0.5, -1.0, 0.2]],
    [[0.1, 4.0, 2.0], [1.0, -0.2, -0.2]],
    [[-1.0, -1.0, -2.0], [1.0, -5.0, 0.0]],
]
"""Up: 4 1 2, 5 0 2; down: 1 4 2, 0 5 2. The last dimension of each layer has an exact zero and as
many rising as falling pairs, the first two of layer 0 tie, and the first two of layer 1."""
CONSISTENCY = [[0.8, -0.8, 0.4], [1.0, -1.0, 0.4]]
"""s · r: where as many rise as fall, s is +1."""


@pytest.fixture(scope="module")
def small() -> Site:
    """Two layers of three dimensions, of one entry each."""
    site = find_site(tiny_llama(40), "hidden", "residual")
    return site._replace(modules=site.modules[:2], among=(0, 1), entries=3)


def counted(
    site: Site, differences: Tensor, dtype: torch.dtype = torch.float32, seed: int = 0
) -> SignCounts:
    """Pairs whose sides differ so, each side at its own time, in any order."""
    pairs = len(differences)
    collector = SignCounts(site, pairs)
    base = torch.zeros_like(differences)
    order = torch.randperm(2 * pairs, generator=torch.Generator().manual_seed(seed)).tolist()
    values = torch.cat([base + differences, base]).to(dtype)
    for at in order:
        collector.add([at % pairs], [1 if at < pairs else -1], values[[at]])
    return collector


@pytest.mark.quick
@pytest.mark.parametrize("seed", range(4))
def test_signs_are_counted_whichever_side_comes_first(small: Site, seed: int) -> None:
    found = counted(small, torch.tensor(PAIRS), seed=seed).tensors("test")
    assert found["up"].flatten(1).tolist() == [[4, 1, 2], [5, 0, 2]]
    assert found["down"].flatten(1).tolist() == [[1, 4, 2], [0, 5, 2]]
    consistency = signed_consistency(found).flatten(1)
    torch.testing.assert_close(consistency, torch.tensor(CONSISTENCY))
    assert all(tensor.dtype == torch.float32 for tensor in found.values())


@pytest.mark.quick
def test_of_equally_consistent_dimensions_the_earlier_layer_and_dimension_goes_first(
    small: Site,
) -> None:
    tensors = counted(small, torch.tensor(PAIRS)).tensors("test")
    order = [(1, 0), (1, 1), (0, 0), (0, 1), (0, 2), (1, 2)]
    rows = torch.tensor([[2.0, 3.0, -4.0], [0.5, 0.25, 1.0]])
    for alpha in (10.0, -2.5):
        for top_k in range(1, 7):
            setting = Setting(top_k, alpha)
            selected = AUSteer().selected(tensors, setting, 0)
            chosen = {tuple(place) for place in selected.nonzero().tolist()}
            assert chosen == set(order[:top_k])
            edits = AUSteer().edits(small, tensors, [setting], 0)
            for layer in range(2):
                found = edits.apply(layer, rows, torch.zeros(2, dtype=torch.long))
                for row, after in zip(rows.tolist(), found.tolist(), strict=True):
                    for dimension in range(3):
                        gamma = alpha * CONSISTENCY[layer][dimension]
                        gamma *= (layer, dimension) in chosen
                        expected = row[dimension] * (1 + gamma)
                        assert after[dimension] == pytest.approx(expected, rel=1e-6)


@pytest.mark.quick
def test_how_many_tie_with_the_last_and_stand_outside_is_counted(small: Site) -> None:
    tensors = counted(small, torch.tensor(PAIRS)).tensors("test")
    assert [AUSteer().tied(tensors, Setting(k, 1.0)) for k in range(1, 7)] == [1, 0, 1, 0, 1, 0]
    assert AUSteer().tied(tensors, Setting(0, 0.0)) == 0


@pytest.mark.quick
def test_a_dimension_in_which_no_pair_differs_is_not_edited(small: Site) -> None:
    differences = torch.tensor(PAIRS)
    differences[:, 0] = 0
    differences[:, 1, 2] = 0
    tensors = counted(small, differences).tensors("test")
    setting = Setting(6, 5.0)
    assert AUSteer().selected(tensors, setting, 0).nonzero().tolist() == [[1, 0], [1, 1]]
    edits = AUSteer().edits(small, tensors, [setting], 0)
    assert edits.layers == [1]
    nothing = counted(small, torch.zeros(5, 2, 3)).tensors("test")
    edits = AUSteer().edits(small, nothing, [setting], 0)
    assert edits.layers == []
    assert edits.first_layers == [2]
    assert not AUSteer().selected(nothing, setting, 0).any()


@pytest.mark.quick
def test_swapped_sides_turn_every_sign_that_is_not_a_tie_and_a_scale_none(small: Site) -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(9, 2, 3, generator=generator)  # an odd number: no ties
    one = signed_consistency(counted(small, differences).tensors("test"))
    swapped = signed_consistency(counted(small, -differences).tensors("test"))
    scaled = signed_consistency(counted(small, 7.5 * differences).tensors("test"))
    assert torch.equal(swapped, -one)
    assert torch.equal(scaled, one)


@pytest.mark.quick
def test_what_the_model_s_type_rounds_to_one_value_counts_for_neither(small: Site) -> None:
    near = torch.tensor([1e-3, -1e-3, 0.1]).expand(4, 2, 3)
    collector = SignCounts(small, 4)
    one = torch.ones(4, 2, 3)
    for sign, values in ((1, one + near), (-1, one)):
        collector.add([*range(4)], [sign] * 4, values.bfloat16())
    found = collector.tensors("test")
    assert found["up"].flatten(1).tolist() == [[0, 0, 4]] * 2
    assert not found["down"].any()


@pytest.mark.quick
def test_the_counts_of_several_processes_are_those_of_one(small: Site) -> None:
    differences = torch.tensor(PAIRS)
    whole = counted(small, differences).tensors("test")
    parts = [SignCounts(small, 5), SignCounts(small, 5)]
    for index, each in enumerate(differences):
        part = parts[index % 2]
        part.add([index, index], [1, -1], torch.stack([each, torch.zeros_like(each)]))
    others = iter([parts[1].up, parts[1].down, parts[1].not_finite])

    class WithTheOther(Processes):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor + next(others)

    parts[0].join(WithTheOther())
    joined = parts[0].tensors("test")
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)


@pytest.mark.quick
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_pairs_that_are_not_finite_and_a_single_pair_are_refused(small: Site, value: float) -> None:
    differences = torch.tensor(PAIRS)
    differences[2, 1, 0] = value
    with pytest.raises(UserError, match=r"1 of 5 pairs .* not finite .*dtype=bfloat16 or float32"):
        counted(small, differences).tensors("test")
    with pytest.raises(UserError, match="at least 2 contrastive pairs, not 1"):
        counted(small, torch.tensor(PAIRS[:1])).tensors("test")


@pytest.mark.quick
def test_the_grid_goes_as_far_as_the_model_s_dimensions() -> None:
    site = find_site(tiny_llama(40), "head", "mlp")
    assert (site.entries, site.entry_width) == (HEADS, HEAD_DIM)
    values = AUSteer().search_space(site.size).values
    assert values[0] == (1, 2, 4, 8, 16, 32, 64)  # of 96; 100 are more than there are
    assert values[1] == (2, 5, 8, 10, 15, 20, 50, 100)
    assert len(AUSteer().search_space(None).settings) == 64
    assert LAYERS * WIDTH == 96


@pytest.mark.quick
def test_of_equal_settings_that_of_the_least_gain_is_taken(small: Site) -> None:
    tensors = counted(small, torch.tensor(PAIRS)).tensors("test")
    by_r = [1.0, 1.0, 0.8, 0.8, 0.4, 0.4]
    for alpha in (10.0, -2.5, 0.0):
        for top_k in range(7):
            setting = Setting(top_k, alpha)
            gain = sum(abs(alpha) * r for r in by_r[:top_k])
            assert AUSteer().edit_size(setting, tensors) == pytest.approx(gain, rel=1e-6)

    def chosen(*settings: tuple[int, float]) -> Setting:
        """Of equally good ones."""
        outcomes = [Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings]
        size = partial(AUSteer().edit_size, tensors=tensors)
        return outcomes[ranked(outcomes, size)[0]].setting

    # |alpha| · K says 6 of both of the first, and 10 against 9 of the others.
    assert chosen((2, 3.0), (6, 1.0)) == (6, 1.0)
    assert chosen((6, 1.0), (2, 2.1)) == (2, 2.1)
    assert chosen((3, 3.0), (5, 2.0)) == (5, 2.0)


def test_more_dimensions_than_there_are_are_refused_and_the_selected_ones_recorded(
    evaluate: Any,
) -> None:
    given = {**EQUATIONS.given, "top_k": 96}
    [mask] = masks_of(evaluate("tiny_choice", model="hf-austeer", limit=1, **given), "tiny_choice")
    every = [[n, h, d] for n in range(LAYERS) for h in range(HEADS) for d in range(HEAD_DIM)]
    assert mask["selected"] == every
    assert mask["tied"] == 0
    with pytest.raises(UserError, match=r"top_k=97: this model has 96 activations of element head"):
        evaluate("tiny_choice", model="hf-austeer", **{**given, "top_k": 97})
