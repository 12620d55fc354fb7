"""Many settings at once: every request under every edit, for the price of what they change.

An edit changes nothing before the last prompt token, and nothing there below the first edited
layer. So one unsteered pass (the trunk) computes a prompt with its continuations and keeps its
keys, its values and what goes into the decoder blocks. Each edit then costs the last prompt token
and the tokens after it, from the first edited layer upwards; and where the last prompt token alone
is edited, in the last layer alone, that token, as no later one sees the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward, Resumed, Steered
from sadi_lmeval.passes.likelihood import Likelihood, likelihood
from sadi_lmeval.passes.memory import in_halves
from sadi_lmeval.passes.packing import Continuation, pack_requests
from sadi_lmeval.passes.scoring import groups_of, log_likelihoods
from sadi_lmeval.passes.sequences import Batch, Past, additive
from sadi_lmeval.passes.trunk import GridRow, GrownTrunk, alike, grow
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.types import Scope

_WIDEST = {"cpu": 256}
"""Tokens of a row that holds several settings: they do not see each other, so what attention
computes between them is wasted."""
_WIDEST_ELSEWHERE = 2048
_PASS = 32
"""What beginning another pass costs, in tokens."""
_PLAIN = 64
"""Requests that are scored under all settings before the next, where nothing is shared."""

Done = Callable[[list[int], Tensor, Tensor], None]
"""Takes request indices, and of them log-likelihoods and greediness ``[settings, requests]``."""


def grid_log_likelihoods(
    forward: Forward,
    requests: Sequence[Continuation],
    families: Sequence[Edits],
    pad: int,
    branching: bool,
    resuming: bool,
    bounds: Bounds,
    softmax_dtype: torch.dtype | None,
    done: Done,
    processes: Processes = ALONE,
) -> None:
    """Score each request unsteered and under each edit of each family.

    Args:
        forward: the model.
        requests: already truncated; their ``edit`` is not looked at.
        families: edits of one site each; setting 0 is the unsteered model, then come the edits of
            the first family, and so on.
        pad: the padding token.
        branching: whether the model takes packed rows with branches; if not, every setting is a
            plain pass of its own.
        resuming: whether a pass may begin at a later layer.
        bounds: the size of a batch.
        softmax_dtype: of the log-softmax; None: that of the logits.
        done: gets the scores of some requests under all settings as soon as they are there.
        processes: of the run, which may divide the batches; where they are more than there are
            batches, several of them share one, and divide its settings.
    """
    requests = [Continuation(context, tokens) for context, tokens, _ in requests]
    if not branching:
        _plainly(forward, requests, families, pad, bounds, softmax_dtype, done, processes)
        return
    first_layers = [_passes(family, resuming) for family in families]
    starts = {layer for layers in first_layers for layer in layers}

    def run(
        batch: list[GridRow], prefix: Callable[[], Past | None], number: int, of: int
    ) -> list[_Part]:
        past, found = prefix(), []

        def part(rows: list[GridRow]) -> None:
            trunk = grow(forward, rows, families, starts, pad, past, softmax_dtype)
            share = _Share(number, of)
            scores, run = [trunk.base], [torch.tensor([True])]
            for family, unsteered in zip(families, trunk.unsteered, strict=True):
                of_family, its = _family(
                    forward, trunk, family, unsteered, resuming, bounds, softmax_dtype, share
                )
                scores.append(of_family)
                run.append(its)
            likelihoods = Likelihood(*(torch.cat(parts) for parts in zip(*scores, strict=True)))
            for row in rows:
                row.forget()
            totals = trunk.table.totals(likelihoods)
            found.append(_Part(trunk.table.requests, *totals, torch.cat(run)))

        in_halves(batch, part)
        return found

    reads = [family.reads for family in families]

    def batches() -> Iterator[Callable[[int, int], list[_Part]]]:
        for group in groups_of(requests, branching):
            prefix = forward.prefix_of(requests[group.members[0]].context[: group.length], reads)
            rows = [GridRow(row) for row in pack_requests(requests, group, branching)]
            for batch in alike(rows, bounds, group.length):
                yield partial(run, batch, prefix)

    every: Iterable[Callable[[int, int], list[_Part]]] = batches()
    of = 1
    if processes.divide_batches:
        every = list(every)
        of = max(1, processes.count // max(1, len(every)))  # processes for each batch
    jobs = (partial(batch, number, of) for batch in every for number in range(of))
    results = processes.run(jobs)
    while parts := list(islice(results, of)):
        for scored in parts[0] if of == 1 else [_put_together(parts)]:
            done(scored.requests, scored.values, scored.greedy)


class _Part(NamedTuple):
    """What a process has scored of a batch.

    Attributes:
        requests: by index.
        values, greedy: log-likelihoods and greediness, ``[settings, requests]``.
        run: whether a setting is among those of this process, ``[settings]``.
    """

    requests: list[int]
    values: Tensor
    greedy: Tensor
    run: Tensor


class _Share:
    """A process's share of the passes over a batch: every ``of``-th, from one ``number`` on."""

    def __init__(self, number: int, of: int) -> None:
        self._number, self._of, self._passes = number, of, 0

    def takes_next(self) -> bool:
        """Return whether the next pass is this process's."""
        self._passes += 1
        return (self._passes - 1) % self._of == self._number


