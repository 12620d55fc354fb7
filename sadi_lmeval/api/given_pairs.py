"""Contrastive pairs that a user gives as rows or as a file, as pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.sources import Identity, question_digest, words
from sadi_lmeval.pairs.static_sets import check_row, read_static_set, sides

Chat = Callable[[list[dict[str, str]]], str]
"""Renders chat messages, with what begins the answer of the model."""


def given_pairs(
    pairs: str | Path | Sequence[Mapping[str, Any]], chat: Chat, delimiter: str
) -> list[Pair]:
    """Make pairs of what a user gives.

    Args:
        pairs: rows with ``prompt``, ``positive`` and ``negative``, or, where the contrast stands in
            the prompt, with ``positive_prompt``, ``negative_prompt`` and ``completion``; a prompt
            is a text or a list of chat messages. Or the path of a JSONL file of such rows.
        chat: renders messages.
        delimiter: between a text prompt and its answer; after messages there is none.

    Raises:
        UserError: naming the first row that is no pair.
    """
    if isinstance(pairs, (str, Path)):
        rows: list[dict[str, Any]] = list(read_static_set(Path(pairs)))
    else:
        rows = [dict(row) for row in pairs]
        for number, row in enumerate(rows, 1):
            check_row(row, f"pairs, row {number}", messages=True)
    if not rows:
        raise UserError("pairs: there are none; give at least one")
    made = []
    for row in rows:
        texts = []
        for prompt, answer in sides(row):
            if isinstance(prompt, str):
                texts.append((prompt, delimiter + answer))
            else:
                texts.append((chat(prompt), answer))
        asked = words(texts[0][0])
        known_as = Identity(digest(row), question_digest(asked) if asked else "")
        made.append(Pair(texts[0], texts[1], row, known_as))
    return made
