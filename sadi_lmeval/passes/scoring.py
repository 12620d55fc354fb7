"""Steered log-likelihoods: each distinct prompt once, with all its continuations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.batches import Bounds, batches
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.likelihood import Likelihood, likelihood
from sadi_lmeval.passes.memory import in_halves
from sadi_lmeval.passes.packing import UNSTEERED, Continuation, Row, pack_requests
from sadi_lmeval.passes.prefixes import Group, group_by_prefix
from sadi_lmeval.passes.sequences import Past, pack
from sadi_lmeval.processes import ALONE, Processes

Score = tuple[float, bool]
"""(summed log-probability of the continuation, whether greedy decoding would produce it)."""
_Scores = list[list[tuple[int, Score]]]
"""Of each part of a batch the indices and scores of its requests."""


def truncated(
    context: list[int], continuation: list[int], max_length: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut a request from the left as the harness does: max_length + 1 tokens in all.

    Of a continuation that is longer than the model's length alone its beginning is kept.
    """
    continuation = continuation[:max_length]
    keep = max(1, max_length + 1 - len(continuation))
    return tuple(context[-keep:]), tuple(continuation)


def log_likelihoods(
    forward: Forward,
    requests: Sequence[Continuation],
    edits: Edits | None,
    pad: int,
    branching: bool,
    bounds: Bounds,
    softmax_dtype: torch.dtype | None = None,
    done: Callable[[list[tuple[int, Score]]], None] = lambda scores: None,
    processes: Processes = ALONE,
) -> list[Score]:
    """Score continuations, each after its prompt's last token was edited.

    Nothing before the last prompt token is edited, so whatever comes there is computed once: a
    prompt for all its continuations, and what many prompts begin with for all of them. Requests
    of different tasks, folds and edits share batches. No logits are computed but those that predict
    a token of a continuation.

    Args:
        forward: the model.
        requests: already truncated; contexts and continuations are not empty.
        edits: the edits that ``requests`` name by index; None for an unsteered model.
        pad: the padding token.
        branching: whether the model takes packed rows with branches. If not, every distinct
            (prompt, continuation without its last token) is a row of its own.
        bounds: the size of a batch.
        softmax_dtype: of the log-softmax; None: that of the logits.
        done: gets the index and score of requests as soon as they are scored.
        processes: of the run, which may divide the batches.
    """
    scores: list[Score] = [(0.0, False)] * len(requests)

    def run(batch: list[Row], length: int, prefix: Callable[[], Past | None]) -> _Scores:
        past, found = prefix(), []

        def part(rows: list[Row]) -> None:
            scored = _score(forward, rows, edits, past, pad, softmax_dtype)
            if again := _beside_others(rows, scored):
                # What is not finite spreads to its neighbours, even where attention is zero.
                alone = [Group(length, [index]) for index in again]
                rows = [row for each in alone for row in pack_requests(requests, each, branching)]
                own = dict(_score(forward, rows, edits, past, pad, softmax_dtype))
                scored = [(index, own.get(index, score)) for index, score in scored]
            found.append(scored)

        in_halves(batch, part)
        return found

    reads = [] if edits is None else [edits.reads]

    def jobs() -> Iterator[Callable[[], _Scores]]:
        for group in groups_of(requests, branching):
            prefix = forward.prefix_of(requests[group.members[0]].context[: group.length], reads)
            rows = pack_requests(requests, group, branching)
            for batch in batches(rows, bounds, group.length):
                yield partial(run, batch, group.length, prefix)

    for found in processes.run(jobs()):
        for scored in found:
            for index, score in scored:
                scores[index] = score
            done(scored)
    return scores


def groups_of(requests: Sequence[Continuation], branching: bool) -> list[Group]:
    """Group requests whose prompts begin with something that is worth computing once for all."""
    if not branching:
        return [Group(0, list(range(len(requests))))] if requests else []
    return group_by_prefix([request.context for request in requests])


