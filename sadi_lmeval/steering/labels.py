"""Labels shuffled: what a method measures then holds no information about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from torch import Tensor

from sadi_lmeval.passes.activations import Answers, Collector
from sadi_lmeval.processes import Processes

Relabel = Callable[[int, Any], Any]
"""Gives the label that a collector is told for a text: of the index of its pair or prompt, and of
its own label."""


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


def sides_swapped(count: int, seed: int) -> Relabel:
    """Give the labels of pairs, 1 and -1, after half of the pairs were swapped."""
    swapped = swapped_pairs(count, seed)
    return lambda pair, sign: -sign if pair in swapped else sign


def rights_permuted(answers: Sequence[Answers], seed: int) -> Relabel:
    """Give the answers of prompts, the right one of each being that of another.

    Each choice is right as often as before, and the model's own answers stay. To swap half with a
    wrong choice would not do: of several choices half would still be more than chance.

    Args:
        answers: of all prompts.
        seed: of the draw.
    """
    rights = [each.right for each in answers]
    Random(f"labels {seed}").shuffle(rights)
    return lambda prompt, own: own._replace(right=rights[prompt])


class Relabelled:
    """Hands activations on to a collector, under other labels than their own.

    That is what any method's collector would see if the texts themselves had changed places, so
    both kinds of labels are read in one pass.
    """

    def __init__(self, inner: Collector, relabel: Relabel) -> None:
        self.inner, self.relabel = inner, relabel
        self.kind, self.shapes = inner.kind, inner.shapes

    def add(self, items: list[int], labels: list[Any], values: Tensor) -> None:
        self.inner.add(items, list(map(self.relabel, items, labels)), values)

    def join(self, processes: Processes) -> None:
        self.inner.join(processes)

    def tensors(self, label: str) -> dict[str, Tensor]:
        return self.inner.tensors(label)
