"""How a task was steered, in one line for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sadi_lmeval.records.steering import FitRecord, SteeringRecord, finite


class Made(NamedTuple):
    """What a run has made of a fit, and what it has found in the cache.

    Attributes:
        fit: whether the fit was made now; None where it was given.
        choice: whether its setting was chosen now; None where that was given.
    """

    fit: bool | None
    choice: bool | None

    def __str__(self) -> str:
        if self.fit == self.choice:
            return "" if self.fit is None else f"fit and choice {_from(self.fit)}"
        named = {"fit": self.fit, "choice": self.choice}
        return ", ".join(f"{k} {_from(new)}" for k, new in named.items() if new is not None)


def _from(new: bool) -> str:
    return "made now" if new else "from the cache"


def summary(record: SteeringRecord, label: str, made: Sequence[Made]) -> str:
    """Say the method, and of each fit the setting and how it did on held-out documents.

    As in ``sadi-head: top_k=6, delta=9; held out +0.0300 ± 0.0210 over unsteered on 100 documents
    (fit from the cache, choice made now)``.

    Args:
        label: of the method.
        made: of each fit.
    """
    if not record.fits:
        return "unsteered"
    several = len(record.fits) > 1
    said = [
        f"{f'fold {number}: ' if several else ''}{_of_fit(fit)}{f' ({now})' if str(now) else ''}"
        for number, (fit, now) in enumerate(zip(record.fits, made, strict=True), 1)
    ]
    return f"{label}: {'; '.join(said)}"


def _of_fit(fit: FitRecord) -> str:
    numbers = {name: finite(value) for name, value in fit.chosen.items()}
    if not any(numbers.values()):
        if fit.tuning is None:
            return "unsteered"
        return f"unsteered, as rule {fit.tuning.rule} took no setting"
    setting = ", ".join(f"{name}={value:g}" for name, value in numbers.items() if value is not None)
    if fit.tied:
        setting += f" ({fit.tied} more are tied with the last selected)"
    if fit.tuning is None:
        return setting
    row = _row(fit, numbers)
    difference = finite(row.get("difference"))
    if difference is None:
        return setting
    error = finite(row.get("difference_stderr")) or 0.0
    return (
        f"{setting}; held out {difference:+.4f} ± {error:.4f} over unsteered on "
        f"{fit.tuning.documents} documents"
    )


def _row(fit: FitRecord, numbers: Mapping[str, float | None]) -> Mapping[str, Any]:
    """Find the row of a setting in the table of all that were tried."""
    assert fit.tuning is not None
    for row in fit.tuning.table:
        if all(finite(row.get(name)) == value for name, value in numbers.items()):
            return row
    return {}
