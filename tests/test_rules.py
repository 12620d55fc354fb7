"""The rules against plain loops, and what p_max promises where no setting helps."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sadi_lmeval.options import RuleName
from sadi_lmeval.steering.rules import LEVEL, OF_LIKELIHOOD, RULES, Array, Pick, p_max, pick

pytestmark = pytest.mark.quick


def by_mean(table: Array) -> list[int]:
    return [int(column) for column in np.argsort(-table.mean(0), kind="stable")]


# ------------------------------------------------------------------ against plain loops


def gains_of(table: Array) -> list[tuple[float, float]]:
    """Mean and standard error of every column's differences from column 0."""
    found = []
    for column in range(table.shape[1]):
        differences = [row[column] - row[0] for row in table.tolist()]
        mean = sum(differences) / len(differences)
        spread = sum((each - mean) ** 2 for each in differences) / max(len(differences) - 1, 1)
        found.append((mean, math.sqrt(spread / len(differences))))
    return found


def chance_of_the_best(table: Array) -> float:
    """By trying every sign of every document."""
    rows = [[value - row[0] for value in row[1:]] for row in table.tolist()]
    columns = list(zip(*rows, strict=True))
    errors = [math.sqrt(sum(d**2 for d in column)) or 1.0 for column in columns]
    if max(map(abs, table.ravel().tolist())) <= 1:
        errors = [1.0] * len(columns)
    sums = [sum(column) for column in columns]
    best = sums.index(max(sums))
    reached = 0
    for signs in itertools.product((1, -1), repeat=len(rows)):
        flipped = [sum(s * d for s, d in zip(signs, c, strict=True)) for c in columns]
        largest = max(each / error for each, error in zip(flipped, errors, strict=True))
        reached += largest >= sums[best] / errors[best] - 1e-9
    return float(reached / 2 ** len(rows))


def picked_by_hand(rule: str, value: Array, likelihood: Array) -> int:
    if rule == "sure-or-backed":
        return picked_by_hand("sure", value, likelihood) or picked_by_hand(
            "backed", value, likelihood
        )
    table = likelihood if rule.startswith("likely") else value
    gains, order = gains_of(table), by_mean(table)
    if rule == "best":
        return order[0]
    if rule == "backed":
        backed = [mean > error + 1e-9 for mean, error in gains_of(likelihood)]
        return next((i for i in order if gains[i][0] > 0 and backed[i]), 0)
    mean, error = gains[order[0]]
    if rule == "sure":
        taken = mean > 0 and chance_of_the_best(value) <= 0.25
    else:
        taken = mean > int(rule[-3]) * error + 1e-9
    return order[0] if taken else 0


SCORES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3])).flatmap(
    lambda of: st.lists(
        st.lists(st.integers(0, of[2]), min_size=of[1] + 1, max_size=of[1] + 1),
        min_size=2 * of[0],
        max_size=2 * of[0],
    )
)


@pytest.mark.parametrize("rule", RULES)
@given(SCORES)
def test_every_rule_picks_what_plain_loops_pick(rule: RuleName, scores: list[list[int]]) -> None:
    half = len(scores) // 2
    value, likelihood = np.array(scores[:half], float), np.array(scores[half:], float)
    found = pick(rule, value, likelihood, by_mean(value))
    assert found.column == picked_by_hand(rule, value, likelihood)
    assert found.p_max == pytest.approx(chance_of_the_best(value))


def test_every_name_has_its_rule() -> None:
    assert {*RULES, "auto"} == set(get_args(RuleName))
    assert set(RULES) >= OF_LIKELIHOOD


def test_many_documents_are_flipped_at_random_and_always_alike() -> None:
    random = np.random.default_rng(3)
    differences = random.normal(0.1, 1, (13, 4))
    exact = chance_of_the_best(np.hstack([np.zeros((13, 1)), differences]))
    assert 0.05 < exact < 0.95
    found = p_max(differences, standardised=True)
    assert found == p_max(differences, standardised=True)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 2000))
    assert p_max(np.ones((100, 3)), standardised=False) == 1 / 2001  # (b + 1) / (m + 1): never 0


def test_settings_that_are_copies_of_one_another_cost_nothing() -> None:
    """What correcting for their number one by one would forbid."""
    one = np.random.default_rng(1).normal(0.4, 1, (30, 1))
    for standardised in (True, False):
        found = p_max(np.repeat(one, 300, 1), standardised)
        assert found == p_max(one, standardised) < 0.05


def test_a_setting_that_breaks_the_model_does_not_hide_one_that_helps() -> None:
    """Log-likelihoods have no bound."""
    random = np.random.default_rng(2)
    values = random.normal(-3, 1, (40, 1)) + np.zeros((40, 3))
    values[:, 1] += random.normal(0.3, 0.4, 40)
    values[:, 2] += random.normal(-9, 9, 40)
    found = pick("sure", values, None, by_mean(values))
    assert found.column == 1
    assert found.p_max is not None
    assert found.p_max < 0.01 < p_max((values - values[:, :1])[:, 1:], standardised=False)


