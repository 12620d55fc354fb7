"""Requests packed into rows: what several of them begin with stands in a row once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sadi_lmeval.passes.prefixes import Group, shared_length
from sadi_lmeval.passes.sequences import Tree

UNSTEERED = -1
"""The edit of a prompt that gets none."""

_LONGEST_ROW = 512
"""Tokens of a packed row; a longer prompt has a row with as much of its continuations."""
_SHARED_PART = 0.5
"""The part of a prompt that it must share with its neighbour to stand in the same row."""


class Continuation(NamedTuple):
    """A continuation to score after a prompt, and the edit that its prompt gets."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]
    edit: int = UNSTEERED


class Entry(NamedTuple):
    """A token to score: of which request, where it is predicted, and the token."""

    request: int
    position: int
    token: int


@dataclass
class Row:
    """A packed row.

    Attributes:
        tree: its tokens.
        edited: (position, edit) of each last prompt token.
        following: (position, edit, position of the last prompt token before it) of each token
            after one, with the edit of that one.
        entries: the tokens to score.
    """

    tree: Tree
    edited: list[tuple[int, int]] = field(default_factory=list)
    following: list[tuple[int, int, int]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.tree.length

    @property
    def scored(self) -> int:
        """Positions whose logits are needed."""
        return len({entry.position for entry in self.entries})

    @property
    def is_masked(self) -> bool:
        return not self.tree.is_path


def pack_requests(requests: Sequence[Continuation], group: Group, branching: bool) -> list[Row]:
    """Pack requests that all begin with the first ``group.length`` tokens.

    Args:
        requests: all requests.
        group: which of them to pack.
        branching: whether the model takes rows with branches. If not, every distinct (prompt,
            edit, continuation without its last token) is a row of its own.
    """
    if branching:
        return [_packed(requests, members, group.length) for members in _shared(requests, group)]
    paths: dict[object, list[int]] = {}
    for index in group.members:
        context, tokens, edit = requests[index]
        paths.setdefault((context, edit, tokens[:-1]), []).append(index)
    return [_packed(requests, members, group.length) for members in paths.values()]


def _shared(requests: Sequence[Continuation], group: Group) -> Iterator[list[int]]:
    """Yield requests whose prompts are alike enough to stand in one row."""
    members = sorted(group.members, key=lambda i: requests[i])
    row: list[int] = []
    length = answers = 0  # tokens of the row, and those after the prompt where it has but one
    for index in members:
        context, tokens, _ = requests[index]
        own = len(context) - group.length
        before = requests[row[-1]].context if row else ()
        common = shared_length(before, context)
        # A last prompt token may be edited: another prompt that goes on has its own.
        shared = max(0, min(common, len(before) - 1, len(context) - 1) - group.length)
        more = len(tokens) if before == context else own - shared + len(tokens) - 1
        one = bool(row) and before == context and requests[row[0]].context == context
        fits = answers + more <= _LONGEST_ROW if one else length + more <= _LONGEST_ROW
        alike = before == context or common - group.length >= _SHARED_PART * own
        if row and not (alike and fits):
            yield row
            row, length = [], 0
            more = own + len(tokens) - 1
            one = False
        answers = answers + more if one else len(tokens)
        row.append(index)
        length += more
    if row:
        yield row


_EDITED = 1 << 40
"""Above all tokens. In a path, the last prompt token under edit e has ``(e + 2) * _EDITED``
added, so that it is another one than the same token anywhere else. (Pairs of token and edit would
have the garbage collector look at every token of a run.)"""


def _packed(requests: Sequence[Continuation], members: list[int], past: int) -> Row:
    """Make a trie of token sequences, in which last prompt tokens differ by their edits."""
    paths: list[tuple[tuple[int, ...], int]] = []
    for index in members:
        context, tokens, edit = requests[index]
        last = context[-1] + (edit + 2) * _EDITED
        paths.append(((*context[past:-1], last, *tokens[:-1]), index))
    paths.sort()
    row = Row(Tree(past=past))
    # depth of what is placed, the members that share it, their positions so far, and the last
    # prompt token among these with its edit
    waiting: list[tuple[int, int, int, int, list[int], tuple[int, int] | None]] = [
        (0, 0, len(paths), -1, [], None)
    ]
    while waiting:
        depth, first, last, parent, positions, under = waiting.pop()
        end = shared_length(paths[first][0], paths[last - 1][0], depth)
        if end > depth:
            run = paths[first][0][depth:end]
            parent = row.tree.add([token % _EDITED for token in run], parent)
            start = row.tree.segments[parent].start
            positions = [*positions, *range(start, start + len(run))]
            edited = [place for place, token in enumerate(run) if token >= _EDITED]
            begin = 0 if under is not None else [*edited, len(run)][0]
            for position, token in enumerate(run[begin:], start=start + begin):
                if token >= _EDITED:
                    under = position, token // _EDITED - 2
                    row.edited.append(under)
                elif under is not None:
                    row.following.append((position, under[1], under[0]))
        while first < last and len(paths[first][0]) == end:
            index = paths[first][1]
            tokens = requests[index].tokens
            where = positions[end - len(tokens) :]
            row.entries += [Entry(index, p, t) for p, t in zip(where, tokens, strict=True)]
            first += 1
        branches: list[tuple[int, int, int, int, list[int], tuple[int, int] | None]] = []
        while first < last:
            next_token = paths[first][0][end]
            after = first
            while after < last and paths[after][0][end] == next_token:
                after += 1
            branches.append((end, first, after, parent, positions, under))
            first = after
        waiting += reversed(branches)
    return row
