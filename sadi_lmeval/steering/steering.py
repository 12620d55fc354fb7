"""From a task of the run to the fits and edits that its documents are scored with."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.identity.task import task_digest
from sadi_lmeval.methods.arm import Arm
from sadi_lmeval.methods.base import Found
from sadi_lmeval.methods.registry import arm_named
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.benchmark import find_benchmark
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import Plan, draw, find_plan, num_fewshot, user_folders
from sadi_lmeval.pairs.sources import Source, identity, made_from, refuse_scored_documents
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.steerable import SteerableModel, folder_for
from sadi_lmeval.records.steering import FitRecord, FoundRecord, SteeringRecord
from sadi_lmeval.records.summary import Made, summary
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.chosen import card_of
from sadi_lmeval.steering.condition import FittedCondition, condition_for, conditional
from sadi_lmeval.steering.fitting import (
    Fitted,
    fits_of,
    given_fit,
    known_fit,
    method_of,
    saved_setting,
)
from sadi_lmeval.steering.objective import resolved, resolved_rule
from sadi_lmeval.steering.outcome import Choice
from sadi_lmeval.steering.rules import LEVEL
from sadi_lmeval.steering.tuning import Candidates, Trial, choose_settings
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")

_COLUMNS = 64
"""The most columns of the picture of what a fit found: wider sites are binned."""


class PreparedFit(NamedTuple):
    """A fit, ready to steer with.

    Attributes:
        edits: of its setting, the only one.
        selected: the [layer, entry], or the [layer, entry, activation of it], that are edited; None
            where whole layers are.
        tied: see :meth:`~sadi_lmeval.methods.base.Method.tied`.
        choice: how the setting was chosen; None where it was given.
        is_new: whether the choice was made in this run.
        of_choice: what the fit's card says of that, see :mod:`sadi_lmeval.steering.chosen`.
    """

    fitted: Fitted
    setting: Setting
    edits: Edits
    selected: list[list[int]] | None
    tied: int | None
    choice: Choice | None
    of_choice: dict[str, Any]
    is_new: bool = False

    @property
    def made(self) -> Made:
        """Say what was made in this run."""
        by_hand = not self.fitted.key
        return Made(
            None if by_hand else self.fitted.is_new, None if self.choice is None else self.is_new
        )


@dataclass(frozen=True)
class TaskSteering:
    """How the documents of one task are steered.

    Attributes:
        arm: of what.
        fits: one, or one a fold of which documents are scored; none where nothing is steered.
        fit_of: the index of the fit for a document.
        record: what the results file says about it.
        condition: that prompts must meet to be steered; None: all are.
    """

    task: RunTask
    arm: Arm
    fits: list[PreparedFit]
    fit_of: Callable[[Document], int]
    record: SteeringRecord
    condition: FittedCondition | None = None

    @property
    def edits(self) -> list[Edits]:
        """Of each fit."""
        return [fit.edits for fit in self.fits]

    @property
    def summary(self) -> str:
        """Say in one line how the task is steered."""
        return summary(self.record, self.arm.label, [fit.made for fit in self.fits])

    @property
    def pairs_digests(self) -> list[str]:
        """Of the pairs of each fit."""
        cards = [fit.fitted.fit.card for fit in self.fits]
        return [str(card["pairs_digest"]) for card in cards if "pairs_digest" in card]

    def pictured(self) -> SteeringRecord:
        """Give the record with what each fit found of every entry, as the report shows it."""
        if not self.fits:
            return self.record
        method = method_of(self.arm)
        blocks = self.fits[0].edits.site.blocks
        fits = (
            replace(said, found=_found(method.found(fit.fitted.fit.tensors), blocks))
            for said, fit in zip(self.record.fits, self.fits, strict=True)
        )
        return replace(self.record, fits=tuple(fits))

    def edit_of(self, document: Document) -> int:
        """Give the index of the fit whose edit a document gets; ``packing.UNSTEERED``: none."""
        if not self.fits:
            return UNSTEERED
        fit = self.fit_of(document)
        return fit if self.arm.axes.steers(self.fits[fit].setting) else UNSTEERED

    def guard(self, documents: list[Document], prompts: Iterable[str] = ()) -> None:
        """Refuse to score documents with fits that their own pairs helped to make.

        Args:
            documents: that are scored.
            prompts: of their requests, to which no condition may have been fitted.

        Raises:
            UserError: naming the first such document or prompt.
        """
        if self.condition is not None:
            for prompt in dict.fromkeys(prompts):
                self.condition.guard(prompt)
        of_fit: dict[int, list[Document]] = {}
        for document in documents if self.fits else []:
            of_fit.setdefault(self.fit_of(document), []).append(document)
        for index, scored in of_fit.items():
            fitted = self.fits[index].fitted
            refuse_scored_documents(self.task, scored, fitted.fit.card, fitted.source)


class _Candidate(NamedTuple):
    """An arm on a model and a task: where it steers, and with which settings.

    Attributes:
        settings: to choose from; the only one where nothing is chosen.
        chosen: whether one is to be chosen.
        condition: that prompts must meet to be steered.
    """

    arm: Arm
    site: Site
    settings: list[Setting]
    chosen: bool
    condition: FittedCondition | None


def prepare(
    task: RunTask, model: SteerableModel, arms: Sequence[Arm], for_scoring: bool = True
) -> list[TaskSteering]:
    """Fit each arm to a task, or load its fit, and choose the settings that are not given.

    Arms that take their pairs from the same documents get the same pairs and the same held-out
    documents, in passes that they share; so do those whose pairs' labels are shuffled.

    Args:
        task: of the run.
        model: reads and scores.
        arms: one, except where methods are compared.
        for_scoring: whether the task's documents are to be scored; else one that is cross-fitted
            has one fit, of all its documents.

    Raises:
        UserError: for whatever the user can mend: too few documents, a fit that does not fit, …
    """
    steering: dict[int, TaskSteering] = {}
    alike: dict[Options, list[int]] = {}
    for index, arm in enumerate(arms):
        if arm.is_unsteered:
            record = SteeringRecord(
                arm.record(),
                arm.axes.names,
                versions()["sadi-lmeval"],
                task_digest(task),
                setting=arm.axes.named(arm.axes.unsteered),
            )
            steering[index] = TaskSteering(task, arm, [], lambda _: UNSTEERED, record)
        else:
            alike.setdefault(replace(arm.options, labels="gold"), []).append(index)
    for indices in alike.values():
        together = [_candidate(task, arms[index], model) for index in indices]
        steering |= zip(indices, _prepare(task, model, together, for_scoring), strict=True)
    return [steering[index] for index in range(len(arms))]


def _candidate(task: RunTask, arm: Arm, model: SteerableModel) -> _Candidate:
    place = method_of(arm).place
    site = model.engine.site(*place)
    if arm.options.fit and arm.space is None:
        arm = arm.with_numbers_of_fit(saved_setting(arm.options.fit, arm))
    settings, chosen = settings_for(task, arm, site)
    largest = {
        axis.name: max(setting[place] for setting in settings)
        for place, axis in enumerate(arm.axes)
    }
    arm.axes.check(largest, site.size, site.element)
    return _Candidate(arm, site, settings, chosen, condition_for(arm.options, place, model))


def settings_for(task: RunTask, arm: Arm, site: Site) -> tuple[list[Setting], bool]:
    """List the settings, and say whether one is to be chosen: not where user or benchmark have."""
    if arm.space is None:
        folders = user_folders(arm.options, task)
        named = find_benchmark(arm.options.mask_from or task.name, folders).settings
        alike = [name for name in named if arm.is_like(name)]
        closest = max(alike, key=_arguments_set, default=None)
        arm = arm.with_numbers({} if closest is None else named[closest])
    settings = arm.search_space(site.size).settings
    if not settings:
        raise UserError(
            f"task {task.name}: its benchmark file names a strength of 0, which steers nothing; "
            f"pass {arm.axes.names[-1]}="
        )
    return settings, arm.is_chosen


def _arguments_set(name: str) -> int:
    """Count the arguments that an arm's name sets."""
    arm = arm_named(name)
    return len(arm.sets) + len(arm.shared)


