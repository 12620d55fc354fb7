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

from sadi_lmeval.arms import arm
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, task_digest
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import draw, find_plan, num_fewshot, recipe_of
from sadi_lmeval.pairs.sources import refuse_scored_documents
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.settings import UNSTEERED, Grid, Setting
from sadi_lmeval.steering.measured import Measured, measured
from sadi_lmeval.steering.methods import check_where, edits_of, grid, joined, site_of
from sadi_lmeval.steering.objective import Judged, resolved
from sadi_lmeval.steering.outcome import outcome
from sadi_lmeval.steering.tuning import Trial, judge_settings
from sadi_lmeval.storage.cache import cache_key
from sadi_lmeval.storage.journal import LARGEST, Journal
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")

Split = Literal["dev", "test"]


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        methods: names of ways of steering, see :mod:`sadi_lmeval.arms`.
        grid: where and how strongly, of all methods; None: each method's own.
        split: ``dev``: held-out documents, from which a setting may be chosen; ``test``: those
            that the task scores, from which none may.
        limit: the most documents a task, or the part of them if below 1.
    """

    methods: tuple[str, ...]
    grid: Grid | None
    split: Split
    limit: float | None

    def settings(self, options: Options, model: SteerableModel) -> list[Setting]:
        """The settings of a method; its own grid goes no further than the model's entries.

        Raises:
            UserError: more entries are to be steered than there are.
        """
        site = model.engine.site(*site_of(options))
        if self.grid is not None:
            check_where(max(self.grid.where), site.layers, site.entries, options)
            return self.grid.settings
        return grid(options, (site.layers, site.entries)).settings


_Every = dict[str, tuple[Options, list[Setting]]]
"""Of each method its options and settings."""


class _Part(NamedTuple):
    """Documents that share masks: all of a task, or those of one fold."""

    trial: Trial
    masks: dict[str, Measured]  # of each method


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
    file = Journal(output, required=True, checked=False)
    found: list[dict[str, Any]] = []
    arms = {name: arm(name, options) for name in what.methods}
    every: _Every = {"none": (arm("none", options), [UNSTEERED])}
    every |= {name: (each, what.settings(each, model)) for name, each in arms.items()}
    wanted = [(name, setting) for name, (_, settings) in every.items() for setting in settings]
    for number, task in enumerate(tasks, start=1):
        parts = parts_of(task, what, options, model)
        run = _identity(parts, what, options, model)
        done = {
            _key(line, every): line
            for line in file.lines
            if line["run"] == run and line["method"] in every
        }
        left: _Every = {
            name: (each, [s for s in settings if (name, s) not in done])
            for name, (each, settings) in every.items()
        }
        count = sum(len(settings) for _, settings in left.values())
        notes = output.with_name(f"{output.name}.{run[:12]}.part")
        if count:
            label = f"{task.name} ({number} of {len(tasks)}), {count} settings"
            lines = _lines(parts, left, model, notes, label)
            fresh = [{"run": run, "task": task.name, "split": what.split, **line} for line in lines]
            file.add(*fresh)
            done |= {_key(line, every): line for line in fresh}
        else:
            logger.info("Task %s: all %d settings are in %s", task.name, len(wanted), output)
        for path in notes.parent.glob(f"{notes.name}*"):
            path.unlink(missing_ok=True)
        found += [done[each] for each in wanted]
    return found


def _key(line: dict[str, Any], every: _Every) -> tuple[str, Setting]:
    names = every[line["method"]][0].parameters
    return line["method"], Setting(*(line[name] for name in names))


def check_output(output: Path) -> None:
    """Refuse a file that no sweep has written.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    try:
        if output.exists() and output.stat().st_size > LARGEST:
            raise UserError(f"output {output}: larger than {LARGEST} bytes; name another file")
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
        return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"run", "task", "method"} <= set(content)


