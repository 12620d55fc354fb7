"""What is Linear-AcT's own: transports of single coordinates.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from torch import Tensor

from helpers.equations.contract import LAYERS, WIDTH
from helpers.equations.linear_act import EQUATIONS, sides_of
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of, numbers
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.cli import main
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.caa import CAA
from sadi_lmeval.methods.linear_act import LinearAcT, Transport, fit_transports
from sadi_lmeval.model import model_class
from sadi_lmeval.settings import Setting

GIVEN = EQUATIONS.given
PAIRS = 11


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


def sides(seed: int = 0, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Positive and negative activations, ``[pairs, layers, width, 1]``."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, pairs, LAYERS, WIDTH, 1, generator=generator)
    scale = torch.rand(2, LAYERS, WIDTH, 1, generator=generator) * 3 + 0.1
    return scale[0] * positive + 2, scale[1] * negative - 1


def fitted(positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    return fit_transports(positive, negative, "test")


def transported(
    site: Site, tensors: dict[str, Tensor], transport: Transport, rows: Tensor, strength: float = 1
) -> Tensor:
    """What becomes of rows of every layer, ``[layers, n, width]``."""
    method = LinearAcT(transport=transport)
    found = []
    for layer in range(LAYERS):
        edits = method.edits(site, tensors, [Setting(layer, strength)], 0)
        found.append(edits.apply(layer, rows[layer], torch.zeros(rows.shape[1], dtype=torch.long)))
    return torch.stack(found)


# ------------------------------------------------------------------ what is measured


@pytest.mark.quick
def test_one_coordinate_by_hand() -> None:
    """Sorted: 0 2 4 and 1 2 6; means 2 and 3; the line through (-2, -2), (0, -1), (2, 3)."""
    source, target = torch.tensor([4.0, 0.0, 2.0]), torch.tensor([2.0, 6.0, 1.0])
    found = fitted(target.view(3, 1, 1, 1), source.view(3, 1, 1, 1))
    assert found["linear"].tolist() == [[pytest.approx(10 / 8)]]
    assert found["gaussian"].tolist() == [[pytest.approx((14 / 8) ** 0.5)]]
    assert found["source_mean"].tolist() == [[2]]
    assert found["difference"].tolist() == [[1]]
    one = sides_of(source.tolist(), target.tolist())
    assert one.slopes == {"linear": 10 / 8, "gaussian": pytest.approx((14 / 8) ** 0.5), "mean": 1}


@pytest.mark.quick
def test_an_increasing_line_is_found_again_and_carries_each_side_to_the_other(site: Site) -> None:
    """b = p a + q with p > 0, the pairs of it in any order."""
    _, negative = sides()
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(LAYERS, WIDTH, 1, generator=generator) * 4 + 0.1
    q = torch.randn(LAYERS, WIDTH, 1, generator=generator)
    positive = (p * negative + q)[torch.randperm(PAIRS, generator=generator)]
    tensors = fitted(positive, negative)
    for transport in ("linear", "gaussian"):
        torch.testing.assert_close(tensors[transport], p.squeeze(-1), atol=1e-5, rtol=1e-5)
        beyond = torch.cat([negative, 3 * negative]).squeeze(-1).transpose(0, 1)
        found = transported(site, tensors, transport, beyond)
        expected = p.squeeze(-1).unsqueeze(1) * beyond + q.squeeze(-1).unsqueeze(1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.quick
def test_the_order_of_a_side_does_not_count_and_no_slope_is_negative() -> None:
    positive, negative = sides()
    found = fitted(positive, negative)
    for order in (torch.arange(PAIRS).flip(0), torch.arange(PAIRS).roll(3)):
        for other in (fitted(positive[order], negative), fitted(positive, negative[order])):
            for name, values in found.items():
                torch.testing.assert_close(other[name], values, atol=1e-6, rtol=1e-6)
    opposite = fitted(-negative, negative)  # the other way round, pair for pair
    assert (opposite["linear"] >= 0).all()
    assert (opposite["linear"] <= opposite["gaussian"] + 1e-6).all()  # Cauchy and Schwarz


@pytest.mark.quick
def test_the_whole_transport_takes_the_sorted_source_to_its_best_line(site: Site) -> None:
    positive, negative = sides()
    tensors = fitted(positive, negative)
    a, b = (side.squeeze(-1).sort(dim=0).values.transpose(0, 1) for side in (negative, positive))
    error = (transported(site, tensors, "linear", a) - b).square().sum(dim=1)
    for slope, offset in ((1.02, 0.0), (0.98, 0.0), (1.0, 0.02), (1.0, -0.02)):
        centred = a - a.mean(dim=1, keepdim=True)
        other = tensors["linear"].unsqueeze(1) * slope * centred + b.mean(dim=1, keepdim=True)
        assert ((other + offset - b).square().sum(dim=1) > error).all()
    spread = transported(site, tensors, "gaussian", a)
    torch.testing.assert_close(spread.mean(dim=1), b.mean(dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(spread.std(dim=1), b.std(dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_source_without_spread_is_shifted_and_a_target_without_is_reached(
    site: Site, noise: float
) -> None:
    """Rounding of a large constant is no spread."""
    positive, negative = sides()
    negative[:, 0] = 3e3 + noise * torch.randn(PAIRS, WIDTH, 1)
    negative[:, 1] = 0
    positive[:, 2] = 0.5
    tensors = fitted(positive, negative)
    for transport in ("linear", "gaussian"):
        assert torch.equal(tensors[transport][:2], torch.ones(2, WIDTH))
        assert not tensors[transport][2].any()
        rows = torch.randn(LAYERS, 4, WIDTH)
        found = transported(site, tensors, transport, rows)
        expected = rows[:2] + tensors["difference"][:2].unsqueeze(1)
        torch.testing.assert_close(found[:2], expected)
        torch.testing.assert_close(found[2], torch.full((4, WIDTH), 0.5), atol=1e-5, rtol=0)


@pytest.mark.quick
def test_sides_that_are_alike_are_left_alone(site: Site) -> None:
    _, negative = sides()
    for transport in ("linear", "gaussian", "mean"):
        edits = LinearAcT(transport=transport).edits(
            site, fitted(negative.flip(0), negative), [Setting(1, 1.0)], 0
        )
        rows = torch.randn(3, WIDTH)
        after = edits.apply(1, rows, torch.zeros(3, dtype=torch.long))
        torch.testing.assert_close(after, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.quick
def test_a_single_pair_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 contrastive pairs, not 1"):
        fitted(*sides(pairs=1))


# ------------------------------------------------------------------ the edit


@pytest.mark.quick
@pytest.mark.parametrize("transport", ["linear", "gaussian"])
def test_a_part_of_the_way_lies_on_the_way(site: Site, transport: Transport) -> None:
    tensors = fitted(*sides())
    rows = torch.randn(LAYERS, 5, WIDTH)
    whole = transported(site, tensors, transport, rows)
    assert ((whole - rows).abs() > 0.1).any()
    for strength in (0.25, 0.75):
        part = transported(site, tensors, transport, rows, strength)
        expected = (1 - strength) * rows + strength * whole
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.quick
def test_a_large_mean_is_rounded_once_in_16_bits(site: Site) -> None:
    """ω x and the shift are large and nearly undo each other."""
    positive, negative = sides()
    positive = 20 * positive
    negative = negative + 60
    tensors = fitted(positive, negative)
    assert (tensors["linear"] > 5).float().mean() > 0.5
    rows = negative[:, 1, :, 0].bfloat16()
    edits = LinearAcT().edits(site, tensors, [Setting(1, 1.0)], 0)
    found = edits.apply(1, rows, torch.zeros(len(rows), dtype=torch.long))
    omega, mean = (tensors[name][1].double() for name in ("linear", "source_mean"))
    expected = omega * (rows.double() - mean) + mean + tensors["difference"][1].double()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=2**-8)


@pytest.mark.quick
def test_values_that_are_not_finite_stay_where_they_are(site: Site) -> None:
    positive, negative = sides()
    positive[:, :, 5] = negative[:, :, 5] = 0.0  # never there: nothing is done to it
    edits = LinearAcT().edits(site, fitted(positive, negative), [Setting(1, 1.0)], 0)
    rows = torch.randn(3, WIDTH)
    expected = edits.apply(1, rows, torch.zeros(3, dtype=torch.long))
    rows[1, 3], rows[1, 5] = float("nan"), float("-inf")
    found = edits.apply(1, rows, torch.zeros(3, dtype=torch.long))
    assert found[1, 3].isnan()
    assert found[1, 5] == float("-inf")
    keep = torch.ones_like(rows, dtype=torch.bool)
    keep[1, 3] = keep[1, 5] = False
    assert torch.equal(found[keep], expected[keep])


@pytest.mark.quick
def test_the_transport_of_the_mean_is_caa(site: Site) -> None:
    """The same edits, bit for bit: of each side's own reading of the pairs."""
    positive, negative = (side.flatten(2) for side in sides())
    settings = [Setting(layer, s) for layer in range(LAYERS) for s in (0.25, 1.0)]
    edits: list[ScaledEdits] = []
    for method in (LinearAcT(transport="mean"), CAA()):
        collector = method.collector(site, PAIRS, 0)
        collector.add([*range(PAIRS)], [1] * PAIRS, positive)
        collector.add([*range(PAIRS)], [-1] * PAIRS, negative)
        edits.append(method.edits(site, collector.tensors("test"), settings, 0))
    ours, caa = edits
    rows = torch.randn(len(settings), WIDTH).bfloat16()
    for layer in range(LAYERS):
        which = torch.arange(len(settings))
        assert torch.equal(ours.apply(layer, rows, which), caa.apply(layer, rows, which))
    assert [ours.digest(n) for n in which.tolist()] == [caa.digest(n) for n in which.tolist()]


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds"])
def test_the_transport_of_the_mean_scores_as_caa(evaluate: Any, task: str) -> None:
    ours = evaluate(task, model="hf-linear-act", layer=1, strength=0.75, transport="mean")
    caa = evaluate(task, model="hf-caa", layer=1, multiplier=0.75)
    assert numbers(ours, task) == numbers(caa, task)
    assert numbers(ours, task) != numbers(evaluate(task, model="hf"), task)


