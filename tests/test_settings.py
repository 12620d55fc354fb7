"""The grids of K and delta, as the reference code has them and as users write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.settings import REFERENCE, UNSTEERED, Grid, Setting, grid_of, read_grid


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
    settings = REFERENCE[element].settings
    assert len(settings) == len(set(settings)) == count
    assert set(settings) == {Setting(k, strength - 1) for k in top_k for strength in strengths}


def test_the_size_of_an_edit_is_k_times_the_magnitude_of_delta() -> None:
    assert Setting(3, -4.0).size == Setting(2, 6.0).size == 12
    assert UNSTEERED.size == 0


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
    found = read_grid(given)
    assert found == Grid(top_k, delta)
    assert all(type(k) is int for k in found.top_k)
    assert all(type(d) is float for d in found.delta)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("1/2", ["grid=1/2", "1/2/4x4/9", "K before the x"]),
        (7, ["grid=7"]),
        ("", ["grid="]),
        ("0x4", ["K must be a whole number of at least 1, not '0'"]),
        ("-2x4", ["'-2'"]),
        ("1.5x4", ["'1.5'"]),
        ("infx4", ["K must", "'inf'"]),
        ("nanx4", ["K must", "'nan'"]),
        ("1xnan", ["delta must be a finite number, not 'nan'"]),
        ("1x-inf", ["'-inf'"]),
        ("1x1e999", ["'1e999'"]),
        ("x", ["K must", "delta must"]),
        ("1/x4", ["K must", "''"]),
        ("1x4x9", ["delta must", "'4x9'"]),
        ("0/ax4/b/nan", ["'0'", "'a'", "'b'", "'nan'"]),
        ({"top_k": [], "delta": []}, ["no K", "no delta"]),
        ({"top_k": [True], "delta": [False]}, ["not True", "not False"]),
        ({"top_k": [0, None], "delta": [math.nan]}, ["not 0", "not None", "not nan"]),
        ({"top_k": [1]}, ["must map top_k and delta"]),
        ({"top_k": [1], "deltas": [1]}, ["must map top_k and delta"]),
        ({"top_k": [1], "delta": [1], "more": 1}, ["must map top_k and delta"]),
    ],
)
def test_all_faults_of_a_grid_are_told_at_once_in_one_line(given: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_grid(given)
    message = str(caught.value)
    assert message.startswith("grid=")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_faults_of_lists_name_their_source() -> None:
    with pytest.raises(UserError, match=r"^mine: K must .*'z'; no delta$"):
        grid_of(["1", "z"], [], "mine")


numbers = st.lists(st.integers(1, 10**6), min_size=1)
finite = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@given(numbers, finite)
def test_whatever_is_written_is_read_back(top_k: list[int], delta: list[float]) -> None:
    text = f"{'/'.join(map(str, top_k))}x{'/'.join(map(repr, delta))}"
    expected = Grid(tuple(dict.fromkeys(top_k)), tuple(dict.fromkeys(delta)))
    assert read_grid(text) == read_grid({"top_k": top_k, "delta": delta}) == expected
    assert len(set(expected.settings)) == len(set(top_k)) * len(set(delta) - {0.0})
