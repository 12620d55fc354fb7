"""Methods as tests ask them."""

from __future__ import annotations

from sadi_lmeval.arguments import declared
from sadi_lmeval.methods.registry import method_class, method_names


def needs_a_file(name: str) -> bool:
    """Whether a method cannot be made without a file of the user's."""
    return any(each.required for each in declared(method_class(name)).values())


FITTED = [name for name in method_names() if not needs_a_file(name)]
"""Methods that measure what they steer with."""
