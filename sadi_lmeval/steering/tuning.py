"""Settings chosen on held-out documents: neither in the pairs nor ever scored."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.harness.run_task import Document, RunTask, Text
from sadi_lmeval.interventions.edit import Edits
from sadi_lmeval.options import Objective
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.settings import UNSTEERED, Parameters, Setting
from sadi_lmeval.steering.objective import Judged, judge, resolved
from sadi_lmeval.steering.outcome import Outcome, Tuning, best, outcome
from sadi_lmeval.storage.atomic import read_checked, write_checked
from sadi_lmeval.storage.cache import cache_key, locked
from sadi_lmeval.storage.journal import Journal

logger = logging.getLogger("lm_eval.sadi")


class Trial(NamedTuple):
    """Documents, and the requests that the settings are tried on."""

    task: RunTask
    recipe: Recipe
    documents: Sequence[Document]
    texts: Sequence[Sequence[Text]]
    objective: Objective

    @property
    def texts_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


class Contender(NamedTuple):
    """A method that wants a setting.

    Attributes:
        parameters: what it calls a setting's two numbers.
        settings: to choose from.
        edits: of each setting.
        inputs: what the outcome depends on beside the trial: the card of what was measured, and
            how it is used.
    """

    parameters: Parameters
    settings: Sequence[Setting]
    edits: Edits
    inputs: dict[str, Any]


def tune(
    trial: Trial,
    contenders: Sequence[Contender],
    model: SteerableModel,
    folder: Path,
    label: str,
) -> list[Tuning]:
    """Try every setting of every method at once, or take the outcomes out of the cache.

    Args:
        trial: the held-out documents.
        contenders: the methods.
        model: scores.
        folder: where outcomes are kept; the work of each method is noted down there document by
            document.
        label: for the progress bar.
    """
    objective = resolved(trial.objective, trial.task)
    trial = trial._replace(objective=objective)
    of_trial = {"texts": trial.texts_digest, "objective": objective}
    keys = [cache_key({**each.inputs, **of_trial, "settings": each.settings})
            for each in contenders]  # fmt: skip
    found: dict[str, Tuning] = {}

    def look() -> list[str]:
        for key in keys:
            known = _load(_path(folder, key), key) if key not in found else None
            if known is not None:
                found[key] = known
                _clear(folder, key)
        return [key for key in dict.fromkeys(keys) if key not in found]

    processes = model.processes
    left = processes.broadcast(look)
    if left:
        with locked(folder, [f"{key}.tuning.lock" for key in left], processes) as error:
            if error is not None and processes.is_first:
                logger.warning(
                    "%s cannot be written (%s): the choice of %s is not kept. "
                    "Pass cache_dir=FOLDER to keep it elsewhere.",
                    folder,
                    error,
                    " and ".join(contenders[0].parameters),
                )
            left = processes.broadcast(look)  # another run may have been at it
            if left:
                kept = processes.broadcast(lambda: folder if error is None else None)
                wanted = {key: contenders[keys.index(key)] for key in left}
                found |= _tried(trial, wanted, model, kept, label)
    found = processes.broadcast(lambda: found)
    return [found[key] for key in keys]


def _tried(
    trial: Trial,
    contenders: dict[str, Contender],
    model: SteerableModel,
    folder: Path | None,
    label: str,
) -> dict[str, Tuning]:
    """The outcomes of methods by their keys; kept in the folder if there is one."""
    rank = f".{model.processes.rank}" if model.processes.rank else ""
    journals = [
        Journal(None if folder is None else _path(folder, key).with_suffix(f"{rank}.jsonl"))
        for key in contenders
    ]
    families = [contender.edits for contender in contenders.values()]
    columns = list(zip(*judge_settings(trial, families, model, journals, label), strict=True))
    found = {}
    for (key, contender), own in zip(contenders.items(), _columns(families), strict=True):
        parameters, settings, _, _ = contender
        mine = [columns[0], *columns[own]]
        outcomes = [
            outcome(setting, column, columns[0])
            for setting, column in zip([UNSTEERED, *settings], mine, strict=True)
        ]
        chosen = best(outcomes, parameters)
        found[key] = Tuning(outcomes, chosen, len(trial.documents), trial.objective, parameters)
        if folder is not None and model.processes.is_first:
            _save(found[key], _path(folder, key), key)
    for journal in journals:
        journal.remove()
    return found


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.tuning.json"


def _clear(folder: Path, key: str) -> None:
    """Take the journals of an outcome away that a process was killed before it could remove."""
    with suppress(OSError):
        for notes in folder.glob(f"{key}.tuning*.jsonl"):
            notes.unlink(missing_ok=True)


def judge_settings(
    trial: Trial,
    families: Sequence[Edits],
    model: SteerableModel,
    journals: Sequence[Journal],
    label: str,
) -> list[list[Judged]]:
    """Judge every document under the unsteered model and every edit of every family.

    Args:
        trial: the documents; its objective is not ``auto``.
        families: the edits.
        model: scores.
        journals: one a family: what each knows is not judged again, the rest is noted down. Of
            several processes each judges its part of the documents and has journals of its own.
        label: for the progress bar.

    Returns:
        of each document, of each setting.
    """
    found = _known(journals, families, len(trial.documents))
    columns = _columns(families)
    requests, owner = [], []
    mine = model.processes.shard(trial.texts)
    for index, texts in mine:
        if index not in found:
            requests += [model.continuation(*text) for text in texts]
            owner += [index] * len(texts)
    scores: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    first = {index: number for number, index in reversed(list(enumerate(owner)))}
    before = sum(index in found for index, _ in mine)
    with tqdm(
        total=len(mine),
        initial=before,
        desc=label,
        unit="document",
        disable=not model.processes.is_first,
    ) as bar:

        def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
            fresh = []
            for column, number in enumerate(numbers):
                index = owner[number]
                of_document = scores.setdefault(index, {})
                of_document[number - first[index]] = values[:, column], greedy[:, column]
                if len(of_document) < len(trial.texts[index]):
                    continue
                found[index] = _judged(trial, index, of_document, requests[first[index] :])
                fresh.append(index)
                del scores[index]
            for journal, own in zip(journals, columns, strict=True) if fresh else ():
                journal.add(*(_line(i, [found[i][0], *found[i][own]]) for i in fresh))
            bar.update(len(fresh))

        if requests:
            model.engine.score_grid(requests, families, done)
    for part in model.processes.all_gather(found):
        found |= part
    return [found[index] for index in range(len(trial.documents))]


def _judged(
    trial: Trial,
    index: int,
    scores: dict[int, tuple[Tensor, Tensor]],
    requests: Sequence[Any],
) -> list[Judged]:
    lengths = [len(request.tokens) for request in requests[: len(scores)]]
    values = [scores[i][0].tolist() for i in range(len(scores))]
    greedy = [scores[i][1].tolist() for i in range(len(scores))]
    return [
        judge(
            trial.task,
            trial.recipe,
            trial.documents[index],
            list(zip(each, flags, strict=True)),
            lengths,
            trial.objective,
        )
        for each, flags in zip(zip(*values, strict=True), zip(*greedy, strict=True), strict=True)
    ]


def _columns(families: Sequence[Edits]) -> list[slice]:
    """Of each family the columns of its settings; column 0 is the unsteered model's."""
    ends = accumulate((family.count for family in families), initial=1)
    return [slice(first, end) for first, end in pairwise(ends)]


