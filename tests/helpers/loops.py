"""Edits of the last prompt token and of every later one, as plain loops over plain passes.

The loops share no code with the engine: one pass of the model a text, without a cache, with hooks
that are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers.forms import Form
from helpers.oracle import oracle_score
from helpers.tasks import load
from sadi_lmeval.harness.run_task import Document
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.types import Scope

Where = Literal["head", "mlp", "residual"]


Change = Callable[[int, Tensor], Tensor]
"""Takes a layer and activations ``[positions, width]`` there; returns what takes their place."""


class Gated(NamedTuple):
    """A change that is multiplied by one number of the prompt.

    Attributes:
        gate: takes the unsteered activations of the last prompt token, ``[layers, width]``; 0
            leaves every activation as it is.
    """

    change: Change
    gate: Callable[[Tensor], float]


_PLACES = {
    "llama": ("model.layers", "self_attn.o_proj"),
    "gemma3_text": ("model.layers", "self_attn.o_proj"),
    "gemma4_text": ("model.layers", "self_attn.o_proj"),
    "gpt2": ("transformer.h", "attn.c_proj"),
    "phi": ("model.layers", "self_attn.dense"),
    "bloom": ("transformer.h", "self_attention.dense"),
}
"""Of an architecture: the decoder blocks, and what the heads' outputs go into; of a block, the MLP
is always called so."""


@contextmanager
def changing(model: PreTrainedModel, where: Where, change: Change, span: slice) -> Iterator[None]:
    """Change activations at the positions of ``span`` in every row and layer."""
    blocks, projection = _PLACES[model.config.model_type]
    with ExitStack() as stack:
        for layer, block in enumerate(model.get_submodule(blocks)):

            def changed(values: Tensor, layer: int = layer) -> Tensor:
                new = values.clone()
                for row in range(len(new)):
                    new[row, span] = change(layer, values[row, span])
                return new

            def before(m: nn.Module, given: Any, changed: Any = changed) -> Any:
                return (changed(given[0]), *given[1:])

            def after(m: nn.Module, given: Any, output: Any, changed: Any = changed) -> Any:
                if isinstance(output, tuple):
                    return (changed(output[0]), *output[1:])
                return changed(output)

            if where == "head":
                handle = block.get_submodule(projection).register_forward_pre_hook(before)
            else:
                changed_module = block.get_submodule("mlp") if where == "mlp" else block
                handle = changed_module.register_forward_hook(after)
            stack.callback(handle.remove)
        yield


def plain_logits(
    model: PreTrainedModel,
    tokens: list[int],
    where: Where = "head",
    change: Change | None = None,
    span: slice = slice(0, 0),
) -> Tensor:
    """One pass over one text: logits ``[seq, vocab]``."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if change is not None:
            stack.enter_context(changing(model, where, change, span))
        logits: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def for_prompt(
    model: PreTrainedModel, context: list[int], where: Where, change: Change | Gated | None
) -> Change | None:
    """The change of this prompt; where there is a gate, an unsteered pass says how much of it."""
    if not isinstance(change, Gated):
        return change
    whole, gate = change.change, change.gate(plain_activations(model, context, where))
    if gate == 0:
        return None
    return lambda layer, values: values + gate * (whole(layer, values) - values)


def span_of(prompt: int, scope: Scope) -> slice:
    """The positions that are edited after a prompt of so many tokens."""
    return slice(prompt - 1, prompt if scope == "prompt" else None)


def plain_score(
    model: PreTrainedModel,
    context: list[int],
    continuation: list[int],
    where: Where,
    change: Change | Gated | None,
    scope: Scope = "onwards",
) -> Score:
    text = [*context, *continuation]
    own = for_prompt(model, context, where, change)
    logits = plain_logits(model, text, where, own, span_of(len(context), scope))
    return oracle_score(logits, len(context), continuation)


def plain_generation(
    model: PreTrainedModel,
    prompt: list[int],
    steps: int,
    where: Where,
    change: Change | Gated | None,
    scope: Scope = "onwards",
) -> tuple[list[int], Tensor]:
    """Greedy: the whole text again for each token. Tokens, and logits ``[steps, vocab]``."""
    text, found = list(prompt), []
    own = for_prompt(model, prompt, where, change)
    for _ in range(steps):
        logits = plain_logits(model, text, where, own, span_of(len(prompt), scope))
        found.append(logits[-1])
        text.append(int(logits[-1].argmax()))
    return text[len(prompt) :], torch.stack(found)


