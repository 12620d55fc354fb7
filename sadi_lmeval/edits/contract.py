"""The contract between a method's edits and the passes that apply them.

An edit is a pure row rule: row i of what :meth:`Edits.apply` returns depends on row i of the
activations, on the layer and on edit ``which[i]``, and on nothing else of the batch. With a gate,
the change of row i is multiplied by one number of its prompt and that edit. A later layer's rule
sees the state as the earlier layers' edits have left it, and nothing before the last prompt token
changes. From this alone follows that rows may be packed, that settings may stand side by side in
one pass, that a pass may begin at the first edited layer, and that prompts may share prefixes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sadi_lmeval.architecture.hooks import visiting
from sadi_lmeval.architecture.positions import Paths, Points
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.types import Scope

RowRule = Callable[[int, Tensor], Tensor]
"""Takes a layer and A ``[n, width]`` of certain rows; gives A'."""


class Reads(NamedTuple):
    """What is read of a site in an unsteered pass: every layer at certain points, and some means.

    Attributes:
        site: where.
        means: the layers of which the mean over all tokens up to and with a point is read, too.
    """

    site: Site
    means: tuple[int, ...] = ()


class Edits(ABC):
    """Several edits of one site, so that each position of a batch can have its own.

    Attributes:
        site: where activations are edited.
        scope: which tokens are edited.
        clean: whether A is the activation of an unsteered forward pass, whose whole site is
            written back in every layer, instead of the activation of the steered pass itself.
            Only the last prompt token has such a one, so the scope is then ``prompt``.
        count: how many edits.
        first_layers: the first layer that each edit touches; ``site.layers`` where none.
        layers: the layers that some edit touches, in order.
        gated: whether :meth:`gates` gives a number.
        means: layers at which it needs the mean over the prompt's tokens beside the last token.
    """

    site: Site
    scope: Scope
    clean: bool = False
    count: int
    first_layers: list[int]
    layers: list[int]
    gated: bool = False
    means: tuple[int, ...] = ()

    @abstractmethod
    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        """Edit activations in one layer: the row rule.

        Args:
            layer: any layer; the same tensor is returned where no edit touches it.
            activations: A, ``[n, width]``, in the model's type.
            which: the index of the edit for each row of A, ``[n]`` on the CPU.

        Returns:
            A', ``[n, width]``, in the type of A. Rows that an edit does not change keep their bits.
        """

    def placed(self, which: Tensor) -> RowRule:
        """Give the row rule of some rows, for passes in which it is needed again and again.

        What it needs is copied to a device once, where a family has this method of its own.

        Args:
            which: the index of the edit for each row, ``[n]`` on the CPU.
        """
        return lambda layer, activations: self.apply(layer, activations, which)

    @abstractmethod
    def digest(self, edit: int) -> str:
        """Give the sha256 of all that one of the edits does; two that differ never share it."""

    def gates(self, unsteered: Tensor) -> Tensor | None:
        """Give the number that multiplies the change of each edit for each prompt.

        Args:
            unsteered: activations of the last prompt tokens in an unsteered pass,
                ``[k, layers + means, width]``: after every layer's stand the means.

        Returns:
            ``[k, count]`` float32, 0 meaning that nothing is written; None: no gate.
        """
        return None

    def gates_of(self, unsteered: Tensor, which: Tensor, rows: Tensor) -> Tensor | None:
        """Give the gate of each point, ``[n]`` on the CPU, or None.

        Args:
            unsteered: see :meth:`gates`.
            which: the edit of each point, ``[n]`` on the CPU.
            rows: the row of ``unsteered`` that each belongs to, ``[n]``.
        """
        table = self.gates(unsteered) if self.gated else None
        return None if table is None else table.cpu()[rows.cpu(), which]

    def shift(self, edit: int) -> dict[int, Tensor] | None:
        """Give what one of the edits adds to each layer, ``[width]``, if it does nothing else.

        None: what it does depends on the activations or the prompt, so that no vector says it.
        """
        return None

    @property
    def alike(self) -> tuple[Hashable, ...]:
        """What edits must share to be joined: the site, the scope, and where A is from."""
        return self.site.modules, self.site.side, self.scope, self.clean

    @property
    def reads(self) -> Reads:
        """What an unsteered pass must show."""
        return Reads(self.site, self.means)

    @property
    def needs_unsteered(self) -> bool:
        """Whether an unsteered pass over the last prompt tokens must come first."""
        return bool(self.layers) and (self.clean or self.gated)

    @property
    def written_layers(self) -> list[int]:
        """The layers whose site is written: with clean activations all, else the edited ones."""
        return list(range(self.site.layers)) if self.clean and self.layers else self.layers

    @staticmethod
    def edited(rule: RowRule, layer: int, before: Tensor, gates: Tensor | None) -> Tensor:
        """Apply a row rule, and the gate if there is one.

        Args:
            rule: of all the rows, see :meth:`placed`.
            before: A, ``[n, width]``.
            gates: of each row, ``[n]``, or None.
        """
        after = rule(layer, before)
        if gates is None:
            return after
        gate = gates.to(before.device).unsqueeze(-1)
        partly = (before + gate * (after - before)).to(before.dtype)
        # Exactly 0 and exactly 1 keep the bits of what was there, and of what the rule gives.
        return torch.where(gate == 0, before, torch.where(gate == 1, after, partly))

    @contextmanager
    def at(
        self,
        points: Points,
        which: Tensor,
        unsteered: Tensor | None = None,
        of_point: Tensor | None = None,
        start: int = 0,
        gates: Tensor | None = None,
        rule: RowRule | None = None,
    ) -> Iterator[None]:
        """Edit the activations at ``points`` while the block runs.

        Args:
            points: n positions.
            which: the index of the edit for each, ``[n]`` on the CPU.
            unsteered: activations of the k last prompt tokens in an unsteered pass,
                ``[k, layers + means, width]``, where :attr:`needs_unsteered`, else None.
            of_point: the row of ``unsteered`` for each position, ``[n]``; None: k = n, in order.
            start: the first block that runs; no edit of ``which`` touches one below.
            gates: what :meth:`gates_of` gives, where it is known.
            rule: what :meth:`placed` gives, where there is one already.
        """
        if not self.layers or not len(which):
            yield
            return
        rows = torch.arange(len(which)) if of_point is None else of_point
        if gates is None and unsteered is not None:
            gates = self.gates_of(unsteered, which, rows)
        placed = self.placed(which) if rule is None else rule

        def visit(layer: int, activations: Tensor) -> Tensor:
            if self.clean and unsteered is not None:
                before = unsteered[rows.to(unsteered.device), layer]
            else:
                before = self.site.read(layer, activations, points)
            after = self.edited(placed, layer, before.to(activations), gates)
            return self.site.write(layer, activations, points, after)

        written = [n for n in self.written_layers if self.site.blocks[n] >= start]
        modules = {layer: self.site.modules[layer] for layer in written}
        with visiting(modules, self.site.side, visit, self.site.streams, required=True):
            yield


