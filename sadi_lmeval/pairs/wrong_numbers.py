"""Worked answers with a wrong final number."""

from __future__ import annotations

import re
from random import Random

_LONGEST_NUMBER = 1000
"""Signs; longer ones are no answers, and Python refuses to read some of them."""
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_BOX = "\\boxed{"


def with_wrong_number(text: str, random: Random) -> str | None:
    """Replace the last number of ``text`` by a near, different one; None if it has none.

    The number keeps its form: sign, thousands separators and decimal places. Where the text has
    a ``\\boxed{…}``, as worked solutions of MATH do, its answer stands in the last of them.
    """
    begin, end = _boxed(text)
    matches = list(_NUMBER.finditer(text, begin, end))
    if not matches:
        return None
    match = matches[-1]
    written = match.group()
    if len(written) > _LONGEST_NUMBER:
        return None
    digits, _, decimals = written.lstrip("-").replace(",", "").partition(".")
    value = int(digits + decimals) * (-1 if written.startswith("-") else 1)
    reach = max(3, abs(value) // 5)
    offset = random.choice([-1, 1]) * random.randint(1, reach)
    negative = written.startswith("-")
    wrong = value + offset
    if (wrong < 0) != negative:
        wrong = value - offset
    text_of = str(abs(wrong)).zfill(len(decimals) + 1)
    whole = text_of[: len(text_of) - len(decimals)]
    new = (
        f"{'-' if wrong < 0 else ''}{int(whole):,}"
        if "," in written
        else (f"{'-' if wrong < 0 else ''}{whole}")
    )
    if decimals:
        new += "." + text_of[len(text_of) - len(decimals) :]
    return text[: match.start()] + new + text[match.start() + len(written) :]


def _boxed(text: str) -> tuple[int, int]:
    """Find where the last box's content begins and ends; of a text without one, the whole text."""
    box = text.rfind(_BOX)
    if box < 0:
        return 0, len(text)
    begin, open_braces = box + len(_BOX), 1
    for end in range(begin, len(text)):
        open_braces += {"{": 1, "}": -1}.get(text[end], 0)
        if not open_braces:
            return begin, end
    return begin, len(text)
