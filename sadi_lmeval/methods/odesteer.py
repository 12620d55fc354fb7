"""ODESteer: follow the field along which a nonlinear classifier rises (arXiv 2602.17560)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice, whole
from sadi_lmeval.edits.field import FieldEdits
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept, Shapes
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

Unit = Literal["norm", "absolute"]

GAMMA, COEF0 = 0.1, 1.0
"""Of the kernel (γ â · b̂ + c₀)², as in the authors' configuration."""
_LEAST_EIGENVALUE = 1e-10
"""Of the kernel's matrix, as a part of the largest: below it an eigenvector is rounding."""
_LEAST_NORM = 1e-12
"""Below it a state has no direction."""
_LEAST_SLOPE = 1e-10
"""Below it the classifier is level, and the field is zero."""

AXES = Axes(
    Axis("layer", "the decoder block whose output is moved, counted from 0", whole=True, least=0,
         counts="layer"),
    Axis("tau", "strength: the length of the way, T, in the unit that `unit` names; 0 is the "
         "unsteered model, a negative one goes towards the negative answers (0.2, or 5 with "
         "`unit=absolute`, where only `layer` is given)", strength=True),
)  # fmt: skip
TAUS: Mapping[Unit, tuple[float, ...]] = {
    "norm": (0.05, 0.1, 0.2, 0.4, 0.8),
    "absolute": (1.0, 2.5, 5.0, 10.0, 20.0),
}
"""Around the usual one; every layer is tried."""
USUAL: Mapping[Unit, float] = {"norm": 0.2, "absolute": 5.0}
"""The authors' T is 5, whatever a model's norms are."""


@dataclass(frozen=True)
class ODESteer(Method):
    """h' = h(T), where dh/dt = v(h) and h(0) = h, after one decoder block.

    v is the gradient, of length 1, of a logistic regression on all products of degree 2 or less of
    the entries of h / |h|. The authors draw a random sketch of these products; here is what the
    sketch comes to with ever more components: the kernel (γ â · b̂ + c₀)², see
    :func:`fit_classifier`. Nothing is drawn.

    A fit holds the unit rows of both sides of all T pairs, ``[layers, 2 T, width]`` float32: 157 MB
    for 150 pairs, 32 layers and a width of 4,096. As much is held while the pairs are read, and
    twice that while they are fitted. An edited layer takes its own 2 T rows to the device (5 MB),
    however many settings there are. An edited position costs ``steps`` · 2 T · width · 2
    multiply-adds (25 million with those numbers).
    """

    name = "odesteer"
    axes = AXES
    arms = {"odesteer": {}}  # noqa: RUF012

    scope: Scope = scoped()
    steps: int = whole(10, 1, "Euler's, of T / steps each", measured=False)
    unit: Unit = choice(
        "norm", get_args(Unit), "of tau: the mean norm of the pairs' activations in that layer "
        "(`norm`), or 1 (`absolute`: tau is the authors' T)", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: Site, pairs: int, seed: int) -> Kept:
        shapes: Shapes = {
            "rows": (site.layers, -1, site.width),
            "dual": (site.layers, -1),
            "mean_norm": (site.layers,),
        }
        return Kept("polynomial_classifier", site, pairs, shapes, classifiers)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        return SearchSpace(AXES, (tuple(layers), TAUS[self.unit]))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, USUAL[self.unit]  # which layer depends on the model

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> FieldEdits:
        where = [int(layer) for layer, _ in settings]
        units = [float(norm) if self.unit == "norm" else 1.0 for norm in tensors["mean_norm"]]
        distances = [tau * units[layer] for layer, (_, tau) in zip(where, settings, strict=True)]
        parts = torch.full((self.steps,), 1 / self.steps)
        return FieldEdits(
            site,
            follow,
            numbers=[[distance] for distance in distances],
            layers=[
                [layer] if distance and tensors["dual"][layer].any() else []
                for layer, distance in zip(where, distances, strict=True)
            ],
            scope=self.scope,
            tensors={
                n: {"rows": tensors["rows"][n], "dual": tensors["dual"][n], "parts": parts}
                for n in set(where)
            },
        )


