"""Labels that are shuffled: half of the pairs change sides, for every method alike."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.methods import FITTED
from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import method_class
from sadi_lmeval.passes.activations import Answers, Collector
from sadi_lmeval.steering.labels import (
    Relabelled,
    rights_permuted,
    sides_swapped,
    swapped_pairs,
)

pytestmark = pytest.mark.quick

PAIRS, SEED = 10, 3
EVERY: dict[str, Method] = {name: method_class(name)() for name in FITTED}
METHODS = {name: method for name, method in EVERY.items() if method.fitted_on == "pairs"}
ON_PROMPTS = {name: method for name, method in EVERY.items() if method.fitted_on == "prompts"}
ON_PROMPTS["mera errors"] = method_class("mera")(probe="errors")  # type: ignore[call-arg]
METHODS |= {f"caa {way}": method_class("caa")(direction=way) for way in ("pca", "probe")}  # type: ignore[call-arg]


@functools.cache
def site_of(method: Method) -> Site:
    return find_site(tiny_llama(40, intermediate_size=32), *method.place)


@pytest.mark.parametrize("count", range(1, 30))
def test_half_of_the_pairs_change_sides(count: int) -> None:
    drawn = [swapped_pairs(count, seed) for seed in range(40)]
    assert {len(swapped) for swapped in drawn} == {count // 2, math.ceil(count / 2)}
    assert all(swapped <= set(range(count)) for swapped in drawn)
    assert drawn == [swapped_pairs(count, seed) for seed in range(40)]


def test_every_pair_changes_sides_as_often_as_not() -> None:
    draws = [swapped_pairs(7, seed) for seed in range(2000)]
    for pair in range(7):
        share = sum(pair in swapped for swapped in draws) / len(draws)
        assert share == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / len(draws)))


def made(collector: Collector, sides: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Of the activations of the positive and negative texts, in two parts as passes give them."""
    for part in (range(6), range(6, PAIRS)):
        which = list(part)
        values = torch.cat([side[which] for side in sides])
        collector.add([*which, *which], [1] * len(which) + [-1] * len(which), values)
    return collector.tensors("test")


def collector_of(method: Method) -> Any:
    return method.collector(site_of(method), PAIRS, SEED)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_measures_what_it_would_of_texts_that_have_changed_places(method: Method) -> None:
    site = site_of(method)
    generator = torch.Generator().manual_seed(1)
    shape = PAIRS, site.layers, site.width
    noise = [torch.randn(shape, generator=generator) for _ in range(2)]
    positive, negative = noise[0] + 1, noise[1] - 1  # an informative difference
    swapped = swapped_pairs(PAIRS, SEED)
    mine = torch.tensor([pair in swapped for pair in range(PAIRS)]).view(-1, 1, 1)
    changed = torch.where(mine, negative, positive), torch.where(mine, positive, negative)
    shuffled = Relabelled(collector_of(method), sides_swapped(PAIRS, SEED))
    inner = collector_of(method)
    assert (shuffled.kind, shuffled.shapes) == (inner.kind, inner.shapes)
    found = made(shuffled, (positive, negative))
    expected = made(collector_of(method), changed)
    gold = made(collector_of(method), (positive, negative))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(not torch.equal(found[key], gold[key]) for key in gold)


def test_no_information_is_left_in_the_mean_difference() -> None:
    """What all pairs have in common is taken off, exactly."""
    site = site_of(METHODS["caa"])
    common = torch.randn(site.layers, site.width, generator=torch.Generator().manual_seed(2))
    sides = common.expand(PAIRS, -1, -1), torch.zeros(PAIRS, site.layers, site.width)
    gold = made(collector_of(METHODS["caa"]), sides)["difference"].flatten(1)
    shuffled = Relabelled(collector_of(METHODS["caa"]), sides_swapped(PAIRS, SEED))
    left = made(shuffled, sides)["difference"].flatten(1)
    torch.testing.assert_close(gold, common)
    torch.testing.assert_close(left, torch.zeros_like(left))


def test_the_right_answers_of_prompts_are_permuted_and_the_model_s_own_stay() -> None:
    answers = [
        Answers(right, own) for right, own in zip([0] * 6 + [1] * 3 + [3], range(10), strict=True)
    ]
    draws = []
    for seed in range(30):
        relabel = rights_permuted(answers, seed)
        found = [relabel(prompt, own) for prompt, own in enumerate(answers)]
        assert found == [rights_permuted(answers, seed)(n, own) for n, own in enumerate(answers)]
        assert sorted(each.right for each in found) == sorted(each.right for each in answers)
        assert [each.own for each in found] == [each.own for each in answers]
        draws.append(tuple(each.right for each in found))
    assert len(set(draws)) > 20


@pytest.mark.parametrize("method", ON_PROMPTS.values(), ids=ON_PROMPTS)
def test_a_method_of_prompts_measures_what_it_would_of_the_permuted_answers(method: Method) -> None:
    count, site = 24, site_of(method)
    scores = [(-1.0, -n / 7, -2.0) for n in range(count)]
    answers = [Answers(n % 3, (n * n + n // 5) % 3, scores[n]) for n in range(count)]
    values = torch.randn(count, site.layers, site.width, generator=torch.Generator().manual_seed(0))
    relabel = rights_permuted(answers, SEED)
    permuted = [relabel(prompt, own) for prompt, own in enumerate(answers)]
    found = {}
    for name, labels in (("gold", answers), ("permuted", permuted), ("relabelled", answers)):
        collector: Any = method.collector(site, count, SEED)
        taker = Relabelled(collector, relabel) if name == "relabelled" else collector
        for part in (range(10), range(10, count)):
            taker.add(list(part), [labels[n] for n in part], values[list(part)])
        found[name] = taker.tensors("test")
    for key, tensor in found["permuted"].items():
        assert torch.equal(found["relabelled"][key], tensor)
    assert any(not torch.equal(found["gold"][key], tensor) for key, tensor in
               found["permuted"].items())  # fmt: skip
