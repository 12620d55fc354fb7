"""A vector of someone else's, added to the residual stream: nothing is measured of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import file
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Given
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.storage.vector_file import Vectors, load_vectors
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

EVERY = -1
"""Of the axis ``layer``: every layer of the file at once."""

AXES = Axes(
    Axis("layer", "the decoder block whose output is shifted, counted from 0; -1: every one that "
         "the file has a vector for, each by its own (which it is where only `multiplier` is "
         "given)", whole=True, least=EVERY, counts="layer"),
    Axis("multiplier", "strength: h' = h + multiplier · v; 0 is the unsteered model (1 where only "
         "`layer` is given)", strength=True),
)  # fmt: skip
MULTIPLIERS = (0.5, 1.0, 1.5, 2.0)
"""Those of CAA."""


@dataclass(frozen=True)
class Vector(Method):
    """h' = h + multiplier · v after decoder blocks, with v out of a file.

    The file is a safetensors file, a GGUF control vector, or a file of the harness's ``steered``,
    see :mod:`sadi_lmeval.storage.vector_file`.
    """

    name = "vector"
    axes = AXES
    arms = {}  # noqa: RUF012
    ablations = {"vector": {}}  # noqa: RUF012 (not without a file)
    fitted_on = "nothing"

    scope: Scope = scoped()
    vector: str | None = file(
        "the vector, for one layer or more: safetensors, a GGUF control vector, or a `.pt` of the "
        "harness's `steered` ([docs/methods.md](docs/methods.md))", required=True,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    @property
    def vectors(self) -> Vectors:
        """What the file holds; see :func:`load_vectors`."""
        return load_vectors(Path(str(self.vector)))

    def collector(self, site: Site, pairs: int, seed: int) -> Given:
        vectors = self.vectors
        for layer, vector in vectors.items():
            if len(vector) != site.width:
                raise UserError(
                    f"vector={self.vector}: a vector of width {len(vector)}, and this model's "
                    f"residual stream has {site.width}"
                )
            if layer is not None and layer >= site.layers:
                raise UserError(
                    f"vector={self.vector}: has a vector of layer {layer}, and this model has "
                    f"layers 0 to {site.layers - 1}"
                )
        shift, has = torch.zeros(site.layers, site.width), torch.zeros(site.layers)
        for layer, vector in vectors.items():
            where = slice(None) if layer is None else layer
            shift[where], has[where] = vector, 1
        tensors = {"vectors": shift, "has": has}
        return Given("vectors", str(self.vector), tensors)

    def search_space(self, size: Size | None) -> SearchSpace:
        placed = [layer for layer in self.vectors if layer is not None]
        layers = placed if len(placed) < 2 else [EVERY, *placed]
        if not placed:
            layers = list(range(1 if size is None else size.layers))
        return SearchSpace(AXES, (tuple(layers), MULTIPLIERS))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None if None in self.vectors else EVERY, 1.0

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> ScaledEdits:
        has = tensors["has"].nonzero().flatten().tolist()
        asked = [int(layer) for layer, _ in settings]
        for layer in asked:
            if layer not in (EVERY, *has):
                listed = ", ".join(map(str, has))
                raise UserError(f"layer={layer}: vector={self.vector} has layers {listed}")
        return ScaledEdits(
            site,
            strengths=[multiplier for _, multiplier in settings],
            layers=[has if layer == EVERY else [layer] for layer in asked],
            scope=self.scope,
            shift={layer: tensors["vectors"][layer] for layer in has},
        )
