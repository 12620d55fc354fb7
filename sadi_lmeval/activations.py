"""Difference extraction: the mean difference of pairs' last-token activations (equation 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.batches import Bounds, batches
from sadi_lmeval.forward import Forward
from sadi_lmeval.positions import Points
from sadi_lmeval.prefixes import Group, group_by_prefix, shared_length
from sadi_lmeval.sequences import Tree, pack
from sadi_lmeval.sites import Site


class TokenPair(NamedTuple):
    """A contrastive pair as tokens: prompt and answer together."""

    positive: list[int]
    negative: list[int]


def mean_difference(
    forward: Forward,
    site: Site,
    pairs: list[TokenPair],
    pad: int,
    branching: bool,
    bounds: Bounds,
    label: str,
) -> Tensor:
    """D = (1/T) Σ (A_pos,i − A_neg,i), at the last token of each text, in every layer.

    The sum is float64 and a stream: memory does not grow with the number of pairs. What the two
    texts of a pair share at their beginning is computed once where the model takes packed rows.

    Args:
        forward: the model.
        site: what is read.
        pairs: T pairs, at least one.
        pad: the padding token.
        branching: whether the model takes packed rows with branches.
        bounds: the size of a batch.
        label: for the progress bar.

    Returns:
        ``[layers, entries, entry_width]`` float32.
    """
    total = torch.zeros(site.layers, site.width, dtype=torch.float64)
    # Each pair's own end lets what two pairs share be all that either of them shares.
    shared = [[*pair.positive[: _shared(pair)], -1 - i] for i, pair in enumerate(pairs)]
    groups = group_by_prefix(shared) if branching else [Group(0, list(range(len(pairs))))]
    with tqdm(total=len(pairs) * 2, desc=label, unit="text") as bar:
        for group in groups:
            past = forward.prefix(shared[group.members[0]][: group.length])
            rows: list[_Row] = []
            for member in group.members:
                pair = pairs[member]
                rows += [_packed(pair, group.length)] if branching else _apart(pair)
            for batch in batches(rows, bounds):
                ends = [(i, end, sign) for i, row in enumerate(batch) for end, sign in row.ends]
                points = Points.of([(i, end) for i, end, _ in ends], len(batch), forward.device)
                inputs = pack([row.tree for row in batch], pad, forward.dtype, forward.device, past)
                values = forward.activations(inputs, points, site).cpu().double()
                signs = torch.tensor([sign for _, _, sign in ends], dtype=torch.float64)
                total += torch.einsum("n,nlw->lw", signs, values)
                bar.update(len(ends))
    mean = (total / len(pairs)).float()
    return mean.view(site.layers, site.entries, site.entry_width)


class _Row(NamedTuple):
    """A packed row, and the last token of each of its texts with the text's sign."""

    tree: Tree
    ends: list[tuple[int, int]]
    scored: int = 0  # nothing is read off logits

    @property
    def length(self) -> int:
        return self.tree.length


def _shared(pair: TokenPair) -> int:
    """Tokens that both texts of a pair begin with; each keeps at least one of its own."""
    least = min(len(pair.positive), len(pair.negative)) - 1
    return min(least, shared_length(pair.positive, pair.negative))


def _packed(pair: TokenPair, past: int) -> _Row:
    """Both texts in one row, what they share once."""
    shared = _shared(pair)
    tree = Tree(past=past)
    root = tree.add(pair.positive[past:shared])
    ends = []
    for text, sign in ((pair.positive, 1), (pair.negative, -1)):
        tree.add(text[shared:], root)
        ends.append((tree.length - 1, sign))
    return _Row(tree, ends)


def _apart(pair: TokenPair) -> list[_Row]:
    rows = []
    for text, sign in ((pair.positive, 1), (pair.negative, -1)):
        tree = Tree()
        tree.add(text)
        rows.append(_Row(tree, [(tree.length - 1, sign)]))
    return rows
