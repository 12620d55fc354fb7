"""From a task of the run to the masks and edits that its documents are scored with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.interventions.edit import Edit
from sadi_lmeval.options import Auto, Options
from sadi_lmeval.pairs.benchmark import find_benchmark
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import Plan, draw, find_plan, num_fewshot, user_folders
from sadi_lmeval.pairs.sources import Source, identity, made_from, refuse_scored_documents
from sadi_lmeval.passes.packing import UNSTEERED as NO_EDIT
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.settings import UNSTEERED, Setting
from sadi_lmeval.steering.measured import Measured, measured
from sadi_lmeval.steering.methods import (
    check_where,
    edits_of,
    grid,
    is_unsteered,
    joined,
    kind_of,
    selected,
    site_of,
    tuned,
)
from sadi_lmeval.steering.objective import resolved
from sadi_lmeval.steering.outcome import Tuning
from sadi_lmeval.steering.tuning import Contender, Trial, tune
from sadi_lmeval.storage.cache import cache_folder
from sadi_lmeval.storage.mask import load_mask

logger = logging.getLogger("lm_eval.sadi")


class PreparedMask(NamedTuple):
    """A mask, or another method's vectors, ready to steer with.

    Attributes:
        selected: the [layer, entry] that are steered; None where a whole layer is.
        tuning: how the setting was chosen; None where it was given.
    """

    measured: Measured
    setting: Setting
    edit: Edit
    selected: list[list[int]] | None
    tuning: Tuning | None


@dataclass(frozen=True)
class TaskSteering:
    """How the documents of one task are steered.

    Attributes:
        edits: one, or one a fold; none where nothing is steered.
        masks: of each edit.
        mask_of: the index of the mask for a document.
        record: what the results file says about it.
    """

    task: RunTask
    edits: list[Edit]
    masks: list[PreparedMask]
    mask_of: Callable[[Document], int]
    record: dict[str, Any]

    def edit_of(self, document: Document) -> int:
        """The index of the edit for a document; ``packing.UNSTEERED`` where none was better."""
        if not self.masks:
            return NO_EDIT
        mask = self.mask_of(document)
        return NO_EDIT if self.masks[mask].setting == UNSTEERED else mask

    def guard(self, documents: list[Document]) -> None:
        """Refuse to score documents with masks that their own pairs helped to make.

        Raises:
            UserError: naming the first such document.
        """
        of_mask: dict[int, list[Document]] = {}
        for document in documents if self.masks else []:
            of_mask.setdefault(self.mask_of(document), []).append(document)
        for index, scored in of_mask.items():
            found = self.masks[index].measured
            refuse_scored_documents(self.task, scored, found.measurement.card, found.source)


class _Arm(NamedTuple):
    """One way of steering a task: where, and with which settings.

    Attributes:
        settings: to choose from; the only one where nothing is chosen.
    """

    options: Options
    site: Site
    settings: list[Setting]
    tuning: bool


def prepare(task: RunTask, model: SteerableModel, arms: Sequence[Options]) -> list[TaskSteering]:
    """Build or load what each arm steers a task with, and choose the settings that are not given.

    Arms that take their pairs from the same documents get the same pairs and the same held-out
    documents, in passes that they share.

    Args:
        task: of the run.
        model: reads and scores.
        arms: the options of each; one, except where methods are compared.

    Raises:
        UserError: for whatever the user can mend: too few documents, an unfit mask file, …
    """
    found: dict[int, TaskSteering] = {}
    alike: dict[Options, list[int]] = {}
    for index, options in enumerate(arms):
        if is_unsteered(options):
            names = options.parameters
            record = {"method": options.method, "parameters": names, **UNSTEERED.named(names)}
            found[index] = TaskSteering(task, [], [], lambda _: NO_EDIT, record)
        else:
            alike.setdefault(_about_pairs(options), []).append(index)
    for indices in alike.values():
        together = [_arm(task, arms[index], model) for index in indices]
        found |= zip(indices, _prepare(task, model, together), strict=True)
    return [found[index] for index in range(len(arms))]


def _about_pairs(options: Options) -> Options:
    """Only what decides on the pairs and the held-out documents."""
    names = "n_pairs n_tune negative objective pairs_num_fewshot folds protocol seed recipe"
    names += " mask mask_from cache_dir include_path"
    return Options(**{name: getattr(options, name) for name in names.split()})


def _arm(task: RunTask, options: Options, model: SteerableModel) -> _Arm:
    site = model.engine.site(*site_of(options))
    settings, tuning = settings_for(task, options, site)
    most = max(setting.where for setting in settings)
    check_where(most, site.layers, site.entries, options)
    return _Arm(options, site, settings, tuning)


def settings_for(task: RunTask, options: Options, site: Site) -> tuple[list[Setting], bool]:
    """The settings, and whether one is to be chosen: not where user or benchmark have."""
    if options.method == "sadi" and options.grid is None:
        benchmark = find_benchmark(options.mask_from or task.name, user_folders(options))
        top_k, delta = options.top_k, options.delta
        rest: Auto | None = "auto" if top_k is None and delta is None else None
        top_k = benchmark.top_k.get(options.element, rest) if top_k is None else top_k
        delta = benchmark.delta.get(options.element, rest) if delta is None else delta
        options = replace(options, top_k=top_k, delta=delta)
    settings = grid(options, (site.layers, site.entries)).settings
    if not settings:
        raise UserError(
            f"task {task.name}: its benchmark file names delta 0, which steers nothing; pass delta="
        )
    return settings, tuned(options)


def _prepare(task: RunTask, model: SteerableModel, arms: Sequence[_Arm]) -> list[TaskSteering]:
    """Arms whose pairs are the same."""
    first, tuning = arms[0].options, any(arm.tuning for arm in arms)
    given = [_given(first.mask, arm, model) for arm in arms] if first.mask else None
    if given and not tuning:
        origin: dict[str, Any] = {"mask_file": first.mask, "folds": None}
        return [
            _finished(task, [_prepared(mask, arm, None)], lambda _: 0, arm, origin)
            for mask, arm in zip(given, arms, strict=True)
        ]

    plan = find_plan(task, first)
    if tuning:
        resolved(first.objective, plan.source_task)
    prepared: list[list[PreparedMask]] = [[] for _ in arms]
    for source in plan.sources.sources:
        for mask in given or []:
            source = _without_pairs_of(mask, plan, source)
        drawn = draw(plan, source, first, tuning, model)
        found = given or measured(plan, source, drawn.pairs, [a.options for a in arms], model)
        choices = _choices(plan, source, drawn.held_out, found, arms, model) if tuning else {}
        for index, arm in enumerate(arms):
            prepared[index].append(_prepared(found[index], arm, choices.get(index)))
    origin = {
        "recipe": plan.recipe.recipe,
        "pairs_from": plan.recipe.recipe if plan.is_static else plan.sources.split,
        "folds": plan.sources.folds,
    }
    if plan.source_task.name != task.name:
        origin["mask_from"] = plan.source_task.name
    return [
        _finished(task, masks, plan.sources.mask_of, arm, origin)
        for masks, arm in zip(prepared, arms, strict=True)
    ]


def _choices(
    plan: Plan,
    source: Source,
    held_out: list[Document],
    found: Sequence[Measured],
    arms: Sequence[_Arm],
    model: SteerableModel,
) -> dict[int, Tuning]:
    """The choice of every arm that has one, all tried at once."""
    task, first = plan.source_task, arms[0].options
    shots = num_fewshot(plan, first)
    texts = scored_texts(task, plan.own_recipe, held_out, source.allowed, shots, first.seed)
    asked = [index for index, arm in enumerate(arms) if arm.tuning]
    contenders = [_contender(arms[index], found[index], model) for index in asked]
    names = {name: None for contender in contenders for name in contender.parameters}
    label = f"{' and '.join(names) if len(asked) == 1 else 'Settings'} of {task.name}"
    if plan.sources.folds:
        label += f", {source.label}"
    choices = tune(
        Trial(task, plan.own_recipe, held_out, texts, first.objective),
        contenders,
        model,
        cache_folder(first),
        label,
    )
    for choice, index in zip(choices, asked, strict=True):
        if choice.beats_unsteered:
            continue
        chosen = choice.outcomes[choice.chosen]
        said = ", ".join(f"{k}={v:g}" for k, v in chosen.setting.named(choice.parameters).items())
        logger.warning(
            "Task %s: no setting of %s beats the unsteered model by more than a standard error on "
            "%d held-out documents (%s)",
            task.name,
            arms[index].options.method,
            choice.documents,
            "so nothing is steered"
            if chosen.setting == UNSTEERED
            else f"best: {said}, {chosen.difference or 0.0:+.4f} ± "
            f"{chosen.difference_stderr or 0.0:.4f}",
        )
    return dict(zip(asked, choices, strict=True))


def _contender(arm: _Arm, found: Measured, model: SteerableModel) -> Contender:
    options = arm.options
    edits = joined(arm.site, edits_of(found.measurement, arm.settings, options), options)
    inputs = {
        "card": found.measurement.card,
        "seed": options.seed,
        "model": model.model_card,
        **_how(options),
    }
    return Contender(options.parameters, arm.settings, edits, inputs)


def _how(options: Options) -> dict[str, Any]:
    """How a method uses what was measured: what of its arguments is neither where nor strength."""
    if options.method == "iti":
        return {"method": "iti", "direction": options.direction}
    if options.method == "caa":
        return {"method": "caa"}
    return {
        "method": "sadi",
        "selection": options.selection,
        "steering": options.steering,
        "activations": options.activations,
    }


def _given(path: str, arm: _Arm, model: SteerableModel) -> Measured:
    """A mask file of the user's, refused where it does not fit."""
    found = load_mask(Path(path))
    found.check_fits(kind_of(arm.options), arm.site, model.model_card["model_type"], path)
    hidden_site, wanted = found.card.get("hidden_site"), site_of(arm.options)[1]
    if arm.site.element == "hidden" and hidden_site != wanted:
        raise UserError(
            f"mask {path} is for hidden_site={hidden_site}, but this run has {wanted}; pass the "
            "mask's"
        )
    return Measured(found, path, "", Path(path))