class Collected(NamedTuple):
    """What :func:`reading` has read.

    Attributes:
        reads: what was to be.
        last: of each layer, ``[n, width]``.
        means: of each layer that was asked for, ``[n, width]``.
    """

    reads: Reads
    last: list[Tensor]
    means: dict[int, Tensor]

    def stacked(self) -> Tensor:
        """Give ``[n, layers + means, width]``."""
        values = [*self.last, *(self.means[layer] for layer in self.reads.means)]
        return torch.stack([each.to(values[0].device) for each in values], dim=1)


@contextmanager
def reading(
    reads: Reads,
    points: Points,
    paths: Paths | None = None,
    before: Mapping[tuple[Site, int], Tensor] | None = None,
) -> Iterator[Collected]:
    """Collect activations at ``points`` in every layer, and means over the tokens up to them.

    Args:
        paths: the texts that end at the points, where means are asked for.
        before: of each site and layer of which the mean is, the activations of the tokens that
            stand before every row, ``[length, width]``; None: none do.
    """
    collected = Collected(reads, [], {})

    def visit(layer: int, activations: Tensor) -> None:
        collected.last.append(site.read(layer, activations, points))
        if paths is not None and layer in reads.means:
            known = None if before is None else before[reads.site, layer]
            collected.means[layer] = site.widened(layer, paths.mean(activations, known))

    site = reads.site
    modules = dict(enumerate(site.modules))
    with visiting(modules, site.side, visit, site.streams, required=True):
        yield collected
