"""Names of ways of steering, and what stands behind each."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from sadi_lmeval.arms import NAMES, arm, check_arms, parameters_of
from sadi_lmeval.steering.methods import grid, is_unsteered, kind_of, options_of, site_of, tuned

from sadi_lmeval.errors import UserError
from sadi_lmeval.options import OF_METHODS, Method, Options

ALONE: dict[str, tuple[Method, dict[str, Any]]] = {
    "none": ("sadi", {"method": "none"}),
    "sadi-head": ("sadi", {}),
    "sadi-neuron": ("sadi", {"element": "neuron"}),
    "sadi-hidden": ("sadi", {"element": "hidden"}),
    "iti": ("iti", {}),
    "caa": ("caa", {}),
    "random": ("sadi", {"selection": "random"}),
    "random-neuron": ("sadi", {"element": "neuron", "selection": "random"}),
    "random-hidden": ("sadi", {"element": "hidden", "selection": "random"}),
    "fixed": ("sadi", {"steering": "fixed"}),
    "fixed-neuron": ("sadi", {"element": "neuron", "steering": "fixed"}),
    "fixed-hidden": ("sadi", {"element": "hidden", "steering": "fixed"}),
}
"""The model and the arguments that steer so when they run alone."""
SHARED = {
    "n_pairs": 7,
    "n_tune": 9,
    "folds": 3,
    "seed": 5,
    "hidden_site": "residual",
    "activations": "clean",
    "objective": "metric",
    "recipe": "right_wrong",
    "mask_from": "boolq",
    "cache_dir": "here",
    "pairs_num_fewshot": 1,
}
SIZES = [(3, 4), (1, 1), (30, 9), (32, 14336)]
"""Layers and entries a layer."""


def test_every_documented_name_is_known_and_no_other() -> None:
    assert set(NAMES) == set(ALONE)
    assert NAMES[0] == "none"
    check_arms(list(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_has_the_options_of_the_model_that_steers_so_alone(name: str) -> None:
    method, arguments = ALONE[name]
    assert arm(name, Options()) == options_of(arguments, method)


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_keeps_all_that_is_shared(name: str) -> None:
    found = arm(name, options_of(dict(SHARED)))
    live = {"activations": "live"} if name in ("iti", "caa") else {}  # they have no clean ones
    assert {key: getattr(found, key) for key in SHARED} == {**SHARED, **live}


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_sets_nothing_but_what_tells_methods_apart(name: str) -> None:
    changed = {
        field.name
        for field in fields(Options)
        if getattr(arm(name, Options()), field.name) != getattr(Options(), field.name)
    }
    assert changed <= {*OF_METHODS, "selection", "steering"}


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_is_the_same_whatever_method_the_shared_options_are_of(name: str) -> None:
    for method in ("none", "iti", "caa"):
        assert arm(name, Options(method=method)) == arm(name, Options())


def test_iti_keeps_its_direction() -> None:
    assert arm("iti", Options(direction="probe")).direction == "probe"


def test_only_none_is_unsteered_and_every_other_arm_is_tuned() -> None:
    assert [name for name in NAMES if is_unsteered(arm(name, Options()))] == ["none"]
    assert [name for name in NAMES if not tuned(arm(name, Options()))] == ["none"]


def test_arms_name_their_two_numbers_as_their_methods_do() -> None:
    assert tuple(parameters_of("iti")) == ("top_k", "alpha")
    assert tuple(parameters_of("caa")) == ("layer", "multiplier")
    others = set(NAMES) - {"iti", "caa"}
    assert {tuple(parameters_of(name)) for name in others} == {("top_k", "delta")}


def test_arms_read_where_they_steer() -> None:
    sites = {name: site_of(arm(name, Options()))[0] for name in NAMES if name != "none"}
    assert {name for name, element in sites.items() if element == "neuron"} == {
        "sadi-neuron",
        "random-neuron",
        "fixed-neuron",
    }
    assert {name for name, element in sites.items() if element == "hidden"} == {
        "sadi-hidden",
        "random-hidden",
        "fixed-hidden",
        "caa",
    }
    assert site_of(arm("caa", Options())) == ("hidden", "residual")
    kinds = {name: kind_of(arm(name, Options())) for name in NAMES}
    assert {name for name, kind in kinds.items() if kind == "probes"} == {"iti"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_no_arm_has_more_settings_than_any_other_may_have(name: str, size: tuple[int, int]) -> None:
    options = arm(name, Options())
    usual = grid(options, size)
    for most in (1, 2, 3, 5, 12, 100, 1000):
        settings = usual.thinned(most).settings
        assert 1 <= len(settings) <= most
        assert set(settings) <= set(usual.settings)
        # as a run of this method alone would be told them
        thinned = replace(options, grid=usual.thinned(most))
        assert grid(thinned, size).settings == settings
        assert tuned(thinned)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sadi-heads", ["unknown method 'sadi-heads'", "did you mean", "'sadi-head'"]),
        ("ITI", ["unknown method 'ITI'", "'iti'"]),
        ("mlp", ["unknown method 'mlp'", "allowed: caa, fixed"]),
        ("", ["unknown method ''", "allowed"]),
        ("sadi", ["unknown method 'sadi'"]),
        ("hf-iti", ["unknown method 'hf-iti'", "'iti'"]),
        ("random-head", ["unknown method 'random-head'"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_arms(["none", name])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
