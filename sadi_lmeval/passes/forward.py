"""One forward pass: activations read or edited at points, logits only where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sadi_lmeval.architecture.hooks import keeping, passing_over, visiting
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.signature import cache_parameter, use_cache
from sadi_lmeval.architecture.sites import Site, decoder_blocks, input_device
from sadi_lmeval.edits.contract import Collected, Edits, Reads, RowRule, reading
from sadi_lmeval.passes.prefixes import LONGEST_MASKED, taken_from
from sadi_lmeval.passes.sequences import Batch, Past, Tree, pack


class Steered(NamedTuple):
    """Where a batch is edited: edit ``which[i]`` of ``edits`` at point i.

    Attributes:
        prompts: the k last prompt tokens that the points belong to; None: the points themselves.
        of_point: which of them each point belongs to, ``[n]``; None: k = n, in order.
        unsteered: activations of those tokens in an unsteered pass, and the means over prompts that
            the edits need, ``[k, layers + means, width]``; None: an unsteered pass comes first
            where the edits need them.
        gates: the gate of each point, ``[n]``, where it is known; else from ``unsteered``.
        rule: the row rule of the points, where it is made once for many passes.
    """

    edits: Edits
    points: Points
    which: Tensor
    prompts: Points | None = None
    of_point: Tensor | None = None
    unsteered: Tensor | None = None
    gates: Tensor | None = None
    rule: RowRule | None = None


class Resumed(NamedTuple):
    """Where a pass begins: ``states`` ``[batch, seq, hidden]`` go into block ``layer``."""

    layer: int
    states: Tensor


class Trunk(NamedTuple):
    """What an unsteered pass leaves for steered ones to go on from.

    Attributes:
        logits: ``[n, vocab]`` at the points.
        past: keys and values of every token, those of the batch's own past included.
        states: what goes into the decoder blocks that were asked for, at the positions that were,
            ``[batch, n, hidden]`` each.
    """

    logits: Tensor
    past: Past
    states: dict[int, Tensor]


class Forward:
    """A causal language model as a function of packed batches."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        """
        Args:
            model: the causal language model.
            autocast: mixed precision of the forward pass, or None.
        """
        self.model = model
        self.autocast = autocast
        self.device, self.dtype = input_device(model), next(model.parameters()).dtype
        self._in_tuple = False
        self._prefixes: list[tuple[Sequence[int], frozenset[tuple[Site, int]]]] = []
        self._last_prefix: tuple[int, Past | None] = (-1, None)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        return decoder_blocks(self.model)

    @cached_property
    def _cache_parameter(self) -> str:
        return cache_parameter(self.model)

    @cached_property
    def _takes_use_cache(self) -> bool:
        return bool(use_cache(self.model, True))

    def logits(
        self,
        batch: Batch,
        points: Points,
        steered: Steered | None = None,
        resumed: Resumed | None = None,
    ) -> Tensor:
        """Compute logits ``[n, vocab]`` at n points, steered if asked.

        Where the edits need unsteered activations that are not known, an unsteered pass comes first
        (SADI's reference code scales the values of a plain forward pass; gates are read there).
        """
        with ExitStack() as stack:
            if steered is not None:
                start = 0 if resumed is None else resumed.layer
                stack.enter_context(_steering(self._with_unsteered(batch, steered), start))
            if resumed is not None and resumed.layer:
                over = self.blocks[: resumed.layer]
                stack.enter_context(passing_over(over, resumed.states, self._in_tuple))
            return self._run(batch, points)

    def grow(
        self, batch: Batch, points: Points, steered: Steered | None = None
    ) -> tuple[Tensor, Past, Tensor | None]:
        """Compute logits ``[n, vocab]`` at n points, and keep what later tokens see.

        Returns:
            the logits; keys and values of every token, those of the batch's own past included; and
            the unsteered activations that the edits needed, see :class:`Steered`, or None.
        """
        cache = cache_of(batch.past, len(batch.input_ids))
        with ExitStack() as stack:
            if steered is not None:
                steered = self._with_unsteered(batch, steered)
                stack.enter_context(_steering(steered))
            logits = self._run(batch, points, cache)
        return logits, _past(cache), None if steered is None else steered.unsteered

    def step(
        self, batch: Batch, cache: DynamicCache, points: Points, steered: Steered | None = None
    ) -> Tensor:
        """Compute logits ``[n, vocab]`` of tokens that follow what a cache holds, and add to it.

        Args:
            steered: with its gates, where the edits have some.
        """
        with ExitStack() as stack:
            if steered is not None:
                stack.enter_context(_steering(steered))
            return self._run(batch, points, cache)

    def _with_unsteered(self, batch: Batch, steered: Steered) -> Steered:
        if steered.unsteered is not None or not steered.edits.needs_unsteered:
            return steered
        read_at = steered.prompts or steered.points
        [unsteered] = self.activations(batch, read_at, [steered.edits.reads])
        return steered._replace(unsteered=unsteered)

    def activations(self, batch: Batch, points: Points, reads: Sequence[Reads]) -> list[Tensor]:
        """Read unsteered activations ``[n, layers + means, width]`` at n points, of each site.

        No logits are computed.
        """
        nowhere = Points.of([], points.batch, batch.input_ids.device)
        with ExitStack() as stack:
            collected = [stack.enter_context(_reading(each, batch, points)) for each in reads]
            self._run(batch, nowhere)
        return [values.stacked() for values in collected]

    def trunk(
        self,
        batch: Batch,
        points: Points,
        starts: Iterable[int],
        reads: Sequence[Reads | None] = (),
        read: Points | None = None,
        own: Tensor | None = None,
    ) -> tuple[Trunk, list[Tensor | None]]:
        """Run an unsteered pass that keeps what passes from blocks ``starts`` onwards begin with.

        Args:
            own: of each row the positions that such a pass begins with, ``[batch, n]``; None: all.

        Returns:
            the trunk, and for each of ``reads`` that is not None its activations at the k points
            ``read``, ``[k, layers + means, width]``.
        """
        cache = cache_of(batch.past, len(batch.input_ids))
        kept_at = {start: self.blocks[start - 1] for start in starts if start}
        with ExitStack() as stack:
            collected = [
                stack.enter_context(_reading(each, batch, read)) if each and read else None
                for each in reads
            ]
            kept = stack.enter_context(keeping(kept_at, own))
            logits = self._run(batch, points, cache)
        if kept.in_tuple:
            self._in_tuple = kept.in_tuple[0]
        activations = [None if values is None else values.stacked() for values in collected]
        return Trunk(logits, _past(cache), kept.states), activations

    def prefix(self, tokens: Sequence[int], reads: Sequence[Reads] = ()) -> Past | None:
        """Compute keys and values of tokens that many sequences begin with; None for no tokens.

        What the last prefix began with too is taken from it.

        Args:
            reads: what will be read of these sequences: for the means the activations of their
                beginning are kept, too.
        """
        return self.prefix_of(tokens, reads)()

    def prefix_of(
        self, tokens: Sequence[int], reads: Sequence[Reads] = ()
    ) -> Callable[[], Past | None]:
        """Give a function that computes a prefix, see :meth:`prefix`, when it is needed.

        One that nobody needs is computed only where a later one that is needed begins like it: so
        to the bit each is what it is where all are computed. They are asked for in their order.
        """
        if not tokens:
            return lambda: None
        shown = frozenset((each.site, layer) for each in reads for layer in each.means)
        self._prefixes.append((tokens, shown))
        return partial(self._prefix, len(self._prefixes) - 1)

    def _prefix(self, number: int) -> Past | None:
        done, past = self._last_prefix
        shown = self._prefixes[number][1]
        if past is not None and not shown <= past.shown.keys():
            done, past = -1, None
        if number == done:
            return past
        first = number
        while first - 1 != done and self._shared_with_last(first):
            first -= 1
        for which in range(first, number + 1):
            tokens, known = self._prefixes[which][0], self._shared_with_last(which)
            past = past.up_to(known) if past is not None and known else None
            self._last_prefix = -1, None  # gone before it is computed anew
            while known < len(tokens):
                end = min(len(tokens), known + LONGEST_MASKED) if known else len(tokens)
                tree = Tree(past=known)
                tree.add(list(tokens[known:end]))
                batch = pack([tree], 0, self.dtype, self.device, past)
                cache = cache_of(past, 1)
                with _showing(shown, None if past is None else past.shown) as kept:
                    self._run(batch, Points.of([], 1, self.device), cache)
                past, known = _past(cache)._replace(shown=kept), end
            self._last_prefix = which, past
        return past

    def _shared_with_last(self, number: int) -> int:
        """Count the tokens of a prefix that are taken from the one before it."""
        if not number:
            return 0
        return taken_from(self._prefixes[number - 1][0], self._prefixes[number][0])

    def forget(self) -> None:
        """Forget all prefixes: the weights may be others at the next call."""
        self._prefixes, self._last_prefix = [], (-1, None)

    def _run(self, batch: Batch, points: Points, cache: DynamicCache | None = None) -> Tensor:
        if cache is None and batch.past is not None:
            cache = cache_of(batch.past, len(batch.input_ids), _Passing)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if self._takes_use_cache:
            inputs["use_cache"] = cache is not None
        if cache is not None:
            inputs[self._cache_parameter] = cache
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
            inputs["position_ids"] = batch.position_ids
        head = self.model.get_output_embeddings()  # type: ignore[operator]

        narrowed: list[bool] = []

        def only_points(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            narrowed.append(True)
            return (points.read(arguments[0]).unsqueeze(0), *arguments[1:])

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(
                torch.autocast(
                    self.device.type, dtype=self.autocast, enabled=self.autocast is not None
                )
            )
            stack.callback(head.register_forward_pre_hook(only_points).remove)
            logits: Tensor = self.model(**inputs).logits
        # Some models compute their logits without a call of their output embedding.
        return logits[0] if narrowed else points.read(logits)


class _Passing(DynamicLayer):  # type: ignore[misc]
    """What a layer reads in a single pass: what that adds is given to the layer, and not kept.

    So the keys and values of what stands before the rows are repeated in one layer at a time.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self.keys, key_states], dim=-2)
        return keys, torch.cat([self.values, value_states], dim=-2)


