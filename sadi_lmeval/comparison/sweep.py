"""A grid of settings over tasks, one JSON line a setting and task."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sadi_lmeval.arguments import recorded
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.methods.arm import Arm
from sadi_lmeval.methods.registry import UNSTEERED
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import draw, find_plan, num_fewshot, recipe_of
from sadi_lmeval.pairs.sources import refuse_scored_documents
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.settings import SearchSpace, Setting
from sadi_lmeval.steering.fitting import (
    Fitted,
    fits_of,
    known_fit,
    method_of,
    refuse_unsuited,
)
from sadi_lmeval.steering.objective import resolved
from sadi_lmeval.steering.outcome import outcome
from sadi_lmeval.steering.steering import candidates_of
from sadi_lmeval.steering.tuning import Trial, judge_settings, trial_identity
from sadi_lmeval.storage.journal import LARGEST, Journal

logger = logging.getLogger("lm_eval.sadi")

Split = Literal["dev", "test"]


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        arms: by name; the unsteered one is always tried.
        spaces: of arms the search space that the user gave; without one an arm has its method's.
        split: ``dev``: held-out documents, from which a setting may be chosen; ``test``: those
            that the task scores, from which none may.
        limit: the most documents a task, or the part of them if below 1.
    """

    arms: Mapping[str, Arm]
    spaces: Mapping[str, SearchSpace]
    split: Split
    limit: float | None

    @cached_property
    def keys(self) -> dict[str, str]:
        """What tells arms of one name apart: arguments, code, labels and condition."""
        keys = {}
        for name, arm in self.arms.items():
            own = {"arm": arm.record(), "code": method_of(arm).code, "labels": arm.options.labels}
            keys[name] = key_of({**own, **when(arm)})[:12]
        return keys

    def settings(self, name: str, model: SteerableModel) -> list[Setting]:
        """List the settings of an arm; its method's own space goes no further than the model.

        Raises:
            UserError: more entries are to be steered than there are.
        """
        arm = self.arms[name]
        site = model.engine.site(*method_of(arm).place)
        if name in self.spaces:
            arm.axes.check(self.spaces[name].largest(), site.size, site.element)
            return self.spaces[name].settings
        return arm.search_space(site.size).settings


_Every = dict[str, list[Setting]]
"""Of each arm its settings; the unsteered one has the empty one."""
_NOTHING = Setting()


def when(arm: Arm) -> dict[str, Any]:
    """Say under which condition an arm steers; nothing where under none."""
    given = recorded(arm.options)
    return {k: v for k, v in given.items() if k.startswith("when") and v is not None}


class _Part(NamedTuple):
    """Documents that share fits: all of a task, or those of one fold."""

    trial: Trial
    fits: dict[str, Fitted]  # of each arm


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
    writes = model.processes.is_first
    if writes:
        check_output(output)
    for task in tasks:
        refuse_unsuited(task, what.arms.values())
    file = Journal(output if writes else None, required=True, checked=False)
    before = model.processes.broadcast(lambda: file.lines)
    lines: list[dict[str, Any]] = []
    every: _Every = {UNSTEERED: [_NOTHING]}
    every |= {name: what.settings(name, model) for name in what.arms}
    asked = [(name, setting) for name, settings in every.items() for setting in settings]
    for number, task in enumerate(tasks, start=1):
        parts = parts_of(task, what, options, model)
        run = _identity(parts, what, options, model)
        done = {
            (line["method"], _setting(line, what)): line
            for line in before
            if line["run"] == run and _is_of(line, what)
        }
        left = {
            name: [setting for setting in settings if (name, setting) not in done]
            for name, settings in every.items()
        }
        count = sum(map(len, left.values()))
        notes = output.with_name(f"{output.name}.{run[:12]}.part")
        if count:
            label = f"{task.name} ({number} of {len(tasks)}), {count} settings"
            of_task = _lines(parts, left, what, model, notes, label)
            fresh = [{"run": run, "task": task.name, "split": what.split, **o} for o in of_task]
            file.add(*fresh)
            done |= {(line["method"], _setting(line, what)): line for line in fresh}
        else:
            logger.info("Task %s: all %d settings are in %s", task.name, len(asked), output)
        for path in notes.parent.glob(f"{notes.name}*") if writes else ():
            path.unlink(missing_ok=True)
        lines += [done[each] for each in asked]
    return lines


def _is_of(line: dict[str, Any], what: Sweep) -> bool:
    """Return whether a line is of an arm of this sweep, with the same arguments."""
    name = line["method"]
    if name == UNSTEERED:
        return True
    return name in what.arms and line.get("arm") == what.keys[name]


def _setting(line: dict[str, Any], what: Sweep) -> Setting:
    if line["method"] == UNSTEERED:
        return _NOTHING
    return Setting(*(line[name] for name in what.arms[line["method"]].axes.names))


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
    """Return whether a sweep wrote a line, or began it and was killed."""
    if not line.endswith("\n"):
        return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"run", "task", "method"} <= set(content)


