"""A model as an engine: passes that share what can be shared, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn

from sadi_lmeval.architecture.sites import Site, find_site, unwrapped
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.activations import Collector, Labelled, as_requests, read_pairs
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.checked import longest_row_is_right
from sadi_lmeval.passes.decoding import Decoder, can_decode
from sadi_lmeval.passes.endings import Text
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.grid import Done, grid_log_likelihoods
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefill import can_share_beginning
from sadi_lmeval.passes.scoring import Score, log_likelihoods
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.types import Element, HiddenSite, Token

_AUTO_TOKENS = {"cpu": 512}
"""Padded tokens a batch under ``--batch_size auto``, by device type."""
_AUTO_TEXTS = {"cpu": 1 << 31}
"""Bytes of keys and values of generated texts under ``--batch_size auto``, by device type;
elsewhere the harness finds out how many fit."""
_AUTO_TOKENS_ELSEWHERE = 16384
_LOGITS = {"cpu": 1 << 23}
"""Logits a batch, by device type. On a CPU a larger result gets fresh memory in every pass, which
takes longer than to compute it."""
_LOGITS_ELSEWHERE = 1 << 28
_MASK = {"cpu": 1 << 24}
"""Pairs of tokens of a batch's attention mask, by device type."""
_MASK_ELSEWHERE = 1 << 27
_START = {"cpu": 32}
"""What a batch costs beside its tokens, in tokens, by device type."""
_START_ELSEWHERE = 512