def _beside_others(batch: Sequence[Row], scored: Sequence[tuple[int, Score]]) -> list[int]:
    """List the requests without a finite score that stand in a row with other prompts."""
    beside = {e.request for row in batch if len(row.edited) > 1 for e in row.entries}
    return [index for index, (value, _) in scored if not math.isfinite(value) and index in beside]


def _score(
    forward: Forward,
    batch: list[Row],
    edits: Edits | None,
    past: Past | None,
    pad: int,
    softmax_dtype: torch.dtype | None,
) -> list[tuple[int, Score]]:
    inputs = pack([row.tree for row in batch], pad, forward.dtype, forward.device, past)
    steered = None if edits is None else _steered(batch, edits, forward.device)
    table = Scored(batch)
    logits = forward.logits(inputs, table.points(forward.device), steered)
    likelihoods = likelihood(logits, table.at, table.tokens, softmax_dtype)
    return list(zip(table.requests, table.sums(likelihoods), strict=True))


def _steered(batch: list[Row], edits: Edits, device: torch.device) -> Steered | None:
    """Say where the rows of a batch are edited; None where nowhere."""
    prompts = [(i, p) for i, row in enumerate(batch) for p, e in row.edited if e != UNSTEERED]
    if not prompts:
        return None
    number = {place: index for index, place in enumerate(prompts)}
    where = [
        (i, position, edit, number[i, prompt])
        for i, row in enumerate(batch)
        for position, edit, prompt in (
            *((position, edit, position) for position, edit in row.edited),
            *(row.following if edits.scope == "onwards" else ()),
        )
        if edit != UNSTEERED
    ]
    return Steered(
        edits,
        Points.of([(i, position) for i, position, *_ in where], len(batch), device),
        torch.tensor([edit for *_, edit, _ in where]),
        Points.of(prompts, len(batch), device),
        torch.tensor([prompt for *_, prompt in where]),
    )


class Scored:
    """Which logits of a batch say what of which request.

    Attributes:
        places: (row, position) of each point whose logits are needed, ascending.
        requests: the requests of the batch, each once.
        at: of each scored token, the index of its point, ``[m]`` ascending.
        tokens: the scored tokens, ``[m]``.
        of: of each scored token, the index of its request in ``requests``, ``[m]``.
    """

    def __init__(self, batch: Sequence[Row]) -> None:
        entries = sorted(
            (i, entry.position, entry.token, entry.request)
            for i, row in enumerate(batch)
            for entry in row.entries
        )
        self.places = list(dict.fromkeys((i, position) for i, position, _, _ in entries))
        index_of = {place: index for index, place in enumerate(self.places)}
        self.requests = list(dict.fromkeys(request for *_, request in entries))
        number_of = {request: number for number, request in enumerate(self.requests)}
        self.at = torch.tensor([index_of[i, position] for i, position, _, _ in entries])
        self.tokens = torch.tensor([token for _, _, token, _ in entries])
        self.of = torch.tensor([number_of[request] for *_, request in entries])
        self.batch = len(batch)

    def points(self, device: torch.device) -> Points:
        return Points.of(self.places, self.batch, device)

    def totals(self, likelihoods: Likelihood) -> tuple[Tensor, Tensor]:
        """Give the summed log-probability and the greediness of each request.

        Args:
            likelihoods: of the scored tokens, ``[..., m]`` each.

        Returns:
            ``[..., requests]`` each, the first in the type of the log-probabilities.
        """
        values = likelihoods.log_probability
        shape = (*values.shape[:-1], len(self.requests))
        wide = values.new_zeros(shape, dtype=torch.promote_types(values.dtype, torch.float32))
        total = wide.index_add(-1, self.of, values.to(wide.dtype))
        misses = torch.zeros(shape).index_add(-1, self.of, (~likelihoods.greedy).float())
        return total.to(values.dtype), misses == 0

    def sums(self, likelihoods: Likelihood) -> list[Score]:
        total, greedy = self.totals(likelihoods)
        return list(zip(total.tolist(), greedy.tolist(), strict=True))
