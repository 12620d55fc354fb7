"""Rows of like length, put into batches of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar


class Sized(Protocol):
    """What a batch is measured by."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def scored(self) -> int:
        """Positions whose logits are needed."""

    @property
    def is_masked(self) -> bool:
        """Whether it brings an attention mask."""


T = TypeVar("T", bound=Sized)


class Bounds(NamedTuple):
    """The most that a batch holds. A single row that is larger is a batch of its own.

    Attributes:
        rows: rows, or None for any number.
        tokens: padded tokens.
        scored: positions with logits.
        start: what beginning another batch costs, in tokens: padding up to it is worth it.
        mask: pairs of tokens of an attention mask.
    """

    rows: int | None
    tokens: int
    scored: int
    start: int = 32
    mask: int = 1 << 24


def batches(rows: Sequence[T], bounds: Bounds, past: int = 0) -> Iterator[list[T]]:
    """Gather rows so that the fewest tokens are computed, padding and starts counted.

    The longest come first, so that what fails fails early.

    Args:
        rows: of any length.
        bounds: of each batch.
        past: tokens before every row.
    """
    ordered = sorted(rows, key=lambda row: row.length)
    lengths = [row.length for row in ordered]  # asked once a row, not once a pair of rows
    points, masks = [row.scored for row in ordered], [row.is_masked for row in ordered]
    cheapest = [0.0]  # tokens for the first n rows
    begins = [0]  # where the last batch of the first n rows begins
    for end in range(1, len(ordered) + 1):
        best, since = math.inf, end - 1  # the fewest tokens; of such, the most rows
        scored = 0
        masked = False
        longest = lengths[end - 1]
        for begin in range(end - 1, -1, -1):
            count = end - begin
            scored += points[begin]
            masked = masked or masks[begin]
            if count > 1 and (
                (bounds.rows is not None and count > bounds.rows)
                or count * longest > bounds.tokens
                or scored > bounds.scored
                or (masked and count * longest * (past + longest) > bounds.mask)
            ):
                break
            cost = cheapest[begin] + count * longest
            if cost <= best:
                best, since = cost, begin
        cheapest.append(best + bounds.start)
        begins.append(since)
    end = len(ordered)
    while end:
        yield ordered[begins[end] : end][::-1]
        end = begins[end]
