"""Prompts that begin alike: few-shot examples, a primer, a chat header, a shared passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SHORTEST = 16
"""Tokens below which sharing costs more than it saves."""
_FEWEST = 4
"""Prompts below which a shared beginning is not worth batches of its own."""

LONGEST_MASKED = 1024
"""Tokens of a prompt beyond what others share in a row that brings an attention mask, which is as
large as the row is long, squared. What comes before is computed alone: no mask is needed there."""
_DEEPEST = 64
"""Splits within splits after which a group is left as it is."""


def shared_length(one: Sequence[object], other: Sequence[object], start: int = 0) -> int:
    """Say up to where two sequences are the same; they are known to be up to ``start``."""
    most = min(len(one), len(other))
    if one is other:
        return most
    if type(one) is not type(other):  # whose slices are never equal
        one, other = tuple(one), tuple(other)
    length = start
    step = 16
    while length < most and one[length : length + step] == other[length : length + step]:
        length, step = length + step, 2 * step
    if length >= most:
        return most
    differs = min(most, length + step)
    if one[length:differs] == other[length:differs]:
        return differs
    while differs - length > 1:
        middle = (length + differs) // 2
        if one[length:middle] == other[length:middle]:
            length = middle
        else:
            differs = middle
    return length


def taken_from(before: Sequence[int], tokens: Sequence[int]) -> int:
    """Say how many tokens of a beginning are taken from the one that was computed before it."""
    known = shared_length(before, tokens)
    # From the first token on no mask is needed.
    worth = known >= SHORTEST and len(tokens) - known <= max(known, LONGEST_MASKED)
    return known if worth else 0


class Group(NamedTuple):
    """Sequences that share a beginning.

    Attributes:
        length: tokens that all members share and that are computed once; may be 0.
        members: indices of the sequences.
    """

    length: int
    members: list[int]


def group_by_prefix(sequences: Sequence[Sequence[int]]) -> list[Group]:
    """Split sequences into groups by beginnings that are worth computing once.

    A group is split further where some of its members share at least as many tokens again as it
    would gain by batching them with the others (5-shot prompts of several subjects share a
    header, those of one subject share their examples). No sequence is shared to its end: at
    least its last token is left. Equal sequences count as one: they stand in one row anyway.

    A sequence of which more than :data:`LONGEST_MASKED` tokens would be left gets a group of its
    own, in which all but its last token are computed once.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        alike.setdefault(tuple(sequence), []).append(index)
    distinct = sorted(alike)
    groups = _split(distinct, list(range(len(distinct))), 0) if distinct else []
    groups = [part for group in groups for part in _long_ones_apart(distinct, group)]
    return [
        Group(group.length, [i for member in group.members for i in alike[distinct[member]]])
        for group in groups
    ]


def _split(
    sequences: Sequence[Sequence[int]], members: list[int], known: int, level: int = 0
) -> list[Group]:
    """Split sorted ``members``; their first ``known`` tokens are shared, and worth sharing."""
    length = _common(sequences, members)
    base = length if length - known >= SHORTEST and len(members) > 1 else known
    groups: list[Group] = []
    rest: list[int] = []
    run: list[int] = []
    for member in [*members, -1]:
        if run and (
            member < 0 or _next(sequences[member], length) != _next(sequences[run[0]], length)
        ):
            inside = _common(sequences, run)
            deep = level == _DEEPEST
            if (
                not deep
                and len(run) >= _FEWEST
                and len(run) < len(members)
                and inside >= base + SHORTEST
            ):
                groups += _split(sequences, run, base, level + 1)
            elif not deep and len(run) >= 2 * _FEWEST and len(run) < len(members):
                groups_inside = _split(sequences, run, base, level + 1)
                groups += [g for g in groups_inside if g.length > base]
                rest += [i for g in groups_inside if g.length == base for i in g.members]
            else:
                rest += run
            run = []
        run.append(member)
    if rest:
        groups.append(Group(base, rest))
    return groups


def _long_ones_apart(sequences: Sequence[Sequence[int]], group: Group) -> list[Group]:
    own = {member: len(sequences[member]) - group.length for member in group.members}
    rest = [member for member in group.members if own[member] <= LONGEST_MASKED]
    long = [member for member in group.members if own[member] > LONGEST_MASKED]
    apart = [Group(len(sequences[member]) - 1, [member]) for member in long]
    return [Group(group.length, rest), *apart] if rest else apart


def _next(sequence: Sequence[int], position: int) -> int:
    return sequence[position] if position < len(sequence) else -1


def _common(sequences: Sequence[Sequence[int]], members: list[int]) -> int:
    """Count tokens that sorted members share, their last tokens excepted: first against last."""
    first, last = sequences[members[0]], sequences[members[-1]]
    most = min(len(sequences[i]) for i in members) - 1
    return min(most, shared_length(first, last))
