"""What is spherical steering's own: the rotation, its gate, and the fit that it shares with CAA.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.equations.spherical import EQUATIONS, turned
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.spherical import Spherical
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, ranked
from sadi_lmeval.types import Size

WIDTH = 32
quick = pytest.mark.quick


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


@pytest.fixture(scope="module")
def difference() -> Tensor:
    return torch.randn(3, WIDTH, 1, generator=torch.Generator().manual_seed(0))


def edits_of(
    site: Site, difference: Tensor, *settings: tuple[float, float, float], **arguments: Any
) -> DirectionEdits:
    """Of settings (layer, alpha, beta)."""
    method = Spherical(**arguments)
    return method.edits(site, {"difference": difference}, [Setting(*s) for s in settings], 0)


def apply(edits: DirectionEdits, rows: Tensor, edit: int = 0, layer: int = 1) -> Tensor:
    return edits.apply(layer, rows, torch.full((len(rows),), edit))


def mu_of(difference: Tensor, layer: int = 1) -> Tensor:
    d = difference[layer].flatten().double()
    mu: Tensor = d / d.norm()
    return mu


def at_angle(mu: Tensor, degrees: float, norm: float, seed: int = 1) -> Tensor:
    """A row at an angle to μ, ``[width]``."""
    other = torch.randn(len(mu), generator=torch.Generator().manual_seed(seed)).double()
    other = other - (other @ mu) * mu
    angle = math.radians(degrees)
    row: Tensor = math.cos(angle) * mu + math.sin(angle) * other / other.norm()
    return (norm * row).float()


def angles(rows: Tensor, mu: Tensor) -> Tensor:
    """In degrees, ``[n]``."""
    cosines = rows.double() @ mu / rows.double().norm(dim=-1)
    return torch.rad2deg(cosines.clamp(-1, 1).acos())


# ------------------------------------------------------------------ the rotation


@quick
def test_a_right_angle_becomes_three_quarters_of_it(site: Site) -> None:
    """By hand: cos = 0, so Δ = 0, and t = 0.5 · (0 + 1) / 2."""
    difference, row = torch.zeros(3, WIDTH, 1), torch.zeros(1, WIDTH)
    difference[1, 0], row[0, 1] = 5.0, 2.0
    found = apply(edits_of(site, difference, (1, 0.5, -1)), row)[0]
    expected = torch.zeros(WIDTH)
    expected[0], expected[1] = 2 * math.cos(math.radians(67.5)), 2 * math.sin(math.radians(67.5))
    torch.testing.assert_close(found, expected)


@quick
@pytest.mark.parametrize("towards", ["positive", "negative"])
@pytest.mark.parametrize("gate", ["on", "off"])
@pytest.mark.parametrize("beta", [-1.0, -0.15, 0.4])
def test_a_row_is_turned_in_its_plane_by_its_part_of_the_angle_and_keeps_its_norm(
    site: Site, difference: Tensor, beta: float, gate: str, towards: str
) -> None:
    """And not by a bit where the gate is shut, which is half of all rows or less."""
    alpha, kappa = 0.7, 4.0
    mu = mu_of(difference) * (1 if towards == "positive" else -1)
    rows = 7 * torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3))
    given = {"kappa": kappa, "gate": gate, "towards": towards}
    after = apply(edits_of(site, difference, (1, alpha, beta), **given), rows)
    cosines = rows.double() @ mu / rows.double().norm(dim=-1)
    disagreement = -torch.tanh(kappa * cosines)
    part = alpha * ((disagreement - beta) / (1 - beta)).clamp(min=0)
    if gate == "off":
        part = torch.full_like(part, alpha)
    shut = part == 0
    assert shut.any() == (gate == "on" and beta > -1)
    assert not shut.all()
    assert torch.equal(after[shut], rows[shut])
    assert (after[~shut] != rows[~shut]).any(dim=-1).all()
    torch.testing.assert_close(after.norm(dim=-1), rows.norm(dim=-1), atol=1e-4, rtol=1e-6)
    expected = (1 - part) * angles(rows, mu)
    torch.testing.assert_close(angles(after, mu), expected, atol=1e-3, rtol=1e-5)
    for row, found in zip(rows.double(), after.double(), strict=True):
        e = row - (row @ mu) * mu
        e = e / e.norm()
        in_plane = (found @ mu) * mu + (found @ e) * e
        torch.testing.assert_close(found, in_plane, atol=1e-4, rtol=1e-5)
        assert found @ e >= 0


@quick
@pytest.mark.parametrize("degrees", [0.5, 5, 60, 90, 130, 175, 179.5])
def test_every_angle_is_turned_as_in_double_precision(
    site: Site, difference: Tensor, degrees: float
) -> None:
    mu = mu_of(difference)
    row = at_angle(mu, degrees, norm=9.0)
    for alpha, beta, gate in ((0.9, -1.0, "on"), (1.0, 0.4, "on"), (0.3, -1.0, "off")):
        given = {"alpha": alpha, "beta": beta, "kappa": 2.0, "gate": gate}
        expected = turned(row.double(), mu, given).float()
        found = apply(
            edits_of(site, difference, (1, alpha, beta), kappa=2.0, gate=gate), row[None]
        )[0]
        # A cosine of float32 near 1 says the sine to one part in sin² / 1e-7.
        near = math.sin(math.radians(degrees)) ** 2
        bound = max(1e-5, 2e-7 / near)
        torch.testing.assert_close(found, expected, atol=9 * bound, rtol=bound)


@quick
def test_a_gate_that_is_saturated_turns_by_alpha_or_not_at_all(
    site: Site, difference: Tensor
) -> None:
    mu = mu_of(difference)
    rows = torch.stack([at_angle(mu, degrees, 3.0) for degrees in (150, 30)])
    cosines = (rows @ mu.float()) / 3
    assert torch.tanh(100 * cosines).tolist() == [-1, 1]
    for beta in (-1.0, -0.15, 0.99):
        after = apply(edits_of(site, difference, (1, 0.8, beta), kappa=100.0), rows)
        assert float(angles(after, mu)[0]) == pytest.approx(30, abs=1e-3)
        assert torch.equal(after[1], rows[1])
    whole = apply(edits_of(site, difference, (1, 1.0, 0.0), kappa=100.0), rows)
    torch.testing.assert_close(whole[0], (3 * mu).float(), atol=1e-5, rtol=1e-5)


@quick
def test_a_row_just_at_the_threshold_is_left_alone(site: Site) -> None:
    """Exactly orthogonal to μ, so that Δ is exactly 0."""
    difference, row = torch.zeros(3, WIDTH, 1), torch.zeros(1, WIDTH)
    difference[1, :2, 0], row[0, 2:5] = torch.tensor([3.0, -1.0]), 2.0
    edits = edits_of(site, difference, (1, 0.9, 0.0), (1, 0.9, -0.001))
    assert torch.equal(apply(edits, row), row)
    assert not torch.equal(apply(edits, row, 1), row)


@quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", ["on", "off"])
def test_what_has_no_angle_keeps_every_bit_beside_rows_that_turn(
    site: Site, gate: str, dtype: torch.dtype
) -> None:
    """Along μ and against it, nothing, next to nothing, too large, and not finite."""
    difference, mu = torch.zeros(3, WIDTH, 1), torch.zeros(WIDTH)
    difference[1, 3], mu[3] = -2.0, -1.0
    turns = at_angle(mu.double(), 100, 4.0).to(dtype)
    still = torch.zeros(7, WIDTH)
    still[:, ::2] = -0.0
    still[0, 3], still[1, 3] = -5.0, 5.0
    still[3, 1] = 1e-13
    still[4], still[5, 1], still[6, 1] = 1e30, torch.inf, torch.nan
    rows = torch.cat([turns[None], still.to(dtype), turns[None]])
    after = apply(edits_of(site, difference, (1, 0.9, -1), gate=gate), rows)
    assert after.dtype == dtype
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(after[1:-1].view(bits), rows[1:-1].view(bits))
    alone = apply(edits_of(site, difference, (1, 0.9, -1), gate=gate), turns[None])
    torch.testing.assert_close(after[0], alone[0])
    torch.testing.assert_close(after[-1], alone[0])
    assert float(angles(alone.float(), mu.double())) < 60


@quick
def test_in_bfloat16_it_is_rounded_once(site: Site, difference: Tensor) -> None:
    rows = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(4)).bfloat16()
    edits = edits_of(site, difference, (1, 0.7, -0.4))
    after = apply(edits, rows)
    assert torch.equal(after, apply(edits, rows.float()).bfloat16())
    assert not torch.equal(after, rows)


@quick
def test_the_negative_prototype_is_that_of_swapped_sides(site: Site, difference: Tensor) -> None:
    rows = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(4))
    away = edits_of(site, difference, (1, 0.7, -0.4), towards="negative")
    swapped = edits_of(site, -difference, (1, 0.7, -0.4))
    assert torch.equal(apply(away, rows), apply(swapped, rows))
    assert away.digest(0) == swapped.digest(0)


@quick
def test_the_length_of_the_difference_does_not_matter(site: Site, difference: Tensor) -> None:
    rows = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(4))
    long, short = (edits_of(site, s * difference, (1, 0.7, -0.4)) for s in (1024, 2**-10))
    assert torch.equal(apply(long, rows), apply(short, rows))


@quick
def test_a_layer_whose_sides_do_not_differ_is_not_edited(site: Site, difference: Tensor) -> None:
    flat = difference.clone()
    flat[1] = 0
    edits = edits_of(site, flat, (1, 0.7, -1), (0, 0.7, -1), (2, 0.0, -1))
    assert edits.first_layers == [3, 0, 3]
    assert edits.layers == [0]
    rows = torch.randn(4, WIDTH)
    assert apply(edits, rows) is rows


# ------------------------------------------------------------------ settings


@quick
@pytest.mark.parametrize(
    ("layers", "tried"),
    [
        (1, [0]),
        (16, range(16)),
        (28, range(0, 28, 2)),
        (32, range(0, 32, 2)),
        (80, range(0, 80, 5)),
    ],
)
def test_of_deep_models_layers_are_tried_evenly(layers: int, tried: Any) -> None:
    space = Spherical().search_space(Size(layers, 4096, 4096))
    assert space.values == (
        tuple(tried),
        (0.3, 0.5, 0.7, 0.9),
        (-1.0, -0.4, -0.15, 0.1, 0.4),
    )
    assert len(space.settings) <= 16 * 20
    ungated = Spherical(gate="off").search_space(Size(layers, 4096, 4096))
    assert len(ungated.settings) == len(tried) * 4


@quick
def test_of_equal_settings_the_one_that_turns_less_is_taken() -> None:
    def chosen(method: Spherical, *settings: tuple[int, float, float]) -> Setting:
        """Of equally good ones."""
        outcomes = [Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings]
        return outcomes[ranked(outcomes, partial(method.edit_size, tensors={}))[0]].setting

    assert chosen(Spherical(), (0, 0.7, -0.4), (2, 0.5, -0.4)) == (2, 0.5, -0.4)
    assert chosen(Spherical(), (0, 0.7, -0.4), (2, 0.7, 0.1)) == (2, 0.7, 0.1)
    assert chosen(Spherical(), (0, 0.5, -1), (2, 0.7, 0.4)) == (2, 0.7, 0.4)
    assert chosen(Spherical(gate="off"), (0, 0.5, -1), (2, 0.7, 0.4)) == (0, 0.5, -1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 1.5}, "alpha=1.5: must be a finite number of at least 0 and of at most 1"),
        ({"alpha": -0.5}, "alpha=-0.5: must be a finite number of at least 0"),
        ({"beta": 1}, "beta=1: must be a finite number of at least -1 and of at most 0.99"),
        ({"kappa": -1}, "kappa=-1: must be a number of at least 0"),
        ({"gate": "shut"}, "gate=shut: allowed: off, on"),
        ({"towards": "true"}, "towards=true: allowed: negative, positive"),
        ({"layer": 3}, "layer=3: this model has layers 0 to 2"),
    ],
)
def test_what_is_not_defined_is_refused(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError, match=words) as caught:
        evaluate("tiny_choice", model="hf-spherical", **{**EQUATIONS.given, **arguments})
    one_line(caught)


# ------------------------------------------------------------------ the fit


def test_caa_and_it_share_a_fit(evaluate: Any, capfd: pytest.CaptureFixture[str]) -> None:
    given = EQUATIONS.given
    evaluate("tiny_choice", model="hf-caa", layer=1, multiplier=1, n_pairs=12, limit=2)
    assert "Pairs of" in capfd.readouterr().err
    for arguments in ({}, {"gate": "off", "towards": "negative", "kappa": 3, "scope": "prompt"}):
        results = evaluate("tiny_choice", model="hf-spherical", limit=2, **given, **arguments)
        assert "Pairs of" not in capfd.readouterr().err
    [mask] = masks_of(results, "tiny_choice")
    again = evaluate("tiny_choice", model="hf-caa", layer=1, multiplier=1, n_pairs=12, limit=2)
    [of_caa] = masks_of(again, "tiny_choice")
    assert mask["file"] == of_caa["file"]
