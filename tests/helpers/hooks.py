"""What stands in a model: hooks, replaced functions, and what its modules are given and give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sadi_lmeval.architecture.sites import Site


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def replaced(model: nn.Module) -> int:
    """Modules whose ``forward`` is not that of their class."""
    return sum("forward" in vars(module) for module in model.modules())


class Captured:
    """One forward pass: its input ids, and the activations of each layer of a site."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.layers: list[Tensor] = []


@contextmanager
def watching(model: nn.Module, site: Site) -> Iterator[list[Captured]]:
    """Record what a site's modules are given or give, after all other hooks have run.

    Hooks run in the order in which they were set, so ours are set when the pass begins.
    """
    passes: list[Captured] = []
    with ExitStack() as stack:

        def begin(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            captured = Captured(keywords["input_ids"])
            passes.append(captured)

            def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
                if passes[-1] is captured:
                    captured.layers.append(output.clone())

            def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
                if passes[-1] is captured:
                    captured.layers.append(arguments[0].clone())

            for part in site.modules:
                if site.side == "input":
                    stack.callback(part.register_forward_pre_hook(before).remove)
                else:
                    stack.callback(part.register_forward_hook(after).remove)

        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield passes
