"""The prefill of generation: its last prompt token edited, its beginning computed once for all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor

from sadi_lmeval.architecture.hooks import visiting
from sadi_lmeval.architecture.positions import Paths, Points
from sadi_lmeval.architecture.signature import cache_parameter, parameters, use_cache
from sadi_lmeval.architecture.sites import unwrapped
from sadi_lmeval.edits.contract import Edits, RowRule, reading
from sadi_lmeval.errors import first_line
from sadi_lmeval.passes.branching import difference_of, gap_of
from sadi_lmeval.passes.forward import Forward, cache_of
from sadi_lmeval.passes.prefixes import shared_length

logger = logging.getLogger("lm_eval.sadi")

_SHORTEST = 32
"""Tokens below which a shared beginning is not worth it."""
_FEWEST = 4
"""Prompts below which it is not."""


@contextmanager
def steered_generation(
    model: nn.Module,
    edits: Edits,
    which: int,
    context: Tensor,
    attention_mask: Tensor,
    unsteered: Tensor | None = None,
) -> Iterator[None]:
    """Edit the last prompt token, and if asked every later one, of what the block generates.

    Where tokens are processed in several chunks, or again because there is no key/value cache,
    they are found by counting the tokens that the cache already holds.

    Args:
        model: the causal language model.
        edits, which: the edit that all sequences get.
        context: left-padded prompts, ``[batch, seq]``.
        attention_mask: ``[batch, seq]``.
        unsteered: what :func:`read_unsteered` gives, where it is known; None: it is read where the
            edits need it.
    """
    if not edits.layers:
        yield
        return
    last = context.shape[1] - 1
    gates = None
    if edits.needs_unsteered:
        if unsteered is None:
            unsteered = read_unsteered(model, edits, context, attention_mask)
        table = edits.gates(unsteered)  # of each prompt once, for all its tokens
        gates = None if table is None else table[:, which]
    edited: range = range(0)
    placed: dict[Any, tuple[Points, RowRule, Tensor | None]] = {}
    length = seen = 0  # tokens of this pass, and of those before it

    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal edited, length, seen
        tokens = keywords.get("input_ids")
        if tokens is None:
            tokens = arguments[0] if arguments else keywords["inputs_embeds"]
        length = tokens.shape[1]
        past = next((each for each in keywords.values() if hasattr(each, "get_seq_length")), None)
        try:
            start = int(past.get_seq_length())  # type: ignore[union-attr]
        except (AttributeError, TypeError, ValueError):  # none, or a state without keys (RWKV)
            start = seen if length <= seen else 0
        seen = start + length
        end = last - start + 1 if edits.scope == "prompt" else length
        edited = range(max(0, last - start), min(end, length))

    def visit(layer: int, activations: Tensor) -> Tensor | None:
        if not edited:
            return None
        rows = activations.shape[0] if activations.dim() == 3 else context.shape[0]
        # Blocks that share the keys of earlier ones may get the last tokens alone (Gemma 4).
        left_out = length - activations.shape[:-1].numel() // rows
        there = [position - left_out for position in edited if position >= left_out]
        if not there:
            return None
        # The same at every later token, so that nothing is copied to a device again for it.
        key = rows, tuple(there), activations.device
        if key not in placed:
            where = [(row, position) for row in range(rows) for position in there]
            own = None
            if gates is not None:
                own = gates.repeat_interleave(len(where) // len(gates), dim=0)
                own = own.to(activations.device)
            rule = edits.placed(torch.full((len(where),), which))
            placed[key] = Points.of(where, rows, activations.device), rule, own
        points, rule, own = placed[key]
        count = len(points.rows)
        if edits.clean and unsteered is not None:
            values = unsteered[:, layer]
            if len(values) != count:  # beams and several sequences a prompt
                values = values.repeat_interleave(count // len(values), dim=0)
        else:
            values = edits.site.read(layer, activations, points)
        after = edits.edited(rule, layer, values.to(activations), own)
        return edits.site.write(layer, activations, points, after)

    with ExitStack() as stack:
        # Not on a PEFT wrapper: generation passes it by.
        handle = unwrapped(model).register_forward_pre_hook(before, with_kwargs=True)
        stack.callback(handle.remove)
        modules = {layer: edits.site.modules[layer] for layer in edits.written_layers}
        side, streams = edits.site.side, edits.site.streams
        stack.enter_context(visiting(modules, side, visit, streams, required=True))
        yield


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Notices, while texts are generated, logits that are nan or infinite; changes nothing.

    Attributes:
        failed: in how many of the prompts there were some.
    """

    def __init__(self, prompts: int) -> None:
        self._bad = torch.zeros(prompts, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~(scores < math.inf).all(dim=-1)  # minus infinity: a token that is ruled out
        self._bad = self._bad.to(bad.device) | bad.view(len(self._bad), -1).any(dim=1)
        return scores

    @property
    def failed(self) -> int:
        return int(self._bad.sum())


class Prompts(NamedTuple):
    """Left-padded prompts, as generation takes them.

    Attributes:
        input_ids: ``[batch, seq]``.
        attention_mask: ``[batch, seq]``.
        cache: keys and values of the first tokens of every row, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    cache: DynamicCache | None = None


def with_shared_beginning(forward: Forward, prompts: Prompts, beginning: list[int]) -> Prompts:
    """Make prompts whose common first tokens come out of a cache.

    These move to the front, before the padding: ``[beginning, padding, rest]`` has the width that
    ``[padding, beginning, rest]`` had. Positions follow from the attention mask, so they stay.

    Args:
        forward: the model.
        prompts: left-padded.
        beginning: what all of them are believed to begin with; if one does not (it may have been
            cut from the left), they are returned as they came.
    """
    ids, mask = prompts.input_ids.clone(), prompts.attention_mask.clone()
    length = len(beginning)
    expected = torch.tensor(beginning, device=ids.device)
    for row, padding in enumerate((mask == 0).sum(dim=1).tolist()):
        rest = ids[row, padding + length :]
        if not len(rest) or not torch.equal(ids[row, padding : padding + length], expected):
            return prompts
        pads = ids[row, :padding].clone()
        ids[row, :length] = expected
        ids[row, length : length + padding] = pads
        mask[row, :length], mask[row, length : length + padding] = 1, 0
    return Prompts(ids, mask, cache_of(forward.prefix(beginning), len(ids)))


def beginning_of(prompts: Sequence[list[int]]) -> list[int]:
    """Find what all prompts begin with, if it is worth computing once; at most all but a token."""
    if len(prompts) < _FEWEST:
        return []
    first, most = min(prompts), min(len(prompt) for prompt in prompts) - 1
    length = min(most, shared_length(first, max(prompts)))
    return list(first[:length]) if length >= _SHORTEST else []


_INDIFFERENT = frozenset(
    "do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff max_length "
    "max_new_tokens min_length min_new_tokens max_time pad_token_id bos_token_id eos_token_id "
    "use_cache renormalize_logits remove_invalid_values transformers_version "
    "_from_model_config".split()
)
"""Options of generation that look at logits or count tokens, and bring no cache of their own."""


def looks_at_tokens(model: Any, options: Mapping[str, Any]) -> bool:
    """Return whether an option of generation may look at tokens before, or bring its own cache.

    A shared beginning moves tokens, and comes in a cache; whatever is not known to be indifferent
    to both is taken to be not.

    Args:
        options: of the run; those of the model's ``generation_config`` count too.
    """
    config = getattr(model, "generation_config", None)
    given = {**({} if config is None else config.to_diff_dict()), **options}
    return any(value not in (None, False) for k, value in given.items() if k not in _INDIFFERENT)


_OF_SAMPLING = frozenset(
    "do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff max_length "
    "pad_token_id bos_token_id eos_token_id use_cache transformers_version "
    "_from_model_config".split()
)
"""Options of generation that say nothing where the likeliest token is taken, or are followed."""
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}


def end_tokens(model: Any, options: Mapping[str, Any]) -> frozenset[int] | None:
    """Name the tokens that end a text, where the likeliest token is taken and nothing else asked.

    Args:
        options: of the run; those of the model's ``generation_config`` count too.

    Returns:
        None: where anything is asked for that may change which token is taken.
    """
    config = getattr(model, "generation_config", None)
    given = {**({} if config is None else config.to_diff_dict()), **options}
    sampled = given.get("do_sample", False) or given.get("use_cache") is False
    asked = {name: value for name, value in given.items() if value not in (None, False)}
    more = {n for n, value in asked.items() if n not in _OF_SAMPLING and _NEUTRAL.get(n) != value}
    end = given.get("eos_token_id")
    ends = [] if end is None else end if isinstance(end, list) else [end]
    if sampled or more or not all(isinstance(token, int) for token in ends):
        return None
    return frozenset(ends)


def can_share_beginning(model: Any) -> bool:
    """Try whether generation after a shared beginning equals plain generation."""
    forward = Forward(model)
    beginning, pad = [5, 9, 7, 4], 3
    ids = torch.tensor([[pad, pad, *beginning, 8], [*beginning, 6, 8, 5]], device=forward.device)
    plain = Prompts(ids, torch.ones_like(ids))
    plain.attention_mask[0, :2] = 0

    def logits(prompts: Prompts) -> Tensor:
        made = model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            **{cache_parameter(model): prompts.cache},
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return torch.stack(made.logits, dim=1)  # [batch, new tokens, vocab]

    try:
        shared = logits(with_shared_beginning(forward, plain, beginning))
        expected = logits(plain)
        alone = [Prompts(row[mask == 1][None], mask[mask == 1][None])
                 for row, mask in zip(*plain[:2], strict=True)]  # fmt: skip
        rounding = gap_of(torch.cat([logits(prompts) for prompts in alone]), expected)
        reason = difference_of(shared, expected, rounding, forward.dtype)
    except Exception as error:  # any failure of the trial means: the plain way
        reason = first_line(error)
    if reason:
        logger.info("Prompts are not shared in generation (%s)", reason)
    return not reason


def read_unsteered(
    model: nn.Module, edits: Edits, context: Tensor, attention_mask: Tensor
) -> Tensor:
    """Read activations of the last prompt token, and the means over prompts that edits need.

    Args:
        edits: whose site is read.
        context: left-padded prompts, ``[batch, seq]``.
        attention_mask: ``[batch, seq]``.

    Returns:
        ``[batch, layers + means, width]``.
    """
    batch, width = context.shape
    points = Points.of([(row, width - 1) for row in range(batch)], batch, context.device)
    inputs: dict[str, Any] = {"input_ids": context, "attention_mask": attention_mask}
    if "position_ids" in parameters(model):
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def last(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][:, -1:], *arguments[1:])

    paths = Paths(points, attention_mask != 0)
    with torch.no_grad(), reading(edits.reads, points, paths) as collected, ExitStack() as stack:
        # Not by ``logits_to_keep``, for which blocks may leave out tokens, too.
        head = model.get_output_embeddings()  # type: ignore[operator]
        stack.callback(head.register_forward_pre_hook(last).remove)
        model(**inputs, **use_cache(model, False))
    return collected.stacked()
