"""Token sequences that share their beginnings, packed so that what is shared is computed once.

A :class:`Tree` holds a prompt once, with every continuation of it as a branch: each token sees
the tokens on its own path from the root and nothing else, at the position it would have alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sadi_lmeval.architecture.positions import Paths, Points
from sadi_lmeval.architecture.sites import Site


class Segment(NamedTuple):
    """A run of tokens after its parent's tokens.

    Attributes:
        parent: index of the segment that it continues, -1 for the root.
        start: index of its first token in the packed row.
        depth: position of its first token on its path.
        tokens: its tokens; may be empty.
    """

    parent: int
    start: int
    depth: int
    tokens: list[int]


class Past(NamedTuple):
    """Keys and values of tokens that stand before the rows of a batch.

    Attributes:
        keys, values: of each layer, ``[batch, kv_heads, length, head_dim]``; a batch of 1 stands
            before every row.
        length: how many tokens.
        shown: their activations at some layers of sites, ``[length, width]``: those of which means
            over prompts are needed.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int
    shown: Mapping[tuple[Site, int], Tensor] = MappingProxyType({})

    def up_to(self, length: int) -> Past:
        """Take the first ``length`` tokens of it."""
        return Past(
            [keys[:, :, :length] for keys in self.keys],
            [values[:, :, :length] for values in self.values],
            length,
            {place: activations[:length] for place, activations in self.shown.items()},
        )


@dataclass
class Tree:
    """One packed row: segments in depth-first order, so that a branch stands in one piece.

    Attributes:
        past: tokens before the root, which a key/value cache holds.
        length: packed tokens, those before the root not counted.
    """

    past: int = 0
    segments: list[Segment] = field(default_factory=list)
    length: int = 0
    _open: list[int] = field(default_factory=list)
    """The segments from the root to the last one."""
    _ends: dict[int, int] = field(default_factory=dict)
    """Of each other segment where the tokens end that see it."""

    def add(self, tokens: list[int], parent: int = -1) -> int:
        """Continue segment ``parent`` and return the new segment's index.

        Raises:
            ValueError: another branch has begun since.
        """
        while self._open and self._open[-1] != parent:
            self._ends[self._open.pop()] = self.length
        depth = self.past
        if parent >= 0:
            if not self._open:
                raise ValueError(f"segment {parent} is not on the way to the last one")
            above = self.segments[parent]
            depth = above.depth + len(above.tokens)
        self._open.append(len(self.segments))
        self.segments.append(Segment(parent, self.length, depth, tokens))
        self.length += len(tokens)
        return len(self.segments) - 1

    @property
    def is_path(self) -> bool:
        """Whether every segment continues the one before, so that no mask is needed."""
        return not self.past and not self._ends

    def seen_until(self) -> list[int]:
        """List, of each token, the first later one that does not see it."""
        ends: list[int] = []
        for index, segment in enumerate(self.segments):
            ends += [self._ends.get(index, self.length)] * len(segment.tokens)
        return ends

    def visible(self) -> Tensor:
        """Tell which token (row) sees which (column), ``[length, length]`` bool."""
        return _visible(torch.tensor(self.seen_until(), dtype=torch.long))


def _visible(until: Tensor) -> Tensor:
    """Tell which token sees which, ``[..., n, n]``: each is seen from itself up to ``until``."""
    at = torch.arange(until.shape[-1], device=until.device)
    return (at[:, None] >= at) & (at[:, None] < until[..., None, :])


class Batch(NamedTuple):
    """Packed rows as model inputs, right-padded.

    Attributes:
        input_ids: ``[batch, seq]``.
        attention_mask: additive, ``[batch, 1, seq, past + seq]``, or None where every row is a
            path from the first token.
        position_ids: ``[batch, seq]``, or None likewise.
        past: what a key/value cache holds of the tokens before every row, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    past: Past | None = None

    def paths(self, points: Points) -> Paths:
        """Give the texts that end at n points; what stands before every row is theirs, too."""
        if self.attention_mask is None:
            places = torch.arange(self.input_ids.shape[1], device=points.positions.device)
            return Paths(points, places <= points.positions[:, None])
        before = 0 if self.past is None else self.past.length
        return Paths(points, self.attention_mask[points.rows, 0, points.positions, before:] == 0)


def pack(
    trees: list[Tree],
    pad: int,
    dtype: torch.dtype,
    device: torch.device,
    past: Past | None = None,
) -> Batch:
    """Lay out trees as one right-padded batch.

    Args:
        trees: at least one, none empty, all after the same ``past``.
        pad: the padding token.
        dtype: of the additive attention mask: the model's.
        device: where the tensors go.
    """
    width = max(tree.length for tree in trees)
    ids = np.full((len(trees), width), pad)
    if all(tree.is_path for tree in trees):
        for row, tree in enumerate(trees):
            ids[row, : tree.length] = [token for s in tree.segments for token in s.tokens]
        return Batch(torch.from_numpy(ids).to(device), None, None)
    positions = np.zeros((len(trees), width), dtype=np.int64)
    until = np.tile(np.arange(1, width + 1), (len(trees), 1))  # padding sees itself alone
    for row, tree in enumerate(trees):
        for segment in tree.segments:
            part = slice(segment.start, segment.start + len(segment.tokens))
            ids[row, part] = segment.tokens
            positions[row, part] = range(segment.depth, segment.depth + len(segment.tokens))
        until[row, : tree.length] = tree.seen_until()
    seen = _visible(torch.from_numpy(until))
    if past is not None:
        seen = torch.cat([seen.new_ones(len(trees), width, past.length), seen], dim=-1)
    mask = additive(seen.to(device), dtype).unsqueeze(1)
    places = torch.from_numpy(positions).to(device)
    return Batch(torch.from_numpy(ids).to(device), mask, places, past)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Make an additive attention mask: 0 where a token is seen, else the lowest number."""
    shown = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return shown.masked_fill_(~seen, torch.finfo(dtype).min)
