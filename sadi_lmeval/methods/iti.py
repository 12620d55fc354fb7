"""ITI: shift the heads that tell true from false along what tells them (Li et al. 2023).

With a gate the shift is the weaker the more the probes take what they read for true: of the prompt
(FASB, arXiv 2508.17621, its ablation that judges the question alone), or of each token itself (in
the manner of ACT, arXiv 2406.00034). The published FASB reads the candidate answers; this does not.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
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
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.edits.field import FieldEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Found, Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size
from sadi_lmeval.versions import code_digest

logger = logging.getLogger("lm_eval.sadi")

Direction = Literal["mass_mean", "probe"]
GateName = Literal["none", "prompt", "self"]

_TRAINING_PART = 0.8
"""Of the questions; the probes are ranked by their accuracy on the others (section 3.1)."""
_SEEDS = 1 << 32
"""How many seeds numpy and scikit-learn know."""


AXES = Axes(
    Axis("top_k", "K: heads steered, over all layers together (48 where only `alpha` is given; "
         "with a gate 24)", whole=True, least=1, counts="entries"),
    Axis("alpha", "strength: A' = A + alpha · σ · θ; 0 is the unsteered model (15 where only "
         "`top_k` is given; with a gate 60)", strength=True),
    Axis("threshold", "of `gate=prompt`: prompts that the probes take for true with less than this "
         "are steered; 0 steers none, 1 all (0.6 where only others are given)",
         least=0, most=1, strength=True, only=("gate", "prompt")),
)  # fmt: skip
_GATED_K, _GATED_ALPHA = (24, 48, 96), (15.0, 30.0, 60.0)
GRIDS: dict[GateName, tuple[tuple[float, ...], ...]] = {
    "none": ((48, 64, 80, 96), (10.0, 15.0, 20.0, 25.0, 30.0)),
    "prompt": (_GATED_K, _GATED_ALPHA, (0.5, 0.6, 0.7, 1.0)),
    "self": (_GATED_K, _GATED_ALPHA),
}
"""Without a gate the historic grid (Li et al. 2023, figure 6), for models of about 1,000 heads;
with one, values about FASB's own (K 24, alpha 60, threshold 0.6)."""


