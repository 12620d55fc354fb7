"""ITI: shift the heads that tell true from false along what tells them (Li et al. 2023)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

logger = logging.getLogger("lm_eval.sadi")

Direction = Literal["mass_mean", "probe"]

_TRAINING_PART = 0.8
"""Of the questions; the probes are ranked by their accuracy on the others (section 3.1)."""
_SEEDS = 1 << 32
"""How many seeds numpy and scikit-learn know."""


AXES = Axes(
    Axis("top_k", "K: heads steered, over all layers together (48 where only `alpha` is given)",
         whole=True, least=1, counts="entries"),
    Axis("alpha", "strength: A' = A + alpha · σ · θ; 0 is the unsteered model (15 where only "
         "`top_k` is given)", strength=True),
)  # fmt: skip
GRID = SearchSpace(AXES, ((48, 64, 80, 96), (10.0, 15.0, 20.0, 25.0, 30.0)))
"""The historic grid (Li et al. 2023, figure 6), for models of about 1,000 heads."""


@dataclass(frozen=True)
class ITI(Method):
    """A' = A + α σ θ in K heads, from the last prompt token onwards (equation 2)."""

    name = "iti"
    axes = AXES
    compared = True
    arms = {"iti": {}}  # noqa: RUF012

    scope: Scope = scoped()
    direction: Direction = choice(
        "mass_mean", get_args(Direction), "θ: mean(true) − mean(false), or the `probe`'s "
        "coefficients", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "head", "mlp"

    def collector(self, site: Site, pairs: int, seed: int) -> Kept:
        shapes: dict[str, tuple[int, ...]] = {
            name: site.shape if name in ("mass_mean", "probe") else site.shape[:2]
            for name in Probes._fields
        }

        def make(true: Tensor, false: Tensor, label: str) -> dict[str, Tensor]:
            return fit_probes(true, false, seed, f"Probes of {label}")._asdict()

        return Kept("probes", site, pairs, shapes, make)

    def search_space(self, size: Size | None) -> SearchSpace:
        return GRID.within(size)

    @property
    def usual(self) -> tuple[float | None, ...]:
        return 48, 15.0  # the authors' for LLaMA-7B

    def selected(self, tensors: Tensors, setting: Setting, seed: int) -> Tensor:
        return best_heads(tensors["accuracy"], int(setting[0]))

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DiagonalEdits:
        probes = Probes(**{name: tensors[name] for name in Probes._fields})
        edits = (iti_edit(probes, int(k), alpha, self.direction) for k, alpha in settings)
        return DiagonalEdits(site, edits, scope=self.scope)


class Probes(NamedTuple):
    """What ITI knows of every head.

    Attributes:
        accuracy: of its probe on the questions that it was not fitted on, ``[layers, heads]``.
        mass_mean: mean(true) − mean(false) over all questions, of length 1,
            ``[layers, heads, head_dim]``.
        probe: the probe's coefficients, of length 1, ``[layers, heads, head_dim]``.
        mass_mean_std, probe_std: σ: the standard deviation of all activations' projections on
            that direction, ``[layers, heads]``.
    """

    accuracy: Tensor
    mass_mean: Tensor
    probe: Tensor
    mass_mean_std: Tensor
    probe_std: Tensor


def fit_probes(positive: Tensor, negative: Tensor, seed: int, label: str) -> Probes:
    """Fit a logistic-regression probe on every head (sections 3.1 and 3.2).

    A random 80 % of the questions fit the probes, the other 20 % rank them; a question is in one
    part with both its texts. The authors' σ goes over all questions of the benchmark, scored ones
    included; here nothing but the pairs is looked at.

    Args:
        positive, negative: the heads' activations at the last token of each pair's true and
            false text, ``[pairs, layers, heads, head_dim]``.
        seed: of the division into two parts, and of the probes.
        label: for the progress bar.

    Raises:
        UserError: there is but one pair.
    """
    pairs, layers, heads, _ = positive.shape
    if pairs < 2:
        raise UserError(
            "ITI needs at least 2 contrastive pairs, one to fit its probes on and one to rank "
            f"them by, not {pairs}; pass a larger n_pairs"
        )
    seed %= _SEEDS
    order = np.random.RandomState(seed).permutation(pairs)
    parts = np.split(order, [max(1, min(pairs - 1, round(_TRAINING_PART * pairs)))])
    true, false = positive.double().numpy(), negative.double().numpy()
    probes = Probes(
        torch.zeros(layers, heads),
        torch.zeros(positive.shape[1:]),
        torch.zeros(positive.shape[1:]),
        torch.zeros(layers, heads),
        torch.zeros(layers, heads),
    )
    unfinished = 0
    # A probe is too small for several threads of BLAS, which wait for one another.
    with threadpool_limits(1, "blas"), tqdm(total=layers * heads, desc=label, unit="probe") as bar:
        for layer, head in np.ndindex(layers, heads):
            fitted, ranked = (
                np.concatenate([true[part, layer, head], false[part, layer, head]])
                for part in parts
            )
            labels = [np.repeat([1, 0], len(part)) for part in parts]
            probe = LogisticRegression(max_iter=1000, random_state=seed)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", ConvergenceWarning)
                probe.fit(fitted, labels[0])
            unfinished += any(w.category is ConvergenceWarning for w in warned)
            probes.accuracy[layer, head] = float(probe.score(ranked, labels[1]))
            every = np.concatenate([true[:, layer, head], false[:, layer, head]])
            mass_mean = true[:, layer, head].mean(axis=0) - false[:, layer, head].mean(axis=0)
            for direction, std, raw in (
                (probes.mass_mean, probes.mass_mean_std, mass_mean),
                (probes.probe, probes.probe_std, probe.coef_[0]),
            ):
                length = float(np.linalg.norm(raw))
                unit = raw / length if length else raw
                direction[layer, head] = torch.from_numpy(unit).float()
                std[layer, head] = float((every @ unit).std())
            bar.update()
    if unfinished:
        logger.info("%d of %d probes stopped at 1000 steps", unfinished, layers * heads)
    return probes


def iti_edit(probes: Probes, top_k: int, alpha: float, direction: Direction) -> Edit:
    """Make A' = A + α σ θ in the K heads whose probes are the most accurate (equation 2).

    Args:
        probes: of every head.
        top_k: K; of equally accurate heads the earlier wins.
        alpha: α.
        direction: θ: ``mass_mean`` or ``probe``.
    """
    theta, sigma = (
        (probes.mass_mean, probes.mass_mean_std)
        if direction == "mass_mean"
        else (probes.probe, probes.probe_std)
    )
    chosen = best_heads(probes.accuracy, top_k)
    shift = alpha * sigma.unsqueeze(-1) * theta * chosen.unsqueeze(-1)
    return Edit(gain=torch.zeros_like(shift.flatten(1)), shift=shift.flatten(1))


def best_heads(accuracy: Tensor, top_k: int) -> Tensor:
    """Choose the K heads whose probes are the most accurate, ``[layers, heads]`` bool."""
    order = accuracy.flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(accuracy.numel(), dtype=torch.bool)
    chosen[order[:top_k]] = True
    return chosen.view_as(accuracy)
