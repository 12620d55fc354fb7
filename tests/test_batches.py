"""Batches: every row once, within the bounds, and for the fewest tokens."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sadi_lmeval.passes.batches import Bounds, batches

pytestmark = pytest.mark.quick


class Sizes(NamedTuple):
    length: int
    scored: int
    is_masked: bool = False


some_rows = st.lists(
    st.builds(Sizes, st.integers(1, 30), st.integers(0, 6), st.booleans()), max_size=25
)
few_rows = st.lists(st.builds(Sizes, st.integers(1, 30), st.just(1)), min_size=1, max_size=9)
some_bounds = st.builds(
    Bounds,
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(1, 90),
    st.integers(1, 15),
    st.sampled_from([0, 1, 32, 1000]),
    st.sampled_from([500, 3000, 1 << 20]),
)
thorough = settings(max_examples=300)


def fits(batch: list[Sizes], bounds: Bounds, past: int = 0) -> bool:
    longest = max(row.length for row in batch)
    mask = len(batch) * longest * (past + longest) if any(row.is_masked for row in batch) else 0
    return len(batch) == 1 or (
        (bounds.rows is None or len(batch) <= bounds.rows)
        and len(batch) * longest <= bounds.tokens
        and mask <= bounds.mask
        and sum(row.scored for row in batch) <= bounds.scored
    )


def cost(packed: list[list[Sizes]], bounds: Bounds) -> int:
    return sum(len(b) * max(row.length for row in b) + bounds.start for b in packed)


def longest_first(rows: list[Sizes]) -> list[Sizes]:
    return sorted(rows, key=lambda row: row.length)[::-1]


def greedily(rows: list[Sizes], bounds: Bounds) -> list[list[Sizes]]:
    """The longest first, each into the last batch as long as that takes it."""
    packed: list[list[Sizes]] = []
    for row in longest_first(rows):
        if packed and fits([*packed[-1], row], bounds):
            packed[-1].append(row)
        else:
            packed.append([row])
    return packed


def every_cut(rows: list[Sizes]) -> list[list[list[Sizes]]]:
    """Every way to cut rows, the longest first, into batches."""
    if not rows:
        return [[]]
    return [
        [rows[:first], *rest]
        for first in range(1, len(rows) + 1)
        for rest in every_cut(rows[first:])
    ]


@given(some_rows, some_bounds, st.sampled_from([0, 40]))
@thorough
def test_batches_hold_every_row_once_within_their_bounds(
    rows: list[Sizes], bounds: Bounds, past: int
) -> None:
    found = list(batches(rows, bounds, past))
    assert Counter(row for batch in found for row in batch) == Counter(rows)
    assert all(found)
    assert all(fits(batch, bounds, past) for batch in found)


@given(some_rows, some_bounds)
@thorough
def test_the_longest_rows_come_first(rows: list[Sizes], bounds: Bounds) -> None:
    lengths = [row.length for batch in batches(rows, bounds) for row in batch]
    assert lengths == sorted(lengths, reverse=True)


@given(some_rows, some_bounds)
@thorough
def test_batches_cost_no_more_than_to_fill_one_after_the_other(
    rows: list[Sizes], bounds: Bounds
) -> None:
    assert cost(list(batches(rows, bounds)), bounds) <= cost(greedily(rows, bounds), bounds)


@given(few_rows, some_bounds)
@settings(max_examples=60)
def test_no_way_to_cut_the_rows_costs_less(rows: list[Sizes], bounds: Bounds) -> None:
    ways = [way for way in every_cut(longest_first(rows)) if all(fits(b, bounds) for b in way)]
    assert cost(list(batches(rows, bounds)), bounds) == min(cost(way, bounds) for way in ways)


@pytest.mark.parametrize(("start", "expected"), [(0, [2, 2]), (11, [2, 2]), (13, [4])])
def test_padding_up_to_the_cost_of_a_start_is_worth_it(start: int, expected: list[int]) -> None:
    rows = [Sizes(10, 1), Sizes(10, 1), Sizes(4, 1), Sizes(4, 1)]  # 12 tokens of padding
    assert [len(batch) for batch in batches(rows, Bounds(None, 1000, 1000, start))] == expected


def test_a_row_that_is_larger_than_the_bounds_is_a_batch_of_its_own() -> None:
    rows = [Sizes(100, 1), Sizes(3, 50), Sizes(3, 1), Sizes(3, 1)]
    found = list(batches(rows, Bounds(2, 10, 5)))
    assert sorted(map(len, found)) == [1, 1, 2]
    assert [Sizes(100, 1)] in found
    assert [Sizes(3, 50)] in found


def test_no_rows_are_no_batches() -> None:
    assert list(batches([], Bounds(None, 10, 10))) == []