@pytest.mark.parametrize("strength", [-0.5, 1.5])
def test_a_strength_beyond_the_whole_way_is_refused(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError, match=f"strength={strength}: must be .*0 and of at most 1") as e:
        evaluate("tiny_choice", model="hf-linear-act", layer=1, strength=strength)
    one_line(e)


# ------------------------------------------------------------------ its name and its numbers


def test_the_name_with_a_hyphen_is_found_and_its_numbers_are_keywords_and_options(
    tmp_path: Path, model_folder: Path, tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Python class with keyword arguments, and in ``sweep``."""
    model = model_class("linear-act")(
        pretrained=str(model_folder), device="cpu", layer=1, strength=0.5, transport="gaussian"
    )
    assert model.arm.given == (1, 0.5)
    of_harness = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", of_harness)  # indexing its own takes seconds
    output = tmp_path / "sweep.jsonl"
    options = ["--methods", "linear-act", "--layer", "0,2", "--strength", "0.5,1"]
    options += ["--tasks", "tiny_choice", "--include_path", str(tasks_folder)]
    given = f"pretrained={model_folder},n_pairs=12,n_tune=4,cache_dir={tmp_path}"
    main(["sweep", *options, "--model_args", given, "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    tried = [(line["layer"], line["strength"]) for line in lines if line["method"] != "none"]
    assert tried == [(0, 0.5), (0, 1), (2, 0.5), (2, 1)]


def test_one_fit_serves_every_transport(evaluate: Any) -> None:
    keys = set()
    for transport in ("linear", "gaussian", "mean"):
        given = {**GIVEN, "transport": transport}
        [mask] = masks_of(evaluate("tiny_choice", model="hf-linear-act", limit=2, **given),
                          "tiny_choice")  # fmt: skip
        keys.add(mask["cache_key"])
    assert len(keys) == 1
