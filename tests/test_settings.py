"""Settings and their grids, as the reference code has them and as users write them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.settings import (
    CAA_STRENGTHS,
    ITI_GRID,
    SADI_GRIDS,
    UNSTEERED,
    Grid,
    Parameters,
    Setting,
    grid_of,
    read_grid,
)

SADI = Parameters("top_k", "delta")
CAA = Parameters("layer", "multiplier")


@pytest.mark.parametrize(
    ("element", "count", "top_k", "strengths"),
    [
        ("head", 96, [1, 2, 4, 6, 8, 10], range(5, 81, 5)),
        ("neuron", 60, [3, 5, 10, 30, 50, 100, 200, 300, 400, 500], [10, 20, 30, 50, 70, 90]),
        ("hidden", 176, [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20], range(5, 81, 5)),
    ],
)
def test_a_reference_grid_is_the_paper_s_with_delta_one_below_its_strength(
    element: str, count: int, top_k: list[int], strengths: list[int]
) -> None:
    settings = SADI_GRIDS[element].settings
    assert len(settings) == len(set(settings)) == count
    assert set(settings) == {Setting(k, strength - 1) for k in top_k for strength in strengths}


def test_the_size_of_an_edit_is_k_times_the_magnitude_of_delta() -> None:
    assert Setting(3, -4.0).size(SADI) == Setting(2, 6.0).size(SADI) == 12
    assert UNSTEERED.size(SADI) == 0


def test_the_size_of_an_edit_of_a_layer_is_its_strength_whichever_layer_it_is() -> None:
    sizes = {Setting(layer, 1.5).size(CAA) for layer in (0, 1, 30)}
    assert sizes == {Setting(7, -1.5).size(CAA)} == {1.5}
    assert Setting(30, 1.0).size(CAA) < Setting(0, 1.5).size(CAA)
    assert UNSTEERED.size(CAA) == 0


def test_a_setting_is_told_under_the_names_of_its_method() -> None:
    assert Setting(3, -4.0).named(SADI) == {"top_k": 3, "delta": -4.0}
    assert Setting(0, 1.5).named(CAA) == {"layer": 0, "multiplier": 1.5}
    assert UNSTEERED.named(CAA) == {"layer": 0, "multiplier": 0.0}
    assert Setting(48, 15.0).named(Parameters("top_k", "alpha")) == {"top_k": 48, "alpha": 15.0}


def test_the_grids_of_iti_and_caa_are_their_authors() -> None:
    assert list(ITI_GRID) == [(48, 64, 80, 96), (10, 15, 20, 25, 30)]
    assert list(CAA_STRENGTHS) == [0.5, 1, 1.5, 2]


def test_a_grid_has_no_setting_that_steers_nothing() -> None:
    assert Grid((1, 2), (0.0, 3.0)).settings == [Setting(1, 3), Setting(2, 3)]
    assert Grid((1, 2), (0.0, -0.0)).settings == []


@pytest.mark.parametrize(
    ("given", "top_k", "delta"),
    [
        ("1/2/4x4/9", (1, 2, 4), (4.0, 9.0)),
        ("3x-2.5", (3,), (-2.5,)),
        ("2 / 1X 1e1", (2, 1), (10.0,)),
        ("3.0x.5", (3,), (0.5,)),
        ("2/1/2x4/4.0/1", (2, 1), (4.0, 1.0)),
        ({"top_k": [1, 2], "delta": [3, 4.5]}, (1, 2), (3.0, 4.5)),
        ({"delta": 3, "top_k": (2,)}, (2,), (3.0,)),
        ({"top_k": "4", "delta": ["1", 1]}, (4,), (1.0,)),
    ],
)
def test_a_grid_is_read_as_text_or_as_a_mapping_and_duplicates_are_dropped(
    given: object, top_k: tuple[int, ...], delta: tuple[float, ...]
) -> None:
    found = read_grid(given, SADI)
    assert found == Grid(top_k, delta)
    assert all(type(k) is int for k in found.where)
    assert all(type(d) is float for d in found.strength)


@pytest.mark.parametrize(
    ("given", "words", "parameters"),
    [
        ("1/2", ["grid=1/2", "1/2/4x4/9", "K before the x"], SADI),
        (7, ["grid=7"], SADI),
        ("", ["grid="], SADI),
        ("0x4", ["K must be a whole number of at least 1, not '0'"], SADI),
        ("-2x4", ["'-2'"], SADI),
        ("1.5x4", ["'1.5'"], SADI),
        ("infx4", ["K must", "'inf'"], SADI),
        ("nanx4", ["K must", "'nan'"], SADI),
        ("1xnan", ["delta must be a finite number, not 'nan'"], SADI),
        ("1x-inf", ["'-inf'"], SADI),
        ("1x1e999", ["'1e999'"], SADI),
        ("x", ["K must", "delta must"], SADI),
        ("1/x4", ["K must", "''"], SADI),
        ("1x4x9", ["delta must", "'4x9'"], SADI),
        ("0/ax4/b/nan", ["'0'", "'a'", "'b'", "'nan'"], SADI),
        ({"top_k": [], "delta": []}, ["no K", "no delta"], SADI),
        ({"top_k": [True], "delta": [False]}, ["not True", "not False"], SADI),
        ({"top_k": [0, None], "delta": [math.nan]}, ["not 0", "not None", "not nan"], SADI),
        ({"top_k": [1]}, ["must map top_k and delta"], SADI),
        ({"top_k": [1], "deltas": [1]}, ["must map top_k and delta"], SADI),
        ({"top_k": [1], "delta": [1], "more": 1}, ["must map top_k and delta"], SADI),
        ("1/2", ["1/2/4x4/9", "layer and multiplier", "layer before the x"], CAA),
        ("-1x4", ["layer must be a whole number of at least 0, not '-1'"], CAA),
        ("0.5xnan", ["layer must", "'0.5'", "multiplier must be a finite number", "'nan'"], CAA),
        ({"layer": [], "multiplier": []}, ["no layer", "no multiplier"], CAA),
        ({"top_k": [1], "delta": [1]}, ["must map layer and multiplier"], CAA),
    ],
)
def test_all_faults_of_a_grid_are_told_at_once_in_one_line(
    given: object, words: list[str], parameters: Parameters
) -> None:
    with pytest.raises(UserError) as caught:
        read_grid(given, parameters)
    message = str(caught.value)
    assert message.startswith("grid=")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_faults_of_lists_name_their_source() -> None:
    with pytest.raises(UserError, match=r"^mine: K must .*'z'; no delta$"):
        grid_of(["1", "z"], [], "mine", SADI)
    with pytest.raises(UserError, match=r"^mine: layer must .*'z'; no multiplier$"):
        grid_of(["0", "z"], [], "mine", CAA)


def test_the_first_layer_may_be_in_a_grid_and_a_k_of_zero_may_not() -> None:
    assert read_grid("0/3x1/-2", CAA) == Grid((0, 3), (1.0, -2.0))
    assert read_grid({"multiplier": [1], "layer": 0}, CAA) == Grid((0,), (1.0,))
    with pytest.raises(UserError, match="K must be a whole number of at least 1"):
        read_grid("0/3x1/-2", SADI)


numbers = st.lists(st.integers(1, 10**6), min_size=1)
finite = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@given(numbers, finite)
def test_whatever_is_written_is_read_back(top_k: list[int], delta: list[float]) -> None:
    text = f"{'/'.join(map(str, top_k))}x{'/'.join(map(repr, delta))}"
    expected = Grid(tuple(dict.fromkeys(top_k)), tuple(dict.fromkeys(delta)))
    for names in (SADI, CAA):
        mapping = dict(zip(names, (top_k, delta), strict=True))
        assert read_grid(text, names) == read_grid(mapping, names) == expected
    assert len(set(expected.settings)) == len(set(top_k)) * len(set(delta) - {0.0})


# ------------------------------------------------------------------ thinned

axis = st.lists(st.integers(1, 500), min_size=1, max_size=20, unique=True)
strengths = st.lists(
    st.floats(-100, 100, allow_subnormal=False).filter(bool), min_size=1, max_size=20, unique=True
)


@given(axis, strengths, st.integers(1, 30) | st.integers(1, 500))
def test_a_thinned_grid_is_part_of_the_whole_and_has_no_more_settings_than_were_asked_for(
    where: list[int], strength: list[float], most: int
) -> None:
    whole = Grid(tuple(where), tuple(strength))
    found = whole.thinned(most)
    assert 1 <= len(found.settings) <= most
    for kept, values in zip(found, whole, strict=True):
        places = [values.index(value) for value in kept]
        assert places == sorted(set(places))
        if len(places) > 1:
            assert (places[0], places[-1]) == (0, len(values) - 1)
            gaps = [b - a for a, b in pairwise(places)]
            assert max(gaps) - min(gaps) <= 1
    if len(whole.settings) <= most:
        assert found is whole
    else:
        # neither axis is given up where both can be kept; then no other choice has more settings
        sizes = [(a, min(len(strength), most // a)) for a in range(1, min(len(where), most) + 1)]
        ends = [min(2, len(values)) for values in whole]
        both = [(a, b) for a, b in sizes if a >= ends[0] and b >= ends[1]]
        assert (len(found.where), len(found.strength)) in (both or sizes)
        assert len(found.settings) == max(a * b for a, b in both or sizes)


@pytest.mark.parametrize(
    ("grid", "most", "expected"),
    [
        # of as many settings those whose axes are in about their own proportion
        (Grid((1, 2, 4, 6, 8, 10), tuple(map(float, range(16)))), 24, (3, 8)),
        (Grid(tuple(range(32)), CAA_STRENGTHS), 24, (12, 2)),
        (ITI_GRID, 24, (4, 5)),
        (ITI_GRID, 16, (4, 4)),
        (ITI_GRID, 1, (1, 1)),
        # five of one layer would be more, but say nothing of the others
        (Grid((0, 1, 2), (1.0, 2.0, 3.0, 4.0, 5.0)), 5, (2, 2)),
        (Grid((0,), (1.0, 2.0, 3.0, 4.0, 5.0)), 3, (1, 3)),
    ],
)
def test_both_axes_of_a_grid_are_thinned(grid: Grid, most: int, expected: tuple[int, int]) -> None:
    found = grid.thinned(most)
    assert (len(found.where), len(found.strength)) == expected


def test_of_an_axis_that_is_thinned_to_one_value_the_middle_is_kept() -> None:
    assert Grid((1, 2, 3), (4.0, 5.0, 6.0)).thinned(1) == Grid((2,), (5.0,))