def classifiers(positive: Tensor, negative: Tensor, label: str) -> dict[str, Tensor]:
    """Fit a classifier to each layer.

    Args:
        positive, negative: ``[pairs, layers, entries, entry_width]``.
        label: for the progress bar.

    Returns:
        ``rows``: x̂, of length 1, ``[layers, 2 · pairs, width]``, the positive ones first;
        ``dual``: q of each, ``[layers, 2 · pairs]``; ``mean_norm``: of x, ``[layers]``.
    """
    positive, negative = positive.flatten(2), negative.flatten(2)
    pairs, layers, width = positive.shape
    rows, dual = torch.empty(layers, 2 * pairs, width), torch.empty(layers, 2 * pairs)
    mean_norm, labels = torch.empty(layers), np.repeat([1, 0], pairs)
    # A layer is too small for several threads of BLAS, which wait for one another.
    with threadpool_limits(1, "blas"):
        for layer in tqdm(range(layers), desc=f"Classifiers of {label}", unit="layer"):
            both = torch.cat([positive[:, layer], negative[:, layer]])
            norms = both.norm(dim=-1, keepdim=True)
            rows[layer] = both / norms.clamp(min=_LEAST_NORM)
            mean_norm[layer] = norms.mean()
            found = fit_classifier(rows[layer].double().numpy(), labels)
            dual[layer] = torch.from_numpy(found)
    return {"rows": rows, "dual": dual, "mean_norm": mean_norm}


def fit_classifier(
    rows: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    labels: np.ndarray[tuple[int], np.dtype[np.int64]],
    coef0: float = COEF0,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Fit the logistic regression f(x) = Σᵢ qᵢ (γ x̂ · x̂ᵢ + c₀)² + c; c moves nothing.

    With K = V S Vᵀ the matrix of the kernel, the rows of Z = V √S have the products of the
    kernel's features, so that a regression w on Z is one on the features, and q = V w / √S.

    Args:
        rows: x̂ᵢ, of length 1, ``[n, width]`` float64.
        labels: 1 or 0, ``[n]``.
        coef0: c₀.

    Returns:
        q, ``[n]``.
    """
    kernel = (GAMMA * rows @ rows.T + coef0) ** 2
    values, vectors = np.linalg.eigh(kernel)
    kept = values > _LEAST_EIGENVALUE * values[-1]
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    # Newton's steps end at the optimum itself: q, a field and a score do not depend on the solver.
    regression = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    regression.fit(vectors * roots, labels)
    dual: np.ndarray[tuple[int], np.dtype[np.float64]] = vectors @ (regression.coef_[0] / roots)
    return dual


def field(rows: Tensor, dual: Tensor, states: Tensor, coef0: float = COEF0) -> Tensor:
    """Give v, the direction in which f rises fastest: of length 1, or 0 where there is none.

    f looks at x̂ = x / |x| alone, so that v is orthogonal to x.

    Args:
        rows: x̂ᵢ, ``[n, width]``.
        dual: q, ``[n]``.
        states: x, ``[m, width]``.
        coef0: c₀.

    Returns:
        ``[m, width]``.
    """
    norms = states.norm(dim=-1, keepdim=True)
    unit = states / norms
    slope = (dual * 2 * GAMMA * (GAMMA * unit @ rows.T + coef0)) @ rows
    tangent = slope - (slope * unit).sum(dim=-1, keepdim=True) * unit
    length = tangent.norm(dim=-1, keepdim=True)
    # A comparison with NaN is false: a state that is not finite has no direction, either.
    rises = (norms >= _LEAST_NORM) & norms.isfinite() & (length >= _LEAST_SLOPE)
    return torch.where(rises, tangent / length, 0.0)


def follow(tensors: Mapping[str, Tensor], states: Tensor, numbers: Tensor) -> Tensor:
    """Follow the field in Euler's steps: x ← x + T / steps · v(x).

    Args:
        tensors: ``rows`` and ``dual`` of :func:`field`, and ``parts``, which part of T each step
            is, ``[steps]``.
        states: x, ``[m, width]``.
        numbers: T, ``[m, 1]``.
    """
    for part in tensors["parts"]:
        v = field(tensors["rows"], tensors["dual"], states)
        moves = (v != 0).any(dim=-1, keepdim=True)  # else every bit stays, a zero's sign included
        states = torch.where(moves, states + numbers * part * v, states)
    return states
