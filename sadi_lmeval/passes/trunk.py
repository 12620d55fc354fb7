"""The trunk of a grid: one unsteered pass over prompts and continuations, kept for all settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward, Trunk
from sadi_lmeval.passes.likelihood import Likelihood, likelihood
from sadi_lmeval.passes.packing import Row
from sadi_lmeval.passes.scoring import Scored
from sadi_lmeval.passes.sequences import Batch, Past, pack

_PADDING = 1.25
"""How many times their own tokens the rows of a batch may take."""
_PADDING_OF_ALL = 2
"""The same of all their tokens."""


class GridRow:
    """A packed unsteered row.

    Attributes:
        own: positions of the last prompt tokens and of all that follows them, ascending.
        prompt_of: of each of those, the position of its last prompt token.
        depths: the position of each token on its path, ``[length]``.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.prompts = {position for position, _ in row.edited}
        self.prompt_of = {position: position for position in self.prompts}
        self.prompt_of |= {position: prompt for position, _, prompt in row.following}
        own: list[int] = []
        ends: list[bool] = []  # of each segment: whether what follows it is its own
        depths: list[int] = []
        prompts = sorted(self.prompts, reverse=True)
        for segment in row.tree.segments:
            end = segment.start + len(segment.tokens)
            first = segment.start if segment.parent >= 0 and ends[segment.parent] else end
            while prompts and prompts[-1] < end:
                first = min(first, prompts.pop())
            own += range(first, end)
            ends.append(first < end or (segment.parent >= 0 and ends[segment.parent]))
            depths += range(segment.depth, segment.depth + len(segment.tokens))
        self.own = own
        self.depths = torch.tensor(depths)

    @cached_property
    def visible(self) -> Tensor:
        """Which token sees which, ``[length, length]``; kept until :meth:`forget`."""
        return self.row.tree.visible()

    def forget(self) -> None:
        """Drop what is large and made again: the rows of a group stand there together."""
        self.__dict__.pop("visible", None)

    @property
    def length(self) -> int:
        return self.row.length


def alike(rows: list[GridRow], bounds: Bounds, past: int) -> Iterator[list[GridRow]]:
    """Yield batches of rows with about as many own tokens, and of about one length.

    Args:
        rows: of any length.
        bounds: of each batch.
        past: tokens before every row.
    """
    batch: list[GridRow] = []
    widest = longest = own = whole = 0  # of the batch: the most of a row, and of all rows
    for row in sorted(rows, key=lambda row: (len(row.own), row.length), reverse=True):
        count = len(batch) + 1
        widest, longest = max(widest, len(row.own)), max(longest, row.length)
        own, whole = own + len(row.own), whole + row.length
        if batch and (
            count * widest > _PADDING * own
            or count * longest > _PADDING_OF_ALL * whole
            or count * longest > bounds.tokens
            or count * widest > bounds.scored
            or count * longest * (past + longest) > bounds.mask
            or (bounds.rows is not None and count > bounds.rows)
        ):
            yield batch
            batch = []
            widest, longest, own, whole = len(row.own), row.length, len(row.own), row.length
        batch.append(row)
    if batch:
        yield batch


class GrownTrunk(NamedTuple):
    """An unsteered pass over a batch.

    Attributes:
        table: what is scored.
        base: the unsteered likelihood of each scored token, ``[1, m]``.
        unsteered: of each family, the activations of its site at the last prompt tokens, or None
            where it does not need them.
    """

    batch: list[GridRow]
    inputs: Batch
    pass_: Trunk
    table: Scored
    base: Likelihood
    unsteered: list[Tensor | None]


def grow(
    forward: Forward,
    batch: list[GridRow],
    families: Sequence[Edits],
    starts: set[int],
    pad: int,
    past: Past | None,
    softmax_dtype: torch.dtype | None,
) -> GrownTrunk:
    inputs = pack([row.row.tree for row in batch], pad, forward.dtype, forward.device, past)
    table = Scored([row.row for row in batch])
    prompts = [(i, position) for i, row in enumerate(batch) for position in sorted(row.prompts)]
    read = Points.of(prompts, len(batch), forward.device)
    sites = [family.site if family.needs_unsteered else None for family in families]
    # What an edit changes, and so what a pass of its own begins with.
    own = pad_sequence([torch.tensor(row.own) for row in batch], batch_first=True)
    points = table.points(forward.device)
    grown, unsteered = forward.trunk(inputs, points, starts, sites, read, own)
    flat = likelihood(grown.logits, table.at, table.tokens, softmax_dtype)
    base = Likelihood(flat.log_probability[None], flat.greedy[None])
    kept = grown._replace(logits=grown.logits[:0])
    return GrownTrunk(batch, inputs, kept, table, base, unsteered)
