"""The one door through which modules' activations are read and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["input", "output"]

Visit = Callable[[int, Tensor], Tensor | None]
"""Takes a layer and its activations; returns new activations, or None to leave them."""


@contextmanager
def visiting(modules: Mapping[int, nn.Module], side: Side, visit: Visit) -> Iterator[None]:
    """Call ``visit`` whenever one of ``modules`` runs, until the block is left in any way.

    Args:
        modules: the module of each layer to visit.
        side: whether the module's first input or its (first) output is visited.
        visit: gets the layer and the activations ``[batch, seq, width]``. It must not write to
            them: what it returns takes their place.
    """
    with ExitStack() as stack:
        for layer, module in modules.items():
            if side == "input":
                handle = module.register_forward_pre_hook(_before(layer, visit))
            else:
                handle = module.register_forward_hook(_after(layer, visit))
            stack.callback(handle.remove)
        yield


def _before(layer: int, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = visit(layer, arguments[0])
        return None if new is None else (new, *arguments[1:])

    return hook


def _after(layer: int, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            new = visit(layer, output[0])
            return None if new is None else (new, *output[1:])
        return visit(layer, output)

    return hook
