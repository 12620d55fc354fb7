"""Steered log-likelihoods: each distinct prompt once, with all its continuations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sadi_lmeval.batches import batches
from sadi_lmeval.forward import Forward, Steered
from sadi_lmeval.interventions.edit import Edits
from sadi_lmeval.positions import Points
from sadi_lmeval.prefixes import Group, group_by_prefix
from sadi_lmeval.sequences import Prefix, Tree, pack

Score = tuple[float, bool]
"""(summed log-probability of the continuation, whether greedy decoding would produce it)."""


class Continuation(NamedTuple):
    """A continuation to score after a prompt, and the edit that its prompt gets."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]
    edit: int


@dataclass
class _Row:
    """A packed row.

    Attributes:
        edited: (position, edit) of each last prompt token.
        scored: per request: its index, and the positions whose logits predict its tokens.
    """

    tree: Tree
    edited: list[tuple[int, int]] = field(default_factory=list)
    scored: list[tuple[int, list[int]]] = field(default_factory=list)


def truncated(
    context: list[int], continuation: list[int], max_length: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut a request from the left as the harness does: max_length + 1 tokens in all."""
    keep = max(1, max_length + 1 - len(continuation))
    return tuple(context[-keep:]), tuple(continuation)


def log_likelihoods(
    forward: Forward,
    requests: list[Continuation],
    edits: Edits | None,
    pad: int,
    branching: bool,
    most_rows: int | None,
    most_tokens: int,
    softmax_dtype: torch.dtype | None = None,
    done: Callable[[list[tuple[int, Score]]], None] = lambda scores: None,
) -> list[Score]:
    """Score continuations, each after its prompt's last token was edited.

    Only the last prompt token is edited, so whatever comes before it is computed once: a prompt
    for all its continuations, and what many prompts begin with for all of them. Requests of
    different tasks, folds and edits share batches. No logits are computed but those that predict
    a token of a continuation.

    Args:
        forward: the model.
        requests: already truncated; contexts and continuations are not empty.
        edits: the edits that ``requests`` name by index; None for an unsteered model.
        pad: the padding token.
        branching: whether the model takes packed rows with branches. If not, every distinct
            (prompt, continuation without its last token) is a row of its own.
        most_rows, most_tokens: the size of a batch, see :func:`batches`.
        softmax_dtype: of the log-softmax; None: that of the logits.
        done: told the index and score of requests as soon as they are scored.
    """
    scores: list[Score] = [(0.0, False)] * len(requests)
    contexts = [request.context for request in requests]
    groups = group_by_prefix(contexts) if branching else [Group(0, list(range(len(requests))))]
    for group in groups:
        past = forward.prefix(contexts[group.members[0]][: group.length])
        rows = _rows(requests, group, branching)
        for batch in batches(rows, lambda row: row.tree.length, most_rows, most_tokens):
            found = _score(forward, batch, requests, edits, past, pad, softmax_dtype)
            for index, score in found:
                scores[index] = score
            done(found)
    return scores


def _rows(requests: list[Continuation], group: Group, branching: bool) -> list[_Row]:
    """Pack requests that share a prompt (and, without branches, all but the last token)."""
    rows: dict[object, _Row] = {}
    prompts: dict[object, int] = {}  # (row, edit) -> segment of the last prompt token
    bodies: dict[object, list[int]] = {}  # (row, edit, body) -> positions that predict
    for index in group.members:
        context, tokens, edit = requests[index]
        body = tokens[:-1]
        key: object = context if branching else (context, edit, body)
        row = rows.get(key)
        if row is None:
            row = rows[key] = _Row(Tree(past=group.length))
            row.tree.add(list(context[group.length : -1]))
        if (key, edit) not in prompts:
            prompts[key, edit] = row.tree.add([context[-1]], 0)
            row.edited.append((row.tree.segments[-1].start, edit))
        last = prompts[key, edit]
        if (key, edit, body) not in bodies:
            branch = row.tree.segments[row.tree.add(list(body), last)] if body else None
            start = branch.start if branch else 0
            bodies[key, edit, body] = [
                row.tree.segments[last].start,
                *range(start, start + len(body)),
            ]
        row.scored.append((index, bodies[key, edit, body]))
    return list(rows.values())


def _score(
    forward: Forward,
    batch: list[_Row],
    requests: list[Continuation],
    edits: Edits | None,
    past: Prefix | None,
    pad: int,
    softmax_dtype: torch.dtype | None,
) -> list[tuple[int, Score]]:
    device = forward.device
    dtype = next(forward.model.parameters()).dtype
    inputs = pack([row.tree for row in batch], pad, dtype, device, past)
    steered = None
    if edits is not None:
        where = [(i, position, e) for i, row in enumerate(batch) for position, e in row.edited]
        steered = Steered(
            edits,
            Points.of([(i, position) for i, position, _ in where], len(batch), device),
            torch.tensor([e for _, _, e in where]),
        )
    wanted: dict[tuple[int, int], int] = {}
    for i, row in enumerate(batch):
        for _, positions in row.scored:
            for position in positions:
                wanted.setdefault((i, position), len(wanted))
    points = Points.of(list(wanted), len(batch), device)
    logits = forward.logits(inputs, points, steered)
    logps = logits.log_softmax(dim=-1, dtype=softmax_dtype)
    greedy = logits.argmax(dim=-1)
    found: list[tuple[int, Score]] = []
    for i, row in enumerate(batch):
        for index, positions in row.scored:
            at = torch.tensor([wanted[i, position] for position in positions], device=logits.device)
            tokens: Tensor = torch.tensor(requests[index].tokens, device=logits.device)
            score = float(logps[at, tokens].sum())
            found.append((index, (score, bool((greedy[at] == tokens).all()))))
    return found
