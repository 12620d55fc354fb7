"""AUSteer: scale the dimensions in which pairs differ most consistently (arXiv 2602.04428)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Found, Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Shapes
from sadi_lmeval.processes import Processes
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

AXES = Axes(
    Axis("top_k", "K: dimensions steered, over all layers together (100 where only `alpha` is "
         "given)", whole=True, least=1, counts="activations"),
    Axis("alpha", "strength: A' = A + alpha · s · r · A in `top_k` dimensions; 0 is the unsteered "
         "model (15 where only `top_k` is given)", strength=True),
)  # fmt: skip
GRID = SearchSpace(
    AXES, ((1, 2, 4, 8, 16, 32, 64, 100), (2.0, 5.0, 8.0, 10.0, 15.0, 20.0, 50.0, 100.0))
)
"""The authors' range, 1 to 100 for both."""


@dataclass(frozen=True)
class AUSteer(Method):
    """A' = A + α s r A in K dimensions, from the last prompt token onwards.

    r is the share of the pairs that differ in the more frequent direction, s that direction's sign.
    A dimension is a single activation: of the input of a layer's output projection, of its MLP's
    output, or of its own.
    """

    name = "austeer"
    axes = AXES
    arms = {"austeer": {"element": "head"}}  # noqa: RUF012
    ablations = {"austeer-hidden": {"element": "hidden"}}  # noqa: RUF012

    scope: Scope = scoped()
    element: Literal["head", "hidden"] = choice(
        "head", ("head", "hidden"), "whose dimensions are ranked: `head` or `hidden`",
        measured=False,
    )  # fmt: skip
    hidden_site: HiddenSite = choice(
        "mlp", ("mlp", "residual"), "for `hidden`: the MLP's output, or `residual`, the block's",
        measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return self.element, self.hidden_site if self.element == "hidden" else "mlp"

    def collector(self, site: Site, pairs: int, seed: int) -> SignCounts:
        return SignCounts(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        return GRID.within(size)

    @property
    def usual(self) -> tuple[float | None, ...]:
        return 100, 15.0  # the authors' for LLaMA-2-7B-chat on BoolQ

    def selected(self, tensors: Tensors, setting: Setting, seed: int) -> Tensor:
        chosen = most_consistent(signed_consistency(tensors), int(setting[0]))
        return chosen.squeeze(-1) if chosen.shape[-1] == 1 else chosen

    def tied(self, tensors: Tensors, setting: Setting) -> int:
        consistency = signed_consistency(tensors)
        return tied_outside(consistency, most_consistent(consistency, int(setting[0])))

    def edit_size(self, setting: Setting, tensors: Tensors) -> float:
        """Sum up |gain|: α times r of each dimension that is scaled."""
        top_k, alpha = setting
        r = signed_consistency(tensors).abs().flatten()
        return abs(alpha) * float(r.topk(min(int(top_k), len(r))).values.sum())

    def found(self, tensors: Tensors) -> Found:
        most = signed_consistency(tensors).abs().amax(dim=-1)
        return Found("share of pairs that differ alike", most)

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DiagonalEdits:
        consistency = signed_consistency(tensors)
        chosen = {k: most_consistent(consistency, int(k)) for k in {k for k, _ in settings}}
        edits = (Edit((alpha * consistency * chosen[k]).flatten(1)) for k, alpha in settings)
        return DiagonalEdits(site, edits, scope=self.scope)


class SignCounts:
    """Of how many pairs each activation of the positive side is larger, and of how many smaller.

    They are compared in the type that the model gives: what it rounds to one value is neither.
    Makes ``up`` and ``down``, ``[layers, entries, entry_width]``, and ``pairs``, ``[1]``.

    A pair is counted when both its sides are there. Where they come apart, as in models that take
    no packed rows, the first is kept until then: at worst ``[pairs, layers, width]`` in that type.
    """

    kind = "sign_counts"

    def __init__(self, site: Site, pairs: int) -> None:
        self.site, self.pairs = site, pairs
        self.shapes: Shapes = {"up": site.shape, "down": site.shape, "pairs": (1,)}
        self.up = torch.zeros(site.layers, site.width, dtype=torch.int64)
        self.down = torch.zeros_like(self.up)
        self.not_finite = torch.zeros(1, dtype=torch.int64)
        self._waiting: dict[int, Tensor] = {}

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        for pair, sign, value in zip(pairs, signs, values, strict=True):
            other = self._waiting.pop(pair, None)
            if other is None:
                self._waiting[pair] = value.clone()  # not a view that keeps the whole batch
                continue
            positive, negative = (value, other) if sign > 0 else (other, value)
            self.up += positive > negative
            self.down += positive < negative
            self.not_finite += not bool((positive.isfinite() & negative.isfinite()).all())

    def join(self, processes: Processes) -> None:
        self.up, self.down, self.not_finite = map(
            processes.all_reduce, (self.up, self.down, self.not_finite)
        )

    def tensors(self, label: str) -> dict[str, Tensor]:
        if self.not_finite:
            raise UserError(
                f"{int(self.not_finite)} of {self.pairs} pairs have activations that are not "
                f"finite ({self.site.element}), of which no signs can be counted; load the model "
                "in a wider type (dtype=bfloat16 or float32)"
            )
        if self.pairs < 2:
            raise UserError(
                f"AUSteer needs at least 2 contrastive pairs, not {self.pairs}: of one pair every "
                "dimension is as consistent as the next; pass a larger n_pairs"
            )
        up, down = (counts.float().view(self.site.shape) for counts in (self.up, self.down))
        return {"up": up, "down": down, "pairs": torch.tensor([float(self.pairs)])}


def signed_consistency(tensors: Tensors) -> Tensor:
    """Give s · r of each dimension, ``[layers, entries, entry_width]``.

    r = max(up, down) / pairs; s is −1 where down is larger, else +1. Pairs without a difference
    count for neither.
    """
    up, down = tensors["up"], tensors["down"]
    return torch.where(up >= down, up, -down) / tensors["pairs"]


def most_consistent(consistency: Tensor, top_k: int) -> Tensor:
    """Choose the K dimensions of the largest r, over all layers together.

    Of equally consistent ones the earlier layer and dimension wins. One in which no pair differs is
    not edited, and not chosen.

    Args:
        consistency: s · r, ``[layers, entries, entry_width]``.
        top_k: K.

    Returns:
        ``[layers, entries, entry_width]`` bool.
    """
    order = consistency.abs().flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(consistency.numel(), dtype=torch.bool)
    chosen[order[:top_k]] = True
    return chosen.view_as(consistency) & (consistency != 0)


def tied_outside(consistency: Tensor, chosen: Tensor) -> int:
    """Count the dimensions that are as consistent as the last chosen one, but not chosen."""
    if not chosen.any():
        return 0
    r = consistency.abs()
    return int(((r == r[chosen].min()) & ~chosen).sum())
