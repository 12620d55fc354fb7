"""Settings chosen on held-out documents: neither in the pairs nor ever scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.some import some
from sadi_lmeval.harness.run_task import Document, RunTask, Text, digest
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.identity.model import model_identity
from sadi_lmeval.identity.task import task_digest
from sadi_lmeval.options import Objective, RuleName
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.settings import Axes, Setting
from sadi_lmeval.steering.chosen import card_of
from sadi_lmeval.steering.objective import Judged, judge, resolved, resolved_rule
from sadi_lmeval.steering.outcome import (
    Choice,
    Outcome,
    as_numbers,
    likelihoods,
    outcome,
    ranked,
)
from sadi_lmeval.steering.race import looks, settled_by, stays
from sadi_lmeval.steering.rules import Array, pick
from sadi_lmeval.storage.journal import Journal
from sadi_lmeval.storage.store import Kind, get_or_build, read_kept, write_kept
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")


class Trial(NamedTuple):
    """Documents, the requests that settings are tried on, and the rule that one is taken by.

    Attributes:
        race: whether settings that the first documents rule out are dropped.
    """

    task: RunTask
    recipe: Recipe
    documents: Sequence[Document]
    texts: Sequence[Sequence[Text]]
    objective: Objective
    rule: RuleName = "auto"
    race: bool = False

    @property
    def looks(self) -> list[int]:
        """After how many documents settings are dropped."""
        return looks(len(self.documents)) if self.race else []


class Candidates(NamedTuple):
    """The settings of a method that are to be tried.

    Attributes:
        axes: of the method.
        settings: to choose from.
        edits: of each setting.
        edit_size: of a setting: of equally good ones the smallest is taken.
        identity: what the outcome depends on beside the trial: the fit, and how it is used.
    """

    axes: Axes
    settings: Sequence[Setting]
    edits: Edits
    edit_size: Callable[[Setting], float]
    identity: dict[str, Any]


def choose_settings(
    trial: Trial,
    candidates: Sequence[Candidates],
    model: SteerableModel,
    folder: Path | None,
    label: str,
    tried_now: Callable[[int], None] = lambda index: None,
) -> list[Choice]:
    """Try every setting of every method at once, or take the choices out of the cache.

    Args:
        trial: the held-out documents.
        candidates: of each method.
        model: scores.
        folder: where choices are kept; the work of each method is noted down there document by
            document.
        label: for the progress bar.
        tried_now: is told the index of each method whose choice is not in the cache.
    """
    objective = resolved(trial.objective, trial.task)
    rule = resolved_rule(trial.rule, trial.task)
    trial = trial._replace(objective=objective, rule=rule)
    of_trial = {**trial_identity(trial, model), "rule": rule}
    if trial.looks:
        of_trial["race"] = settled_by()
    keys = [key_of({**each.identity, **of_trial, "settings": each.settings}) for each in candidates]
    names = dict.fromkeys(name for each in candidates for name in each.axes.names)
    kind = _kind(" and ".join(names), dict(zip(keys, candidates, strict=True)), trial)

    def build(missing: list[str], kept: Path | None) -> dict[str, Choice]:
        for index, key in enumerate(keys):
            if key in missing:
                tried_now(index)
        return _tried(trial, {k: candidates[keys.index(k)] for k in missing}, model, kept, label)

    choices = get_or_build(folder, kind, keys, build, model.processes)
    if folder is not None and model.processes.is_first:
        for key in keys:
            if choices[key].file is not None:
                remove_journals(folder, key)
    return [choices[key].value for key in keys]


def trial_identity(trial: Trial, model: SteerableModel) -> dict[str, Any]:
    """Say what outcomes depend on beside the settings and their edits.

    The requests count as tokens, so the tokenizer and the model's length do; the documents count
    whole, so their labels do; the task counts with its metrics and the code behind it.
    """
    requests = [[model.continuation(*text)[:2] for text in texts] for texts in trial.texts]
    return {
        "model": model_identity(model.model_card),
        "requests": key_of({"requests": requests}),
        "documents": [digest(document) for document in trial.documents],
        "task": task_digest(trial.task),
        "recipe": trial.recipe.digest,
        "objective": trial.objective,
        "versions": versions(),
    }


def _kind(numbers: str, candidates: dict[str, Candidates], trial: Trial) -> Kind[Choice]:
    def save(choice: Choice, path: Path, key: str) -> None:
        of = candidates[key].identity  # for people: what it is a choice for
        content = {
            **choice._asdict(),
            "axes": choice.axes.names,
            "fit": of["fit"],
            "arm": of["arm"],
            "card": card_of(choice, trial.task, trial.documents, of["arm"]),
        }
        write_kept(content, path, key)

    def load(path: Path, key: str) -> Choice:
        values, axes = read_kept(path, key), candidates[key].axes
        for name in ("fit", "arm", "card"):
            values.pop(name, None)
        if tuple(values.pop("axes")) != axes.names:
            raise ValueError("it belongs to another method")
        outcomes = [Outcome(Setting(*o[0]), *o[1:]) for o in values.pop("outcomes")]
        return Choice(outcomes, axes=axes, **values)

    return Kind(f"choice of {numbers}", ".tuning.json", load, save)


def _tried(
    trial: Trial,
    candidates: dict[str, Candidates],
    model: SteerableModel,
    folder: Path | None,
    label: str,
) -> dict[str, Choice]:
    """Make the choices of methods by their keys; kept in the folder if there is one."""
    rank = f".{model.processes.rank}" if model.processes.rank else ""
    notes = model.processes.notes_down
    journals = [
        Journal(folder / f"{key}.tuning{rank}.jsonl" if folder and notes else None)
        for key in candidates
    ]
    families = [each.edits for each in candidates.values()]
    logger.info(
        "%s: %d settings are tried on %d documents; n_tune=, max_settings= or grid= make that less",
        *(label, sum(family.count for family in families), len(trial.documents)),
    )
    judged = judge_settings(trial, families, model, journals, label)
    choices, documents = {}, len(trial.documents)
    for (key, each), own in zip(
        candidates.items(), _columns([each.count for each in families]), strict=True
    ):
        mine = np.concatenate([judged[:, :1], judged[:, own]], axis=1)
        tried = (mine[..., 0] != NOT_TRIED).sum(0)
        outcomes = [
            outcome(
                setting,
                mine[:count, column],
                mine[:count, 0],
                None if count == documents else count,
            )
            for column, (setting, count) in enumerate(
                zip([each.axes.unsteered, *each.settings], tried.tolist(), strict=True)
            )
        ]
        order = ranked(outcomes, each.edit_size)
        likelihood = likelihoods(np.where(mine == NOT_TRIED, np.nan, mine))
        taken = pick(trial.rule, mine[..., 0], likelihood, order, tried)
        if dropped := int((tried < documents).sum()):
            logger.info(
                "%s: %d of %d settings were dropped before the last document; race=false keeps "
                "them, %.0f %% of the work was left out",
                *(label, dropped, len(each.settings), 100 - 100 * tried[1:].mean() / documents),
            )
        choices[key] = Choice(
            outcomes,
            taken.column,
            documents,
            trial.objective,
            each.axes,
            trial.rule,
            taken.p_max,
        )
    return choices


def remove_journals(folder: Path, key: str) -> None:
    """Delete the journals of a choice that is kept."""
    with suppress(OSError):
        for notes in folder.glob(f"{key}.tuning*.jsonl"):
            notes.unlink(missing_ok=True)


NOT_TRIED = np.inf
"""Stands for the judgements of a document under a setting that was dropped before."""


def judge_settings(
    trial: Trial,
    families: Sequence[Edits],
    model: SteerableModel,
    journals: Sequence[Journal],
    label: str,
) -> Array:
    """Judge every document under the unsteered model and every edit of every family.

    In a race an edit that the first documents rule out is not tried on the others; that follows
    from what its own family has scored alone.

    Args:
        trial: the documents; its objective is not ``auto``, nor in a race its rule.
        families: the edits.
        model: scores.
        journals: one a family: what each knows is not judged again, the rest is noted down. Of
            several processes each judges its part of the documents and has journals of its own.
        label: for the progress bar.

    Returns:
        ``[documents, settings, 3]``, see :func:`~sadi_lmeval.steering.outcome.as_numbers`; it is
        ``NOT_TRIED`` where a setting was dropped before.
    """
    documents = len(trial.documents)
    columns = _columns([family.count for family in families])
    judged = model.processes.known(_known(journals, families, documents))
    left = np.ones(1 + sum(family.count for family in families), dtype=bool)
    rounds = [range(*each) for each in pairwise([0, *trial.looks, documents])]
    shards = [[each[index] for index, _ in model.processes.shard(each)] for each in rounds]
    with (
        tqdm(
            total=sum(map(len, shards)),
            desc=label,
            unit="document",
            disable=not model.processes.is_first,
        ) as bar,
        model.engine.sharing(),
    ):
        for documents_of_round, mine in zip(rounds, shards, strict=True):
            known = {i: judged[i] for i in documents_of_round if i in judged}
            known = {i: of for i, of in known.items() if not (of[left] == NOT_TRIED).any()}
            asked = [index for index in mine if index not in known]
            bar.update(len(mine) - len(asked))
            if asked:
                _judge_documents(trial, asked, families, left, model, journals, known, bar)
            for part in model.processes.all_gather(known):
                judged |= part
            for index in documents_of_round:
                judged[index][~left] = NOT_TRIED
            seen = documents_of_round.stop
            if seen == documents:
                break
            so_far = np.stack([judged[index] for index in range(seen)])
            for own in columns:
                family = np.r_[0, own]
                tried = (so_far[:, family, 0] != NOT_TRIED).sum(0)
                left[own] &= stays(trial.rule, so_far[:, family], tried, documents)[1:]
    return np.stack([judged.pop(index) for index in range(documents)])


def _judge_documents(
    trial: Trial,
    indices: Sequence[int],
    families: Sequence[Edits],
    left: Array,
    model: SteerableModel,
    journals: Sequence[Journal],
    judged: dict[int, Array],
    bar: tqdm[Any],
) -> None:
    """Judge documents under the settings that are left; see :func:`judge_settings`."""
    columns = _columns([family.count for family in families])
    own = [np.flatnonzero(left[mine]).tolist() for mine in columns]
    places = _columns([len(which) for which in own])
    requests, owner = [], []
    for index in indices:
        requests += [model.continuation(*text) for text in trial.texts[index]]
        owner += [index] * len(trial.texts[index])
    scores: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    first = {index: number for number, index in reversed(list(enumerate(owner)))}

    def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
        fresh = []
        for column, number in enumerate(numbers):
            index = owner[number]
            of_document = scores.setdefault(index, {})
            of_document[number - first[index]] = values[:, column], greedy[:, column]
            if len(of_document) < len(trial.texts[index]):
                continue
            found = _judged(trial, index, of_document, requests[first[index] :])
            numbers_of = as_numbers(found)
            numbers_of[numbers_of == NOT_TRIED] = np.nan
            judged[index] = np.full((len(left), len(Judged._fields)), NOT_TRIED)
            judged[index][left] = numbers_of
            fresh.append((index, found))
            del scores[index]
        for journal, family, which, place in zip(journals, families, own, places, strict=True):
            if fresh:
                some_of = None if len(which) == family.count else which
                journal.add(*(_line(i, [found[0], *found[place]], some_of) for i, found in fresh))
        bar.update(len(fresh))

    asked = [some(family, which) for family, which in zip(families, own, strict=True)]
    model.engine.score_grid(requests, asked, done)


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


def _columns(counts: Sequence[int]) -> list[slice]:
    """Give of each family the columns of its settings; column 0 is the unsteered model's."""
    return [slice(first, end) for first, end in pairwise(accumulate(counts, initial=1))]


