"""The types of causal language models that transformers lists, beside those of the other tests."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from helpers.architectures import LlamaLikeConfig
from helpers.every_type import LAYERS, PLACES, refusal, tiny_config, wrong
from helpers.models import random_model
from helpers.tables import architectures_bench, documented
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.model import model_class

ALL = tuple(range(LAYERS))
SOME = (1, 3)
FOUND: dict[str, dict[str, tuple[int, ...]]] = {
    "openai-gpt": {"head": ALL, "mlp": ALL, "residual": ALL},
    "lfm2": {"head": ALL, "mlp": ALL, "residual": ALL},
    "lfm2_moe": {"head": SOME, "mlp": ALL, "residual": ALL},
    "granitemoe": {"head": ALL, "mlp": ALL, "residual": ALL},
    "jetmoe": {"mlp": ALL, "residual": ALL},
    "xglm": {"head": ALL, "neuron": ALL, "mlp": ALL, "residual": ALL},
    "qwen3_next": {"head": (3,), "mlp": ALL, "residual": ALL},
    "qwen3_5_text": {"head": (3,), "neuron": ALL, "mlp": ALL, "residual": ALL},
    "gemma3": {"head": ALL, "neuron": ALL, "mlp": ALL, "residual": ALL},
    "gemma3n_text": {"head": ALL, "neuron": ALL, "mlp": ALL, "residual": ALL},
    "gemma4_text": {"head": ALL, "neuron": ALL, "mlp": ALL, "residual": ALL},
    "deepseek_v4": {"mlp": ALL, "residual": ALL},
    "mllama": {"head": ALL[:3], "neuron": ALL[:3], "mlp": ALL[:3], "residual": ALL[:3]},
    "reformer": {"head": ALL, "mlp": ALL, "residual": ALL},
    "rwkv": {"mlp": ALL, "residual": ALL},
    "modernbert-decoder": {"neuron": ALL, "mlp": ALL, "residual": ALL},
    "bert": {"head": ALL, "neuron": ALL, "mlp": ALL, "residual": ALL},
    "cpmant": {},
    "musicgen": {},
}
"""The layers in which a type's elements are steered; elsewhere it is refused."""


@pytest.mark.parametrize("kind", FOUND)
def test_a_type_is_steered_as_by_plain_hooks_or_refused_before_its_weights_are_loaded(
    kind: str,
) -> None:
    config = tiny_config(kind)
    said = {where: refusal(config, where) for where in PLACES}
    assert [where for where in PLACES if not said[where]] == [*FOUND[kind]]
    assert not any("\n" in each for each in said.values())
    if not FOUND[kind]:
        return
    model = random_model(config)
    for where, layers in FOUND[kind].items():
        site = find_site(model, *PLACES[where])
        assert site.blocks == layers, where
        assert wrong(model, site) == "", where


def vision_language_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """Whose vision tower is as deep as its text model, and comes first."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
             "num_attention_heads": 4}  # fmt: skip
    text = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **sizes)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=vocabulary - 1)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("where", PLACES)
def test_the_layers_of_a_vision_language_model_are_those_of_its_text_model(where: str) -> None:
    model = vision_language_model(64)
    site = find_site(model, *PLACES[where])
    layers = model.model.language_model.layers
    assert all(
        any(module is each for each in layer.modules())
        for module, layer in zip(site.modules, layers, strict=True)
    )
    assert wrong(model, site) == ""


def test_a_vision_language_model_that_is_loaded_scores_texts_as_hf(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """``AutoModelForCausalLM`` would not load it, but ``hf`` takes what is loaded."""
    model = vision_language_model(len(tokenizer) + 1)
    request = Instance("loglikelihood", {}, ("the cat is", " red and old"), 0)
    [expected] = HFLM(model, tokenizer=tokenizer).loglikelihood([request])
    ours = model_class("sadi")(model, tokenizer=tokenizer, method="none")
    [found] = ours.loglikelihood([request])
    assert found[0] == pytest.approx(expected[0], abs=1e-4)


def test_a_model_that_gives_no_logits_of_tokens_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=4)  # fmt: skip
    with pytest.raises(UserError, match="is not a causal language model"):
        model_class("sadi")(LlamaForSequenceClassification(config), tokenizer=tokenizer)


def test_a_type_that_is_registered_with_transformers_is_taken() -> None:
    """By ``AutoModelForCausalLM.register``, without code in the model's folder."""
    assert refusal(tiny_config("llama"), "head") == ""
    sizes = tiny_config("llama").to_dict()
    del sizes["model_type"]
    assert refusal(LlamaLikeConfig(**sizes), "head") == ""


@pytest.mark.slow
def test_the_table_of_all_types_in_the_documentation_is_what_trying_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = architectures_bench(monkeypatch).table_of_all()
    assert "WRONG" not in table
    assert table in documented()
