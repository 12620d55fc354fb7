"""Labels of pairs, shuffled: what a method measures then holds no information about them."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from torch import Tensor

from sadi_lmeval.passes.activations import Collector
from sadi_lmeval.processes import Processes


def swapped_pairs(count: int, seed: int) -> frozenset[int]:
    """Draw the pairs whose right and wrong text change places: half of them, exactly.

    With a coin for each pair, a fit of few pairs would keep a part of the labels by chance: of 12
    pairs one draw in seven leaves 9 or more on one side, and half of the mean difference with them.
    Of an odd number a coin decides about one.

    Args:
        count: of pairs.
        seed: of the draw.
    """
    random = Random(f"labels {seed}")
    half = (count + random.randrange(2)) // 2
    return frozenset(random.sample(range(count), half))


class ShuffledLabels:
    """Hands activations on to a collector, those of some pairs with their sides swapped.

    That is what any method's collector would see if the texts themselves had changed places, so
    both kinds of labels are read in one pass.
    """

    def __init__(self, inner: Collector, swapped: Collection[int]) -> None:
        self.inner, self.swapped = inner, swapped
        self.kind, self.shapes = inner.kind, inner.shapes

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        swapped = [
            -sign if pair in self.swapped else sign for pair, sign in zip(pairs, signs, strict=True)
        ]
        self.inner.add(pairs, swapped, values)

    def join(self, processes: Processes) -> None:
        self.inner.join(processes)

    def tensors(self, label: str) -> dict[str, Tensor]:
        return self.inner.tensors(label)
