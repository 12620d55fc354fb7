"""Conditions: fitted to two lists of prompts, kept in a file, and read for the site of a method.

A file holds one of every layer at every site, so that every method finds its own in it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.conditional import Condition, ConditionalEdits, similarity
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.identity.model import other_model
from sadi_lmeval.methods.collectors import Kept
from sadi_lmeval.options import Options
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.storage.fit_file import Fit, load_fit
from sadi_lmeval.types import Element, HiddenSite, Token
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")

KINDS: dict[Token, str] = {"last": "condition", "mean": "mean_condition"}
"""Of a file, by what it is read of: so one is never taken for the other."""
PLACES: dict[str, tuple[Element, HiddenSite]] = {
    "head": ("head", "mlp"),
    "neuron": ("neuron", "mlp"),
    "mlp": ("hidden", "mlp"),
    "residual": ("hidden", "residual"),
}
"""Where conditions are read, by the name that a file has for it."""


@dataclass(frozen=True)
class FittedCondition:
    """A condition at one site, out of a file.

    Attributes:
        condition: what decides.
        file: the name of its file.
        sha256: of the file's tensors.
        prompts: digests of the prompts that it was fitted to.
        of_model: the model that it was fitted on, where that is another one.
    """

    condition: Condition
    file: str
    sha256: str
    prompts: frozenset[str]
    of_model: str | None

    def record(self) -> dict[str, Any]:
        """Describe it for results files."""
        of_model = {} if self.of_model is None else {"of_model": self.of_model}
        return {
            "file": self.file,
            "sha256": self.sha256,
            "layer": self.condition.layer,
            "threshold": self.condition.threshold,
            "side": self.condition.side,
            "token": self.condition.token,
            **of_model,
        }

    def guard(self, prompt: str) -> None:
        """Refuse to score a prompt that the condition was fitted to.

        Raises:
            UserError: showing its end.
        """
        if prompt_digest(prompt) in self.prompts:
            raise UserError(
                f"when={self.file}: was fitted to a prompt that is scored: "
                f"{' '.join(prompt.split())[-120:]!r}; fit it to prompts that are not"
            )


def conditional(edits: Edits, fitted: FittedCondition | None) -> Edits:
    """Put edits under a condition, if there is one."""
    return edits if fitted is None else ConditionalEdits(edits, fitted.condition)


def condition_for(
    options: Options, place: tuple[Element, HiddenSite], model: SteerableModel
) -> FittedCondition | None:
    """Read the condition that ``when=`` names, for the site of a method; None without one.

    Args:
        options: its file; a layer, a threshold and a side in place of the file's.
        place: of the method.
        model: that is steered.

    Raises:
        UserError: it is none, is damaged, or does not fit the model.
    """
    if options.when is None:
        return None
    path, site = Path(options.when), model.engine.site(*place)
    fit = load_fit(path)
    model_type = model.model_card["model_type"]
    token = next((token for token, kind in KINDS.items() if kind == fit.card["kind"]), None)
    if token is None:
        raise UserError(
            f"when={path}: is a fit of kind {fit.card['kind']}, not a condition; make one by "
            "`sadi-lmeval condition`"
        )
    if options.when_token not in (None, token):
        raise UserError(
            f"when_token={options.when_token}: when={path} was fitted with when_token={token}; fit "
            f"another one by `sadi-lmeval condition --when_token {options.when_token}`"
        )
    if fit.card.get("model_type") != model_type:
        raise UserError(
            f"when={path}: is for model_type {fit.card.get('model_type')}, but this run has "
            f"{model_type}; make one for this model by `sadi-lmeval condition`"
        )
    name = next(name for name, each in PLACES.items() if each == place)
    of_site = _of_site(fit, name, site, path)
    layer = options.when_layer
    if layer is None:
        layer = int(of_site.accuracy.argmax())
    elif layer >= site.layers:
        raise UserError(f"when_layer={layer}: this model has layers 0 to {site.layers - 1}")
    threshold, above = options.when_threshold, bool(of_site.above[layer])
    condition = Condition(
        layer,
        of_site.direction[layer].clone(),
        float(of_site.threshold[layer]) if threshold is None else threshold,
        options.when_side or ("above" if above else "below"),
        token,
    )
    of_model = other_model(fit.card, model.model_card)
    if of_model is not None:
        logger.warning(
            "condition %s was fitted on another model of the same shape (%s), which the results "
            "name; it may mean nothing here",
            *(path, of_model),
        )
    prompts = fit.card.get("prompts")
    known = frozenset(map(str, prompts)) if isinstance(prompts, list) else frozenset()
    return FittedCondition(condition, path.name, fit.digest, known, of_model)


def prompt_digest(prompt: str) -> str:
    """Digest a prompt, however it is spaced."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()[:32]


# ------------------------------------------------------------------ fitting


class OfSite(NamedTuple):
    """The conditions of a site, one a layer.

    Attributes:
        direction: c, ``[layers, width]``.
        threshold: that tells the two lists apart best, ``[layers]``.
        above: 1 where the matching prompts are above it, 0 where below, ``[layers]``.
        accuracy: the part of all prompts that is on its side, ``[layers]``.
    """

    direction: Tensor
    threshold: Tensor
    above: Tensor
    accuracy: Tensor


