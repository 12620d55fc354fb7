"""Names of ways of steering, and what stands behind each."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import pytest

from helpers.models import tiny_llama
from helpers.vector_files import needed
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import Arm, read_arm, read_arms, set_by_arms
from sadi_lmeval.methods.registry import (
    arm_named,
    arm_names,
    check_arm_names,
    method_class,
    methods,
    spelled_out,
)
from sadi_lmeval.options import NAMES as SHARED_NAMES
from sadi_lmeval.types import Size

pytestmark = pytest.mark.quick

NAMES = tuple(arm_names())

HEAD, NEURON = ("head", "mlp"), ("neuron", "mlp")
MLP, BLOCK = ("hidden", "mlp"), ("hidden", "residual")
"""Where arms read and edit."""


class Known(NamedTuple):
    """What is known of an arm.

    Attributes:
        method: of the model that steers so when it runs alone.
        given: its arguments.
        place: where it reads and edits.
        axes: the numbers of its settings.
        kind: of what it measures.
    """

    method: str
    given: dict[str, Any]
    place: tuple[str, str]
    axes: tuple[str, ...]
    kind: str = "mean_difference"


_SADI = ("top_k", "delta")
_BLOCK = ("layer", "multiplier")
ALONE: dict[str, Known] = {
    "none": Known("sadi", {"method": "none"}, HEAD, ()),
    "sadi-head": Known("sadi", {}, HEAD, _SADI),
    "sadi-neuron": Known("sadi", {"element": "neuron"}, NEURON, _SADI),
    "sadi-hidden": Known("sadi", {"element": "hidden"}, MLP, _SADI),
    "iti": Known("iti", {}, HEAD, ("top_k", "alpha"), "probes"),
    "iti-prompt": Known("iti", {"gate": "prompt"}, HEAD, ("top_k", "alpha", "threshold"), "probes"),
    "iti-self": Known("iti", {"gate": "self"}, HEAD, ("top_k", "alpha"), "probes"),
    "caa": Known("caa", {}, BLOCK, _BLOCK),
    "mera": Known("mera", {}, BLOCK, ("layer", "alpha"), "negative_probes"),
    "mera-all": Known("mera", {"layers": "all"}, BLOCK, ("alpha",), "negative_probes"),
    "caa-pca": Known("caa", {"direction": "pca"}, BLOCK, _BLOCK, "caa_pca"),
    "caa-probe": Known("caa", {"direction": "probe"}, BLOCK, _BLOCK, "caa_probe"),
    "caa-random": Known("caa", {"direction": "random"}, BLOCK, _BLOCK),
    "austeer": Known("austeer", {}, HEAD, ("top_k", "alpha"), "sign_counts"),
    "austeer-hidden": Known(
        "austeer", {"element": "hidden"}, MLP, ("top_k", "alpha"), "sign_counts"
    ),
    "linear-act": Known("linear-act", {}, BLOCK, ("layer", "strength"), "transport"),
    "spherical": Known("spherical", {}, BLOCK, ("layer", "alpha", "beta")),
    "odesteer": Known("odesteer", {}, BLOCK, ("layer", "tau"), "polynomial_classifier"),
    "kappa": Known("kappa", {}, BLOCK, ("layer", "alpha"), "letter_probes"),
    "clamping": Known("clamping", {}, BLOCK, ("layer", "share"), "side_means"),
    "ablation": Known("clamping", {"to": "zero"}, BLOCK, ("layer", "share"), "side_means"),
    "vector": Known("vector", {}, BLOCK, _BLOCK, "vectors"),
    "random": Known("sadi", {"selection": "random"}, HEAD, _SADI),
    "random-neuron": Known("sadi", {"element": "neuron", "selection": "random"}, NEURON, _SADI),
    "random-hidden": Known("sadi", {"element": "hidden", "selection": "random"}, MLP, _SADI),
    "fixed": Known("sadi", {"steering": "fixed"}, HEAD, _SADI),
    "fixed-neuron": Known("sadi", {"element": "neuron", "steering": "fixed"}, NEURON, _SADI),
    "fixed-hidden": Known("sadi", {"element": "hidden", "steering": "fixed"}, MLP, _SADI),
    "spherical-ungated": Known("spherical", {"gate": "off"}, BLOCK, ("layer", "alpha", "beta")),
    "prompt-only": Known("sadi", {"method": "none"}, HEAD, ()),
}
"""Each arm, as it steers when it runs alone."""
STEERED = [name for name in NAMES if name not in ("none", "prompt-only")]
SHARED = {
    "n_pairs": 7,
    "n_tune": 9,
    "folds": 3,
    "seed": 5,
    "objective": "metric",
    "recipe": "right_wrong",
    "mask_from": "boolq",
    "cache_dir": "here",
    "pairs_num_fewshot": 1,
}
OWN = {"hidden_site": "residual", "activations": "clean", "direction": "probe"}
SIZES = [(3, 4), (1, 1), (30, 9), (32, 14336)]
"""Layers and entries a layer."""


def arm(name: str, **given: Any) -> Arm:
    return read_arms([name], {**needed(arm_named(name).method), **given})[name]


def test_every_documented_name_is_known_and_no_other() -> None:
    assert set(NAMES) == set(ALONE)
    assert NAMES[0] == "none"
    check_arm_names(NAMES)


def test_compare_takes_the_arms_of_every_method_by_default_and_no_ablation() -> None:
    usual = {name for name, each in arm_names().items() if each.usual}
    assert usual == {"none"}.union(*(method.arms for method in methods().values()))
    ablations = {name for method in methods().values() for name in method.ablations}
    assert usual | ablations | {"prompt-only"} == set(NAMES)
    assert not usual & ablations


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_is_what_the_model_that_steers_so_alone_has(name: str) -> None:
    method, arguments = ALONE[name][:2]
    alone = read_arm(method, {**needed(method_class(method)), **arguments})
    assert replace(arm(name), name="", instruction=None) == replace(alone, name="")


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_keeps_all_that_is_shared(name: str) -> None:
    found = arm(name, **SHARED).options
    assert {key: getattr(found, key) for key in SHARED} == SHARED


def test_an_argument_counts_for_every_arm_whose_method_has_it() -> None:
    found = read_arms(NAMES, {**OWN, **needed(method_class("vector"))})
    for each in found.values():
        if each.method is None:
            continue
        own = {field.name for field in fields(each.method)}
        for key, value in OWN.items():
            left_open = key in own and key not in arm_names()[each.name].sets
            assert not left_open or getattr(each.method, key) == value
    assert found["iti"].record()["direction"] == "probe"
    assert found["sadi-head"].record()["activations"] == "clean"


def test_an_argument_that_no_arm_has_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        read_arms(["none", "caa"], {"element": "head"})
    assert str(caught.value).startswith("element=head: no method of none, caa has element")
    assert read_arms(["caa", "iti"], {"direction": "probe"})["iti"].record()["direction"] == "probe"


def test_what_arms_of_a_method_set_counts_for_other_methods_alone_where_names_say_it() -> None:
    names = ["iti", "caa", "caa-pca", "caa-shuffled"]
    found = read_arms(names, {"direction": "probe", "scope": "prompt"}, by_name=True)
    directions = {name: each.record()["direction"] for name, each in found.items()}
    assert directions == {
        "iti": "probe", "caa": "mean", "caa-pca": "pca", "caa-shuffled": "mean"
    }  # fmt: skip
    assert {each.record()["scope"] for each in found.values()} == {"prompt"}
    assert read_arms(["caa"], {"direction": "probe"})["caa"].record()["direction"] == "probe"
    assert set_by_arms(method_class("caa")) == {"direction"}
    assert set_by_arms(method_class("iti")) == {"gate"}


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_sets_nothing_but_arguments_of_its_own_method(name: str) -> None:
    sets = arm_names()[name].sets
    assert not set(sets) & SHARED_NAMES
    record = arm(name).record()
    assert {key: record[key] for key in sets} == dict(sets)


def test_none_and_prompt_only_are_unsteered_and_every_other_arm_is_chosen() -> None:
    assert {name for name in NAMES if not arm(name).is_unsteered} == set(STEERED)
    assert {name for name in NAMES if arm(name).is_chosen} == set(STEERED)


@pytest.mark.parametrize("name", STEERED)
def test_arms_are_where_they_are_known_to_be(name: str) -> None:
    found, known, model = arm(name), ALONE[name], tiny_llama(50)
    assert found.method is not None
    assert found.method.name == known.method
    assert found.method.place == known.place
    assert found.axes.names == known.axes
    site = find_site(model, *found.method.place)
    assert found.method.collector(site, 2, 0).kind == known.kind


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STEERED)
def test_no_arm_has_more_settings_than_any_other_may_have(name: str, size: tuple[int, int]) -> None:
    found = arm(name)
    usual = found.search_space(Size(*size))
    for most in (1, 2, 3, 5, 12, 100, 1000):
        settings = usual.thinned(most).settings
        assert 1 <= len(settings) <= most
        assert set(settings) <= set(usual.settings)
        # as a run of this method alone would be told them
        thinned = replace(found, space=usual.thinned(most))
        assert thinned.search_space(Size(*size)).settings == settings
        assert thinned.is_chosen


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sadi-heads", ["unknown method 'sadi-heads'", "did you mean", "'sadi-head'"]),
        ("ITI", ["unknown method 'ITI'", "'iti'"]),
        ("mlp", ["unknown method 'mlp'", "allowed: ablation, all, austeer, "]),
        ("", ["unknown method ''", "allowed"]),
        ("sadi", ["unknown method 'sadi'"]),
        ("hf-iti", ["unknown method 'hf-iti'", "'iti'"]),
        ("random-head", ["unknown method 'random-head'"]),
        ("ity-shuffled", ["unknown method 'ity-shuffled'"]),
        ("none-shuffled", ["unknown method 'none-shuffled'"]),
        ("prompt-only-shuffled", ["unknown method 'prompt-only-shuffled'", "'prompt-only'"]),
        ("caa-shuffled-shuffled", ["unknown method 'caa-shuffled-shuffled'"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_arm_names(["none", name])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ controls


@pytest.mark.parametrize("name", STEERED)
def test_every_arm_that_steers_has_a_control_that_differs_in_its_labels_alone(name: str) -> None:
    control = arm(f"{name}-shuffled")
    assert control.options == replace(arm(name).options, labels="shuffled")
    assert control.method == arm(name).method
    assert control.record() == arm(name).record()
    assert not arm_named(f"{name}-shuffled").usual


def test_a_control_has_its_arm_s_settings_of_a_benchmark_file_and_never_the_other_way_round() -> (
    None
):
    assert arm("iti-shuffled").is_like("iti")
    assert arm("iti-shuffled").is_like("iti-shuffled")
    assert not arm("iti").is_like("iti-shuffled")
    assert not arm("caa").is_like("caa-random")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none,iti", "none,iti"),
        ("none,iti,controls", "none,iti,iti-shuffled,caa-random,prompt-only"),
        (
            "none,controls,caa,random",
            "none,caa,random,caa-shuffled,random-shuffled,caa-random,prompt-only",
        ),
        # what is fitted on nothing has no labels to shuffle
        ("none,vector,iti,controls", "none,vector,iti,iti-shuffled,caa-random,prompt-only"),
        ("none,vector,controls", "none,vector,caa-random,prompt-only"),
        # what is there already is not there twice, and controls have none
        (
            "prompt-only,none,iti,iti-shuffled,caa-random,controls",
            "prompt-only,none,iti,iti-shuffled,caa-random",
        ),
    ],
)
def test_one_word_stands_for_all_controls(given: str, expected: str) -> None:
    assert spelled_out(given.split(",")) == expected.split(",")


def test_a_control_that_is_left_out_is_said_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lm_eval.sadi")
    spelled_out(["none", "iti", "controls"])
    assert caplog.messages == []
    spelled_out(["none", "vector", "iti", "controls"])
    assert caplog.messages == ["vector: fitted on nothing, so it has no shuffled control"]


@pytest.mark.parametrize("given", ["controls", "none,controls", "none,caa-random,controls"])
def test_controls_of_nothing_are_refused(given: str) -> None:
    with pytest.raises(UserError, match=f"--methods {given}: controls are of methods that steer"):
        spelled_out(given.split(","))


def test_a_saved_fit_has_the_labels_that_it_was_made_with() -> None:
    with pytest.raises(UserError, match="fit= was given with labels=shuffled"):
        read_arm("caa", {"mask": __file__, "labels": "shuffled", "layer": 1})
    with pytest.raises(UserError, match=r"labels=true: .*gold"):
        read_arm("caa", {"labels": "true"})
