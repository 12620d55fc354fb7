"""From a task of the run to the masks and edits that its documents are scored with."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sadi_lmeval.activations import TokenPair
from sadi_lmeval.benchmark import Benchmark, find_benchmark
from sadi_lmeval.cache import cache_key, cached_mask, default_folder
from sadi_lmeval.errors import UserError
from sadi_lmeval.interventions.edit import Edit
from sadi_lmeval.interventions.sadi import binary_mask, sadi_edit
from sadi_lmeval.mask import MeanDifference, load_mask
from sadi_lmeval.options import DEFAULT_N_PAIRS, Options
from sadi_lmeval.pairs import Pair, build_pairs
from sadi_lmeval.recipe import Recipe, load_recipe
from sadi_lmeval.run_tasks import Document, RunTask, digest, included_folders, load_task
from sadi_lmeval.sites import Site
from sadi_lmeval.sources import Source, find_sources, identity, refuse_scored_documents

logger = logging.getLogger("lm_eval.sadi")

_FEWEST = 4
"""Pairs below which a mean difference is mostly noise."""


class SteerableModel(Protocol):
    """What building a mask needs of the model."""

    options: Options

    @property
    def site(self) -> Site: ...

    @property
    def model_card(self) -> dict[str, Any]: ...

    def encode(self, context: str, continuation: str) -> list[int]:
        """Prompt and answer as the tokens that scoring would see."""

    def measure(self, pairs: list[TokenPair], label: str) -> Tensor:
        """The mean difference of pairs."""


class PreparedMask(NamedTuple):
    """A mask that is ready to steer with.

    Attributes:
        source: for messages: the file, or where the pairs come from.
        key: its cache key; empty for a mask that was given by hand.
        file: where it is kept, or None.
    """

    difference: MeanDifference
    edit: Edit
    selected: list[list[int]]
    source: str
    key: str
    file: Path | None


@dataclass(frozen=True)
class TaskSteering:
    """How the documents of one task are steered.

    Attributes:
        edits: one, or one a fold.
        masks: of each edit; empty where nothing is steered.
        mask_of: the index of the edit and mask for a document.
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
            mask = self.masks[index]
            refuse_scored_documents(self.task, scored, mask.difference.card, mask.source)


def prepare(task: RunTask, model: SteerableModel) -> TaskSteering:
    """Build or load the masks of a task.

    With a delta of 0 nothing is steered and no mask is needed.

    Raises:
        UserError: for whatever the user can mend: too few documents, an unfit mask file, …
    """
    options = model.options
    folders = user_folders(options)
    benchmark = find_benchmark(task.name, folders)
    top_k = options.top_k or benchmark.default_top_k(options.element)
    delta = benchmark.default_delta(options.element) if options.delta is None else options.delta
    entries = model.site.layers * model.site.entries
    if top_k > entries:
        raise UserError(
            f"top_k={top_k}: this model has {entries} entries of element {options.element} "
            f"({model.site.layers} layers of {model.site.entries})"
        )

    def finish(
        difference: MeanDifference, source: str, key: str, file: Path | None
    ) -> PreparedMask:
        mask = binary_mask(difference.scores, top_k, options.selection, options.seed)
        edit = sadi_edit(mask, difference.values, delta, options.steering)
        return PreparedMask(difference, edit, mask.nonzero().tolist(), source, key, file)

    record: dict[str, Any] = {
        "element": options.element,
        "top_k": top_k,
        "delta": delta,
        "selection": options.selection,
        "steering": options.steering,
        "activations": options.activations,
    }
    if options.element == "hidden":
        record["hidden_site"] = options.hidden_site
    if delta == 0:
        unsteered = Edit(torch.zeros(model.site.layers, model.site.width))
        return TaskSteering(task, [unsteered], [], lambda _: 0, record)
    if options.mask:
        difference = load_mask(Path(options.mask))
        difference.check_fits(model.site, model.model_card["model_type"], options.mask)
        if options.element == "hidden":
            _check_hidden_site(difference, options)
        masks = [finish(difference, options.mask, "", Path(options.mask))]
        record |= {"mask_file": options.mask, "folds": None}
        return _finished(task, masks, lambda _: 0, record)

    source_task = task
    if options.mask_from and options.mask_from != task.name:
        source_task = load_task(options.mask_from, folders, task)
        benchmark = find_benchmark(source_task.name, folders)
        record["mask_from"] = source_task.name
    recipe = load_recipe(
        options.recipe or benchmark.recipe or _default_recipe(source_task), folders
    )
    sources = find_sources(task, source_task, benchmark, options.folds)
    masks = []
    for source in sources.sources:
        pairs = _pairs(source_task, recipe, source, options, benchmark)
        label = f"Mask of {source_task.name}"
        if sources.folds:
            label += f", {source.label}"
        difference, key, file = _mask(source_task, recipe, source, pairs, model, label)
        masks.append(finish(difference, f"{source_task.name} ({source.label})", key, file))
    record |= {"recipe": recipe.recipe, "pairs_from": sources.split, "folds": sources.folds}
    return _finished(task, masks, sources.mask_of, record)