def plain_activations(model: PreTrainedModel, tokens: list[int], where: Where) -> Tensor:
    """Activations at the last token of a text, ``[layers, width]``; a narrower layer's row ends in
    zeros.
    """
    seen: dict[int, Tensor] = {}

    def look(layer: int, values: Tensor) -> Tensor:
        seen[layer] = values[-1].clone()
        return values

    plain_logits(model, tokens, where, look, slice(0, None))
    return pad_sequence([seen[layer] for layer in range(len(seen))], batch_first=True)


def adding(shift: Tensor | None) -> Change | None:
    """A' = A + shift, ``[layers, width]``."""
    if shift is None:
        return None
    return lambda layer, values: values + shift[layer, : values.shape[-1]]


class Tried(NamedTuple):
    """A request as the harness made it, and its score in a run."""

    document: int
    context: str
    continuation: str
    score: Score


def tried(results: dict[str, Any], task: str) -> list[Tried]:
    """Every request of a multiple-choice task of a run."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [
        Tried(
            sample["doc_id"],
            arguments[0],
            arguments[1],
            (float(response[0][0]), bool(response[0][1])),
        )
        for sample in samples
        for arguments, response in zip(sample["arguments"], sample["resps"], strict=True)
    ]


def tokens_of(
    tokenizer: PreTrainedTokenizerFast, context: str, continuation: str, max_length: int = 256
) -> tuple[list[int], list[int]]:
    """A request as tokens: never without a context, and cut from the left where it is too long."""
    before = tokenizer.encode(context) or [tokenizer.bos_token_id]
    after = tokenizer.encode(continuation)
    return [*before, *after][-max_length - 1 : -len(after)], after


def assert_scored_as_the_loop_says(
    found: list[Tried],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    where: Where,
    change_of: Callable[[int], Change | Gated | None],
    scope: Scope = "onwards",
    max_length: int = 256,
) -> None:
    """Each choice of each document: the steered pass over its text, written out.

    Args:
        change_of: the edit of a document, by its number.
    """
    expected = [
        plain_score(
            model,
            *tokens_of(tokenizer, one.context, one.continuation, max_length),
            where,
            change_of(one.document),
            scope,
        )
        for one in found
    ]
    assert [one.score[0] for one in found] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert [one.score[1] for one in found] == [e[1] for e in expected]


def drawn_pairs(
    folder: Path, name: str, method: str, mask: int = 0, **arguments: Any
) -> list[Pair]:
    """The pairs of a mask."""
    options = read_arm(method, {"n_pairs": 12, **arguments}).options
    plan = find_plan(load(folder, name), options)
    return draw(plan, plan.sources.sources[mask], options, ()).pairs


def texts_of_pairs(
    folder: Path, name: str, method: str, mask: int = 0, **arguments: Any
) -> list[tuple[str, str]]:
    """The right and the wrong text of every pair of a mask, prompts included.

    One without a prompt begins with the token that scoring puts in its place.
    """

    def whole(prompt: str, answer: str) -> str:
        return (prompt or "<s>") + answer

    pairs = drawn_pairs(folder, name, method, mask, **arguments)
    return [(whole(*pair.positive), whole(*pair.negative)) for pair in pairs]


def answered_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: list[Document],
    form: Form,
    where: Where,
    max_length: int = 256,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Activations of the prompts, ``[prompts, layers, width]`` in double precision, and of each the
    index of the right choice and of the likeliest, the first of equals.
    """
    values, answers = [], []
    for document in documents:
        requests = [
            tokens_of(tokenizer, form.prompt(document), choice, max_length)
            for choice in form.choices(document)
        ]
        likely = [plain_score(model, *request, where, None)[0] for request in requests]
        values.append(plain_activations(model, requests[0][0], where).double())
        answers.append((document["label"], likely.index(max(likely))))
    return torch.stack(values), answers


def activations_of_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[tuple[str, str]],
    where: Where,
    max_length: int = 256,
) -> tuple[Tensor, Tensor]:
    """Of the right and of the wrong texts, ``[pairs, layers, width]`` each, in double precision."""
    sides = []
    for side in zip(*texts, strict=True):
        values = []
        for text in side:
            ids = tokenizer.encode(text)[-max_length:]
            values.append(plain_activations(model, ids, where).double())
        sides.append(torch.stack(values))
    return sides[0], sides[1]


def assert_generated_as_the_loop_says(
    results: dict[str, Any],
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    where: Where,
    change: Change | Gated | None,
    scope: Scope = "onwards",
    steps: int = 6,
) -> None:
    """Text for text, up to where the end is generated."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    for sample in samples:
        prompt = tokenizer.encode(sample["arguments"][0][0])
        found, _ = plain_generation(model, prompt, steps, where, change, scope)
        end = tokenizer.eos_token_id
        kept = found[: found.index(end)] if end in found else found
        assert sample["resps"][0][0] == tokenizer.decode(kept, skip_special_tokens=True)
