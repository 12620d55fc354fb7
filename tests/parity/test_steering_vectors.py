"""CAA's vector and its scores are those of the package steering-vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.tasks import load
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.storage.fit_file import load_fit

steering_vectors = pytest.importorskip("steering_vectors", reason="steering-vectors is not there")
pytestmark = pytest.mark.slow

LAYER, MULTIPLIER = 1, 1.5
GIVEN = {"layer": LAYER, "multiplier": MULTIPLIER, "n_pairs": 20}


@pytest.fixture
def model(model_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture
def vector(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks_folder: Path) -> Any:
    """What the package makes of the same pairs, as texts."""
    plan = find_plan(load(tasks_folder, "tiny_choice"), read_arm("caa", {"n_pairs": 20}).options)
    pairs = draw(plan, plan.sources.sources[0], read_arm("caa", {"n_pairs": 20}).options, ()).pairs
    texts = [("".join(pair.positive), "".join(pair.negative)) for pair in pairs]
    return steering_vectors.train_steering_vector(model, tokenizer, texts, layers=[LAYER])


def test_the_vector_is_that_of_the_package(evaluate: Any, vector: Any) -> None:
    results = evaluate("tiny_choice", model="hf-caa", limit=2, **GIVEN)
    [fit] = results["config"]["sadi"]["tiny_choice"]["fits"]
    ours = load_fit(Path(fit["file"])).tensors["difference"][LAYER].flatten()
    theirs = vector.layer_activations[LAYER]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.cosine_similarity(ours, theirs, dim=0) > 1 - 1e-6


def test_the_scores_are_those_of_the_package(
    evaluate: Any, vector: Any, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    results = evaluate("tiny_choice", model="hf-caa", limit=8, **GIVEN)
    apart = []
    for sample in results["samples"]["tiny_choice"]:
        for index, response in enumerate(sample["resps"]):
            arguments = sample["arguments"][index]
            context, target = (tokenizer.encode(text) for text in arguments)
            tokens = torch.tensor([[*context, *target]])
            last = len(context) - 1
            with (
                torch.no_grad(),
                vector.apply(model, multiplier=MULTIPLIER, min_token_index=last),
            ):
                found = model(tokens).logits[0].log_softmax(-1)
            score = sum(float(found[last + i, token]) for i, token in enumerate(target))
            apart.append(abs(score - float(response[0][0])))
    assert len(apart) == 24
    assert max(apart) < 1e-4