def user_folders(options: Options) -> list[Path]:
    """Where the user's own benchmark and recipe files are, searched before ours."""
    own = [Path(options.include_path)] if options.include_path else []
    return [*own, *included_folders()]


def _finished(
    task: RunTask,
    masks: list[PreparedMask],
    mask_of: Callable[[Document], int],
    record: dict[str, Any],
) -> TaskSteering:
    record["masks"] = [
        {
            "source": mask.source,
            "n_pairs": mask.difference.card.get("n_pairs"),
            "selected": mask.selected,
            "cache_key": mask.key,
            "file": None if mask.file is None else str(mask.file),
        }
        for mask in masks
    ]
    return TaskSteering(task, [mask.edit for mask in masks], masks, mask_of, record)


def _default_recipe(task: RunTask) -> str:
    if task.task.config.doc_to_choice is not None:
        return "right_wrong"
    if task.output_type in ("generate_until", "loglikelihood"):
        return "other_target"
    raise UserError(
        f"task {task.name} ({task.output_type}) has nothing to contrast; pass mask= or mask_from="
    )


def _pairs(
    task: RunTask, recipe: Recipe, source: Source, options: Options, benchmark: Benchmark
) -> list[Pair]:
    wanted = options.n_pairs or benchmark.n_pairs or DEFAULT_N_PAIRS
    shots = task.num_fewshot if options.pairs_num_fewshot is None else options.pairs_num_fewshot
    pairs = build_pairs(task, recipe, source.documents, source.allowed, wanted, shots, options.seed)
    if len(pairs) < (wanted if options.n_pairs else _FEWEST):
        raise UserError(
            f"task {task.name}: {source.label} makes {len(pairs)} contrastive pairs out of "
            f"{len(source.documents)} documents by recipe {recipe.recipe}, but "
            f"{options.n_pairs or _FEWEST} are needed; pass a smaller n_pairs, or mask_from=TASK"
        )
    if len(pairs) < wanted:
        logger.info(
            "Task %s: %s makes %d contrastive pairs; all are used",
            task.name,
            source.label,
            len(pairs),
        )
    return pairs


def _mask(
    task: RunTask,
    recipe: Recipe,
    source: Source,
    pairs: list[Pair],
    model: SteerableModel,
    label: str,
) -> tuple[MeanDifference, str, Path | None]:
    """The mean difference of pairs, from the cache if it was measured before."""
    options = model.options
    tokens = [
        TokenPair(model.encode(*pair.positive), model.encode(*pair.negative)) for pair in pairs
    ]
    identities = [identity(task, pair.document) for pair in pairs]
    card: dict[str, Any] = {
        **model.model_card,
        "element": options.element,
        "hidden_site": options.hidden_site if options.element == "hidden" else None,
        "shape": [model.site.layers, model.site.entries, model.site.entry_width],
        "task": task.name,
        "task_digest": _task_digest(task),
        "source": source.label,
        "recipe": recipe.recipe,
        "recipe_digest": recipe.digest,
        "n_pairs": len(pairs),
        "pairs_digest": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "documents": [i.content for i in identities],
        "questions": [i.question for i in identities if i.question],
        "seed": options.seed,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("sadi-lmeval", "lm-eval", "torch", "transformers")
        },
    }
    key = cache_key(card)

    def build() -> MeanDifference:
        return MeanDifference(model.measure(tokens, label), card)

    folder = Path(options.cache_dir) if options.cache_dir else default_folder()
    difference, file = cached_mask(folder, key, build)
    return difference, key, file


def _check_hidden_site(difference: MeanDifference, options: Options) -> None:
    if difference.card.get("hidden_site") != options.hidden_site:
        raise UserError(
            f"mask {options.mask} is for hidden_site={difference.card.get('hidden_site')}, "
            f"but this run has {options.hidden_site}; pass the mask's"
        )


def _task_digest(task: RunTask) -> str:
    """A digest of the task's configuration; functions count by their names."""
    content = json.dumps(
        task.task.config.to_dict(),
        sort_keys=True,
        default=lambda value: getattr(value, "__qualname__", type(value).__name__),
    )
    return digest({"config": content})
