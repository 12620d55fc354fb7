"""Texts that say nothing: what strong steering makes of an answer."""

from __future__ import annotations

import re

_REPEATED = re.compile(r"(.{1,24}?)\1{7,}.{0,24}", re.DOTALL)
"""A short piece eight times or more, and a part of it at the end."""


def is_degenerate(text: str) -> bool:
    """Return whether a text is empty, or one short piece over and over."""
    stripped = text.strip()
    return not stripped or _REPEATED.fullmatch(stripped) is not None
