"""Token sequences that share their beginnings, packed so that what is shared is computed once.

A :class:`Tree` holds a prompt once, with every continuation of it as a branch: each token sees
the tokens on its own path from the root and nothing else, at the position it would have alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


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
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int

    def up_to(self, length: int) -> Past:
        """Take the first ``length`` tokens of it."""
        return Past(
            [keys[:, :, :length] for keys in self.keys],
            [values[:, :, :length] for values in self.values],
            length,
        )


@dataclass
class Tree:
    """One packed row.

    Attributes:
        past: tokens before the root, which a key/value cache holds.
        length: packed tokens, those before the root not counted.
    """

    past: int = 0
    segments: list[Segment] = field(default_factory=list)
    length: int = 0

    def add(self, tokens: list[int], parent: int = -1) -> int:
        """Continue segment ``parent`` and return the new segment's index."""
        depth = self.past
        if parent >= 0:
            above = self.segments[parent]
            depth = above.depth + len(above.tokens)
        self.segments.append(Segment(parent, self.length, depth, tokens))
        self.length += len(tokens)
        return len(self.segments) - 1

    @property
    def is_path(self) -> bool:
        """Whether every segment continues the one before, so that no mask is needed."""
        return not self.past and all(s.parent == i - 1 for i, s in enumerate(self.segments))

    def visible(self) -> Tensor:
        """Tell which token (row) sees which (column), ``[length, length]`` bool."""
        seen = torch.zeros(self.length, self.length, dtype=torch.bool)
        for segment in self.segments:
            rows = slice(segment.start, segment.start + len(segment.tokens))
            count = len(segment.tokens)
            seen[rows, rows] = torch.ones(count, count, dtype=torch.bool).tril()
            parent = segment.parent
            while parent >= 0:
                above = self.segments[parent]
                seen[rows, above.start : above.start + len(above.tokens)] = True
                parent = above.parent
        return seen


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
    ids = torch.full((len(trees), width), pad, dtype=torch.long)
    paths = all(tree.is_path for tree in trees)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    for row, tree in enumerate(trees):
        for segment in tree.segments:
            part = slice(segment.start, segment.start + len(segment.tokens))
            ids[row, part] = torch.tensor(segment.tokens, dtype=torch.long)
            positions[row, part] = torch.arange(segment.depth, segment.depth + len(segment.tokens))
    if paths:
        return Batch(ids.to(device), None, None)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        seen[row, : tree.length, : tree.length] = tree.visible()
    if past is not None:
        seen = torch.cat([seen.new_ones(len(trees), width, past.length), seen], dim=-1)
    mask = additive(seen.to(device), dtype).unsqueeze(1)
    return Batch(ids.to(device), mask, positions.to(device), past)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Make an additive attention mask: 0 where a token is seen, else the lowest number."""
    shown = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return shown.masked_fill_(~seen, torch.finfo(dtype).min)
