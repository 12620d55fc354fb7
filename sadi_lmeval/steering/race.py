"""Settings that the first held-out documents rule out: numbers alone, no model.

Among those that are left the rule decides on all documents, as without a race. Why the numbers are
as they are stands in docs/tuning.md; ``bench/racing.py`` measures them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sadi_lmeval.options import RuleName
from sadi_lmeval.steering.rules import LEVEL, Array, by_chance

FEWEST = 30
"""Held-out documents for a race: of fewer, next to none could be spared."""
STEP = 10
"""Documents before the first look, and between two, at least."""
LOOKS = 10
"""Parts that the documents fall into, with a look after each but the last."""
DOUBT = 2.25
"""Standard errors by which a setting must be beaten."""


def looks(documents: int) -> list[int]:
    """List after how many documents settings are dropped."""
    step = max(STEP, -(-documents // LOOKS))
    return list(range(step, documents, step)) if documents >= FEWEST else []


def settled_by() -> list[float]:
    """Give the numbers that decide which settings are dropped."""
    return [FEWEST, STEP, LOOKS, DOUBT]


def stays(rule: RuleName, judged: Array, tried: Array, documents: int) -> Array:
    """Say which settings may still be taken once all documents are known.

    Args:
        rule: that one is to be taken by; not ``auto``.
        judged: the first m documents, ``[m, columns, 3]``, see
            :func:`~sadi_lmeval.steering.outcome.as_numbers`; column 0 is the unsteered model's.
        tried: on how many of them each column was tried, ``[columns]``; it was dropped before if
            that is less than m.
        documents: how many there are in all, more than m.

    Returns:
        ``[columns]`` bool. The unsteered model stays, and so does the best setting so far, so that
        p_max is that of a setting which was tried on all documents.
    """
    known = (np.arange(len(judged))[:, None] < tried)[..., None]
    value, likelihood = np.moveaxis(np.where(known, judged, 0.0), -1, 0)[[0, 2]]
    finite = np.isfinite(value.sum(0))
    if not finite[0]:
        return np.asarray(tried == len(judged))  # there are no gains to go by
    kept: Array = finite & (tried == len(judged))
    if kept.sum() > 1:
        chooses = bool(np.isfinite(likelihood[:, finite]).all())
        kept[kept] = _contenders(
            rule,
            Contest(value[:, finite], tried[finite], documents),
            Contest(likelihood[:, finite], tried[finite], documents) if chooses else None,
        )
    return kept


class Contest:
    """What the first m documents say of the sums over all of them.

    Attributes:
        gains: of the settings that are left over the unsteered model, ``[m, k]``; column 0 is its.
        documents: how many there are in all.
    """

    def __init__(self, scores: Array, tried: Array, documents: int) -> None:
        """
        Args:
            scores: ``[m, columns]``, finite; 0 where a setting was not tried.
            tried, documents: see :func:`stays`.
        """
        self.unbounded = bool(np.abs(scores).max() > 1)
        self.differences, self.tried = scores - scores[:, :1], tried
        self.gains: Array = self.differences[:, tried == len(scores)]
        self.documents = documents

    @property
    def leader(self) -> int:
        """The best column so far, be it a setting's or the unsteered model's."""
        return int(self.gains.mean(0).argmax())

    @property
    def best(self) -> int:
        """The best setting so far."""
        return 1 + int(self.gains[:, 1:].mean(0).argmax())

    def surely_above(self, gains: Array, least: Array | float = 0.0) -> Array:
        """Say whose sum over all documents is above a number beyond doubt, ``[k]``.

        The documents are a draw without replacement: what is known of the sum is no longer in
        doubt. The spread is taken as if the largest gain or loss came once more: a few documents
        have not shown all that they may.

        Args:
            gains: of the first documents, ``[m, k]``.
        """
        m, n = len(gains), self.documents
        squares = ((gains - gains.mean(0)) ** 2).sum(0) + (gains**2).max(0)
        error = np.sqrt(squares / m * n * (n - m) / m)
        above: Array = gains.sum(0) * n / m > least + DOUBT * error
        return above

    def not_behind(self, one: int) -> Array:
        """Say which columns another does not beat beyond doubt."""
        return ~self.surely_above(self.gains[:, [one]] - self.gains)

    def less_errors(self, errors: float) -> Array:
        """Give the gains less so many standard errors of their mean over all documents."""
        error: Array = self.gains.std(0, ddof=1) / np.sqrt(self.documents)
        return self.gains - errors * error

    def may_gain(self, errors: float = 0.0) -> Array:
        """Say which columns may gain more than so many standard errors."""
        return ~self.surely_above(-self.less_errors(errors))

    def may_be_more_than_chance(self, level: float) -> Array:
        """Say which columns may gain as much as has a p_max of a level."""
        m, others = len(self.gains), self.tried > 0
        others[0] = False
        tried = self.tried[others]
        error, largest = by_chance(self.differences[:, others], self.unbounded, tried)
        needed = np.quantile(largest, 1 - level) * error[tried == m] * np.sqrt(self.documents / m)
        return ~self.surely_above(-self.gains, np.r_[0.0, -needed])


def _contenders(rule: RuleName, value: Contest, likelihood: Contest | None) -> Array:
    """Say which of the columns that are left a rule may take."""
    found = CONTENDERS[rule](value, likelihood)
    found[[0, value.best]] = True
    return found


_Contenders = Callable[[Contest, Contest | None], Array]


def _best(errors: float) -> _Contenders:
    return lambda value, _: value.not_behind(value.leader) & value.may_gain(errors)


def _sure(level: float) -> _Contenders:
    return lambda value, _: _best(0)(value, None) & value.may_be_more_than_chance(level)


def _likely(errors: float) -> _Contenders:
    def contenders(value: Contest, likelihood: Contest | None) -> Array:
        return _best(errors)(likelihood or value, None)

    return contenders


def _backed(errors: float) -> _Contenders:
    def contenders(value: Contest, likelihood: Contest | None) -> Array:
        if likelihood is None:
            return np.zeros(value.gains.shape[1], dtype=bool)
        found: Array = value.may_gain() & likelihood.may_gain(errors)
        surely = likelihood.surely_above(likelihood.less_errors(errors))
        means = np.where(surely, value.gains.mean(0), 0.0)
        return found & value.not_behind(int(means.argmax())) if means.max() > 0 else found

    return contenders


def _either(first: _Contenders, second: _Contenders) -> _Contenders:
    return lambda value, likelihood: first(value, likelihood) | second(value, likelihood)


CONTENDERS: dict[RuleName, _Contenders] = {
    "best": _best(0),
    "best-1se": _best(1),
    "best-2se": _best(2),
    "sure": _sure(LEVEL),
    "likely-1se": _likely(1),
    "likely-2se": _likely(2),
    "backed": _backed(1),
    "sure-or-backed": _either(_sure(LEVEL), _backed(1)),
}
"""By rule, which settings it may still take."""
