"""How settings did on held-out documents, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sadi_lmeval.records.steering import ChoiceRecord
from sadi_lmeval.settings import Axes, Setting
from sadi_lmeval.steering.objective import Judged


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
    """

    setting: Setting
    score: float | None
    stderr: float | None
    difference: float | None
    difference_stderr: float | None
    margin: float | None
    not_finite: int = 0


class Choice(NamedTuple):
    """The choice of a setting.

    Attributes:
        outcomes: of every setting, the unsteered model first.
        chosen: index of the chosen one.
        documents: how many held-out documents.
        objective: what they were judged by.
        axes: of the method.
    """

    outcomes: list[Outcome]
    chosen: int
    documents: int
    objective: str
    axes: Axes

    @property
    def setting(self) -> Setting:
        return self.outcomes[self.chosen].setting

    @property
    def beats_unsteered(self) -> bool:
        """Whether the chosen setting is better by more than the standard error."""
        best = self.outcomes[self.chosen]
        return (best.difference or 0.0) > (best.difference_stderr or 0.0)

    def record(self) -> ChoiceRecord:
        """Describe the choice for the results file."""
        table = [{**self.axes.named(o.setting), **o._asdict()} for o in self.outcomes]
        for row in table:
            del row["setting"]
        return ChoiceRecord(
            self.objective,
            self.documents,
            self.axes.named(self.setting),
            self.beats_unsteered,
            table,
        )


def outcome(setting: Setting, judged: Sequence[Judged], unsteered: Sequence[Judged]) -> Outcome:
    """Sum up how a setting did, next to the unsteered model on the same documents."""
    values = np.array([j.value for j in judged])
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return Outcome(setting, None, None, None, None, None, bad)
    differences = values - np.array([j.value for j in unsteered])
    compared = bool(np.isfinite(differences).all())
    margin = float(np.mean([j.margin for j in judged]))
    return Outcome(
        setting,
        float(values.mean()),
        _standard_error(values),
        float(differences.mean()) if compared else None,
        _standard_error(differences) if compared else None,
        margin,
    )


def _standard_error(values: np.ndarray[Any, Any]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def best(outcomes: Sequence[Outcome], edit_size: Callable[[Setting], float]) -> int:
    """Choose the best score; ties go to the larger margin, then the smaller edit.

    Returns:
        the index of its outcome.
    """

    def rank(index: int) -> tuple[float, float, float]:
        found = outcomes[index]
        size = edit_size(found.setting)
        if found.score is None or found.margin is None:
            return -math.inf, -math.inf, -size
        return round(found.score, 9), round(found.margin, 9), -size

    return max(range(len(outcomes)), key=rank)
