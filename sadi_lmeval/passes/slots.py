"""Keys and values of texts that grow by a token a pass, each text in a row of its own.

Rows are of different lengths and begin in the first column. A row whose text has ended is given
to another, so nothing is computed for it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sadi_lmeval.passes.sequences import Batch, Past, additive

_STEP = 64
"""Columns that are added at once: what stands there is copied every so many tokens, not at each."""


class Slots:
    """A key/value cache with a row a text.

    Attributes:
        lengths: tokens of each row that is taken; those rows are the first.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """
        Args:
            dtype: of the attention mask: the model's.
            device: of the tokens.
        """
        self.lengths: list[int] = []
        self._dtype, self._device = dtype, device
        self._on: dict[torch.device, Tensor] = {}  # lengths, ``[rows]``, on each layer's device
        self._layers: list[_SlotLayer] = []

    def add(self, past: Past, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take rows of a batch that was just computed.

        Args:
            past: keys and values of every token of the batch, right-padded.
            rows: which rows of it.
            lengths: how many tokens each of these has.
        """
        if not self._layers:
            self._layers = [_SlotLayer(self) for _ in past.keys]
        first, taken = len(self.lengths), list(rows)
        self.lengths += lengths
        for layer, keys, values in zip(self._layers, past.keys, past.values, strict=True):
            layer.reserve(len(self.lengths), max(self.lengths), keys, values)
            for place, (row, length) in enumerate(zip(taken, lengths, strict=True), start=first):
                layer.write(place, keys[row, :, :length], values[row, :, :length])
        self._count()

    def drop(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[row] = self.lengths[last]
            for layer in self._layers:
                keys, values = layer.room
                layer.write(row, keys[last, :, :length], values[last, :, :length])
        self.lengths.pop()
        self._count()

    def batch(self, tokens: Tensor) -> Batch:
        """Make the inputs of a pass over one more token of each row, ``[rows]``.

        That makes every row longer by one: the pass must follow.
        """
        for lengths in self._on.values():
            lengths += 1
        self.lengths = [length + 1 for length in self.lengths]
        for layer in self._layers:
            layer.reserve(len(self.lengths), max(self.lengths))
        lengths = self.on(self._device)
        columns = torch.arange(max(self.lengths), device=self._device)
        mask = additive(columns < lengths[:, None], self._dtype)
        return Batch(tokens[:, None], mask[:, None, None], lengths[:, None] - 1)

    @property
    def token_bytes(self) -> int:
        """Say how much memory a token takes in all layers; 0 while there are none."""
        rooms = [part for layer in self._layers for part in layer.room]
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in rooms)

    def cache(self) -> DynamicCache:
        """Give the cache that such a pass reads and adds to."""
        cache = DynamicCache()
        cache.layers = self._layers
        return cache

    def on(self, device: torch.device) -> Tensor:
        """Give the rows' lengths, ``[rows]``, on a device."""
        if device not in self._on:
            self._on[device] = torch.tensor(self.lengths, device=device)
        return self._on[device]

    def _count(self) -> None:
        devices = {self._device, *(layer.room[0].device for layer in self._layers)}
        self._on = {device: torch.tensor(self.lengths, device=device) for device in devices}


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's part: a pass over one token of each row is written where the row ends.

    Attributes:
        room: keys and values, ``[rows, kv_heads, columns, head_dim]`` each; what no text has
            written is zero, as what is hidden is multiplied with zero all the same.
    """

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots
        self.room: tuple[Tensor, Tensor] = (torch.zeros(0, 0, 0, 0), torch.zeros(0, 0, 0, 0))

    def reserve(
        self, rows: int, columns: int, keys: Tensor | None = None, values: Tensor | None = None
    ) -> None:
        """Make room for so many rows and columns.

        Args:
            keys, values: of any batch, where there may be no room yet.
        """
        grown = []
        for have, like in zip(self.room, (keys, values), strict=True):
            if have.shape[0] >= rows and have.shape[2] >= columns:
                grown.append(have)
                continue
            like = have if like is None else like
            wide = have.shape[2] if have.shape[2] >= columns else columns + _STEP
            new = like.new_zeros(max(rows, have.shape[0]), like.shape[1], wide, like.shape[3])
            if have.numel():
                new[: have.shape[0], :, : have.shape[2]] = have
            grown.append(new)
        self.room = grown[0], grown[1]
        self.keys, self.values = self.room
        self.is_initialized = True

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Begin a row with ``[kv_heads, length, head_dim]`` each; what follows is zero."""
        for room, new in zip(self.room, (keys, values), strict=True):
            room[row, :, : new.shape[1]] = new
            room[row, :, new.shape[1] :] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        count, width = len(self.slots.lengths), max(self.slots.lengths)
        at = self.slots.on(key_states.device)
        rows = torch.arange(count, device=at.device)
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[rows, :, at - 1] = new[:, :, 0]
        keys, values = self.room
        return keys[:count, :, :width], values[:count, :, :width]

    def get_seq_length(self) -> int:
        """Count the columns before those of the pass that follows :meth:`Slots.batch`."""
        return max(self.slots.lengths) - 1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return max(self.slots.lengths), 0
