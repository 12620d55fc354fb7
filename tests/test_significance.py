"""Paired tests agree with scipy and statsmodels, and say nothing where there is nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sadi_lmeval.reports.significance import compare_paired, holm

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_right_and_wrong_are_compared_by_the_exact_mcnemar_test() -> None:
    values = [1.0] * 9 + [0.0] * 1 + [1.0] * 20
    baseline = [0.0] * 9 + [1.0] * 1 + [1.0] * 20
    found = compare_paired(values, baseline)
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(binomtest(1, 10, 0.5).pvalue)
    assert found.p == pytest.approx(2 * 11 / 1024)  # by hand: 10 of 1024 + 1 of 1024, twice
    assert found.difference == pytest.approx(8 / 30)
    differences = np.array(values) - np.array(baseline)
    assert found.stderr == pytest.approx(differences.std(ddof=1) / math.sqrt(30))
    assert found.low is not None
    assert found.high is not None
    assert found.difference is not None
    assert 0 < found.low < found.difference < found.high


def test_other_values_are_compared_by_a_bootstrap_near_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    baseline = rng.random(400)
    values = baseline + rng.normal(0.02, 0.1, 400)
    found = compare_paired(values.tolist(), baseline.tolist())
    differences = values - baseline
    error = differences.std(ddof=1) / 20
    assert found.test == "bootstrap"
    assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    z = differences.mean() / error
    assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=0.3)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    values, baseline = [0.1, 0.5, 0.9, 0.2, 0.7], [0.2, 0.4, 0.6, 0.25, 0.1]
    assert compare_paired(values, baseline) == compare_paired(values, baseline)
    assert compare_paired(values, baseline, 1) != compare_paired(values, baseline, 2)


numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])


@settings(max_examples=25)
@given(st.lists(numbers, min_size=1, max_size=30))
def test_identical_rows_do_not_differ(values: list[float]) -> None:
    found = compare_paired(values, values)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


@settings(max_examples=25)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_the_two_sides_may_be_swapped(pairs: list[tuple[float, float]]) -> None:
    one = compare_paired([a for a, _ in pairs], [b for _, b in pairs])
    other = compare_paired([b for _, b in pairs], [a for a, _ in pairs])
    assert one.difference is not None
    assert other.difference is not None
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p, abs=1e-3)
    assert one.p is not None
    assert 0 < one.p <= 1


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=8))
def test_few_documents_are_never_surer_than_the_sign_flip_test(gains: list[float]) -> None:
    found = compare_paired(gains, [0.0] * len(gains))
    assert found.p is not None
    assert found.p >= 2 / 2 ** len(gains)


def test_of_few_documents_the_signs_are_flipped_all_ways() -> None:
    differences = np.random.default_rng(3).normal(0.4, 1, 10)
    found = compare_paired([*differences, 0.5], [0.0] * 10 + [0.5])
    sums = [abs(float(np.dot(signs, differences))) for signs in product((1, -1), repeat=10)]
    assert found.test == "sign flips"
    assert found.p == pytest.approx(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12))


@pytest.mark.parametrize("documents", [6, 16])
def test_few_documents_without_a_difference_keep_the_level(documents: int) -> None:
    rng, runs = np.random.default_rng(0), 200
    drawn = rng.normal(size=(runs, documents))
    p = [compare_paired(row.tolist(), [0.0] * documents).p or 0 for row in drawn]
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean(np.array(p) < 0.05) <= most


def test_a_single_document_tells_nothing() -> None:
    found = compare_paired([0.75], [0.25])
    assert (found.difference, found.stderr, found.low, found.high) == (0.5, None, None, None)
    assert found.p == 1
    assert compare_paired([1.0], [0.0]).p == 1


def test_a_document_without_a_value_on_either_side_is_left_out_and_counted() -> None:
    found = compare_paired([1.0, None, 1.0, math.inf, 0.0], [1.0, 1.0, None, 1.0, 0.0])
    assert (found.documents, found.unpaired, found.p) == (2, 3, 1)
    nothing = compare_paired([None], [1.0])
    assert nothing.documents == 0
    assert nothing[3:] == (None,) * 5


def test_lists_of_different_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        compare_paired([1.0], [1.0, 0.0])


def test_holm_gives_the_numbers_worked_by_hand() -> None:
    # Sorted .01 .02 .04, times 3, 2, 1, and never below the one before.
    assert holm([0.02, 0.04, 0.01]) == pytest.approx([0.04, 0.04, 0.03])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


def test_holm_passes_over_what_was_not_compared() -> None:
    assert holm([None, 0.03, None]) == [None, pytest.approx(0.03), None]
    assert holm([]) == []
    assert holm([None]) == [None]
