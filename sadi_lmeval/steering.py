"""From a task of the run to the masks and edits that its documents are scored with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.benchmark import find_benchmark
from sadi_lmeval.difference import Measured, cache_folder, measured
from sadi_lmeval.errors import UserError
from sadi_lmeval.interventions.edit import Edit, Edits
from sadi_lmeval.interventions.sadi import binary_mask, sadi_edit
from sadi_lmeval.mask import MeanDifference, load_mask
from sadi_lmeval.objective import resolved
from sadi_lmeval.options import Auto, Options, check_top_k, grid
from sadi_lmeval.outcome import Tuning
from sadi_lmeval.packing import UNSTEERED as NO_EDIT
from sadi_lmeval.pairs import scored_texts
from sadi_lmeval.plan import Plan, draw, find_plan, num_fewshot, user_folders
from sadi_lmeval.run_tasks import Document, RunTask
from sadi_lmeval.settings import UNSTEERED, Setting
from sadi_lmeval.sites import Site
from sadi_lmeval.sources import Source, identity, made_from, refuse_scored_documents
from sadi_lmeval.steerable import SteerableModel
from sadi_lmeval.tuning import Trial, tune

logger = logging.getLogger("lm_eval.sadi")


class PreparedMask(NamedTuple):
    """A mask that is ready to steer with."""

    measured: Measured
    setting: Setting
    edit: Edit
    selected: list[list[int]]
    tuning: Tuning | None


@dataclass(frozen=True)
class TaskSteering:
    """How the documents of one task are steered.

    Attributes:
        edits: one, or one a fold; none where nothing is steered.
        masks: of each edit.
        mask_of: the index of the edit and mask for a document, or ``packing.UNSTEERED``.
        record: what the results file says about it.
    """

    task: RunTask
    edits: list[Edit]
    masks: list[PreparedMask]
    mask_of: Callable[[Document], int]
    record: dict[str, Any]

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
            refuse_scored_documents(self.task, scored, found.difference.card, found.source)


def edits_of(
    difference: MeanDifference, settings: Sequence[Setting], options: Options
) -> list[Edit]:
    """The edit of each setting: M from the scores of D, then A' = A + delta (A ⊙ M)."""
    masks = {
        top_k: binary_mask(difference.scores, top_k, options.selection, options.seed)
        for top_k in {setting.top_k for setting in settings}
    }
    return [
        sadi_edit(masks[setting.top_k], difference.values, setting.delta, options.steering)
        for setting in settings
    ]


def prepare(task: RunTask, model: SteerableModel, options: Options) -> TaskSteering:
    """Build or load the masks of a task, and choose K and delta where they are not given.

    With a delta of 0 nothing is steered and no mask is needed.

    Raises:
        UserError: for whatever the user can mend: too few documents, an unfit mask file, …
    """
    if options.method == "none" or options.delta == 0:
        record: dict[str, Any] = {"method": options.method, **UNSTEERED._asdict()}
        return TaskSteering(task, [], [], lambda _: NO_EDIT, record)
    site = model.engine.site(options.element, options.hidden_site)
    settings, tuning = settings_for(task, options, site)
    most = max(setting.top_k for setting in settings)
    check_top_k(most, site.layers, site.entries, site.element)
    record = {
        "method": options.method,
        "element": options.element,
        "selection": options.selection,
        "steering": options.steering,
        "activations": options.activations,
    }
    if options.element == "hidden":
        record["hidden_site"] = options.hidden_site
    if options.mask and not tuning:
        found = _given(options.mask, site, options, model)
        masks = [_prepared(found, settings[0], None, options)]
        record |= {"mask_file": options.mask, "folds": None}
        return _finished(task, masks, lambda _: 0, record)

    plan = find_plan(task, options)
    if tuning:
        resolved(options.objective, plan.source_task)
    given = _given(options.mask, site, options, model) if options.mask else None
    masks = []
    for source in plan.sources.sources:
        source = source if given is None else _without_pairs_of(given, plan, source)
        drawn = draw(plan, source, options, tuning)
        found = given or measured(plan, source, drawn.pairs, site, options, model)
        if tuning:
            choice = _choose(plan, source, drawn.held_out, found, settings, site, options, model)
            masks.append(_prepared(found, choice.setting, choice, options))
        else:
            masks.append(_prepared(found, settings[0], None, options))
    if plan.source_task.name != task.name:
        record["mask_from"] = plan.source_task.name
    record |= {
        "recipe": plan.recipe.recipe,
        "pairs_from": plan.sources.split,
        "folds": plan.sources.folds,
    }
    return _finished(task, masks, plan.sources.mask_of, record)


