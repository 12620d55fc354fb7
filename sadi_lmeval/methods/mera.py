"""MERA: the smallest change that brings a probe under its threshold (arXiv 2510.13290).

The probe tells the pairs' two sides, or predicts the model's own error, as in the paper.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import FittedOn, Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept, KeptPrompts
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

logger = logging.getLogger("lm_eval.sadi")

Layers = Literal["one", "all"]
Probe = Literal["sides", "errors"]

AXES = Axes(
    Axis("layer", "of `layers=one`: the decoder block whose output is changed, counted from 0",
         whole=True, least=0, counts="layer", only=("layers", "one")),
    Axis("alpha", "the probability that the probe may give, of being a negative answer's or of an "
         "error: what has more is brought down to it, what has not is left (0.5 where only `layer` "
         "is given)",
         least=1e-6, most=1 - 1e-6),
)  # fmt: skip
ALPHAS = tuple(n / 10 for n in range(1, 10))
"""The authors' grid. Every layer is tried."""
LEAST = 1e-8
"""A probability of an error is at least that, and at most 1 less that, as in the authors' code."""


@dataclass(frozen=True)
class MERA(Method):
    """h' = h + min(0, τ − z) w / |w|², where z = w · h + c and τ = logit(α).

    After a decoder block, or after every one, from the last prompt token onwards. (w, c) is a
    logistic regression that tells the activations at the ends of negative answers from those of
    positive ones; h' is the nearest point at which it gives a probability of at most α. Or, with
    ``probe=errors``, w is a linear regression of the logit of the model's error at last prompt
    tokens, and c = 0.
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
    probe: Probe = choice(
        "sides", get_args(Probe), "what the probe predicts: which side of a pair an answer is of, "
        "at its end; or, of tasks with choices, the unsteered model's `errors`, at the last prompt "
        "token",
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    @property
    def fits_on(self) -> FittedOn:
        return "prompts" if self.probe == "errors" else "pairs"

    def check_answers(self, answers: Sequence[Answers], label: str) -> None:
        logits_of_errors(answers, label)

    def collector(self, site: Site, pairs: int, seed: int) -> Kept | KeptPrompts:
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (site.layers, site.width),
            "bias": (site.layers,),
        }
        if self.probe == "errors":
            return KeptPrompts("error_probes", site, pairs, shapes, error_probes)
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


def logits_of_errors(answers: Sequence[Answers], label: str) -> NDArray[np.float64]:
    """Give logit(1 − p) of each prompt, p being the right choice's share among all.

    Args:
        answers: of each prompt.
        label: of the prompts, for messages.

    Raises:
        UserError: there is nothing that a probe could tell apart.
    """
    shares = [softmax(each.scores) for each in answers]
    # Of shuffled labels the right one may be a choice that a document does not have.
    right = [
        float(share[each.right]) if each.right < len(share) else 0.0
        for each, share in zip(answers, shares, strict=True)
    ]
    errors = np.clip(1 - np.array(right), LEAST, 1 - LEAST)
    if not np.isfinite(errors).all() or len(set(errors)) < 2:
        raise UserError(
            f"{label}: hf-mera with probe=errors needs prompts that the model answers with "
            f"different certainty; {len(errors)} have {len(set(errors))}; pass a larger n_pairs or "
            "probe=sides"
        )
    targets: NDArray[np.float64] = logit(errors)
    return targets


def error_probes(values: Tensor, answers: Sequence[Answers], label: str) -> dict[str, Tensor]:
    """Fit each layer's linear regression of the error's logit, without an intercept.

    Of fewer prompts than activations it is the shortest w that predicts them all.

    Args:
        values: activations at the prompts' last tokens, ``[prompts, layers, hidden, 1]``.
        answers: of each prompt.
        label: for messages.

    Returns:
        ``weight`` w, ``[layers, hidden]``, and ``bias`` 0, ``[layers]``.
    """
    states, targets = values.flatten(2).double().numpy(), logits_of_errors(answers, label)
    weight = torch.zeros(values.shape[1], states.shape[-1])
    with threadpool_limits(1, "blas"):
        for layer in range(len(weight)):
            probe = LinearRegression(fit_intercept=False).fit(states[:, layer], targets)
            weight[layer] = torch.from_numpy(probe.coef_).float()
    return {"weight": weight, "bias": torch.zeros(len(weight))}
