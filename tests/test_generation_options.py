"""Whatever the options of generation, unsteered texts are those of ``hf``."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from conftest import WORDS
from helpers.generation import planned_texts
from sadi_lmeval.passes import prefill

INSTRUCTION = " ".join(WORDS[:60])
"""All prompts begin with it, so that their beginning is worth computing once."""
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "cache_implementation": {"cache_implementation": "static"},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.8},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [9, 7]]},
    "sequence_bias": {"sequence_bias": [[[5], -9.0], [[9, 7], 9.0]]},
    "suppress_tokens": {"suppress_tokens": list(range(3, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 60))},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.5]},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "min_new_tokens": {"min_new_tokens": 6},
    "num_beams": {"num_beams": 3},
    "length_penalty": {"num_beams": 3, "length_penalty": -2.0},
    "early_stopping": {"num_beams": 3, "early_stopping": True},
    "guidance_scale": {"guidance_scale": 1.5},
    "prefill_chunk_size": {"prefill_chunk_size": 16},
    "use_cache": {"top_k": 7, "top_p": 0.9},
}
GREEDY = ("none", "use_cache")
"""Those with which the likeliest token is taken, whatever came before."""


def texts(results: dict[str, Any]) -> list[str]:
    samples = sorted(results["samples"]["tiny_text"], key=lambda sample: sample["doc_id"])
    return [str(sample["resps"][0][0]) for sample in samples]


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_those_of_hf(evaluate: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = []
    share = prefill.with_shared_beginning

    def watched(*arguments: Any) -> Any:
        shared.append(share(*arguments))
        return shared[-1]

    monkeypatch.setattr("sadi_lmeval.generating.with_shared_beginning", watched)
    planned = planned_texts(monkeypatch)
    size = 1 if name == "prompt_lookup_num_tokens" else 4  # transformers takes no more for it

    def settings() -> dict[str, Any]:
        options = {"gen_kwargs": dict(OPTIONS[name]), "system_instruction": INSTRUCTION}
        return {**options, "batch_size": size}

    expected = texts(evaluate("tiny_text", model="hf", settings=settings()))
    assert texts(evaluate("tiny_text", delta=0, settings=settings())) == expected
    indifferent = set(OPTIONS[name]) <= prefill._INDIFFERENT
    decoded = name in GREEDY
    assert bool(sum(planned)) == decoded
    assert any(prompts.cache is not None for prompts in shared) == (indifferent and not decoded)


def test_options_of_the_model_s_own_count_too() -> None:
    class Model:
        generation_config = GenerationConfig(no_repeat_ngram_size=2)

    assert prefill.looks_at_tokens(Model(), {})
    Model.generation_config = GenerationConfig(temperature=0.7, max_length=20)
    assert not prefill.looks_at_tokens(Model(), {"do_sample": False, "pad_token_id": 3})
    assert prefill.looks_at_tokens(Model(), {"an_option_of_tomorrow": 1})
