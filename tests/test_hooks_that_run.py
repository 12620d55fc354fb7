"""A steered pass whose hooks do not run is an error, or mended where it can be."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.models import tiny_llama
from helpers.oracle import make_model
from sadi_lmeval.architecture.compiled import running_as_written
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.types import Scope

REQUESTS = [Continuation((5, 9, 7, 3), tokens, 0) for tokens in ((4, 8), (6,))]


def edits_of(model: nn.Module, scope: Scope = "prompt") -> DiagonalEdits:
    site = find_site(model, "hidden")
    gain = torch.zeros(site.layers, site.width)
    gain[1:, ::2] = 3.0
    return DiagonalEdits(site, [Edit(gain)], scope=scope)


def scored(engine: Engine, edits: DiagonalEdits | None) -> list[float]:
    found: dict[int, Score] = {}
    engine.score(REQUESTS, edits, found.update)
    return [found[index][0] for index in range(len(REQUESTS))]


def test_modules_that_are_no_longer_part_of_the_model_are_an_error() -> None:
    model = make_model()
    engine, edits = Engine(model, pad=0, rows=4, max_length=64), edits_of(model)
    steered = scored(engine, edits)
    assert steered != scored(engine, None)
    model.model.layers = copy.deepcopy(model.model.layers)
    with pytest.raises(UserError, match="did not run the hooks of 2 of 2 layers"):
        scored(engine, edits)


@pytest.mark.parametrize("scope", ["prompt", "onwards"])
def test_texts_of_modules_that_are_no_longer_part_of_the_model_are_an_error(scope: Scope) -> None:
    model = make_model()
    edits = edits_of(model, scope)
    ids = torch.tensor([[5, 9, 7, 3]])
    mask = torch.ones_like(ids)
    with steered_generation(model, edits, 0, ids, mask):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    model.model.layers = copy.deepcopy(model.model.layers)
    with (
        pytest.raises(UserError, match="did not run the hooks of 2 of 2 layers"),
        steered_generation(model, edits, 0, ids, mask),
    ):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)


def test_a_model_that_computes_its_logits_without_a_call_of_its_head_is_scored_as_by_hf(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    class Tied(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **inputs: Any) -> CausalLMOutputWithPast:
            inputs.pop("labels", None)
            inputs.pop("logits_to_keep", None)
            output = self.model(input_ids=input_ids, **inputs)
            logits = nn.functional.linear(output.last_hidden_state, self.lm_head.weight)
            return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    plain = tiny_llama(len(tokenizer))
    tied = Tied(plain.config).eval()
    tied.load_state_dict(plain.state_dict())
    for edits in (None, edits_of):
        found = [
            scored(Engine(m, pad=0, rows=4, max_length=64), None if edits is None else edits(m))
            for m in (plain, tied)
        ]
        assert found[1] == pytest.approx(found[0], abs=1e-4)
    requests = [
        Instance("loglikelihood", {}, ("the cat sat on", f" {word}"), index)
        for index, word in enumerate(("the tree", "a", "red stone river"))
    ]
    theirs = HFLM(pretrained=tied, tokenizer=tokenizer, device="cpu").loglikelihood(requests)
    contexts = [(tokenizer.encode(r.args[0]), tokenizer.encode(r.args[1])) for r in requests]
    engine, ours = Engine(tied, pad=0, rows=4, max_length=64), dict[int, Score]()
    engine.score([Continuation(tuple(c), tuple(t)) for c, t in contexts], None, ours.update)
    assert [ours[i][0] for i in range(3)] == pytest.approx([s for s, _ in theirs], abs=1e-4)


def in_place(model: LlamaForCausalLM) -> nn.Module:
    model.compile(backend="eager")
    return model  # type: ignore[no-any-return]


def wrapped(model: LlamaForCausalLM) -> Any:
    return torch.compile(model, backend="eager")


def its_forward(model: LlamaForCausalLM) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")
    return model  # type: ignore[no-any-return]


@pytest.mark.slow  # dynamo takes long to import
@pytest.mark.parametrize("way", ["in place", "wrapped", "its forward"])
def test_what_a_model_was_compiled_to_is_not_run(way: str) -> None:
    ran = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            ran.append(way)
            return graph.forward(*arguments)

        return run

    class Doubled(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * values

    torch._dynamo.reset()
    model: Any = Doubled()
    if way == "in place":
        model.compile(backend=backend)
    elif way == "wrapped":
        model = torch.compile(model, backend=backend)
    else:
        model.forward = torch.compile(model.forward, backend=backend)
    given = torch.ones(1, 2)
    counts = []
    for as_written in (False, True, False):
        ran.clear()
        with running_as_written(model) if as_written else nullcontext(), torch.no_grad():
            model(given)
        counts.append(len(ran))
    assert counts == [1, 0, 1]


@pytest.mark.slow  # dynamo takes long to import and to trace
@pytest.mark.parametrize("compiled", [in_place, wrapped, its_forward])
def test_a_compiled_model_is_steered_whatever_it_was_traced_with(
    evaluate: Any, tokenizer: PreTrainedTokenizerFast, compiled: Any
) -> None:
    def responses(model: Any, task: str, **arguments: Any) -> list[Any]:
        given = {"pretrained": model, "tokenizer": tokenizer, **arguments}
        samples = evaluate(task, limit=4, **given)["samples"][task]
        found = [response[0] for sample in samples for response in sample["resps"]]
        return [r if isinstance(r, str) else float(r[0]) for r in found]

    plain = tiny_llama(len(tokenizer))
    steer = {"element": "hidden", "top_k": 9, "delta": 6}
    for task in ("tiny_choice", "tiny_text"):
        torch._dynamo.reset()
        model = compiled(tiny_llama(len(tokenizer)))
        with torch.no_grad():
            model(torch.tensor([[5, 9, 7]]))  # traced without hooks
        for arguments in ({"delta": 0}, steer, {"delta": 0}):
            found = responses(model, task, **arguments)
            expected = responses(plain, task, **arguments)
            assert found == (expected if task == "tiny_text" else pytest.approx(expected))
