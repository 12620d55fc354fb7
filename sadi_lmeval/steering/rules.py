"""Rules of choosing a setting by the scores of held-out documents: numbers alone, no model.

Which is the default, and why, stands in docs/tuning.md; ``bench/selection.py`` measures them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sadi_lmeval.options import RuleName

Array = np.ndarray[Any, Any]

LEVEL = 0.25
"""The largest p_max with which the best setting is taken."""
DRAWS = 2000
"""Sign flips that p_max is estimated by."""
_EXACT = 12
"""Documents up to which every sign flip is taken."""
_ROUNDING = 1e-9
"""A gain of one document alone is exactly its standard error, but for rounding."""


class Gains:
    """Paired differences of settings from the unsteered model, which is column 0.

    Attributes:
        unbounded: whether scores go beyond 1, as log-likelihoods do.
        differences: ``[documents, settings]``.
        mean: ``[settings]``.
        error: the standard error of the mean, ``[settings]``; 0 for a single document.
        ranking: the columns from the best to the worst.
    """

    def __init__(
        self,
        scores: Array,
        ranking: Sequence[int] | None = None,
        dropped: tuple[Array, Array] | None = None,
    ) -> None:
        """
        Args:
            scores: ``[documents, settings]``, finite; larger is better.
            ranking: by the mean score, and by what decides between equals; None: the first.
            dropped: of settings that were dropped before the last document the differences from
                the unsteered model, ``[documents, k]``, and on how many they were tried, ``[k]``.
        """
        self.unbounded = bool(np.abs(scores).max() > 1)
        self.differences = scores - scores[:, :1]
        self.mean: Array = self.differences.mean(0)
        many = len(scores) > 1
        spread = self.differences.std(0, ddof=1) if many else np.zeros(len(self.mean))
        self.error: Array = spread / np.sqrt(len(scores))
        by_mean = np.argsort(-self.mean, kind="stable").tolist()
        self.ranking: Sequence[int] = by_mean if ranking is None else ranking
        self._dropped = dropped

    @cached_property
    def p_max(self) -> float:
        """Of the settings; standardised where the scores are log-likelihoods, not 0 to 1."""
        mine = self.differences[:, 1:]
        if self._dropped is None:
            return p_max(mine, self.unbounded)
        others, tried = self._dropped
        every = np.r_[np.full(mine.shape[1], len(mine)), tried]
        return p_max(np.concatenate([mine, others], axis=1), self.unbounded, every)

    def above(self, errors: float) -> Array:
        """Say which columns gain more than some standard errors, ``[settings]``."""
        return self.mean > errors * self.error + _ROUNDING

    def first(self, allowed: Array) -> int:
        """Give the best of the columns that are allowed; 0 where none is."""
        return next((index for index in self.ranking if index and allowed[index]), 0)

    @property
    def best(self) -> int:
        return self.first(self.above(0))


def p_max(differences: Array, standardised: bool, tried: Array | None = None) -> float:
    """Say how often chance alone makes the best of all settings as good as it is.

    Where steering changes nothing, a document's differences might as well have the opposite sign,
    those of all settings together: so what the settings have in common is kept, and alike settings
    count as one (Westfall and Young 1993, single step, of the setting with the largest mean).

    A setting that was dropped before the last document counts among those that chance may lift,
    as if its other documents spread its sum as much as the known ones do: left out, it would make
    the largest of all too small, and the more so the more a setting changes.

    Args:
        differences: of the settings from the unsteered model, ``[documents, settings]``.
        standardised: whether gains are compared as multiples of their error. Not where documents
            are right or wrong: a setting that moves two of them would be the largest by chance.
        tried: on how many documents, the first ones, each setting was tried, ``[settings]``; None:
            on all. The best is one that was tried on all.

    Returns:
        the share of sign flips whose largest gain is at least that of the best setting: of all
        flips where there are few documents, else (b + 1) / (m + 1) of m drawn ones; 1 where no
        setting was tried on all.
    """
    documents, settings = differences.shape
    tried = np.full(settings, documents) if tried is None else tried
    if not (tried == documents).any():
        return 1.0
    error, largest = by_chance(differences, standardised, tried)
    best = np.where(tried == documents, differences.mean(0), -np.inf).argmax()
    gain = (differences[:, best] / np.maximum(error[best], _ROUNDING)).sum()
    reached = int((largest >= gain - _ROUNDING).sum())
    exact = documents <= _EXACT
    return reached / len(largest) if exact else (reached + 1) / (DRAWS + 1)


def by_chance(differences: Array, standardised: bool, tried: Array) -> tuple[Array, Array]:
    """Flip the signs of documents, and give the largest sum of all settings each time.

    Args:
        differences, standardised, tried: see :func:`p_max`; at least one setting.

    Returns:
        what the differences of each setting are divided by, ``[settings]``, and the largest of
        their sums then, ``[flips]``.
    """
    documents = len(differences)
    known = np.where(np.arange(documents)[:, None] < tried, differences, 0.0)
    spread = known * np.sqrt(documents / tried)
    # About 0 and not about the mean, so that it is that of every flip.
    error: Array = np.sqrt((spread**2).sum(0))
    if not standardised:
        error = np.full(len(error), np.abs(known).max())
    scaled = spread / np.maximum(error, _ROUNDING)
    if documents <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=documents)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (DRAWS, documents))
    return error, (signs @ scaled).max(1)


Rule = Callable[[Gains, Gains | None], int]


def best(value: Gains, _: Gains | None) -> int:
    """Pick the best value, whether or not it is more than chance."""
    return value.ranking[0]


def beyond(errors: float) -> Rule:
    """Make a rule: the best value, if it gains more than some standard errors."""
    return lambda value, _: value.best if value.above(errors)[value.best] else 0


def sure(level: float) -> Rule:
    """Make a rule: the best value, if p_max is at most a level."""
    return lambda value, _: value.best if value.p_max <= level else 0


def likely(rule: Rule) -> Rule:
    """Apply a rule to the likelihood of the right choice."""
    return lambda _, likelihood: 0 if likelihood is None else rule(likelihood, None)


def backed(errors: float) -> Rule:
    """Make a rule: the best of those whose likelihood gains more than some standard errors."""

    def rule(value: Gains, likelihood: Gains | None) -> int:
        if likelihood is None:
            return 0
        return value.first(value.above(0) & likelihood.above(errors))

    return rule


def either(first: Rule, second: Rule) -> Rule:
    """Make a rule: what the first picks, and where it picks nothing, what the second does."""
    return lambda value, likelihood: first(value, likelihood) or second(value, likelihood)


RULES: dict[RuleName, Rule] = {
    "best": best,
    "best-1se": beyond(1),
    "best-2se": beyond(2),
    "sure": sure(LEVEL),
    "likely-1se": likely(beyond(1)),
    "likely-2se": likely(beyond(2)),
    "backed": backed(1),
    "sure-or-backed": either(sure(LEVEL), backed(1)),
}
"""By name; ``auto`` is one of them, by task."""
OF_LIKELIHOOD: frozenset[RuleName] = frozenset(
    ("likely-1se", "likely-2se", "backed", "sure-or-backed")
)
"""Those that need choices, of which one is right."""


class Pick(NamedTuple):
    """The column that a rule picks, and the p of the best objective (:func:`p_max`).

    p_max is None where the unsteered model has a score that is not finite: there are no gains.
    """

    column: int
    p_max: float | None


def pick(
    rule: RuleName,
    value: Array,
    likelihood: Array | None,
    ranking: Sequence[int],
    tried: Array | None = None,
) -> Pick:
    """Pick a setting, or the unsteered model.

    Args:
        rule: not ``auto``.
        value: the objective, ``[documents, settings]``, larger is better; column 0 is the unsteered
            model's. A setting with a value that is not finite is never picked.
        likelihood: log-likelihood of the right choices among all, ``[documents, settings]``; None
            where there are no choices.
        ranking: the columns from the best to the worst, by the mean objective and by what decides
            between equals; those that are not finite last.
        tried: on how many documents, the first ones, each column was tried; None: on all. One that
            was dropped before the last is never picked.
    """
    documents = len(value)
    tried = np.full(value.shape[1], documents) if tried is None else tried
    known = np.where(np.arange(documents)[:, None] < tried, value, 0.0)
    finite, whole = np.isfinite(known.sum(0)), tried == documents
    if not finite[0]:
        return Pick(next(column for column in ranking if whole[column]), None)
    kept = np.flatnonzero(finite & whole)
    place = {int(column): number for number, column in enumerate(kept)}
    dropped = finite & ~whole
    gains = Gains(
        value[:, kept],
        [place[column] for column in ranking if column in place],
        (known[:, dropped] - value[:, :1], tried[dropped]) if dropped.any() else None,
    )
    of_likelihood = None if likelihood is None else Gains(likelihood[:, kept])
    return Pick(int(kept[RULES[rule](gains, of_likelihood)]), gains.p_max)
