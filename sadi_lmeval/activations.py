"""Difference extraction: the mean difference of pairs' last-token activations (equation 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.batches import batches
from sadi_lmeval.forward import Forward
from sadi_lmeval.positions import Points
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
    most_rows: int | None,
    most_tokens: int,
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
        most_rows, most_tokens: the size of a batch, see :func:`batches`.
        label: for the progress bar.

    Returns:
        ``[layers, entries, entry_width]`` float32.
    """
    total = torch.zeros(site.layers, site.width, dtype=torch.float64)
    rows: list[tuple[Tree, list[tuple[int, int]]]] = []
    for pair in pairs:
        rows += _packed(pair) if branching else _apart(pair)
    with tqdm(total=len(pairs) * 2, desc=label, unit="text") as bar:
        for batch in batches(rows, lambda row: row[0].length, most_rows, most_tokens):
            ends = [(row, end, sign) for row, (_, ends) in enumerate(batch) for end, sign in ends]
            points = Points.of([(r, end) for r, end, _ in ends], len(batch), forward.device)
            dtype = next(forward.model.parameters()).dtype
            inputs = pack([tree for tree, _ in batch], pad, dtype, forward.device)
            values = forward.activations(inputs, points, site).cpu().double()
            signs = torch.tensor([sign for _, _, sign in ends], dtype=torch.float64)
            total += torch.einsum("n,nlw->lw", signs, values)
            bar.update(len(ends))
    mean = (total / len(pairs)).float()
    return mean.view(site.layers, site.entries, site.entry_width)


def _packed(pair: TokenPair) -> list[tuple[Tree, list[tuple[int, int]]]]:
    """Both texts in one row; the last token of each with its sign."""
    shared = 0
    least = min(len(pair.positive), len(pair.negative))
    while shared < least and pair.positive[shared] == pair.negative[shared]:
        shared += 1
    tree = Tree()
    root = tree.add(pair.positive[:shared])
    ends = []
    for text, sign in ((pair.positive, 1), (pair.negative, -1)):
        segment = tree.segments[tree.add(text[shared:], root)]
        last = segment.start + len(segment.tokens) - 1 if segment.tokens else shared - 1
        ends.append((last, sign))
    return [(tree, ends)]


def _apart(pair: TokenPair) -> list[tuple[Tree, list[tuple[int, int]]]]:
    rows = []
    for text, sign in ((pair.positive, 1), (pair.negative, -1)):
        tree = Tree()
        tree.add(text)
        rows.append((tree, [(tree.length - 1, sign)]))
    return rows
