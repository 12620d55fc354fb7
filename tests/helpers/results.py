"""What stands in the results of a run of the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def with_paths(results: dict[str, Any], cache: Path) -> None:
    """Put the fits' paths in place of their files' names, which is all that results say."""
    for record in results["config"].get("sadi", {}).values():
        for fit in record.get("fits", ()):
            assert fit["file"] is None or "/" not in fit["file"]
            fit["file"] = fit["file"] and str(cache / fit["file"])


def scores(results: dict[str, Any], task: str) -> list[Any]:
    """Every response to a task's requests, in document order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [response[0] for sample in samples for response in sample["resps"]]


def numbers(results: dict[str, Any], task: str) -> list[float]:
    return [float(score[0]) for score in scores(results, task)]


def masks_of(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    masks: list[dict[str, Any]] = results["config"]["sadi"][task]["fits"]
    return masks
