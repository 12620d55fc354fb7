"""Batches that memory does not suffice for are run in halves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger("lm_eval.sadi")

T = TypeVar("T")


def in_halves(batch: list[T], run: Callable[[list[T]], None]) -> None:
    """Run a batch; where it is out of memory, its halves, and so on down to single rows.

    Args:
        batch: at least one row.
        run: leaves nothing behind where it fails.

    Raises:
        RuntimeError: a single row is out of memory.
    """
    try:
        run(batch)
        return
    except RuntimeError as error:
        if len(batch) < 2 or not should_reduce_batch_size(error):
            raise
    # Not in the handler, whose traceback would keep the pass's tensors.
    clear_device_cache(garbage_collection=True)
    logger.warning("Out of memory with %d rows at once: run in halves", len(batch))
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        in_halves(half, run)
