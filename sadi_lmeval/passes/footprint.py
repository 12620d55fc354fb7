"""What passes will compute and hold, told from a model without weights and from requests.

Rows and batches are those of the passes themselves: the same functions make them. It is taken that
the model takes rows with branches and passes that begin at a later layer (see ``branching.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from sadi_lmeval.architecture.sites import decoder_blocks
from sadi_lmeval.passes.activations import Labelled, rows_of
from sadi_lmeval.passes.batches import Bounds, Sized, batches
from sadi_lmeval.passes.packing import Continuation, pack_requests
from sadi_lmeval.passes.prefixes import LONGEST_MASKED, taken_from
from sadi_lmeval.passes.scoring import groups_of
from sadi_lmeval.passes.trunk import GridRow, alike

_TRIED = 8
"""Tokens of the pass that shows what a cache holds."""


class Computed(NamedTuple):
    """What is computed: passes of the model, and tokens in them, padding included."""

    passes: int = 0
    tokens: int = 0

    def plus(self, other: Computed) -> Computed:
        return Computed(self.passes + other.passes, self.tokens + other.tokens)


class Weights(NamedTuple):
    """Bytes of a model's parameters and buffers.

    Attributes:
        blocks: of each decoder block.
        rest: of embeddings, head and all else.
    """

    blocks: tuple[int, ...]
    rest: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest

    def devices(self, memory: int, beside: int, with_block: int = 0) -> int | None:
        """Count the devices that hold the blocks in their order, none of them divided.

        Args:
            memory: of a device, bytes.
            beside: what each needs beside the weights.
            with_block: what is kept where a block is, for each block.

        Returns:
            None where even a block alone is too large.
        """
        room = memory - beside
        count, left = 1, room - self.rest
        if left < 0:
            return None
        for block in (size + with_block for size in self.blocks):
            if block > room:
                return None
            if block > left:
                count, left = count + 1, room
            left -= block
        return count


def weights_of(model: Any) -> Weights:
    """Measure a model, on the ``meta`` device or on another; what is tied counts once."""

    def size(module: Any) -> int:
        tensors = [*module.parameters(), *module.buffers()]
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())

    blocks = tuple(size(block) for block in decoder_blocks(model))
    return Weights(blocks, size(model) - sum(blocks))


def key_value_bytes(model: Any) -> int:
    """Measure the keys and values of one token in all layers, by a pass of a model.

    Raises:
        RuntimeError: its pass does not run there, or it keeps something else.
    """
    ids = torch.zeros(1, _TRIED, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        # Of tokens some models look for padding among them, which needs values; of embeddings
        # others (Gemma 4) look for whose these are, which needs them too.
        states = model.get_input_embeddings()(ids)
        try:
            cache = model(inputs_embeds=states, use_cache=True).past_key_values
        except NotImplementedError:
            cache = model(input_ids=ids, use_cache=True).past_key_values
    text = model.config.get_text_config()
    # The last blocks of some models (Gemma 3n, Gemma 4) use those of earlier ones.
    own = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0)
    tensors = [each for layer in cache.layers[:own] for each in (layer.keys, layer.values)]
    total = sum(int(each.numel()) * int(each.element_size()) for each in tensors)
    return total // _TRIED


def beginnings(all_of_them: Iterable[Sequence[int]]) -> Computed:
    """Count what sequences take that are computed once for many, one after the other."""
    total = Computed()
    before: Sequence[int] = ()
    for tokens in all_of_them:
        if not tokens:
            continue
        known = taken_from(before, tokens)
        passes = -(-(len(tokens) - known) // LONGEST_MASKED) if known else 1
        total = total.plus(Computed(passes, len(tokens) - known))
        before = tokens
    return total


def _in_batches(gathered: Iterable[Sequence[Sized]]) -> Computed:
    sizes = [len(batch) * max(row.length for row in batch) for batch in gathered]
    return Computed(len(sizes), sum(sizes))


def scoring(requests: Sequence[Continuation], bounds: Bounds) -> Computed:
    """Count what the log-likelihoods of requests take."""
    groups = groups_of(requests, True)
    total = beginnings(requests[g.members[0]].context[: g.length] for g in groups)
    for group in groups:
        rows = pack_requests(requests, group, True)
        total = total.plus(_in_batches(batches(rows, bounds, group.length)))
    return total


class Grid(NamedTuple):
    """What requests take under many settings.

    Attributes:
        trunk: the pass that is shared.
        own: tokens that one setting computes anew, if it begins with the first layer.
        largest: tokens of the largest batch, and those of them that a setting computes anew.
    """

    trunk: Computed
    own: int
    largest: tuple[int, int]


def grid(requests: Sequence[Continuation], bounds: Bounds) -> Grid:
    """Count what requests take unsteered, and under one setting more."""
    requests = [Continuation(*request[:2]) for request in requests]
    groups = groups_of(requests, True)
    total = beginnings(requests[g.members[0]].context[: g.length] for g in groups)
    own, largest = 0, (0, 0)
    for group in groups:
        rows = [GridRow(row) for row in pack_requests(requests, group, True)]
        for batch in alike(rows, bounds, group.length):
            tokens = len(batch) * max(row.length for row in batch)
            anew = len(batch) * max(len(row.own) for row in batch)
            total = total.plus(Computed(1, tokens))
            own += anew
            largest = max(largest, (tokens, anew))
    return Grid(total, own, largest)


def reading(pairs: Sequence[Labelled], bounds: Bounds) -> Computed:
    """Count what the activations of pairs take."""
    parts = list(rows_of(pairs, True))
    total = beginnings(beginning for beginning, _ in parts)
    for beginning, rows in parts:
        total = total.plus(_in_batches(batches(rows, bounds, len(beginning))))
    return total


def longest_beginning(requests: Sequence[Continuation]) -> int:
    """Count the tokens of the longest beginning that is computed once for several prompts."""
    return max((group.length for group in groups_of(requests, True)), default=0)


def plain_tokens(requests: Sequence[Continuation]) -> int:
    """Count the tokens that ``hf`` computes, padding not counted.

    It computes once what differs in the last token alone.
    """
    return sum(map(len, {(*context, *tokens[:-1]) for context, tokens, _ in requests}))
