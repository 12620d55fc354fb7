"""The mean difference of drawn pairs: out of the cache, or measured."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.activations import TokenPair
from sadi_lmeval.cache import cache_key, cached_mask, default_folder
from sadi_lmeval.mask import MeanDifference
from sadi_lmeval.options import Options
from sadi_lmeval.pairs import Pair
from sadi_lmeval.plan import Plan
from sadi_lmeval.run_tasks import RunTask, digest
from sadi_lmeval.sites import Site
from sadi_lmeval.sources import Source, identity
from sadi_lmeval.steerable import SteerableModel


class Measured(NamedTuple):
    """A mean difference with its source.

    Attributes:
        source: for messages: the file, or where the pairs come from.
        key: its cache key; empty for a mask that was given by hand.
        file: where it is kept, or None.
    """

    difference: MeanDifference
    source: str
    key: str
    file: Path | None


def cache_folder(options: Options) -> Path:
    return Path(options.cache_dir) if options.cache_dir else default_folder()


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("sadi-lmeval", "lm-eval", "torch", "transformers")
    }


def measured(
    plan: Plan,
    source: Source,
    pairs: list[Pair],
    site: Site,
    options: Options,
    model: SteerableModel,
) -> Measured:
    """The mean difference of pairs at a site, from the cache if it was measured before."""
    task = plan.source_task
    tokens = [
        TokenPair(model.encode(*pair.positive), model.encode(*pair.negative)) for pair in pairs
    ]
    identities = [identity(task, pair.document) for pair in pairs]
    card: dict[str, Any] = {
        **model.model_card,
        "element": site.element,
        "hidden_site": options.hidden_site if site.element == "hidden" else None,
        "shape": [site.layers, site.entries, site.entry_width],
        "task": task.name,
        "task_digest": task_digest(task),
        "source": source.label,
        "recipe": plan.recipe.recipe,
        "recipe_digest": plan.recipe.digest,
        "n_pairs": len(pairs),
        "pairs_digest": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "documents": [i.content for i in identities],
        "questions": [i.question for i in identities if i.question],
        "seed": options.seed,
        "versions": versions(),
    }
    key = cache_key(card)
    label = f"Mask of {task.name}"
    if plan.sources.folds:
        label += f", {source.label}"

    def build() -> MeanDifference:
        return MeanDifference(model.engine.measure(site, tokens, label), card)

    difference, file = cached_mask(cache_folder(options), key, build)
    return Measured(difference, f"{task.name} ({source.label})", key, file)


def task_digest(task: RunTask) -> str:
    """A digest of the task's configuration; functions count by their names."""
    content = json.dumps(
        task.task.config.to_dict(),
        sort_keys=True,
        default=lambda value: getattr(value, "__qualname__", type(value).__name__),
    )
    return digest({"config": content})
