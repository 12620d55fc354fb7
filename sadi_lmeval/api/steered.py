"""A model that is steered while a block runs: what it generates, and its passes over prompts."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.prefill import read_unsteered, steered_generation

_STEERING = "_sadi_steering"
"""Where a model keeps the :class:`Steering` it is under."""


@contextmanager
def steered(model: nn.Module, edits: Edits) -> Iterator[None]:
    """Steer a model with one edit until the block is left in any way.

    Blocks may stand within one another: then all their edits are made, the outer ones first.

    Args:
        model: any causal language model of transformers.
        edits: of one setting.
    """
    steering = steer(model, edits)
    try:
        yield
    finally:
        steering.edits.remove(edits)
        if not steering.edits:
            steering.give_back(model)


def steer(model: nn.Module, edits: Edits) -> Steering:
    """Steer a model with one edit, beside those that it is under, from now on."""
    there: Steering | None = model.__dict__.get(_STEERING)
    steering = Steering(model) if there is None else there
    steering.edits.append(edits)
    return steering


def unsteered_copy(model: nn.Module) -> nn.Module:
    """Copy a model that shares everything with the first, but for the edits that it is under."""
    there: Steering | None = model.__dict__.get(_STEERING)
    made = copy.copy(model)
    if there is not None:
        there.give_back(made)
    return made


class Steering:
    """Stands between a model's callers and its ``generate`` and ``forward``.

    Attributes:
        edits: each of one setting; made in this order.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.edits = model, list[Edits]()
        self._generating = False
        self._read: list[Tensor | None] = []
        self._before = {name: model.__dict__.get(name) for name in ("generate", "forward")}
        self._generate: Any = model.generate
        self._forward: Any = model.forward
        # Plain functions: what wraps tells of them cannot be told of a bound method.
        model.generate = functools.wraps(self._generate)(lambda *a, **k: self._on_generate(*a, **k))
        model.forward = functools.wraps(self._forward)(lambda *a, **k: self._on_forward(*a, **k))
        model.__dict__[_STEERING] = self

    def give_back(self, model: nn.Module) -> None:
        """Make a model what it was before, the own one or a copy of it."""
        model.__dict__.pop(_STEERING, None)
        for name, method in self._before.items():
            if method is None:
                model.__dict__.pop(name, None)
            else:
                model.__dict__[name] = method

    def _on_generate(self, *arguments: Any, **keywords: Any) -> Any:
        given = arguments[0] if arguments else keywords.get("inputs", keywords.get("input_ids"))
        if not isinstance(given, Tensor):
            raise UserError(
                "generate of a steered model: needs input_ids, as the edit is made at their last "
                "token; inputs_embeds alone do not do"
            )
        mask = keywords.get("attention_mask")
        if mask is None:
            mask = _attended(self.model, given)
        with ExitStack() as stack:
            read = [self._unsteered(edits, given, mask) for edits in self.edits]
            for edits, values in zip(self.edits, read, strict=True):
                stack.enter_context(steered_generation(self.model, edits, 0, given, mask, values))
            self._generating = True
            try:
                return self._generate(*arguments, **keywords)
            finally:
                self._generating = False

    def _on_forward(self, *arguments: Any, **keywords: Any) -> Any:
        if self._generating:
            return self._forward(*arguments, **keywords)
        given = inspect.signature(self._forward).bind_partial(*arguments, **keywords).arguments
        given = {**given, **given.pop("kwargs", {})}
        tokens, mask = given.get("input_ids"), given.get("attention_mask")
        past = next((each for each in given.values() if hasattr(each, "get_seq_length")), None)
        seen = 0 if past is None else int(past.get_seq_length())
        if not isinstance(tokens, Tensor) or (not seen and not isinstance(mask, Tensor)):
            raise UserError(
                "forward pass of a steered model: without input_ids and attention_mask it is not "
                "known where the prompt ends; pass both, or score with the harness's hf-METHOD and "
                "mask=FILE"
            )
        batch, length = tokens.shape
        with ExitStack() as stack:
            if seen:
                where = [(row, column) for row in range(batch) for column in range(length)]
            else:
                assert isinstance(mask, Tensor)
                where = list(enumerate(_last_attended(mask).tolist()))
                self._read = [
                    self._unsteered(edits, *_left_padded(tokens, mask)) for edits in self.edits
                ]
            points = Points.of(where, batch, tokens.device)
            of_point = torch.tensor([row for row, _ in where])
            which = torch.zeros(len(where), dtype=torch.long)
            read = self._read or [None] * len(self.edits)
            for edits, values in zip(self.edits, read, strict=True):
                if not seen or edits.scope == "onwards":
                    stack.enter_context(edits.at(points, which, values, of_point))
            return self._forward(*arguments, **keywords)

    def _unsteered(self, edits: Edits, tokens: Tensor, mask: Tensor) -> Tensor | None:
        if not edits.needs_unsteered:
            return None
        before, self._generating = self._generating, True
        try:
            return read_unsteered(self.model, edits, tokens, mask)
        finally:
            self._generating = before


def _attended(model: Any, tokens: Tensor) -> Tensor:
    """Guess the attention mask of prompts as ``generate`` does: all but padding, if it can tell."""
    config = model.generation_config
    pad, end = config.pad_token_id, config.eos_token_id
    ends = end if isinstance(end, (list, tuple)) else [end]
    if pad is None or pad in ends or not (tokens == pad).any():
        return torch.ones_like(tokens)
    attended: Tensor = tokens != pad
    return attended.long()


def _last_attended(mask: Tensor) -> Tensor:
    """Give the position of the last token of each row that is attended to, ``[batch]``."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places * (mask != 0)).argmax(dim=1)


def _left_padded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the left: what is read stands then at the last position of every row."""
    order = (mask != 0).long().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)