# ------------------------------------------------------------------ not finite, few


def test_a_setting_that_is_not_finite_is_never_picked_and_changes_nothing() -> None:
    random = np.random.default_rng(0)
    value, likelihood = random.normal(size=(2, 8, 5))
    value[:, 1:] += [0.1, 3.0, 0.2, 0.5]
    likelihood[:, 1:] += 3
    broken = np.insert(value, 2, 9.0, axis=1)
    broken[5, 2] = np.nan
    ranking = by_mean(value)
    inserted = [*(column + (column >= 2) for column in ranking), 2]
    for rule in RULES:
        expected = pick(rule, value, likelihood, ranking)
        found = pick(rule, broken, np.insert(likelihood, 2, np.nan, axis=1), inserted)
        assert expected.column
        assert found == Pick(expected.column + (expected.column >= 2), expected.p_max)


def test_nothing_is_told_where_the_unsteered_model_is_not_finite() -> None:
    value = np.array([[np.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    for rule in RULES:
        assert pick(rule, value, value, [2, 1, 0]) == Pick(2, None)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_picked_where_settings_change_nothing_or_none_is_finite(rule: RuleName) -> None:
    same = np.ones((20, 3))
    assert pick(rule, same, same, [0, 1, 2]) == Pick(0, 1.0)
    none = np.array([[1.0, np.nan]] * 20)
    assert pick(rule, none, none, [0, 1]) == Pick(0, 1.0)


# ------------------------------------------------------------------ where no setting helps

TRIALS = 400


def grid_of_no_use(random: np.random.Generator, likelihoods: bool = False) -> Array:
    """Scores of 60 documents under 40 settings that are all as good as the unsteered model.

    As on a real grid, settings go together: with their neighbours, and all by the document. Right
    or wrong; or log-likelihoods, which stronger settings change more.
    """
    documents, settings, alike = 60, 40, 0.95
    noise = random.normal(size=(documents, settings + 1))
    for setting in range(1, settings + 1):
        own = math.sqrt(1 - alike**2) * noise[:, setting]
        noise[:, setting] = alike * noise[:, setting - 1] + own
    common = random.normal(size=(documents, 1))
    if likelihoods:
        return common - 3 + noise * np.linspace(0, 3, settings + 1)
    return (common + noise > -0.5).astype(float)


@pytest.fixture(scope="module")
def of_no_use() -> list[Array]:
    random = np.random.default_rng(0)
    return [grid_of_no_use(random) for _ in range(TRIALS)]


def beyond_binomial(level: float) -> float:
    return level + 3 * math.sqrt(level * (1 - level) / TRIALS)


def test_p_max_holds_its_level_where_no_setting_is_better(of_no_use: list[Array]) -> None:
    found = np.array([pick("sure", grid, None, by_mean(grid)).p_max for grid in of_no_use])
    for level in (0.05, 0.1, LEVEL, 0.5):
        assert (found <= level).mean() <= beyond_binomial(level), level
    assert (found <= 0.5).mean() > 0.25  # nor is it so careful that it says nothing


def test_p_max_of_log_likelihoods_holds_its_level_where_no_setting_is_better() -> None:
    random = np.random.default_rng(4)
    grids = [grid_of_no_use(random, likelihoods=True) for _ in range(TRIALS)]
    found = np.array([pick("sure", grid, None, by_mean(grid)).p_max for grid in grids])
    for level in (0.05, 0.1, LEVEL, 0.5):
        assert (found <= level).mean() <= beyond_binomial(level), level
    assert (found <= 0.5).mean() > 0.25


def test_a_setting_is_taken_no_oftener_than_the_level_allows(of_no_use: list[Array]) -> None:
    taken = [pick("sure", grid, None, by_mean(grid)).column > 0 for grid in of_no_use]
    assert np.mean(taken) <= beyond_binomial(LEVEL)


def test_one_standard_error_is_broken_by_the_best_of_many(of_no_use: list[Array]) -> None:
    """What p_max is there for: the best of many settings goes beyond one nearly always."""
    taken = [pick("best-1se", grid, None, by_mean(grid)).column > 0 for grid in of_no_use]
    assert np.mean(taken) > beyond_binomial(0.5)


def test_a_setting_that_helps_is_found() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(50):
        grid = grid_of_no_use(random)
        grid[:, 7] = np.where(random.random(60) < 0.8, 1.0, grid[:, 7])
        found.append(pick("sure", grid, None, by_mean(grid)))
    assert np.mean([each.p_max is not None and each.p_max <= 0.05 for each in found]) > 0.8
    assert np.mean([each.column == 7 for each in found]) > 0.8
