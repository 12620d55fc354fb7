"""Steering of generation: only the prefill's last prompt token is edited."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sadi_lmeval.hooks import visiting
from sadi_lmeval.interventions.edit import Edits, reading
from sadi_lmeval.positions import Points
from sadi_lmeval.sites import unwrapped


@contextmanager
def steered_prefill(
    model: nn.Module, edits: Edits, which: int, context: Tensor, attention_mask: Tensor
) -> Iterator[None]:
    """Edit the last prompt token of every sequence that is generated in the block.

    Where the token is processed in one of several chunks, or again because there is no key/value
    cache, it is found by counting the tokens that the cache already holds.

    Args:
        model: the causal language model.
        edits, which: the edit that all sequences get.
        context: left-padded prompts, ``[batch, seq]``.
        attention_mask: ``[batch, seq]``.
    """
    if not edits.layers:
        yield
        return
    last = context.shape[1] - 1
    clean = _clean(model, edits, context, attention_mask) if edits.clean else None
    position: int | None = None

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal position
        tokens = keywords.get("input_ids")
        if tokens is None:
            tokens = arguments[0] if arguments else keywords["inputs_embeds"]
        past = keywords.get("past_key_values")
        start = int(past.get_seq_length()) if past is not None else 0
        position = last - start if 0 <= last - start < tokens.shape[1] else None

    def visit(layer: int, activations: Tensor) -> Tensor | None:
        if position is None:
            return None
        rows = activations.shape[0] if activations.dim() == 3 else context.shape[0]
        points = Points.of([(row, position) for row in range(rows)], rows, activations.device)
        values = points.read(activations) if clean is None else clean[:, layer]
        if len(values) != rows:  # beams and several sequences a prompt
            values = values.repeat_interleave(rows // len(values), dim=0)
        indices = torch.full((rows,), which)
        return points.write(activations, edits.apply(layer, values.to(activations), indices))

    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(before, with_kwargs=True)
        stack.callback(handle.remove)
        modules = {layer: edits.site.modules[layer] for layer in edits.written_layers}
        stack.enter_context(visiting(modules, edits.site.side, visit))
        yield


def _clean(model: nn.Module, edits: Edits, context: Tensor, attention_mask: Tensor) -> Tensor:
    """Unsteered activations of the last prompt token, ``[batch, layers, width]``."""
    batch, width = context.shape
    points = Points.of([(row, width - 1) for row in range(batch)], batch, context.device)
    inputs: dict[str, Any] = {"input_ids": context, "attention_mask": attention_mask}
    if "position_ids" in _parameters(model):
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in _parameters(model):
        inputs["logits_to_keep"] = 1
    with torch.no_grad(), reading(edits.site, points) as collected:
        model(**inputs, use_cache=False)
    return torch.stack([values.to(collected[0].device) for values in collected], dim=1)


def _parameters(model: nn.Module) -> set[str]:
    return set(inspect.signature(unwrapped(model).forward).parameters)
