"""The releases that a result depends on."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("sadi-lmeval", "lm-eval", "torch", "transformers", "scikit-learn")
    }
