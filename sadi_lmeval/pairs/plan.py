"""From a task to the documents that its masks are made of and tuned on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.harness.run_tasks import load_task
from sadi_lmeval.options import DEFAULT_N_PAIRS, DEFAULT_N_TUNE, Options
from sadi_lmeval.pairs.benchmark import Benchmark, find_benchmark
from sadi_lmeval.pairs.hardest import hardest
from sadi_lmeval.pairs.pairs import (
    Pair,
    build_pairs,
    few_shot_examples,
    usable_documents,
)
from sadi_lmeval.pairs.recipe import Recipe, load_recipe
from sadi_lmeval.pairs.sources import Identity, Known, Source, Sources, find_sources, identity
from sadi_lmeval.pairs.static_sets import static_pairs
from sadi_lmeval.passes.steerable import SteerableModel, folder_for

logger = logging.getLogger("lm_eval.sadi")

_FEWEST_PAIRS = 4
"""Pairs below which a mean difference is mostly noise."""
_FEWEST_TUNED = 4
"""Held-out documents below which a choice of a setting says nothing at all."""
_FEW_TUNED = 20
"""Held-out documents below which a choice of a setting is a weak one, and the run says so."""


class Plan(NamedTuple):
    """Where the masks of a task come from.

    Attributes:
        task: the task that is scored.
        source_task: the task whose documents make the pairs; mostly the same.
        benchmark: of ``source_task``.
        recipe: of the pairs.
        own_recipe: of the documents of ``source_task``; another one where the pairs are static.
    """

    task: RunTask
    source_task: RunTask
    benchmark: Benchmark
    recipe: Recipe
    own_recipe: Recipe
    sources: Sources

    @property
    def is_static(self) -> bool:
        """Whether the pairs come out of a file, not out of documents."""
        return self.recipe.contrast == "static"

    def pairs_from(self, source: Source) -> str:
        """Say where the pairs of a mask come from, for people."""
        return f"recipe {self.recipe.recipe}" if self.is_static else source.label


class Drawn(NamedTuple):
    """Documents of one mask: none stands in both lists, and none is scored with the mask."""

    pairs: list[Pair]
    held_out: list[Document]


def find_plan(task: RunTask, options: Options) -> Plan:
    """Find the recipe and the documents for a task.

    Raises:
        UserError: there is nothing to contrast, or nothing that is not scored.
    """
    folders = user_folders(options, task)
    source_task = task
    if options.mask_from and options.mask_from != task.name:
        source_task = load_task(options.mask_from, folders, task)
    benchmark = find_benchmark(source_task.name, folders)
    recipe = own_recipe = recipe_of(source_task, options)
    if recipe.contrast == "static":
        if options.pairs_num_fewshot:
            raise UserError(
                f"pairs_num_fewshot={options.pairs_num_fewshot}: recipe "
                f"{recipe.recipe} is a static set, whose prompts show no examples; leave it out"
            )
        own_recipe = recipe_of(source_task, replace(options, recipe=None), static=False)
    if options.negative != "random" and recipe.contrast != "choice":
        logger.warning(
            "Task %s: negative=%s is about choices, which recipe %s does not contrast; it is as if "
            "negative=random had been given",
            *(source_task.name, options.negative, recipe.recipe),
        )
    sources = find_sources(task, source_task, benchmark, options.folds)
    return Plan(task, source_task, benchmark, recipe, own_recipe, sources)


def recipe_of(task: RunTask, options: Options, static: bool = True) -> Recipe:
    """Find the recipe for a task's documents: the user's, the benchmark's, or that of its kind.

    Args:
        task: of the documents.
        options: the user's.
        static: whether a set of pairs out of a file will do; else it is passed over.

    Raises:
        UserError: there is nothing to contrast, or no such recipe.
    """
    folders = user_folders(options, task)
    named = options.recipe or find_benchmark(task.name, folders).recipe
    recipe = load_recipe(named or _default_recipe(task), folders)
    if recipe.contrast == "static" and not static:
        recipe = load_recipe(_default_recipe(task), folders)
    return recipe


def user_folders(options: Options, task: RunTask | None) -> list[Path]:
    """Say where the user's own benchmark and recipe files are, searched before ours.

    Args:
        task: of the run; the run's ``--include_path`` is where it was loaded from.
    """
    own = [Path(options.include_path)] if options.include_path else []
    return [*own, *(task.included_folders() if task is not None else ())]


def num_fewshot(plan: Plan, options: Options) -> int:
    """Say how many few-shot examples the prompts of pairs and of held-out documents have."""
    if options.pairs_num_fewshot is not None:
        return options.pairs_num_fewshot
    return plan.source_task.num_fewshot


def _default_recipe(task: RunTask) -> str:
    if task.task.config.doc_to_choice is not None:
        return "right_wrong"
    if task.output_type in ("generate_until", "loglikelihood"):
        return "other_target"
    raise UserError(
        f"task {task.name} ({task.output_type}) has nothing to contrast; pass mask= or mask_from="
    )


def draw(
    plan: Plan,
    source: Source,
    options: Options,
    chosen: Sequence[str],
    model: SteerableModel | None = None,
    measured: bool = True,
) -> Drawn:
    """Draw the pairs of a mask, and the held-out documents that its setting is chosen on.

    Where there are not enough documents for as many of both as is usual, they are shared out in
    the usual proportion, unless the user has said how many.

    Args:
        plan, source: where the documents come from.
        options: the user's.
        chosen: the numbers that are chosen on held-out documents; none: none are needed.
        model: says which wrong choice is the hardest; needed for ``negative=hardest`` alone.
        measured: whether anything is measured of pairs; else none are drawn.

    Raises:
        UserError: too few documents.
    """
    task, shots, seed = plan.source_task, num_fewshot(plan, options), options.seed
    target = options.n_pairs or plan.benchmark.n_pairs or DEFAULT_N_PAIRS
    tuned = (options.n_tune or DEFAULT_N_TUNE) if chosen else 0
    usable: list[Document] = []
    candidates = usable_documents(
        task, plan.own_recipe, source.documents, source.allowed, shots, seed
    )
    if not measured:
        held_out = list(itertools.islice(candidates, tuned))
        if chosen:
            _check_held_out(plan, source, options, chosen, len(held_out), 0, len(held_out))
        return Drawn([], held_out)
    if plan.is_static:
        pairs = static_pairs(plan.task, task, plan.recipe, target, seed)
        _check_pairs(plan, source, options, len(pairs), target)
        if not chosen:
            return Drawn(pairs, [])
        used = Known.of(pair.known_as for pair in pairs)
        others = (d for d in candidates if not used.has(identity(task, d)))
        held_out = list(itertools.islice(others, tuned))
        _check_held_out(plan, source, options, chosen, len(held_out), 0, len(held_out))
        return Drawn(pairs, held_out)
    if chosen:
        usable = list(itertools.islice(candidates, target + tuned))
        if len(usable) < target + tuned and not options.n_pairs:
            least = options.n_tune or _FEWEST_TUNED
            share = max(least, len(usable) * tuned // (target + tuned))
            target = max(_FEWEST_PAIRS, len(usable) - share)
    likes = None if model is None else hardest(model, folder_for(options, model))
    pairs = build_pairs(
        *(task, plan.recipe, source.documents, source.allowed, target, shots, seed),
        *(options.negative, likes),
    )
    _check_pairs(plan, source, options, len(pairs), target)
    if not chosen:
        return Drawn(pairs, [])
    used = Known.of(pair.known_as for pair in pairs)
    others = (d for d in itertools.chain(usable, candidates) if not used.has(identity(task, d)))
    held_out = list(itertools.islice(others, tuned))
    _check_held_out(plan, source, options, chosen, len(usable), len(pairs), len(held_out))
    return Drawn(pairs, held_out)


def examples(plan: Plan, source: Source, options: Options) -> list[Identity]:
    """Tell which documents all pairs of a fit show as examples: they help to make it, too."""
    if plan.is_static:
        return []
    task, shots = plan.source_task, num_fewshot(plan, options)
    shown = few_shot_examples(task, source.allowed, shots, options.seed)
    return [identity(task, document) for document in shown]


def _check_pairs(plan: Plan, source: Source, options: Options, made: int, target: int) -> None:
    name = plan.source_task.name
    if made < (target if options.n_pairs else _FEWEST_PAIRS):
        raise UserError(
            f"task {name}: {_origin(plan, source)} makes {made} contrastive pairs, but "
            f"{options.n_pairs or _FEWEST_PAIRS} are needed; pass a smaller n_pairs, or "
            "mask_from=TASK"
        )
    if made < target:
        logger.info(
            "Task %s: %s makes %d contrastive pairs; all are used",
            *(name, plan.pairs_from(source), made),
        )


def _origin(plan: Plan, source: Source) -> str:
    if plan.is_static:
        return plan.pairs_from(source)
    return f"{source.label}, {len(source.documents)} documents, by recipe {plan.recipe.recipe}"


def _check_held_out(
    plan: Plan,
    source: Source,
    options: Options,
    chosen: Sequence[str],
    usable: int,
    pairs: int,
    held_out: int,
) -> None:
    name = plan.source_task.name
    needed = options.n_tune or _FEWEST_TUNED
    names = " and ".join(chosen)
    if held_out < needed:
        raise UserError(
            f"task {name}: {source.label} has {usable} documents, {pairs} of them in the pairs, "
            f"which leaves {held_out} to choose {names} on, but {needed} are needed; pass "
            f"{'= and '.join(chosen)}=, or a smaller n_pairs or n_tune"
        )
    if held_out < _FEW_TUNED:
        logger.warning(
            "Task %s: settings are chosen on only %d held-out documents (%s); a larger n_tune= "
            "takes some from the pairs",
            *(name, held_out, source.label),
        )