@dataclass(frozen=True)
class ITI(Method):
    """A' = A + g α σ θ in K heads, from the last prompt token onwards (equation 2; g = 1)."""

    name = "iti"
    axes = AXES
    compared = True
    arms = {"iti": {"gate": "none"}}  # noqa: RUF012
    ablations = {f"iti-{gate}": {"gate": gate} for gate in ("prompt", "self")}  # noqa: RUF012

    scope: Scope = scoped()
    gate: GateName = choice(
        "none", get_args(GateName), "`prompt`: the more the probes take a prompt for true, the "
        "less it is steered; `self`: so for each token and head "
        "([docs/methods.md](docs/methods.md))",
        measured=False,
    )  # fmt: skip
    direction: Direction = choice(
        "mass_mean", get_args(Direction), "θ: mean(true) − mean(false), or the `probe`'s "
        "coefficients", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "head", "mlp"

    def collector(self, site: Site, pairs: int, seed: int) -> Kept:
        shapes: dict[str, tuple[int, ...]] = {
            name: site.shape if name in ("mass_mean", "probe", "weight") else site.shape[:2]
            for name in Probes._fields
            if self.gate != "none" or name not in ("weight", "bias")  # fits of before lack them
        }

        def make(true: Tensor, false: Tensor, label: str) -> dict[str, Tensor]:
            return fit_probes(true, false, seed, f"Probes of {label}")._asdict()

        return Kept("probes", site, pairs, shapes, make)

    def search_space(self, size: Size | None) -> SearchSpace:
        return SearchSpace(self.axes, GRIDS[self.gate]).within(size)

    @property
    def usual(self) -> tuple[float | None, ...]:
        if self.gate == "none":
            return 48, 15.0  # the authors' for LLaMA-7B
        return (24, 60.0, 0.6)[: len(self.axes)]  # FASB's

    def selected(self, tensors: Tensors, setting: Setting, seed: int) -> Tensor:
        return best_heads(tensors["accuracy"], int(setting[0]))

    def found(self, tensors: Tensors) -> Found:
        return Found("probe accuracy", tensors["accuracy"])

    def edits(self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int) -> Edits:
        if self.gate == "self":
            return self_gated(site, tensors, settings, self.direction, self.scope)
        edits = (iti_edit(tensors, int(k), alpha, self.direction) for k, alpha, *_ in settings)
        if self.gate == "none":
            return DiagonalEdits(site, edits, scope=self.scope)
        gate = PromptGate(tensors, settings)
        return DiagonalEdits(site, edits, scope=self.scope, gate=gate, gate_digests=gate.digests)


class Probes(NamedTuple):
    """What ITI knows of every head.

    Attributes:
        accuracy: of its probe on the questions that it was not fitted on, ``[layers, heads]``.
        mass_mean: mean(true) − mean(false) over all questions, of length 1,
            ``[layers, heads, head_dim]``.
        probe: the probe's coefficients, of length 1, ``[layers, heads, head_dim]``.
        mass_mean_std, probe_std: σ: the standard deviation of all activations' projections on
            that direction, ``[layers, heads]``.
        weight, bias: of the probe as it was fitted, ``[layers, heads, head_dim]`` and
            ``[layers, heads]``: it takes x for true with probability sigmoid(weight · x + bias).
    """

    accuracy: Tensor
    mass_mean: Tensor
    probe: Tensor
    mass_mean_std: Tensor
    probe_std: Tensor
    weight: Tensor
    bias: Tensor


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
    whole, single = positive.shape[1:], (layers, heads)
    shapes = single, whole, whole, single, single, whole, single
    probes = Probes(*(torch.zeros(shape) for shape in shapes))
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
            probes.weight[layer, head] = torch.from_numpy(probe.coef_[0]).float()
            probes.bias[layer, head] = float(probe.intercept_[0])
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
        logger.debug("%d of %d probes stopped at 1000 steps", unfinished, layers * heads)
    return probes


def iti_edit(tensors: Tensors, top_k: int, alpha: float, direction: Direction) -> Edit:
    """Make A' = A + α σ θ in the K heads whose probes are the most accurate (equation 2).

    Args:
        tensors: those of :class:`Probes` by name; ``weight`` and ``bias`` are not looked at.
        top_k: K; of equally accurate heads the earlier wins.
        alpha: α.
        direction: θ: ``mass_mean`` or ``probe``.
    """
    sigma, theta = tensors[f"{direction}_std"], tensors[direction]
    chosen = best_heads(tensors["accuracy"], top_k)
    shift = alpha * sigma.unsqueeze(-1) * theta * chosen.unsqueeze(-1)
    return Edit(gain=torch.zeros_like(shift.flatten(1)), shift=shift.flatten(1))


class PromptGate:
    """g = 1 − q of a prompt that is steered, 0 of one that is not (FASB).

    q is the mean, over the K heads of a setting, of the probability with which their probes take
    the unsteered activations of the last prompt token for those of a true answer. A prompt is
    steered if q < threshold.

    Attributes:
        digests: of each setting, what its gate depends on.
    """

    def __init__(self, tensors: Tensors, settings: Sequence[Setting]) -> None:
        """
        Args:
            tensors: those of :class:`Probes` by name.
            settings: K, α and the threshold.
        """
        order = by_accuracy(tensors["accuracy"])
        # The unsteered setting has no head, and a threshold of 0 that none is below.
        self._counts = [min(max(1, int(top_k)), len(order)) for top_k, *_ in settings]
        self._heads = order[: max(self._counts)]
        self._weight = tensors["weight"].flatten(0, 1)[self._heads]
        self._bias = tensors["bias"].flatten()[self._heads]
        self._thresholds = torch.tensor([s[2] for s in settings], dtype=torch.float64)
        code = code_digest(PromptGate)
        self.digests = [
            self._digest(code, count, setting[2])
            for count, setting in zip(self._counts, settings, strict=True)
        ]

    def __call__(self, unsteered: Tensor) -> Tensor:
        """Give g for each prompt and setting, ``[k, count]``, from ``[k, layers, width]``."""
        every = unsteered.cpu().view(len(unsteered), -1, self._weight.shape[-1])
        read = every[:, self._heads].double()  # [k, heads, head_dim], the best first
        truth = torch.sigmoid((read * self._weight).sum(dim=-1) + self._bias)
        # A running sum: what a setting gets depends on its own K heads, not on other settings'.
        counts = torch.tensor(self._counts)
        q = truth.cumsum(dim=-1)[:, counts - 1] / counts
        return torch.where(q < self._thresholds, 1 - q, 0.0)

    def _digest(self, code: str, count: int, threshold: float) -> str:
        content = hashlib.sha256(f"{code} {threshold} {self._heads[:count].tolist()}".encode())
        for values in (self._weight[:count], self._bias[:count]):
            content.update(values.numpy().tobytes())
        return content.hexdigest()


def less_where_true(tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
    """A' = A + (1 − p) α σ θ in each of K heads, where p is how true its probe takes A for.

    Args:
        tensors: ``weight`` and ``shift``, which is σ θ, ``[heads, head_dim]``; ``bias`` and
            ``rank``, the place among all heads by accuracy, ``[heads]``.
        rows: A, ``[n, heads · head_dim]``.
        numbers: K and α, ``[n, 2]``.
    """
    top_k, alpha = numbers.unsqueeze(1).unbind(dim=-1)  # [n, 1]
    heads = rows.view(len(rows), *tensors["weight"].shape)
    untrue = torch.sigmoid(-(heads * tensors["weight"]).sum(dim=-1) - tensors["bias"])
    after = heads + (alpha * untrue).unsqueeze(-1) * tensors["shift"]
    return torch.where((tensors["rank"] < top_k).unsqueeze(-1), after, heads).flatten(1)


def self_gated(
    site: Site,
    tensors: Tensors,
    settings: Sequence[Setting],
    direction: Direction,
    scope: Scope,
) -> FieldEdits:
    """Make the edits of :func:`less_where_true`.

    Args:
        site: of the model.
        tensors: those of :class:`Probes` by name.
        settings: K and α.
        direction: θ: ``mass_mean`` or ``probe``.
        scope: which tokens are edited.
    """
    chosen = [best_heads(tensors["accuracy"], int(k)).any(dim=1) for k, _ in settings]
    layers = [
        where.nonzero().flatten().tolist() if alpha else []
        for where, (_, alpha) in zip(chosen, settings, strict=True)
    ]
    order = by_accuracy(tensors["accuracy"])
    named = {
        "weight": tensors["weight"],
        "bias": tensors["bias"],
        "shift": tensors[f"{direction}_std"].unsqueeze(-1) * tensors[direction],
        "rank": order.argsort().view_as(tensors["accuracy"]).float(),
    }
    of_layers = {
        layer: {name: values[layer] for name, values in named.items()}
        for layer in {layer for mine in layers for layer in mine}
    }
    return FieldEdits(site, less_where_true, settings, layers, scope, tensors=of_layers)


def best_heads(accuracy: Tensor, top_k: int) -> Tensor:
    """Choose the K heads whose probes are the most accurate, ``[layers, heads]`` bool."""
    chosen = torch.zeros(accuracy.numel(), dtype=torch.bool)
    chosen[by_accuracy(accuracy)[:top_k]] = True
    return chosen.view_as(accuracy)


def by_accuracy(accuracy: Tensor) -> Tensor:
    """Order all heads, the most accurate first; of equally accurate ones the earlier."""
    return accuracy.flatten().argsort(descending=True, stable=True)
