"""What is ODESteer's own: the classifier in the kernel's space, its field, and the way along it.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.odesteer import EQUATIONS, classifiers_of, products, slope, way
from helpers.messages import one_line
from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.field import FieldEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.odesteer import (
    COEF0,
    GAMMA,
    ODESteer,
    classifiers,
    field,
    fit_classifier,
    follow,
)
from sadi_lmeval.settings import Setting
from sadi_lmeval.types import Size

quick = pytest.mark.quick
LAYERS, WIDTH, PAIRS = 3, 32, 8


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


def sides(width: int = WIDTH, pairs: int = PAIRS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations of both sides that lie apart and overlap, ``[pairs, layers, width, 1]``."""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(2, pairs, LAYERS, width, 1, generator=generator)
    apart = torch.randn(LAYERS, width, 1, generator=generator)
    return values[0] + apart, values[1] - apart


def states(count: int, width: int = WIDTH) -> Tensor:
    return 5 * torch.randn(count, width, generator=torch.Generator().manual_seed(7))


def edits_of(
    site: Site, *settings: tuple[float, float], fit: dict[str, Tensor] | None = None, **given: Any
) -> FieldEdits:
    """Of settings (layer, tau)."""
    fit = fit or classifiers(*sides(), "test")
    return ODESteer(**given).edits(site, fit, [Setting(*s) for s in settings], 0)


def apply(edits: FieldEdits, rows: Tensor, edit: int = 0, layer: int = 1) -> Tensor:
    return edits.apply(layer, rows, torch.full((len(rows),), edit))


def logit(fit: dict[str, Tensor], x: Tensor, layer: int = 1) -> Tensor:
    """f but for the intercept, ``[n]`` float64."""
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    kernel = (GAMMA * unit @ fit["rows"][layer].double().T + COEF0) ** 2
    found: Tensor = kernel @ fit["dual"][layer].double()
    return found


# ------------------------------------------------------------------ the classifier


@quick
@pytest.mark.parametrize("pairs", [1, 2, 20])
@pytest.mark.parametrize("width", [4, 32])
def test_the_dual_weights_are_those_of_a_regression_on_the_products(width: int, pairs: int) -> None:
    """With more products than texts and with fewer."""
    positive, negative = sides(width, pairs)
    fit = classifiers(positive, negative, "test")
    assert [tuple(fit[name].shape) for name in ("rows", "dual", "mean_norm")] == [
        (LAYERS, 2 * pairs, width),
        (LAYERS, 2 * pairs),
        (LAYERS,),
    ]
    known = classifiers_of(positive.flatten(2).double(), negative.flatten(2).double(), {})
    for layer, one in enumerate(known):
        weights = fit["dual"][layer].double() @ products(fit["rows"][layer].double())
        torch.testing.assert_close(weights, one.weights, atol=1e-6, rtol=1e-5)
        assert float(fit["mean_norm"][layer]) == pytest.approx(one.mean_norm, rel=1e-6)
    every = torch.cat([positive, negative]).flatten(2)
    torch.testing.assert_close(
        fit["rows"] * every.norm(dim=-1).T.unsqueeze(-1), every.transpose(0, 1)
    )


@quick
def test_a_dual_weight_is_how_far_its_text_is_from_its_label() -> None:
    """That is what a minimum with a ridge of C = 1 means; no solver is asked."""
    rows = classifiers(*sides(), "test")["rows"][1].double().numpy()
    labels = np.repeat([1, 0], PAIRS)
    found = fit_classifier(rows, labels)
    kernel = (GAMMA * rows @ rows.T + COEF0) ** 2
    assert np.linalg.matrix_rank(kernel) == len(rows)
    intercept = np.linspace(-2, 2, 40001)
    balance = (1 / (1 + np.exp(-(kernel @ found)[:, None] - intercept)) - labels[:, None]).sum(0)
    c = intercept[np.abs(balance).argmin()]
    missing = labels - 1 / (1 + np.exp(-(kernel @ found) - c))
    assert found == pytest.approx(missing, abs=1e-4)


@quick
def test_swapped_sides_have_the_opposite_weights() -> None:
    positive, negative = sides()
    one, other = classifiers(positive, negative, "test"), classifiers(negative, positive, "test")
    swapped = other["dual"].roll(PAIRS, dims=1)
    torch.testing.assert_close(one["dual"], -swapped, atol=1e-6, rtol=1e-5)


@quick
def test_texts_that_are_measured_twice_are_no_difficulty() -> None:
    positive, negative = sides()
    twice = classifiers(positive.repeat(2, 1, 1, 1), negative.repeat(2, 1, 1, 1), "test")
    for layer in range(LAYERS):
        rows = twice["rows"][layer].double()
        weights = twice["dual"][layer].double() @ products(rows)
        fitted = LogisticRegression(C=1, tol=1e-9, max_iter=10_000)
        fitted.fit(products(rows).numpy(), np.repeat([1, 0], 2 * PAIRS))
        assert weights.numpy() == pytest.approx(fitted.coef_[0], abs=1e-6)


