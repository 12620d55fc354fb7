"""Steering outside the harness: fits of own pairs, saved, loaded, and any model steered by them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import pytest
import torch
from huggingface_hub import ModelCard
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TextStreamer, pipeline

import sadi_lmeval as sadi
from helpers.equations.caa import caa_shift
from helpers.equations.mean_difference import mean_difference
from helpers.equations.sadi import sadi_change
from helpers.hub import Hub, running_hub
from helpers.loops import (
    activations_of_pairs,
    adding,
    plain_generation,
    plain_logits,
    span_of,
)
from helpers.results import numbers
from helpers.tasks import make_task
from sadi_lmeval.api import steering_fit
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.identity.weights import weights_digest
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.storage.hub import model_card
from sadi_lmeval.storage.kept_fits import kept_fits

PAIRS = [
    {"prompt": "is the river long", "positive": "yes it is", "negative": "no it is not"},
    {"prompt": "is a stone soft", "positive": "no never", "negative": "yes it is"},
    {"prompt": "who sings", "positive": "a bird", "negative": "the stone"},
    {"prompt": "what is old", "positive": "the tree over there", "negative": "a small child"},
]
PROMPTS = ["the bird", "a small child sings over the river", "is it so", "old stone"]
STEPS = 5


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"cache_dir": str(tmp_path / "cache")}


@pytest.fixture
def sadi_fit(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cache: dict[str, str]
) -> sadi.SteeringFit:
    return sadi.fit(harness_model, tokenizer, PAIRS, top_k=5, delta=3, **cache)


@pytest.fixture
def caa_fit(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cache: dict[str, str]
) -> sadi.SteeringFit:
    return sadi.fit(harness_model, tokenizer, PAIRS, "caa", layer=1, multiplier=2, **cache)


def test_a_fit_says_nothing_that_no_one_can_act_on(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    cache: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING")
    sadi.fit(harness_model, tokenizer, PAIRS, "caa", layer=1, **cache)
    assert caplog.messages == []


def test_a_fit_of_another_model_of_the_same_shape_is_told(
    harness_model: LlamaForCausalLM,
    caa_fit: sadi.SteeringFit,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = sadi.load(caa_fit.save(tmp_path / "fit.safetensors"))
    with mock.patch.object(steering_fit, "weights_digest", wraps=weights_digest) as read:
        same = copy.deepcopy(harness_model)
        with fit.steering(same), fit.steering(same, 3):
            pass
    assert read.call_count == 1  # it takes as long as a pass of a large model, or longer
    assert not caplog.messages
    retrained = copy.deepcopy(harness_model)
    with torch.no_grad():
        retrained.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    for _ in range(2):  # is told once
        with fit.steering(retrained):
            pass
    assert len(caplog.messages) == 1
    sadi.wrap(copy.deepcopy(retrained), fit)
    assert len(caplog.messages) == 2
    assert all("made for another model of the same shape" in each for each in caplog.messages)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as made:
        yield made


def difference(model: Any, tokenizer: Any, where: Any, pairs: Any = PAIRS) -> Tensor:
    """The mean difference of plain passes, ``[layers, width]``."""
    texts = [(f"{p['prompt']} {p['positive']}", f"{p['prompt']} {p['negative']}") for p in pairs]
    return mean_difference(*activations_of_pairs(model, tokenizer, texts, where), {})


def generated(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
    """Greedy texts of a left-padded batch."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    out = model.generate(
        **inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, pad_token_id=2,
        **options,
    )  # fmt: skip
    return [tokenizer.decode(row[-STEPS:]) for row in out]


def looped(model: Any, tokenizer: Any, prompt: str, where: Any, change: Any, scope: Any) -> str:
    """The same of a loop that computes the whole text again for each token."""
    text: list[int] = []
    prompt_tokens = tokenizer.encode(prompt)
    for _ in range(STEPS):
        tokens = [*prompt_tokens, *text]
        span = span_of(len(prompt_tokens), scope)
        logits = plain_logits(model, tokens, where, change, span)[-1]
        logits[2] = -torch.inf  # the end is ruled out by min_new_tokens
        text.append(int(logits.argmax()))
    return str(tokenizer.decode(text))