def cache_of(
    past: Past | None, batch: int, layer_type: type[DynamicLayer] = DynamicLayer
) -> DynamicCache:
    """Make a cache of ``past`` for every row; what a pass adds to it does not change ``past``.

    The tensors are views: a pass makes longer ones in their place.

    Args:
        past: tokens before every row.
        batch: how many rows.
        layer_type: of each layer's part.
    """
    cache = DynamicCache()
    if past is None:
        return cache
    for keys, values in zip(past.keys, past.values, strict=True):
        layer = layer_type()
        layer.lazy_initialization(keys, values)
        layer.keys = keys.expand(batch, -1, -1, -1)
        layer.values = values.expand(batch, -1, -1, -1)
        cache.layers.append(layer)
    return cache


def _steering(steered: Steered, start: int = 0) -> AbstractContextManager[None]:
    edits, points, which, _, of_point, unsteered, gates, rule = steered
    return edits.at(points, which, unsteered, of_point, start, gates, rule)


def _reading(reads: Reads, batch: Batch, points: Points) -> AbstractContextManager[Collected]:
    paths = batch.paths(points) if reads.means else None
    return reading(reads, points, paths, None if batch.past is None else batch.past.shown)


@contextmanager
def _showing(
    places: Iterable[tuple[Site, int]], before: Mapping[tuple[Site, int], Tensor] | None
) -> Iterator[dict[tuple[Site, int], Tensor]]:
    """Keep the activations of a batch's only row at some layers of sites, ``[length, width]``.

    Args:
        before: of the tokens that stand before it; None: none do.
    """
    kept: dict[tuple[Site, int], Tensor] = {}
    with ExitStack() as stack:
        for site, layer in places:

            def visit(layer: int, activations: Tensor, site: Site = site) -> None:
                own = activations.reshape(-1, activations.shape[-1])
                known = [] if before is None else [before[site, layer]]
                kept[site, layer] = torch.cat([*known, own])

            modules = {layer: site.modules[layer]}
            stack.enter_context(visiting(modules, site.side, visit, site.streams, required=True))
        yield kept


def _past(cache: DynamicCache) -> Past:
    keys, values = [], []
    for layer in cache.layers:
        keys.append(layer.keys)
        values.append(layer.values)
    return Past(keys, values, keys[0].shape[-2])