# ------------------------------------------------------------------ the field


@quick
def test_the_field_is_the_normalised_gradient_of_the_products_regression() -> None:
    """By automatic differentiation, in double precision."""
    for width in (4, 32):
        fit, x = classifiers(*sides(width), "test"), states(20, width)
        rows, dual = fit["rows"][1], fit["dual"][1]
        weights = dual.double() @ products(rows.double())
        rising = slope(weights, x.double())
        expected = rising / rising.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(field(rows, dual, x), expected.float(), atol=1e-5, rtol=1e-4)


@quick
def test_the_field_is_of_length_1_and_at_right_angles_to_the_state() -> None:
    fit, x = classifiers(*sides(), "test"), states(50)
    v = field(fit["rows"][1], fit["dual"][1], x)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(50))
    assert float(((v * x).sum(dim=-1) / x.norm(dim=-1)).abs().max()) < 1e-5


@quick
def test_the_way_climbs_and_the_opposite_one_goes_down() -> None:
    fit, x = classifiers(*sides(), "test"), states(50)
    tensors = {"rows": fit["rows"][1], "dual": fit["dual"][1], "parts": torch.ones(1)}
    for sign in (1, -1):
        here, heights = x, [logit(fit, x)]
        for _ in range(20):
            here = follow(tensors, here, torch.full((50, 1), sign * 0.01))
            heights.append(logit(fit, here))
        steps = sign * torch.stack(heights).diff(dim=0)
        assert float(steps.min()) > 0


@quick
def test_two_texts_at_a_right_angle_draw_a_state_between_them_to_the_positive_one() -> None:
    """By hand: f rises along (1, -1) from (1, 1), by symmetry."""
    positive, negative = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1)
    positive[0, 0, 0], negative[0, 0, 1] = 3.0, 5.0
    fit = classifiers(positive, negative, "test")
    assert float(fit["mean_norm"][0]) == 4
    tensors = {"rows": fit["rows"][0], "dual": fit["dual"][0], "parts": torch.ones(1)}
    found = follow(tensors, torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0]]))
    torch.testing.assert_close(found, torch.tensor([[2 + 2**0.5, 2 - 2**0.5]]))


@quick
def test_with_a_larger_offset_it_nears_the_way_of_a_linear_probe() -> None:
    """(γ s + c₀)² is then c₀² + 2 γ c₀ s: the way stays in the plane of the state and the probe."""
    fit, x = classifiers(*sides(), "test"), states(20)
    rows, labels = fit["rows"][1], np.repeat([1, 0], PAIRS)
    unit, off = x / x.norm(dim=-1, keepdim=True), []
    for coef0 in (1.0, 10.0, 100.0):
        dual = torch.from_numpy(fit_classifier(rows.double().numpy(), labels, coef0)).float()
        linear = LogisticRegression(C=1, tol=1e-9, max_iter=10_000)
        linear.fit(np.sqrt(2 * GAMMA * coef0) * rows.double().numpy(), labels)
        probe = torch.from_numpy(linear.coef_[0]).float()
        aside = probe - (unit @ probe).unsqueeze(-1) * unit
        expected = aside / aside.norm(dim=-1, keepdim=True)
        off.append(float((field(rows, dual, x, coef0) - expected).norm(dim=-1).max()))
    assert off[0] > 0.01
    assert off[0] > 5 * off[1] > 25 * off[2]


# ------------------------------------------------------------------ the way


@quick
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("tau", [0.3, -0.8])
def test_the_edit_is_the_loop_in_double_precision(site: Site, tau: float, steps: int) -> None:
    positive, negative = sides()
    known = classifiers_of(positive.flatten(2).double(), negative.flatten(2).double(), {})
    rows = states(10)
    for layer in range(LAYERS):
        found = apply(edits_of(site, (layer, tau), steps=steps), rows, layer=layer)
        one = known[layer]
        expected = way(one.weights, rows.double(), tau * one.mean_norm, steps).float()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@quick
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_each_step_makes_the_norm_longer_by_its_square_alone(site: Site, steps: int) -> None:
    """|x'|² = |x|² + steps · (T / steps)²."""
    rows = states(10)
    after = apply(edits_of(site, (1, 4.0), unit="absolute", steps=steps), rows)
    expected = rows.norm(dim=-1) ** 2 + 16 / steps
    torch.testing.assert_close(after.norm(dim=-1) ** 2, expected, atol=1e-3, rtol=1e-5)