# ------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("as_file", [False, True])
def test_a_fit_is_that_of_plain_passes_over_the_pairs(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    cache: dict[str, str],
    as_file: bool,
) -> None:
    given: Any = PAIRS
    if as_file:
        given = tmp_path / "pairs.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    fit = sadi.fit(harness_model, tokenizer, given, **cache)
    expected = difference(harness_model, tokenizer, "head")
    torch.testing.assert_close(fit.fit.tensors["difference"].flatten(1), expected)
    assert fit.fit.card["n_pairs"] == len(fit.fit.card["documents"]) == len(PAIRS)
    assert str(tmp_path) not in json.dumps(fit.fit.card)


def test_the_contrast_may_stand_in_the_prompt(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cache: dict[str, str]
) -> None:
    rows = [
        {"positive_prompt": "the bird sings", "negative_prompt": "a stone", "completion": end}
        for end in ("is it so", "what is old")
    ]
    fit = sadi.fit(harness_model, tokenizer, rows, "caa", **cache)
    texts = [tuple(f"{r[f'{s}_prompt']} {r['completion']}" for s in ("positive", "negative"))
             for r in rows]  # fmt: skip
    sides = activations_of_pairs(harness_model, tokenizer, texts, "residual")  # type: ignore[arg-type]
    torch.testing.assert_close(
        fit.fit.tensors["difference"].flatten(1), mean_difference(*sides, {})
    )


