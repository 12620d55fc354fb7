"""How many of what there were, and how many are tried."""

from __future__ import annotations

import os
from collections.abc import Callable

Count = Callable[..., None]
"""``count("masks cut", rebuilt=190, …)``: to be told at the end."""

_SHARE = float(os.environ.get("FAULTS_SHARE", "1"))


def share_of(tries: int) -> int:
    """Of a number of tries those that this run makes: all, unless ``FAULTS_SHARE`` says less."""
    return max(1, round(tries * _SHARE))
