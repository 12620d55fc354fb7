"""Clamping and directional ablation: hand-made directions, and what is at their edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.clamping import Clamping, SideMeans
from sadi_lmeval.settings import Setting

pytestmark = pytest.mark.quick

LAYERS, WIDTH = 3, 32


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


def means(directions: dict[int, int], lengths: float = 2.0) -> dict[str, Tensor]:
    """Positive texts lie ``lengths`` further along one axis of a layer than negative ones, at 5."""
    positive, negative = torch.zeros(LAYERS, WIDTH), torch.zeros(LAYERS, WIDTH)
    for layer, axis in directions.items():
        positive[layer, axis], negative[layer, axis] = 5.0, 5.0 - lengths
    shape = (LAYERS, WIDTH, 1)
    return {"positive": positive.view(shape), "negative": negative.view(shape)}


def made(site: Site, method: Clamping, tensors: dict[str, Tensor], *settings: Setting) -> Tensor:
    """What becomes of a row of ones in each layer, ``[settings, layers, width]``."""
    edits = method.edits(site, tensors, settings, 0)
    rows = torch.ones(len(settings), WIDTH)
    which = torch.arange(len(settings))
    return torch.stack([edits.apply(layer, rows, which) for layer in range(LAYERS)], dim=1)


def ones_but(**changes: float) -> Tensor:
    """Ones ``[layers, width]``, but for places as ``l1_a4=0``."""
    wanted = torch.ones(LAYERS, WIDTH)
    for place, value in changes.items():
        layer, axis = place.split("_")
        wanted[int(layer[1:]), int(axis[1:])] = value
    return wanted


AXES = {0: 3, 1: 4, 2: 5}


@pytest.mark.parametrize(
    ("arguments", "setting", "wanted"),
    [
        ({"to": "zero"}, Setting(1, 1.0), ones_but(l1_a4=0)),
        ({"to": "zero"}, Setting(1, 0.25), ones_but(l1_a4=0.75)),
        ({}, Setting(1, 1.0), ones_but(l1_a4=5)),
        ({}, Setting(2, 0.5), ones_but(l2_a5=3)),
        ({"to": "zero", "blocks": "all"}, Setting(2, 1.0), ones_but(l0_a5=0, l1_a5=0, l2_a5=0)),
        # In the other blocks the positive texts have nothing along that direction.
        ({"blocks": "all"}, Setting(2, 1.0), ones_but(l0_a5=0, l1_a5=0, l2_a5=5)),
    ],
)
def test_what_lies_along_the_direction_goes_a_share_of_the_way(
    site: Site, arguments: dict[str, str], setting: Setting, wanted: Tensor
) -> None:
    method = Clamping(**arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(made(site, method, means(AXES), setting)[0], wanted)


@pytest.mark.parametrize("to", ["zero", "positive"])
@pytest.mark.parametrize("blocks", ["one", "all"])
def test_a_second_time_changes_nothing_and_what_is_orthogonal_stays(
    site: Site, to: str, blocks: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {side: torch.randn(LAYERS, WIDTH, 1, generator=generator)
               for side in ("positive", "negative")}  # fmt: skip
    edits = Clamping(to=to, blocks=blocks).edits(site, tensors, [Setting(1, 1.0)], 0)  # type: ignore[arg-type]
    rows = torch.randn(9, WIDTH, generator=generator)
    which = torch.zeros(9, dtype=torch.long)
    u = torch.nn.functional.normalize((tensors["positive"] - tensors["negative"])[1, :, 0], dim=0)
    for layer in edits.layers:
        once = edits.apply(layer, rows, which)
        torch.testing.assert_close(edits.apply(layer, once, which), once, atol=1e-5, rtol=1e-5)
        target = 0.0 if to == "zero" else float(tensors["positive"][layer, :, 0] @ u)
        torch.testing.assert_close(once @ u, torch.full((9,), target), atol=1e-5, rtol=1e-5)
        across = once - (once @ u)[:, None] * u
        torch.testing.assert_close(across, rows - (rows @ u)[:, None] * u, atol=1e-5, rtol=1e-5)
    assert edits.layers == ([1] if blocks == "one" else [0, 1, 2])


@pytest.mark.parametrize("blocks", ["one", "all"])
def test_a_zero_vector_edits_nothing(site: Site, blocks: str) -> None:
    method = Clamping(blocks=blocks)  # type: ignore[arg-type]
    edits = method.edits(site, means({0: 3, 2: 5}), [Setting(1, 1.0), Setting(0, 1.0)], 0)
    assert edits.first_layers == [LAYERS, 0]
    rows = torch.randn(4, WIDTH)
    for layer in range(LAYERS):
        assert torch.equal(edits.apply(layer, rows, torch.zeros(4, dtype=torch.long)), rows)


@pytest.mark.parametrize("blocks", ["one", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_odd_stay_odd_alone(site: Site, dtype: torch.dtype, blocks: str) -> None:
    method = Clamping(to="zero", blocks=blocks)  # type: ignore[arg-type]
    edits = method.edits(site, means(AXES), [Setting(0, 1.0)], 0)
    rows = torch.ones(5, WIDTH, dtype=dtype)
    rows[1, 7], rows[2, 7], rows[3] = torch.nan, torch.inf, 0
    rows[4] *= 1e30
    after = edits.apply(0, rows, torch.zeros(5, dtype=torch.long))
    assert after.dtype == dtype
    assert after[[0, 3, 4]].isfinite().all()
    assert not after[1].isfinite().all()
    assert not after[2].isfinite().all()
    assert torch.equal(after[3], torch.zeros(WIDTH, dtype=dtype))
    assert after[0, 3] == after[4, 3] == 0


def test_the_direction_of_all_layers_is_held_once(site: Site) -> None:
    """However many settings there are."""
    settings = [Setting(layer, 0.5) for layer in range(LAYERS)]
    edits = Clamping(blocks="all").edits(site, means(AXES), settings, 0)
    assert isinstance(edits, DirectionEdits)
    assert edits.count == LAYERS
    assert len({each["read"].data_ptr() for each in edits._tensors.values()}) == 1


def test_side_means_are_those_of_either_side(site: Site) -> None:
    values = torch.randn(8, LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))
    collector = SideMeans(site, 4)
    collector.add([0, 1, 0, 1], [1, 1, -1, -1], values[:4])
    collector.add([2, 3, 2, 3], [1, -1, -1, 1], values[4:])
    found = collector.tensors("test")
    positive, negative = values[[0, 1, 4, 7]].mean(dim=0), values[[2, 3, 5, 6]].mean(dim=0)
    torch.testing.assert_close(found["positive"].flatten(1), positive)
    torch.testing.assert_close(found["negative"].flatten(1), negative)


def test_activations_that_are_not_finite_make_no_fit(site: Site) -> None:
    collector = SideMeans(site, 1)
    values = torch.ones(2, LAYERS, WIDTH)
    values[1, 2, 3] = torch.inf
    collector.add([0, 0], [1, -1], values)
    with pytest.raises(UserError, match=f"not finite at 1 of {2 * LAYERS * WIDTH} places"):
        collector.tensors("test")
