"""The longest packed row of a run, scored plainly too: a trial of few tokens may miss what counts
over many."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import most_of
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import UNSTEERED, Continuation, pack_requests
from sadi_lmeval.passes.prefixes import Group
from sadi_lmeval.passes.scoring import log_likelihoods

logger = logging.getLogger("lm_eval.sadi")

_NEIGHBOURS = 16
"""Requests on either side of the longest that may stand in a row with it."""


def longest_row_is_right(
    forward: Forward, requests: Sequence[Continuation], pad: int, bounds: Bounds
) -> bool:
    """Score the longest packed row, unsteered, and some of its requests plainly; the log tells."""
    row = _longest_row(requests)
    packed = log_likelihoods(forward, row, None, pad, True, bounds)
    some = sorted({0, len(row) - 1, max(range(len(row)), key=lambda i: _length(row[i]))})
    plain = log_likelihoods(forward, [row[i] for i in some], None, pad, False, bounds)
    allowed = most_of(forward.dtype)  # a token
    for index, (expected, _) in zip(some, plain, strict=True):
        gap = abs(packed[index][0] - expected)
        # Neither is a number where the model overflows: nothing is known of packing then.
        if gap > allowed * max(len(row[index].tokens), 1):
            logger.warning(
                "The longest row of prompts that share tokens gives log-likelihoods %.2g apart "
                "from those of each alone: nothing is shared in this run, which takes longer",
                gap,
            )
            return False
    return True


def _length(request: Continuation) -> int:
    return len(request.context) + len(request.tokens)


def _longest_row(requests: Sequence[Continuation]) -> list[Continuation]:
    """List the requests that stand in a row with the longest of all, in order."""
    ordered = sorted({request._replace(edit=UNSTEERED) for request in requests})
    place = max(range(len(ordered)), key=lambda i: _length(ordered[i]))
    near = ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
    longest = near.index(ordered[place])
    for row in pack_requests(near, Group(0, list(range(len(near)))), branching=True):
        members = sorted({entry.request for entry in row.entries})
        if longest in members:
            return [near[i] for i in members]
    return [ordered[place]]
