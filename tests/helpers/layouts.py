"""Requests that share beginnings, and the layouts of batches that must not matter to them."""

from __future__ import annotations

from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.packing import Continuation

A, B, C = (5, 9, 7, 4, 8, 33, 21), (11,), (5, 9, 7)
REQUESTS = [
    Continuation(A, (3,), 0),
    Continuation(A, (6,), 0),  # the same row: differs in its last token alone
    Continuation(A, (3, 14, 15, 9), 0),
    Continuation(A, (3, 14, 2), 2),  # the same prompt under another edit
    Continuation(A, (3, 14), 1),
    Continuation(B, (3, 14), 0),  # a prompt of one token
    Continuation(B, (44,), 2),
    Continuation(C, (4, 8, 33, 21, 3), 0),  # with C the same text as A and (3,)
    Continuation(C, (50, 51), 2),
    Continuation(C, (50, 51), 2),  # twice the same request
]
BEGINNING = tuple((7 * i + 3) % 60 for i in range(20))
SAME_BEGINNING = [
    Continuation((*BEGINNING, *end), continuation, edit)
    for end in ((5,), (5, 9), (11, 12, 13), (44, 5, 6, 7), ())
    for continuation, edit in (((3,), 0), ((3, 14, 2), 0), ((3, 14), 1), ((8, 9), 2))
]
ROWS_ALONE = Bounds(1, 40, 1000)
THREE_ROWS = Bounds(3, 1000, 1000)
FEW_TOKENS = Bounds(None, 40, 1000)
FEW_LOGITS = Bounds(None, 1000, 3)
ONE_BATCH = Bounds(None, 10**6, 10**6, start=10**6)
LAYOUTS = [ROWS_ALONE, THREE_ROWS, FEW_TOKENS, FEW_LOGITS, ONE_BATCH]
