"""Whether the documents that a setting was chosen on are like those that are scored with it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.pairs.contrasts import right_answer
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import recipe_of
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.passes.steerable import SteerableModel, folder_for
from sadi_lmeval.records.steering import UnsteeredRecord
from sadi_lmeval.steering.objective import judge, resolved
from sadi_lmeval.steering.steering import TaskSteering
from sadi_lmeval.steering.tuning import Trial, trial_identity
from sadi_lmeval.storage.store import Kind, get_or_build, read_kept, write_kept

logger = logging.getLogger("lm_eval.sadi")


def with_unsteered(steering: TaskSteering, model: SteerableModel) -> TaskSteering:
    """Note in the record how the unsteered model does on held-out and on scored documents.

    That takes an unsteered pass over as many scored documents as settings were chosen on, evenly
    spread. Nothing is chosen by it; where the two differ by more than chance, the run says so.
    """
    task, choices = steering.task, [fit.choice for fit in steering.fits]
    chosen = [choice for choice in choices if choice is not None]
    if not chosen or len(chosen) < len(choices) or steering.record.mask_from is not None:
        return steering
    outcomes = [choice.outcomes[0] for choice in chosen]
    means = [o.score for o in outcomes if o.score is not None]
    errors = [o.stderr for o in outcomes if o.stderr is not None]
    options = steering.arm.options
    recipe = recipe_of(task, options)
    if recipe.contrast == "static":
        recipe = recipe_of(task, replace(options, recipe=None), static=False)
    answered = [document for document in _scored(task) if _is_answered(task, recipe, document)]
    documents = _spread(answered, sum(choice.documents for choice in chosen))
    if len(means) < len(outcomes) or len(errors) < len(outcomes) or not documents:
        return steering
    texts = scored_texts(task, recipe, documents, None, task.num_fewshot, options.seed)
    trial = Trial(task, recipe, documents, texts, resolved(options.objective, task))
    scores = np.array(_judged(trial, model, folder_for(options, model)))
    if not np.isfinite(scores).all():
        return steering  # scoring says so itself
    record = UnsteeredRecord(
        sum(means) / len(means),
        math.hypot(*errors) / len(errors),
        sum(choice.documents for choice in chosen),
        float(scores.mean()),
        float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else 0.0,
        len(scores),
    )
    if record.warning is not None:
        logger.warning("Task %s: %s", task.name, record.warning)
    return replace(steering, record=replace(steering.record, unsteered=record))


def _is_answered(task: RunTask, recipe: Recipe, document: Document) -> bool:
    """Return whether a document can be judged: one of a generation task by its answer."""
    if task.output_type != "generate_until":
        return True
    return bool(right_answer(task, recipe, document).strip())


def _scored(task: RunTask) -> list[Document]:
    """List the documents that the run scores."""
    documents, settings = task.evaluated(), task.settings
    if samples := settings.get("samples"):
        return [documents[index] for index in sorted(set(samples))]
    limit = settings.get("limit")
    return documents[: int(limit)] if limit else documents


def _spread(documents: Sequence[Document], count: int) -> list[Document]:
    count = min(count, len(documents))
    return [documents[index * len(documents) // count] for index in range(count)]


def _judged(trial: Trial, model: SteerableModel, folder: Path | None) -> list[float | None]:
    """Judge the unsteered model, or take what is kept; None stands for what is not finite."""

    def build(keys: list[str], _: Path | None) -> dict[str, list[float | None]]:
        values = _scores(trial, model)
        return {key: [v if math.isfinite(v) else None for v in values] for key in keys}

    def load(path: Path, key: str) -> list[float | None]:
        values = [None if value is None else float(value) for value in read_kept(path, key)]
        if len(values) != len(trial.documents):
            raise ValueError("it is of other documents")
        return values

    kind: Kind[list[float | None]] = Kind(
        "unsteered score of scored documents", ".unsteered.json", load, write_kept
    )
    key = key_of({"unsteered": trial_identity(trial, model)})
    kept = get_or_build(folder, kind, [key], build, model.processes)
    return kept[key].value


def _scores(trial: Trial, model: SteerableModel) -> list[float]:
    """Give what settings are judged by of the unsteered model, document by document."""
    mine = model.processes.shard(trial.texts)
    requests = [model.continuation(*text) for _, texts in mine for text in texts]
    found: dict[int, Score] = {}
    model.engine.score(requests, None, found.update)
    values, first = {}, 0
    for index, texts in mine:
        numbers = range(first, first := first + len(texts))
        values[index] = judge(
            trial.task,
            trial.recipe,
            trial.documents[index],
            [found[number] for number in numbers],
            [len(requests[number].tokens) for number in numbers],
            trial.objective,
        ).value
    for part in model.processes.all_gather(values):
        values |= part
    return [values[index] for index in range(len(trial.documents))]