def settings_for(task: RunTask, options: Options, site: Site) -> tuple[list[Setting], bool]:
    """The settings, and whether one is to be chosen: not where user or benchmark have."""
    benchmark = find_benchmark(options.mask_from or task.name, user_folders(options))
    top_k, delta = options.top_k, options.delta
    if options.grid is None:
        rest: Auto | None = "auto" if top_k is None and delta is None else None
        top_k = benchmark.top_k.get(options.element, rest) if top_k is None else top_k
        delta = benchmark.delta.get(options.element, rest) if delta is None else delta
    choice = grid(replace(options, top_k=top_k, delta=delta), site.layers * site.entries)
    if not choice.settings:
        raise UserError(
            f"task {task.name}: benchmark {benchmark.benchmark} names delta 0, which steers "
            "nothing; pass delta="
        )
    return choice.settings, options.grid is not None or "auto" in (top_k, delta)


def _choose(
    plan: Plan,
    source: Source,
    held_out: list[Document],
    found: Measured,
    settings: Sequence[Setting],
    site: Site,
    options: Options,
    model: SteerableModel,
) -> Tuning:
    task = plan.source_task
    shots = num_fewshot(plan, options)
    texts = scored_texts(task, held_out, source.allowed, shots, options.seed)
    edits = edits_of(found.difference, settings, options)
    family = Edits(site, edits, options.activations == "clean")
    label = f"K and delta of {task.name}"
    if plan.sources.folds:
        label += f", {source.label}"
    choice = tune(
        Trial(task, plan.recipe, held_out, texts, options.objective),
        settings,
        family,
        model,
        {
            "card": found.difference.card,
            "selection": options.selection,
            "steering": options.steering,
            "activations": options.activations,
            "seed": options.seed,
            "model": model.model_card,
        },
        cache_folder(options),
        label,
    )
    chosen = choice.outcomes[choice.chosen]
    if not choice.beats_unsteered:
        logger.warning(
            "Task %s: no setting beats the unsteered model by more than a standard error on %d "
            "held-out documents (best: K=%d, delta=%g, %+.4f ± %.4f)",
            task.name,
            choice.documents,
            chosen.setting.top_k,
            chosen.setting.delta,
            chosen.difference or 0.0,
            chosen.difference_stderr or 0.0,
        )
    return choice


def _given(path: str, site: Site, options: Options, model: SteerableModel) -> Measured:
    """A mask file of the user's, refused where it does not fit."""
    difference = load_mask(Path(path))
    difference.check_fits(site, model.model_card["model_type"], path)
    hidden_site = difference.card.get("hidden_site")
    if options.element == "hidden" and hidden_site != options.hidden_site:
        raise UserError(
            f"mask {path} is for hidden_site={hidden_site}, but this run has "
            f"{options.hidden_site}; pass the mask's"
        )
    return Measured(difference, path, "", Path(path))


def _without_pairs_of(given: Measured, plan: Plan, source: Source) -> Source:
    """A source without the documents that a given mask was made from: to tune on others."""
    used = made_from(given.difference.card)
    return source._replace(
        allowed=lambda document: (
            source.allowed(document) and not used.has(identity(plan.source_task, document))
        )
    )


def _prepared(
    found: Measured, setting: Setting, tuning: Tuning | None, options: Options
) -> PreparedMask:
    mask = binary_mask(found.difference.scores, setting.top_k, options.selection, options.seed)
    [edit] = edits_of(found.difference, [setting], options)
    return PreparedMask(found, setting, edit, mask.nonzero().tolist(), tuning)


def _finished(
    task: RunTask,
    masks: list[PreparedMask],
    mask_of: Callable[[Document], int],
    record: dict[str, Any],
) -> TaskSteering:
    for name in ("top_k", "delta"):
        chosen = [getattr(mask.setting, name) for mask in masks]
        record[name] = chosen[0] if len(set(chosen)) == 1 else chosen
    record["masks"] = [
        {
            "source": mask.measured.source,
            "n_pairs": mask.measured.difference.card.get("n_pairs"),
            "top_k": mask.setting.top_k,
            "delta": mask.setting.delta,
            "selected": mask.selected,
            "cache_key": mask.measured.key,
            "file": None if mask.measured.file is None else str(mask.measured.file),
            **({} if mask.tuning is None else {"tuning": mask.tuning.record()}),
        }
        for mask in masks
    ]
    return TaskSteering(task, [mask.edit for mask in masks], masks, mask_of, record)