def _prepare(
    task: RunTask, model: SteerableModel, candidates: Sequence[_Candidate], for_scoring: bool
) -> list[TaskSteering]:
    """Prepare arms whose pairs are the same."""
    first = candidates[0].arm.options
    chosen = tuple(dict.fromkeys(n for c in candidates if c.chosen for n in c.arm.axes.names))
    given = None
    if first.fit:
        given = [given_fit(first.fit, c.arm, c.site, model) for c in candidates]
    known = [known_fit(c.arm, model) for c in candidates] if given is None else [*given]
    measures = given is not None or None in known
    if not chosen and None not in known:
        return [
            _steering(
                task, [_prepared(fitted, each, None)], lambda _: 0, each, _origin_of_file(fitted)
            )
            for fitted, each in zip(known, candidates, strict=True)
            if fitted is not None
        ]

    plan = find_plan(task, first)
    if plan.sources.folds and not for_scoring:
        plan = plan._replace(sources=plan.sources.undivided())
    if chosen:
        resolved(first.objective, plan.source_task)
        resolved_rule(first.rule, plan.source_task)
    prepared: list[list[PreparedFit]] = [[] for _ in candidates]
    needed = _needed(plan, task, model)
    for source in (plan.sources.sources[index] for index in needed):
        for fitted in given or []:
            source = _without_pairs_of(fitted, plan, source)
        drawn = draw(plan, source, first, chosen, model, measured=measures)
        fits = given or fits_of(plan, source, drawn.pairs, [c.arm for c in candidates], model)
        tried: set[int] = set()
        choices = (
            _choices(plan, source, drawn.held_out, fits, candidates, model, tried.add)
            if chosen
            else {}
        )
        for index, each in enumerate(candidates):
            fit = _prepared(fits[index], each, choices.get(index))
            prepared[index].append(fit._replace(is_new=index in tried))
    of_pairs, folds = _origin(plan, task), plan.sources.folds
    return [
        _steering(
            task,
            fits,
            _of_needed(plan, task, needed),
            each,
            of_pairs if given or own is None else {**_origin_of_file(own), "folds": folds},
        )
        for fits, own, each in zip(prepared, known, candidates, strict=True)
    ]


