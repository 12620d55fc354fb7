"""Which arguments leave K and delta to be tuned, and over which grid."""

from __future__ import annotations

from typing import Any

import pytest

from sadi_lmeval.errors import UserError
from sadi_lmeval.options import Options, check_top_k, grid, largest_top_k, parse, tuned
from sadi_lmeval.settings import REFERENCE, Grid, Setting


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
    assert tuned(parse(arguments)) is expected


def test_the_grid_is_the_reference_code_s_of_the_element() -> None:
    for element in ("head", "neuron", "hidden"):
        assert grid(parse({"element": element})) == REFERENCE[element]


def test_a_number_that_the_user_fixed_stands_in_place_of_its_list() -> None:
    assert grid(parse({"top_k": 3, "delta": "auto"})) == Grid((3,), REFERENCE["head"].delta)
    assert grid(parse({"delta": -2, "top_k": "auto"})) == Grid(REFERENCE["head"].top_k, (-2.0,))
    assert grid(parse({"grid": "1/2x4/9", "top_k": 7})) == Grid((7,), (4.0, 9.0))
    assert grid(parse({"grid": "1/2x4/9", "delta": 1})) == Grid((1, 2), (1.0,))
    assert grid(parse({"top_k": 3, "delta": 2})).settings == [Setting(3, 2.0)]


def test_the_reference_grid_goes_no_further_than_the_model_and_the_user_s_is_taken_as_it_is() -> (
    None
):
    assert grid(parse({}), 6).top_k == (1, 2, 4, 6)
    assert grid(parse({}), 5).top_k == (1, 2, 4)
    assert grid(parse({"element": "neuron"}), 144).top_k == (3, 5, 10, 30, 50, 100)
    assert grid(parse({"grid": "2/8x1"}), 6).top_k == (2, 8)
    assert grid(parse({"top_k": 8, "delta": "auto"}), 6).top_k == (8,)


def test_no_more_settings_than_max_settings_are_tried() -> None:
    assert grid(parse({"grid": "1/2x3/4", "max_settings": 4})).settings
    with pytest.raises(UserError) as caught:
        parse({"grid": "1/2/3x3/4", "max_settings": 5})
    for word in ("6 settings", "max_settings=5", "smaller grid="):
        assert word in str(caught.value)
    with pytest.raises(UserError, match="96 settings"):
        parse({"max_settings": 95})
    assert parse({"max_settings": 96}) == Options(max_settings=96)


def test_a_delta_of_zero_is_no_setting_and_does_not_count() -> None:
    assert len(grid(parse({"grid": "1/2x0/4", "max_settings": 2})).settings) == 2


def test_what_is_not_tuned_is_not_counted() -> None:
    assert parse({"top_k": 3, "max_settings": 1}).top_k == 3
    assert parse({"top_k": 3, "delta": 2, "max_settings": 1}).delta == 2


def test_a_grid_with_both_numbers_fixed_is_refused() -> None:
    with pytest.raises(UserError, match="grid= was given with a fixed top_k and delta"):
        parse({"grid": "1x2", "top_k": 1, "delta": 2})
    for part in ({"top_k": 1, "delta": "auto"}, {"top_k": "auto", "delta": 2}, {"top_k": 1}):
        assert parse({"grid": "1x2", **part}).grid == Grid((1,), (2.0,))


@pytest.mark.parametrize("name", ["n_tune", "max_settings"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, float("nan")])
def test_a_count_must_be_a_whole_number_of_at_least_one(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name}={value}: must be a whole number of at least 1"):
        parse({name: value})


def test_auto_is_for_k_and_delta_alone() -> None:
    for name in ("n_pairs", "n_tune", "seed", "max_settings"):
        with pytest.raises(UserError, match=f"{name}=auto"):
            parse({name: "auto"})
    with pytest.raises(UserError, match="at least 1 or auto"):
        parse({"top_k": "aut"})


def test_every_fault_is_told_at_once_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        parse({"grid": "0xnan", "n_tune": 0, "objective": "acuracy", "method": "sady"})
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
    assert largest_top_k(parse(arguments)) == largest


def test_more_entries_than_a_model_has_are_refused_with_both_numbers() -> None:
    check_top_k(12, 3, 4, "head")
    with pytest.raises(UserError) as caught:
        check_top_k(13, 3, 4, "head")
    for word in ("top_k=13", "12 entries", "element head", "3 layers of 4"):
        assert word in str(caught.value)
