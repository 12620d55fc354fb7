"""Keys under which things are kept, made of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key_of(inputs: Mapping[str, Any]) -> str:
    """Make a key: sha256 of the inputs as JSON, the first 32 hexadecimal digits.

    Raises:
        TypeError: an input is no plain JSON value, so that its text would not tell what it is.
    """
    content = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the inputs that two identities do not share."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