def _without_pairs_of(given: Measured, plan: Plan, source: Source) -> Source:
    """A source without the documents that a given mask was made from: to tune on others."""
    used = made_from(given.measurement.card)
    return source._replace(
        allowed=lambda document: (
            source.allowed(document) and not used.has(identity(plan.source_task, document))
        )
    )


def _prepared(found: Measured, arm: _Arm, tuning: Tuning | None) -> PreparedMask:
    setting = arm.settings[0] if tuning is None else tuning.setting
    [edit] = edits_of(found.measurement, [setting], arm.options)
    where = selected(found.measurement, setting, arm.options)
    return PreparedMask(found, setting, edit, where, tuning)


def _finished(
    task: RunTask,
    masks: list[PreparedMask],
    mask_of: Callable[[Document], int],
    arm: _Arm,
    origin: dict[str, Any],
) -> TaskSteering:
    names, site = arm.options.parameters, arm.site
    record: dict[str, Any] = {
        "element": site.element,
        **({"hidden_site": site_of(arm.options)[1]} if site.element == "hidden" else {}),
        "layers": site.layers,
        "entries": site.entries,
        **_how(arm.options),
        **origin,
        "parameters": names,
    }
    for index, name in enumerate(names):
        chosen = [mask.setting[index] for mask in masks]
        record[name] = chosen[0] if len(set(chosen)) == 1 else chosen
    record["masks"] = [
        {
            "source": mask.measured.source,
            "n_pairs": mask.measured.measurement.card.get("n_pairs"),
            **mask.setting.named(names),
            **({} if mask.selected is None else {"selected": mask.selected}),
            "cache_key": mask.measured.key,
            "sha256": mask.measured.measurement.digest,
            "file": None if mask.measured.file is None else str(mask.measured.file),
            **({} if mask.tuning is None else {"tuning": mask.tuning.record()}),
        }
        for mask in masks
    ]
    return TaskSteering(task, [mask.edit for mask in masks], masks, mask_of, record)
