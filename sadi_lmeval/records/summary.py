"""How a task was steered, in one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sadi_lmeval.records.steering import FitRecord, SteeringRecord, finite


def summary(record: SteeringRecord) -> str:
    """Say the method, and of each fit the setting and how it did on held-out documents.

    As in ``sadi (head): top_k=6, delta=9; held out +0.0300 ± 0.0210 over unsteered``.
    """
    method = str(record.arguments.get("method"))
    if not record.fits:
        return "unsteered"
    site = f" ({record.element})" if record.element is not None else ""
    several = len(record.fits) > 1
    said = [
        f"{f'fold {number}: ' if several else ''}{_of_fit(fit)}"
        for number, fit in enumerate(record.fits, 1)
    ]
    return f"{method}{site}: {'; '.join(said)}"


def _of_fit(fit: FitRecord) -> str:
    numbers = {name: finite(value) for name, value in fit.chosen.items()}
    if not any(numbers.values()):
        if fit.tuning is None:
            return "unsteered"
        return f"unsteered, as no setting was taken (rule {fit.tuning.rule})"
    setting = ", ".join(f"{name}={value:g}" for name, value in numbers.items() if value is not None)
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