def _needed(plan: Plan, task: RunTask, model: SteerableModel) -> list[int]:
    """List the sources whose fits some document of the run is scored with, in any process."""
    if not plan.sources.folds:
        return [0]
    mine = {plan.sources.fit_of(document) for document in task.asked()}
    return sorted(set().union(*model.processes.all_gather(mine)))


def _of_needed(plan: Plan, task: RunTask, needed: list[int]) -> Callable[[Document], int]:
    """Number the fits of the sources that are needed by their place among these."""

    def fit_of(document: Document) -> int:
        source = plan.sources.fit_of(document)
        if source not in needed:
            raise UserError(
                f"task {task.name}: a document is asked for that is none of the run's (--limit or "
                "--samples); ask for it in a run of its own"
            )
        return needed.index(source)

    return fit_of


def _choices(
    plan: Plan,
    source: Source,
    held_out: list[Document],
    fits: Sequence[Fitted],
    candidates: Sequence[_Candidate],
    model: SteerableModel,
    tried_now: Callable[[int], None],
) -> dict[int, tuple[Choice, dict[str, Any]]]:
    """Choose the setting of every arm that has none, all tried at once.

    Args:
        tried_now: is told the index of each whose choice is not in the cache.

    Returns:
        by the arm's index the choice, and what the fit's card says of it.
    """
    task, first = plan.source_task, candidates[0].arm.options
    shots = num_fewshot(plan, first)
    texts = scored_texts(task, plan.own_recipe, held_out, source.allowed, shots, first.seed)
    asked = [index for index, each in enumerate(candidates) if each.chosen]
    tried = [
        candidates_of(candidates[i].arm, candidates[i].settings, fits[i], model) for i in asked
    ]
    names = dict.fromkeys(name for each in tried for name in each.axes.names)
    label = f"{' and '.join(names) if len(asked) == 1 else 'Settings'} of {task.name}"
    if plan.sources.folds:
        label += f", {source.label}"
    trial = Trial(task, plan.own_recipe, held_out, texts, first.objective, first.rule, first.race)
    folder = folder_for(first, model)
    choices = choose_settings(
        trial, tried, model, folder, label, lambda number: tried_now(asked[number])
    )
    _warn_of_chance(task, {candidates[i].arm.label: c for i, c in zip(asked, choices, strict=True)})
    return {
        index: (choice, card_of(choice, task, held_out, each.identity["arm"]))
        for index, choice, each in zip(asked, choices, tried, strict=True)
    }


def _warn_of_chance(task: RunTask, choices: Mapping[str, Choice]) -> None:
    """Say whose settings are no better than chance makes them, and what was done: in one line of
    all that steer nothing, and in one of each that steers all the same.

    Args:
        task: that they were chosen on.
        choices: by the method's label.
    """
    alike: dict[str, list[str]] = {}
    for label, choice in choices.items():
        if choice.p_max is not None and choice.p_max <= LEVEL:
            continue
        taken = choice.outcomes[choice.chosen]
        done = "steers nothing"
        if choice.axes.steers(taken.setting):
            named = choice.axes.named(taken.setting).items()
            done = (
                f"steers all the same: {', '.join(f'{k}={v:g}' for k, v in named)}, "
                f"{taken.difference or 0.0:+.4f} ± {taken.difference_stderr or 0.0:.4f} there"
            )
        alike.setdefault(f"rule {choice.rule} {done}", []).append(label)
    for done, labels in alike.items():
        known = [p for label in labels if (p := choices[label].p_max) is not None]
        logger.warning(
            "Task %s: no setting of %s beats the unsteered model by more than chance may on %d "
            "held-out documents (p_max %s); %s",
            task.name,
            ", ".join(labels),
            choices[labels[0]].documents,
            f"{'from ' if len(labels) > 1 else ''}{min(known):.2f}" if known else "unknown",
            done,
        )


