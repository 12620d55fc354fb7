"""SADI: scale the input's own activations at the critical elements (Wang et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.base import Method, Tensors, entry_means
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Size

Selection = Literal["top", "top_abs", "bottom", "random"]
Steering = Literal["dynamic", "fixed"]
Activations = Literal["live", "clean"]

AXES = Axes(
    Axis("top_k", "K: entries steered, over all layers together (6 heads, 100 neurons or 10 hidden "
         "units where only `delta` is given)", whole=True, least=1, counts="entries"),
    Axis("delta", "strength: A' = A + delta (A ⊙ M); 0 is the unsteered model (9 where only "
         "`top_k` is given)", strength=True),
)  # fmt: skip


def _space(top_k: Sequence[int], strengths: Sequence[int]) -> SearchSpace:
    return SearchSpace(AXES, (tuple(top_k), tuple(float(s - 1) for s in strengths)))


GRIDS: dict[Element, SearchSpace] = {
    "head": _space((1, 2, 4, 6, 8, 10), range(5, 81, 5)),
    "neuron": _space((3, 5, 10, 30, 50, 100, 200, 300, 400, 500), (10, 20, 30, 50, 70, 90)),
    "hidden": _space((1, *range(2, 21, 2)), range(5, 81, 5)),
}
"""The grids of the reference code by element; its strength is 1 + delta."""
USUAL_TOP_K: dict[Element, int] = {"head": 6, "neuron": 100, "hidden": 10}
"""The middle of those grids."""


@dataclass(frozen=True)
class SADI(Method):
    """A' = A + δ (A ⊙ M) at the last prompt token (equation 5)."""

    name = "sadi"
    scope = "prompt"
    axes = AXES
    compared = True
    arms = {f"sadi-{element}": {"element": element} for element in get_args(Element)}  # noqa: RUF012
    ablations = {  # noqa: RUF012 (of table 4)
        f"{name}{'' if element == 'head' else f'-{element}'}": {"element": element, key: name}
        for name, key in (("random", "selection"), ("fixed", "steering"))
        for element in get_args(Element)
    }
    protocols = {  # noqa: RUF012
        "reference": {"activations": "clean", "selection": "top", "steering": "dynamic"}
    }

    element: Element = choice(
        "head", get_args(Element), "`head`, `neuron` or `hidden`", measured=False
    )
    hidden_site: HiddenSite = choice(
        "mlp", get_args(HiddenSite), "for `hidden`: the MLP's output, or `residual`, the block's",
        measured=False,
    )  # fmt: skip
    selection: Selection = choice(
        "top", get_args(Selection), "`top` (signed), `top_abs`, `bottom` or `random`",
        measured=False,
    )  # fmt: skip
    steering: Steering = choice(
        "dynamic", get_args(Steering), "`fixed` adds delta · D, the mean difference, instead",
        measured=False,
    )  # fmt: skip
    activations: Activations = choice(
        "live", get_args(Activations), "`clean`: values of an unsteered pass are scaled and "
        "written back", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return self.element, self.hidden_site if self.element == "hidden" else "mlp"

    def collector(self, site: Site, pairs: int, seed: int) -> MeanDifference:
        return MeanDifference(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        return GRIDS[self.element].within(size)

    @property
    def usual(self) -> tuple[float | None, ...]:
        return USUAL_TOP_K[self.element], 9.0

    def selected(self, tensors: Tensors, setting: Setting, seed: int) -> Tensor:
        top_k, _ = setting
        scores = entry_means(tensors["difference"], tensors)  # of a head, over its head_dim
        return binary_mask(scores, int(top_k), self.selection, seed)

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DiagonalEdits:
        masks = {setting[0]: self.selected(tensors, setting, seed) for setting in settings}
        edits = (
            sadi_edit(masks[top_k], tensors["difference"], delta, self.steering)
            for top_k, delta in settings
        )
        return DiagonalEdits(site, edits, self.activations == "clean", self.scope)


def binary_mask(scores: Tensor, top_k: int, selection: Selection, seed: int) -> Tensor:
    """Make M: K ones over all layers together (section 3.2, equation 4).

    Args:
        scores: D's score of every entry, ``[layers, entries]``.
        top_k: K.
        selection: the K largest signed scores (as the reference code), the K largest absolute
            ones, the K smallest, or K at random (the ablation of table 4).
        seed: of the random selection.

    Returns:
        ``[layers, entries]`` bool. Of equal scores the earlier layer and entry wins.
    """
    flat = scores.flatten().double()
    if selection == "random":
        order = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(seed))
    else:
        key = {"top": flat, "top_abs": flat.abs(), "bottom": -flat}[selection]
        order = key.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[:top_k]] = True
    return mask.view_as(scores)


def sadi_edit(mask: Tensor, difference: Tensor, delta: float, steering: Steering) -> Edit:
    """Make A' = A + δ (A ⊙ M) (equation 5); for the fixed ablation A' = A + δ (D ⊙ M).

    Args:
        mask: M, ``[layers, entries]`` bool.
        difference: D, ``[layers, entries, entry_width]``.
        delta: δ; the reference code's strength is 1 + δ.
        steering: ``dynamic`` scales the input's own activations, ``fixed`` adds D (table 4).
    """
    m = mask.unsqueeze(-1).expand_as(difference).flatten(1).float()
    if steering == "fixed":
        return Edit(gain=torch.zeros_like(m), shift=delta * difference.flatten(1).float() * m)
    return Edit(gain=delta * m)