@quick
def test_one_step_is_straight_and_more_of_them_come_to_one_end(site: Site) -> None:
    fit, rows = classifiers(*sides(), "test"), states(10)
    ends = {n: apply(edits_of(site, (1, 0.5), fit=fit, steps=n), rows) for n in (1, 10, 100, 200)}
    distance = 0.5 * float(fit["mean_norm"][1])
    straight = rows + distance * field(fit["rows"][1], fit["dual"][1], rows)
    torch.testing.assert_close(ends[1], straight)
    off = {n: float((end - ends[200]).norm(dim=-1).max()) for n, end in ends.items()}
    assert off[1] > 5 * off[10] > 25 * off[100] > 0


@quick
def test_tau_is_in_mean_norms_of_its_layer_or_absolute(site: Site) -> None:
    fit, rows = classifiers(*sides(), "test"), states(10)
    for layer in range(LAYERS):
        norm = float(fit["mean_norm"][layer])
        relative = edits_of(site, (layer, 0.25), fit=fit)
        absolute = edits_of(site, (layer, 0.25 * norm), fit=fit, unit="absolute")
        assert torch.equal(apply(relative, rows, layer=layer), apply(absolute, rows, layer=layer))
        assert relative.digest(0) == absolute.digest(0)


@quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_direction_keeps_every_bit_beside_rows_that_move(
    site: Site, dtype: torch.dtype
) -> None:
    """Nothing, next to nothing, too large, and not finite."""
    moves = states(1).to(dtype)
    still = torch.zeros(5, WIDTH)
    still[:, ::2] = -0.0
    still[1, 1], still[2], still[3, 1], still[4, 1] = 1e-13, 1e30, torch.inf, torch.nan
    rows = torch.cat([moves, still.to(dtype), moves])
    edits = edits_of(site, (1, 0.5))
    after = apply(edits, rows)
    assert after.dtype == dtype
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(after[1:-1].view(bits), rows[1:-1].view(bits))
    alone = apply(edits, moves)
    assert not torch.equal(alone, moves)
    torch.testing.assert_close(after[[0, -1]], alone.expand(2, -1))


@quick
def test_where_the_classifier_is_level_every_bit_stays(site: Site) -> None:
    """All texts on one line: along it f has no slope at right angles; beside it, it has one."""
    line = torch.zeros(PAIRS, LAYERS, WIDTH, 1)
    line[:, :, 3] = torch.rand(PAIRS, LAYERS, 1, generator=torch.Generator().manual_seed(0)) + 1
    edits = edits_of(site, (1, 0.5), fit=classifiers(line, -line, "test"))
    rows = torch.full((3, WIDTH), -0.0)
    rows[0, 3], rows[1, 3], rows[2, 3:5] = 4.0, -4.0, -4.0
    after = apply(edits, rows)
    assert torch.equal(after[:2].view(torch.int32), rows[:2].view(torch.int32))
    assert after[2, 3] > rows[2, 3]


@quick
def test_in_bfloat16_it_is_rounded_once(site: Site) -> None:
    rows, edits = states(10).bfloat16(), edits_of(site, (1, 0.5))
    assert torch.equal(apply(edits, rows), apply(edits, rows.float()).bfloat16())


@quick
def test_sides_that_do_not_differ_edit_nothing(site: Site) -> None:
    positive, negative = sides()
    negative[:, 1] = positive[:, 1]
    edits = edits_of(site, (1, 0.5), (2, 0.5), fit=classifiers(positive, negative, "test"))
    rows = states(4)
    assert torch.equal(apply(edits, rows), rows)
    assert not torch.equal(apply(edits, rows, 1, layer=2), rows)


@quick
def test_of_a_fit_only_the_layers_that_are_edited_are_held(site: Site) -> None:
    edits = edits_of(site, *((layer, tau) for layer in (0, 2) for tau in (0.1, 0.2, 0.0)))
    assert set(edits._tensors) == {0, 2}
    assert edits.first_layers == [0, 0, 3, 2, 2, 3]
    assert edits.numbers.numel() == edits.count


# ------------------------------------------------------------------ arguments


@quick
def test_what_is_tried_is_in_the_unit_of_tau() -> None:
    size = Size(4, WIDTH, WIDTH)
    for unit, taus, usual in (
        ("norm", (0.05, 0.1, 0.2, 0.4, 0.8), 0.2),
        ("absolute", (1, 2.5, 5, 10, 20), 5),
    ):
        method = ODESteer(unit=unit)  # type: ignore[arg-type]
        assert method.search_space(size).values == (tuple(range(4)), taus)
        assert method.usual == (None, usual)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps=0: must be a whole number of at least 1"),
        ({"unit": "mean"}, "unit=mean: allowed: absolute, norm"),
        ({"layer": 3}, "layer=3: this model has layers 0 to 2"),
    ],
)
def test_what_is_not_defined_is_refused(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError, match=words) as caught:
        evaluate("tiny_choice", model="hf-odesteer", **{**EQUATIONS.given, **arguments})
    one_line(caught)
