"""Gold choice and scores of the paper's multiple-choice tasks, whatever their datasets call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def gold(document: dict[str, Any]) -> int:
    """Index of the right choice.

    StoryCloze and WinoGrande count from 1, the others from 0.
    """
    if "label" in document:
        return int(document["label"])
    if "answer_right_ending" in document:
        return int(document["answer_right_ending"]) - 1
    if "option1" in document:
        return int(document["answer"]) - 1
    return int(document["answer"])


def acc_and_em(document: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Accuracy, and exact match under teacher forcing.

    Args:
        document: of the dataset.
        results: of each choice its log-likelihood, and whether each of its tokens is the most
            likely one after the prompt and the tokens before it.
    """
    values = [value for value, _ in results]
    right = gold(document)
    return {"acc": float(values.index(max(values)) == right), "em": float(results[right][1])}