def fit_conditions(
    model: SteerableModel,
    matching: Sequence[str],
    others: Sequence[str],
    label: str,
    token: Token = "last",
) -> Fit:
    """Fit a condition of every layer at every site that the model has.

    Args:
        model: reads.
        matching: prompts that are to be steered.
        others: as many that are not: the first is compared with the first, and so on.
        label: of the progress bar.
        token: what of a prompt is read.

    Raises:
        UserError: too few prompts, not as many of both, one in both, or activations that are not
            finite.
    """
    if len(matching) != len(others) or len(matching) < 2:
        raise UserError(
            f"{len(matching)} matching and {len(others)} other prompts: as many of both are "
            "needed, at least 2"
        )
    digests = [[prompt_digest(prompt) for prompt in side] for side in (matching, others)]
    if set(digests[0]) & set(digests[1]):
        raise UserError("a prompt is among the matching and among the others; leave it out of one")
    pairs = [
        TokenPair(*(list(model.continuation(prompt, " .").context) for prompt in pair))
        for pair in zip(matching, others, strict=True)
    ]
    collectors: dict[str, tuple[Site, Kept]] = {}
    for name, place in PLACES.items():
        try:
            site = model.engine.site(*place)
        except UserError:
            continue  # several experts have no neurons of one MLP
        shapes: dict[str, tuple[int, ...]] = {"direction": (site.layers, site.width)}
        collectors[name] = site, Kept(KINDS[token], site, len(pairs), shapes, of_site)
    model.engine.read(list(collectors.values()), pairs, label, model.processes, token)
    tensors = {
        f"{name}.{part}": values
        for name, (_, collector) in collectors.items()
        for part, values in collector.tensors(label).items()
    }
    card = {
        **model.model_card,
        "kind": KINDS[token],
        "shape": list(collectors["residual"][0].shape),
        "n_pairs": len(pairs),
        "prompts": sorted({*digests[0], *digests[1]}),
        "versions": versions(),
    }
    return Fit(tensors, card)


def of_places(fit: Fit) -> dict[str, OfSite]:
    """Give the conditions of a file, by the name of their place."""
    return {
        name: OfSite(*(fit.tensors[f"{name}.{part}"] for part in OfSite._fields))
        for name in PLACES
        if f"{name}.direction" in fit.tensors
    }


def of_site(matching: Tensor, others: Tensor, label: str) -> dict[str, Tensor]:
    """Fit the condition of every layer of a site.

    c is the first principal component of the pair-centred activations, and the threshold lies
    where most prompts are on their side of it.

    Args:
        matching, others: activations at the last token of each pair's prompts, or their means,
            ``[pairs, layers, entries, entry_width]``.
    """
    found = []
    for layer in range(matching.shape[1]):
        sides = matching[:, layer].flatten(1), others[:, layer].flatten(1)
        direction = first_component(*sides)
        scores = (similarity(side, direction).numpy() for side in sides)
        found.append((direction, *best_threshold(*scores)))
    directions, *numbers = zip(*found, strict=True)
    parts = [torch.stack(directions), *(torch.tensor(n, dtype=torch.float32) for n in numbers)]
    return dict(zip(OfSite._fields, parts, strict=True))


def first_component(matching: Tensor, others: Tensor) -> Tensor:
    """Give the first principal component of pair-centred activations, ``[width]`` float32.

    Args:
        matching, others: ``[pairs, width]``. Where they are the same it is zero.
    """
    half = (matching.double() - others.double()) / 2
    if not half.any():
        return torch.zeros(matching.shape[1])
    centred = torch.cat([half, -half]).numpy()
    component = PCA(n_components=1, svd_solver="full").fit(centred).components_[0]
    return torch.from_numpy(component).float()


def best_threshold(
    matching: np.ndarray[Any, Any], others: np.ndarray[Any, Any]
) -> tuple[float, bool, float]:
    """Find the threshold that tells two lists of similarities apart best.

    It lies midway between two neighbours; of equally good ones it is that with the widest gap.

    Returns:
        it, whether the matching ones are above it, and the part of all that is on its side.
    """
    values = np.unique(np.concatenate([matching, others]).astype(np.float64))
    if len(values) == 1:
        return float(values[0]), True, 0.5
    middles, gaps = (values[1:] + values[:-1]) / 2, values[1:] - values[:-1]
    above = [(matching[:, None] > middles).mean(axis=0), (others[:, None] > middles).mean(axis=0)]
    right = (above[0] + 1 - above[1]) / 2  # there are as many of both
    sides = np.stack([right, 1 - right])  # the matching ones above, or below
    best = max(np.ndindex(sides.shape), key=lambda at: (round(float(sides[at]), 9), gaps[at[1]]))
    return float(middles[best[1]]), best[0] == 0, float(sides[best])


def _of_site(fit: Fit, name: str, site: Site, path: Path) -> OfSite:
    """Give a file's conditions for a site.

    Raises:
        UserError: it has none, or they are of another shape.
    """
    parts = {part: fit.tensors.get(f"{name}.{part}") for part in OfSite._fields}
    for part, values in parts.items():
        needed = [site.layers, site.width] if part == "direction" else [site.layers]
        shape = None if values is None else list(values.shape)
        if shape != needed:
            raise UserError(
                f"when={path}: has {name}.{part} of shape {shape}, but this model has {needed}; "
                "make one for this model by `sadi-lmeval condition`"
            )
    return OfSite(**parts)  # type: ignore[arg-type]
