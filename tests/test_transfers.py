"""What goes between the host and a device while tokens are generated: the meta device is the fake.

It has no numbers: to read one, as ``.item()`` and ``.tolist()`` do, fails.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from helpers.models import tiny
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.edits.joined import joined
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.decoding import Decoder
from sadi_lmeval.passes.endings import Ending, Text
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.types import Scope


class Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations whose tensors are on several devices: copies, and what mixes them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = operation(*arguments, **(keywords or {}))
        tensors = [t for t in tree_leaves((arguments, keywords, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            self.found.append(str(operation))
        return result


class Blind(Decoder):
    """Tells texts any token, as the device has none."""

    def _tell(self) -> None:
        for text in self._untold.popleft()[0]:
            text.add(7)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", vocab_size=60, num_hidden_layers=3).to("meta")


def edits_of(model: Any, kind: str, scope: Scope) -> Edits:
    site = find_site(model, "head")
    vectors = {layer: torch.ones(site.width) for layer in (0, 2)}
    scaled = ScaledEdits(site, [1.0, 2.0], [[0], [0, 2]], scope, shift=vectors, gain=vectors)
    gain = torch.zeros(site.layers, site.width)
    gain[1, :5] = 2.0
    diagonal = DiagonalEdits(site, [Edit(gain), Edit(gain)], False, scope)
    return {"scaled": scaled, "diagonal": diagonal, "joined": joined([diagonal, scaled])}[kind]


def decoder_of(model: Any, edits: Edits | None) -> Decoder:
    ending = Ending([], frozenset(), 1, lambda tokens, skip: "", 0)
    named = [UNSTEERED, 1, UNSTEERED if edits is None else edits.count - 1]
    texts = [
        Text([5, 9, 7 + i], ending, 9, UNSTEERED if edits is None else edit)
        for i, edit in enumerate(named)
    ]
    forward = Forward(model)
    forward.device = torch.device(
        "meta"
    )  # where weights are on none they are taken to be offloaded
    decoder = Blind(forward, texts, edits, 0, 3, Bounds(None, 64, 1 << 20))
    decoder._begin()
    decoder._step()
    return decoder


@pytest.mark.parametrize("kind", ["none", "scaled", "diagonal", "joined"])
def test_nothing_is_copied_for_a_token(
    model: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    edits = None if kind == "none" else edits_of(model, kind, "onwards")
    decoder = decoder_of(model, edits)
    with Transfers() as transfers:
        for _ in range(4):
            decoder._step()
    assert transfers.found == []


@pytest.mark.parametrize("kind", ["scaled", "diagonal", "joined"])
@pytest.mark.parametrize("scope", ["prompt", "onwards"])
def test_nothing_is_copied_for_a_token_of_transformers_own_loop(
    model: Any, kind: str, scope: Scope
) -> None:
    edits = edits_of(model, kind, scope)
    context = torch.zeros(2, 4, dtype=torch.long, device="meta")
    found = []
    with steered_generation(model, edits, 1, context, torch.ones_like(context)):
        cache, name = DynamicCache(), cache_parameter(model)
        for step in range(4):
            tokens = context if step == 0 else context[:, :1]
            with torch.no_grad(), Transfers() as transfers:
                model(tokens, **{name: cache}, use_cache=True)
            found.append(transfers.found)
    assert found[2:] == [[], []]


def test_a_copy_would_be_seen(model: Any) -> None:
    with Transfers() as transfers:
        torch.ones(3).to("meta")
    assert len(transfers.found) == 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").tolist()
