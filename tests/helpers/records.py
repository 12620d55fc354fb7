"""Records of runs, made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sadi_lmeval.records.record import Record
from sadi_lmeval.records.steering import SteeringRecord


def make_record(**changes: Any) -> Record:
    """A record of four yes/no documents, all answered "yes"; ``changes`` replace its fields."""
    values = changes.get("values", [1.0, 0.0, 1.0, 1.0])
    count = len(values)
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if len(known) == count else None
    whole: dict[str, Any] = {
        "run": "0123456789abcdef",
        "command": "sadi-lmeval compare --tasks boolq",
        "model": {"model": "tiny", "revision": "main", "weights_digest": "ab12"},
        "versions": {"lm_eval": "0.4.13", "torch": "2.13.0"},
        "seeds": {"seed": 0},
        "limit": None,
        "num_fewshot": 0,
        "task": "boolq",
        "task_version": "2.0",
        "method": "none",
        "mask_from": None,
        "metric": "acc",
        "higher_is_better": True,
        "metrics": {"acc": [mean, None]},
        "documents": [f"document {i}" for i in range(count)],
        "values": values,
        "chosen": [1] * count,
        "gold": [[1] if value else [0] for value in values],
        "labels": ["no", "yes"],
        "steering": {"method": "none", "parameters": []},
        "task_digest": "cd34",
        "pairs_digests": [],
        "prompts": [],
        "texts": [],
        "seconds": 1.5,
    }
    whole |= changes
    if isinstance(whole["steering"], dict):
        whole["steering"] = SteeringRecord.from_json(whole["steering"])
    return Record(**whole)


def answered(chosen: Sequence[int | None], gold: list[int], **changes: Any) -> Record:
    """A record whose values say whether the chosen answer is the right one."""
    return make_record(
        values=[float(c == g) for c, g in zip(chosen, gold, strict=True)],
        chosen=list(chosen),
        gold=[[g] for g in gold],
        **changes,
    )


GOLD = [0, 1] * 20


def scored(right: int, method: str, task: str = "boolq", **changes: Any) -> Record:
    """Forty documents of which the first ``right`` are right."""
    chosen: list[int | None] = [g if i < right else 1 - g for i, g in enumerate(GOLD)]
    documents = [f"{task} {i}" for i in range(len(GOLD))]
    whole = {"documents": documents, "method": method, "task": task, **changes}
    return answered(chosen, GOLD, **whole)


def two_tasks() -> list[Record]:
    return [
        scored(20, "none"),
        scored(32, "sadi-head"),
        scored(8, "caa"),
        scored(22, "iti"),
        scored(10, "none", "rte"),
        scored(11, "sadi-head", "rte"),
        scored(10, "caa", "rte"),
        scored(12, "sadi-head", "rte", mask_from="boolq"),
        scored(33, "sadi-head", "boolq", mask_from="rte"),
    ]
