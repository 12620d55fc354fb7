"""What a run of the harness has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def results_of(output: Path) -> tuple[Any, Any]:
    """Its metrics, and how it steered, without times.

    Args:
        output: the run's ``--output_path``.
    """
    [path] = output.rglob("results_*.json")
    found = json.loads(path.read_text())
    steering = found["config"]["sadi"]
    return found["results"], steering


def alike(one: Any, other: Any) -> bool:
    """Equal, numbers but for rounding: work that goes on has other batches."""
    if isinstance(one, dict):
        return set(one) == set(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-5 * max(1.0, abs(one))
    return bool(one == other)
