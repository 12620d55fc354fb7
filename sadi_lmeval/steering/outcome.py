"""How settings did on held-out documents, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sadi_lmeval.options import RuleName
from sadi_lmeval.records.steering import ChoiceRecord
from sadi_lmeval.settings import Axes, Setting
from sadi_lmeval.steering.objective import Judged
from sadi_lmeval.steering.rules import Array


class Outcome(NamedTuple):
    """How a setting did on the held-out documents.

    Attributes:
        setting: its numbers.
        score: mean objective.
        stderr: its standard error.
        difference: mean of the document-wise differences from the unsteered model.
        difference_stderr: its standard error.
        margin: mean margin.
        not_finite: documents with a score that is not finite; then the other numbers are None,
            as the differences are where the unsteered model has such a document.
        likelihood_difference: mean difference of the log-likelihood of the right choices among all;
            None where there are no choices.
        likelihood_difference_stderr: its standard error.
        documents: how many it was tried on, the first ones, where it was dropped before the last;
            None: all.
    """

    setting: Setting
    score: float | None
    stderr: float | None
    difference: float | None
    difference_stderr: float | None
    margin: float | None
    not_finite: int = 0
    likelihood_difference: float | None = None
    likelihood_difference_stderr: float | None = None
    documents: int | None = None


class Choice(NamedTuple):
    """The choice of a setting.

    Attributes:
        outcomes: of every setting, the unsteered model first.
        chosen: index of the chosen one.
        documents: how many held-out documents.
        objective: what they were judged by.
        axes: of the method.
        rule: that it was chosen by.
        p_max: see :func:`~sadi_lmeval.steering.rules.p_max`; None where the unsteered model has a
            score that is not finite.
    """

    outcomes: list[Outcome]
    chosen: int
    documents: int
    objective: str
    axes: Axes
    rule: RuleName
    p_max: float | None

    @property
    def setting(self) -> Setting:
        return self.outcomes[self.chosen].setting

    def record(self) -> ChoiceRecord:
        """Describe the choice for the results file."""
        table = [{**self.axes.named(o.setting), **o._asdict()} for o in self.outcomes]
        for row in table:
            del row["setting"]
            row["documents"] = row["documents"] or self.documents
        return ChoiceRecord(
            self.objective,
            self.documents,
            self.axes.named(self.setting),
            self.rule,
            self.p_max,
            table,
        )


def as_numbers(judged: Sequence[Judged]) -> Array:
    """Give judgements as numbers, ``[n, 3]`` in the order of :class:`Judged`; nan where unknown.

    A sweep has them of every document under every setting: as objects they take ten times as much.
    """
    numbers: Array = np.array(judged, dtype=float)
    return numbers.reshape(-1, len(Judged._fields))


def outcome(
    setting: Setting, judged: Array, unsteered: Array, documents: int | None = None
) -> Outcome:
    """Sum up how a setting did, next to the unsteered model on the same documents.

    Args:
        setting: its numbers.
        judged, unsteered: of each document, ``[documents, 3]``, see :func:`as_numbers`.
        documents: see :class:`Outcome`.
    """
    values, margins, _ = judged.T
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return Outcome(setting, None, None, None, None, None, bad, documents=documents)
    differences = values - unsteered[:, 0]
    compared = bool(np.isfinite(differences).all())
    margin = float(np.mean(margins))
    likelihood = likelihoods(np.stack([judged, unsteered], 1))
    gains = np.array([]) if likelihood is None else likelihood[:, 0] - likelihood[:, 1]
    known = compared and len(gains) > 0
    return Outcome(
        setting,
        float(values.mean()),
        _standard_error(values),
        float(differences.mean()) if compared else None,
        _standard_error(differences) if compared else None,
        margin,
        likelihood_difference=float(gains.mean()) if known else None,
        likelihood_difference_stderr=_standard_error(gains) if known else None,
        documents=documents,
    )


def likelihoods(judged: Array) -> Array | None:
    """Give the likelihood of the right choices, ``[documents, settings]``.

    Args:
        judged: ``[documents, settings, 3]``, see :func:`as_numbers`.

    Returns:
        None where there are no choices.
    """
    likelihood: Array = judged[..., 2]
    return None if np.isnan(likelihood).all() else likelihood


def _standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def ranked(outcomes: Sequence[Outcome], edit_size: Callable[[Setting], float]) -> list[int]:
    """Order outcomes by the score; ties go to the larger margin, then the smaller edit.

    Returns:
        their indices, the best first.
    """

    def rank(index: int) -> tuple[float, float, float]:
        tried = outcomes[index]
        size = edit_size(tried.setting)
        if tried.score is None or tried.margin is None:
            return -math.inf, -math.inf, -size
        return round(tried.score, 9), round(tried.margin, 9), -size

    return sorted(range(len(outcomes)), key=rank, reverse=True)
