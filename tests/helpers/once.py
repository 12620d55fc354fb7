"""What several tests ask for, computed when the first one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute what a function gives for the same arguments, by their text, a single time."""
    known: dict[str, Any] = {}

    def found(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, sorted(named.items())))
        if key not in known:
            known[key] = function(*arguments, **named)
        return known[key]

    return found
