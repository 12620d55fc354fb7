"""How many of what there were, and what became of them."""

from __future__ import annotations

from collections.abc import Callable

Count = Callable[..., None]
"""``count("fits cut", rebuilt=190, …)``: to be told at the end."""
