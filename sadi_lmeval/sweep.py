"""A grid of settings over tasks, one JSON line a setting and task."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sadi_lmeval.cache import cache_key
from sadi_lmeval.difference import Measured, measured, task_digest, versions
from sadi_lmeval.errors import UserError
from sadi_lmeval.interventions.edit import Edits
from sadi_lmeval.journal import Journal
from sadi_lmeval.objective import Judged, resolved
from sadi_lmeval.options import Element, Options, check_top_k
from sadi_lmeval.outcome import outcome
from sadi_lmeval.pairs import scored_texts
from sadi_lmeval.plan import draw, find_plan, num_fewshot, recipe_of
from sadi_lmeval.run_tasks import Document, RunTask
from sadi_lmeval.settings import REFERENCE, UNSTEERED, Grid, Setting
from sadi_lmeval.sites import Site
from sadi_lmeval.sources import refuse_scored_documents
from sadi_lmeval.steerable import SteerableModel
from sadi_lmeval.steering import edits_of
from sadi_lmeval.tuning import Trial, judge_settings

logger = logging.getLogger("lm_eval.sadi")

Split = Literal["dev", "test"]


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        elements: which elements.
        grid: K and delta of all elements; None: the reference code's of each.
        split: ``dev``: held-out documents, from which a setting may be chosen; ``test``: those
            that the task scores, from which none may.
        limit: the most documents a task, or the part of them if below 1.
    """

    elements: tuple[Element, ...]
    grid: Grid | None
    split: Split
    limit: float | None

    def settings(self, site: Site) -> list[Setting]:
        """The settings of an element; the reference code's go no further than its entries.

        Raises:
            UserError: more entries are to be steered than there are.
        """
        entries = site.layers * site.entries
        if self.grid is not None:
            check_top_k(max(self.grid.top_k), site.layers, site.entries, site.element)
            return self.grid.settings
        return [s for s in REFERENCE[site.element].settings if s.top_k <= entries]


class _Part(NamedTuple):
    """Documents that share masks: all of a task, or those of one fold."""

    trial: Trial
    masks: list[Measured]  # of each element


def sweep(
    tasks: Sequence[RunTask],
    what: Sweep,
    options: Options,
    model: SteerableModel,
    output: Path,
) -> list[dict[str, Any]]:
    """Try every setting on every task and append a line each to ``output``.

    Lines that are there already are not computed again. What an interrupted sweep had done of a
    task stands beside ``output`` until the task's lines are written.

    Returns:
        the lines of this sweep, those that were there before included.
    """
    check_output(output)
    file = Journal(output, required=True)
    found: list[dict[str, Any]] = []
    sites = [model.engine.site(element, options.hidden_site) for element in what.elements]
    every: list[tuple[str, Setting]] = [("none", UNSTEERED)]
    every += [(site.element, setting) for site in sites for setting in what.settings(site)]
    for number, task in enumerate(tasks, start=1):
        parts = parts_of(task, what, options, model)
        run = _identity(parts, what, options, model)
        done = {
            _key(line["element"], Setting(line["top_k"], line["delta"])): line
            for line in file.lines
            if line["run"] == run
        }
        left = [each for each in every if _key(*each) not in done]
        notes = output.with_name(f"{output.name}.{run[:12]}.part")
        if left:
            label = f"{task.name} ({number} of {len(tasks)}), {len(left)} settings"
            lines = _lines(parts, left, what, options, model, notes, label)
            fresh = [{"run": run, "task": task.name, "split": what.split, **line} for line in lines]
            file.add(*fresh)
            done |= {
                _key(line["element"], Setting(line["top_k"], line["delta"])): line for line in fresh
            }
        else:
            logger.info("Task %s: all %d settings are in %s", task.name, len(every), output)
        for path in notes.parent.glob(f"{notes.name}*"):
            path.unlink(missing_ok=True)
        found += [done[_key(*each)] for each in every]
    return found


def _key(element: str, setting: Setting) -> tuple[str, int, float]:
    return element, setting.top_k, setting.delta


