"""One forward pass: activations read or edited at points, logits only where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sadi_lmeval.interventions.edit import Edits, reading
from sadi_lmeval.positions import Points
from sadi_lmeval.sequences import Batch, Prefix
from sadi_lmeval.sites import Site


class Steered(NamedTuple):
    """Where a batch is edited: edit ``which[i]`` of ``edits`` at point i."""

    edits: Edits
    points: Points
    which: Tensor


class Forward:
    """A causal language model as a function of packed batches."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        """
        Args:
            model: the causal language model.
            autocast: mixed precision of the forward pass, or None.
        """
        self.model = model
        self.autocast = autocast
        self.device = next(model.parameters()).device

    def logits(self, batch: Batch, points: Points, steered: Steered | None = None) -> Tensor:
        """Logits ``[n, vocab]`` at n points, steered if asked.

        With clean activations an unsteered pass comes first (paper, reference code: the values
        of a plain forward pass are scaled and written back).
        """
        if steered is None:
            return self._run(batch, points)
        clean = None
        if steered.edits.clean and steered.edits.layers:
            clean = self.activations(batch, steered.points, steered.edits.site)
        with steered.edits.at(steered.points, steered.which, clean):
            return self._run(batch, points)

    def activations(self, batch: Batch, points: Points, site: Site) -> Tensor:
        """Unsteered activations ``[n, layers, width]`` at n points; no logits are computed."""
        nowhere = Points.of([], points.batch, batch.input_ids.device)
        with reading(site, points) as collected:
            self._run(batch, nowhere)
        device = collected[0].device
        return torch.stack([values.to(device) for values in collected], dim=1)

    def prefix(self, tokens: Sequence[int]) -> Prefix | None:
        """Keys and values of tokens that many sequences begin with; None for no tokens."""
        if not tokens:
            return None
        cache = DynamicCache()
        ids = torch.tensor([list(tokens)], device=self.device)
        nowhere = Points.of([], 1, self.device)
        self._run(Batch(ids, None, None), nowhere, cache)
        keys, values = [], []
        for layer in cache.layers:
            keys.append(layer.keys)
            values.append(layer.values)
        return Prefix(keys, values, len(tokens))

    def _run(self, batch: Batch, points: Points, cache: DynamicCache | None = None) -> Tensor:
        if batch.past is not None:
            cache = _filled(batch.past, len(batch.input_ids))
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
            inputs["position_ids"] = batch.position_ids
        head = self.model.get_output_embeddings()  # type: ignore[operator]

        def only_points(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (points.read(arguments[0]).unsqueeze(0), *arguments[1:])

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(
                torch.autocast(
                    self.device.type, dtype=self.autocast, enabled=self.autocast is not None
                )
            )
            stack.callback(head.register_forward_pre_hook(only_points).remove)
            logits: Tensor = self.model(**inputs).logits[0]
        return logits


def _filled(past: Prefix, batch: int) -> DynamicCache:
    """A cache that holds the prefix for every row; what the pass adds to it is thrown away."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(past.keys, past.values, strict=True)):
        cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
    return cache
