"""Settings and their grids, as the reference code has them and as users write them."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.methods import caa, iti, sadi
from sadi_lmeval.settings import (
    Axes,
    Axis,
    SearchSpace,
    Setting,
    read_search_space,
    search_space_of,
)
from sadi_lmeval.types import Size

pytestmark = pytest.mark.quick

SADI, CAA, ITI = sadi.AXES, caa.AXES, iti.ITI().axes
ITI_GRID = iti.ITI().search_space(None)
THREE = Axes(
    Axis("layer", whole=True, least=0, counts="layer"),
    Axis("alpha", least=0, most=1, strength=True),
    Axis("beta"),
)


def space(*values: tuple[float, ...], axes: Axes = SADI) -> SearchSpace:
    return SearchSpace(axes, values)


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
    settings = sadi.GRIDS[element].settings  # type: ignore[index]
    assert len(settings) == len(set(settings)) == count
    assert set(settings) == {Setting(k, strength - 1) for k in top_k for strength in strengths}


def test_the_size_of_an_edit_is_k_times_the_magnitude_of_delta() -> None:
    size = partial(sadi.SADI().edit_size, tensors={})
    assert size(Setting(3, -4.0)) == size(Setting(2, 6.0)) == 12
    assert size(SADI.unsteered) == 0


def test_the_size_of_an_edit_of_a_layer_is_its_strength_whichever_layer_it_is() -> None:
    size = partial(caa.CAA().edit_size, tensors={})
    sizes = {size(Setting(layer, 1.5)) for layer in (0, 1, 30)}
    assert sizes == {size(Setting(7, -1.5))} == {1.5}
    assert size(Setting(30, 1.0)) < size(Setting(0, 1.5))
    assert size(CAA.unsteered) == 0


def test_a_setting_is_told_under_the_names_of_its_method() -> None:
    assert SADI.named(Setting(3, -4.0)) == {"top_k": 3, "delta": -4.0}
    assert CAA.named(Setting(0, 1.5)) == {"layer": 0, "multiplier": 1.5}
    assert CAA.named(CAA.unsteered) == {"layer": 0, "multiplier": 0.0}
    assert ITI.named(Setting(48, 15.0)) == {"top_k": 48, "alpha": 15.0}
    assert THREE.named(Setting(2, 0.5, -1.0)) == {"layer": 2, "alpha": 0.5, "beta": -1.0}


def test_the_grids_of_iti_and_caa_are_their_authors() -> None:
    assert list(ITI_GRID.values) == [(48, 64, 80, 96), (10, 15, 20, 25, 30)]
    assert list(caa.MULTIPLIERS) == [0.5, 1, 1.5, 2]


def test_a_grid_has_no_setting_that_steers_nothing() -> None:
    assert space((1, 2), (0.0, 3.0)).settings == [Setting(1, 3), Setting(2, 3)]
    assert space((1, 2), (0.0, -0.0)).settings == []
    found = space((0, 1), (0.0, 0.5), (0.0, 2.0), axes=THREE).settings
    assert found == [(0, 0.5, 0.0), (0, 0.5, 2.0), (1, 0.5, 0.0), (1, 0.5, 2.0)]


def test_without_a_strength_all_but_the_setting_of_zeros_steer() -> None:
    axes = Axes(Axis("a"), Axis("b"))
    assert space((0.0, 1.0), (0.0, 2.0), axes=axes).settings == [(0, 2), (1, 0), (1, 2)]


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
    found = read_search_space(given, SADI)
    assert found == space(top_k, delta)
    assert all(type(k) is int for k in found.values[0])
    assert all(type(d) is float for d in found.values[1])


@pytest.mark.parametrize(
    "given",
    [
        "1/2x.5/1x0/-1",
        "layer:1/2,alpha:.5/1,beta:0/-1",
        "beta:0/-1; layer:1/2; alpha:.5/1",
        {"layer": [1, 2], "alpha": (0.5, 1), "beta": "0/-1".split("/")},
    ],
)
def test_a_space_of_three_numbers_is_read_in_order_or_by_name(given: object) -> None:
    expected = space((1, 2), (0.5, 1.0), (0.0, -1.0), axes=THREE)
    assert read_search_space(given, THREE) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("1/2x.5", ["write layer and alpha and beta as 1/2/4x4/9x.5/1", "layer before the x"]),
        ("1x2x0", ["alpha must be a finite number of at least 0 and of at most 1, not '2'"]),
        ("1x.5x0x3", ["beta must be a finite number, not '0x3'"]),
        ("layer:1,alpha:.5", ["must map layer and alpha and beta"]),
        ("layer:1,alpha:.5,gamma:1", ["must map layer and alpha and beta"]),
        ("layer:x,alpha:,beta:1", ["layer must", "alpha must", "''"]),
    ],
)
def test_the_faults_of_a_space_of_three_numbers_are_told(given: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_search_space(given, THREE)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words", "axes"),
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
    given: object, words: list[str], axes: Axes
) -> None:
    with pytest.raises(UserError) as caught:
        read_search_space(given, axes)
    message = str(caught.value)
    assert message.startswith("grid=")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_the_faults_of_lists_name_their_source() -> None:
    with pytest.raises(UserError, match=r"^mine: K must .*'z'; no delta$"):
        search_space_of([["1", "z"], []], "mine", SADI)
    with pytest.raises(UserError, match=r"^mine: layer must .*'z'; no multiplier$"):
        search_space_of([["0", "z"], []], "mine", CAA)


def test_the_first_layer_may_be_in_a_grid_and_a_k_of_zero_may_not() -> None:
    assert read_search_space("0/3x1/-2", CAA) == space((0, 3), (1.0, -2.0), axes=CAA)
    found = read_search_space({"multiplier": [1], "layer": 0}, CAA)
    assert found == space((0,), (1.0,), axes=CAA)
    with pytest.raises(UserError, match="K must be a whole number of at least 1"):
        read_search_space("0/3x1/-2", SADI)


numbers = st.lists(st.integers(1, 10**6), min_size=1)
finite = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@given(numbers, finite)
def test_whatever_is_written_is_read_back(top_k: list[int], delta: list[float]) -> None:
    text = f"{'/'.join(map(str, top_k))}x{'/'.join(map(repr, delta))}"
    for axes in (SADI, CAA):
        expected = space(tuple(dict.fromkeys(top_k)), tuple(dict.fromkeys(delta)), axes=axes)
        mapping = dict(zip(axes.names, (top_k, delta), strict=True))
        assert read_search_space(text, axes) == read_search_space(mapping, axes) == expected
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
    whole = space(tuple(where), tuple(strength))
    found = whole.thinned(most)
    assert 1 <= len(found.settings) <= most
    for kept, values in zip(found.values, whole.values, strict=True):
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
        ends = [min(2, len(values)) for values in whole.values]
        both = [(a, b) for a, b in sizes if a >= ends[0] and b >= ends[1]]
        assert tuple(map(len, found.values)) in (both or sizes)
        assert len(found.settings) == max(a * b for a, b in both or sizes)


@pytest.mark.parametrize(
    ("grid", "most", "expected"),
    [
        # of as many settings those whose axes are in about their own proportion
        (space((1, 2, 4, 6, 8, 10), tuple(map(float, range(16)))), 24, (3, 8)),
        (space(tuple(range(32)), caa.MULTIPLIERS, axes=CAA), 24, (12, 2)),
        (ITI_GRID, 24, (4, 5)),
        (ITI_GRID, 16, (4, 4)),
        (ITI_GRID, 1, (1, 1)),
        # five of one layer would be more, but say nothing of the others
        (space((0, 1, 2), (1.0, 2.0, 3.0, 4.0, 5.0)), 5, (2, 2)),
        (space((0,), (1.0, 2.0, 3.0, 4.0, 5.0)), 3, (1, 3)),
        (space(tuple(range(8)), (0.25, 0.5, 1.0), (-1.0, 0.0, 1.0), axes=THREE), 12, (3, 2, 2)),
        (space(tuple(range(8)), (0.5,), (-1.0, 0.0, 1.0), axes=THREE), 6, (3, 1, 2)),
    ],
)
def test_all_axes_of_a_grid_are_thinned(
    grid: SearchSpace, most: int, expected: tuple[int, ...]
) -> None:
    found = grid.thinned(most)
    assert tuple(map(len, found.values)) == expected
    assert len(found.settings) <= most


def test_of_an_axis_that_is_thinned_to_one_value_the_middle_is_kept() -> None:
    assert space((1, 2, 3), (4.0, 5.0, 6.0)).thinned(1) == space((2,), (5.0,))


three = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=9, unique=True),
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6, unique=True),
    st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=5, unique=True),
)


@given(three, st.integers(1, 60) | st.integers(1, 300))
def test_a_thinned_space_of_three_numbers_keeps_every_axis_where_it_can(
    values: tuple[list[int], list[float], list[float]], most: int
) -> None:
    whole = space(*(tuple(each) for each in values), axes=THREE)
    if not whole.settings:
        return
    found = whole.thinned(most)
    assert 1 <= len(found.settings) <= most
    assert set(found.settings) <= set(whole.settings)
    if len(whole.settings) <= most:
        assert found is whole
        return
    steering: list[Sequence[float]] = [
        values[0],
        [alpha for alpha in values[1] if alpha],
        values[2],
    ]
    for kept, every in zip(found.values, steering, strict=True):
        places = [every.index(value) for value in kept]
        assert places == sorted(set(places))
        if len(places) > 1:
            assert (places[0], places[-1]) == (0, len(every) - 1)
            gaps = [b - a for a, b in pairwise(places)]
            assert max(gaps) - min(gaps) <= 1
    # no axis is given up where all can be kept; then no other choice has more settings
    lengths = [len(every) for every in steering]
    sizes = [
        size
        for size in itertools.product(*(range(1, length + 1) for length in lengths))
        if math.prod(size) <= most
    ]
    all_axes = [
        size
        for size in sizes
        if all(n > 1 or length == 1 for n, length in zip(size, lengths, strict=True))
    ]
    assert tuple(map(len, found.values)) in (all_axes or sizes)
    assert len(found.settings) == max(map(math.prod, all_axes or sizes))


@pytest.mark.parametrize("most", [1, 3, 4, 5, 8, 9])
def test_a_thinned_space_of_two_strengths_has_no_more_settings_than_were_asked_for(
    most: int,
) -> None:
    axes = Axes(Axis("push", strength=True), Axis("pull", strength=True))
    found = space((0.0, 1.0, 2.0), (0.0, 1.0, 2.0), axes=axes).thinned(most)
    assert 1 <= len(found.settings) <= most


def test_a_space_goes_no_further_than_the_model() -> None:
    size = Size(3, 4, 32)
    assert space((1, 12, 13), (2.0,)).within(size) == space((1, 12), (2.0,))
    assert space((48, 64), (2.0,)).within(size) == space((12,), (2.0,))
    found = space((0, 2, 3, 30), (0.5,), (1.0,), axes=THREE).within(size)
    assert found.values[0] == (0, 2)
    single = Axes(Axis("n", whole=True, counts="activations"))
    assert space((1, 96, 97), axes=single).within(size).values == ((1, 96),)
    assert space((1, 96, 97), axes=single).within(Size(3, 4)).values == ((1, 96, 97),)


def test_settings_and_axes_come_back_from_another_process_and_from_a_copy() -> None:
    axes = Axes(Axis("top_k", whole=True), Axis("delta", strength=True))
    for again in (pickle.loads(pickle.dumps(axes)), copy.copy(axes), copy.deepcopy(axes)):
        assert again == axes
        assert again.names == ("top_k", "delta")
    setting = Setting(1, 2.0)
    for found in (pickle.loads(pickle.dumps(setting)), copy.copy(setting), copy.deepcopy(setting)):
        assert (type(found), found) == (Setting, setting)
