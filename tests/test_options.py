"""Which arguments leave a setting to be tuned, over which grid, and which are a method's own."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.vector_files import needed
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods import caa as caa_module
from sadi_lmeval.methods.arm import Arm, read_arm
from sadi_lmeval.methods.registry import argument_names, method_class, methods
from sadi_lmeval.methods.sadi import GRIDS
from sadi_lmeval.options import Options, read_options
from sadi_lmeval.settings import SearchSpace, Setting
from sadi_lmeval.types import Size


def sadi(given: dict[str, Any], method: str = "sadi") -> Arm:
    return read_arm(method, given)


def values(arm: Arm, size: tuple[int, int] | None = None) -> tuple[Any, ...]:
    """Of each axis of its search space."""
    found: SearchSpace = arm.search_space(None if size is None else Size(*size))
    return found.values


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, True),
        ({"element": "neuron"}, True),
        ({"top_k": "auto"}, True),
        ({"delta": "auto"}, True),
        ({"top_k": 3, "delta": "auto"}, True),
        ({"top_k": "auto", "delta": 3}, True),
        ({"grid": "1/2x3"}, True),
        ({"grid": "1/2x3", "top_k": 3}, True),
        ({"top_k": 3}, False),
        ({"delta": 3}, False),
        ({"top_k": 3, "delta": 3}, False),
        ({"delta": 0}, False),
    ],
)
def test_k_and_delta_are_tuned_unless_the_user_gives_one_of_them(
    arguments: dict[str, Any], expected: bool
) -> None:
    assert sadi(arguments).is_chosen is expected


def test_the_grid_is_the_reference_code_s_of_the_element() -> None:
    for element in ("head", "neuron", "hidden"):
        assert sadi({"element": element}).search_space() == GRIDS[element]


def test_a_number_that_the_user_fixed_stands_in_place_of_its_list() -> None:
    assert values(sadi({"top_k": 3, "delta": "auto"})) == ((3,), GRIDS["head"].values[1])
    assert values(sadi({"delta": -2, "top_k": "auto"})) == (GRIDS["head"].values[0], (-2.0,))
    assert values(sadi({"grid": "1/2x4/9", "top_k": 7})) == ((7,), (4.0, 9.0))
    assert values(sadi({"grid": "1/2x4/9", "delta": 1})) == ((1, 2), (1.0,))
    assert sadi({"top_k": 3, "delta": 2}).search_space().settings == [Setting(3, 2.0)]


def test_the_reference_grid_goes_no_further_than_the_model_and_the_user_s_is_taken_as_it_is() -> (
    None
):
    assert values(sadi({}), (3, 2))[0] == (1, 2, 4, 6)
    assert values(sadi({}), (1, 5))[0] == (1, 2, 4)
    assert values(sadi({"element": "neuron"}), (3, 48))[0] == (3, 5, 10, 30, 50, 100)
    assert values(sadi({"grid": "2/8x1"}), (3, 2))[0] == (2, 8)
    assert values(sadi({"top_k": 8, "delta": "auto"}), (3, 2))[0] == (8,)


def test_no_more_settings_than_max_settings_are_tried() -> None:
    assert sadi({"grid": "1/2x3/4", "max_settings": 4}).search_space().settings
    with pytest.raises(UserError) as caught:
        sadi({"grid": "1/2/3x3/4", "max_settings": 5})
    for word in ("6 settings", "max_settings=5", "smaller grid="):
        assert word in str(caught.value)
    with pytest.raises(UserError, match="96 settings"):
        sadi({"max_settings": 95})
    assert sadi({"max_settings": 96}).options == Options(max_settings=96)


def test_a_delta_of_zero_is_no_setting_and_does_not_count() -> None:
    assert len(sadi({"grid": "1/2x0/4", "max_settings": 2}).search_space().settings) == 2


def test_what_is_not_tuned_is_not_counted() -> None:
    assert sadi({"top_k": 3, "max_settings": 1}).given == (3, None)
    assert sadi({"top_k": 3, "delta": 2, "max_settings": 1}).given == (3, 2.0)


def test_a_grid_with_both_numbers_fixed_is_refused() -> None:
    with pytest.raises(UserError, match="grid= was given with a fixed top_k and delta"):
        sadi({"grid": "1x2", "top_k": 1, "delta": 2})
    for part in ({"top_k": 1, "delta": "auto"}, {"top_k": "auto", "delta": 2}, {"top_k": 1}):
        assert sadi({"grid": "1x2", **part}).space.values == ((1,), (2.0,))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["n_tune", "max_settings"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, float("nan")])
def test_a_count_must_be_a_whole_number_of_at_least_one(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name}={value}: must be a whole number of at least 1"):
        sadi({name: value})


def test_auto_is_for_k_and_delta_alone() -> None:
    for name in ("n_pairs", "n_tune", "seed", "max_settings"):
        with pytest.raises(UserError, match=f"{name}=auto"):
            sadi({name: "auto"})
    with pytest.raises(UserError, match="at least 1 or auto"):
        sadi({"top_k": "aut"})


def test_every_fault_is_told_at_once_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        sadi({"grid": "0xnan", "n_tune": 0, "objective": "acuracy", "method": "sady"})
    message = str(caught.value)
    assert "\n" not in message
    for word in ("'0'", "'nan'", "n_tune=0", "objective=acuracy", "method=sady", "'sadi'"):
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "largest"),
    [
        ({}, 0),
        ({"top_k": "auto"}, 0),
        ({"delta": 3}, 0),
        ({"top_k": 5}, 5),
        ({"top_k": 5, "delta": "auto"}, 5),
        ({"grid": "1/9/2x3"}, 9),
        ({"grid": "1/9/2x3", "top_k": 4}, 4),
    ],
)
def test_the_largest_k_is_the_user_s_own(arguments: dict[str, Any], largest: int) -> None:
    assert sadi(arguments).largest().get("top_k", 0) == largest


def test_more_entries_than_a_model_has_are_refused_with_both_numbers() -> None:
    sadi({}).axes.check({"top_k": 12}, Size(3, 4), "head")
    with pytest.raises(UserError) as caught:
        sadi({}).axes.check({"top_k": 13}, Size(3, 4), "head")
    for word in ("top_k=13", "12 entries", "element head", "3 layers of 4"):
        assert word in str(caught.value)


# ------------------------------------------------------------------ the other methods


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("iti", {}, True),
        ("iti", {"top_k": "auto"}, True),
        ("iti", {"top_k": 3}, False),
        ("iti", {"alpha": 3}, False),
        ("iti", {"alpha": "auto"}, True),
        ("iti", {"alpha": 0}, False),
        ("iti", {"top_k": 3, "alpha": "auto"}, True),
        ("iti", {"top_k": 3, "alpha": 4}, False),
        ("iti", {"grid": "1x2"}, True),
        ("caa", {}, True),
        ("caa", {"layer": 3}, False),
        ("caa", {"layer": 0}, False),
        ("caa", {"multiplier": 2}, True),  # which layer depends on the model
        ("caa", {"multiplier": 0}, False),
        ("caa", {"layer": 3, "multiplier": "auto"}, True),
        ("caa", {"layer": 3, "multiplier": 1}, False),
        ("caa", {"grid": "0x2"}, True),
        ("none", {}, False),
    ],
)
def test_a_setting_of_another_method_is_tuned_where_the_arguments_leave_a_number_open(
    method: str, arguments: dict[str, Any], expected: bool
) -> None:
    given = {"method": "none"} if method == "none" else arguments
    assert sadi(given, "sadi" if method == "none" else method).is_chosen is expected


def test_the_grid_of_another_method_is_its_own_for_the_model() -> None:
    iti, caa = sadi({}, "iti"), sadi({}, "caa")
    heads, alphas = methods()["iti"]().search_space(None).values
    assert values(iti) == values(iti, (12, 8)) == (heads, alphas)
    assert values(iti, (10, 8)) == ((48, 64, 80), alphas)
    assert values(iti, (3, 4)) == ((12,), alphas)  # all heads, where all K are more
    assert values(caa, (3, 32)) == ((0, 1, 2), caa_module.MULTIPLIERS)
    assert values(sadi({"grid": "0/9x1"}, "caa"), (3, 32)) == ((0, 9), (1.0,))


def test_of_two_numbers_the_one_that_is_not_given_has_its_usual_value() -> None:
    for method, arguments, setting in (
        ("sadi", {"top_k": 3}, (3, 9.0)),
        ("sadi", {"delta": 3}, (6, 3.0)),
        ("sadi", {"delta": 3, "element": "neuron"}, (100, 3.0)),
        ("sadi", {"delta": 3, "element": "hidden"}, (10, 3.0)),
        ("iti", {"top_k": 3}, (3, 15.0)),
        ("iti", {"alpha": 3}, (48, 3.0)),
        ("caa", {"layer": 3}, (3, 1.0)),
    ):
        assert sadi(arguments, method).search_space().settings == [Setting(*setting)]
    assert values(sadi({"multiplier": 3}, "caa"), (2, 32)) == ((0, 1), (3.0,))


def test_a_usual_k_goes_no_further_than_the_model_and_one_that_is_given_is_taken_as_it_is() -> None:
    assert values(sadi({"alpha": 3}, "iti"), (3, 4)) == ((12,), (3.0,))
    assert values(sadi({"delta": 3}), (1, 4)) == ((4,), (3.0,))
    assert values(sadi({"delta": 3}), (3, 4)) == ((6,), (3.0,))
    assert values(sadi({"top_k": 13}, "iti"), (3, 4)) == ((13,), (15.0,))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method in methods()
        for other in methods().values()
        for name in sorted(argument_names(other) - argument_names(methods()[method]))
    ],
)
def test_an_argument_of_another_method_is_refused_by_its_name(method: str, name: str) -> None:
    with pytest.raises(UserError) as caught:
        sadi({name: 3}, method)
    message = str(caught.value)
    assert message.startswith(f"{name}=3: hf-{method} has no {name}")
    assert "\n" not in message
    assert " and ".join(methods()[method]().axes.names) in message


def test_an_argument_of_another_method_is_told_with_every_other_fault() -> None:
    with pytest.raises(UserError) as caught:
        sadi({"alpha": "auto", "layer": 1, "seed": -1, "delta": "strong"})
    for word in ("alpha=auto", "layer=1", "seed=-1", "delta=strong"):
        assert word in str(caught.value)


def test_every_method_takes_its_own_arguments_and_those_of_all() -> None:
    shared = {"n_pairs": 9, "folds": 3, "seed": 2, "objective": "metric", "n_tune": 5}
    for method, arguments in (
        ("sadi", {"top_k": 3, "delta": -1.5, "element": "neuron", "steering": "fixed"}),
        ("iti", {"top_k": 3, "alpha": -1.5, "direction": "probe"}),
        ("caa", {"layer": 0, "multiplier": -1.5}),
    ):
        given = {**shared, **arguments}
        found = read_arm(method, given)
        assert found.options == Options(**shared)  # type: ignore[arg-type]
        names = found.axes.names
        assert found.given == tuple(arguments[name] for name in names)
        assert found.given[1] == -1.5
        own = {name: value for name, value in arguments.items() if name not in names}
        assert found.method == methods()[method](**own)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("iti", {"alpha": "strong"}, ["alpha=strong: must be a finite number or auto"]),
        ("iti", {"alpha": float("nan")}, ["alpha=nan"]),
        ("iti", {"top_k": 0}, ["top_k=0", "at least 1 or auto"]),
        ("iti", {"direction": "probes"}, ["direction=probes", "'probe'"]),
        ("iti", {"grid": "1x2", "top_k": 1, "alpha": 2}, ["a fixed top_k and alpha"]),
        ("iti", {"grid": "0xz"}, ["K must", "alpha must"]),
        ("caa", {"layer": -1}, ["layer=-1", "at least 0 or auto"]),
        ("caa", {"layer": 1.5}, ["layer=1.5"]),
        ("caa", {"multiplier": True}, ["multiplier=True"]),
        ("caa", {"grid": "0x2", "layer": 0, "multiplier": 2}, ["a fixed layer and multiplier"]),
        ("caa", {"grid": "-1xz"}, ["layer must", "multiplier must"]),
        ("caa", {"grid": "0/1x0"}, ["multiplier 0 alone steers nothing", "another multiplier"]),
        ("iti", {"max_settings": 19}, ["20 settings", "max_settings=19"]),
    ],
)
def test_a_fault_is_told_in_the_words_of_the_method(
    method: str, arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        sadi(arguments, method)
    message = str(caught.value)
    assert "\n" not in message
    assert "delta" not in message
    assert all(word in message for word in words), message


def test_a_layer_that_a_model_has_not_is_refused_with_those_that_it_has() -> None:
    caa = sadi({"layer": 7}, "caa")
    assert caa.largest() == {"layer": 7}
    assert sadi({"grid": "0/9/3x1"}, "caa").largest() == {"layer": 9, "multiplier": 1}
    caa.axes.check({"layer": 2}, Size(3, 32), "hidden")
    with pytest.raises(UserError, match="layer=3: this model has layers 0 to 2"):
        caa.axes.check({"layer": 3}, Size(3, 32), "hidden")
    with pytest.raises(UserError, match=r"top_k=13: .*12 entries of element head"):
        sadi({}, "iti").axes.check({"top_k": 13}, Size(3, 4), "head")


@pytest.mark.parametrize("method", methods())
def test_every_model_takes_method_none_and_no_other_method(method: str) -> None:
    found = read_arm(method, {"method": "none", "n_pairs": 7})
    assert (found.method, found.options) == (None, Options(n_pairs=7))
    given = needed(method_class(method))
    assert read_arm(method, {**given, "method": method}) == read_arm(method, given)
    with pytest.raises(UserError, match=f"method=other: .*{method}"):
        read_arm(method, {"method": "other"})


def test_the_faults_of_shared_arguments_are_told_without_a_method_too() -> None:
    found, faults = read_options({"seed": -1, "folds": 1, "n_pairs": 5})
    assert found == Options(n_pairs=5)
    assert [fault.partition(":")[0] for fault in faults] == ["folds=1", "seed=-1"]