class Engine:
    """Measures pairs and scores requests with one model.

    What its forward pass allows to share and to skip is found out by trying, when it is first
    needed. Nothing that depends on the weights outlives a call.
    """

    def __init__(
        self,
        model: nn.Module,
        pad: int,
        rows: int | None,
        max_length: int,
        autocast: torch.dtype | None = None,
        softmax_dtype: torch.dtype | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """
        Args:
            model: the causal language model.
            pad: the padding token.
            rows: rows a batch, or None for a budget of tokens.
            max_length: the most tokens of a sequence.
            autocast: mixed precision of the forward pass, or None.
            softmax_dtype: of the log-softmax; None: that of the logits.
            processes: of the run; where they divide batches, all of them ask the same.
        """
        unwrapped(model)  # refuses what shifts positions
        self.model = model
        self.forward = Forward(model, autocast)
        self.pad = pad
        self.softmax_dtype = softmax_dtype
        vocabulary = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
        self.bounds = bounds_on(self.forward.device.type, vocabulary, rows, max_length)
        self.processes = processes
        self._sites: dict[tuple[Element, HiddenSite], Site] = {}
        self._tried: set[str] = set()
        self._longest_tried = 0
        self._calls = 0

    @cached_property
    def longest_branching_path(self) -> int:
        """See :func:`sadi_lmeval.passes.branching.longest_branching_path`."""
        return longest_branching_path(self.model)

    @cached_property
    def can_resume(self) -> bool:
        return can_resume(self.model)

    @cached_property
    def can_share_beginning(self) -> bool:
        return can_share_beginning(self.model)

    @cached_property
    def can_decode(self) -> bool:
        """See :func:`sadi_lmeval.passes.decoding.can_decode`."""
        return can_decode(self.model)

    def decoder(self, texts: Sequence[Text], edits: Edits | None, rows: int) -> Decoder:
        """Generate texts, ``rows`` at once; see :class:`~sadi_lmeval.passes.decoding.Decoder`."""
        given = self.bounds.rows is not None
        room = 0 if given else _AUTO_TEXTS.get(self.forward.device.type, 0)
        return Decoder(self.forward, texts, edits, self.pad, rows, self.bounds, room)

    def site(self, element: Element, hidden_site: HiddenSite) -> Site:
        """Find where an element's activations are, once."""
        key = element, hidden_site
        if key not in self._sites:
            self._sites[key] = find_site(self.model, element, hidden_site)
        return self._sites[key]

    def read(
        self,
        readers: Sequence[tuple[Site, Collector]],
        pairs: Sequence[Labelled],
        label: str,
        processes: Processes = ALONE,
        token: Token = "last",
    ) -> None:
        """Read the activations of pairs or prompts, see :func:`read_pairs`."""
        with self.sharing():
            self._try_longest("pairs", as_requests(pairs, self.longest_branching_path))
            read_pairs(
                self.forward,
                readers,
                pairs,
                pad=self.pad,
                branching=self.longest_branching_path > 0,
                bounds=self.bounds,
                label=label,
                processes=processes,
                longest_path=self.longest_branching_path,
                token=token,
            )

    def score(
        self,
        requests: Sequence[Continuation],
        edits: Edits | None,
        done: Callable[[list[tuple[int, Score]]], None],
    ) -> None:
        """Score requests, each under its own edit, see :func:`log_likelihoods`.

        One without a token has a log-likelihood of 0, as the harness has it.
        """
        if empty := [index for index, request in enumerate(requests) if not request.tokens]:
            done([(index, (0.0, True)) for index in empty])
        with self.sharing():
            for part, branching in self._parts(requests):
                log_likelihoods(
                    self.forward,
                    [requests[index] for index in part],
                    edits,
                    pad=self.pad,
                    branching=branching,
                    bounds=self.bounds,
                    softmax_dtype=self.softmax_dtype,
                    done=_renumbered(part, done),
                    processes=self.processes,
                )

    def score_grid(
        self, requests: Sequence[Continuation], families: Sequence[Edits], done: Done
    ) -> None:
        """Score requests under every edit, see :func:`grid_log_likelihoods`."""
        if empty := [index for index, request in enumerate(requests) if not request.tokens]:
            nothing = torch.zeros(1 + sum(family.count for family in families), len(empty))
            done(empty, nothing, nothing == 0)
        with self.sharing():
            for part, branching in self._parts(requests):
                grid_log_likelihoods(
                    self.forward,
                    [requests[index] for index in part],
                    families,
                    pad=self.pad,
                    branching=branching,
                    resuming=self.can_resume,
                    bounds=self.bounds,
                    softmax_dtype=self.softmax_dtype,
                    done=lambda numbers, *scores, part=part: done(
                        [part[n] for n in numbers], *scores
                    ),
                    processes=self.processes,
                )

    def _parts(self, requests: Sequence[Continuation]) -> Iterator[tuple[list[int], bool]]:
        """Yield indices of requests with tokens: of those too long for packed rows, then of
        the others, and whether their rows may have branches."""
        asked = [index for index, request in enumerate(requests) if request.tokens]
        sizes = {i: len(requests[i].context) + len(requests[i].tokens) for i in asked}
        short = [i for i in asked if sizes[i] <= self.longest_branching_path]
        self._try_longest("requests", (requests[index] for index in short))
        if not self.longest_branching_path:
            short = []
        fits = set(short)
        for part, branching in (([i for i in asked if i not in fits], False), (short, True)):
            if part:
                yield part, branching

    def _try_longest(self, of: str, requests: Iterable[Continuation]) -> None:
        """Score the longest packed row plainly too, once of pairs and once of what is scored.

        Not where as long a one was tried before. Rows have no branches any more if it is wrong.
        """
        if of in self._tried:
            return
        requests = list(requests)
        longest = max((len(each.context) + len(each.tokens) for each in requests), default=0)
        if longest <= self._longest_tried:
            return
        self._tried.add(of)
        self._longest_tried = longest
        if not longest_row_is_right(self.forward, requests, self.pad, self.bounds):
            self.longest_branching_path = 0

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Compute what prompts begin with once for all calls in the block, in which the weights
        stay as they are."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self.forward.forget()


def _renumbered(
    part: Sequence[int], done: Callable[[list[tuple[int, Score]]], None]
) -> Callable[[list[tuple[int, Score]]], None]:
    """Tell scores of a part of the requests by the indices of all."""
    return lambda scored: done([(part[number], score) for number, score in scored])


def bounds_on(kind: str, vocabulary: int, rows: int | None, max_length: int) -> Bounds:
    """Give the most that a batch holds on a type of device.

    With a fixed number of rows never more tokens than ``hf`` would have at that size; else a
    budget of tokens.
    """
    scored = max(1, _LOGITS.get(kind, _LOGITS_ELSEWHERE) // vocabulary)
    start, mask = _START.get(kind, _START_ELSEWHERE), _MASK.get(kind, _MASK_ELSEWHERE)
    if rows is None:
        return Bounds(None, _AUTO_TOKENS.get(kind, _AUTO_TOKENS_ELSEWHERE), scored, start, mask)
    return Bounds(rows, rows * max_length, scored, start, mask)
