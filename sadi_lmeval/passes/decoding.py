"""Greedy decoding in which a text that is over makes room for the next one.

Prompts are computed after what they share with others, once for all; from then on each text takes
one row of a key/value cache and one token of a pass, and no more once it is over.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.signature import cache_parameter, use_cache
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import first_line
from sadi_lmeval.passes.batches import Bounds, batches
from sadi_lmeval.passes.branching import difference_of, gap_of
from sadi_lmeval.passes.endings import Ending, Text
from sadi_lmeval.passes.forward import Forward, Steered
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.prefixes import group_by_prefix
from sadi_lmeval.passes.sequences import Past, Tree, pack
from sadi_lmeval.passes.slots import Slots

logger = logging.getLogger("lm_eval.sadi")

_MOST_ROWS = 32
"""Texts at once where a number is not given and memory suffices: more hardly saves any more."""
_PART = 4
"""New texts begin once this part of the rows is free: a pass for one costs as much as for a few."""


class _Prompt(NamedTuple):
    """A prompt as a row of a batch.

    Attributes:
        text: whose it is.
        tree: its tokens after the shared ones.
        scored: positions whose logits are needed: the last one.
    """

    text: Text
    tree: Tree
    scored: int = 1

    @property
    def length(self) -> int:
        return self.tree.length

    @property
    def is_masked(self) -> bool:
        return not self.tree.is_path


class Decoder:
    """Generates texts, several at once."""

    def __init__(
        self,
        forward: Forward,
        texts: Sequence[Text],
        edits: Edits | None,
        pad: int,
        rows: int,
        bounds: Bounds,
        room: int = 0,
        watch: Callable[[list[Text], Tensor], None] = lambda texts, logits: None,
    ) -> None:
        """
        Args:
            forward: the model.
            texts: all that will be asked for; those that are asked for first come first.
            edits: the edits that texts name by index; None for an unsteered model.
            pad: the padding token.
            rows: texts that are generated at once.
            bounds: the size of a batch of prompts.
            room: bytes of keys and values up to which more than that are, at most 32.
            watch: gets the texts of every pass, and the logits of their next tokens ``[n, vocab]``.
        """
        self._forward, self._edits = forward, edits
        self._pad, self._rows, self._bounds, self._watch = pad, rows, bounds, watch
        self._room = room
        self._longest = max((len(text.prompt) + text.most for text in texts), default=0)
        groups = group_by_prefix([text.prompt for text in texts])
        for group in groups:
            group.members.sort()
        self._waiting: deque[tuple[list[int], deque[Text]]] = deque()
        for length, members in sorted(groups, key=lambda group: group.members[0]):
            beginning = texts[members[0]].prompt[:length]
            self._waiting.append((beginning, deque(texts[index] for index in members)))
        self._live: list[Text] = []  # in the order of the slots' rows
        self._slots = Slots(forward.dtype, forward.device)
        self._next = torch.zeros(0, dtype=torch.long, device=forward.device)  # ``[rows]``
        self._gates: dict[Text, Tensor] = {}
        # Tokens that were chosen, and not told to their texts yet: on a GPU one pass stays behind,
        # so that it need not wait for what the host makes of the last one.
        self._untold: deque[tuple[list[Text], Tensor, torch.cuda.Event | None]] = deque()
        self._behind = int(forward.device.type == "cuda")
        self._places: tuple[Points, Steered | None] | None = None

    def finish(self, texts: Sequence[Text]) -> None:
        """Generate until all of these are over."""
        while any(not text.over for text in texts):
            free = self._rows - len(self._live)
            if self._waiting and (not self._live or free * _PART >= self._rows):
                self._begin()
            else:
                self._step()

    # ------------------------------------------------------------------ prompts

    def _begin(self) -> None:
        """Compute prompts of the group that comes next, up to as many as there are free rows."""
        while self._untold:
            self._tell()
        self._drop()
        free = self._rows - len(self._live)
        beginning, waiting = self._waiting[0]
        reads = [] if self._edits is None else [self._edits.reads]
        past = self._forward.prefix(beginning, reads)
        prompts: list[_Prompt] = []
        while waiting and len(prompts) < free:
            text = waiting.popleft()
            tree = Tree(past=len(beginning))
            tree.add(text.prompt[len(beginning) :])
            prompts.append(_Prompt(text, tree))
        if not waiting:
            self._waiting.popleft()
        for batch in batches(prompts, self._bounds, len(beginning)):
            self._prefill(batch, past)
        if self._room and (size := self._slots.token_bytes * self._longest):
            self._rows = max(self._rows, min(_MOST_ROWS, self._room // size))

    def _prefill(self, batch: list[_Prompt], past: Past | None) -> None:
        forward, texts = self._forward, [prompt.text for prompt in batch]
        inputs = pack([p.tree for p in batch], self._pad, forward.dtype, forward.device, past)
        places = [(row, prompt.length - 1) for row, prompt in enumerate(batch)]
        points = Points.of(places, len(batch), forward.device)
        steered = self._steered(texts, places, len(batch))
        logits, grown, unsteered = forward.grow(inputs, points, steered)
        if steered is not None and unsteered is not None and self._goes_on:
            self._keep_gates(texts, steered, unsteered)
        tokens = self._chosen(texts, logits)
        self._tell()
        for text in texts:
            if text.over:
                self._gates.pop(text, None)
        rows = [row for row, text in enumerate(texts) if not text.over]
        if rows:
            before = 0 if past is None else past.length
            lengths = [before + batch[row].length for row in rows]
            self._slots.add(grown, rows, lengths)
            self._live += [texts[row] for row in rows]
            self._next = torch.cat([self._next, tokens[rows]])
            self._places = None

    def _steered(
        self, texts: list[Text], places: list[tuple[int, int]], batch: int
    ) -> Steered | None:
        """Say where texts are edited: at one place each, if at all."""
        edited = [row for row, text in enumerate(texts) if text.edit != UNSTEERED]
        if self._edits is None or not edited:
            return None
        points = Points.of([places[row] for row in edited], batch, self._forward.device)
        which = torch.tensor([texts[row].edit for row in edited])
        return Steered(self._edits, points, which)

    @property
    def _goes_on(self) -> bool:
        """Whether later tokens are edited, too."""
        return self._edits is not None and self._edits.scope == "onwards"

    def _keep_gates(self, texts: list[Text], steered: Steered, unsteered: Tensor) -> None:
        """Keep the gates of prompts: they count for all tokens that follow."""
        rows = torch.arange(len(steered.which))
        gates = steered.edits.gates_of(unsteered, steered.which, rows)
        if gates is not None:
            edited = [text for text in texts if text.edit != UNSTEERED]
            self._gates |= dict(zip(edited, gates.unbind(), strict=True))

    # ------------------------------------------------------------------ tokens

    def _step(self) -> None:
        """Generate a token of every text that is not known to be over."""
        points, steered = self._placed()
        batch = self._slots.batch(self._next)
        logits = self._forward.step(batch, self._slots.cache(), points, steered)
        self._next = self._chosen(self._live, logits)
        if len(self._untold) <= self._behind:
            return
        self._tell()
        self._drop()

    def _drop(self) -> None:
        """Free the rows of texts that are over; the last row takes the place of each."""
        for row in reversed([row for row, text in enumerate(self._live) if text.over]):
            self._slots.drop(row)
            self._gates.pop(self._live[row], None)
            self._live[row] = self._live[-1]
            self._live.pop()
            self._next[row] = self._next[-1]
            self._next = self._next[:-1]
            self._places = None

    def _placed(self) -> tuple[Points, Steered | None]:
        """Say where the logits of a token are, and where it is edited; made once for many."""
        if self._places is None:
            places = [(row, 0) for row in range(len(self._live))]
            points = Points.of(places, len(places), self._forward.device)
            steered = self._steered(self._live, places, len(places)) if self._goes_on else None
            if steered is not None:
                steered = steered._replace(rule=steered.edits.placed(steered.which))
            if steered is not None and self._gates:
                gates = [self._gates[text] for text in self._live if text.edit != UNSTEERED]
                on = self._forward.device
                steered = steered._replace(gates=torch.stack(gates).to(on))
            self._places = points, steered
        return self._places

    def _chosen(self, texts: list[Text], logits: Tensor) -> Tensor:
        """Choose the next token of every text; return them, ``[n]``, and have them told."""
        self._watch(list(texts), logits)
        scores = logits.float()
        tokens = scores.argmax(dim=-1)
        failed = ~(scores < math.inf).all(dim=-1)  # minus infinity: a token that is ruled out
        told = torch.stack([tokens, failed.long()])
        event = None
        if told.is_cuda:
            host = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
            told, event = host.copy_(told, non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._untold.append((list(texts), told, event))
        return tokens

    def _tell(self) -> None:
        """Tell texts the tokens that were chosen longest ago."""
        texts, told, event = self._untold.popleft()
        if event is not None:
            event.synchronize()
        for text, token, bad in zip(texts, *told.tolist(), strict=True):
            if not text.over:  # it was not known to be when the token was computed
                text.failed = text.failed or bool(bad)
                text.add(token)


_TRIAL = (([5, 9, 7, 4, 8], 2), ([5, 9, 7, 4, 6, 3, 8], 5), ([8, 4], 3))
"""Prompts of a trial, and how many tokens each gets: two rows, one of which is given on."""


def can_decode(model: PreTrainedModel) -> bool:
    """Try whether texts of different lengths in one cache get the logits that each gets alone."""
    forward = Forward(model)
    seen: dict[Text, list[Tensor]] = {}

    def watch(texts: list[Text], logits: Tensor) -> None:
        for text, row in zip(texts, logits, strict=True):
            seen.setdefault(text, []).append(row)

    texts = [Text(prompt, Ending([], frozenset(), 1, _nothing, 0), most) for prompt, most in _TRIAL]
    try:
        Decoder(forward, texts, None, 0, 2, Bounds(None, 1 << 10, 1 << 10), 0, watch).finish(texts)
        found, alone, again = [], [], []
        for text in texts:
            ids = torch.tensor([text.prompt + text.made], device=forward.device)
            mine = slice(len(text.prompt) - 1, -1)
            with torch.no_grad():
                alone.append(model(ids).logits[0, mine])
                again.append(_token_by_token(model, ids)[mine])
            found.append(torch.stack(seen[text]))
        expected = torch.cat(alone)
        rounding = gap_of(torch.cat(again), expected)
        reason = difference_of(torch.cat(found), expected, rounding, forward.dtype)
    except Exception as error:  # any failure of the trial means: the plain way
        reason = first_line(error)
    if reason:
        logger.info("Texts are generated batch by batch (%s)", reason)
    return not reason


def _nothing(tokens: list[int], skip_special_tokens: bool) -> str:
    return ""


def _token_by_token(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Compute the logits of a text ``[seq, vocab]`` out of a cache, which is what that rounds."""
    name = cache_parameter(model)
    cache, logits = DynamicCache(), []
    for token in ids[0]:
        made = model(token.view(1, 1), **{name: cache}, **use_cache(model, True))
        logits.append(made.logits[0, -1])
    return torch.stack(logits)
