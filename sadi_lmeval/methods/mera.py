"""MERA: the smallest change that brings a probe for "negative" under its threshold.

arXiv 2510.13290, whose probe predicts the model's own error; here it tells the pairs' two sides.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

logger = logging.getLogger("lm_eval.sadi")

Layers = Literal["one", "all"]

AXES = Axes(
    Axis("layer", "of `layers=one`: the decoder block whose output is changed, counted from 0",
         whole=True, least=0, counts="layer", only=("layers", "one")),
    Axis("alpha", "the probability of being a negative answer's that the probe may give: what has "
         "more is brought down to it, what has not is left (0.5 where only `layer` is given)",
         least=1e-6, most=1 - 1e-6),
)  # fmt: skip
ALPHAS = tuple(n / 10 for n in range(1, 10))
"""The authors' grid. Every layer is tried."""


@dataclass(frozen=True)
class MERA(Method):
    """h' = h + min(0, τ − z) w / |w|², where z = w · h + c and τ = logit(α).

    After a decoder block, or after every one, from the last prompt token onwards. (w, c) is a
    logistic regression that tells the activations at the ends of negative answers from those of
    positive ones; h' is the nearest point at which it gives a probability of at most α.
    """

    name = "mera"
    axes = AXES
    arms = {"mera": {"layers": "one"}}  # noqa: RUF012
    ablations = {"mera-all": {"layers": "all"}}  # noqa: RUF012

    scope: Scope = scoped()
    layers: Layers = choice(
        "one", get_args(Layers), "`all`: every decoder block is changed, each where the changes "
        "below have left it", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: Site, pairs: int, seed: int) -> Kept:
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (site.layers, site.width),
            "bias": (site.layers,),
        }
        return Kept("negative_probes", site, pairs, shapes, negative_probes)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        values = {"layer": tuple(layers), "alpha": ALPHAS}
        return SearchSpace(self.axes, tuple(values[name] for name in self.axes.names))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return (None, 0.5)[-len(self.axes) :]  # which layer depends on the model

    def edit_size(self, setting: Setting, tensors: Tensors) -> float:
        """The higher the threshold, the less is changed."""
        return 1 - setting[-1]

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DirectionEdits:
        lengths = tensors["weight"].norm(dim=-1)
        probes = [n for n, length in enumerate(lengths.tolist()) if length > 0]
        layers = [
            [n for n in probes if self.layers == "all" or n == int(setting[0])]
            if self.axes.steers(setting)
            else []
            for setting in settings
        ]
        used = sorted({layer for mine in layers for layer in mine})
        return DirectionEdits(
            site,
            onto_half_space,
            [[float(logit(alpha))] for *_, alpha in settings],
            layers,
            self.scope,
            read={n: tensors["weight"][n].unsqueeze(0) for n in used},
            offset={n: tensors["bias"][n].unsqueeze(0) for n in used},
            write={n: (tensors["weight"][n] / lengths[n] ** 2).unsqueeze(0) for n in used},
        )


def onto_half_space(logits: Tensor, norms: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Give min(0, τ − z): nothing for a state whose logit z is at most τ.

    Args:
        logits: z, ``[n, 1]``.
        norms: of the states, ``[n]``; not looked at.
        numbers: τ, ``[n, 1]``.
    """
    return torch.ones_like(norms), (numbers - logits).clamp(max=0)


def negative_probes(positive: Tensor, negative: Tensor, label: str) -> dict[str, Tensor]:
    """Fit each layer's logistic regression on all texts: 1 for negative, 0 for positive.

    Args:
        positive, negative: activations at the texts' last tokens,
            ``[pairs, layers, hidden, 1]``.
        label: for the progress bar.

    Returns:
        ``weight`` w, ``[layers, hidden]``, and ``bias`` c, ``[layers]``: a state h is a negative
        answer's with probability sigmoid(w · h + c).
    """
    pairs, layers = positive.shape[:2]
    texts = torch.cat([negative, positive]).flatten(2).double().numpy()
    labels = np.repeat([1, 0], pairs)
    weight, bias = torch.zeros(layers, texts.shape[-1]), torch.zeros(layers)
    unfinished = 0
    with threadpool_limits(1, "blas"):
        for layer in tqdm(range(layers), desc=f"Probes of {label}", unit="probe"):
            # To its end, which is one point: rounding of the activations must not show in it.
            probe = LogisticRegression(max_iter=1000, tol=1e-8)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", ConvergenceWarning)
                probe.fit(texts[:, layer], labels)
            unfinished += any(w.category is ConvergenceWarning for w in warned)
            weight[layer] = torch.from_numpy(probe.coef_[0]).float()
            bias[layer] = float(probe.intercept_[0])
    if unfinished:
        logger.debug("%d of %d probes stopped at 1000 steps", unfinished, layers)
    return {"weight": weight, "bias": bias}
