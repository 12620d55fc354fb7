"""What one method gave on one task, document by document: all that reports are made of.

A record is one JSON file with its own checksum; it is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.records.steering import SteeringRecord
from sadi_lmeval.storage.atomic import write_atomically

FORMAT = "sadi-lmeval record 3"
_EARLIER: dict[str, dict[str, Any]] = {
    "sadi-lmeval record 1": {
        "task_digest": "", "pairs_digests": [], "prompts": [], "texts": []
    },
    "sadi-lmeval record 2": {"prompts": [], "texts": []},
}  # fmt: skip
"""Formats of earlier releases, with what their records do not say."""
FOLDER = "records"
"""Where the records are in the folder of a comparison."""
_LARGEST = 1 << 28
"""Bytes: far above a record of a hundred thousand documents; larger files are not opened."""


@dataclass(frozen=True)
class Record:
    """A task under a method.

    Attributes:
        run: a digest of what all records of a comparison have in common: the model, the versions,
            the prompts' settings, the seeds. Records of one run may be compared.
        command: that made it.
        model: what identifies the model: ``model``, ``revision``, ``model_type``,
            ``weights_digest``, ``dtype``, ….
        versions: of the packages that a result depends on.
        seeds: by name.
        limit: the most documents a task, or None.
        num_fewshot: few-shot examples in each prompt.
        task: its name.
        task_version: as the harness gives it.
        method: ``none``, ``sadi-head``, ….
        mask_from: another task, whose documents the method was fitted and tuned on; None: the
            task's own.
        metric: the one that the table shows.
        higher_is_better: of that metric.
        metrics: every metric of the harness: [value, standard error or None].
        documents: digest of each document's content, in the order in which they were scored.
        values: of each document, the metric; None where it is not finite.
        chosen: of each document, the index of the answer with the highest log-likelihood; None
            where the task has no choices.
        gold: of each document, the indices of the right answers; empty where not known.
        labels: the answers by index where they are the same in every document (no/yes), else
            None.
        steering: how the task was steered.
        task_digest: of the task's definition and the code behind it; empty in earlier records.
        pairs_digests: of the pairs of each fit, as tokens; of the unsteered model none.
        prompts: of each document, the end of its prompt, where the task generates text; empty in
            earlier records, and where there are choices.
        texts: that were generated, their beginnings; empty like ``prompts``.
        seconds: that scoring took, its part of a pass shared with other methods included.
    """

    run: str
    command: str
    model: dict[str, Any]
    versions: dict[str, str]
    seeds: dict[str, int]
    limit: float | None
    num_fewshot: int
    task: str
    task_version: str
    method: str
    mask_from: str | None
    metric: str
    higher_is_better: bool
    metrics: dict[str, list[float | None]]
    documents: list[str]
    values: list[float | None]
    chosen: list[int | None]
    gold: list[list[int]]
    labels: list[str] | None
    steering: SteeringRecord
    task_digest: str
    pairs_digests: list[str]
    prompts: list[str]
    texts: list[str]
    seconds: float

    @property
    def file_name(self) -> str:
        return file_name(self.task, self.method, self.mask_from)


def file_name(task: str, method: str, mask_from: str | None) -> str:
    """Give the name of a record's file in its folder; of two records never the same."""
    given = [task, method] if mask_from is None else [task, method, mask_from]
    plain = [re.sub(r"[^A-Za-z0-9_.-]", "_", part) for part in given]
    name = f"{plain[0]}.{'@'.join(plain[1:])}"
    if plain != given or "." in method:  # two names may have become the same
        name += f"~{hashlib.sha256(json.dumps(given).encode()).hexdigest()[:8]}"
    return f"{name}.json"


def save_record(record: Record, folder: Path) -> Path:
    """Write a record to the folder of a comparison.

    Raises:
        OSError: the folder cannot be written.
    """
    content = to_json(record)
    path = folder / FOLDER / record.file_name
    whole = {"format": FORMAT, "sha256": _digest(content), **content}
    write_atomically(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    return path


def to_json(record: Record) -> dict[str, Any]:
    """Give a record as plain JSON values."""
    content = {field.name: getattr(record, field.name) for field in fields(record)}
    return {**content, "steering": record.steering.to_json()}


def load_record(path: Path) -> Record:
    """Read and verify a file of :func:`save_record`.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"record {path}: larger than {_LARGEST} bytes, not a record")
        content = json.loads(path.read_text(encoding="utf-8"))
        form = content.pop("format", None) if isinstance(content, dict) else None
        if form != FORMAT and form not in _EARLIER:
            raise UserError(f"record {path}: not a record of this package ({FORMAT!r})")
        intact = content.pop("sha256", None) == _digest(content)
        content = {**_EARLIER.get(form, {}), **content}
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"record {path}: cut off or damaged ({error}); delete it and run the comparison's "
            "command again, which makes that record alone"
        ) from None
    if not intact or set(content) != {field.name for field in fields(Record)}:
        raise UserError(
            f"record {path}: its content does not match its checksum; delete it and run the "
            "comparison's command again, which makes that record alone"
        )
    _check(content, path)
    return Record(**{**content, "steering": SteeringRecord.from_json(content["steering"])})


def load_records(folders: Iterable[Path]) -> list[Record]:
    """Load all records of some comparisons' folders.

    Raises:
        UserError: a folder has none, or one is damaged.
    """
    records = []
    for folder in folders:
        paths = sorted((folder / FOLDER).glob("*.json"))
        if not paths:
            raise UserError(f"{folder}: no records of a comparison ({FOLDER}/*.json) are there")
        records += [load_record(path) for path in paths]
    return records


def _check(content: dict[str, Any], path: Path) -> None:
    """Refuse a record that is intact, but that nothing of this package has written."""
    of = SimpleNamespace(**content)
    count = len(of.documents) if isinstance(of.documents, list) else -1
    sound: dict[str, bool] = {
        **{
            name: isinstance(content[name], str)
            for name in (
                "run",
                "command",
                "task",
                "task_version",
                "task_digest",
                "method",
                "metric",
            )
        },
        **{
            name: isinstance(content[name], dict)
            for name in ("model", "versions", "seeds", "steering")
        },
        "mask_from": of.mask_from is None or isinstance(of.mask_from, str),
        "limit": _is_number(of.limit),
        "num_fewshot": _is_index(of.num_fewshot),
        "seconds": _is_number(of.seconds),
        "metrics": isinstance(of.metrics, dict)
        and all(_is_list(pair, _is_number, 2) for pair in of.metrics.values()),
        "documents": count > 0 and _is_list(of.documents, _is_text, count),
        "values": _is_list(of.values, _is_number, count),
        "chosen": _is_list(of.chosen, lambda x: x is None or _is_index(x), count),
        "gold": _is_list(of.gold, lambda x: _is_list(x, _is_index), count),
        "labels": of.labels is None or _is_list(of.labels, _is_text),
        "pairs_digests": _is_list(of.pairs_digests, _is_text),
        **{
            name: _is_list(content[name], _is_text) and len(content[name]) in (0, count)
            for name in ("prompts", "texts")
        },
    }
    wrong = [name for name, good in sound.items() if not good]
    if wrong:
        raise UserError(
            f"record {path}: is not as this package writes it ({', '.join(wrong)}); delete it"
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    """Return whether a value is a number that a float can hold, or None."""
    if value is None:
        return True
    try:
        return isinstance(value, (int, float)) and math.isfinite(float(value))
    except OverflowError:
        return False


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: object, fit: Callable[[Any], bool], count: int | None = None) -> bool:
    return isinstance(value, list) and count in (None, len(value)) and all(map(fit, value))


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
