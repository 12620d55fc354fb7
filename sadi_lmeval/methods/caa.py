"""CAA: add one vector to the residual stream after one layer (Rimsky et al. 2023)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.controls import RANDOM
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept, MeanDifference
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

logger = logging.getLogger("lm_eval.sadi")

Direction = Literal["mean", "pca", "probe", "random"]
Array = np.ndarray[Any, Any]

_SEEDS = 1 << 32
"""How many seeds scikit-learn knows."""

AXES = Axes(
    Axis("layer", "the decoder block whose output is shifted, counted from 0", whole=True, least=0,
         counts="layer"),
    Axis("multiplier", "strength: h' = h + multiplier · v; 0 is the unsteered model, a negative "
         "one steers towards the negative answers (1 where only `layer` is given)", strength=True),
)  # fmt: skip
MULTIPLIERS = (0.5, 1.0, 1.5, 2.0)
"""The authors go to 2 (section 4). Every layer is tried."""


@dataclass(frozen=True)
class CAA(Method):
    """h' = h + multiplier · v after one decoder block, from the last prompt token onwards.

    v is mean(positive) − mean(negative) of that block's output at the answer's last token
    (section 3), or another direction of the same length, so that multipliers mean the same.
    """

    name = "caa"
    axes = AXES
    compared = True
    arms = {"caa": {}}  # noqa: RUF012
    ablations = {  # noqa: RUF012
        "caa-pca": {"direction": "pca"},
        "caa-probe": {"direction": "probe"},
        RANDOM: {"direction": "random"},
    }

    scope: Scope = scoped()
    direction: Direction = choice(
        "mean", get_args(Direction), "of v, whose length is that of the mean difference: `mean`, "
        "the first principal component of the pairs (`pca`), a `probe`'s coefficients or `random`",
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    @property
    def measured_by(self) -> dict[str, Any]:
        """Say what fits depend on; that of the mean difference is SADI's of this site, too."""
        return {} if self.direction == "mean" else {"direction": self.direction}

    def collector(self, site: Site, pairs: int, seed: int) -> MeanDifference | Kept:
        shapes: dict[str, tuple[int, ...]] = {"vector": site.shape}
        if self.direction == "pca":
            return Kept("caa_pca", site, pairs, shapes, partial(vectors, find=principal_component))
        if self.direction == "probe":
            find = partial(probe_coefficients, seed=seed)
            return Kept("caa_probe", site, pairs, shapes, partial(vectors, find=find))
        return MeanDifference(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        return SearchSpace(AXES, (tuple(layers), MULTIPLIERS))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, 1.0  # which layer depends on the model

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> ScaledEdits:
        v = tensors["difference" if "difference" in tensors else "vector"].flatten(1)
        if self.direction == "random":
            v = random_vectors(v, seed)
        layers = [int(layer) for layer, _ in settings]
        return ScaledEdits(
            site,
            strengths=[multiplier for _, multiplier in settings],
            layers=[[layer] for layer in layers],
            scope=self.scope,
            shift={layer: v[layer] for layer in set(layers)},
        )


def vectors(
    positive: Tensor, negative: Tensor, label: str, find: Callable[[Array, Array], Array]
) -> dict[str, Tensor]:
    """Give each layer's vector: a direction, of the length of the mean difference.

    Args:
        positive, negative: activations at the last token of each pair's texts,
            ``[pairs, layers, entries, entry_width]``.
        label: for the progress bar.
        find: the direction of both sides' activations in one layer, ``[pairs, width]`` each.
    """
    sides = [side.flatten(2).double().numpy() for side in (positive, negative)]
    found = torch.zeros(positive.shape[1:])
    # A layer's problem is too small for several threads of BLAS, which wait for one another.
    with threadpool_limits(1, "blas"):
        for layer in tqdm(range(len(found)), desc=f"Directions of {label}", unit="layer"):
            right, wrong = (side[:, layer] for side in sides)
            direction = find(right, wrong)
            length = np.linalg.norm((right - wrong).mean(axis=0))
            norm = np.linalg.norm(direction)
            vector = direction * (length / norm) if norm else np.zeros_like(direction)
            found[layer] = torch.from_numpy(vector).view(found[layer].shape)
    return {"vector": found}


def principal_component(right: Array, wrong: Array) -> Array:
    """Find the first principal component of both sides, each pair's mean taken off (``[width]``).

    What is left of a pair is plus and minus half of its difference, so this is the first right
    singular vector of the differences, which are not centred: their mean is what is looked for
    (CAST, Lee et al. 2025, ``pca_pairwise`` of ``read_representations``; RepE, Zou et al. 2023,
    takes differences in random order to the same end). It points to where more of the pairs' right
    texts lie; where as many lie on either side, its largest coordinate is positive.
    """
    differences = right - wrong
    component: Array = np.linalg.svd(differences, full_matrices=False)[2][0]
    component = component * np.sign(component[np.abs(component).argmax()])
    ahead = np.sign(differences @ component).sum()
    return component if ahead >= 0 else -component


def probe_coefficients(right: Array, wrong: Array, seed: int) -> Array:
    """Find a logistic regression's coefficients between both sides, ``[width]``."""
    # To the end: what rounding did to the activations is not to show in where it stopped.
    probe = LogisticRegression(max_iter=1000, tol=1e-8, random_state=seed % _SEEDS)
    labels = np.repeat([1, 0], [len(right), len(wrong)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients: Array = probe.fit(np.concatenate([right, wrong]), labels).coef_[0]
    return coefficients


def random_vectors(v: Tensor, seed: int) -> Tensor:
    """Draw a direction for each layer, uniformly, and give it the length of ``v``'s.

    Args:
        v: ``[layers, width]``.
        seed: of the draw.
    """
    drawn = torch.randn(v.shape, generator=torch.Generator().manual_seed(seed))
    scaled: Tensor = drawn * (v.norm(dim=1) / drawn.norm(dim=1)).unsqueeze(1)
    return scaled
