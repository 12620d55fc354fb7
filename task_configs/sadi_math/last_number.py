"""The answer to a word problem: the last number of what the model wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, without thousands separators; None if it has none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def exact_match(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last number of the model's answer is that of the document's own answer."""
    answer = document.get("answer", document.get("Answer"))
    right = last_number(f"{answer:.12g}" if isinstance(answer, float) else str(answer))
    return {"exact_match": float(right is not None and last_number(results[0]) == right)}
