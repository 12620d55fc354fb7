"""What a recipe makes of a task's documents, for people to look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from sadi_lmeval.harness.run_task import Text
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.passes.prefixes import shared_length

_FEW_LABELS = 10
"""Different answers up to which a set of them counts as labels."""
_LOPSIDED = 0.8
"""Share of pairs in which one side is the longer one, from which it is worth a warning."""


class Balance(NamedTuple):
    """How alike the two sides of some pairs are, but for what they say.

    Attributes:
        pairs: how many there are.
        positive_length, negative_length: mean characters of the answers.
        positive_longer, negative_longer: share of the pairs.
        positive_labels, negative_labels: how often each answer stands there; none where there
            are more than ten different ones.
    """

    pairs: int
    positive_length: float
    negative_length: float
    positive_longer: float
    negative_longer: float
    positive_labels: dict[str, int]
    negative_labels: dict[str, int]


def balance(pairs: Sequence[Pair]) -> Balance:
    """Measure lengths and labels of the sides of pairs; there is at least one."""
    answers = [(pair.positive[1].strip(), pair.negative[1].strip()) for pair in pairs]
    labels = [Counter(each) for each in zip(*answers, strict=True)]
    few = len(labels[0] | labels[1]) <= _FEW_LABELS
    return Balance(
        len(pairs),
        fmean(len(positive) for positive, _ in answers),
        fmean(len(negative) for _, negative in answers),
        fmean(len(positive) > len(negative) for positive, negative in answers),
        fmean(len(positive) < len(negative) for positive, negative in answers),
        dict(labels[0].most_common()) if few else {},
        dict(labels[1].most_common()) if few else {},
    )


def warnings(pairs: Sequence[Pair]) -> Iterator[str]:
    """Tell what may make the difference between the sides something else than right and wrong."""
    sides = balance(pairs)
    if len({pair.positive[1] for pair in pairs}) == 1 and len(pairs) > 1:
        yield f"every positive answer is the same: {pairs[0].positive[1].strip()!r}"
    if len({pair.negative[1] for pair in pairs}) == 1 and len(pairs) > 1:
        yield f"every negative answer is the same: {pairs[0].negative[1].strip()!r}"
    for side, share in (("positive", sides.positive_longer), ("negative", sides.negative_longer)):
        if share >= _LOPSIDED:
            yield f"the {side} answer is the longer one in {share:.0%} of the pairs"
    apart = sum(pair.positive[0] != pair.negative[0] for pair in pairs)
    if apart:
        yield f"{apart} pairs have two different prompts"
    same = sum(pair.positive == pair.negative for pair in pairs)
    if same:
        yield f"{same} pairs have the same text on both sides"


def marked(positive: Text, negative: Text) -> tuple[str, str]:
    """Give both answers, the words that differ between them in «guillemets»."""
    one, other = (re.findall(r"\s*\S+", text) for text in (positive[1], negative[1]))
    begin = shared_length(one, other)
    end = shared_length(one[begin:][::-1], other[begin:][::-1])
    return _marked(one, begin, end), _marked(other, begin, end)


def _marked(words: Sequence[str], begin: int, end: int) -> str:
    stop = len(words) - end
    differs = "".join(words[begin:stop])
    space = differs[: len(differs) - len(differs.lstrip())]
    before, after = "".join(words[:begin]), "".join(words[stop:])
    return f"{before}{space}«{differs.lstrip()}»{after}"


def line_of(pair: Pair, task: str, origin: str) -> dict[str, Any]:
    """Write a pair as a JSON object."""
    return {
        "task": task,
        "pairs_from": origin,
        "prompt": pair.positive[0],
        "positive": pair.positive[1],
        "negative": pair.negative[1],
        **({} if pair.positive[0] == pair.negative[0] else {"negative_prompt": pair.negative[0]}),
        "document": pair.known_as.content,
    }