def candidates_of(
    arm: Arm, settings: Sequence[Setting], fitted: Fitted, model: SteerableModel
) -> Candidates:
    """Make the edits of an arm's settings, with all that their outcomes depend on."""
    method, seed = method_of(arm), arm.options.seed
    site = model.engine.site(*method.place)
    identity = {
        "fit": fitted.fit.digest,
        "kind": fitted.fit.card.get("kind"),
        "arm": method.record(),
        "code": method.code,
        "place": method.place,
        "shape": list(site.shape),
        "seed": seed,
    }
    condition = condition_for(arm.options, method.place, model)
    if condition is not None:
        identity["when"] = condition.condition.digest
    edits = conditional(method.edits(site, fitted.fit.tensors, settings, seed), condition)
    size = partial(method.edit_size, tensors=fitted.fit.tensors)
    return Candidates(method.axes, settings, edits, size, identity)


def _without_pairs_of(given: Fitted, plan: Plan, source: Source) -> Source:
    """Give a source without the documents that a given fit was made from: to choose on others."""
    used = made_from(given.fit.card)
    return source._replace(
        allowed=lambda document: (
            source.allowed(document) and not used.has(identity(plan.source_task, document))
        )
    )


def _prepared(
    fitted: Fitted, candidate: _Candidate, chosen: tuple[Choice, dict[str, Any]] | None
) -> PreparedFit:
    choice, of_choice = chosen or (None, {})
    method, seed = method_of(candidate.arm), candidate.arm.options.seed
    setting = candidate.settings[0] if choice is None else choice.setting
    tensors = fitted.fit.tensors
    edits = conditional(method.edits(candidate.site, tensors, [setting], seed), candidate.condition)
    where = method.selected(tensors, setting, seed)
    blocks = candidate.site.blocks
    selected = None if where is None else [[blocks[n], *e] for n, *e in where.nonzero().tolist()]
    tied = method.tied(tensors, setting)
    return PreparedFit(fitted, setting, edits, selected, tied, choice, of_choice)


def _origin_of_file(fitted: Fitted) -> dict[str, Any]:
    return {"fit_file": Path(fitted.source).name}


def _origin(plan: Plan, task: RunTask) -> dict[str, Any]:
    """Describe where the pairs of fits come from."""
    other = plan.source_task.name != task.name
    return {
        "recipe": plan.recipe.recipe,
        "recipe_digest": plan.recipe.digest,
        "pairs_from": plan.recipe.recipe if plan.is_static else plan.sources.split,
        "folds": plan.sources.folds,
        "mask_from": plan.source_task.name if other else None,
    }


def _steering(
    task: RunTask,
    fits: list[PreparedFit],
    fit_of: Callable[[Document], int],
    candidate: _Candidate,
    origin: Mapping[str, Any],
) -> TaskSteering:
    arm, site = candidate.arm, candidate.site
    record = SteeringRecord(
        arm.record(),
        arm.axes.names,
        versions()["sadi-lmeval"],
        task_digest(task),
        element=site.element,
        hidden_site=method_of(arm).place[1] if site.element == "hidden" else None,
        layers=site.blocks[-1] + 1,
        entries=site.entries,
        fits=tuple(_fit_record(fit, arm) for fit in fits),
        when=None if candidate.condition is None else candidate.condition.record(),
        **origin,
    )
    return TaskSteering(task, arm, fits, fit_of, record, candidate.condition)


def _found(found: Found | None, blocks: Sequence[int]) -> FoundRecord | None:
    """Make the picture of ``[layers, entries]`` scores, at most 64 columns wide."""
    if found is None:
        return None
    width = math.ceil(found.scores.shape[1] / _COLUMNS)
    rows: list[list[float]] = [[] for _ in range(blocks[-1] + 1)]
    for block, scores in zip(blocks, found.scores.float(), strict=True):
        columns = (part[part.abs().argmax()] for part in scores.split(width))
        rows[block] = [float(f"{float(number):.3g}") for number in columns]
    return FoundRecord(found.name, width, rows)


def _fit_record(prepared: PreparedFit, arm: Arm) -> FitRecord:
    fitted, choice = prepared.fitted, prepared.choice
    by_hand = not fitted.key
    return FitRecord(
        Path(fitted.source).name if by_hand else fitted.source,  # no path of a machine
        fitted.fit.card.get("n_pairs"),
        arm.axes.named(prepared.setting),
        prepared.selected,
        fitted.key,
        fitted.fit.digest,
        None if fitted.file is None else fitted.file.name,
        None if choice is None else choice.record(),
        fitted.of_model,
        labels=fitted.fit.card.get("labels", "gold"),
        tied=prepared.tied,
    )
