"""Metrics that are the mean of one number a document, so that documents can be paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from lm_eval.api.task import Task

_TRIED = (0.25, 3.0, 1.0, 0.0)
"""Numbers whose mean is neither their median nor what a perplexity makes of them."""


def mean_metrics(task: Task, names: Iterable[str]) -> list[str]:
    """Name the metrics that the harness takes the mean of; a perplexity is not one of them.

    Args:
        task: says how it puts the documents' numbers together.
        names: of what it gives for a document; those that are better high or low first.
    """
    aggregations = task.aggregation()
    ordered = dict.fromkeys([*task.higher_is_better(), *names])
    # Of a metric that has no aggregation the harness takes the mean.
    return [name for name in ordered if name not in aggregations or _is_mean(aggregations[name])]


def numbers_of(samples: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
    """Give the documents' numbers of a metric, or None where it is not one number a document."""
    values = [sample.get(name) for sample in samples]
    return [float(value) for value in values] if all(map(is_number, values)) else None  # type: ignore[arg-type]


def is_number(value: object) -> bool:
    """Return whether it is one number, of Python or of an array."""
    return isinstance(value, (bool, int, float)) or (
        hasattr(value, "item") and getattr(value, "size", 1) == 1
    )


@cache
def _is_mean(aggregate: Callable[[Sequence[float]], Any]) -> bool:
    """Return whether it makes the mean of numbers; what takes something else fails or differs."""
    try:
        value = float(aggregate(list(_TRIED)))
    except Exception:
        return False
    return math.isclose(value, float(np.mean(_TRIED)))
