"""The one door through which modules' activations are read and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sadi_lmeval.errors import UserError

Side = Literal["input", "output"]

Streams = Literal["first", "third"]
"""Which axis is that of a block's parallel streams: ``[streams, batch, seq, hidden]`` (Gemma 3n) or
``[batch, seq, streams, hidden]`` (hyper-connections)."""

Visit = Callable[[int, Tensor], Tensor | None]
"""Takes a layer and its activations; returns new activations, or None to leave them."""


@contextmanager
def visiting(
    modules: Mapping[int, nn.Module],
    side: Side,
    visit: Visit,
    streams: Streams | None = None,
    required: bool = False,
) -> Iterator[None]:
    """Call ``visit`` whenever one of ``modules`` runs, until the block is left in any way.

    Args:
        modules: the module of each layer to visit.
        side: whether the module's first input or its (first) output is visited.
        visit: gets the layer and the activations ``[batch, seq, width]``. It must not write to
            them: what it returns takes their place.
        streams: where the modules have several streams, which it gets side by side
            ``[batch, seq, streams * hidden]``.
        required: whether each module must run.

    Raises:
        UserError: one that must run has not when the block is left.
    """
    visit = visit if streams is None else _side_by_side(visit, streams)
    left = set(modules)

    def noted(layer: int, activations: Tensor) -> Tensor | None:
        left.discard(layer)
        return visit(layer, activations)

    with ExitStack() as stack:
        for layer, module in modules.items():
            if side == "input":
                handle = module.register_forward_pre_hook(_before(layer, noted))
            else:
                handle = module.register_forward_hook(_after(layer, noted))
            stack.callback(handle.remove)
        yield
    if required and left:
        raise UserError(
            f"the model's forward pass did not run the hooks of {len(left)} of {len(modules)} "
            "layers, so nothing is steered there (is it compiled, or does it call other modules?)"
        )


def _side_by_side(visit: Visit, streams: Streams) -> Visit:
    def visit_all(layer: int, activations: Tensor) -> Tensor | None:
        inner = activations.permute(1, 2, 0, 3) if streams == "first" else activations
        new = visit(layer, inner.flatten(2))
        if new is None:
            return None
        new = new.view(inner.shape)
        return new.permute(2, 0, 1, 3) if streams == "first" else new

    return visit_all


def _before(layer: int, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = visit(layer, arguments[0])
        return None if new is None else (new, *arguments[1:])

    return hook


def _after(layer: int, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            new = visit(layer, output[0])
            if new is None:
                return None
            parts = new, *output[1:]
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
        return visit(layer, output)

    return hook


class Outputs(NamedTuple):
    """What decoder blocks gave in one forward pass.

    Attributes:
        states: of each block that was kept, at the positions that are, ``[batch, n, hidden]``.
        in_tuple: whether the blocks give them as the first part of a tuple.
    """

    states: dict[int, Tensor]
    in_tuple: list[bool]


@contextmanager
def keeping(modules: Mapping[int, nn.Module], at: Tensor | None = None) -> Iterator[Outputs]:
    """Keep the outputs of ``modules`` until the block is left in any way.

    Args:
        at: of each row the positions to keep, ``[batch, n]``; None: all of them.
    """
    kept = Outputs({}, [])

    def keeper(layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            several = isinstance(output, (tuple, list))
            kept.in_tuple.append(several)
            states = output[0] if several else output
            if at is not None:
                rows = torch.arange(len(at), device=states.device)[:, None]
                states = states[rows, at.to(states.device)]
            kept.states[layer] = states

        return hook

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_hook(keeper(layer)).remove)
        yield kept


@contextmanager
def passing_over(modules: Sequence[nn.Module], states: Tensor, in_tuple: bool) -> Iterator[None]:
    """Give ``states`` out of each of ``modules`` without running it, until the block is left.

    Args:
        modules: consecutive decoder blocks.
        states: ``[batch, seq, hidden]``: what the last of them would give.
        in_tuple: whether the blocks give their states as the first part of a tuple.
    """
    output = (states, None) if in_tuple else states
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.forward = lambda *arguments, **keywords: output
        yield


def _restore(module: nn.Module, before: Callable[..., Any] | None) -> None:
    """Undo an assignment to ``forward``: an earlier one comes back, else the class's own."""
    if before is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = before