def parts_of(task: RunTask, what: Sweep, options: Options, model: SteerableModel) -> list[_Part]:
    """Find the documents that a sweep scores of a task, with the fits that they are scored with."""
    plan = find_plan(task, options)
    names = dict.fromkeys(name for arm in what.arms.values() for name in arm.axes.names)
    chosen = tuple(names) if what.split == "dev" else ()
    recipe = plan.own_recipe
    if what.split == "test" and plan.source_task.name != task.name:
        recipe = recipe_of(task, replace(options, recipe=None), static=False)
    objective = resolved(options.objective, plan.source_task if what.split == "dev" else task)
    scored = _limited(task.evaluated(), what.limit) if what.split == "test" else []
    measures = any(known_fit(arm, model) is None for arm in what.arms.values())
    parts = []
    for index, source in enumerate(plan.sources.sources):
        drawn = draw(plan, source, options, chosen, model, measured=measures)
        shots = num_fewshot(plan, options)
        if what.split == "dev":
            judged = plan.source_task
            documents = _limited(drawn.held_out, what.limit)
            texts = scored_texts(judged, recipe, documents, source.allowed, shots, options.seed)
        else:
            judged = task
            documents = [d for d in scored if plan.sources.fit_of(d) == index]
            texts = scored_texts(judged, recipe, documents, None, task.num_fewshot, options.seed)
        if not documents:
            continue
        fits = fits_of(plan, source, drawn.pairs, list(what.arms.values()), model)
        if what.split == "test":
            for fitted in fits:
                refuse_scored_documents(task, documents, fitted.fit.card, fitted.source)
        of_arms = dict(zip(what.arms, fits, strict=True))
        parts.append(_Part(Trial(judged, recipe, documents, texts, objective), of_arms))
    if not parts:
        raise UserError(f"task {task.name}: no documents to score; pass a larger --limit")
    return parts


def _limited(documents: list[Document], limit: float | None) -> list[Document]:
    if limit is None:
        return documents
    return documents[: int(limit) if limit >= 1 else math.ceil(len(documents) * limit)]


def _identity(parts: Sequence[_Part], what: Sweep, options: Options, model: SteerableModel) -> str:
    """Digest all that outcomes depend on beside the arm and the setting."""
    of_pairs = ("task", "source", "recipe_digest", "n_pairs", "pairs_digest", "seed")
    cards = [
        next((f.fit.card for f in part.fits.values() if "pairs_digest" in f.fit.card), {})
        for part in parts
        if part.fits
    ]
    return key_of(
        {
            "trials": [trial_identity(part.trial, model) for part in parts],
            "pairs": [{name: card.get(name) for name in of_pairs} for card in cards],
            "split": what.split,
            "seed": options.seed,
        }
    )


def _lines(
    parts: Sequence[_Part],
    left: _Every,
    what: Sweep,
    model: SteerableModel,
    notes: Path,
    label: str,
) -> list[dict[str, Any]]:
    """Give the outcome of every setting that is left over the documents of all parts."""
    of_parts = []
    steered = {name: settings for name, settings in left.items() if name in what.arms and settings}
    tried = [(name, setting) for name, settings in steered.items() for setting in settings]
    sizes = [0.0] * (1 + len(tried))
    for number, part in enumerate(parts):
        families, journals, of_part = [], [], [0.0]
        for name, settings in steered.items():
            arm = what.arms[name]
            candidates = candidates_of(arm, settings, part.fits[name], model)
            families.append(candidates.edits)
            of_part += map(candidates.edit_size, settings)
            text = repr((name, what.keys[name], part.fits[name].key, settings))
            tag = hashlib.sha256(text.encode()).hexdigest()[:8]
            path = notes.with_name(f"{notes.name}{number}.{tag}")
            journals.append(Journal(path if model.processes.notes_down else None))
        sizes = [size + more / len(parts) for size, more in zip(sizes, of_part, strict=True)]
        called = label if len(parts) == 1 else f"{label}, part {number + 1} of {len(parts)}"
        of_parts.append(judge_settings(part.trial, families, model, journals, called))
    judged = np.concatenate(of_parts)  # [documents, settings, 3]
    lines = []
    for column, (name, setting) in enumerate([(UNSTEERED, _NOTHING), *tried]):
        if setting not in left[name]:
            continue
        numbers = outcome(setting, judged[:, column], judged[:, 0])._asdict()
        del numbers["setting"], numbers["documents"]
        of_arm: dict[str, Any] = {"element": "none"}
        if name in what.arms:
            arm = what.arms[name]
            record = arm.record()
            del record["method"]
            place = {"element": method_of(arm).place[0]}
            of_arm = {**place, **arm.axes.named(setting), **record}
            of_arm |= {**when(arm), "arm": what.keys[name]}
            if arm.options.labels != "gold":
                of_arm["labels"] = arm.options.labels
        lines.append(
            {
                "method": name,
                **of_arm,
                "documents": len(judged),
                "objective": parts[0].trial.objective,
                **numbers,
                "edit_size": sizes[column],
                "model": model.model_card["model"],
                "fits": [part.fits[name].key for part in parts if name in part.fits],
            }
        )
    return lines