def check_output(output: Path) -> None:
    """Refuse a file that no sweep has written.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    try:
        content = output.read_text(encoding="utf-8") if output.exists() else ""
        folder = next(parent for parent in output.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(output if output.exists() else folder, os.W_OK):
            raise PermissionError("not writable")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"output {output}: cannot be used ({error})") from None
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not _is_ours(line):
            raise UserError(f"output {output}: line {number} is not a sweep's; name another file")


_BEGINNING = '{"run": "'


def _is_ours(line: str) -> bool:
    """Whether a sweep wrote a line, or began it and was killed."""
    if not line.endswith("\n"):
        return line.startswith(_BEGINNING)
    try:
        content = json.loads(line)
    except ValueError:
        return False
    return isinstance(content, dict) and {"run", "task", "element", "top_k", "delta"} <= set(
        content
    )


def parts_of(task: RunTask, what: Sweep, options: Options, model: SteerableModel) -> list[_Part]:
    """The documents that a sweep scores of a task, with the masks that they may be scored with."""
    plan = find_plan(task, options)
    sites = [model.engine.site(element, options.hidden_site) for element in what.elements]
    recipe = plan.recipe
    if what.split == "test" and plan.source_task.name != task.name:
        recipe = recipe_of(task, replace(options, recipe=None))
    objective = resolved(options.objective, plan.source_task if what.split == "dev" else task)
    scored = _limited(task.evaluated(), what.limit) if what.split == "test" else []
    parts = []
    for index, source in enumerate(plan.sources.sources):
        drawn = draw(plan, source, options, tuning=what.split == "dev")
        shots = num_fewshot(plan, options)
        if what.split == "dev":
            judged = plan.source_task
            documents = _limited(drawn.held_out, what.limit)
            texts = scored_texts(judged, documents, source.allowed, shots, options.seed)
        else:
            judged = task
            documents = [d for d in scored if plan.sources.mask_of(d) == index]
            texts = scored_texts(judged, documents, None, task.num_fewshot, options.seed)
        if not documents:
            continue
        masks = [measured(plan, source, drawn.pairs, site, options, model) for site in sites]
        if what.split == "test":
            for mask in masks:
                refuse_scored_documents(task, documents, mask.difference.card, mask.source)
        parts.append(_Part(Trial(judged, recipe, documents, texts, objective), masks))
    if not parts:
        raise UserError(f"task {task.name}: no documents to score; pass a larger --limit")
    return parts


def _limited(documents: list[Document], limit: float | None) -> list[Document]:
    if limit is None:
        return documents
    return documents[: int(limit) if limit >= 1 else math.ceil(len(documents) * limit)]


def _identity(parts: Sequence[_Part], what: Sweep, options: Options, model: SteerableModel) -> str:
    """A digest of all that outcomes depend on beside the element, K and delta."""
    of_element = ("element", "shape")
    return cache_key(
        {
            "model": model.model_card,
            "cards": [
                {k: v for k, v in part.masks[0].difference.card.items() if k not in of_element}
                | {"hidden_site": options.hidden_site}
                for part in parts
            ],
            "texts": [part.trial.texts_digest for part in parts],
            "task": task_digest(parts[0].trial.task),
            "objective": parts[0].trial.objective,
            "split": what.split,
            "selection": options.selection,
            "steering": options.steering,
            "activations": options.activations,
            "seed": options.seed,
            "versions": versions(),
        }
    )


def _lines(
    parts: Sequence[_Part],
    left: Sequence[tuple[str, Setting]],
    what: Sweep,
    options: Options,
    model: SteerableModel,
    notes: Path,
    label: str,
) -> list[dict[str, Any]]:
    """The outcome of every setting that is left over the documents of all parts."""
    judged: list[list[Judged]] = []
    of_element = {
        element: [setting for name, setting in left if name == element] for element in what.elements
    }
    settings: list[tuple[str, Setting]] = [("none", UNSTEERED)]
    settings += [(element, s) for element in what.elements for s in of_element[element]]
    for number, part in enumerate(parts):
        families = [
            Edits(
                model.engine.site(element, options.hidden_site),
                edits_of(mask.difference, of_element[element], options),
                options.activations == "clean",
            )
            for element, mask in zip(what.elements, part.masks, strict=True)
            if of_element[element]
        ]
        grid = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
        journal = Journal(notes.with_name(f"{notes.name}{number}.{grid}"))
        name = label if len(parts) == 1 else f"{label}, part {number + 1} of {len(parts)}"
        judged += judge_settings(part.trial, families, model, journal, name)
    lines = []
    columns = list(zip(*judged, strict=True))
    for (element, setting), column in zip(settings, columns, strict=True):
        if (element, setting) not in left:
            continue
        found = outcome(setting, column, columns[0])._asdict()
        del found["setting"]
        lines.append(
            {
                "element": element,
                **setting._asdict(),
                "documents": len(judged),
                "objective": parts[0].trial.objective,
                **found,
                "model": model.model_card["model"],
                "selection": options.selection,
                "steering": options.steering,
                "activations": options.activations,
                "masks": [mask.key for part in parts for mask in part.masks
                          if mask.difference.card["element"] == element],
            }
        )  # fmt: skip
    return lines