def _known(
    journals: Sequence[Journal], families: Sequence[Edits], documents: int
) -> dict[int, Array]:
    """Give the documents that every journal knows, as :func:`judge_settings` returns them."""
    every: list[dict[int, Array]] = []
    for journal, family in zip(journals, families, strict=True):
        noted = (_noted(line, family.count) for line in journal.lines)
        every.append({index: rows for index, rows in noted if rows is not None})
        journal.forget()
    known = [i for i in range(documents) if every and all(i in of for of in every)]
    return {i: np.concatenate([every[0][i][:1], *(of[i][1:] for of in every)]) for i in known}


def _line(index: int, judged: Sequence[Judged], which: list[int] | None) -> dict[str, Any]:
    """Make a journal's line; null stands for a score that is not finite.

    Args:
        judged: under the unsteered model, and under each setting of ``which``; None: under all.
    """
    rows = [list(j) if math.isfinite(j.value) else None for j in judged]
    line: dict[str, Any] = {"document": index, "judged": rows}
    return line if which is None else {**line, "settings": which}


def _noted(line: Any, settings: int) -> tuple[int, Array | None]:
    """Read the document of a journal's line and its judgements, or None where it is another's."""
    try:
        rows = [Judged(math.nan, math.nan) if j is None else Judged(
            float(j[0]), float(j[1]), None if j[2] is None else float(j[2])
        ) for j in line["judged"]]  # fmt: skip
        which = [1 + int(setting) for setting in line.get("settings", range(settings))]
        if len(rows) != 1 + len(which) or not {*which} <= {*range(1, 1 + settings)}:
            return -1, None
        judged = np.full((1 + settings, len(Judged._fields)), NOT_TRIED)
        judged[[0, *which]] = as_numbers(rows)
        return int(line["document"]), judged
    except (AttributeError, TypeError, KeyError, ValueError, IndexError):
        return -1, None