def _put_together(shares: Sequence[Sequence[_Part]]) -> _Part:
    """Put together what the processes that shared a batch have scored of it.

    Memory may have sufficed for it in one process, and for its halves alone in another.
    """
    columns: dict[int, tuple[Tensor, Tensor]] = {}
    for part in (part for share in shares for part in share):
        for column, request in enumerate(part.requests):
            own = part.values[:, column], part.greedy[:, column]
            known = columns.setdefault(request, own)
            columns[request] = (
                torch.where(part.run, own[0], known[0]),
                torch.where(part.run, own[1], known[1]),
            )
    values, greedy = zip(*columns.values(), strict=True)
    every = torch.ones(len(values[0]), dtype=torch.bool)
    return _Part(list(columns), torch.stack(values, dim=1), torch.stack(greedy, dim=1), every)


def _passes(family: Edits, resuming: bool) -> dict[int, list[int]]:
    """Group the edits of a family by the decoder block that their pass begins with."""
    passes: dict[int, list[int]] = {}
    for edit, layer in enumerate(family.first_layers):
        if layer < family.site.layers:
            passes.setdefault(family.site.blocks[layer] if resuming else 0, []).append(edit)
    return passes


def _merged(
    passes: dict[int, list[int]], layers: int, tokens: int, at_once: int
) -> list[tuple[int, list[int]]]:
    """Join edits that begin with different layers where a pass of their own costs more.

    Args:
        passes: edits by first layer.
        layers: of the model.
        tokens: of one edit.
        at_once: edits of one pass.
    """
    firsts = sorted(passes)
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the last i first layers, where it splits
    for begin in range(len(firsts) - 1, -1, -1):
        options = []
        count = 0
        for end in range(begin + 1, len(firsts) + 1):
            count += len(passes[firsts[end - 1]])
            cost = (layers - firsts[begin]) * (count * tokens + _PASS * -(-count // at_once))
            options.append((cost + best[len(firsts) - end][0], end))
        best.append(min(options))
    merged: list[tuple[int, list[int]]] = []
    begin = 0
    while begin < len(firsts):
        end = best[len(firsts) - begin][1]
        merged.append((firsts[begin], [e for first in firsts[begin:end] for e in passes[first]]))
        begin = end
    return merged


def _family(
    forward: Forward,
    trunk: GrownTrunk,
    family: Edits,
    unsteered: Tensor | None,
    resuming: bool,
    bounds: Bounds,
    softmax_dtype: torch.dtype | None,
    share: _Share,
) -> tuple[Likelihood, Tensor]:
    """Give the likelihood of every scored token under every edit of a family, ``[edits, m]``.

    Those of another process's passes are the unsteered model's.

    Returns:
        also, which edits were this process's, ``[edits]``.
    """
    mine = torch.zeros(family.count, dtype=torch.bool)
    values = trunk.base.log_probability.repeat(family.count, 1)
    greedy = trunk.base.greedy.repeat(family.count, 1)
    last = len(forward.blocks) - 1
    passes = _passes(family, resuming)
    # Only the edited tokens themselves see an edit of the last layer.
    apart = family.scope == "prompt"
    for alone, part in (
        (True, {layer: edits for layer, edits in passes.items() if apart and layer == last}),
        (False, {layer: edits for layer, edits in passes.items() if not apart or layer != last}),
    ):
        if not part:
            continue
        branch = _Branch(trunk, family.scope, alone)
        tokens = len(trunk.batch) * branch.width
        widest = _WIDEST.get(forward.device.type, _WIDEST_ELSEWHERE)
        at_once = max(
            1,
            min(
                widest // branch.width,
                bounds.tokens // tokens,
                bounds.scored // max(1, len(branch.places)),
                bounds.mask // (tokens * (branch.length + widest)),
            ),
        )
        for layer, edits in _merged(part, last + 1, tokens, at_once):

            def run(which: list[int], branch: _Branch = branch, layer: int = layer) -> None:
                scores = branch.run(forward, trunk, family, which, layer, unsteered, softmax_dtype)
                if len(which) > 1 and not scores.log_probability.isfinite().all():
                    # What is not finite spreads to its neighbours, even where attention is zero.
                    for edit in which:
                        run([edit])
                    return
                where = torch.tensor(which)[:, None], branch.changed[None]
                shut = branch.shut(family, which, unsteered)
                if shut is None:
                    values[where], greedy[where] = scores
                    return
                # Where nothing is written, the trunk's own bits: a resumed pass rounds otherwise.
                values[where] = torch.where(shut, values[where], scores.log_probability)
                greedy[where] = torch.where(shut, greedy[where], scores.greedy)

            for first in range(0, len(edits), at_once):
                if share.takes_next():
                    in_halves(edits[first : first + at_once], run)
                    mine[edits[first : first + at_once]] = True
    return Likelihood(values, greedy), mine


class _Branch:
    """The tokens of a batch that an edit changes, as they are repeated for every edit.

    Attributes:
        width: tokens of a row for one edit.
        take, among: of each of them the position in its row, and its index among the row's own
            tokens, ``[batch, width]``.
        edited: (row, index of an own token) of each point that is edited.
        of_point: of each of those, which of the batch's last prompt tokens it belongs to.
        places: (row, index of an own token) of each point with logits.
        changed: which scored tokens those points predict, ``[k]``.
        prompt_of: of each of those, after which of the batch's last prompt tokens it comes.
    """

    def __init__(self, trunk: GrownTrunk, scope: Scope, prompts_alone: bool) -> None:
        own = [sorted(row.prompts) if prompts_alone else row.own for row in trunk.batch]
        index = [{position: i for i, position in enumerate(o)} for o in own]
        self.width = max(len(o) for o in own)
        batch = len(own)
        before = trunk.pass_.past.length - trunk.inputs.input_ids.shape[1]
        # Tokens before the branch: up to the last that is no row's own.
        context = [
            max(set(range(row.length)) - set(row.own), default=-1) + 1 for row in trunk.batch
        ]
        self.length = before + max(context)
        self.take = torch.zeros(batch, self.width, dtype=torch.long)
        self.among = torch.zeros(batch, self.width, dtype=torch.long)
        self.depths = torch.zeros(batch, self.width, dtype=torch.long)
        self.sees = torch.zeros(batch, self.width, self.length, dtype=torch.bool)
        self.within = torch.eye(self.width, dtype=torch.bool).repeat(batch, 1, 1)
        for i, (row, positions) in enumerate(zip(trunk.batch, own, strict=True)):
            n = len(positions)
            take = torch.tensor(positions)
            number_of = {position: j for j, position in enumerate(row.own)}
            self.among[i, :n] = torch.tensor([number_of[position] for position in positions])
            self.take[i, :n], self.depths[i, :n] = take, row.depths[take]
            visible = row.visible[take]
            seen = visible.clone()
            seen[:, row.own] = False
            self.sees[i, :, :before] = True
            reach = min(row.length, self.length - before)
            self.sees[i, :n, before : before + reach] = seen[:, :reach]
            self.within[i, :n, :n] = visible[:, take]
        self.edited = [
            (i, index[i][position])
            for i, row in enumerate(trunk.batch)
            for position in (own[i] if scope == "onwards" else sorted(row.prompts))
        ]
        prompts = [(i, p) for i, row in enumerate(trunk.batch) for p in sorted(row.prompts)]
        place = {prompt: k for k, prompt in enumerate(prompts)}
        self.of_point = torch.tensor(
            [place[i, trunk.batch[i].prompt_of[own[i][j]]] for i, j in self.edited],
            dtype=torch.long,
        )
        number = {}
        self.places: list[tuple[int, int]] = []
        for point, (i, position) in enumerate(trunk.table.places):
            if position in index[i]:
                number[point] = len(self.places)
                self.places.append((i, index[i][position]))
        at = trunk.table.at.tolist()
        changed = [m for m, point in enumerate(at) if point in number]
        self.changed = torch.tensor(changed)
        self.at = torch.tensor([number[at[m]] for m in changed])
        self.tokens = trunk.table.tokens[self.changed]
        points = [trunk.table.places[at[m]] for m in changed]
        self.prompt_of = torch.tensor(
            [place[i, trunk.batch[i].prompt_of[position]] for i, position in points],
            dtype=torch.long,
        )

    def shut(self, family: Edits, which: list[int], unsteered: Tensor | None) -> Tensor | None:
        """Say where a gate of 0 leaves scored tokens unsteered, ``[edits, k]``; None: no gate."""
        table = None if unsteered is None or not family.gated else family.gates(unsteered)
        return None if table is None else table.cpu()[self.prompt_of][:, which].T == 0

    def run(
        self,
        forward: Forward,
        trunk: GrownTrunk,
        family: Edits,
        which: list[int],
        layer: int,
        unsteered: Tensor | None,
        softmax_dtype: torch.dtype | None,
    ) -> Likelihood:
        """Run one pass: the branch under several edits side by side, ``[edits, k]``."""
        count, batch = len(which), len(self.take)
        device = forward.device
        rows = torch.arange(batch)[:, None]
        take = self.take.to(device)
        edit = torch.arange(count).repeat_interleave(self.width)
        same = edit[:, None] == edit  # a setting's tokens see no other setting's
        seen = torch.cat(
            [
                self.sees.repeat(1, count, 1),
                self.within.repeat(1, count, count) & same,
            ],
            dim=-1,
        )
        inputs = Batch(
            trunk.inputs.input_ids[rows.to(device), take].repeat(1, count),
            additive(seen, forward.dtype).unsqueeze(1).to(device),
            self.depths.repeat(1, count).to(device),
            trunk.pass_.past.up_to(self.length) if self.length else None,
        )
        edited = [(i, s * self.width + j) for s in range(count) for i, j in self.edited]
        steered = Steered(
            family,
            Points.of(edited, batch, device),
            torch.tensor(which).repeat_interleave(len(self.edited)),
            of_point=self.of_point.repeat(count),
            unsteered=unsteered,
        )
        resumed = None
        if layer:
            states = trunk.pass_.states[layer]
            kept = states[rows.to(states.device), self.among.to(states.device)]
            resumed = Resumed(layer, kept.repeat(1, count, 1))
        places = [(i, s * self.width + j) for s in range(count) for i, j in self.places]
        logits = forward.logits(inputs, Points.of(places, batch, device), steered, resumed)
        offsets = torch.arange(count)[:, None] * len(self.places)
        flat = likelihood(
            logits, (self.at + offsets).flatten(), self.tokens.repeat(count), softmax_dtype
        )
        return Likelihood(*(part.view(count, -1) for part in flat))


def _plainly(
    forward: Forward,
    requests: list[Continuation],
    families: Sequence[Edits],
    pad: int,
    bounds: Bounds,
    softmax_dtype: torch.dtype | None,
    done: Done,
    processes: Processes,
) -> None:
    settings: list[tuple[Edits | None, int]] = [(None, 0)]
    settings += [(family, edit) for family in families for edit in range(family.count)]
    for first in range(0, len(requests), _PLAIN):
        part = requests[first : first + _PLAIN]
        jobs = (
            partial(
                log_likelihoods,
                forward,
                [request._replace(edit=edit) for request in part],
                family,
                pad,
                False,
                bounds,
                softmax_dtype,
            )
            for family, edit in settings
        )
        scores = list(processes.run(jobs))
        wide = torch.float32 if softmax_dtype is None else softmax_dtype
        values = torch.tensor([[value for value, _ in row] for row in scores], dtype=wide)
        greedy = torch.tensor([[flag for _, flag in row] for row in scores])
        done(list(range(first, first + len(part))), values, greedy)
