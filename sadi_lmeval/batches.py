"""Rows of like length, gathered into batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(
    rows: list[T], length: Callable[[T], int], most_rows: int | None, most_tokens: int
) -> Iterator[list[T]]:
    """Gather rows, the longest first, so that little is padding and what fails fails early.

    Args:
        rows: any order.
        length: tokens of a row.
        most_rows: rows a batch, or None for no bound.
        most_tokens: padded tokens a batch; a single longer row is a batch of its own. It does
            not bind where ``most_rows`` is given: then the user has said what fits.
    """
    batch: list[T] = []
    longest = 0
    for row in sorted(rows, key=length, reverse=True):
        longest = longest or length(row)
        full = (
            len(batch) >= most_rows
            if most_rows is not None
            else bool(batch) and (len(batch) + 1) * longest > most_tokens
        )
        if full:
            yield batch
            batch, longest = [], length(row)
        batch.append(row)
    if batch:
        yield batch
