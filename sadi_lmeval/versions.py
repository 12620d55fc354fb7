"""The releases and the source files that a result depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any


@cache
def versions() -> dict[str, str]:
    """Give the versions of the packages that a result depends on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("sadi-lmeval", "lm-eval", "torch", "transformers", "scikit-learn")
    }


def code_digest(thing: Any) -> str:
    """Give the sha256 of the source file that defines a class or function; it changes with it.

    What has no source file counts by its name, and by its bytecode if there is some. Of a
    ``functools.partial`` the function counts.
    """
    while isinstance(thing, partial):
        thing = thing.func
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"
    try:
        content = Path(inspect.getfile(thing)).read_bytes()
    except (TypeError, OSError):
        content = getattr(getattr(thing, "__code__", None), "co_code", b"")
    return hashlib.sha256(name.encode() + b"\0" + content).hexdigest()