def test_chat_messages_are_rendered_by_the_template(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cache: dict[str, str]
) -> None:
    def messages(system: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": "who sings"}]

    rows = [
        {
            "positive_prompt": messages("the bird"),
            "negative_prompt": messages("a stone"),
            "completion": "it is so",
        }
    ]
    fit = sadi.fit(harness_model, tokenizer, rows, "caa", **cache)
    shown = [
        tokenizer.apply_chat_template(rows[0][f"{side}_prompt"], tokenize=False,
                                      add_generation_prompt=True) + "it is so"
        for side in ("positive", "negative")
    ]  # fmt: skip
    assert "assistant" in shown[0]
    sides = activations_of_pairs(harness_model, tokenizer, [(shown[0], shown[1])], "residual")
    torch.testing.assert_close(
        fit.fit.tensors["difference"].flatten(1), mean_difference(*sides, {})
    )


# ------------------------------------------------------------------ generation


def test_steered_texts_are_those_of_a_loop(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sadi_fit: sadi.SteeringFit,
    caa_fit: sadi.SteeringFit,
) -> None:
    plain = generated(harness_model, tokenizer, PROMPTS)
    heads = sadi_change(difference(harness_model, tokenizer, "head"), {"top_k": 5, "delta": 3})
    shift = adding(caa_shift(difference(harness_model, tokenizer, "residual"), 1, 2))
    cases: list[tuple[sadi.SteeringFit, Any, Any, Any]] = [
        (sadi_fit, "head", heads, "prompt"),
        (caa_fit, "residual", shift, "onwards"),
    ]
    for fit, where, change, scope in cases:
        with fit.steering(harness_model):
            found = generated(harness_model, tokenizer, PROMPTS)
        expected = [looped(harness_model, tokenizer, p, where, change, scope) for p in PROMPTS]
        assert found == expected
        assert found != plain
        with fit.steering(harness_model):
            one_by_one = [generated(harness_model, tokenizer, [p])[0] for p in PROMPTS]
        assert one_by_one == found
    assert generated(harness_model, tokenizer, PROMPTS) == plain
    assert "generate" not in harness_model.__dict__


def test_several_fits_steer_at_once(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sadi_fit: sadi.SteeringFit,
    caa_fit: sadi.SteeringFit,
) -> None:
    """Clean activations, of which there must be an unsteered pass, among them."""
    clean = sadi_fit.with_setting(activations="clean")  # type: ignore[arg-type]
    tokens = tokenizer.encode(PROMPTS[1])
    v = difference(harness_model, tokenizer, "residual")
    later = caa_fit.with_setting(layer=2)
    with caa_fit.steering(harness_model), later.steering(harness_model):
        found = generated(harness_model, tokenizer, PROMPTS)
    both = adding(caa_shift(v, 1, 2) + caa_shift(v, 2, 2))
    assert found == [
        looped(harness_model, tokenizer, p, "residual", both, "onwards") for p in PROMPTS
    ]

    # The clean values are those of the model without the other fit, whichever comes first.
    ids = torch.tensor([tokens])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    first = sadi_fit.with_setting(activations="clean", delta=0.5)  # type: ignore[arg-type]
    with first.steering(harness_model):
        alone = harness_model(**inputs).logits[0, -1]
    with caa_fit.with_setting(strength=0).steering(harness_model), first.steering(harness_model):
        beside = harness_model(**inputs).logits[0, -1]
    torch.testing.assert_close(alone, beside, atol=0, rtol=0)
    with caa_fit.steering(harness_model), clean.steering(harness_model):
        one = generated(harness_model, tokenizer, PROMPTS)
    with clean.steering(harness_model), caa_fit.steering(harness_model):
        other = generated(harness_model, tokenizer, PROMPTS)
    assert one == other


def test_beams_sampling_and_streams_are_steered(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    caa_fit: sadi.SteeringFit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [plain] = generated(harness_model, tokenizer, PROMPTS[:1], num_beams=3)
    with caa_fit.steering(harness_model):
        [steered] = generated(harness_model, tokenizer, PROMPTS[:1], num_beams=3)
        assert steered != plain
        [whole] = generated(
            harness_model, tokenizer, PROMPTS[:1],
            streamer=TextStreamer(tokenizer, skip_prompt=True),
        )  # fmt: skip
    assert capsys.readouterr().out.split() == whole.split()
    change = adding(caa_shift(difference(harness_model, tokenizer, "residual"), 1, 2))
    tokens = tokenizer.encode(PROMPTS[0])
    expected, _ = plain_generation(harness_model, tokens, 1, "residual", change)
    assert tokenizer.encode(whole)[:1] == expected or expected == [2]


def test_texts_are_those_of_lm_eval(
    evaluate: Any,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    caa_fit: sadi.SteeringFit,
    tmp_path: Path,
) -> None:
    mask = caa_fit.save(tmp_path / "mine.safetensors")
    results = evaluate("tiny_text", model="hf-caa", fit=str(mask))
    samples = sorted(results["samples"]["tiny_text"], key=lambda sample: sample["doc_id"])
    with caa_fit.steering(harness_model):
        for sample in samples:
            inputs = tokenizer(sample["arguments"][0][0], return_tensors="pt")
            out = harness_model.generate(
                inputs["input_ids"], max_new_tokens=6, do_sample=False, pad_token_id=2
            )
            new = out[0, inputs["input_ids"].shape[1] :]
            assert sample["resps"][0][0] == tokenizer.decode(new, skip_special_tokens=True)
    assert len(samples) == 10


# ------------------------------------------------------------------ forward passes


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pass_over_padded_prompts_is_edited_at_their_last_tokens(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sadi_fit: sadi.SteeringFit,
    side: str,
) -> None:
    change = sadi_change(difference(harness_model, tokenizer, "head"), {"top_k": 5, "delta": 3})
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    inputs.pop("token_type_ids", None)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), sadi_fit.steering(harness_model):
        logits = harness_model(**inputs, position_ids=positions).logits
    for row, prompt in enumerate(PROMPTS):
        tokens = tokenizer.encode(prompt)
        last = int(inputs["attention_mask"][row].nonzero().max())
        expected = plain_logits(
            harness_model, tokens, "head", change, span_of(len(tokens), "prompt")
        )
        torch.testing.assert_close(logits[row, last], expected[-1], atol=1e-5, rtol=1e-5)


def test_a_loop_with_a_cache_is_edited_from_the_last_prompt_token_on(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    caa_fit: sadi.SteeringFit,
) -> None:
    change = adding(caa_shift(difference(harness_model, tokenizer, "residual"), 1, 2))
    tokens = tokenizer.encode(PROMPTS[1])
    _, expected = plain_generation(harness_model, tokens, 4, "residual", change)
    found: list[Tensor] = []
    past = None
    ids = torch.tensor([tokens])
    with torch.no_grad(), caa_fit.steering(harness_model):
        for _ in range(4):
            mask = torch.ones(1, len(tokens) + len(found))
            kept = {cache_parameter(harness_model): past}
            out = harness_model(input_ids=ids, attention_mask=mask, use_cache=True, **kept)
            past = out.past_key_values
            found.append(out.logits[0, -1])
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=1e-5)


