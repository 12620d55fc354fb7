"""What methods measure at the last token of each text of contrastive pairs, or of each prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.processes import Processes

Shapes = dict[str, tuple[int, ...]]
"""The shape of each tensor by name; -1 stands for any length."""


class MeanDifference:
    """D = (1/T) Σ (A_pos,i − A_neg,i) (SADI, equation 3), summed as a float64 stream.

    Memory does not grow with the number of pairs. Makes ``difference``,
    ``[layers, entries, entry_width]``.
    """

    kind = "mean_difference"

    def __init__(self, site: Site, pairs: int) -> None:
        self.site, self.pairs = site, pairs
        self.shapes: Shapes = {"difference": site.shape}
        self.total = torch.zeros(site.layers, site.width, dtype=torch.float64)

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        for sign, value in zip(signs, values, strict=True):  # no float64 copy of all of them
            self.total.add_(value, alpha=sign)

    def join(self, processes: Processes) -> None:
        self.total = processes.all_reduce(self.total)

    def tensors(self, label: str) -> dict[str, Tensor]:
        mean = (self.total / self.pairs).float()
        bad = int((~mean.isfinite()).sum())
        if bad:
            raise UserError(
                f"the pairs' activations are not finite at {bad} of {mean.numel()} places "
                f"({self.site.element}); load the model in a wider type (dtype=bfloat16 or float32)"
            )
        return {"difference": mean.view(self.site.shape)}


class Given:
    """What is known before any pair is: nothing is read for it, and no pairs are drawn."""

    def __init__(self, kind: str, source: str, tensors: dict[str, Tensor]) -> None:
        """
        Args:
            kind: of what is known.
            source: the file that it is from.
            tensors: float32, by name.
        """
        self.kind, self.source, self._tensors = kind, source, tensors
        self.shapes: Shapes = {name: tuple(values.shape) for name, values in tensors.items()}

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        """Look at nothing."""

    def join(self, processes: Processes) -> None:
        """Wait for nobody: every process knows it."""

    def tensors(self, label: str) -> dict[str, Tensor]:
        return self._tensors


class Kept:
    """All activations of both sides, float32, for what needs more than sums of them."""

    def __init__(
        self,
        kind: str,
        site: Site,
        pairs: int,
        shapes: Shapes,
        make: Callable[[Tensor, Tensor, str], dict[str, Tensor]],
    ) -> None:
        """
        Args:
            kind: of what is made.
            site: of the model.
            pairs: how many.
            shapes: of what is made.
            make: makes it of the positive and the negative activations,
                ``[pairs, layers, entries, entry_width]`` each; its third argument is the label of
                a progress bar.
        """
        self.kind, self.site, self.shapes, self.make = kind, site, shapes, make
        self.values = torch.zeros(2, pairs, site.layers, site.width)

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        side = [0 if sign > 0 else 1 for sign in signs]
        self.values[side, pairs] = values.float()

    def join(self, processes: Processes) -> None:
        self.values = processes.all_reduce(self.values)  # zero where another process has read

    def tensors(self, label: str) -> dict[str, Tensor]:
        shape = self.values.shape[1], *self.site.shape
        positive, negative = (side.view(shape) for side in self.values)
        _refuse_infinite(self.kind, "pairs", positive.isfinite() & negative.isfinite())
        return self.make(positive, negative, label)


class KeptPrompts:
    """All activations of the prompts' last tokens, float32, each with its prompt's answers."""

    def __init__(
        self,
        kind: str,
        site: Site,
        prompts: int,
        shapes: Shapes,
        make: Callable[[Tensor, list[Answers], str], dict[str, Tensor]],
    ) -> None:
        """
        Args:
            kind: of what is made.
            site: of the model.
            prompts: how many.
            shapes: of what is made.
            make: makes it of the activations, ``[prompts, layers, entries, entry_width]``, and the
                answers; its third argument is the label of a progress bar.
        """
        self.kind, self.site, self.shapes, self.make = kind, site, shapes, make
        self.values = torch.zeros(prompts, site.layers, site.width)
        self.answers: dict[int, Answers] = {}

    def add(self, prompts: list[int], answers: list[Answers], values: Tensor) -> None:
        self.values[prompts] = values.float()
        self.answers |= zip(prompts, answers, strict=True)

    def join(self, processes: Processes) -> None:
        self.values = processes.all_reduce(self.values)  # zero where another process has read
        for part in processes.all_gather(self.answers):
            self.answers |= part

    def tensors(self, label: str) -> dict[str, Tensor]:
        values = self.values.view(-1, *self.site.shape)
        _refuse_infinite(self.kind, "prompts", values.isfinite())
        return self.make(values, [self.answers[n] for n in range(len(values))], label)


def _refuse_infinite(kind: str, read: str, finite: Tensor) -> None:
    """Refuse to make anything of activations that are not finite, ``[read, ...]`` bool."""
    bad = int((~finite).flatten(1).any(dim=1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(finite)} {read} have activations that are not finite, of which no "
            f"{kind} can be made; load the model in a wider type (dtype=bfloat16 or float32)"
        )
