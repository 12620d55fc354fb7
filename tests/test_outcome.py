"""Means, standard errors and differences; and which setting is taken."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sadi_lmeval.methods import caa, sadi
from sadi_lmeval.settings import Axes, Setting
from sadi_lmeval.steering.objective import Judged
from sadi_lmeval.steering.outcome import Choice, Outcome, as_numbers, outcome, ranked

pytestmark = pytest.mark.quick

SADI, CAA = sadi.AXES, caa.AXES
SIZES = {
    axes: partial(method.edit_size, tensors={})
    for axes, method in ((SADI, sadi.SADI()), (CAA, caa.CAA()))
}
UNSTEERED = SADI.unsteered
SOME = Setting(2, 3.0)
NAN = Judged(math.nan, math.nan)


def judged(*values: float) -> list[Judged]:
    return [Judged(value, 2 * value) for value in values]


def summed_up(setting: Setting, steered: list[Judged], unsteered: list[Judged]) -> Outcome:
    return outcome(setting, as_numbers(steered), as_numbers(unsteered))


def row(where: int, strength: float, score: float | None, margin: float | None = 0.0) -> Outcome:
    if score is None:
        return Outcome(Setting(where, strength), None, None, None, None, None, 1)
    return Outcome(Setting(where, strength), score, 0.1, score, 0.1, margin)


numbers = st.lists(
    st.tuples(*[st.floats(-100, 100, allow_subnormal=False)] * 2), min_size=2, max_size=30
)


@given(numbers)
def test_means_and_standard_errors_are_those_of_the_documents(
    pairs: list[tuple[float, float]],
) -> None:
    values, before = (np.array(column) for column in zip(*pairs, strict=True))
    found = summed_up(SOME, judged(*values), judged(*before))
    assert found.setting == SOME
    assert found.not_finite == 0
    expected = [
        np.mean(values),
        stats.sem(values),
        np.mean(values - before),
        stats.sem(values - before),
        2 * np.mean(values),
    ]
    assert list(found[1:6]) == pytest.approx(expected, abs=1e-9)


def test_the_difference_is_paired() -> None:
    found = summed_up(SOME, judged(1, 2, 3), judged(0, 1, 2))
    assert (found.difference, found.difference_stderr) == (1.0, 0.0)
    assert found.stderr == pytest.approx(1 / math.sqrt(3))


def test_the_likelihood_s_difference_is_paired_and_missing_where_there_are_no_choices() -> None:
    steered = [Judged(1, 0, -0.5), Judged(0, 0, -1.0), Judged(0, 0, -3.0)]
    before = [Judged(1, 0, -1.0), Judged(0, 0, -2.0), Judged(0, 0, -3.0)]
    found = summed_up(SOME, steered, before)
    assert found.likelihood_difference == pytest.approx(0.5)
    assert found.likelihood_difference_stderr == pytest.approx(stats.sem([0.5, 1.0, 0.0]))
    assert summed_up(SOME, judged(1, 2), judged(1, 2)).likelihood_difference is None
    bad = summed_up(SOME, steered, [*before[:2], NAN])
    assert bad.score == pytest.approx(1 / 3)
    assert bad.likelihood_difference is None


def test_the_unsteered_model_differs_from_itself_by_nothing() -> None:
    found = summed_up(UNSTEERED, judged(1, 5), judged(1, 5))
    assert (found.difference, found.difference_stderr) == (0.0, 0.0)


def test_one_document_has_no_spread() -> None:
    assert summed_up(SOME, judged(3), judged(1)) == Outcome(SOME, 3.0, 0.0, 2.0, 0.0, 6.0)


def test_documents_with_scores_that_are_not_finite_are_counted() -> None:
    found = summed_up(SOME, [*judged(1, 2), NAN, NAN], judged(1, 2, 3, 4))
    assert found == Outcome(SOME, None, None, None, None, None, 2)


def test_a_setting_is_summed_up_where_the_unsteered_model_is_not_finite() -> None:
    """The file that it is written to takes finite numbers and null alone."""
    found = summed_up(SOME, judged(1, 2, 3), [*judged(1, 2), NAN])
    assert found.score == 2.0
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row(0, 0, 0.5), row(1, 3, 0.6), row(2, 3, 0.4)], 1),
        # the score before the margin and the size
        ([row(0, 0, 0.5, 9.0), row(8, 9, 0.6, -9.0)], 1),
        # then the margin before the size
        ([row(0, 0, 0.5, 1.0), row(8, 9, 0.5, 2.0), row(1, 1, 0.5, 1.5)], 1),
        # then the smaller K·|delta|
        ([row(4, 3, 0.5), row(2, -5, 0.5), row(3, 4, 0.5)], 1),
        ([row(1, 9, 0.5), row(8, 1, 0.5)], 1),
        # the unsteered model is the smallest edit of all
        ([row(0, 0, 0.5), row(1, 0.1, 0.5)], 0),
        ([row(1, 0.1, 0.5), row(0, 0, 0.5)], 1),
        # what is equal but for rounding is equal
        ([row(0, 0, 0.3), row(1, 1, 0.1 + 0.2)], 0),
        ([row(0, 0, 0.3, 0.3), row(1, 1, 0.3, 0.1 + 0.2)], 0),
        # the first of those that are equal in everything
        ([row(2, 3, 0.5), row(3, 2, 0.5)], 0),
        # never one with a score that is not finite
        ([row(0, 0, -5.0), row(1, 1, None), row(2, 2, -9.0)], 0),
        ([row(0, 0, None), row(1, 1, None), row(9, 9, -9.0)], 2),
        ([row(1, 1, None), row(0, 0, None)], 1),
    ],
)
def test_the_best_score_wins_then_the_margin_then_the_smaller_edit(
    rows: list[Outcome], chosen: int
) -> None:
    assert ranked(rows, SIZES[SADI])[0] == chosen


def test_of_equal_layers_the_first_is_taken_and_the_weaker_edit_before_it() -> None:
    assert ranked([row(0, 0, 0.4), row(9, 1, 0.5), row(0, 1, 0.5)], SIZES[CAA])[0] == 1
    assert ranked([row(0, 0, 0.4), row(0, 1.5, 0.5), row(9, -1, 0.5)], SIZES[CAA])[0] == 2
    assert ranked([row(0, 0, 0.5), row(0, 1, 0.5)], SIZES[CAA])[0] == 0


table = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from([-2.0, 1.0, 2.0]),
        st.none() | st.sampled_from([0.25, 0.5]),
        st.sampled_from([-1.0, 1.0]),
    ),
    max_size=8,
)


@pytest.mark.parametrize("axes", [SADI, CAA])
@given(table)
def test_nothing_in_the_table_is_better_than_what_is_chosen(
    axes: Axes,
    rows: list[tuple[int, float, float | None, float]],
) -> None:
    outcomes = [row(0, 0, 0.25), *(row(*each) for each in rows)]
    chosen = outcomes[ranked(outcomes, SIZES[axes])[0]]
    assert chosen.score is not None
    assert chosen.margin is not None
    for other in outcomes:
        if other.score is not None and other.margin is not None:
            keys = [(o.score, o.margin, -SIZES[axes](o.setting)) for o in (other, chosen)]
            assert keys[0] <= keys[1]


@given(table)
def test_every_setting_is_ranked_once_and_none_before_a_better_one(
    rows: list[tuple[int, float, float | None, float]],
) -> None:
    outcomes = [row(0, 0, 0.25), *(row(*each) for each in rows)]
    order = ranked(outcomes, SIZES[SADI])
    assert sorted(order) == list(range(len(outcomes)))
    finite = [outcomes[index] for index in order if outcomes[index].score is not None]
    scores = [found.score for found in finite if found.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert all(outcomes[index].score is None for index in order[len(finite) :])


def test_the_record_is_plain_json_with_a_line_for_every_setting() -> None:
    outcomes = [row(0, 0, 0.5, 1.0), row(2, 3, 0.75, 2.0), row(4, 3, None)]
    record = Choice(outcomes, 1, 9, "metric", SADI, "sure", 0.125).record().to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["chosen"] == {"top_k": 2, "delta": 3}
    assert (record["objective"], record["documents"]) == ("metric", 9)
    assert (record["rule"], record["p_max"]) == ("sure", 0.125)
    assert [(line["top_k"], line["delta"], line["score"]) for line in record["table"]] == [
        (0, 0, 0.5),
        (2, 3, 0.75),
        (4, 3, None),
    ]
    assert set(record["table"][0]) == {"top_k", "delta", *Outcome._fields} - {"setting"}
    layers = Choice(outcomes, 1, 9, "metric", CAA, "sure", None).record().to_json()
    assert layers["p_max"] is None
    assert layers["chosen"] == {"layer": 2, "multiplier": 3}
    assert set(layers["table"][0]) == {"layer", "multiplier", *Outcome._fields} - {"setting"}
    assert [(line["layer"], line["multiplier"]) for line in layers["table"]] == [
        (0, 0),
        (2, 3),
        (4, 3),
    ]