def test_where_a_prompt_ends_must_be_told(
    harness_model: LlamaForCausalLM, caa_fit: sadi.SteeringFit
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with caa_fit.steering(harness_model), pytest.raises(sadi.UserError, match="attention_mask"):
        harness_model(ids)
    embedded = harness_model.get_input_embeddings()(ids)
    with caa_fit.steering(harness_model), pytest.raises(sadi.UserError, match="input_ids"):
        harness_model.generate(inputs_embeds=embedded, max_new_tokens=1)


# ------------------------------------------------------------------ wrapped models


def test_a_wrapped_model_is_always_steered_and_the_other_never(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    caa_fit: sadi.SteeringFit,
) -> None:
    plain = generated(harness_model, tokenizer, PROMPTS)
    wrapped = sadi.wrap(harness_model, caa_fit, caa_fit.with_setting(layer=2))
    assert next(wrapped.parameters()) is next(harness_model.parameters())
    with caa_fit.steering(harness_model), caa_fit.with_setting(layer=2).steering(harness_model):
        expected = generated(harness_model, tokenizer, PROMPTS)
        again = generated(sadi.wrap(harness_model), tokenizer, PROMPTS)
    assert again == plain
    assert generated(wrapped, tokenizer, PROMPTS) == expected != plain
    assert generated(harness_model, tokenizer, PROMPTS) == plain

    made = pipeline("text-generation", model=wrapped, tokenizer=tokenizer, device="cpu")
    out = made(PROMPTS[1], max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
    assert out[0]["generated_text"].removeprefix(PROMPTS[1]).split() == expected[1].split()


def test_the_harness_s_hf_generates_with_a_wrapped_model_and_scores_with_its_own(
    evaluate: Any,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task_manager: Any,
    caa_fit: sadi.SteeringFit,
    tmp_path: Path,
) -> None:

    mask = str(caa_fit.save(tmp_path / "mine.safetensors"))
    settings: dict[str, Any] = {"limit": 10, "bootstrap_iters": 0, "task_manager": task_manager}
    hf = HFLM(sadi.wrap(harness_model, caa_fit), tokenizer=tokenizer, batch_size=4)
    found = lm_eval.simple_evaluate(hf, tasks=["tiny_text"], **settings)
    expected = evaluate("tiny_text", model="hf-caa", fit=mask)
    texts = [[s["resps"] for s in r["samples"]["tiny_text"]] for r in (found, expected)]
    assert texts[0] == texts[1]
    with pytest.raises(sadi.UserError, match="hf-METHOD"):
        lm_eval.simple_evaluate(hf, tasks=["tiny_choice"], **settings)
    own = caa_fit.harness_model(harness_model, tokenizer, batch_size=4, cache_dir=str(tmp_path))
    scored = lm_eval.simple_evaluate(own, tasks=["tiny_choice"], **settings)
    by_file = evaluate("tiny_choice", model="hf-caa", mask=mask, layer=1, multiplier=2)
    assert numbers(scored, "tiny_choice") == numbers(by_file, "tiny_choice")


# ------------------------------------------------------------------ files


def test_a_file_says_the_method_and_the_setting(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sadi_fit: sadi.SteeringFit,
    tmp_path: Path,
) -> None:
    path = sadi_fit.with_setting(activations="clean").save(tmp_path / "f" / "x.safetensors")  # type: ignore[arg-type]
    again = sadi.load(path)
    assert again.setting == {"top_k": 5, "delta": 3.0}
    assert again.method.record() == {**sadi_fit.method.record(), "activations": "clean"}
    assert again.arm.options.seed == 0
    card = load_fit(path).card
    assert str(tmp_path) not in json.dumps(card)
    with again.steering(harness_model):
        found = generated(harness_model, tokenizer, PROMPTS)
    with sadi_fit.steering(harness_model, activations="clean"):  # type: ignore[arg-type]
        assert generated(harness_model, tokenizer, PROMPTS) == found


def test_strength_is_the_method_s_own_number(
    sadi_fit: sadi.SteeringFit, caa_fit: sadi.SteeringFit
) -> None:
    assert sadi_fit.with_setting(strength=7).setting == {"top_k": 5, "delta": 7.0}
    assert caa_fit.with_setting(strength=-1).setting == {"layer": 1, "multiplier": -1.0}
    assert sadi_fit.with_setting(top_k=2).setting == {"top_k": 2, "delta": 3.0}


def test_a_layer_that_nobody_has_named_is_asked_for(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cache: dict[str, str]
) -> None:
    fit = sadi.fit(harness_model, tokenizer, PAIRS, "caa", **cache)
    with pytest.raises(
        sadi.UserError, match="caa needs layer=, a whole number of at least 0 up to 2"
    ):
        fit.edits(harness_model)
    assert fit.edits(harness_model, layer=1).digest(0) == fit.edits(
        harness_model, layer=1, multiplier=1
    ).digest(0)
    usual = sadi.fit(harness_model, tokenizer, PAIRS, **cache)
    assert usual.edits(harness_model).digest(0) == usual.edits(
        harness_model, top_k=6, delta=9
    ).digest(0)


def question_rows(numbers: range) -> list[dict[str, Any]]:
    return [
        {"question": f"is it {n}", "choices": ["yes", "no"], "label": int(n % 5 == 0)}
        for n in numbers
    ]


def own_task(folder: Path, **splits: range) -> None:
    """A task ``own`` with questions of these numbers."""
    make_task(folder, "own", {name: question_rows(numbers) for name, numbers in splits.items()})


CHOSEN: dict[str, Any] = {"n_pairs": 12, "n_tune": 8, "grid": "1/5x-2/3", "rule": "best"}


def test_a_task_s_fit_has_the_setting_that_was_chosen(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own_task(tmp_path, train=range(50), validation=range(50, 60))
    fit = sadi.fit(
        harness_model, tokenizer, from_task="own", include_path=str(tmp_path),
        cache_dir=str(tmp_path / "cache"), **CHOSEN,
    )  # fmt: skip
    assert fit.fit.card["task"] == "own"
    assert fit.fit.card["n_pairs"] == 12
    choice = fit.fit.card["choice"]
    assert (choice["task"], choice["metric"], choice["n_documents"]) == ("own", "acc", 8)
    assert choice["n_settings"] == 4
    assert choice["setting"] == (fit.setting if choice["steers"] else {})
    assert choice["difference"] == pytest.approx(choice["score"] - choice["unsteered"])
    used = fit.fit.card["documents"], fit.fit.card["chosen_on"]["documents"]
    assert [len(set(each)) for each in used] == [12, 8]
    assert not set(used[0]) & set(used[1])

    # Of another setting, or of other arguments, the card says nothing that was found with this one.
    for other in (fit.with_setting(delta=99), fit.with_setting(activations="clean")):  # type: ignore[arg-type]
        card = load_fit(other.save(tmp_path / "other.safetensors")).card
        assert "choice" not in card
        assert card["chosen_on"] == fit.fit.card["chosen_on"]
    again = sadi.load(fit.save(tmp_path / "mine.safetensors"))
    assert load_fit(again.save(tmp_path / "again.safetensors")).card["choice"] == choice


def test_a_cross_fitted_task_has_one_fit_that_may_score_none_of_its_documents(
    model_folder: Path,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    own_task(tmp_path, validation=range(40))
    fit = sadi.fit(
        harness_model, tokenizer, from_task="own", include_path=str(tmp_path),
        cache_dir=str(tmp_path / "cache"), **CHOSEN,
    )  # fmt: skip
    assert fit.fit.card["source"] == "all of validation"
    used = [fit.fit.card["documents"], fit.fit.card["chosen_on"]["documents"]]
    assert [len(set(each)) for each in used] == [12, 8]
    assert not set(used[0]) & set(used[1])
    mine = str(fit.save(tmp_path / "mine.safetensors"))

    def scored(*asked: int) -> Any:
        return lm_eval.simple_evaluate(
            model="hf-sadi",
            model_args={"pretrained": str(model_folder), "fit": mine},
            tasks=["own"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            samples={"own": list(asked)}, device="cpu", bootstrap_iters=0,
        )  # fmt: skip

    documents = question_rows(range(40))
    at = {digest(document): n for n, document in enumerate(documents)}
    pairs, tuned = ([at[each] for each in part] for part in used)
    for leak in (pairs[0], tuned[0]):
        with pytest.raises(sadi.UserError, match="was built from a document that task own scores"):
            scored(leak)
    free = sorted(set(range(40)) - set(pairs) - set(tuned))
    assert len(free) == 20
    assert len(scored(*free)["samples"]["own"]) == 20


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give either pairs or from_task=TASK"),
        ({"pairs": []}, "there are none"),
        ({"pairs": [{"prompt": "a", "positive": "b"}]}, "pairs, row 1: must be a JSON object"),
        ({"pairs": PAIRS, "method": "saddi"}, "unknown method 'saddi'"),
        ({"pairs": PAIRS, "detla": 3}, "unknown model argument 'detla'"),
        ({"pairs": "nothing.jsonl"}, "pairs nothing.jsonl: cannot be read"),
    ],
)
def test_faults_are_said_in_one_line(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    given: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(sadi.UserError, match=words) as caught:
        sadi.fit(harness_model, tokenizer, **given)
    assert "\n" not in str(caught.value)


def test_other_faults_are_said_in_one_line(
    harness_model: LlamaForCausalLM, sadi_fit: sadi.SteeringFit, tmp_path: Path
) -> None:
    from helpers.models import tiny_llama

    wider = tiny_llama(64, num_hidden_layers=2)
    with pytest.raises(sadi.UserError, match="for shape"), sadi_fit.steering(wider):
        pass
    with pytest.raises(sadi.UserError, match="did you mean 'delta'"):
        sadi_fit.with_setting(detla=3)
    with pytest.raises(sadi.UserError, match="pass one of them"):
        sadi_fit.with_setting(strength=3, delta=3)
    with pytest.raises(sadi.UserError, match="no such file"):
        sadi.load(tmp_path / "none.safetensors")
    with pytest.raises(sadi.UserError, match="this model has"):
        sadi_fit.edits(harness_model, top_k=1000)


# ------------------------------------------------------------------ the hub

_THERE_AND_BACK = """
import sys
import sadi_lmeval as sadi
if sys.argv[1] == "push":
    print(sadi.load(sys.argv[2]).push_to_hub("me/fit", token="secret"))
else:
    fit = sadi.load("me/fit")
    print(fit.method.name, fit.setting, fit.fit.digest)
"""


def results_of(card: ModelCard) -> dict[str, Any]:
    """The values of a card's model-index by the names that it has for them."""
    return {str(each.metric_name): each.metric_value for each in card.data.eval_results or []}  # type: ignore[attr-defined]


def test_a_model_card_has_the_results_of_held_out_documents_under_that_name(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own_task(tmp_path, train=range(50), validation=range(50, 60))

    fit = sadi.fit(
        harness_model, tokenizer, None, "caa", from_task="own", n_pairs=12, n_tune=30, rule="best",
        grid="0/1/2x-30/30", include_path=str(tmp_path), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    choice = fit.fit.card["choice"]
    assert choice["difference"] > 0
    (tmp_path / "README.md").write_text(str(model_card(fit._with_card(), "me/fit")))
    card = ModelCard.load(tmp_path / "README.md")
    named = "held-out documents that the setting was chosen on"
    assert results_of(card) == {
        f"acc (steered, 30 {named})": choice["score"],
        f"acc (unsteered, 30 {named})": choice["unsteered"],
        f"acc (steered minus unsteered, 30 {named})": choice["difference"],
    }
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["name"] == "own"
    assert "was chosen among 6 settings on 30 held-out documents of own" in card.text
    assert "nor a test set" in card.text
    assert str(tmp_path) not in str(card)

    # The command that exports out of the cache writes the same card.
    [kept] = kept_fits(tmp_path / "cache")
    assert {name: fit.fit.card[name] for name in kept.of_choice} == kept.of_choice

    other = model_card(fit.with_setting(strength=99)._with_card(), "me/fit")
    assert results_of(other) == {}
    assert "held-out" not in other.text

    # A rule that takes nothing has no result to tell.
    choice.update(steers=False, setting={})
    unsteered = model_card(fit.with_setting(strength=0)._with_card(), "me/fit")
    assert results_of(unsteered) == {}
    assert "none was taken (rule best): as it is, this fit steers nothing" in unsteered.text


def test_a_fit_goes_to_the_hub_and_back(
    sadi_fit: sadi.SteeringFit, hub: Hub, tmp_path: Path
) -> None:
    path = sadi_fit.save(tmp_path / "mine.safetensors")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", _THERE_AND_BACK, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    assert hub.url in run("push", str(path))
    assert set(hub.files) == {"README.md", "fit.safetensors"}
    card = hub.files["README.md"].decode()
    assert 'sadi.load("me/fit")' in card
    assert "top_k=5" in card
    assert str(tmp_path) not in card
    assert run("load") == f"sadi {sadi_fit.setting} {sadi_fit.fit.digest}"