def _known(
    journals: Sequence[Journal], families: Sequence[Edits], documents: int
) -> dict[int, list[Judged]]:
    """The documents that every journal knows, as :func:`judge_settings` returns them."""
    every: list[dict[int, list[Judged]]] = []
    for journal, family in zip(journals, families, strict=True):
        noted = [_noted(line, 1 + family.count) for line in journal.lines]
        every.append({index: rows for index, rows in noted if rows is not None})
    known = [i for i in range(documents) if every and all(i in of for of in every)]
    return {i: [every[0][i][0], *(j for of in every for j in of[i][1:])] for i in known}


def _line(index: int, judged: Sequence[Judged]) -> dict[str, Any]:
    """A journal's line; null stands for a score that is not finite."""
    return {"document": index, "judged": [list(j) if math.isfinite(j.value) else None
                                          for j in judged]}  # fmt: skip


def _noted(line: Any, count: int) -> tuple[int, list[Judged] | None]:
    """The document of a journal's line and its judgements, or None where it is another's."""
    try:
        rows = [Judged(math.nan, math.nan) if j is None else Judged(float(j[0]), float(j[1]))
                for j in line["judged"]]  # fmt: skip
        return int(line["document"]), rows if len(rows) == count else None
    except (TypeError, KeyError, ValueError, IndexError):
        return -1, None


def _save(found: Tuning, path: Path, key: str) -> None:
    """A folder that cannot be written costs a warning."""
    try:
        write_checked(path, {"key": key, **found._asdict()})
    except OSError as error:
        logger.warning("%s cannot be written (%s): the choice is used but not kept", path, error)


def _load(path: Path, key: str) -> Tuning | None:
    """What :func:`_save` wrote, or None where it is not there or damaged."""
    try:
        values = read_checked(path)
        if values.pop("key") != key:
            raise ValueError("it belongs to another run")
        outcomes = [Outcome(Setting(*o[0]), *o[1:]) for o in values.pop("outcomes")]
        return Tuning(outcomes, parameters=Parameters(*values.pop("parameters")), **values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: damaged (%s); the settings are tried again", path, error)
        return None