def parts_of(task: RunTask, what: Sweep, options: Options, model: SteerableModel) -> list[_Part]:
    """The documents that a sweep scores of a task, with the masks that they may be scored with."""
    plan = find_plan(task, options)
    arms = {name: arm(name, options) for name in what.methods}
    recipe = plan.own_recipe
    if what.split == "test" and plan.source_task.name != task.name:
        recipe = recipe_of(task, replace(options, recipe=None), static=False)
    objective = resolved(options.objective, plan.source_task if what.split == "dev" else task)
    scored = _limited(task.evaluated(), what.limit) if what.split == "test" else []
    parts = []
    for index, source in enumerate(plan.sources.sources):
        drawn = draw(plan, source, options, what.split == "dev", model)
        shots = num_fewshot(plan, options)
        if what.split == "dev":
            judged = plan.source_task
            documents = _limited(drawn.held_out, what.limit)
            texts = scored_texts(judged, recipe, documents, source.allowed, shots, options.seed)
        else:
            judged = task
            documents = [d for d in scored if plan.sources.mask_of(d) == index]
            texts = scored_texts(judged, recipe, documents, None, task.num_fewshot, options.seed)
        if not documents:
            continue
        found = measured(plan, source, drawn.pairs, list(arms.values()), model)
        masks = dict(zip(arms, found, strict=True))
        if what.split == "test":
            for mask in found:
                refuse_scored_documents(task, documents, mask.measurement.card, mask.source)
        parts.append(_Part(Trial(judged, recipe, documents, texts, objective), masks))
    if not parts:
        raise UserError(f"task {task.name}: no documents to score; pass a larger --limit")
    return parts


def _limited(documents: list[Document], limit: float | None) -> list[Document]:
    if limit is None:
        return documents
    return documents[: int(limit) if limit >= 1 else math.ceil(len(documents) * limit)]


def _identity(parts: Sequence[_Part], what: Sweep, options: Options, model: SteerableModel) -> str:
    """A digest of all that outcomes depend on beside the method and the setting."""
    of_method = ("kind", "element", "hidden_site", "shape")
    return cache_key(
        {
            "model": model.model_card,
            "cards": [
                {k: v for k, v in mask.measurement.card.items() if k not in of_method}
                for part in parts
                for mask in list(part.masks.values())[:1]
            ],
            "texts": [part.trial.texts_digest for part in parts],
            "task": task_digest(parts[0].trial.task),
            "objective": parts[0].trial.objective,
            "split": what.split,
            "hidden_site": options.hidden_site,
            "direction": options.direction,
            "selection": options.selection,
            "steering": options.steering,
            "activations": options.activations,
            "seed": options.seed,
            "versions": versions(),
        }
    )


def _lines(
    parts: Sequence[_Part], left: _Every, model: SteerableModel, notes: Path, label: str
) -> list[dict[str, Any]]:
    """The outcome of every setting that is left over the documents of all parts."""
    judged: list[list[Judged]] = []
    steered = {name: of for name, of in left.items() if name != "none" and of[1]}
    settings = [(name, setting) for name, of in steered.items() for setting in of[1]]
    for number, part in enumerate(parts):
        families, journals = [], []
        for name, (options, mine) in steered.items():
            edits = edits_of(part.masks[name].measurement, mine, options)
            families.append(joined(model.engine.site(*site_of(options)), edits, options))
            tried = hashlib.sha256(repr((name, mine)).encode()).hexdigest()[:8]
            journals.append(Journal(notes.with_name(f"{notes.name}{number}.{tried}")))
        called = label if len(parts) == 1 else f"{label}, part {number + 1} of {len(parts)}"
        judged += judge_settings(part.trial, families, model, journals, called)
    lines = []
    columns = list(zip(*judged, strict=True))
    for (name, setting), column in zip([("none", UNSTEERED), *settings], columns, strict=True):
        options, mine = left[name]
        if setting not in mine:
            continue
        found = outcome(setting, column, columns[0])._asdict()
        del found["setting"]
        sadi = options.method == "sadi"
        of_sadi = {n: getattr(options, n) for n in ("selection", "steering", "activations")}
        lines.append(
            {
                "method": name,
                "element": "none" if name == "none" else site_of(options)[0],
                **setting.named(options.parameters),
                "documents": len(judged),
                "objective": parts[0].trial.objective,
                **found,
                "model": model.model_card["model"],
                **(of_sadi if sadi else {}),
                "masks": [part.masks[name].key for part in parts if name in part.masks],
            }
        )
    return lines
