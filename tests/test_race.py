"""Which settings the first documents rule out, and that p_max keeps its promise without them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sadi_lmeval.options import RuleName
from sadi_lmeval.steering.race import CONTENDERS, FEWEST, Contest, looks, stays
from sadi_lmeval.steering.rules import LEVEL, RULES, Array, Pick, p_max, pick

pytestmark = pytest.mark.quick


def judged_by(value: Array, likelihood: Array | None = None) -> Array:
    """Judgements ``[documents, columns, 3]`` whose margins are their values."""
    likely = np.full_like(value, np.nan) if likelihood is None else likelihood
    return np.stack([value, value, likely], axis=-1)


def raced(rule: RuleName, judged: Array) -> tuple[Array, Pick]:
    """On how many documents a race tries each column, and what is picked then."""
    documents, columns, _ = judged.shape
    tried = np.full(columns, documents)
    for seen in looks(documents):
        so_far = np.minimum(tried, seen)
        kept = stays(rule, judged[:seen], so_far, documents)
        assert not (kept & (so_far < seen)).any()  # what is dropped never comes back
        tried[(so_far == seen) & ~kept] = seen
    known = np.arange(documents)[:, None] < tried
    value, _, likelihood = np.moveaxis(np.where(known[..., None], judged, np.inf), -1, 0)
    order = np.argsort(-judged[..., 0].mean(0), kind="stable").tolist()
    chooses = not np.isnan(judged[..., 2]).all()
    return tried, pick(rule, value, likelihood if chooses else None, order, tried)


def picked(rule: RuleName, judged: Array) -> Pick:
    value, _, likelihood = np.moveaxis(judged, -1, 0)
    order = np.argsort(-value.mean(0), kind="stable").tolist()
    return pick(rule, value, None if np.isnan(likelihood).all() else likelihood, order)


def answers(random: np.random.Generator, rights: list[float], documents: int = 100) -> Array:
    """Right and wrong answers whose chance of being right is given, column by column."""
    return (random.random((documents, len(rights))) < rights).astype(float)


# ------------------------------------------------------------------ who is dropped


@pytest.mark.parametrize("rule", RULES)
def test_what_is_far_behind_is_dropped_early_and_the_best_is_kept(rule: RuleName) -> None:
    random = np.random.default_rng(0)
    value = answers(random, [0.5, 0.9, 0.05, 0.05, 0.1, 0.5])
    likely = random.normal([-1, 0, -4, -4, -4, -1], 0.5, (100, 6))
    tried, found = raced(rule, judged_by(value, likely))
    assert tried[0] == tried[1] == 100
    assert max(tried[2:5]) <= 40
    expected = picked(rule, judged_by(value, likely))
    assert found.column == expected.column == 1
    assert found.p_max == pytest.approx(expected.p_max, abs=0.02)


def test_settings_that_may_still_come_first_are_kept() -> None:
    value = np.repeat(answers(np.random.default_rng(1), [0.6]), 4, axis=1)
    value[:1, 1:] = [1, 0, 1]
    tried, found = raced("best", judged_by(value))
    assert min(tried) >= 80
    assert found.column == picked("best", judged_by(value)).column


def test_what_is_backed_is_kept_though_another_is_far_better() -> None:
    """It is taken where chance may have made the better one."""
    random = np.random.default_rng(2)
    value = answers(random, [0.4, 0.95, 0.6])
    likely = random.normal([-1, -3, 0], 0.3, (100, 3))
    judged = judged_by(value, likely)
    assert raced("backed", judged)[1].column == picked("backed", judged).column == 2
    assert raced("sure", judged)[0][2] < 100 == raced("sure-or-backed", judged)[0][2]


def test_what_cannot_be_more_than_chance_is_dropped_where_that_is_asked() -> None:
    """The best so far alone goes to the end, so that there is a p_max."""
    random = np.random.default_rng(3)
    value = np.repeat(answers(random, [0.5]), 30, axis=1)
    for column in range(1, 30):
        changed = random.choice(100, 20, replace=False)
        value[changed, column] = 1 - value[changed, column]
    (tried, found), (of_best, _) = (raced(rule, judged_by(value)) for rule in ("sure", "best"))
    assert tried.mean() < 0.9 * of_best.mean()
    assert (tried <= of_best).mean() > 0.9
    assert (tried[1:] == 100).any()
    assert found.column == 0
    assert found.p_max is not None
    assert found.p_max > LEVEL


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_is_dropped_at_the_next_look_and_changes_nothing(
    rule: RuleName,
) -> None:
    random = np.random.default_rng(4)
    likely = random.normal([-1, 0, -1, -1], 0.3, (100, 4))
    judged = judged_by(answers(random, [0.3, 0.95, 0.3, 0.1]), likely)
    broken = np.insert(judged, 2, judged[:, 1], axis=1)
    broken[13, 2] = np.nan
    tried, found = raced(rule, judged)
    tried_beside, found_beside = raced(rule, broken)
    assert tried_beside[2] == 20
    assert np.delete(tried_beside, 2).tolist() == tried.tolist()
    assert found_beside == Pick(found.column + (found.column >= 2), found.p_max)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_dropped_where_there_is_nothing_to_go_by(rule: RuleName) -> None:
    random = np.random.default_rng(5)
    unknown = judged_by(answers(random, [0.9, 0.1, 0.1]), random.normal(-1, 1, (100, 3)))
    unknown[2, 0] = np.nan
    assert raced(rule, unknown)[0].tolist() == [100, 100, 100]
    same = np.ones((100, 3))
    assert raced(rule, judged_by(same, -same))[0].tolist() == [100, 100, 100]
    assert raced(rule, judged_by(same[:, :1], -same[:, :1]))[0].tolist() == [100]


def test_few_documents_are_no_race_and_a_look_comes_after_a_tenth() -> None:
    assert looks(FEWEST - 1) == []
    assert looks(FEWEST) == [10, 20]
    assert looks(100) == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert looks(1000) == list(range(100, 1000, 100))
    assert set(CONTENDERS) == set(RULES)


def test_the_sum_over_all_documents_is_beyond_doubt_as_rarely_wrong_as_two_errors_say() -> None:
    """In draws without replacement; a few documents do not make it sure of what they lack."""
    random = np.random.default_rng(6)
    wrong = sure = 0
    for _ in range(300):
        whole = np.repeat([[1.0], [0.0], [-1.0]], [22, 60, 18], axis=0)
        order = np.argsort(random.random((100, 20)), axis=0)
        gains = np.take_along_axis(np.repeat(whole, 20, axis=1), order, axis=0)
        contest = Contest(np.insert(gains[:30], 0, 0.0, axis=1), np.full(21, 30), 100)
        wrong += int(contest.surely_above(-contest.gains[:, 1:]).sum())
        sure += int(contest.surely_above(contest.gains[:, 1:]).sum())
    assert 0 < wrong / 6000 < 0.0228 < sure / 6000


# ------------------------------------------------------------------ where no setting helps


def of_no_use(random: np.random.Generator, settings: int, likelihoods: bool) -> Array:
    """Scores of 60 documents under settings that are all as good as the unsteered model.

    Neighbours are alike, and some settings change much more than others.
    """
    alike = 0.9
    noise = random.normal(size=(60, settings + 1))
    for setting in range(1, settings + 1):
        own = math.sqrt(1 - alike**2) * noise[:, setting]
        noise[:, setting] = alike * noise[:, setting - 1] + own
    common = random.normal(size=(60, 1))
    strength = np.linspace(0, 3, settings + 1)
    if likelihoods:
        return common - 3 + noise * strength
    # Of the same chance to be right, whatever the strength.
    return ((common + noise * strength) / np.sqrt(1 + strength**2) > -0.5).astype(float)


@pytest.mark.parametrize("likelihoods", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_p_max_holds_its_level_in_a_race_where_no_setting_is_better(likelihoods: bool) -> None:
    random = np.random.default_rng(7)
    trials, found, dropped = 120, [], []
    for _ in range(trials):
        judged = judged_by(of_no_use(random, 24, likelihoods))
        tried, picked_one = raced("sure", judged)
        dropped.append((tried < 60).mean())
        found.append(picked_one.p_max)
    for level in (0.05, 0.1, LEVEL, 0.5):
        noise = 3 * math.sqrt(level * (1 - level) / trials)
        assert np.mean(np.array(found) <= level) <= level + noise, level
    assert np.mean(np.array(found) <= 0.5) > 0.2  # nor is it so careful that it says nothing
    assert np.mean(dropped) > 0.3


def test_without_what_was_dropped_p_max_would_be_too_small() -> None:
    """Why a dropped setting still counts among those that chance may lift."""
    random = np.random.default_rng(8)
    gaps, trials = [], 40
    for _ in range(trials):
        judged = judged_by(of_no_use(random, 24, likelihoods=False))
        tried, found = raced("sure", judged)
        whole = judged[:, tried == 60, 0]
        alone = p_max(whole[:, 1:] - whole[:, :1], standardised=False)
        gaps.append((found.p_max or 0.0) - alone)
    assert min(gaps) >= -0.05
    assert np.mean(gaps) > 0.05


def test_a_setting_that_was_tried_on_all_documents_has_the_p_max_of_no_race() -> None:
    differences = np.random.default_rng(9).normal(0.2, 1, (40, 5))
    for standardised in (True, False):
        whole = p_max(differences, standardised, np.full(5, 40))
        assert whole == p_max(differences, standardised)
        fewer = differences.copy()
        fewer[15:, 2] = np.nan
        tried = np.array([40, 40, 15, 40, 40])
        assert p_max(fewer, standardised, tried) == pytest.approx(whole, abs=0.1)
        assert p_max(differences, standardised, np.full(5, 39)) == 1.0
