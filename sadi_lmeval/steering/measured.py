"""What methods need of drawn pairs: out of the cache, or measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.harness.run_task import task_digest
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import Plan
from sadi_lmeval.pairs.sources import Source
from sadi_lmeval.passes.activations import TokenPair, reducer
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.steering.methods import kind_of, site_of
from sadi_lmeval.storage.cache import cache_folder, cache_key, cached_measurements
from sadi_lmeval.storage.mask import Kind, Measurement
from sadi_lmeval.versions import versions


class Measured(NamedTuple):
    """A measurement with its source.

    Attributes:
        source: for messages: the file, or where the pairs come from.
        key: its cache key; empty for a mask that was given by hand.
        file: where it is kept, or None.
    """

    measurement: Measurement
    source: str
    key: str
    file: Path | None


def measured(
    plan: Plan,
    source: Source,
    pairs: list[Pair],
    arms: Sequence[Options],
    model: SteerableModel,
) -> list[Measured]:
    """What each arm needs of the pairs, out of the cache or measured, all in one pass.

    Args:
        plan, source: where the pairs come from.
        pairs: the same for all arms.
        arms: the options of each; where the cache is comes from the first.
        model: reads.
    """
    task = plan.source_task
    tokens = [
        TokenPair(model.encode(*pair.positive), model.encode(*pair.negative)) for pair in pairs
    ]
    identities = [pair.known_as for pair in pairs]
    shared: dict[str, Any] = {
        **model.model_card,
        "task": task.name,
        "task_digest": task_digest(task),
        "source": plan.pairs_from(source),
        "recipe": plan.recipe.recipe,
        "recipe_digest": plan.recipe.digest,
        "n_pairs": len(pairs),
        "pairs_digest": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "documents": [i.content for i in identities],
        "questions": [i.question for i in identities if i.question],
        "seed": arms[0].seed,
        "versions": versions(),
    }
    wanted: dict[str, tuple[dict[str, Any], Kind, Site]] = {}
    keys = []
    for options in arms:
        kind, (element, hidden_site) = kind_of(options), site_of(options)
        site = model.engine.site(element, hidden_site)
        card = {
            **shared,
            "kind": kind,
            "element": site.element,
            "hidden_site": hidden_site if element == "hidden" else None,
            "shape": [site.layers, site.entries, site.entry_width],
        }
        keys.append(cache_key(card))
        wanted[keys[-1]] = card, kind, site
    folds = plan.sources.folds and not plan.is_static
    name = task.name + (f", {source.label}" if folds else "")
    origin = f"{task.name} ({plan.pairs_from(source)})"

    def build(missing: list[str]) -> dict[str, Measurement]:
        reducers = {
            key: reducer(kind, site, len(tokens), arms[0].seed)
            for key, (_, kind, site) in wanted.items()
            if key in missing
        }
        readers = [(wanted[key][2], each) for key, each in reducers.items()]
        model.engine.read(readers, tokens, f"Pairs of {name}", model.processes)
        if not model.processes.is_first:
            return {}
        return {
            key: Measurement(each.tensors(f"Probes of {name}"), wanted[key][0])
            for key, each in reducers.items()
        }

    found = cached_measurements(cache_folder(arms[0]), list(wanted), build, model.processes)
    return [Measured(found[k][0], origin, k, found[k][1]) for k in keys]
